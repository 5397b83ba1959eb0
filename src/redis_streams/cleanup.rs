//! Cleanup in Redis: trims streams, acknowledges phantom pending IDs, and deletes stale consumers. Each is a script that checks and
//! acts atomically, in steps short enough not to delay other clients. Also the lease of cleanup runs.
//!
//! The options of Redis 8.2 (`XTRIM … ACKED`) are not used: with a bound (`~` with `LIMIT`) they remove nothing, and without one a
//! single command removes a million entries.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::aio::ConnectionLike;
use redis::{RedisError, Script, Value};

use super::adaptive_batch::next_step;
use super::connection::{Pool, checkout, code_of, is_of_connection, trouble};
use super::refusal::ends_connection;
use super::resp_reader::Reply;
use crate::contract::task::delivery_record;
use crate::contract::{Name, heartbeat, keys};
use crate::failpoint;
use crate::fleet::cleanup::{Need, ReasonKept, StreamOutcome, added_at};
use crate::fleet::reading::SourceTrouble;

static TRIM: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("scripts/before.lua"), include_str!("scripts/trim.lua"))));
static CLEAR_PHANTOMS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/before.lua"),
        include_str!("scripts/phantoms.lua"),
        include_str!("scripts/clear_phantoms.lua")
    ))
});
static RETIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/retire.lua")));

/// Entries to remove in the first step on a stream.
const FIRST_STEP: u64 = 500;
/// Consumers to check per call.
const CONSUMERS_AT_ONCE: usize = 50;
/// The script looks up idle times for groups up to this size, which takes half a millisecond.
const GROUP_LOOKED_UP: usize = 300;
/// Minimum pause between two steps; also at least three times the duration of the step.
const REST: Duration = Duration::from_millis(1);

/// Result of a trim step, or the state of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct TrimStep {
    /// Number of removed entries.
    pub removed: u64,
    /// More entries can be removed.
    pub more: bool,
    /// Remaining entries; `None` if the stream does not exist.
    pub length: Option<u64>,
    /// Remaining entries that must be kept, up to the requested maximum.
    pub counted: u64,
    /// Why they must be kept.
    pub kept_because: Option<ReasonKept>,
}

/// Removes about `most` entries at most from the beginning of `stream` that no group needs; 0 only reports. Counts entries to keep
/// up to `count_most`.
///
/// # Errors
/// The error of Redis; it concerns only this stream if [`is_about_the_stream`].
pub async fn trim_step(
    redis: &mut impl ConnectionLike,
    stream: &Name,
    most: u64,
    count_most: u64,
) -> Result<TrimStep, RedisError> {
    let answer: Value = TRIM.key(stream.as_bytes()).arg(most).arg(count_most).invoke_async(redis).await?;
    Ok(read_step(&answer))
}

fn read_step(answer: &Value) -> TrimStep {
    let at = |n: usize| Reply::of(answer).items().nth(n);
    let number = |n: usize| at(n).and_then(Reply::number);
    let text = |n: usize| at(n).and_then(Reply::text).unwrap_or_default().into_owned();
    let mut step = TrimStep { removed: 0, more: false, length: None, counted: 0, kept_because: None };
    match text(0).as_str() {
        "no groups" => {
            step.length = number(1);
            step.kept_because = step.length.filter(|length| *length > 0).map(|_| ReasonKept::NoGroups);
        }
        "groups" => {
            step.removed = number(1).unwrap_or(0);
            step.more = number(2) == Some(1);
            step.length = number(3);
            step.counted = number(4).unwrap_or(0);
            let need = match text(6).as_str() {
                "pending" => Some(Need::Pending),
                "unread" => Some(Need::Unread),
                _ => None,
            };
            #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
            let idle_sec = number(10).map(|ms| ms as f64 / 1000.0);
            step.kept_because = need.map(|need| ReasonKept::Group {
                group: at(5).and_then(Reply::bytes).map(|name| Name::from(name).to_text()).unwrap_or_default(),
                need,
                since: added_at(&text(7)),
                pending: number(8).unwrap_or(0),
                undelivered: number(9),
                idle_sec,
                consumer: at(11)
                    .and_then(Reply::bytes)
                    .filter(|name| !name.is_empty())
                    .map(|name| Name::from(name).to_text()),
            });
        }
        _ => {}
    }
    step
}

/// Returns whether an error concerns one stream (wrong type, no permission), not the server.
#[must_use]
pub fn is_about_the_stream(error: &RedisError) -> bool {
    !is_of_connection(error) && error.code().is_some() && !ends_connection(code_of(error))
}

