//! Task failures: counts recent failures from the workers' counters and reports the start of a streak as an event.
//!
//! A streak ends after [`WINDOW`] without a failure. The readings are stored as [`FailureRecords`], so that a restarted
//! monitor neither repeats the event of an old streak nor misses failures of the meantime. A counter that decreases was
//! reset: its value counts as new unless the newest failure is already known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::event::{EventKind, Unread};
use super::reading::StreamFailures;
use super::snapshot::{NewestFailure, TaskFailures};
use super::time::Mono;
use crate::contract::Name;
use crate::contract::failures::{FailureCounts, FailureKind, LastFailure};

/// Seconds during which a failure counts as recent, and after which a streak without failures ends.
pub const WINDOW: f64 = 300.0;
/// Resolution of recent failures, seconds.
const STEP: f64 = 10.0;
/// Earlier than any other time.
const NEVER: f64 = -1e12;
/// Maximum number of streams whose failures are retained although they are no longer polled.
const ABSENT_STREAMS: usize = 10_000;

/// Failures of all streams.
#[derive(Debug, Clone, Default)]
pub struct FailureLog {
    streams: BTreeMap<Name, StreamLog>,
    /// Records of an earlier run for streams that this run has not read yet.
    restored: FailureRecords,
    /// Time of the last reading.
    read_at: Option<Moment>,
    /// Whether the latest reading contained failures.
    known: bool,
    /// Streams with new failures since the previous reading.
    changed: Vec<Name>,
}

/// Current time on two clocks, seconds: the monitor's monotonic clock, on which a restored time may be negative, and
/// Redis' clock.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment {
    mono: f64,
    unix: f64,
}

/// Failures of one stream. Times are seconds on the monitor's clock.
#[derive(Debug, Clone)]
struct StreamLog {
    read_at: f64,
    counts: FailureCounts,
    last: Option<Arc<LastFailure>>,
    /// Newest failure ever read, retained across resets. It distinguishes streaks.
    newest: Option<FailureId>,
    /// A failure before this time continues the streak.
    streak_until: f64,
    /// Recent failures, each with the time until which it counts as recent.
    recent: VecDeque<(f64, u64)>,
}

/// Facts that identify a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FailureId {
    entry: String,
    ts_ms: u64,
}

/// State that survives a restart of the monitor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FailureRecords {
    /// Time of the last reading, Unix seconds.
    pub read_at: Option<f64>,
    /// Records by stream.
    pub streams: BTreeMap<Name, FailureRecord>,
}

/// Stored state of one stream. Times are Unix seconds by Redis' clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailureRecord {
    #[serde(flatten)]
    counts: FailureCounts,
    newest: Option<FailureId>,
    streak_until: f64,
    recent: Vec<(f64, u64)>,
}

/// Start of a streak.
#[derive(Debug, Clone, PartialEq)]
pub struct StreakStart {
    /// Stream of the failed tasks.
    pub stream: Name,
    /// Event to report.
    pub kind: EventKind,
    /// Identity of the streak, equal for every monitor that detects it.
    pub occurrence: String,
}

impl FailureLog {
    /// Restores stored records.
    pub fn restore(&mut self, records: FailureRecords) {
        self.restored = records;
    }

    /// Returns the records that the latest reading changed.
    #[must_use]
    pub fn changed_records(&self) -> FailureRecords {
        self.records_of(self.changed.iter().filter_map(|name| self.streams.get_key_value(name)))
    }

    /// Returns all records.
    #[must_use]
    pub fn records(&self) -> FailureRecords {
        self.records_of(self.streams.iter().filter(|(_, log)| log.has_failed()))
    }

