//! Checks of the monitor's settings and files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::report::{Finding, count, fine, list, worth_knowing, wrong};
use crate::alerting::channels;
use crate::alerting::file;
use crate::postgres::diagnostics;
use crate::redis_streams::address as redis_address;
use crate::regular_file;
use crate::settings::{AlertSettings, Secret, Settings};
use crate::tcp;

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
    /// Host to which the Redis password is sent unencrypted.
    pub clear_redis_password_to: Option<String>,
    /// Clients from any address are trusted as proxies.
    pub trusts_everybody: bool,
    /// Settings of channels on other machines that are reached without encryption.
    pub clear_channels: Vec<&'static str>,
    /// Settings whose secret is in a file that every user of this machine can read.
    pub readable_secrets: Vec<&'static str>,
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
    Looked {
        rules: Rules { file: alerts.file.clone(), is_given: alerts.file_is_given, read: read(&alerts.file) },
        channels: alerts.channel_names(),
        has_outside_check: alerts.heartbeat.is_some(),
        has_address: settings.server_url.is_some(),
        spool: settings.spool_folder.clone(),
        spool_refused: spool_refused(&settings.spool_folder),
        refuses_to_serve: settings.may_serve().err().map(|bad| bad.to_string()),
        anybody_may: settings.anybody_may && !settings.bind.is_loopback(),
        clear_password_to: diagnostics::password_in_clear(settings.database_url.reveal()),
        clear_redis_password_to: redis_address::password_in_clear(settings.redis_url.reveal()),
        trusts_everybody: settings.trusted_proxies.trusts_everybody(),
        clear_channels: clear_channels(alerts),
        readable_secrets: settings
            .secret_files
            .iter()
            .filter(|(_, path)| is_world_readable(path))
            .map(|(n, _)| *n)
            .collect(),
        knows_the_volume: settings.disk_capacity_bytes > 0,
        warnings: settings.warnings.clone(),
    }
}

fn clear_channels(alerts: &AlertSettings) -> Vec<&'static str> {
    let elsewhere = |url: &Secret| {
        let rest = url.reveal().strip_prefix("http://");
        rest.is_some_and(|rest| {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = host.rsplit('@').next().unwrap_or_default();
            let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
            !tcp::is_loopback(port.map_or(host, |(name, _)| name))
        })
    };
    let channels = alerts.channels.iter().flat_map(|channel| channel.values.iter().map(|(name, value)| (*name, value)));
    let heartbeat = alerts.heartbeat.iter().map(|url| ("HEARTBEAT_URL", url));
    channels.chain(heartbeat).filter(|(_, url)| elsewhere(url)).map(|(name, _)| name).collect()
}

fn is_world_readable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
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
            format!("set one of {}, then run `shepherd-monitor notify-test`", channels::settings()),
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
    findings.push(match &looked.clear_redis_password_to {
        Some(host) => worth_knowing(
            "monitor.redis_tls",
            format!("the password for Redis is sent to {host} without encryption"),
            "an eavesdropper on the network can read the password",
            "turn on TLS in Redis and set REDIS_TLS=yes, or rediss:// in REDIS_URL",
        ),
        None => fine("monitor.redis_tls", "the password for Redis is not sent to other machines in clear"),
    });
    findings.push(if looked.trusts_everybody {
        wrong(
            "monitor.proxies",
            "MONITOR_PROXY_TRUSTED contains all addresses",
            "every client can choose its address, and with MONITOR_AUTH=proxy its name and role",
            "set it to the addresses of the proxies",
        )
    } else {
        fine("monitor.proxies", "only configured addresses are trusted as proxies")
    });
    findings.push(if looked.clear_channels.is_empty() {
        fine("monitor.channels_tls", "no notification is sent to another machine without encryption")
    } else {
        worth_knowing(
            "monitor.channels_tls",
            format!("{} begins with http://", list(looked.clear_channels.iter().map(|name| (*name).to_owned()))),
            "an eavesdropper on the network can read the notifications and the URL",
            "use https://",
        )
    });
    findings.push(if looked.readable_secrets.is_empty() {
        fine("monitor.secrets", "no file with a secret can be read by every user of this machine")
    } else {
        let names = list(looked.readable_secrets.iter().map(|name| (*name).to_owned()));
        worth_knowing(
            "monitor.secrets",
            format!("every user of this machine can read the file in {names}"),
            "other users learn the secret, unless the directory is private",
            "run chmod o-r on it",
        )
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

/// Finding about the identity provider `issuer`, whose configuration was read or not.
#[must_use]
pub fn login(issuer: &str, redirect_url: &str, checked: Result<(), String>) -> Finding {
    match checked {
        Ok(()) => fine(
            "monitor.login",
            format!(
                "users log in at {issuer}, where the redirect URL {redirect_url} must be registered; a login checks the secret"
            ),
        ),
        Err(why) => wrong(
            "monitor.login",
            why,
            "users cannot log in with a browser, except with a token",
            "correct MONITOR_OIDC_ISSUER, or make the provider reachable from this machine (docs/security.md)",
        ),
    }
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
