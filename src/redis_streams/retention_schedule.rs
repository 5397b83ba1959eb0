//! Times of the last sweeps of history and old queries, shared by all instances, so that one of them does each.

use super::connection::{Pool, checkout, trouble};
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;

/// Claims a sweep that is due every `every` seconds; returns whether this instance may do it now (`now`: Unix seconds). It is
/// recorded as done; [`give_back`] reverts that.
///
/// # Errors
/// If Redis fails.
pub async fn claim(pool: &Pool, now: f64, every: f64) -> Result<bool, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let script = redis::Script::new(
        "local last = tonumber(redis.call('GET', KEYS[1]) or '')
         if last and last <= tonumber(ARGV[1]) and tonumber(ARGV[1]) - last < tonumber(ARGV[2]) then return 0 end
         redis.call('SET', KEYS[1], ARGV[1])
         return 1",
    );
    let claimed: i64 = script
        .key(keys::LAST_RETENTION_SWEEP)
        .arg(now)
        .arg(every)
        .invoke_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(claimed == 1)
}

/// Times of the last sweeps, Unix seconds; `None` if unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LastRuns {
    /// History.
    pub history: Option<f64>,
    /// Old queries of the fleet.
    pub queries: Option<f64>,
}

/// Returns the times of the last sweeps.
///
/// # Errors
/// If Redis cannot be read.
pub async fn last_runs(pool: &Pool) -> Result<LastRuns, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut ask = redis::cmd("MGET");
    ask.arg(keys::LAST_RETENTION_SWEEP).arg(keys::LAST_QUERY_RETENTION_SWEEP);
    let (history, queries): (Option<String>, Option<String>) =
        ask.query_async(&mut redis).await.map_err(|e| trouble(&e))?;
    let seconds = |text: Option<String>| text.and_then(|text| text.trim().parse().ok());
    Ok(LastRuns { history: seconds(history), queries: seconds(queries) })
}

/// Reverts a claim after a failed sweep.
///
/// # Errors
/// If Redis fails; the next sweep is then a day later.
pub async fn give_back(pool: &Pool) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    redis::cmd("DEL").arg(keys::LAST_RETENTION_SWEEP).exec_async(&mut redis).await.map_err(|e| trouble(&e))
}

/// Returns whether old queries were not deleted for `every` seconds at `now` (Unix seconds).
///
/// # Errors
/// If Redis cannot be read.
pub async fn query_sweep_is_due(pool: &Pool, now: f64, every: f64) -> Result<bool, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let last: Option<String> = redis::cmd("GET")
        .arg(keys::LAST_QUERY_RETENTION_SWEEP)
        .query_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    let last = last.and_then(|last| last.trim().parse::<f64>().ok());
    Ok(last.is_none_or(|last| last > now || now - last >= every))
}

/// Records that all old queries were deleted at `now` (Unix seconds).
///
/// # Errors
/// If Redis fails; the next run checks again.
pub async fn query_sweep_is_done(pool: &Pool, now: f64) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    redis::cmd("SET")
        .arg(keys::LAST_QUERY_RETENTION_SWEEP)
        .arg(now)
        .exec_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))
}