/// Trims a stream in steps until nothing can be removed or `until` is reached.
///
/// # Errors
/// If Redis fails; errors of the stream are in the outcome.
pub async fn trim(pool: &Pool, stream: &Name, until: Instant) -> Result<StreamOutcome, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut outcome = StreamOutcome::default();
    let mut most = FIRST_STEP;
    loop {
        let began = Instant::now();
        let step = match trim_step(&mut redis, stream, most, 0).await {
            Ok(step) => step,
            Err(error) if is_about_the_stream(&error) => {
                outcome.error = Some(trouble(&error).detail);
                return Ok(outcome);
            }
            Err(error) => return Err(trouble(&error)),
        };
        let took = began.elapsed();
        failpoint::reached("janitor.trimmed");
        outcome.removed += step.removed;
        outcome.length = step.length.unwrap_or(0);
        outcome.kept_because = step.kept_because;
        outcome.unfinished = step.more;
        if !step.more || step.removed == 0 || Instant::now() >= until {
            return Ok(outcome);
        }
        most = next_step(most, took);
        tokio::time::sleep((took * 3).max(REST)).await;
    }
}

/// Limits per call: pending IDs to examine, entries to read to determine which exist, and bytes of their payload.
const PHANTOM_IDS: u64 = 500;
const PHANTOM_ENTRIES: u64 = 100;
const PHANTOM_BYTES: u64 = 1 << 18;
/// Time within which a worker reports a delivered task as in flight.
const DELIVERY_SLACK: Duration = Duration::from_secs(1);

/// Conditions for acknowledging phantom IDs; see `scripts/clear_phantoms.lua`.
#[derive(Debug, Clone, Copy)]
pub struct PhantomRules {
    /// Minimum idle time if the consumer has no heartbeat; `None`: never.
    pub without_heartbeat: Option<Duration>,
    /// Minimum idle time if the consumer reports tasks in flight.
    pub in_flight: Duration,
}

/// Result for the phantom IDs of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Number acknowledged.
    pub acknowledged: u64,
    /// Number kept, because a worker may be processing them.
    pub kept: u64,
    /// The end of the pending list was not reached.
    pub unfinished: bool,
    /// Error of this stream.
    pub error: Option<String>,
}

/// Acknowledges the phantom pending IDs of a group in bounded steps, until `until` or until about `most` IDs were examined.
///
/// # Errors
/// If Redis fails; errors of the stream are in the result.
pub async fn clear_phantoms(
    pool: &Pool,
    stream: &Name,
    group: &Name,
    rules: PhantomRules,
    (until, most): (Instant, u64),
) -> Result<Cleared, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut cleared = Cleared::default();
    let mut after = "-".to_owned();
    for _ in 0..most.div_ceil(PHANTOM_ENTRIES) {
        let began = Instant::now();
        let (next, acknowledged, kept) = match clear_phantoms_step(&mut redis, stream, group, rules, &after).await {
            Ok(step) => step,
            Err(error) if is_about_the_stream(&error) => {
                cleared.error = Some(trouble(&error).detail);
                return Ok(cleared);
            }
            Err(error) => return Err(trouble(&error)),
        };
        let took = began.elapsed();
        failpoint::reached("janitor.cleared_phantoms");
        cleared.acknowledged += acknowledged;
        cleared.kept += kept;
        if next.is_empty() {
            return Ok(cleared);
        }
        after = next;
        if Instant::now() >= until {
            break;
        }
        tokio::time::sleep((took * 3).max(REST)).await;
    }
    cleared.unfinished = true;
    Ok(cleared)
}

/// Runs one step. Returns the ID after which to continue (empty at the end), and the numbers of acknowledged and kept IDs.
///
/// # Errors
/// The error of Redis.
pub async fn clear_phantoms_step(
    redis: &mut impl ConnectionLike,
    stream: &Name,
    group: &Name,
    rules: PhantomRules,
    after: &str,
) -> Result<(String, u64, u64), RedisError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let no_consumer = Name::from("");
    CLEAR_PHANTOMS
        .key(stream.as_bytes())
        .arg(group.as_bytes())
        .arg(after)
        .arg(PHANTOM_IDS)
        .arg(PHANTOM_ENTRIES)
        .arg(PHANTOM_BYTES)
        .arg(keys::heartbeat(stream, &no_consumer))
        .arg(delivery_record(stream, group, ""))
        // Longer than any uptime of Redis.
        .arg(rules.without_heartbeat.map_or(1 << 53, millis))
        .arg(millis(rules.in_flight))
        .arg(millis(heartbeat::TTL))
        .arg(millis(DELIVERY_SLACK))
        .invoke_async(redis)
        .await
}

/// Result for consumers that looked stale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// Number deleted.
    pub deleted: u64,
    /// Number that were not stale, or already deleted.
    pub spared: u64,
}

