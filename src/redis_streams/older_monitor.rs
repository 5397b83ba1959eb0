//! The state that the older monitor keeps in Redis: taken over once, given back when asked for, and looked at for
//! signs that it is active. Nothing else reads or writes its keys.

use std::collections::BTreeSet;

use redis::{Script, Value};

use super::connection::{Pool, checkout, send, trouble};
use super::reply::Reply;
use super::streams_reader::read_time;
use super::{alerts, recent_series};
use crate::contract::Name;
use crate::contract::keys::{self, older};
use crate::fleet::older_monitor::Traces;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::worker_type::WorkerStateRecord;

/// Series given back in one transaction: each is a union of up to 10,000 samples.
const SERIES_AT_ONCE: usize = 20;
/// Samples of a series that the older monitor keeps.
const MOST_SAMPLES: isize = 10_000;
/// Rules whose cooldown is asked for in one trip.
const RULES_AT_ONCE: usize = 500;

/// Copies the older monitor's worker states, alerts and times of sweeps to this monitor's own keys, unless that was
/// done before. How many worker types were taken over; `None` if nothing was to be done.
///
/// # Errors
/// When Redis did not do it.
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

/// When the older monitor's state was taken over, Unix seconds; `None`: it was not.
///
/// # Errors
/// When Redis cannot be read.
pub async fn taken_over_at(pool: &Pool) -> Result<Option<f64>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let at: Option<String> =
        redis::cmd("GET").arg(keys::TAKEN_OVER).query_async(&mut redis).await.map_err(|e| trouble(&e))?;
    Ok(at.and_then(|at| at.parse().ok()))
}

/// The rules (and built-in alerts) among `keys` that the older monitor keeps quiet, each with the seconds left.
///
/// # Errors
/// When Redis cannot be read.
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

/// What the older monitor wrote last, and Redis' time (Unix seconds). `alive` is a worker type that is alive, whose
/// state it would rewrite.
///
/// # Errors
/// When Redis cannot be read.
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

/// The newest time in a worker type's record, Unix seconds.
fn newest_time(json: &[u8]) -> Option<f64> {
    let record: WorkerStateRecord = serde_json::from_slice(json).ok()?;
    [record.last_seen_alive, record.state_changed_at].into_iter().flatten().reduce(f64::max)
}

/// What was given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Worker types.
    pub types: usize,
    /// Series.
    pub series: usize,
    /// Rules that stay quiet for a while.
    pub cooldowns: usize,
}

/// Puts this monitor's state into the older monitor's keys, with `cooldowns` (alert and seconds left), and removes it:
/// the next start of this monitor takes over again. `None` if there is none. Cut short, it may be repeated.
///
/// # Errors
/// When Redis did not do it.
pub async fn give_back(pool: &Pool, cooldowns: &[(String, u64)]) -> Result<Option<GivenBack>, SourceTrouble> {
    if taken_over_at(pool).await?.is_none() {
        return Ok(None);
    }
    let given = GivenBack {
        types: give_back_types(pool).await?,
        series: give_back_series(pool).await?,
        cooldowns: give_back_cooldowns(pool, cooldowns).await?,
    };
    give_back_alerts(pool).await?;
    give_back_sweeps(pool).await?;
    // Last: until then it can be done again.
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
        // An older monitor that went on beside this one knows better how its own records stand.
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

/// Both lists become one, newest first: the older monitor may have gone on with its own.
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
