//! When history and old queries were last swept: known to all monitors of a fleet, so that one of them
//! does it.

use super::connection::{Pool, checkout, trouble};
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;

/// Claims the sweep that is due `every` seconds: true for the one that may do it now (`now`: Unix
/// seconds). It is noted as done; [`give_back`] undoes that.
///
/// # Errors
/// When Redis cannot be asked.
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

/// When each was swept last, Unix seconds; `None`: never, as far as is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LastRuns {
    /// History.
    pub history: Option<f64>,
    /// Old queries.
    pub queries: Option<f64>,
}

/// Reads when each was swept last.
///
/// # Errors
/// When Redis cannot be asked.
pub async fn last_runs(pool: &Pool) -> Result<LastRuns, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut ask = redis::cmd("MGET");
    ask.arg(keys::LAST_RETENTION_SWEEP).arg(keys::LAST_QUERY_RETENTION_SWEEP);
    let (history, queries): (Option<String>, Option<String>) =
        ask.query_async(&mut redis).await.map_err(|e| trouble(&e))?;
    let seconds = |text: Option<String>| text.and_then(|text| text.trim().parse().ok());
    Ok(LastRuns { history: seconds(history), queries: seconds(queries) })
}

/// It was not done after all.
///
/// # Errors
/// When Redis did not take it: the next sweep is then a day later.
pub async fn give_back(pool: &Pool) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    redis::cmd("DEL").arg(keys::LAST_RETENTION_SWEEP).exec_async(&mut redis).await.map_err(|e| trouble(&e))
}

/// Whether old queries were not deleted for `every` seconds at `now` (Unix seconds).
///
/// # Errors
/// When Redis cannot be asked.
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

/// Old queries were deleted, all of them, at `now` (Unix seconds).
///
/// # Errors
/// When Redis did not take it: the next pass looks again.
pub async fn query_sweep_is_done(pool: &Pool, now: f64) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    redis::cmd("SET")
        .arg(keys::LAST_QUERY_RETENTION_SWEEP)
        .arg(now)
        .exec_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))
}
