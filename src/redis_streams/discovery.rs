//! Finds new streams and heartbeats with little load on Redis.
//!
//! In a small Redis, each pass includes a small step of SCAN ([`Sweep`]). A complete [`walk`] of the keyspace runs in the
//! background at the start, when Redis reports that a group was created, and periodically, in batches with pauses.

use std::time::{Duration, Instant};

use redis::{Pipeline, RedisError, ToRedisArgs, Value};

use super::adaptive_batch::next_step;
use super::connection::{self, Pool, PooledConnection, send};
use super::resp_reader::Reply;
use super::server_info::Capabilities;
use crate::contract::{Name, keys};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Minimum number of keys to scan per pass for streams, and again for heartbeats,
const STEP: usize = 20;
/// and per watched stream, so that a step costs a small part of the pass.
const STEP_PER_STREAM: usize = 1;
/// Keys to scan in the first step, for each of the two: covers most databases, and takes a millisecond or two, once.
const FIRST_STEP: usize = 5000;
/// Keys per command in the first batch of a background walk.
const FIRST_STRIDE: u64 = 1000;
/// Pause between two batches of a walk, each two commands of about a millisecond: the walk uses a tenth of Redis' time, a quarter
/// on a slow one, and takes about ten seconds for a million keys.
const REST_BETWEEN_STRIDES: Duration = Duration::from_millis(15);

/// Keys that a step or a walk found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// Keys of streams.
    pub streams: Vec<Name>,
    /// Heartbeat keys, of any type.
    pub heartbeat_keys: Vec<Vec<u8>>,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.streams.extend(other.streams);
        self.heartbeat_keys.extend(other.heartbeat_keys);
    }
}

/// Position of the incremental scan that is part of the passes.
///
/// If there are many keys, it ends with its first step: a complete round would take days, and keys that are not in use are slow to
/// access when their memory is swapped out (one to two milliseconds for twenty keys).
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
    /// There are more keys than the first step scanned.
    Ended,
}

/// SCAN cursor, opaque; empty at the start.
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
    /// Adds the commands of a step to a pass over `streams` streams. Returns their number. On a server whose SCAN cannot filter by
    /// type, it scans only for heartbeats; [`walk`] finds the streams.
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

    /// Reads the answers to the commands of [`Self::add_step`].
    ///
    /// # Errors
    /// If Redis refused a command.
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

/// Walks the whole keyspace once, with pauses between batches.
///
/// # Errors
/// If Redis failed; the next walk starts from the beginning.
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
            // Both commands scan the same keys, so they share the cursor.
            let heartbeat_keys = take(answers.next(), &mut Cursor::default())?;
            let streams = take(answers.next(), &mut cursor)?;
            found.add(Found { streams: streams.into_iter().map(Name::from).collect(), heartbeat_keys });
        } else {
            found.add(by_type(&mut redis, take(answers.next(), &mut cursor)?).await?);
        }
        if cursor.is_at_start() {
            return Ok(found);
        }
        // On a slow Redis, batches are smaller and pauses longer.
        let took = began.elapsed().saturating_sub(way);
        // A batch is two commands; each blocks Redis separately.
        stride = next_step(stride, took / 2);
        tokio::time::sleep((took * 3).max(REST_BETWEEN_STRIDES)).await;
    }
}

/// Returns the streams among keys by asking for their types, for servers whose SCAN cannot filter.
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

/// Returns the number of consumer groups created since the statistics were reset, from INFO commandstats; an increase means that
/// there may be new streams. `None` if Redis does not count them.
///
/// # Errors
/// If Redis does not answer.
pub async fn groups_created(redis: &mut PooledConnection) -> Result<Option<u64>, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("commandstats");
    let answer = send(redis, &mut pipe).await?.into_iter().next().and_then(Result::ok);
    Ok(read_groups_created(&answer.as_ref().and_then(|answer| Reply::of(answer).text()).unwrap_or_default()))
}

fn read_groups_created(commandstats: &str) -> Option<u64> {
    let Some(line) = commandstats.lines().find_map(|line| line.strip_prefix("cmdstat_xgroup|create:")) else {
        // Commands that were never called have no line. Before 7.0, all subcommands of XGROUP were counted as one.
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
    fn zero_created_groups_differ_from_an_unsupported_count() {
        let counted = "cmdstat_info:calls=9,usec=1\r\n";
        let created = "cmdstat_xgroup|create:calls=3,usec=9,usec_per_call=3.00,rejected_calls=0,failed_calls=1\r\n";
        assert_eq!(read_groups_created(&format!("{counted}{created}")), Some(2));
        assert_eq!(read_groups_created(counted), Some(0));
        assert_eq!(read_groups_created(&format!("{counted}cmdstat_xgroup:calls=3\r\n")), None);
        assert_eq!(read_groups_created(""), None);
    }

    #[test]
    fn sweep_continues_only_if_its_first_step_covered_all_keys() {
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
