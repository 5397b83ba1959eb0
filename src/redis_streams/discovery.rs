//! Finding streams and heartbeats that nobody told the monitor about, without weighing on Redis.
//!
//! Where Redis holds little, a small step of SCAN rides along with every pass ([`Sweep`]). A whole walk
//! of the keyspace ([`walk`]) is made in the background at the start, when Redis says that a group was
//! created, and now and then, in strides with a rest between them.

use std::time::{Duration, Instant};

use redis::{Pipeline, RedisError, ToRedisArgs, Value};

use super::connection::{self, Pool, PooledConnection, send};
use super::pace::next_step;
use super::reply::Reply;
use super::server_info::Capabilities;
use crate::contract::{Name, keys};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Keys looked at per pass for streams, and again for heartbeats: so many at least,
const STEP: usize = 20;
/// and so many per watched stream, so that a step costs a small part of what the pass costs.
const STEP_PER_STREAM: usize = 1;
/// The first step looks at so many, for both: all that most databases hold, a millisecond or two each, once.
const FIRST_STEP: usize = 5000;
/// Keys looked at per command in the first stride of a background walk.
const FIRST_STRIDE: u64 = 1000;
/// Between two strides of a walk, each two commands of about a millisecond: it takes a tenth of Redis,
/// a quarter of one that is slow, and about ten seconds for a million keys.
const REST_BETWEEN_STRIDES: Duration = Duration::from_millis(15);

/// Keys that a step or a walk came across.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// Keys that hold streams.
    pub streams: Vec<Name>,
    /// Heartbeat keys, whatever they hold.
    pub heartbeat_keys: Vec<Vec<u8>>,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.streams.extend(other.streams);
        self.heartbeat_keys.extend(other.heartbeat_keys);
    }
}

/// The place of the slow sweep that rides along with the passes.
///
/// Beside many keys it ends with its first step: a round would take days, and keys that nobody asks for are
/// dear where they have to be fetched from memory that was put away (one to two milliseconds for twenty).
#[derive(Debug, Default)]
pub struct Sweep {
    streams: Cursor,
    heartbeats: Cursor,
    place: Place,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    FirstStep,
    GoesOn,
    /// There are more keys than the first step saw.
    Ended,
}

/// SCAN's cursor, opaque; empty is the start.
#[derive(Debug, Default)]
struct Cursor(Vec<u8>);

impl Cursor {
    fn arg(&self) -> &[u8] {
        if self.0.is_empty() { b"0" } else { &self.0 }
    }

    fn is_at_start(&self) -> bool {
        self.arg() == b"0"
    }
}

impl Sweep {
    /// Adds a step's commands to a pass over `streams` streams; answers how many they are. A
    /// server that cannot filter by type is only looked through for heartbeats here; [`walk`]
    /// finds its streams.
    pub fn add_step(&self, pipe: &mut Pipeline, streams: usize, scan_type: bool) -> usize {
        let count = match self.place {
            Place::FirstStep => FIRST_STEP,
            Place::GoesOn => STEP.max(streams * STEP_PER_STREAM),
            Place::Ended => return 0,
        };
        ask_heartbeats(pipe, &self.heartbeats, count);
        if scan_type {
            ask_streams(pipe, &self.streams, count);
        }
        1 + usize::from(scan_type)
    }

    /// Reads the answers to what [`Self::add_step`] asked of the same server.
    ///
    /// # Errors
    /// When Redis refused it.
    pub fn take_step(
        &mut self,
        answers: impl Iterator<Item = Result<Value, RedisError>>,
        scan_type: bool,
    ) -> Result<Found, SourceTrouble> {
        let found = self.take_both(answers, scan_type);
        if found.is_err() {
            *self = Self::default();
        }
        found
    }

    fn take_both(
        &mut self,
        mut answers: impl Iterator<Item = Result<Value, RedisError>>,
        scan_type: bool,
    ) -> Result<Found, SourceTrouble> {
        if self.place == Place::Ended {
            return Ok(Found::default());
        }
        let heartbeat_keys = take(answers.next(), &mut self.heartbeats)?;
        let streams = if scan_type { take(answers.next(), &mut self.streams)? } else { Vec::new() };
        if self.place == Place::FirstStep {
            self.place = if self.heartbeats.is_at_start() { Place::GoesOn } else { Place::Ended };
        }
        Ok(Found { streams: streams.into_iter().map(Name::from).collect(), heartbeat_keys })
    }
}

fn ask_heartbeats(pipe: &mut Pipeline, cursor: &Cursor, count: impl ToRedisArgs) {
    pipe.cmd("SCAN").arg(cursor.arg()).arg("MATCH").arg(format!("{}*", keys::HEARTBEAT_PREFIX)).arg("COUNT").arg(count);
}

fn ask_streams(pipe: &mut Pipeline, cursor: &Cursor, count: impl ToRedisArgs) {
    pipe.cmd("SCAN").arg(cursor.arg()).arg("COUNT").arg(count).arg("TYPE").arg("stream");
}

fn take(answer: Option<Result<Value, RedisError>>, cursor: &mut Cursor) -> Result<Vec<Vec<u8>>, SourceTrouble> {
    let value = match answer {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(connection::trouble(&error)),
        None => return Err(SourceTrouble::new(TroubleKind::Failed, "Redis returned too few replies")),
    };
    let mut items = Reply::of(&value).items();
    let (Some(next), Some(keys), None) = (items.next(), items.next(), items.next()) else {
        return Err(SourceTrouble::new(TroubleKind::Failed, format!("SCAN returned {value:?}")));
    };
    cursor.0 = next.bytes().unwrap_or_default().to_vec();
    Ok(keys.items().filter_map(Reply::bytes).map(<[u8]>::to_vec).collect())
}

