//! Reads all streams, with few commands.
//!
//! First round trip: INFO, TIME, failed tasks of all streams, a step of discovery if Redis has few keys, and for each stream its
//! length, groups, and the consumers of groups known from the previous pass (several round trips for large fleets). Second round
//! trip, only where needed: the oldest undelivered entry of groups with a lag, unless nothing was added or deleted since the
//! previous pass; counts where Redis does not know the lag; consumers of new groups; and steps of the survey for phantom pending
//! IDs (see [`crate::fleet::phantom`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, Value};

use super::connection::{self, send};
use super::discovery::Sweep;
use super::failures_reader::FailuresReader;
use super::resp_reader::Reply;
use super::server_info::{Capabilities, info, read_info};
use crate::contract::Name;
use crate::fleet::load::{COUNT_BOUND, LagClues, lag};
use crate::fleet::phantom::{Figures, Step, Survey};
use crate::fleet::reading::{
    GroupConsumer, GroupReading, Lag, RedisServer, SourceTrouble, StreamFacts, StreamReading, StreamsReading,
    TroubleKind,
};
use crate::fleet::watched::WatchedStreams;

/// Streams per round trip; bounds the memory of the answers.
const STREAMS_PER_TRIP: usize = 40;

/// Limits per survey step: pending IDs to examine, entries to read to determine which exist, and bytes of their payload.
const SURVEY_IDS: u64 = 500;
const SURVEY_ENTRIES: u64 = 100;
const SURVEY_BYTES: u64 = 1 << 18;
/// Interval, in passes, at which groups without signs of phantoms are surveyed in turn,
const SURVEY_IN_TURN_EVERY: u64 = 5;
/// one of this many, so that the survey costs a constant part of a pass.
const SURVEY_ONE_OF: usize = 40;
/// Number of passes until a refused survey step is repeated.
const SURVEY_RESTS: u64 = 200;
/// Maximum number of new groups that are surveyed immediately per round trip; the others are surveyed in turn.
const NEW_SURVEYS: usize = 8;

/// Read-only, so it is sent with the pass; a server that has not loaded it needs no second round trip.
const COUNT_PHANTOMS: &str = concat!(
    include_str!("scripts/before.lua"),
    include_str!("scripts/phantoms.lua"),
    include_str!("scripts/count_phantoms.lua")
);

/// Watched streams, with the state between two passes.
#[derive(Debug)]
pub struct StreamsReader {
    watched: WatchedStreams,
    capabilities: Option<Capabilities>,
    streams: BTreeMap<Name, Stream>,
    failures: FailuresReader,
    sweep: Sweep,
    /// Number of passes.
    passes: u64,
}

/// State of a stream between two passes.
#[derive(Debug, Default)]
struct Stream {
    /// Groups in the last pass.
    groups: BTreeMap<Name, Seen>,
    /// Survey for phantom pending IDs of each group that had pending entries.
    surveys: BTreeMap<Name, GroupSurvey>,
    /// Shown even if it does not exist.
    pinned: bool,
    /// Number of consecutive passes in which it did not exist.
    missing: u32,
}

/// Survey of a group, with its schedule.
#[derive(Debug, Default)]
struct GroupSurvey {
    survey: Survey,
    /// Pass of the last step; `None` before the first.
    stepped: Option<u64>,
    /// The next pass takes a step in any case.
    due: bool,
    /// Redis refused a step; the next one is not before this pass.
    rests_until: u64,
}

impl Stream {
    fn remember(&mut self, facts: &StreamFacts) {
        self.surveys.retain(|name, _| facts.groups.iter().any(|group| group.name == *name));
        self.groups = facts.groups.iter().map(|group| (group.name.clone(), Seen::of(facts, group))).collect();
        self.missing = if facts.exists { 0 } else { self.missing + 1 };
    }
}

/// A group in the last pass.
#[derive(Debug)]
struct Seen {
    consumers: Arc<[GroupConsumer]>,
    oldest: Option<(Behind, u64)>,
}

impl Seen {
    fn of(facts: &StreamFacts, group: &GroupReading) -> Self {
        Self {
            consumers: group.consumers.clone().unwrap_or_default(),
            oldest: Behind::of(facts.length, group).zip(group.oldest_undelivered_ms),
        }
    }
}

