//! One pass over the heartbeats: one MGET by exact key, markers and types only where needed. Those known from the
//! pass before may be read ahead, while the streams are read; the pass then asks only for those that came.
//!
//! Whose heartbeats: every consumer that a group names, every heartbeat key that discovery came
//! across, and every consumer that was present when the monitor last wrote its state down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use redis::aio::ConnectionLike;

use super::connection::{self, send};
use super::reply::Reply;
use crate::contract::heartbeat::{FoundUnder, MAX_BYTES};
use crate::contract::{Heartbeat, Name, ShutdownMarker, keys, marker};
use crate::fleet::reading::{
    Beat, BeatReading, HeartbeatsReading, MarkerReading, SourceTrouble, StreamsReading, TroubleKind,
    UnreadableHeartbeat,
};
use crate::fleet::time::Mono;

/// Keys per MGET.
const KEYS_PER_COMMAND: usize = 500;
/// Heartbeat keys that no group's consumer explains, watched at most.
const MAX_STRAYS: usize = 20_000;
/// After this long without a heartbeat the marker of a consumer that had none is not asked for any more: it is gone.
const MARKER_WORTH_READING: Duration = marker::TTL;
/// The same for a consumer whose heartbeat was there before. It may be undecided for long while Redis comes and goes,
/// and a process that stood still may leave its marker late.
const MARKER_OF_THE_LOST_WORTH_READING: Duration = Duration::from_secs(3600);

/// The consumers watched, and what stood under their keys in the last pass.
#[derive(Debug, Default)]
pub struct HeartbeatsReader {
    consumers: BTreeMap<Name, BTreeMap<Name, Watched>>,
    /// Whom the groups of each stream listed in the last pass.
    listed: BTreeMap<Name, Vec<Name>>,
    /// Keys that discovery found and whose payload names nobody yet.
    strays: BTreeMap<Vec<u8>, Watched>,
    /// Keys that discovery found to exist: when MGET calls one nil, it is of another type.
    found: BTreeSet<Vec<u8>>,
    /// Makes fingerprints that nobody else can foresee.
    fingerprints: RandomState,
}

#[derive(Debug)]
struct Watched {
    /// By this the value as read is known again, so that an unchanged one is not parsed again.
    value: Option<u64>,
    beat: Beat,
    /// The heartbeat is that of a process not seen in a whole pass before.
    is_new_process: bool,
    /// Its heartbeat is not there since then.
    absent_since: Option<Mono>,
    /// Its heartbeat was there before, in this run of the monitor or in the last.
    was_present: bool,
    /// Its value is too long to be worth fetching whole.
    oversized: bool,
    /// Its group lists it.
    in_group: bool,
    /// The tick for which its key was read last.
    read_for: u64,
}

impl HeartbeatsReader {
    /// Watches consumers that were present when last written down.
    pub fn restore(&mut self, consumers: impl IntoIterator<Item = (Name, Name)>) {
        for (stream, consumer) in consumers {
            self.consumers.entry(stream).or_default().entry(consumer).or_default().was_present = true;
        }
    }

    /// Watches the consumers that the groups list now.
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
            // Mostly nobody came or went.
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

    /// Takes note of heartbeat keys that discovery came across.
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

    /// Whether a watched consumer has this heartbeat key; any colon may end the stream's name.
    fn is_a_consumers(&self, key: &[u8]) -> bool {
        let Some(rest) = key.strip_prefix(keys::HEARTBEAT_PREFIX.as_bytes()) else { return false };
        let colons = rest.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| rest.split_at(at));
        colons.into_iter().any(|(stream, consumer)| {
            let consumers = self.consumers.get(stream);
            consumers.is_some_and(|consumers| consumers.contains_key(consumer.get(1..).unwrap_or_default()))
        })
    }

    /// Reads what is known to be read for this tick already, so that [`Self::read`] has less to ask.
    ///
    /// # Errors
    /// Why Redis cannot be read. What was not read is left to [`Self::read`].
    pub async fn read_ahead(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        tick: u64,
        now: Mono,
    ) -> Result<(), SourceTrouble> {
        self.read_values(redis, tick, now).await
    }

    /// Makes the pass of this tick.
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

    /// Reads the values that were not read for this tick yet. Those of new processes again: a marker that is read long
    /// after the heartbeat may be this process's own, and would be taken for an older one's.
    async fn read_values(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        tick: u64,
        now: Mono,
    ) -> Result<(), SourceTrouble> {
        let mut asked: Vec<Asked<'_>> = all(&mut self.consumers, &mut self.strays)
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

    /// Tells keys of another type, which MGET calls nil, from those that are not there.
    async fn read_types(&mut self, redis: &mut (impl ConnectionLike + Send)) -> Result<(), SourceTrouble> {
        if self.found.is_empty() {
            return Ok(());
        }
        let nil_but_found: Vec<Asked<'_>> = all(&mut self.consumers, &mut self.strays)
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
        // All others were told from what stood under them.
        self.found = of_another_type;
        Ok(())
    }

    /// A stray whose payload says whose it is becomes that consumer's.
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

    /// The longest watched stream name that this key could belong to.
    fn stream_of(&self, key: &[u8]) -> Option<Name> {
        let rest = key.strip_prefix(keys::HEARTBEAT_PREFIX.as_bytes())?;
        let belongs = |stream: &&Name| rest.strip_prefix(stream.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
        self.consumers.keys().filter(belongs).max_by_key(|stream| stream.as_bytes().len()).cloned()
    }

    /// Ends a whole pass.
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

/// A heartbeat key in a pass, and whose it is if that is known.
struct Asked<'a> {
    under: FoundUnder<'a>,
    watched: &'a mut Watched,
}

/// All whose keys are read.
fn all<'a>(
    consumers: &'a mut BTreeMap<Name, BTreeMap<Name, Watched>>,
    strays: &'a mut BTreeMap<Vec<u8>, Watched>,
) -> impl Iterator<Item = Asked<'a>> {
    let consumers = consumers.iter_mut().flat_map(|(stream, consumers)| {
        let of_stream = consumers.iter_mut();
        of_stream.map(move |(consumer, watched)| Asked { under: FoundUnder::KeyOf(stream, consumer), watched })
    });
    consumers.chain(strays.iter_mut().map(|(key, watched)| Asked { under: FoundUnder::Key(key), watched }))
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
    /// Takes what stood under its key; whether that is another's: `a` + `b:c` and `a:b` + `c` share a key.
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

    /// Its marker matters while it is not long gone, and when it is a new process: an older one's
    /// marker may still lie there.
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

/// Cut and escaped for reading.
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
    fn the_marker_of_a_consumer_that_was_there_is_read_for_as_long_as_it_may_be_undecided() {
        let absent = |was_present| Watched { absent_since: Some(Mono(0)), was_present, ..Watched::default() };
        let after = |seconds: u64| Mono(seconds * 1000);
        assert!(absent(true).wants_marker(after(600)));
        assert!(!absent(true).wants_marker(after(3700)));
        assert!(absent(false).wants_marker(after(60)));
        assert!(!absent(false).wants_marker(after(600)), "a long list of dead consumers costs nothing");
    }
}
