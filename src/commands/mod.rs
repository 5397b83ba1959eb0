//! The command line, one module per command. The definitions generate `--help`, the man pages and the shell
//! completions.
//!
//! Larger commands are implemented in their own modules: [`doctor`](crate::doctor), [`demo`](crate::demo),
//! [`application`](crate::application).

mod audit;
mod audited;
mod check_config;
mod completions;
mod dead_letters;
mod demo;
mod demo_fleet;
mod doctor;
mod give_back;
mod health;
mod man;
mod notify_test;
mod output;
mod serve;
mod sessions;
mod test_rules;
mod users;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use tokio::runtime::Runtime;

use crate::demo::worker as demo_worker;
use crate::environment;
use crate::settings::{Entry, PREFIXES, Settings, TABLE, document};
use crate::worker;

const NAME: &str = "shepherd-monitor";

/// Returns the definition of the whole command line.
#[must_use]
pub fn command() -> Command {
    for_people().subcommand(demo_worker::command())
}

/// Returns the public commands; [`TABLE`] defines the settings' flags.
fn for_people() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Monitoring for workers on Redis streams: worker health, queue backlogs and alerts.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(doctor::command())
        .subcommand(demo::command())
        .subcommand(demo_fleet::command())
        .subcommand(check_config::command())
        .subcommand(test_rules::command())
        .subcommand(notify_test::command())
        .subcommand(health::command())
        .subcommand(dead_letters::command())
        .subcommand(audit::command())
        .subcommand(users::command())
        .subcommand(sessions::command())
        .subcommand(give_back::command())
        .subcommand(Command::new("settings").about("Print all settings with their defaults, as in docs/settings.md"))
        .subcommand(completions::command())
        .subcommand(man::command())
}

/// Runs the command line; prints errors in one line.
#[must_use]
pub fn run() -> ExitCode {
    output::report_panics();
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return output::about_arguments(error),
    };
    let done = match matches.subcommand() {
        Some(("serve", given)) => serve::run(given),
        // It has two failure exit codes.
        Some(("doctor", given)) => return doctor::run(given),
        Some(("demo", given)) => demo::run(given),
        Some(("demo-fleet", given)) => demo_fleet::run(given),
        Some(("demo-worker", given)) => demo_worker::run(given.into()),
        Some(("check-config", given)) => check_config::run(given),
        Some(("test-rules", given)) => test_rules::run(given),
        Some(("notify-test", given)) => notify_test::run(given),
        Some(("health", given)) => health::run(given),
        Some(("dead-letters", given)) => dead_letters::run(given),
        Some(("audit", given)) => audit::run(given),
        Some(("users", given)) => users::run(given),
        Some(("sessions", given)) => sessions::run(given),
        Some(("rollback", given)) => give_back::run(given),
        Some(("settings", _)) => output::document(&document(worker::SETTINGS)),
        Some(("completions", given)) => completions::run(given),
        Some(("man", given)) => man::run(given),
        _ => Err("unknown command".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            output::complain(reason);
            ExitCode::FAILURE
        }
    }
}

/// Returns the flags of the settings selected by `wanted`.
fn flags(wanted: impl Fn(&Entry) -> bool) -> Vec<Arg> {
    TABLE.iter().filter(|entry| wanted(entry)).map(flag).collect()
}

fn flag(entry: &'static Entry) -> Arg {
    let help = if entry.default.is_empty() {
        entry.help.to_owned()
    } else {
        format!("{} [default: {}]", entry.help, entry.default)
    };
    Arg::new(entry.env)
        .long(entry.flag())
        .env(entry.env)
        .hide_env_values(true)
        .help_heading(entry.group)
        .value_name("VALUE")
        .allow_hyphen_values(true)
        .help(help)
}

/// Returns the given values by environment variable; a subcommand may not define all of them.
fn texts(given: &ArgMatches) -> BTreeMap<&'static str, String> {
    let text = |name| given.try_get_one::<String>(name).ok()?.cloned();
    let mut texts: BTreeMap<&'static str, String> =
        TABLE.iter().filter_map(|entry| Some((entry.env, text(entry.env)?))).collect();
    // systemd's, not a setting of ours.
    texts.extend(
        std::env::var(environment::CREDENTIALS_DIRECTORY).ok().map(|text| (environment::CREDENTIALS_DIRECTORY, text)),
    );
    texts
}

/// Returns the settings and a warning for each variable that looks like a setting but is unknown.
fn settings(given: &ArgMatches) -> Result<Settings, String> {
    let mut settings = Settings::from(&texts(given)).map_err(|bad| bad.to_string())?;
    let known: Vec<&str> =
        TABLE.iter().map(|entry| entry.env).chain(worker::SETTINGS.iter().map(|(name, ..)| *name)).collect();
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    settings.warnings.extend(environment::unknown_variables(variables, &PREFIXES, &known));
    Ok(settings)
}

/// Returns the runtime for commands that access servers.
fn runtime() -> Result<Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_definition_is_valid() {
        command().debug_assert();
    }
}