/// Position of a group with a lag, in figures that show whether entries were added or deleted: the oldest undelivered entry is the
/// same while they are unchanged.
///
/// Redis' lag is the number of entries ever added minus those the group read. While both are unchanged, nothing was added; while
/// the length is unchanged too, nothing was deleted. Where Redis estimates the lag from the length, the lag equals the length.
#[derive(Debug, PartialEq, Eq)]
struct Behind {
    length: u64,
    lag: u64,
    entries_read: u64,
    last_delivered_id: String,
}

impl Behind {
    /// Returns `None` if the figures are not conclusive.
    fn of(length: u64, group: &GroupReading) -> Option<Self> {
        let (Lag::Reported(lag), Some(entries_read)) = (group.lag, group.entries_read) else { return None };
        let last_delivered_id = group.last_delivered_id.clone();
        (0 < lag && lag < length).then_some(Self { length, lag, entries_read, last_delivered_id })
    }
}

/// Number of passes after which a missing stream is not read any more; discovery finds it if it returns.
const FORGET_AFTER_PASSES: u32 = 200;

type Answer = Result<Value, RedisError>;

impl StreamsReader {
    /// Returns a reader of streams among `watched`: `shown` ones even if they do not exist, others once added by [`Self::watch`] or
    /// found by discovery.
    #[must_use]
    pub fn new(watched: WatchedStreams, shown: &[Name]) -> Self {
        let pinned = shown.iter().map(|stream| (stream.clone(), Stream { pinned: true, ..Stream::default() }));
        Self {
            watched,
            capabilities: None,
            streams: pinned.collect(),
            failures: FailuresReader::default(),
            sweep: Sweep::default(),
            passes: 0,
        }
    }

    /// Adds streams that are to be watched. Returns whether any was new.
    pub fn watch(&mut self, streams: impl IntoIterator<Item = Name>) -> bool {
        let before = self.streams.len();
        for stream in streams.into_iter().filter(|stream| self.watched.contains(stream)) {
            self.streams.entry(stream).or_default();
        }
        self.streams.len() > before
    }

    /// Adds streams found by a walk, like [`Self::watch`], and restarts the incremental scan.
    pub fn walked(&mut self, found: impl IntoIterator<Item = Name>) -> bool {
        self.sweep = Sweep::default();
        self.watch(found)
    }

    /// The next pass goes over a new connection, perhaps to another server: what that one can do is asked anew.
    pub fn reconnected(&mut self) {
        self.capabilities = None;
    }

    /// Returns the capabilities of the server, if known.
    #[must_use]
    pub fn known_capabilities(&self) -> Option<Capabilities> {
        self.capabilities
    }

    /// Makes one pass. Also returns heartbeat keys that the step of discovery found; streams that it found are included in this
    /// pass.
    ///
    /// # Errors
    /// Why Redis cannot be read. Errors of a single stream are in the reading of that stream.
    pub async fn read(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
    ) -> Result<(StreamsReading, Vec<Vec<u8>>), SourceTrouble> {
        let capabilities = self.capabilities(redis).await?;
        self.passes += 1;
        if self.passes.is_multiple_of(SURVEY_IN_TURN_EVERY) {
            self.survey_in_turn();
        }
        let names: Vec<Name> = self.streams.keys().cloned().collect();
        let (with_server, others) = names.split_at(names.len().min(STREAMS_PER_TRIP));
        let mut pipe = Pipeline::with_capacity(3 * with_server.len() + 5);
        pipe.add_command(info(capabilities.info_sections)).cmd("TIME");
        pipe.add_command(self.failures.command(&names));
        let asked = self.sweep.add_step(&mut pipe, self.streams.len(), capabilities.scan_type);
        self.ask(&mut pipe, with_server);
        let mut answers = send(redis, &mut pipe).await?.into_iter();
        // Without INFO, all but the figures of the server is shown; a replica is then noticed by the first write only.
        let (server, trouble) = match answers.next() {
            Some(Err(error)) if connection::is_unavailable(&error) => {
                (RedisServer { denied: Some(connection::trouble(&error).detail), ..RedisServer::default() }, None)
            }
            answer => read_info(&good(answer)?),
        };
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let redis_time = read_time(&good(answers.next())?);
        let failures = answers.next();
        // What this user may not look for is found by name only; all else is read the same.
        let found = self.sweep.take_step(answers.by_ref().take(asked), capabilities.scan_type).unwrap_or_default();

        let mut reading = StreamsReading { redis_time, server, streams: BTreeMap::new(), failures: None };
        self.take(redis, with_server, answers, &mut reading).await?;
        for some in others.chunks(STREAMS_PER_TRIP) {
            self.read_some(redis, some, &mut reading).await?;
        }
        reading.failures = self.failures.take(redis, &names, failures).await?;
        self.watch(found.streams);
        let new: Vec<Name> = self.streams.keys().filter(|name| !reading.streams.contains_key(*name)).cloned().collect();
        for some in new.chunks(STREAMS_PER_TRIP) {
            self.read_some(redis, some, &mut reading).await?;
        }
        self.streams.retain(|_, stream| stream.pinned || stream.missing < FORGET_AFTER_PASSES);
        Ok((reading, found.heartbeat_keys))
    }