    fn records_of<'a>(&self, logs: impl Iterator<Item = (&'a Name, &'a StreamLog)>) -> FailureRecords {
        let Some(now) = self.read_at else { return FailureRecords::default() };
        let streams = logs.map(|(name, log)| (name.clone(), log.record(now))).collect();
        FailureRecords { read_at: Some(now.unix), streams }
    }

    /// Forgets the failures of `stream`. Its counters stay known, because a reading made before they were deleted may
    /// still arrive.
    pub fn forget(&mut self, stream: &Name) {
        self.restored.streams.remove(stream);
        if let Some(log) = self.streams.get_mut(stream) {
            log.last = None;
            log.streak_until = NEVER;
            log.recent.clear();
        }
    }

    /// Applies a reading made at `now`, which is `ts` by Redis' clock, and returns the streaks that begin.
    pub fn take(&mut self, reading: Option<&BTreeMap<Name, StreamFailures>>, now: Mono, ts: f64) -> Vec<StreakStart> {
        self.known = reading.is_some();
        self.changed.clear();
        let Some(reading) = reading else { return Vec::new() };
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a process' life")]
        let now = Moment { mono: now.0 as f64 / 1000.0, unix: ts };
        self.read_at = Some(now);
        let mut starts = Vec::new();
        for (name, read) in reading {
            let blind = match self.streams.get(name).map(|log| now.mono - log.read_at) {
                Some(unread) if unread > WINDOW => Unread::Seconds(whole(unread)),
                Some(_) => Unread::No,
                None => self.begin(name, now),
            };
            let Some(log) = self.streams.get_mut(name) else { continue };
            let before = log.counts;
            starts.extend(log.take(name, read, blind, now));
            if log.counts != before {
                self.changed.push(name.clone());
            }
        }
        if self.streams.len() > reading.len() {
            let all = self.streams.len() - reading.len() <= ABSENT_STREAMS;
            self.streams.retain(|name, log| reading.contains_key(name) || (all && log.has_failed()));
        }
        starts
    }

    /// Starts tracking a stream that this run has not read before. Returns the time during which no monitor read it.
    fn begin(&mut self, name: &Name, now: Moment) -> Unread {
        let record = self.restored.streams.remove(name).zip(self.restored.read_at);
        let unread = record.as_ref().map_or(Unread::Always, |(_, at)| Unread::Seconds(whole(now.unix - at)));
        let log = record.map(|(record, _)| StreamLog::restored(record, now)).unwrap_or_default();
        self.streams.insert(name.clone(), log);
        unread
    }

    /// Failure counts of `stream`; `None` when unknown.
    #[must_use]
    pub fn status(&self, stream: &Name) -> Option<TaskFailures> {
        let log = self.streams.get(stream)?;
        if !self.known || self.read_at.is_none_or(|now| now.mono > log.read_at) {
            return None;
        }
        Some(TaskFailures {
            counts: log.counts,
            last_5m: log.recent.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count)),
            last: log.last.as_deref().map(NewestFailure::from),
        })
    }
}

impl StreamLog {
    fn has_failed(&self) -> bool {
        !self.counts.is_zero() || self.newest.is_some()
    }

