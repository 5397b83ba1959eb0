//! Checks of the monitor's settings and files.

use std::path::{Path, PathBuf};

use super::report::{Finding, count, fine, list, worth_knowing, wrong};
use crate::alerting::file;
use crate::alerting::rule::CHANNELS;
use crate::postgres::diagnostics;
use crate::regular_file;
use crate::settings::Settings;

/// The settings, and the state of the files that they name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// Rules file.
    pub rules: Rules,
    /// Configured channels.
    pub channels: Vec<&'static str>,
    /// An outside check is configured.
    pub has_outside_check: bool,
    /// The public URL of the monitor is configured.
    pub has_address: bool,
    /// Spool folder.
    pub spool: PathBuf,
    /// Why the spool folder cannot be used, if so.
    pub spool_refused: Option<String>,
    /// Why it would refuse to serve, if so.
    pub refuses_to_serve: Option<String>,
    /// Anonymous users may change everything, and the monitor is reachable from other machines.
    pub anybody_may: bool,
    /// Host to which the Postgres password may be sent unencrypted.
    pub clear_password_to: Option<String>,
    /// The size of the database volume is configured.
    pub knows_the_volume: bool,
    /// Warnings about environment variables.
    pub warnings: Vec<String>,
}

/// Rules file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Path.
    pub file: PathBuf,
    /// The path was configured.
    pub is_given: bool,
    /// Content.
    pub read: RulesRead,
}

/// Content of a rules file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RulesRead {
    /// The file does not exist.
    #[default]
    Missing,
    /// The file cannot be read.
    Unreadable(String),
    /// Number of rules.
    Good(usize),
    /// Errors, `line:column: description`.
    Mistakes(Vec<String>),
}

/// Reads the settings and the files that they name.
#[must_use]
pub fn look(settings: &Settings) -> Looked {
    let alerts = &settings.alerts;
    let set: [bool; CHANNELS.len()] = [alerts.slack.is_some(), alerts.email.is_some(), alerts.webhook.is_some()];
    Looked {
        rules: Rules { file: alerts.file.clone(), is_given: alerts.file_is_given, read: read(&alerts.file) },
        channels: CHANNELS.iter().zip(set).filter(|(_, set)| *set).map(|((name, _), _)| *name).collect(),
        has_outside_check: alerts.heartbeat.is_some(),
        has_address: settings.server_url.is_some(),
        spool: settings.spool_folder.clone(),
        spool_refused: spool_refused(&settings.spool_folder),
        refuses_to_serve: settings.may_serve().err().map(|bad| bad.to_string()),
        anybody_may: settings.anybody_may && !settings.bind.is_loopback(),
        clear_password_to: diagnostics::password_in_clear(settings.database_url.reveal()),
        knows_the_volume: settings.disk_capacity_bytes > 0,
        warnings: settings.warnings.clone(),
    }
}

fn read(path: &Path) -> RulesRead {
    match regular_file::read(path, regular_file::RULES) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => RulesRead::Missing,
        Err(error) => RulesRead::Unreadable(error.to_string()),
        Ok(text) => match file::read(&text) {
            Ok(rules) => RulesRead::Good(rules.rules.len()),
            Err(mistakes) => RulesRead::Mistakes(mistakes.iter().map(ToString::to_string).collect()),
        },
    }
}

/// Returns why a folder cannot be used for the spool, if so. Writes nothing.
fn spool_refused(folder: &Path) -> Option<String> {
    match regular_file::check_own_folder(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotADirectory => Some(error.to_string()),
        _ => (!may_be_written(folder)).then(|| "not writable".to_owned()),
    }
}

/// Returns whether a folder, or its nearest existing parent, is writable.
fn may_be_written(folder: &Path) -> bool {
    let there = folder.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    there.into_iter().find(|path| path.exists()).is_some_and(|path| {
        path.is_dir() && rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
    })
}