    /// Selects groups without signs of phantoms for a survey step: those with the oldest one.
    fn survey_in_turn(&mut self) {
        let surveys = self.streams.values_mut().flat_map(|stream| stream.surveys.values_mut());
        let mut waiting: Vec<&mut GroupSurvey> = surveys.filter(|survey| !survey.due).collect();
        waiting.sort_by_key(|survey| survey.stepped);
        let some = waiting.len().div_ceil(SURVEY_ONE_OF);
        for survey in waiting.into_iter().take(some) {
            survey.due = true;
        }
    }

    async fn capabilities(&mut self, redis: &mut (impl ConnectionLike + Send)) -> Result<Capabilities, SourceTrouble> {
        if let Some(known) = self.capabilities {
            return Ok(known);
        }
        let answers = send(redis, &mut Capabilities::probes()).await?;
        if let Some(Err(error)) = answers.iter().find(|a| a.as_ref().is_err_and(|e| e.code() == Some("LOADING"))) {
            return Err(connection::trouble(error));
        }
        let probed = Capabilities::probed(&answers);
        tracing::debug!(
            info_sections = probed.info_sections,
            scan_type = probed.scan_type,
            "detected Redis capabilities"
        );
        self.capabilities = Some(probed);
        Ok(probed)
    }

    async fn read_some(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        names: &[Name],
        reading: &mut StreamsReading,
    ) -> Result<(), SourceTrouble> {
        let mut pipe = Pipeline::with_capacity(3 * names.len());
        self.ask(&mut pipe, names);
        let answers = send(redis, &mut pipe).await?;
        self.take(redis, names, answers.into_iter(), reading).await
    }

    fn ask(&self, pipe: &mut Pipeline, names: &[Name]) {
        for name in names {
            pipe.add_command(command(&[b"XLEN", name.as_bytes()]));
            pipe.add_command(command(&[b"XINFO", b"GROUPS", name.as_bytes()]));
            for group in self.streams.get(name).into_iter().flat_map(|stream| stream.groups.keys()) {
                ask_consumers(pipe, name, group);
            }
        }
    }

    async fn take(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        names: &[Name],
        mut answers: impl Iterator<Item = Answer>,
        reading: &mut StreamsReading,
    ) -> Result<(), SourceTrouble> {
        let mut second = SecondTrip { pass: self.passes, ..SecondTrip::default() };
        for name in names {
            let Stream { groups: seen, surveys, .. } = self.streams.entry(name.clone()).or_default();
            let (length, groups) = (answers.next(), answers.next());
            let mut consumers: BTreeMap<Name, Option<Arc<[GroupConsumer]>>> = seen
                .iter()
                .map(|(group, seen)| (group.clone(), read_consumers(answers.next(), &seen.consumers)))
                .collect();
            let facts = read_stream(length, groups).map(|(facts, lags)| {
                second.survey(name, &facts, &lags, surveys);
                second.plan(name, facts, &lags, &mut consumers, seen)
            });
            reading.streams.insert(name.clone(), StreamReading { facts });
        }
        let steps = second.make(redis, &mut reading.streams).await?;
        for (name, group, figures, step) in steps {
            let survey = self.streams.get_mut(&name).and_then(|stream| stream.surveys.get_mut(&group));
            let Some(survey) = survey else { continue };
            (survey.due, survey.stepped) = (false, Some(self.passes));
            match step {
                Some(step) => survey.survey.take(&figures, step),
                None => survey.rests_until = self.passes + SURVEY_RESTS,
            }
        }
        for name in names {
            let facts = reading.streams.get_mut(name).and_then(|stream| stream.facts.as_mut().ok());
            if let (Some(stream), Some(facts)) = (self.streams.get_mut(name), facts) {
                for group in &mut facts.groups {
                    if let Some(survey) = stream.surveys.get(&group.name) {
                        count_phantoms(group, facts.length, &survey.survey);
                    }
                }
                stream.remember(facts);
            }
        }
        Ok(())
    }
}

