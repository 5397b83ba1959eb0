//! Cleaning up in Redis: trimming streams, acknowledging phantom pending IDs and deleting stale consumers, each by a script that looks
//! and acts at the same moment, in steps that Redis does not notice. Also whose turn a pass is.
//!
//! Redis 8.2 brought options of its own (`XTRIM … ACKED`). They are not used: in a bounded form
//! (`~` with `LIMIT`) they remove nothing, and without it one command cuts a million entries.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::aio::ConnectionLike;
use redis::{RedisError, Script, Value};

use super::connection::{Pool, checkout, code_of, is_of_connection, trouble};
use super::pace::next_step;
use super::refusal::ends_connection;
use super::reply::Reply;
use crate::contract::task::delivery_record;
use crate::contract::{Name, heartbeat, keys};
use crate::failpoint;
use crate::fleet::cleanup::{Kept, Need, StreamOutcome, added_at};
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

/// Entries removed by the first step on a stream.
const FIRST_STEP: u64 = 500;
/// Consumers looked at in one call.
const CONSUMERS_AT_ONCE: usize = 50;
/// Idle times are looked up in the same script for groups up to this size: half a millisecond.
const GROUP_LOOKED_UP: usize = 300;
/// Between two steps Redis is left alone for at least so long, and for three times what it took.
const REST: Duration = Duration::from_millis(1);

/// How one step of trimming went, or how a stream stands.
#[derive(Debug, Clone, PartialEq)]
pub struct TrimStep {
    /// Entries removed.
    pub removed: u64,
    /// More can go.
    pub more: bool,
    /// Entries left; `None` when there is no such stream.
    pub length: Option<u64>,
    /// Those of them that are kept, counted up to what was asked for.
    pub counted: u64,
    /// Why they are kept.
    pub kept_because: Option<Kept>,
}

/// Removes at most about `most` entries that no group needs from the beginning of `stream`; 0 only
/// looks. Kept entries are counted up to `count_most`.
///
/// # Errors
/// What Redis answered: about this stream alone if [`is_about_the_stream`].
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
            step.kept_because = step.length.filter(|length| *length > 0).map(|_| Kept::NoGroups);
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
            step.kept_because = need.map(|need| Kept::Group {
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

/// Whether an error says something about one stream (another type, no permission), not about Redis.
#[must_use]
pub fn is_about_the_stream(error: &RedisError) -> bool {
    !is_of_connection(error) && error.code().is_some() && !ends_connection(code_of(error))
}

/// Trims a stream step by step until nothing more can go or `until` is reached.
///
/// # Errors
/// When Redis as a whole cannot be asked; trouble with the stream is in the outcome.
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

/// Pending IDs that one call looks at, the entries that it reads to find out which exist, and their payload.
const PHANTOM_IDS: u64 = 500;
const PHANTOM_ENTRIES: u64 = 100;
const PHANTOM_BYTES: u64 = 1 << 18;
/// A worker counts a delivered task as in flight within so long.
const DELIVERY_SLACK: Duration = Duration::from_secs(1);

/// Which phantom IDs may be acknowledged; see `scripts/clear_phantoms.lua`.
#[derive(Debug, Clone, Copy)]
pub struct PhantomRules {
    /// Idle for so long, if the consumer has no heartbeat; `None`: not at all.
    pub without_heartbeat: Option<Duration>,
    /// Idle for so long, if the consumer says that it has tasks in flight.
    pub in_flight: Duration,
}

/// What became of a group's phantom IDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Acknowledged.
    pub acknowledged: u64,
    /// Kept, since a worker may be at work on them.
    pub kept: u64,
    /// The end of the pending list was not reached.
    pub unfinished: bool,
    /// What went wrong with this stream.
    pub error: Option<String>,
}

/// Acknowledges the phantom pending IDs of a group in bounded steps, until `until` or until about `most` IDs were
/// looked at.
///
/// # Errors
/// When Redis as a whole cannot be asked; trouble with the stream is in the answer.
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

/// One call: the ID behind which to go on (empty at the end), how many were acknowledged, how many kept.
///
/// # Errors
/// What Redis answered.
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
        // Longer than Redis can run.
        .arg(rules.without_heartbeat.map_or(1 << 53, millis))
        .arg(millis(rules.in_flight))
        .arg(millis(heartbeat::TTL))
        .arg(millis(DELIVERY_SLACK))
        .invoke_async(redis)
        .await
}

/// What became of consumers that looked stale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// Deleted.
    pub deleted: u64,
    /// Not stale after all, or gone already.
    pub spared: u64,
}

/// Deletes those of `consumers` that have no heartbeat, nothing pending and were idle for
/// `least_idle`, a bounded part of them at a time, until `until`.
///
/// # Errors
/// When Redis did not do it.
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

/// One call: `deleted`, `present`, `busy`, `awake` or `gone` for each consumer.
///
/// # Errors
/// What Redis answered.
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

/// Whether a pass may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It may, and nobody else may until it is done or its lease is over.
    Mine,
    /// It may, without a lease: Redis takes no write that needs memory, and what a pass removes is what it lacks. Each
    /// step is whole in itself, so another monitor's pass at the same time does no harm.
    WithoutLease,
    /// The last one was not long ago: not before so long from now.
    NotDue(Duration),
    /// Another monitor is at it.
    Taken,
}

/// How long a pass that says nothing keeps its turn: a monitor that died holds others up no longer.
const LEASE_MS: u64 = 20_000;

/// Asks for a turn in the name of `holder`: when the last pass ended `every` ago or, if it is
/// `wanted`, in any case. By Redis' clock.
///
/// # Errors
/// When Redis cannot be asked.
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

/// Keeps the turn; whether it was still there.
///
/// # Errors
/// When Redis cannot be asked.
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

/// The pass is over: the next one is due in its time.
///
/// # Errors
/// When Redis did not take it; the turn ends by itself.
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
