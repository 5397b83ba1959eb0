//! `shepherd-monitor doctor`: runs the checks in [`doctor`] and returns the exit code.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::{flags, output, settings};
use crate::doctor;

/// The subcommand.
pub(super) fn command() -> Command {
    doctor::command(flags(|_| true))
}

/// Runs all checks. Exits with 1 when a check fails and with 2 when the checks could not start.
pub(super) fn run(given: &ArgMatches) -> ExitCode {
    let result = settings(given).and_then(|settings| {
        let report = doctor::examine(given, &settings)?;
        if given.get_flag("json") {
            output::document(&report.as_json())?;
        } else {
            output::print(&report.as_text())?;
        }
        Ok(report.something_is_wrong())
    });
    match result {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(reason) => {
            output::complain(reason);
            ExitCode::from(2)
        }
    }
}
