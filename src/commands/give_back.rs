//! `shepherd-monitor give-back`: the way back to the monitor before this one, which reads history from
//! tables of its own.
//!
//! [`command`] is what is asked, [`run`] does it and tells what came of it. What is moved where is in
//! [`migrate`].

use clap::{ArgMatches, Command};

use super::{flags, runtime, settings};
use crate::postgres::migrate::{self, GivenBack};

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("give-back")
        .about("Give the recorded history back to the tables of the monitor before this one")
        .after_help(
            "Stop every monitor of the database first. All of it happens or nothing; a million rows take about a \
             minute. The next start of this monitor takes the tables over again.",
        )
        .args(flags(|entry| entry.group == "Postgres"))
}

/// Carries it out, and prints how much was given back.
///
/// # Errors
/// Why nothing was.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    let giving = migrate::give_back(settings.database_url.reveal(), settings.pool_timeout);
    match runtime()?.block_on(giving).map_err(|trouble| trouble.detail)? {
        GivenBack::All { samples, latencies } => {
            println!("monitor_metrics has all {samples} samples, monitor_task_latency all {latencies} rows.");
            Ok(())
        }
        GivenBack::Nothing => Err("this monitor has not taken this database over".to_owned()),
        GivenBack::Watched { connections } => {
            Err(format!("a monitor still works on this database ({connections} connections): stop it first"))
        }
    }
}
