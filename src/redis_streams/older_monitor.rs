//! State of an older monitor in Redis: imported once, exported on request, and checked for activity. No other module accesses its
//! keys.

use std::collections::BTreeSet;

use redis::{Script, Value};

use super::connection::{Pool, checkout, send, trouble};
use super::resp_reader::Reply;
use super::streams_reader::read_time;
use super::{alerts, recent_series};
use crate::contract::Name;
use crate::contract::keys::{self, older};
use crate::fleet::older_monitor::Traces;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::worker_type::WorkerStateRecord;

/// Series to export per transaction; each is a union of up to 10,000 samples.
const SERIES_AT_ONCE: usize = 20;
/// Maximum number of samples per series of the older monitor.
const MOST_SAMPLES: isize = 10_000;
/// Rules per round trip when reading cooldowns.
const RULES_AT_ONCE: usize = 500;

/// Copies the worker states, alerts and sweep times of the older monitor to this monitor's keys, unless that was done before.
/// Returns the number of worker types; `None` if nothing was done.
///
/// # Errors
/// If Redis fails.
pub async fn take_over(pool: &Pool) -> Result<Option<u64>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let script = Script::new(include_str!("scripts/take_over.lua"));
    let mut call = script.key(keys::TAKEN_OVER);
    for (own, its) in [
        (keys::KNOWN_WORKERS, older::KNOWN_WORKERS),
        (keys::ALERTS_HISTORY, older::ALERTS_HISTORY),
        (keys::LAST_RETENTION_SWEEP, older::LAST_RETENTION_SWEEP),
        (keys::LAST_QUERY_RETENTION_SWEEP, older::LAST_QUERY_RETENTION_SWEEP),
    ] {
        call.key(own).key(its);
    }
    call.arg(keys::WORKER_STATE_PREFIX).arg(older::WORKER_STATE_PREFIX).arg(alerts::KEPT);
    let types: i64 = call.invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
    Ok(u64::try_from(types).ok())
}

/// Returns when the state of the older monitor was imported, Unix seconds; `None` if it was not.
///
/// # Errors
/// If Redis cannot be read.
pub async fn taken_over_at(pool: &Pool) -> Result<Option<f64>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let at: Option<String> =
        redis::cmd("GET").arg(keys::TAKEN_OVER).query_async(&mut redis).await.map_err(|e| trouble(&e))?;
    Ok(at.and_then(|at| at.parse().ok()))
}

/// Returns the rules and built-in alerts among `keys` that are in cooldown in the older monitor, each with the seconds left.
///
/// # Errors
/// If Redis cannot be read.
pub async fn cooldowns(pool: &Pool, keys: &[String]) -> Result<Vec<(String, f64)>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut found = Vec::new();
    for some in keys.chunks(RULES_AT_ONCE) {
        let mut pipe = redis::pipe();
        for key in some {
            pipe.cmd("PTTL").arg(older::alert_cooldown(key));
        }
        for (key, answer) in some.iter().zip(send(&mut redis, &mut pipe).await?) {
            let left = answer.ok().and_then(|left| Reply::of(&left).number()).filter(|left| *left > 0);
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of a cooldown")]
            found.extend(left.map(|left| (key.clone(), left as f64 / 1000.0)));
        }
    }
    Ok(found)
}

/// Returns Redis' time (Unix seconds) and what the older monitor wrote last. `alive` is an alive worker type, whose record it would
/// rewrite.
///
/// # Errors
/// If Redis cannot be read.
pub async fn traces(pool: &Pool, alive: Option<&Name>) -> Result<(f64, Traces), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let series = older::recent_series(older::ALWAYS_RECORDED);
    let mut pipe = redis::pipe();
    pipe.cmd("TIME");
    pipe.cmd("TYPE").arg(&series);
    if let Some(name) = alive {
        pipe.cmd("MGET").arg(older::worker_state(name));
    }
    let mut answers = send(&mut redis, &mut pipe).await?.into_iter().map(|answer| answer.unwrap_or(Value::Nil));
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let (time, kind, state) = (next(), next(), next());
    let mut sample = None;
    if Reply::of(&kind).bytes() == Some(b"zset") {
        let newest: Vec<Vec<u8>> =
            redis::cmd("ZREVRANGE").arg(series).arg(0).arg(0).query_async(&mut redis).await.map_err(|e| trouble(&e))?;
        sample = newest.into_iter().next();
    }
    let worker_state = alive.cloned().zip(Reply::of(&state).items().next().and_then(Reply::bytes).map(<[u8]>::to_vec));
    let sampled_at = sample.as_deref().and_then(|sample| {
        let text = std::str::from_utf8(sample).ok()?;
        text.split_once(':')?.0.parse::<f64>().ok()
    });
    let seen_at = worker_state.as_ref().and_then(|(_, json)| newest_time(json));
    let newest = [sampled_at, seen_at].into_iter().flatten().reduce(f64::max);
    Ok((read_time(&time), Traces { worker_state, sample, newest }))
}