    /// Applies a reading at `now`; `blind` is the time before it in which no monitor read the counters.
    fn take(&mut self, stream: &Name, read: &StreamFailures, blind: Unread, now: Moment) -> Option<StreakStart> {
        let before = self.newest.clone();
        let id = read.last.as_deref().map(FailureId::of);
        let is_newer = match (&id, &before) {
            (Some(id), Some(before)) => id.ts_ms > before.ts_ms,
            _ => true,
        };
        let counts = read.counts_or(self.counts);
        let increase = counts.since(self.counts);
        let added = increase.unwrap_or(if is_newer { counts } else { FailureCounts::default() });
        if increase.is_some() || is_newer {
            self.newest = id.clone().or(self.newest.take());
        }
        (self.read_at, self.counts) = (now.mono, counts);
        self.last.clone_from(&read.last);
        while self.recent.front().is_some_and(|(until, _)| *until <= now.mono) {
            self.recent.pop_front();
        }
        let tasks = added.tasks();
        if tasks == 0 {
            return None;
        }
        // Time of the newest failure, if the worker recorded it.
        let failed_at = read.last.as_deref().map(|last| now.mono - (now.unix - last.ts()).max(0.0));
        let (recently, failed_at) = match (blind, failed_at) {
            (Unread::No, _) => (tasks, now.mono),
            (Unread::Seconds(unread), _) if unread as f64 <= WINDOW => (tasks, now.mono),
            // The times of the other failures are unknown.
            (_, Some(failed_at)) if now.mono < failed_at + WINDOW => (1, failed_at),
            (_, failed_at) => (0, failed_at.unwrap_or(now.mono)),
        };
        let continues = failed_at.min(now.mono) < self.streak_until;
        self.streak_until = self.streak_until.max(failed_at + WINDOW);
        self.count(failed_at + WINDOW, recently);
        if continues {
            return None;
        }
        // The time identifies the first streak; a streak that no monitor observed is identified by its newest failure.
        let occurrence = match before.or(id.filter(|_| blind == Unread::Always)) {
            Some(known) => format!("{} {}", known.entry, known.ts_ms),
            None => format!("{:.0}", (now.unix / WINDOW).floor()),
        };
        let last = read.last.as_deref();
        let kind = EventKind::TaskFailures {
            kind: last.map_or_else(|| most_specific(added), |last| last.kind),
            reason: last.map(|last| last.reason.clone()),
            entry: last.map(|last| last.entry.clone()),
            count: tasks,
            unread: blind,
        };
        Some(StreakStart { stream: stream.clone(), kind, occurrence })
    }

    fn count(&mut self, until: f64, tasks: u64) {
        if tasks == 0 {
            return;
        }
        match self.recent.back_mut() {
            Some((last, count)) if until - *last < STEP => *count = count.saturating_add(tasks),
            _ => self.recent.push_back((until, tasks)),
        }
    }

    fn record(&self, now: Moment) -> FailureRecord {
        let unix = |at: f64| now.unix + (at - now.mono);
        FailureRecord {
            counts: self.counts,
            newest: self.newest.clone(),
            streak_until: unix(self.streak_until),
            recent: self.recent.iter().map(|(until, count)| (unix(*until), *count)).collect(),
        }
    }

    fn restored(record: FailureRecord, now: Moment) -> Self {
        let mono = |unix: f64| now.mono + (unix - now.unix).min(WINDOW);
        Self {
            read_at: now.mono,
            counts: record.counts,
            last: None,
            newest: record.newest,
            streak_until: mono(record.streak_until),
            recent: record.recent.iter().map(|(until, count)| (mono(*until), *count)).collect(),
        }
    }
}

impl Default for StreamLog {
    fn default() -> Self {
        Self {
            read_at: NEVER,
            counts: FailureCounts::default(),
            last: None,
            newest: None,
            streak_until: NEVER,
            recent: VecDeque::new(),
        }
    }
}

impl FailureId {
    fn of(failure: &LastFailure) -> Self {
        Self { entry: failure.entry.clone(), ts_ms: failure.ts_ms }
    }
}

