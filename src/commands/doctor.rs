//! `shepherd-monitor doctor`: runs the checks in [`doctor`] and returns the exit code.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::{complain, flags, print, settings};
use crate::doctor;

/// The subcommand.
pub(super) fn command() -> Command {
    doctor::command(flags(|_| true))
}

/// Runs all checks. Exits with 1 when a check fails and with 2 when the checks could not start.
pub(super) fn run(given: &ArgMatches) -> ExitCode {
    let result = settings(given).and_then(|settings| {
        let report = doctor::examine(given, &settings)?;
        print(report.told(given).as_bytes())?;
        Ok(report.something_is_wrong())
    });
    match result {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(reason) => {
            complain(&reason);
            ExitCode::from(2)
        }
    }
}
