//! When history and queries were last swept: known to all monitors of a fleet, so that one of them does it.

use deadpool_redis::Pool;

use super::connection::{checkout, trouble};
use crate::fleet::reading::SourceTrouble;

/// Claims the sweep noted in `key` that is due `every` seconds: true for the one that may do it now
/// (`now`: Unix seconds). It is noted as done; [`give_back`] undoes that.
///
/// # Errors
/// When Redis cannot be asked.
pub async fn claim(pool: &Pool, key: &str, now: f64, every: f64) -> Result<bool, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let script = redis::Script::new(
        "local last = tonumber(redis.call('GET', KEYS[1]) or '')
         if last and last <= tonumber(ARGV[1]) and tonumber(ARGV[1]) - last < tonumber(ARGV[2]) then return 0 end
         redis.call('SET', KEYS[1], ARGV[1])
         return 1",
    );
    let claimed: i64 = script.key(key).arg(now).arg(every).invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
    Ok(claimed == 1)
}

/// It was not done after all.
///
/// # Errors
/// When Redis did not take it: the next sweep is then a day later.
pub async fn give_back(pool: &Pool, key: &str) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    redis::cmd("DEL").arg(key).exec_async(&mut redis).await.map_err(|e| trouble(&e))
}