/// Deletes those of `consumers` that have no heartbeat, no pending entries and have been idle for `least_idle`, in bounded steps,
/// until `until`.
///
/// # Errors
/// If Redis fails.
pub async fn retire(
    pool: &Pool,
    stream: &Name,
    group: &Name,
    consumers: &[Name],
    least_idle: Duration,
    until: Instant,
) -> Result<Retired, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut retired = Retired::default();
    for some in consumers.chunks(CONSUMERS_AT_ONCE) {
        let began = Instant::now();
        if began >= until {
            break;
        }
        let verdicts = retire_some(&mut redis, stream, group, some, least_idle).await.map_err(|e| trouble(&e))?;
        let took = began.elapsed();
        failpoint::reached("janitor.retired");
        let deleted = verdicts.iter().filter(|verdict| *verdict == "deleted").count() as u64;
        retired.deleted += deleted;
        retired.spared += verdicts.len() as u64 - deleted;
        tokio::time::sleep((took * 3).max(REST)).await;
    }
    Ok(retired)
}

/// Runs one step. Returns `deleted`, `present`, `busy`, `awake` or `gone` for each consumer.
///
/// # Errors
/// The error of Redis.
pub async fn retire_some(
    redis: &mut impl ConnectionLike,
    stream: &Name,
    group: &Name,
    consumers: &[Name],
    least_idle: Duration,
) -> Result<Vec<String>, RedisError> {
    let mut call = RETIRE.key(stream.as_bytes());
    for consumer in consumers {
        call.key(keys::heartbeat(stream, consumer));
    }
    call.arg(group.as_bytes()).arg(u64::try_from(least_idle.as_millis()).unwrap_or(u64::MAX)).arg(GROUP_LOOKED_UP);
    for consumer in consumers {
        call.arg(consumer.as_bytes());
    }
    call.invoke_async(redis).await
}

/// Whether a cleanup run may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It may; no other instance may until it ends or the lease expires.
    Mine,
    /// It may, without a lease: Redis takes no write that needs memory, and what a pass removes is what it lacks. Each
    /// step is whole in itself, so another monitor's pass at the same time does no harm.
    WithoutLease,
    /// Not due before this time has passed.
    NotDue(Duration),
    /// Another instance is running one.
    Taken,
}

/// Lease of a run, milliseconds: the time until another instance can take over from a crashed one.
const LEASE_MS: u64 = 20_000;

/// Requests a run for `holder`: granted if the last run ended `every` ago by Redis' clock, or, if `wanted`, whenever no run is in
/// progress.
///
/// # Errors
/// If Redis fails.
pub async fn take_turn(pool: &Pool, holder: &str, every: Duration, wanted: bool) -> Result<Turn, SourceTrouble> {
    static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
        Script::new(
            "local holder = redis.call('GET', KEYS[1])
             if holder and holder ~= ARGV[1] then return 'taken' end
             local now, last = tonumber(redis.call('TIME')[1]), tonumber(redis.call('GET', KEYS[2]) or nil)
             local due = last and last <= now and last + tonumber(ARGV[2]) or now
             if ARGV[3] == '0' and due > now then return tostring(due - now) end
             local taken = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
             if not taken.err then return 'mine' end
             if string.find(taken.err, 'OOM', 1, true) then return 'no memory' end
             return redis.error_reply(taken.err)",
        )
    });
    let mut redis = checkout(pool).await?;
    let said: String = SCRIPT
        .key(keys::JANITOR_TURN)
        .key(keys::LAST_JANITOR_PASS)
        .arg(holder)
        .arg(every.as_secs())
        .arg(u8::from(wanted))
        .arg(LEASE_MS)
        .invoke_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(match said.as_str() {
        "mine" => Turn::Mine,
        "no memory" => Turn::WithoutLease,
        "taken" => Turn::Taken,
        rest => Turn::NotDue(Duration::from_secs(rest.parse().unwrap_or(0))),
    })
}

/// Renews the lease. Returns whether it was still held.
///
/// # Errors
/// If Redis fails.
pub async fn keep_turn(pool: &Pool, holder: &str) -> Result<bool, SourceTrouble> {
    static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
        Script::new(
            "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
             return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
        )
    });
    let mut redis = checkout(pool).await?;
    let kept: i64 = SCRIPT
        .key(keys::JANITOR_TURN)
        .arg(holder)
        .arg(LEASE_MS)
        .invoke_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(kept == 1)
}

/// Ends the run and schedules the next one.
///
/// # Errors
/// If Redis fails; the lease then expires.
pub async fn end_turn(pool: &Pool, holder: &str) -> Result<(), SourceTrouble> {
    static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
        Script::new(
            "local holder = redis.call('GET', KEYS[1])
             if holder and holder ~= ARGV[1] then return 0 end
             redis.call('SET', KEYS[2], redis.call('TIME')[1])
             return redis.call('DEL', KEYS[1])",
        )
    });
    let mut redis = checkout(pool).await?;
    let _: i64 = SCRIPT
        .key(keys::JANITOR_TURN)
        .key(keys::LAST_JANITOR_PASS)
        .arg(holder)
        .invoke_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}
