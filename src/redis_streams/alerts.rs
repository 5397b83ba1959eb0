//! Alerts as the contract keeps them in Redis: the newest 200, and a key while a rule is quiet; and
//! which monitor leads, for the time in which Postgres cannot say it.

use super::connection::{self, send};
use super::reply::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;
use std::borrow::Cow;
use std::time::Duration;

/// Alerts kept.
const KEPT: isize = 200;

/// Puts alerts (JSON, oldest first) in front of the others, and marks rules as quiet for so many
/// seconds. Told again after an answer that did not come in time, each alert is there once.
///
/// # Errors
/// When Redis did not take them.
pub async fn remember(
    pool: &deadpool_redis::Pool,
    alerts: &[String],
    quiet: &[(String, u64)],
) -> Result<(), SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    for alert in alerts {
        pipe.cmd("LREM").arg(keys::ALERTS_HISTORY).arg(0).arg(alert);
        pipe.cmd("LPUSH").arg(keys::ALERTS_HISTORY).arg(alert);
    }
    if !alerts.is_empty() {
        pipe.cmd("LTRIM").arg(keys::ALERTS_HISTORY).arg(0).arg(KEPT - 1);
    }
    for (rule, seconds) in quiet.iter().filter(|(_, seconds)| *seconds > 0) {
        pipe.cmd("SET").arg(keys::alert_cooldown(rule)).arg("1").arg("EX").arg(*seconds);
    }
    for answer in send(&mut redis, &mut pipe).await? {
        answer.map_err(|e| connection::trouble(&e))?;
    }
    Ok(())
}

/// The newest `limit` alerts (JSON), newest first.
///
/// # Errors
/// When Redis cannot be read.
pub async fn newest(pool: &deadpool_redis::Pool, limit: usize) -> Result<Vec<String>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("LRANGE").arg(keys::ALERTS_HISTORY).arg(0).arg(limit.saturating_sub(1));
    match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Ok(value)) => Ok(Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect()),
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Ok(Vec::new()),
    }
}

/// Takes the place of the leader for so long if it is free or one's own.
const HOLD: &str = "local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

/// Leaves the place if it is one's own.
const LEAVE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0";

/// Which monitor said last that it leads, if that still holds.
///
/// # Errors
/// When Redis does not say.
pub async fn leader(pool: &deadpool_redis::Pool) -> Result<Option<String>, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("GET").arg(keys::ALERTS_LEADER);
    Ok(Reply::of(&one(pool, pipe).await?).text().map(Cow::into_owned))
}

/// `holder` leads for so long, whoever else believed it.
///
/// # Errors
/// When Redis did not take it.
pub async fn lead(pool: &deadpool_redis::Pool, holder: &str, lease: Duration) -> Result<(), SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(keys::ALERTS_LEADER).arg(holder).arg("PX").arg(millis(lease));
    one(pool, pipe).await.map(drop)
}

/// The same if no other leads; whether it does.
///
/// # Errors
/// When Redis does not say.
pub async fn lead_unless_another(
    pool: &deadpool_redis::Pool,
    holder: &str,
    lease: Duration,
) -> Result<bool, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("EVAL").arg(HOLD).arg(1).arg(keys::ALERTS_LEADER).arg(holder).arg(millis(lease));
    Ok(one(pool, pipe).await? == redis::Value::Int(1))
}

/// `holder` leads no more.
///
/// # Errors
/// When Redis did not take it.
pub async fn resign(pool: &deadpool_redis::Pool, holder: &str) -> Result<(), SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("EVAL").arg(LEAVE).arg(1).arg(keys::ALERTS_LEADER).arg(holder);
    one(pool, pipe).await.map(drop)
}

fn millis(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}

async fn one(pool: &deadpool_redis::Pool, mut pipe: redis::Pipeline) -> Result<redis::Value, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Ok(redis::Value::Nil),
    }
}
