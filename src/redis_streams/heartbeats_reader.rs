//! Reads all heartbeats: one MGET by exact key; markers and types only where needed. Heartbeats of known consumers can be read
//! ahead, while the streams are read; the pass then reads only those of new ones.
//!
//! Heartbeats are read for consumers listed in groups, for heartbeat keys that discovery found, and for consumers that were present
//! in the saved state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use redis::Value;
use redis::aio::ConnectionLike;

use super::connection::{self, send};
use super::resp_reader::Reply;
use crate::contract::heartbeat::{FoundUnder, MAX_BYTES};
use crate::contract::{Heartbeat, Name, ShutdownMarker, keys, marker};
use crate::fleet::reading::{
    Beat, BeatReading, HeartbeatsReading, MarkerReading, SourceTrouble, StreamsReading, TroubleKind,
    UnreadableHeartbeat,
};
use crate::fleet::time::Mono;

/// Keys per MGET.
const KEYS_PER_COMMAND: usize = 500;
/// Maximum number of watched heartbeat keys that belong to no listed consumer.
const MAX_STRAYS: usize = 20_000;
/// Time without a heartbeat after which the marker of a consumer that had none before is not read any more, because it has expired.
const MARKER_WORTH_READING: Duration = marker::TTL;
/// The same for a consumer that had a heartbeat. Its state may stay undecided while Redis is intermittently unreachable, and a
/// stopped process may write its marker late.
const MARKER_OF_THE_LOST_WORTH_READING: Duration = Duration::from_secs(3600);

/// Watched consumers and the values of their keys in the last pass.
#[derive(Debug, Default)]
pub struct HeartbeatsReader {
    consumers: BTreeMap<Name, BTreeMap<Name, Watched>>,
    /// Consumers in the groups of each stream in the last pass.
    listed: BTreeMap<Name, Vec<Name>>,
    /// Heartbeat keys that discovery found, whose consumer is not known yet.
    strays: BTreeMap<Vec<u8>, Watched>,
    /// Existing keys that discovery found: if MGET returns nil for one, it has another type.
    found: BTreeSet<Vec<u8>>,
    /// Seeds fingerprints, so that values cannot be crafted to collide.
    fingerprints: RandomState,
}

#[derive(Debug)]
struct Watched {
    /// Fingerprint of the last value, so that an unchanged value is not parsed again.
    value: Option<u64>,
    beat: Beat,
    /// The heartbeat is from a process that was not in an earlier pass.
    is_new_process: bool,
    /// Time since which the heartbeat is absent.
    absent_since: Option<Mono>,
    /// The heartbeat was present before, in this or the previous run of the monitor.
    was_present: bool,
    /// The value is too long to fetch.
    oversized: bool,
    /// The consumer is listed in a group.
    in_group: bool,
    /// Tick for which its key was read last.
    read_for: u64,
}

impl HeartbeatsReader {
    /// Watches consumers that were present in the saved state.
    pub fn restore(&mut self, consumers: impl IntoIterator<Item = (Name, Name)>) {
        for (stream, consumer) in consumers {
            self.consumers.entry(stream).or_default().entry(consumer).or_default().was_present = true;
        }
    }

    /// Watches the consumers that are listed in groups.
    pub fn follow(&mut self, streams: &StreamsReading) {
        for (stream, before) in &mut self.listed {
            if !streams.streams.contains_key(stream) {
                before.clear();
                self.consumers
                    .get_mut(stream)
                    .into_iter()
                    .flat_map(BTreeMap::values_mut)
                    .for_each(|w| w.in_group = false);
            }
        }
        for (stream, reading) in &streams.streams {
            let before = self.listed.entry(stream.clone()).or_default();
            // Usually the consumers are unchanged.
            if reading.facts.is_err() || reading.consumers().map(|(_, consumer)| &consumer.name).eq(before.iter()) {
                continue;
            }
            *before = reading.consumers().map(|(_, consumer)| consumer.name.clone()).collect();
            let consumers = self.consumers.entry(stream.clone()).or_default();
            for watched in consumers.values_mut() {
                watched.in_group = false;
            }
            for name in before.iter() {
                consumers.entry(name.clone()).or_default().in_group = true;
            }
        }
    }

    /// Adds heartbeat keys that discovery found.
    pub fn found(&mut self, found: Vec<Vec<u8>>) {
        for key in found {
            if !self.is_a_consumers(&key) && self.strays.len() < MAX_STRAYS {
                self.strays.entry(key.clone()).or_default();
            }
            if self.found.len() < MAX_STRAYS {
                self.found.insert(key);
            }
        }
    }