/// Walks the whole keyspace once, resting between strides.
///
/// # Errors
/// When Redis failed on the way; the next walk starts over.
pub async fn walk(pool: &Pool, capabilities: Capabilities) -> Result<Found, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let way = Instant::now();
    send(&mut redis, redis::pipe().cmd("TIME")).await?;
    let way = way.elapsed();
    let mut found = Found::default();
    let mut cursor = Cursor::default();
    let mut stride = FIRST_STRIDE;
    loop {
        let began = Instant::now();
        let mut pipe = redis::pipe();
        if capabilities.scan_type {
            ask_heartbeats(&mut pipe, &cursor, stride);
            ask_streams(&mut pipe, &cursor, stride);
        } else {
            pipe.cmd("SCAN").arg(cursor.arg()).arg("COUNT").arg(stride);
        }
        let mut answers = send(&mut redis, &mut pipe).await?.into_iter();
        if capabilities.scan_type {
            // Both commands look at the same keys, so they share the cursor.
            let heartbeat_keys = take(answers.next(), &mut Cursor::default())?;
            let streams = take(answers.next(), &mut cursor)?;
            found.add(Found { streams: streams.into_iter().map(Name::from).collect(), heartbeat_keys });
        } else {
            found.add(by_type(&mut redis, take(answers.next(), &mut cursor)?).await?);
        }
        if cursor.is_at_start() {
            return Ok(found);
        }
        // A Redis that answers slowly is asked for less at a time, and left alone for longer.
        let took = began.elapsed().saturating_sub(way);
        // Redis is held up by one command at a time, and a stride is two.
        stride = next_step(stride, took / 2);
        tokio::time::sleep((took * 3).max(REST_BETWEEN_STRIDES)).await;
    }
}

/// For servers whose SCAN cannot filter: asks each key's type.
async fn by_type(redis: &mut PooledConnection, scanned: Vec<Vec<u8>>) -> Result<Found, SourceTrouble> {
    let mut pipe = redis::pipe();
    for key in &scanned {
        pipe.cmd("TYPE").arg(key);
    }
    let types = send(redis, &mut pipe).await?;
    let mut found = Found::default();
    for (key, kind) in scanned.into_iter().zip(types) {
        if key.starts_with(keys::HEARTBEAT_PREFIX.as_bytes()) {
            found.heartbeat_keys.push(key);
        } else if kind.is_ok_and(|kind| Reply::of(&kind).bytes() == Some(b"stream")) {
            found.streams.push(Name::from(key));
        }
    }
    Ok(found)
}

/// How many consumer groups were created since the server began to count, from INFO commandstats; a
/// rise means that there may be new streams. `None` where Redis does not count that.
///
/// # Errors
/// When there was no answer.
pub async fn groups_created(redis: &mut PooledConnection) -> Result<Option<u64>, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("commandstats");
    let answer = send(redis, &mut pipe).await?.into_iter().next().and_then(Result::ok);
    Ok(read_groups_created(&answer.as_ref().and_then(|answer| Reply::of(answer).text()).unwrap_or_default()))
}

fn read_groups_created(commandstats: &str) -> Option<u64> {
    let Some(line) = commandstats.lines().find_map(|line| line.strip_prefix("cmdstat_xgroup|create:")) else {
        // What was never called has no line. Before 7.0 all that XGROUP does was counted in one.
        let counts_it = commandstats.contains("cmdstat_") && !commandstats.contains("cmdstat_xgroup:");
        return counts_it.then_some(0);
    };
    let figure = |name: &str| {
        line.split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
            .and_then(|n| n.trim().parse::<u64>().ok())
    };
    figure("calls").map(|calls| calls.saturating_sub(figure("failed_calls").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_were_created_are_told_from_those_that_nobody_counts() {
        let counted = "cmdstat_info:calls=9,usec=1\r\n";
        let created = "cmdstat_xgroup|create:calls=3,usec=9,usec_per_call=3.00,rejected_calls=0,failed_calls=1\r\n";
        assert_eq!(read_groups_created(&format!("{counted}{created}")), Some(2));
        assert_eq!(read_groups_created(counted), Some(0));
        assert_eq!(read_groups_created(&format!("{counted}cmdstat_xgroup:calls=3\r\n")), None);
        assert_eq!(read_groups_created(""), None);
    }

    #[test]
    fn a_sweep_goes_on_only_where_its_first_step_saw_all() {
        let answer = |cursor: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            Ok(Value::Array(vec![text(cursor), Value::Array(vec![])]))
        };
        let after = |steps: &[[&str; 2]]| {
            let mut sweep = Sweep::default();
            for [heartbeats, streams] in steps {
                let streams = if *streams == "fails" { Ok(Value::Nil) } else { answer(streams) };
                drop(sweep.take_step([answer(heartbeats), streams].into_iter(), true));
            }
            sweep.place
        };
        assert_eq!(after(&[["0", "0"]]), Place::GoesOn);
        assert_eq!(after(&[["7", "7"]]), Place::Ended);
        assert_eq!(after(&[["0", "0"], ["7", "7"]]), Place::GoesOn);
        assert_eq!(after(&[["7", "fails"]]), Place::FirstStep, "what it saw is lost: it begins anew");
    }
}