/// Returns the newest time in the record of a worker type, Unix seconds.
fn newest_time(json: &[u8]) -> Option<f64> {
    let record: WorkerStateRecord = serde_json::from_slice(json).ok()?;
    [record.last_seen_alive, record.state_changed_at].into_iter().flatten().reduce(f64::max)
}

/// Result of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandedBack {
    /// Number of worker types.
    pub types: usize,
    /// Number of series.
    pub series: usize,
    /// Number of rules in cooldown.
    pub cooldowns: usize,
}

/// Moves this monitor's state to the keys of the older monitor, with `cooldowns` (alert and seconds left). The next start of this
/// monitor imports it again. Returns `None` if there is no state. Safe to repeat after an interruption.
///
/// # Errors
/// If Redis fails.
pub async fn give_back(pool: &Pool, cooldowns: &[(String, u64)]) -> Result<Option<HandedBack>, SourceTrouble> {
    if taken_over_at(pool).await?.is_none() {
        return Ok(None);
    }
    let given = HandedBack {
        types: give_back_types(pool).await?,
        series: give_back_series(pool).await?,
        cooldowns: give_back_cooldowns(pool, cooldowns).await?,
    };
    give_back_alerts(pool).await?;
    give_back_sweeps(pool).await?;
    // Last, so that an interrupted export can be repeated.
    let mut redis = checkout(pool).await?;
    redis::cmd("DEL").arg(keys::TAKEN_OVER).exec_async(&mut redis).await.map_err(|e| trouble(&e))?;
    Ok(Some(given))
}

async fn give_back_types(pool: &Pool) -> Result<usize, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let known: Vec<Vec<u8>> =
        redis::cmd("SMEMBERS").arg(keys::KNOWN_WORKERS).query_async(&mut redis).await.map_err(|e| trouble(&e))?;
    for name in known.iter().map(|name| Name::from(name.as_slice())) {
        let (own, its) = (keys::worker_state(&name), older::worker_state(&name));
        let mut ask = redis::cmd("MGET");
        ask.arg(&own).arg(&its);
        let (ours, theirs): (Option<Vec<u8>>, Option<Vec<u8>>) =
            ask.query_async(&mut redis).await.map_err(|e| trouble(&e))?;
        // The records of an older monitor that kept running are newer.
        let is_newer = |ours: &[u8]| theirs.as_deref().is_none_or(|theirs| newest_time(theirs) < newest_time(ours));
        let mut pipe = redis::pipe();
        pipe.atomic();
        if let Some(ours) = ours.as_deref().filter(|ours| is_newer(ours)) {
            pipe.cmd("SET").arg(&its).arg(ours).ignore();
        }
        pipe.cmd("SADD").arg(older::KNOWN_WORKERS).arg(name.as_bytes()).ignore();
        pipe.cmd("DEL").arg(&own).ignore();
        pipe.cmd("SREM").arg(keys::KNOWN_WORKERS).arg(name.as_bytes()).ignore();
        pipe.exec_async(&mut redis).await.map_err(|e| trouble(&e))?;
    }
    Ok(known.len())
}

