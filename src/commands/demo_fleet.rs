//! `shepherd-monitor demo-fleet`: runs the simulated fleet on existing servers.

use clap::{ArgMatches, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::demo::{described, say};
use super::{flags, output, runtime, settings};
use crate::demo::{DemoOptions, Fleet};

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("demo-fleet")
        .about("Run the simulated fleet on an existing Redis and Postgres")
        .after_help(
            "For testing only: it writes to both servers and does not clean up. Press Ctrl-C to stop its workers.",
        )
        .args(flags(|entry| matches!(entry.group, "Redis" | "Postgres")))
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When the fleet does not start or fails.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    let options = DemoOptions::new(say).map_err(|e| e.to_string())?;
    runtime()?.block_on(async {
        // Register the signal handlers before starting any process.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
        let (redis, database) = (settings.redis_url.reveal().to_owned(), settings.database_url.reveal().to_owned());
        let fleet = Fleet::start(options, redis, database).map_err(|error| described(&error))?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        drop(fleet);
        output::line("The fleet has stopped.")
    })
}