/// A command of the second round trip.
#[derive(Default)]
struct SecondTrip {
    /// Pass to which it belongs.
    pass: u64,
    pipe: Pipeline,
    questions: Vec<Question>,
}

struct Question {
    stream: Name,
    group: usize,
    asks: Asks,
}

enum Asks {
    /// Consumers of a new group.
    Consumers,
    /// First entry after the position of the group.
    OldestUndelivered,
    /// Numbers of entries before and after the position, two commands.
    Counts,
    /// A survey step for phantom pending IDs.
    Phantoms(Name, Figures),
}

impl SecondTrip {
    /// Adds a survey step if phantoms are suspected or a step is due.
    fn survey(
        &mut self,
        name: &Name,
        facts: &StreamFacts,
        reported: &[Option<u64>],
        surveys: &mut BTreeMap<Name, GroupSurvey>,
    ) {
        for (n, (group, lag)) in facts.groups.iter().zip(reported).enumerate().filter(|(_, (g, _))| g.pending > 0) {
            let figures = figures(facts.length, group, lag.filter(|lag| *lag <= facts.length));
            if !surveys.contains_key(&group.name) {
                surveys.insert(
                    group.name.clone(),
                    GroupSurvey { due: self.questions.len() < NEW_SURVEYS, ..GroupSurvey::default() },
                );
            }
            let Some(survey) = surveys.get_mut(&group.name) else { continue };
            if !survey.survey.may_find(&figures) {
                survey.due = false;
            } else if self.pass >= survey.rests_until && (survey.due || survey.survey.suspects(&figures)) {
                self.pipe.cmd("EVAL").arg(COUNT_PHANTOMS).arg(1).arg(name.as_bytes()).arg(group.name.as_bytes());
                self.pipe.arg(survey.survey.next().unwrap_or("-"));
                self.pipe.arg(SURVEY_IDS).arg(SURVEY_ENTRIES).arg(SURVEY_BYTES);
                let asks = Asks::Phantoms(group.name.clone(), figures);
                self.questions.push(Question { stream: name.clone(), group: n, asks });
            }
        }
    }

    fn plan(
        &mut self,
        name: &Name,
        mut facts: StreamFacts,
        reported: &[Option<u64>],
        consumers: &mut BTreeMap<Name, Option<Arc<[GroupConsumer]>>>,
        seen: &BTreeMap<Name, Seen>,
    ) -> StreamFacts {
        let length = facts.length;
        for (n, (group, reported)) in facts.groups.iter_mut().zip(reported).enumerate() {
            let mut ask = |asks| self.questions.push(Question { stream: name.clone(), group: n, asks });
            match consumers.remove(&group.name).flatten() {
                Some(consumers) => group.consumers = Some(consumers),
                None => {
                    ask_consumers(&mut self.pipe, name, &group.name);
                    ask(Asks::Consumers);
                }
            }
            group.lag = lag(*reported, LagClues { length, delivered: None, undelivered: None });
            if group.lag == Lag::Unknown {
                self.pipe
                    .cmd("XRANGE")
                    .arg(name.as_bytes())
                    .arg("-")
                    .arg(&group.last_delivered_id)
                    .arg("COUNT")
                    .arg(COUNT_BOUND);
                ask_undelivered(&mut self.pipe, name, group, COUNT_BOUND);
                ask(Asks::Counts);
            } else if group.lag.value().is_some_and(|lag| lag > 0) {
                let before = seen.get(&group.name).and_then(|seen| seen.oldest.as_ref());
                match before.filter(|(then, _)| Behind::of(length, group).as_ref() == Some(then)) {
                    Some((_, oldest)) => group.oldest_undelivered_ms = Some(*oldest),
                    None => {
                        ask_undelivered(&mut self.pipe, name, group, 1);
                        ask(Asks::OldestUndelivered);
                    }
                }
            }
        }
        facts
    }

