//! `shepherd-monitor doctor`, as it ends: what it looks at and finds is in [`doctor`].

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::{complain, flags, print, settings};
use crate::doctor;

/// The subcommand.
pub(super) fn command() -> Command {
    doctor::command(flags(|_| true))
}

/// Looks everything over; 1 when something is wrong, 2 for what could not even be begun.
pub(super) fn run(given: &ArgMatches) -> ExitCode {
    let told = settings(given).and_then(|settings| {
        let report = doctor::examine(given, &settings)?;
        print(report.told(given).as_bytes())?;
        Ok(report.something_is_wrong())
    });
    match told {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(reason) => {
            complain(&reason);
            ExitCode::from(2)
        }
    }
}