async fn give_back_series(pool: &Pool) -> Result<usize, SourceTrouble> {
    let names = recent_series::own_names(pool).await?;
    let mut redis = checkout(pool).await?;
    for some in names.chunks(SERIES_AT_ONCE) {
        let mut pipe = redis::pipe();
        pipe.atomic();
        for name in some {
            let (own, its) = (keys::recent_series(name), older::recent_series(name));
            pipe.cmd("ZUNIONSTORE").arg(&its).arg(2).arg(&its).arg(&own).arg("AGGREGATE").arg("MAX").ignore();
            pipe.cmd("ZREMRANGEBYRANK").arg(&its).arg(0).arg(-MOST_SAMPLES - 1).ignore();
            pipe.cmd("SADD").arg(older::RECENT_SERIES).arg(name).ignore();
            pipe.cmd("DEL").arg(&own).ignore();
            pipe.cmd("SREM").arg(keys::RECENT_SERIES).arg(name).ignore();
        }
        pipe.exec_async(&mut redis).await.map_err(|e| trouble(&e))?;
    }
    Ok(names.len())
}

async fn give_back_cooldowns(pool: &Pool, given: &[(String, u64)]) -> Result<usize, SourceTrouble> {
    let names: Vec<String> = given.iter().map(|(rule, _)| rule.clone()).collect();
    let its = cooldowns(pool, &names).await?;
    #[expect(clippy::cast_precision_loss, reason = "seconds of a cooldown")]
    let lasts_longer = |rule: &str, seconds: u64| its.iter().any(|(r, left)| r == rule && *left >= seconds as f64);
    let mut pipe = redis::pipe();
    for (rule, seconds) in given.iter().filter(|(rule, seconds)| *seconds > 0 && !lasts_longer(rule, *seconds)) {
        pipe.cmd("SET").arg(older::alert_cooldown(rule)).arg("1").arg("EX").arg(*seconds);
    }
    let mut redis = checkout(pool).await?;
    for answer in send(&mut redis, &mut pipe).await? {
        answer.map_err(|e| trouble(&e))?;
    }
    Ok(given.len())
}

/// Merges both lists, newest first: the older monitor may have added alerts.
async fn give_back_alerts(pool: &Pool) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut alerts: Vec<String> = Vec::new();
    let mut known = BTreeSet::new();
    for list in [keys::ALERTS_HISTORY, older::ALERTS_HISTORY] {
        let some: Vec<String> =
            redis::cmd("LRANGE").arg(list).arg(0).arg(-1).query_async(&mut redis).await.map_err(|e| trouble(&e))?;
        alerts.extend(some.into_iter().filter(|alert| known.insert(alert.clone())));
    }
    if alerts.is_empty() {
        return Ok(());
    }
    let fired_at = |alert: &String| {
        let alert: Option<serde_json::Value> = serde_json::from_str(alert).ok();
        alert.and_then(|alert| alert.get("ts")?.as_f64()).unwrap_or(0.0)
    };
    // A stable sort keeps the order within a list.
    alerts.sort_by(|a, b| fired_at(b).total_cmp(&fired_at(a)));
    alerts.truncate(alerts::KEPT.unsigned_abs());
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("DEL").arg(older::ALERTS_HISTORY).arg(keys::ALERTS_HISTORY).ignore();
    pipe.cmd("RPUSH").arg(older::ALERTS_HISTORY).arg(alerts).ignore();
    pipe.exec_async(&mut redis).await.map_err(|e| trouble(&e))
}

async fn give_back_sweeps(pool: &Pool) -> Result<(), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    for (own, its) in [
        (keys::LAST_RETENTION_SWEEP, older::LAST_RETENTION_SWEEP),
        (keys::LAST_QUERY_RETENTION_SWEEP, older::LAST_QUERY_RETENTION_SWEEP),
    ] {
        let mut ask = redis::cmd("MGET");
        ask.arg(own).arg(its);
        let times: Vec<Option<String>> = ask.query_async(&mut redis).await.map_err(|e| trouble(&e))?;
        let newest = times.into_iter().flatten().filter_map(|at| at.trim().parse::<f64>().ok()).reduce(f64::max);
        let Some(newest) = newest else { continue };
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("SET").arg(its).arg(newest).ignore();
        pipe.cmd("DEL").arg(own).ignore();
        pipe.exec_async(&mut redis).await.map_err(|e| trouble(&e))?;
    }
    Ok(())
}