    async fn make(
        mut self,
        redis: &mut (impl ConnectionLike + Send),
        streams: &mut BTreeMap<Name, StreamReading>,
    ) -> Result<Vec<(Name, Name, Figures, Option<Step>)>, SourceTrouble> {
        let mut steps = Vec::new();
        let mut answers = send(redis, &mut self.pipe).await?.into_iter();
        for question in self.questions {
            if let Asks::Phantoms(group, figures) = question.asks {
                steps.push((question.stream, group, figures, read_step(answers.next())));
                continue;
            }
            let facts = streams.get_mut(&question.stream).and_then(|stream| stream.facts.as_mut().ok());
            let Some(facts) = facts else { continue };
            let length = facts.length;
            let Some(group) = facts.groups.get_mut(question.group) else { continue };
            match question.asks {
                Asks::Phantoms(..) => {}
                Asks::Consumers => group.consumers = read_consumers(answers.next(), &[]),
                Asks::OldestUndelivered => group.oldest_undelivered_ms = oldest(answers.next().as_ref()),
                Asks::Counts => {
                    let (delivered, undelivered) = (answers.next(), answers.next());
                    group.oldest_undelivered_ms = oldest(undelivered.as_ref());
                    let clues = LagClues {
                        length,
                        delivered: count(delivered.as_ref()),
                        undelivered: count(undelivered.as_ref()),
                    };
                    group.lag = lag(None, clues);
                }
            }
        }
        Ok(steps)
    }
}

fn read_step(answer: Option<Answer>) -> Option<Step> {
    let value = answer?.ok()?;
    let mut items = Reply::of(&value).items();
    let next = items.next()?.text()?.into_owned();
    let mut step = Step { next: Some(next).filter(|id| !id.is_empty()), ..Step::default() };
    step.lower_bound = items.next()?.number()?;
    while let (Some(consumer), Some(count)) =
        (items.next().and_then(Reply::bytes), items.next().and_then(Reply::number))
    {
        step.found.insert(Name::from(consumer), count);
    }
    Some(step)
}

fn figures(length: u64, group: &GroupReading, lag: Option<u64>) -> Figures {
    Figures {
        length,
        lag,
        pending: group.pending,
        entries_read: group.entries_read,
        last_delivered_id: group.last_delivered_id.clone(),
    }
}

/// Adds the result of the survey to the group and its consumers.
fn count_phantoms(group: &mut GroupReading, length: u64, survey: &Survey) {
    let lag = if let Lag::Reported(lag) = group.lag { Some(lag) } else { None };
    let phantoms = survey.phantoms(&figures(length, group, lag));
    (group.phantom_pending, group.phantom_at_least) = (phantoms.total, phantoms.at_least);
    if phantoms.total == 0 {
        return;
    }
    for consumer in group.consumers.iter_mut().flat_map(Arc::make_mut) {
        let all = phantoms.total == group.pending;
        let known = phantoms.by_consumer.get(&consumer.name).copied().unwrap_or(0);
        consumer.phantom_pending = if all { consumer.pending } else { known.min(consumer.pending) };
    }
}

fn ask_consumers(pipe: &mut Pipeline, stream: &Name, group: &Name) {
    pipe.add_command(command(&[b"XINFO", b"CONSUMERS", stream.as_bytes(), group.as_bytes()]));
}

/// Builds a command with one allocation, since a pass has hundreds.
fn command(words: &[&[u8]]) -> Cmd {
    let mut command = Cmd::with_capacity(words.len(), words.iter().map(|word| word.len()).sum());
    command.arg(words);
    command
}

fn ask_undelivered(pipe: &mut Pipeline, stream: &Name, group: &GroupReading, count: u64) {
    pipe.cmd("XRANGE").arg(stream.as_bytes()).arg(id_after(&group.last_delivered_id)).arg("+").arg("COUNT").arg(count);
}

/// Returns the smallest ID after `id` (servers before 6.2 have no exclusive ranges).
fn id_after(id: &str) -> String {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    match (ms.parse::<u64>(), seq.parse::<u64>()) {
        (Ok(ms), Ok(u64::MAX)) => format!("{}-0", ms.saturating_add(1)),
        (Ok(ms), Ok(seq)) => format!("{ms}-{}", seq + 1),
        _ => "+".to_owned(),
    }
}