/// Returns the most specific kind: a dead-lettered task may also have been counted as failed or malformed.
fn most_specific(counts: FailureCounts) -> FailureKind {
    let kinds = [FailureKind::Malformed, FailureKind::Failed];
    kinds.into_iter().find(|kind| counts.of(*kind) > 0).unwrap_or(FailureKind::DeadLettered)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn whole(seconds: f64) -> u64 {
    seconds.clamp(0.0, 1e12).round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Redis' clock when the monitor's clock shows 0.
    const EPOCH: f64 = 1_795_456_000.0;

    /// Simulated counters and the monitors that read them.
    #[derive(Clone)]
    struct World {
        second: u64,
        counts: FailureCounts,
        last: Option<LastFailure>,
        entries: u64,
    }

    impl World {
        fn new() -> Self {
            Self { second: 1000, counts: FailureCounts::default(), last: None, entries: 0 }
        }

        fn fail(&mut self, kinds: &[FailureKind]) {
            for kind in kinds {
                match kind {
                    FailureKind::Failed => self.counts.failed += 1,
                    FailureKind::Malformed => self.counts.malformed += 1,
                    FailureKind::DeadLettered => self.counts.dead_lettered += 1,
                }
            }
            self.entries += 1;
            let entry = format!("{}-0", self.entries);
            self.last = Some(LastFailure { kind: kinds[0], reason: "why".to_owned(), entry, ts_ms: self.ts_ms() });
        }

        fn reset(&mut self) {
            (self.counts, self.last) = (FailureCounts::default(), None);
        }

        fn ts(&self) -> f64 {
            EPOCH + self.second as f64
        }

        fn ts_ms(&self) -> u64 {
            self.ts() as u64 * 1000
        }

        fn reading(&self) -> BTreeMap<Name, StreamFailures> {
            let counts = FailureKind::ALL.map(|kind| Some(self.counts.of(kind)));
            [("s".into(), StreamFailures { counts, last: self.last.clone().map(Arc::new) })].into()
        }

        /// Returns the event of one poll, if any; the process that owns `log` started at `started`.
        fn tick(&self, log: &mut FailureLog, started: u64) -> Option<(EventKind, String)> {
            let mut starts = log.take(Some(&self.reading()), Mono((self.second - started) * 1000), self.ts());
            assert!(starts.len() <= 1);
            starts.pop().map(|start| (start.kind, start.occurrence))
        }
    }

    fn count_of(event: Option<(EventKind, String)>) -> Option<(u64, Unread)> {
        event.map(|(kind, _)| match kind {
            EventKind::TaskFailures { count, unread, .. } => (count, unread),
            other => panic!("{other:?}"),
        })
    }

    fn last_5m(log: &FailureLog) -> u64 {
        log.status(&"s".into()).unwrap().last_5m
    }

    impl World {
        /// Polls for `seconds` without any failure.
        fn pass(&mut self, logs: &mut [&mut FailureLog], seconds: u64) {
            let until = self.second + seconds;
            while self.second < until {
                self.second += 3;
                for log in &mut *logs {
                    assert_eq!(self.tick(log, 0), None);
                }
            }
        }
    }

    const FAILED: &[FailureKind] = &[FailureKind::Failed];
    const LETTER: &[FailureKind] = &[FailureKind::Malformed, FailureKind::DeadLettered];

    #[test]
    fn only_the_first_failure_in_five_minutes_is_an_event() {
        let (mut world, mut log) = (World::new(), FailureLog::default());
        assert_eq!(world.tick(&mut log, 0), None);
        world.second += 3;
        world.fail(LETTER);
        let (kind, _) = world.tick(&mut log, 0).unwrap();
        let (reason, entry) = (Some("why".to_owned()), Some("1-0".to_owned()));
        let kind_of_first = FailureKind::Malformed;
        let expected = EventKind::TaskFailures { kind: kind_of_first, reason, entry, count: 1, unread: Unread::No };
        assert_eq!(kind, expected);
        for _ in 0..5 {
            world.second += 299;
            world.fail(FAILED);
            assert_eq!(world.tick(&mut log, 0), None, "the streak goes on");
        }
        assert_eq!(last_5m(&log), 2);
        world.second += 301;
        assert_eq!((world.tick(&mut log, 0), last_5m(&log)), (None, 0));
        world.fail(FAILED);
        world.fail(FAILED);
        world.second += 3;
        assert_eq!(count_of(world.tick(&mut log, 0)), Some((2, Unread::No)));
    }

    #[test]
    fn restart_neither_repeats_a_streak_nor_misses_a_failure() {
        let (mut world, mut log) = (World::new(), FailureLog::default());
        world.tick(&mut log, 0);
        world.fail(FAILED);
        assert!(world.tick(&mut log, 0).is_some());
        let records = log.records();

        // Quick restart: the streak continues, and failures of the meantime count.
        let mut soon = FailureLog::default();
        soon.restore(records.clone());
        let mut early = world.clone();
        early.second += 60;
        early.fail(FAILED);
        assert_eq!((early.tick(&mut soon, early.second - 1), last_5m(&soon)), (None, 2));

        // Restart much later without new failures: no event.
        let mut late = FailureLog::default();
        late.restore(records.clone());
        world.second += 4000;
        assert_eq!((world.tick(&mut late, world.second - 1), last_5m(&late)), (None, 0));

        // Tasks failed meanwhile, the newest a minute ago. The number within the last five minutes is unknown.
        let mut late = FailureLog::default();
        late.restore(records);
        world.second -= 60;
        (0..7).for_each(|_| world.fail(FAILED));
        world.second += 60;
        let event = world.tick(&mut late, world.second - 1);
        assert_eq!((count_of(event), last_5m(&late)), (Some((7, Unread::Seconds(4000))), 1));
        world.second += 241;
        world.tick(&mut late, world.second - 242);
        assert_eq!(last_5m(&late), 0, "a minute old when it was read");
    }

    #[test]
    fn failures_before_the_first_reading_are_reported_once() {
        let (mut world, mut log) = (World::new(), FailureLog::default());
        (0..3).for_each(|_| world.fail(FAILED));
        let first = world.tick(&mut log, 0);
        let (mut other, again) = (FailureLog::default(), world.clone());
        let same = again.tick(&mut other, 0);
        assert_eq!(first, same, "nothing was written down: another run finds the same occurrence");
        assert_eq!(count_of(first), Some((3, Unread::Always)));
        world.second += 3;
        assert_eq!(world.tick(&mut log, 0), None);
    }

    #[test]
    fn decreasing_counter_is_a_reset() {
        let (mut world, mut log) = (World::new(), FailureLog::default());
        (0..500).for_each(|_| world.fail(FAILED));
        world.tick(&mut log, 0);
        let older = world.clone();
        world.pass(&mut [&mut log], 400);
        world.fail(FAILED);
        assert!(world.tick(&mut log, 0).is_some());
        world.reset();
        world.pass(&mut [&mut log], 400);
        assert_eq!(log.status(&"s".into()).unwrap(), TaskFailures::default());
        world.fail(FAILED);
        world.fail(FAILED);
        assert_eq!((count_of(world.tick(&mut log, 0)), last_5m(&log)), (Some((2, Unread::No)), 2));
        // Redis restarts from an older dataset: nothing failed.
        (world.counts, world.last) = (older.counts, older.last);
        log.streams.get_mut(&Name::from("s")).unwrap().counts.failed = 520;
        assert_eq!((world.tick(&mut log, 0), last_5m(&log)), (None, 2));
    }

    #[test]
    fn streak_keys_are_unique_across_resets_and_equal_between_monitors() {
        let (mut world, mut one, mut two) = (World::new(), FailureLog::default(), FailureLog::default());
        let mut keys = Vec::new();
        world.tick(&mut one, 0);
        world.second += 1;
        world.tick(&mut two, 0);
        for round in 0..6 {
            if round % 2 == 1 {
                world.reset();
            }
            world.pass(&mut [&mut one, &mut two], 600);
            world.fail(FAILED);
            let first = world.tick(&mut one, 0).unwrap().1;
            world.second += 1;
            world.fail(FAILED);
            let second = world.tick(&mut two, 0).unwrap().1;
            assert_eq!(first, second, "round {round}");
            world.tick(&mut one, 0);
            keys.push(first);
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 6, "{keys:?}");
    }

    #[test]
    fn late_reading_does_not_restore_forgotten_failures() {
        let (mut world, mut log) = (World::new(), FailureLog::default());
        world.tick(&mut log, 0);
        (0..3).for_each(|_| world.fail(FAILED));
        world.tick(&mut log, 0);
        log.forget(&"s".into());
        assert_eq!((world.tick(&mut log, 0), last_5m(&log)), (None, 0));
        world.reset();
        world.second += 3;
        world.tick(&mut log, 0);
        assert_eq!(log.status(&"s".into()).unwrap(), TaskFailures::default());
        world.fail(FAILED);
        assert!(world.tick(&mut log, 0).is_some(), "its streak was forgotten too");
    }

    #[test]
    fn invalid_value_is_ignored_and_unreadable_hash_is_unknown() {
        let (mut world, mut log) = (World::new(), FailureLog::default());
        (0..5).for_each(|_| world.fail(FAILED));
        world.tick(&mut log, 0);
        let garbage = [("s".into(), StreamFailures { counts: [None; 3], last: None })].into();
        assert_eq!(log.take(Some(&garbage), Mono(1_003_000), world.ts() + 3.0), Vec::new());
        assert_eq!(log.status(&"s".into()).unwrap().counts.failed, 5);
        assert_eq!(log.take(None, Mono(1_006_000), world.ts() + 6.0), Vec::new());
        assert_eq!(log.status(&"s".into()), None);
        world.second += 9;
        assert_eq!(world.tick(&mut log, 0), None);
        assert_eq!(log.status(&"s".into()).unwrap().counts.failed, 5);
        assert_eq!(log.status(&"other".into()), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Fail(usize, bool),
        Ticks(u64),
        Blind(u64),
        Restart(u64),
        Reset,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..4_usize, any::<bool>()).prop_map(|(n, letter)| Step::Fail(n, letter)),
            4 => (1..120_u64).prop_map(Step::Ticks),
            1 => (1..900_u64).prop_map(Step::Blind),
            2 => (1..900_u64).prop_map(Step::Restart),
            1 => Just(Step::Reset),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// For any sequence of steps: each failure with no other reading of failures in the five minutes before
        /// produces an event, nothing else does, all failures are counted, and the recent count never exceeds the
        /// actual one.
        #[test]
        fn no_failure_is_missed_or_repeated(steps in prop::collection::vec(step(), 1..60)) {
            let (mut world, mut log, mut started) = (World::new(), FailureLog::default(), 0);
            world.tick(&mut log, started);
            let mut saved = FailureRecords::default();
            // Times of all failures; number that no reading has shown yet; time of the last reading that showed one.
            let (mut failed, mut unseen, mut seen_at): (Vec<u64>, u64, Option<u64>) = (Vec::new(), 0, None);
            for step in steps {
                let mut ticks = 1;
                match step {
                    Step::Fail(tasks, letter) => {
                        for _ in 0..tasks {
                            world.fail(if letter { LETTER } else { FAILED });
                            failed.push(world.second);
                            unseen += 1;
                        }
                        world.second += 1;
                    }
                    Step::Ticks(n) => ticks = n,
                    Step::Blind(seconds) => {
                        world.second += seconds;
                        continue;
                    }
                    Step::Restart(down) => {
                        world.second += down;
                        started = world.second;
                        log = FailureLog::default();
                        log.restore(saved.clone());
                        continue;
                    }
                    Step::Reset => {
                        if unseen == 0 {
                            world.reset();
                        }
                    }
                }
                for _ in 0..ticks {
                    world.second += 3;
                    let event = count_of(world.tick(&mut log, started));
                    let streak = seen_at.is_some_and(|at| world.second < at + 300);
                    match event {
                        Some((count, _)) => prop_assert!(count == unseen && unseen > 0 && !streak, "{count} {unseen}"),
                        None => prop_assert!(unseen == 0 || seen_at.zip(failed.last()).is_some_and(|(at, newest)| *newest <= at + 300)),
                    }
                    if unseen > 0 {
                        let newest = failed.last().copied().unwrap();
                        // Only the time of the newest of the long-unread failures is known.
                        seen_at = Some(if event.is_some_and(|(_, unread)| unread != Unread::No) { newest } else { world.second });
                    }
                    unseen = 0;
                    let lately = failed.iter().filter(|at| world.second - **at < 600).count() as u64;
                    prop_assert!(last_5m(&log) <= lately, "{} of {lately}", last_5m(&log));
                    if failed.last().is_none_or(|at| world.second - at > 600) {
                        prop_assert_eq!(last_5m(&log), 0);
                    }
                    // As in the monitor; every ten polls all records are stored.
                    let records = log.changed_records();
                    if !records.streams.is_empty() {
                        saved.read_at = records.read_at;
                        saved.streams.extend(records.streams);
                    }
                }
            }
        }
    }
}
