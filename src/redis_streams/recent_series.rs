//! Recent samples of every series, stored in Redis.
//!
//! Samples of an older monitor are read from its own keys: a copy would need twice the memory.

use std::borrow::Cow;
use std::time::Duration;

use redis::Value;

use super::connection::{Pool, checkout, is_wrong_type, send, trouble};
use super::older_monitor;
use super::resp_reader::Reply;
use crate::contract::keys::{self, older};
use crate::fleet::reading::SourceTrouble;

/// Number of samples to which a series is trimmed, so that it stays below the contract's 10,000 until the next trim.
const MOST_SAMPLES: isize = 9_980;
/// Series to write per round trip.
const SERIES_AT_ONCE: usize = 250;
/// Trims a series with every n-th sample, because trimming costs Redis more than adding.
const CUT_EVERY: u64 = 16;

/// Adds a sample to each series, taken at `at` (Unix seconds). `nth` selects the few series that are also trimmed to `keep`. Series
/// without new samples expire after that time. A key of another type is skipped with a warning.
///
/// # Errors
/// If Redis fails.
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
        let mut pipe = redis::Pipeline::with_capacity(2 * some.len() + 1);
        for (place, (series, value)) in (nth..).zip(some) {
            let key = keys::recent_series(series);
            let mut adding = command_about("ZADD", &key);
            adding.arg(at).arg(format!("{at}:{}", json(*value)));
            let mut expiring = command_about("EXPIRE", &key);
            expiring.arg(keep.as_secs().max(1));
            pipe.add_command(adding).add_command(expiring);
            if place % CUT_EVERY == 0 {
                pipe.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(format!("({oldest}"));
                pipe.cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(-MOST_SAMPLES);
            }
        }
        let names: Vec<&str> = some.iter().map(|(series, _)| series.as_str()).collect();
        pipe.cmd("SADD").arg(keys::RECENT_SERIES).arg(names);
        let mut wrong_type = None;
        for answer in send(&mut redis, &mut pipe).await? {
            match answer {
                Err(error) if is_wrong_type(&error) => wrong_type = Some(error),
                answer => drop(answer.map_err(|e| trouble(&e))?),
            }
        }
        if let (Some(error), true) = (wrong_type, nth.is_multiple_of(CUT_EVERY)) {
            tracing::warn!(%error, "cannot record some series in Redis: keys of {}* hold another type", keys::RECENT_SERIES_PREFIX);
        }
    }
    Ok(())
}

/// Starts a command with room for a timestamp and a sample, because growing took a third of the instructions of a recording.
fn command_about(command: &str, key: &str) -> redis::Cmd {
    let mut cmd = redis::Cmd::with_capacity(4, key.len() + 64);
    cmd.arg(command).arg(key);
    cmd
}

/// Removes series without samples newer than `keep` at `now` (Unix seconds), such as those of deleted streams: expired ones from
/// the index, and old ones without a TTL. Returns their number.
///
/// # Errors
/// If Redis fails.
pub async fn forget_ended(pool: &Pool, now: i64, keep: Duration) -> Result<usize, SourceTrouble> {
    let oldest = now.saturating_sub_unsigned(keep.as_secs());
    let names = own_names(pool).await?;
    let mut redis = checkout(pool).await?;
    let mut forgotten = 0;
    for some in names.chunks(SERIES_AT_ONCE) {
        let mut pipe = redis::pipe();
        for series in some {
            let key = keys::recent_series(series);
            pipe.cmd("ZRANGEBYSCORE").arg(key).arg(oldest).arg("+inf").arg("LIMIT").arg(0).arg(1);
        }
        let young = send(&mut redis, &mut pipe).await?;
        // Unreadable keys belong to another application.
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

/// Formats whole numbers without a fraction, like the older monitor.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
fn json(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 9e15 { (value as i64).to_string() } else { value.to_string() }
}

/// Returns the names of all series, sorted.
///
/// # Errors
/// If Redis cannot be read.
pub async fn names(pool: &Pool) -> Result<Vec<String>, SourceTrouble> {
    let mut names = own_names(pool).await?;
    names.extend(members(pool, older::RECENT_SERIES).await?);
    names.sort();
    names.dedup();
    Ok(names)
}

/// Returns the names of the series that this monitor records.
pub(super) async fn own_names(pool: &Pool) -> Result<Vec<String>, SourceTrouble> {
    members(pool, keys::RECENT_SERIES).await
}

async fn members(pool: &Pool, set: &str) -> Result<Vec<String>, SourceTrouble> {
    let value = one(pool, redis::cmd("SMEMBERS").arg(set)).await?;
    Ok(Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect())
}

/// Returns the samples of a series since `since` (Unix seconds) that are newer than `keep` at `now`, oldest first; unreadable
/// samples are omitted.
///
/// # Errors
/// If Redis cannot be read.
pub async fn read(
    pool: &Pool,
    series: &str,
    since: f64,
    (now, keep): (f64, Duration),
) -> Result<Vec<(f64, f64)>, SourceTrouble> {
    // Series of an older monitor are not trimmed.
    let since = since.max(now - keep.as_secs_f64());
    let taken_over_at = older_monitor::taken_over_at(pool).await?.unwrap_or(f64::INFINITY);
    let mut samples = Vec::new();
    if since < taken_over_at {
        samples = samples_of(pool, older::recent_series(series), since).await?;
        samples.retain(|(at, _)| *at < taken_over_at);
    }
    samples.extend(samples_of(pool, keys::recent_series(series), since).await?);
    // After an export and another import, own samples may be older than the imported ones.
    samples.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    Ok(samples)
}

async fn samples_of(pool: &Pool, key: String, since: f64) -> Result<Vec<(f64, f64)>, SourceTrouble> {
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