fn good(answer: Option<Answer>) -> Result<Value, SourceTrouble> {
    match answer {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Err(SourceTrouble::new(TroubleKind::Failed, "Redis returned too few replies")),
    }
}

/// Converts seconds and microseconds to Unix seconds.
pub(super) fn read_time(answer: &Value) -> f64 {
    let part = |n: usize| Reply::of(answer).items().nth(n).and_then(Reply::number).unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
    let seconds = part(0) as f64 + part(1) as f64 / 1e6;
    seconds
}

/// Returns the facts of a stream except those of the second round trip, and the lag of each group as Redis reports it.
fn read_stream(length: Option<Answer>, groups: Option<Answer>) -> Result<(StreamFacts, Vec<Option<u64>>), String> {
    let length = good(length).map_err(|trouble| trouble.detail).and_then(|value| {
        Reply::of(&value).number().ok_or_else(|| format!("XLEN returned {value:?}, expected a number"))
    });
    let length = length.map_err(in_words)?;
    let groups = match groups {
        Some(Ok(value)) => value,
        Some(Err(error)) if error.to_string().contains("no such key") => {
            return Ok((StreamFacts::default(), Vec::new()));
        }
        other => good(other).map_err(|trouble| in_words(trouble.detail))?,
    };
    let mut facts = StreamFacts { exists: true, length, groups: Vec::new() };
    let mut reported = Vec::new();
    for group in Reply::of(&groups).items() {
        let (mut name, mut pending, mut lag, mut entries_read, mut last_delivered_id) = (None, None, None, None, None);
        for (field, value) in group.fields() {
            match field {
                b"name" => name = value.bytes(),
                b"pending" => pending = value.number(),
                b"lag" => lag = value.number(),
                b"entries-read" => entries_read = value.number(),
                b"last-delivered-id" => last_delivered_id = value.text(),
                _ => {}
            }
        }
        let Some(name) = name else { continue };
        reported.push(lag);
        facts.groups.push(GroupReading {
            name: Name::from(name),
            pending: pending.unwrap_or(0),
            phantom_pending: 0,
            phantom_at_least: false,
            lag: Lag::Unknown,
            entries_read,
            last_delivered_id: last_delivered_id.unwrap_or_default().into_owned(),
            oldest_undelivered_ms: None,
            consumers: None,
        });
    }
    Ok((facts, reported))
}

fn in_words(detail: String) -> String {
    if detail.contains("WRONGTYPE") { "this key is not a stream".to_owned() } else { detail }
}

/// Parses XINFO CONSUMERS; reuses consumers of `before`, which usually are the same.
fn read_consumers(answer: Option<Answer>, before: &[GroupConsumer]) -> Option<Arc<[GroupConsumer]>> {
    let value = answer?.ok()?;
    let mut consumers = Vec::with_capacity(before.len());
    for consumer in Reply::of(&value).items() {
        let (mut name, mut pending, mut idle_ms, mut inactive_ms) = (None, Some(0), Some(0), None);
        for (field, value) in consumer.fields() {
            match field {
                b"name" => name = value.bytes(),
                b"pending" => pending = value.number(),
                b"idle" => idle_ms = value.number(),
                b"inactive" => inactive_ms = value.number(),
                _ => {}
            }
        }
        let (Some(name), Some(pending), Some(idle_ms)) = (name, pending, idle_ms) else { continue };
        let known = before.get(consumers.len()).map(|known| &known.name).filter(|known| known.as_bytes() == name);
        let name = known.map_or_else(|| Name::from(name), Name::clone);
        consumers.push(GroupConsumer { name, pending, phantom_pending: 0, idle_ms, inactive_ms });
    }
    Some(consumers.into())
}

/// Returns the time of the first entry of a range, Unix milliseconds, from its ID.
fn oldest(answer: Option<&Answer>) -> Option<u64> {
    let first = Reply::of(answer?.as_ref().ok()?).items().next()?;
    let id = first.items().next()?.text()?;
    id.split_once('-')?.0.parse().ok()
}

fn count(answer: Option<&Answer>) -> Option<u64> {
    Some(Reply::of(answer?.as_ref().ok()?).items().count() as u64)
}
