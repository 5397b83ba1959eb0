//! `shepherd-monitor rollback`: returns to the older monitor, which stores history in its own tables and state in its
//! own Redis keys.
//!
//! [`command`] defines the arguments, and [`run`] executes them and prints the result. [`migrate`] and
//! [`older_monitor`] move the data.

use std::time::Duration;

use clap::{ArgMatches, Command};
use serde_json::{Value, json};

use super::{audited, flags, output, runtime, settings, texts};
use crate::postgres::migrate::{self, HandedBack};
use crate::postgres::{alerts, audit, connection as of_postgres};
use crate::redis_streams::connection::{self as of_redis, Pool};
use crate::redis_streams::{leader, older_monitor};
use crate::settings::Settings;

/// Response timeout of Redis.
const REDIS_WITHIN: Duration = Duration::from_secs(10);

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("rollback")
        .alias("give-back")
        .about("Roll back to the older monitor: write history and state to its tables and Redis keys")
        .after_help(
            "Stop every monitor of this database first. The database part runs in one transaction and takes about a \
             minute per million rows. In Redis, worker states, recent series, alerts and cooldowns are written to \
             the keys of the older monitor. If the command fails, run it again. The next start of this monitor \
             migrates everything again.",
        )
        .args(flags(|entry| ["Postgres", "Redis"].contains(&entry.group)))
}

/// Runs the rollback and prints the amount of data moved.
///
/// # Errors
/// When nothing or only a part was moved.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    // If only the database is configured, the deployment's Redis may be elsewhere.
    let names_redis = texts(given).keys().any(|name| name.starts_with("REDIS_"));
    runtime()?.block_on(give_back(&settings, names_redis))
}

async fn give_back(settings: &Settings, names_redis: bool) -> Result<(), String> {
    let (database_url, within) = (settings.database_url.reveal(), settings.pool_timeout);
    let connections = migrate::monitors_connected(database_url, within).await.map_err(|trouble| trouble.detail)?;
    if connections > 0 {
        return Err(watched(connections));
    }
    let redis = of_redis::pool(settings.redis_url.reveal(), REDIS_WITHIN).map_err(|trouble| trouble.detail)?;
    let redis = match leader::is_none(&redis).await {
        Ok(true) => Some(redis),
        Ok(false) => return Err("a monitor is still active on this Redis: stop it first".to_owned()),
        Err(trouble) if names_redis => {
            return Err(format!(
                "cannot reach Redis, so nothing was rolled back: {}. Check REDIS_URL or run shepherd-monitor doctor",
                trouble.detail
            ));
        }
        Err(trouble) => {
            output::complain(format_args!("only the database is rolled back: {} (set REDIS_URL)", trouble.detail));
            None
        }
    };
    let database = of_postgres::pool(database_url, within).map_err(|trouble| trouble.detail)?;
    let cooldowns = alerts::cooldowns(&database).await.map_err(|trouble| trouble.detail)?;
    // A database that this monitor never migrated has no audit log, and nothing to roll back.
    let row = match audit::is_ready(&database).await.map_err(|trouble| trouble.detail)? {
        true => Some(audited::begin(&database, "rollback", json!({"redis": redis.is_some()})).await?),
        false => None,
    };
    // The rollback refuses to run while monitors are connected.
    database.close();
    let done = roll_back(settings, redis, &cooldowns).await;
    if let Some(row) = row {
        let database = of_postgres::pool(database_url, within).map_err(|trouble| trouble.detail)?;
        audited::end(&database, row, done.as_ref().map_err(String::as_str)).await;
    }
    done.map(drop)
}

/// Moves the data. Returns the amount, for the audit log.
async fn roll_back(settings: &Settings, redis: Option<Pool>, cooldowns: &[(String, u64)]) -> Result<Value, String> {
    let (database_url, within) = (settings.database_url.reveal(), settings.pool_timeout);
    let history = migrate::give_back(database_url, within).await.map_err(|trouble| trouble.detail)?;
    if let HandedBack::Watched { connections } = history {
        return Err(watched(connections));
    }
    let state = match redis {
        Some(redis) => older_monitor::give_back(&redis, cooldowns).await.map_err(|trouble| trouble.detail)?,
        None => None,
    };
    if history == HandedBack::Nothing && state.is_none() {
        return Err("this database was not migrated by this monitor; nothing to roll back".to_owned());
    }
    let mut moved = json!({});
    if let HandedBack::All { samples, latencies } = history {
        moved = json!({"samples": samples, "latencies": latencies});
        output::line(format_args!(
            "Restored {samples} samples in monitor_metrics and {latencies} rows in monitor_task_latency."
        ))?;
    }
    if let Some(state) = state {
        output::line(format_args!(
            "Restored the states of {} worker types, {} recent series and {} cooldowns in Redis.",
            state.types, state.series, state.cooldowns
        ))?;
    }
    Ok(moved)
}

fn watched(connections: i64) -> String {
    format!(
        "a monitor is still connected to this database ({connections} connections): stop it first. Connect to Postgres \
         itself: a connection pooler keeps the connections of a stopped monitor"
    )
}