/// Returns all findings about the settings.
#[must_use]
pub fn findings(looked: &Looked) -> Vec<Finding> {
    let mut findings = vec![rules(&looked.rules)];
    if !looked.warnings.is_empty() {
        findings.push(worth_knowing(
            "monitor.settings",
            looked.warnings.join(". "),
            "the monitor runs with other settings than these variables say",
            "correct the variables, or remove them (docs/settings.md lists all settings)",
        ));
    }
    findings.push(if looked.channels.is_empty() {
        worth_knowing(
            "monitor.channels",
            "no notification channel is configured",
            "alerts are shown on the Alerts page but no notifications are sent",
            format!("set one of {}, then run `shepherd-monitor notify-test`", CHANNELS.map(|(_, set)| set).join(", ")),
        )
    } else {
        fine(
            "monitor.channels",
            format!("notifications are sent to {}", list(looked.channels.iter().map(|c| (*c).to_owned()))),
        )
    });
    findings.push(if looked.has_outside_check {
        fine("monitor.heartbeat", "an outside check (HEARTBEAT_URL) reports when this monitor stops")
    } else {
        worth_knowing(
            "monitor.heartbeat",
            "HEARTBEAT_URL is not set",
            "no notification is sent if the monitor itself stops",
            "set it to the URL of a check at healthchecks.io, Uptime Kuma or a similar service",
        )
    });
    findings.push(if looked.has_address {
        fine("monitor.address", "notifications link to SERVER_URL")
    } else {
        worth_knowing(
            "monitor.address",
            "SERVER_URL is not set",
            "notifications contain no links to the monitor",
            "set it to the URL where users reach the monitor",
        )
    });
    findings.push(match &looked.spool_refused {
        None => fine("monitor.spool", format!("the spool directory is writable ({})", looked.spool.display())),
        Some(why) => wrong(
            "monitor.spool",
            format!("the spool directory {} is {why}", looked.spool.display()),
            "samples and alert changes are lost while Postgres is unreachable",
            "set MONITOR_SPOOL_DIR to a directory that belongs to this user",
        ),
    });
    findings.push(match &looked.refuses_to_serve {
        Some(why) => wrong(
            "monitor.access",
            why.clone(),
            "the monitor will not start with these settings",
            "set MONITOR_AUTH and a token (docs/security.md), or MONITOR_BIND to 127.0.0.1",
        ),
        None if looked.anybody_may => worth_knowing(
            "monitor.access",
            "anonymous access with all permissions is allowed explicitly",
            "anonymous users can delete messages",
            "set MONITOR_AUTH (docs/security.md)",
        ),
        None => fine("monitor.access", "changes require authentication, or access from this machine only"),
    });
    findings.push(match &looked.clear_password_to {
        Some(host) => worth_knowing(
            "monitor.postgres_tls",
            format!("the password for Postgres may be sent to {host} without encryption"),
            "sslmode is prefer or disable: whoever answers for that server, or listens on the way, learns the password",
            "set DATABASE_URL with ?sslmode=verify-full (or require, which encrypts and accepts any certificate)",
        ),
        None => fine("monitor.postgres_tls", "the password for Postgres is not sent to other machines in clear"),
    });
    findings.push(if looked.knows_the_volume {
        fine("monitor.volume", "the size of the Postgres volume is configured")
    } else {
        worth_knowing(
            "monitor.volume",
            "PG_VOLUME_CAPACITY is not set",
            "disk usage of the database is unknown, and rules on it never fire",
            "set it to the size of the volume, such as 100Gi",
        )
    });
    findings
}

fn rules(rules: &Rules) -> Finding {
    let file = rules.file.display();
    match &rules.read {
        RulesRead::Good(number) => fine("monitor.rules", format!("{file} is valid ({})", count(*number, "rule"))),
        RulesRead::Mistakes(mistakes) => wrong(
            "monitor.rules",
            format!("{file} has {}: {}", count(mistakes.len(), "error"), list(mistakes.iter().cloned())),
            "none of its rules are loaded at startup",
            format!("fix the file; `shepherd-monitor check-config {file}` reports the same errors"),
        ),
        RulesRead::Unreadable(why) => wrong(
            "monitor.rules",
            format!("cannot read {file} ({why})"),
            "none of its rules are loaded",
            "make it readable for this user, or set MONITOR_ALERTS_CONFIG to another file",
        ),
        RulesRead::Missing if rules.is_given => wrong(
            "monitor.rules",
            format!("{file} does not exist"),
            "no rules are loaded",
            "set MONITOR_ALERTS_CONFIG to the path of the rules file",
        ),
        RulesRead::Missing => worth_knowing(
            "monitor.rules",
            format!("{file} does not exist in the working directory"),
            "only built-in alerts are sent: worker types at zero, lost workers, Redis or Postgres unreachable",
            "set MONITOR_ALERTS_CONFIG to a rules file (docs/alerts.md)",
        ),
    }
}
