//! `shepherd-monitor doctor`: checks Redis, Postgres and the settings once, reports problems with their remedy, and changes
//! nothing.
//!
//! [`command`] is the subcommand, [`examine`] runs the checks, [`report`] prints the findings. [`redis`] (with [`bugs`], known bugs
//! of its versions), [`postgres`] and [`monitor`] derive the findings, as pure functions of what the `diagnostics` modules of the two
//! data sources read.

pub mod bugs;
pub mod monitor;
pub mod postgres;
pub mod redis;
pub mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::alerting::file;
use crate::fleet::cleanup::STALE_AFTER;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::identity_provider::IdentityProvider;
use crate::postgres::{address as postgres_address, diagnostics as of_postgres};
use crate::redis_streams::{address, diagnostics as of_redis};
use crate::settings::{OBSERVER_SCHEMA, Settings};
use report::{Finding, Report};

/// Connect timeout of a server, and time limit for each answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Time limit for examining a server.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// Returns the subcommand, which accepts all `settings`.
#[must_use]
pub fn command(settings: Vec<Arg>) -> Command {
    Command::new("doctor")
        .about("Diagnose Redis, Postgres and the settings, and suggest fixes; read-only")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print the findings as JSON"))
        .arg(
            Arg::new("idle")
                .long("idle")
                .value_name("TIME")
                .value_parser(time)
                .help("Idle time after which a consumer counts as stopped (30m, 2h) [default: 1h, as for the janitor]"),
        )
        .after_help(
            "Uses the same settings as serve. Exits with 0 if there are no problems, with 1 if there are (including \
             unreachable servers), and with 2 if a setting is invalid and nothing was checked. An unresponsive \
             server delays the command by up to 30 s.",
        )
        .args(settings)
}

fn time(text: &str) -> Result<Duration, String> {
    file::duration(text).ok_or_else(|| "expected a duration such as 1h, 90m or 30s".to_owned())
}

/// Runs all checks.
///
/// # Errors
/// If the checks cannot be started.
pub fn examine(given: &ArgMatches, settings: &Settings) -> Result<Report, String> {
    let idle = given.get_one::<Duration>("idle").copied().unwrap_or(STALE_AFTER);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let (redis, postgres, login) = runtime.block_on(async {
        futures_util::join!(look_at_redis(settings, idle), look_at_postgres(settings), look_at_provider(settings))
    });
    Ok(Report::new([redis, postgres, monitor::findings(&monitor::look(settings)), login].concat()))
}

/// Reads the configuration of the identity provider, if users log in there.
async fn look_at_provider(settings: &Settings) -> Vec<Finding> {
    let Some(provider) = settings.access.provider() else { return Vec::new() };
    let checked = match IdentityProvider::new(provider.clone()) {
        Ok(client) => client.check().await.map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    vec![monitor::login(&provider.issuer, &provider.redirect_url, checked)]
}

async fn look_at_redis(settings: &Settings, idle: Duration) -> Vec<Finding> {
    let url = settings.redis_url.reveal();
    let looking = of_redis::examine(url, &settings.watched, &settings.seed_streams, ANSWER_WITHIN);
    let silent = || Err(SourceTrouble::new(TroubleKind::TimedOut, "Redis timed out"));
    match tokio::time::timeout(LOOK_WITHIN, looking).await.unwrap_or_else(|_| silent()) {
        Ok(examined) => redis::findings(&examined, idle, settings.observe_only),
        Err(trouble) => vec![redis::not_reached(&trouble, address::is_tls(url))],
    }
}

async fn look_at_postgres(settings: &Settings) -> Vec<Finding> {
    // An observer's own schema comes before that of the fleet's tables.
    let both = settings.fleet_database_url.as_ref().map(|fleet| {
        let path = format!("-c search_path={OBSERVER_SCHEMA},\"$user\",public");
        postgres_address::with_parameter(fleet.reveal(), "options", &path)
    });
    let url = both.as_deref().unwrap_or(settings.database_url.reveal());
    let looking = of_postgres::examine(url, ANSWER_WITHIN);
    match tokio::time::timeout(LOOK_WITHIN, looking).await {
        Ok(Ok(Ok(examined))) => postgres::findings(&examined),
        Ok(Ok(Err(trouble))) => vec![postgres::not_read(&trouble)],
        Ok(Err(not_connected)) => vec![postgres::not_reached(&not_connected)],
        Err(_) => vec![postgres::not_read(&SourceTrouble::new(TroubleKind::TimedOut, "Postgres timed out"))],
    }
}
