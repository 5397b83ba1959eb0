//! The last days of every series, kept in Redis as the contract says.

use std::borrow::Cow;
use std::time::Duration;

use deadpool_redis::Pool;
use redis::Value;

use super::connection::{checkout, send, trouble};
use super::reply::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;

/// Samples that are left of a series when it is cut: until the next time it stays below the
/// contract's 10,000.
const MOST_SAMPLES: isize = 9_980;
/// Series written in one trip.
const SERIES_AT_ONCE: usize = 250;
/// A series is cut at every so manyth sample: cutting costs Redis more than adding.
const CUT_EVERY: u64 = 16;

/// Adds one sample to each series, the `nth` time, taken at `at` (Unix seconds); in one series of a
/// few it forgets what is older than `keep`. A series without new samples for that long expires.
///
/// # Errors
/// When Redis did not take them.
pub async fn push(
    pool: &Pool,
    nth: u64,
    at: i64,
    samples: &[(String, f64)],
    keep: Duration,
) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let oldest = at.saturating_sub_unsigned(keep.as_secs());
    for some in samples.chunks(SERIES_AT_ONCE) {
        let mut pipe = redis::pipe();
        for (place, (series, value)) in (nth..).zip(some) {
            let key = keys::recent_series(series);
            pipe.cmd("ZADD").arg(&key).arg(at).arg(format!("{at}:{}", json(*value)));
            pipe.cmd("EXPIRE").arg(&key).arg(keep.as_secs().max(1));
            if place % CUT_EVERY == 0 {
                pipe.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(format!("({oldest}"));
                pipe.cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(-MOST_SAMPLES);
            }
        }
        let names: Vec<&str> = some.iter().map(|(series, _)| series.as_str()).collect();
        pipe.cmd("SADD").arg(keys::RECENT_SERIES).arg(names);
        for answer in send(&mut redis, &mut pipe).await? {
            answer.map_err(|e| trouble(&e))?;
        }
    }
    Ok(())
}

/// Forgets the series of which no sample is younger than `keep` at `now` (Unix seconds), such as those of deleted
/// streams: those that expired leave the index, older ones that had no expiry go with it. Returns how many.
///
/// # Errors
/// When Redis did not do it.
pub async fn forget_ended(pool: &Pool, now: i64, keep: Duration) -> Result<usize, SourceTrouble> {
    let oldest = now.saturating_sub_unsigned(keep.as_secs());
    let index = one(pool, redis::cmd("SMEMBERS").arg(keys::RECENT_SERIES)).await?;
    let names: Vec<String> = Reply::of(&index).items().filter_map(Reply::text).map(Cow::into_owned).collect();
    let mut redis = checkout(pool).await?;
    let mut forgotten = 0;
    for some in names.chunks(SERIES_AT_ONCE) {
        let mut pipe = redis::pipe();
        for series in some {
            let key = keys::recent_series(series);
            pipe.cmd("ZRANGEBYSCORE").arg(key).arg(oldest).arg("+inf").arg("LIMIT").arg(0).arg(1);
        }
        let young = send(&mut redis, &mut pipe).await?;
        // What cannot be read is somebody else's key.
        let ended: Vec<&str> = some
            .iter()
            .zip(&young)
            .filter(|(_, young)| young.as_ref().is_ok_and(|young| Reply::of(young).items().next().is_none()))
            .map(|(series, _)| series.as_str())
            .collect();
        if ended.is_empty() {
            continue;
        }
        let mut pipe = redis::pipe();
        pipe.cmd("DEL").arg(ended.iter().map(|series| keys::recent_series(series)).collect::<Vec<_>>());
        pipe.cmd("SREM").arg(keys::RECENT_SERIES).arg(&ended);
        for answer in send(&mut redis, &mut pipe).await? {
            answer.map_err(|e| trouble(&e))?;
        }
        forgotten += ended.len();
    }
    Ok(forgotten)
}

/// Whole numbers without a fraction, as the predecessor wrote them.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
fn json(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 9e15 { (value as i64).to_string() } else { value.to_string() }
}

/// The names of all series, in order.
///
/// # Errors
/// When Redis cannot be read.
pub async fn names(pool: &Pool) -> Result<Vec<String>, SourceTrouble> {
    let mut names: Vec<String> = match one(pool, redis::cmd("SMEMBERS").arg(keys::RECENT_SERIES)).await? {
        Value::Nil => Vec::new(),
        value => Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect(),
    };
    names.sort();
    Ok(names)
}

/// The samples of a series since `since` (Unix seconds), oldest first; what cannot be read is left
/// out.
///
/// # Errors
/// When Redis cannot be read.
pub async fn read(pool: &Pool, series: &str, since: f64) -> Result<Vec<(f64, f64)>, SourceTrouble> {
    let key = keys::recent_series(series);
    let value = one(pool, redis::cmd("ZRANGEBYSCORE").arg(key).arg(since).arg("+inf")).await?;
    Ok(Reply::of(&value).items().filter_map(|member| sample(&member.text()?)).collect())
}

fn sample(member: &str) -> Option<(f64, f64)> {
    let (at, value) = member.split_once(':')?;
    Some((at.parse().ok()?, value.parse().ok()?))
}

async fn one(pool: &Pool, command: &redis::Cmd) -> Result<Value, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    command.query_async(&mut redis).await.map_err(|e| trouble(&e))
}