    /// Returns whether a watched consumer has this heartbeat key; any colon may be the end of the stream name.
    fn is_a_consumers(&self, key: &[u8]) -> bool {
        let Some(rest) = key.strip_prefix(keys::HEARTBEAT_PREFIX.as_bytes()) else { return false };
        let colons = rest.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| rest.split_at(at));
        colons.into_iter().any(|(stream, consumer)| {
            let consumers = self.consumers.get(stream);
            consumers.is_some_and(|consumers| consumers.contains_key(consumer.get(1..).unwrap_or_default()))
        })
    }

    /// Reads the heartbeats of known consumers for this tick, so that [`Self::read`] has less to read.
    ///
    /// # Errors
    /// Why Redis cannot be read. [`Self::read`] then reads the rest.
    pub async fn read_ahead(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        tick: u64,
        now: Mono,
    ) -> Result<(), SourceTrouble> {
        self.read_values(redis, tick, now).await
    }

    /// Reads the remaining heartbeats of this tick.
    ///
    /// # Errors
    /// Why Redis cannot be read.
    pub async fn read(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        tick: u64,
        now: Mono,
    ) -> Result<HeartbeatsReading, SourceTrouble> {
        self.read_values(redis, tick, now).await?;
        self.read_types(redis).await?;
        let somebody_is_missing = all(&mut self.consumers, &mut self.strays)
            .any(|asked| asked.watched.is_new_process || asked.watched.absent_since.is_some());
        self.adopt_strays();
        let markers = if somebody_is_missing { self.read_markers(redis, now).await? } else { HashMap::new() };
        let mut reading = HeartbeatsReading::default();
        for (stream, consumers) in &self.consumers {
            let mut of_stream = Vec::with_capacity(consumers.len());
            for (consumer, watched) in consumers {
                let beat = watched.beat.clone();
                if let Beat::Unreadable(reason) = &beat {
                    reading.unreadable.push(UnreadableHeartbeat {
                        key: shown(&keys::heartbeat(stream, consumer)),
                        reason: reason.to_string(),
                        stream: Some(stream.clone()),
                        consumer: Some(consumer.clone()),
                    });
                }
                let marker = markers.get(&(stream, consumer)).cloned().unwrap_or(MarkerReading::NotRead);
                of_stream.push((consumer.clone(), BeatReading { beat, marker }));
            }
            reading.consumers.insert(stream.clone(), of_stream);
        }
        for (key, watched) in &self.strays {
            if let Beat::Unreadable(reason) = &watched.beat {
                let stray = UnreadableHeartbeat {
                    key: shown(key),
                    reason: reason.to_string(),
                    stream: self.stream_of(key),
                    consumer: None,
                };
                reading.unreadable.push(stray);
            }
        }
        drop(markers);
        self.forget(now, somebody_is_missing);
        Ok(reading)
    }

    /// Reads the values that were not read for this tick yet. Those of new processes are read again: a marker that is read long
    /// after the heartbeat may belong to this process and not to an earlier one.
    async fn read_values(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        tick: u64,
        now: Mono,
    ) -> Result<(), SourceTrouble> {
        let mut asked: Vec<HeartbeatRequest<'_>> = all(&mut self.consumers, &mut self.strays)
            .filter(|asked| asked.watched.read_for != tick || asked.watched.is_new_process)
            .collect();
        let mut others: Vec<Vec<u8>> = Vec::new();
        for some in asked.chunks_mut(KEYS_PER_COMMAND) {
            let (long, short): (Vec<_>, Vec<_>) = some.iter_mut().partition(|asked| asked.watched.oversized);
            let mut pipe = redis::pipe();
            if !short.is_empty() {
                let mget = pipe.cmd("MGET");
                for asked in &short {
                    mget.arg(&*asked.under.key());
                }
            }
            for asked in &long {
                pipe.cmd("GETRANGE").arg(&*asked.under.key()).arg(0).arg(MAX_BYTES);
            }
            let mut answers = send(redis, &mut pipe).await?.into_iter();
            let together = if short.is_empty() { Value::Nil } else { list(answers.next())? };
            let alone: Vec<Value> = answers.map(Result::unwrap_or_default).collect();
            let values = Reply::of(&together).items().chain(alone.iter().map(Reply::of)).map(Reply::bytes);
            for (asked, value) in short.into_iter().chain(long).zip(values) {
                asked.watched.read_for = tick;
                if asked.watched.take(asked.under, value, now, &self.fingerprints) {
                    others.push(asked.under.key().into_owned());
                }
            }
        }
        for key in others {
            self.strays.entry(key).or_default();
        }
        Ok(())
    }

    /// Distinguishes keys of another type from missing ones; MGET returns nil for both.
    async fn read_types(&mut self, redis: &mut (impl ConnectionLike + Send)) -> Result<(), SourceTrouble> {
        if self.found.is_empty() {
            return Ok(());
        }
        let nil_but_found: Vec<HeartbeatRequest<'_>> = all(&mut self.consumers, &mut self.strays)
            .filter(|asked| asked.watched.absent_since.is_some() && self.found.contains(&*asked.under.key()))
            .collect();
        let mut pipe = redis::pipe();
        for asked in &nil_but_found {
            pipe.cmd("TYPE").arg(&*asked.under.key());
        }
        let mut of_another_type = BTreeSet::new();
        for (asked, kind) in nil_but_found.into_iter().zip(send(redis, &mut pipe).await?) {
            match kind.ok().as_ref().and_then(|kind| Reply::of(kind).text()).as_deref() {
                None | Some("none" | "string") => {}
                Some(kind) => {
                    asked.watched.beat = Beat::Unreadable(format!("the key holds a {kind}, not a string").into());
                    of_another_type.insert(asked.under.key().into_owned());
                }
            }
        }
        // The others are identified by their values.
        self.found = of_another_type;
        Ok(())
    }

    /// Assigns heartbeat keys to the consumer that the payload names.
    fn adopt_strays(&mut self) {
        let named: Vec<(Vec<u8>, Name, Name)> = self
            .strays
            .iter()
            .filter_map(|(key, watched)| match &watched.beat {
                Beat::Present(beat) => Some((key.clone(), beat.stream.clone(), beat.consumer.clone())),
                _ => None,
            })
            .collect();
        for (key, stream, consumer) in named {
            if let Some(watched) = self.strays.remove(&key) {
                self.consumers.entry(stream).or_default().entry(consumer).or_insert(watched);
            }
        }
    }

    async fn read_markers(
        &self,
        redis: &mut (impl ConnectionLike + Send),
        now: Mono,
    ) -> Result<HashMap<(&Name, &Name), MarkerReading>, SourceTrouble> {
        let wanted: Vec<(&Name, &Name)> = self
            .consumers
            .iter()
            .flat_map(|(stream, consumers)| {
                consumers.iter().map(move |(consumer, watched)| (stream, consumer, watched))
            })
            .filter(|(_, _, watched)| watched.wants_marker(now))
            .map(|(stream, consumer, _)| (stream, consumer))
            .collect();
        let mut markers = HashMap::with_capacity(wanted.len());
        for some in wanted.chunks(KEYS_PER_COMMAND) {
            let mut pipe = redis::pipe();
            let mget = pipe.cmd("MGET");
            for (stream, consumer) in some {
                mget.arg(keys::marker(stream, consumer));
            }
            let answer = send(redis, &mut pipe).await?.into_iter().next();
            let Some(Ok(values)) = answer else { continue };
            for (who, value) in some.iter().zip(Reply::of(&values).items()) {
                let marker = value.bytes().and_then(|bytes| ShutdownMarker::parse(who.0, who.1, bytes));
                markers.insert(
                    *who,
                    marker.map_or(MarkerReading::Absent, |marker| MarkerReading::Present(Box::new(marker))),
                );
            }
        }
        Ok(markers)
    }

    /// Returns the longest watched stream name to which this key can belong.
    fn stream_of(&self, key: &[u8]) -> Option<Name> {
        let rest = key.strip_prefix(keys::HEARTBEAT_PREFIX.as_bytes())?;
        let belongs = |stream: &&Name| rest.strip_prefix(stream.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
        self.consumers.keys().filter(belongs).max_by_key(|stream| stream.as_bytes().len()).cloned()
    }

    /// Completes a pass: drops state that is not needed any more.
    fn forget(&mut self, now: Mono, somebody_is_missing: bool) {
        let worth = |watched: &Watched| watched.in_group || !watched.is_long_gone(now);
        self.consumers.retain(|_, consumers| {
            if somebody_is_missing {
                consumers.retain(|_, watched| {
                    watched.is_new_process = false;
                    worth(watched)
                });
            }
            !consumers.is_empty()
        });
        self.strays.retain(|_, watched| watched.absent_since.is_none() || matches!(watched.beat, Beat::Unreadable(_)));
    }
}

