//! `shepherd-monitor check-config`: reports all errors of a rules file.

use std::path::Path;

use clap::{Arg, ArgMatches, Command};

use super::output;
use crate::alerting::file;
use crate::doctor::report::count;
use crate::regular_file;

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("check-config")
        .about("Check an alert rules file for errors and report them with line and column")
        .arg(Arg::new("FILE").required(true).help("Path of the rules file, such as alerts.yaml"))
}

/// Prints the errors, or that the file is valid.
///
/// # Errors
/// When the file is invalid or unreadable.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let name = given.get_one::<String>("FILE").map(String::as_str).unwrap_or_default();
    let text = regular_file::read(Path::new(name), regular_file::RULES).map_err(|error| format!("{name}: {error}"))?;
    match file::read(&text) {
        Ok(rules) => output::line(format_args!("{name}: {}, no errors", count(rules.rules.len(), "rule"))),
        Err(mistakes) => {
            for mistake in &mistakes {
                output::detail(format_args!("{name}:{mistake}"));
            }
            Err(format!("{name} has {}", count(mistakes.len(), "error")))
        }
    }
}