/// A heartbeat key in a pass, with its consumer if known.
struct HeartbeatRequest<'a> {
    under: FoundUnder<'a>,
    watched: &'a mut Watched,
}

/// Returns all keys to read.
fn all<'a>(
    consumers: &'a mut BTreeMap<Name, BTreeMap<Name, Watched>>,
    strays: &'a mut BTreeMap<Vec<u8>, Watched>,
) -> impl Iterator<Item = HeartbeatRequest<'a>> {
    let consumers = consumers.iter_mut().flat_map(|(stream, consumers)| {
        let of_stream = consumers.iter_mut();
        of_stream
            .map(move |(consumer, watched)| HeartbeatRequest { under: FoundUnder::KeyOf(stream, consumer), watched })
    });
    consumers.chain(strays.iter_mut().map(|(key, watched)| HeartbeatRequest { under: FoundUnder::Key(key), watched }))
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            value: None,
            beat: Beat::Absent,
            is_new_process: false,
            absent_since: None,
            was_present: false,
            oversized: false,
            in_group: false,
            read_for: 0,
        }
    }
}

impl Watched {
    /// Applies the value of its key. Returns whether it belongs to another consumer: `a` + `b:c` and `a:b` + `c` share a key.
    fn take(&mut self, under: FoundUnder<'_>, value: Option<&[u8]>, now: Mono, fingerprints: &RandomState) -> bool {
        let value = match value {
            Some(value) if !(self.oversized && value.is_empty()) => value,
            _ => {
                self.take_nothing(now);
                return false;
            }
        };
        let fingerprint = fingerprints.hash_one(value);
        if self.value == Some(fingerprint) {
            return false;
        }
        let is_a_consumers = matches!(under, FoundUnder::KeyOf(..));
        let beat = match Heartbeat::parse_found(under, value) {
            Ok(beat) if is_a_consumers && !under.expects(beat.stream.as_bytes(), beat.consumer.as_bytes()) => {
                self.take_nothing(now);
                return true;
            }
            Ok(beat) => {
                self.is_new_process |= !matches!(&self.beat, Beat::Present(last) if last.same_incarnation(&beat));
                Beat::Present(Arc::new(beat))
            }
            Err(bad) => Beat::Unreadable(bad.0.into()),
        };
        self.was_present |= matches!(beat, Beat::Present(_));
        self.beat = beat;
        self.absent_since = None;
        self.oversized = value.len() > MAX_BYTES;
        self.value = (!self.oversized).then_some(fingerprint);
        false
    }

    fn take_nothing(&mut self, now: Mono) {
        self.absent_since.get_or_insert(now);
        self.beat = Beat::Absent;
        self.value = None;
        self.oversized = false;
    }

    /// Returns whether its marker is needed: while it can exist, and for a new process, since the marker of an earlier process may
    /// still exist.
    fn wants_marker(&self, now: Mono) -> bool {
        self.is_new_process || (self.absent_since.is_some() && !self.is_long_gone(now))
    }

    fn is_long_gone(&self, now: Mono) -> bool {
        let worth = if self.was_present { MARKER_OF_THE_LOST_WORTH_READING } else { MARKER_WORTH_READING };
        self.absent_since.is_some_and(|since| now.since(since) > worth)
    }
}

fn list(answer: Option<redis::RedisResult<Value>>) -> Result<Value, SourceTrouble> {
    match answer {
        Some(Ok(list @ (Value::Array(_) | Value::BulkString(_)))) => Ok(list),
        Some(Err(error)) => Err(connection::trouble(&error)),
        other => Err(SourceTrouble::new(TroubleKind::Failed, format!("MGET returned {other:?}"))),
    }
}

/// Truncates and escapes a key for the log.
fn shown(key: &[u8]) -> String {
    let text = Name::from(key).to_text();
    let mut short: String = text.chars().take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_read_while_the_state_of_a_consumer_may_be_undecided() {
        let absent = |was_present| Watched { absent_since: Some(Mono(0)), was_present, ..Watched::default() };
        let after = |seconds: u64| Mono(seconds * 1000);
        assert!(absent(true).wants_marker(after(600)));
        assert!(!absent(true).wants_marker(after(3700)));
        assert!(absent(false).wants_marker(after(60)));
        assert!(!absent(false).wants_marker(after(600)), "a long list of dead consumers costs nothing");
    }
}
