//! State machine of one consumer.
//!
//! ```text
//!                 heartbeat                 late, or absent once
//!  NoHeartbeat ─────────────▶ Alive ⇄ Draining ⇄ Hung ─────────▶ Suspect
//!                               ▲                                  │ still absent at a later good reading
//!                               │ heartbeat again                  ├── its own marker ────▶ Left / LeftWithWork
//!                               │                                  ├── no marker ─────────▶ Lost
//!                               └──────────────────────────────────┴── marker unreadable ─▶ Unobserved
//! ```
//!
//! Only good readings reach the state machine (see [`super::source`]). A consumer whose heartbeat returns is alive
//! again, and can stop again. A marker that arrives after a loss turns the exit into a graceful shutdown. A single
//! heartbeat that arrives after its process's shutdown marker was in flight at exit and is ignored.
//!
//! Every undecided state ends, because each good reading either finds the heartbeat or brings the decision closer.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::reading::{Beat, BeatReading, MarkerReading};
use super::time::Mono;
use crate::contract::{Heartbeat, ShutdownMarker, heartbeat, marker};

/// State of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    /// Member of a group that never wrote a heartbeat; its presence is unknown.
    NoHeartbeat,
    /// Its heartbeat is current.
    Alive,
    /// Alive and shutting down: takes no new tasks.
    Draining,
    /// Alive with pending messages and no progress for longer than the threshold of its stream.
    Hung,
    /// The value of its heartbeat key is invalid.
    Unreadable,
    /// Its heartbeat is late or just expired; not decided yet.
    Suspect,
    /// Shut down gracefully.
    Left,
    /// Shut down gracefully with pending messages.
    LeftWithWork,
    /// Its heartbeat expired without a shutdown marker: a crash.
    Lost,
    /// Stopped while no monitor was running; the cause is unknown.
    Unobserved,
}

impl ConsumerState {
    /// Whether the consumer has stopped and the state says how.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Left | Self::LeftWithWork | Self::Lost | Self::Unobserved)
    }

    /// Whether its heartbeat exists and is being rewritten.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Draining | Self::Hung)
    }
}

/// Age at which a heartbeat is late: one rewrite was missed.
pub const LATE_AFTER: Duration = Duration::from_secs(8);
/// Two missed heartbeats by the monitor's own clock are needed before absence counts. A key can disappear earlier,
/// through a step of Redis' clock or through eviction, and returns with the next heartbeat.
const ABSENT_AFTER: Duration = heartbeat::INTERVAL.saturating_mul(2);
/// Age at which an unchanged heartbeat no longer belongs to a live process: Redis' clock was set back, or the key has
/// no TTL.
const FROZEN_AFTER: Duration = marker::TTL;
/// Maximum time between the readings of a consumer's idle time and of its marker, which may expire in between.
const MARKER_READ_WITHIN: Duration = heartbeat::INTERVAL;
/// Number of rewrites after a marker that prove that another process wrote the marker.
const REWRITES_OF_A_LIVING_PROCESS: u8 = 2;

/// A consumer as tracked between readings.
#[derive(Debug, Clone, PartialEq)]
pub struct Consumer {
    /// Decided state.
    pub state: ConsumerState,
    /// Time of the last state change.
    pub since: Mono,
    /// Time of the last state change by Redis' clock, Unix seconds.
    pub since_unix: f64,
    /// Last valid heartbeat.
    pub heartbeat: Option<Arc<Heartbeat>>,
    /// Reason why the value of its heartbeat key is invalid; `None` when it is valid.
    pub unreadable: Option<Box<str>>,
    /// Latest figures of its groups; `None` when no group lists the consumer.
    pub work: Option<Work>,
    /// Start of its presence by Redis' clock, Unix seconds.
    pub present_since: f64,
    /// A heartbeat was read since its last exit. Only such a consumer can be lost.
    was_alive: bool,
    /// Process and last heartbeat from the stored record, until a heartbeat is read.
    recorded: Option<Box<Recorded>>,
    /// Last heartbeat before it returned, by its own clock. Distinguishes its presences.
    returned_after: Option<f64>,
    /// Last time its heartbeat existed, also by Redis' clock (Unix seconds).
    seen: (Mono, f64),
    /// Last time its heartbeat changed.
    rewritten_at: Mono,
    /// Last time its progress counter changed.
    progressed_at: Mono,
    /// Newest marker read.
    marker: Option<Marker>,
    /// Consecutive good readings without its heartbeat.
    absences: u32,
    /// The heartbeat was late before it disappeared, so the first absence is already the second sign.
    was_late: bool,
    /// Time up to which it is known to have left no marker.
    no_marker_until: (Mono, f64),
    /// A marker may have expired unread.
    overlooked: bool,
    /// It disappeared without a marker while absence counted, so a later gap in the readings changes nothing.
    vanished: bool,
    /// Identity of the reported hang that has not ended, equal for every observer.
    hang: Option<Box<str>>,
}

/// Stored facts that identify a consumer after a restart of the monitor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recorded {
    /// [`Heartbeat::process`].
    pub process: Option<Box<str>>,
    /// Last heartbeat, by the consumer's own clock.
    pub last_seen: Option<f64>,
}

impl Recorded {
    /// Whether the marker is that of the process, or of one that started after the record was written. The marker of
    /// an earlier process may still exist.
    fn may_have_left(&self, marker: &ShutdownMarker) -> bool {
        self.process.as_ref().is_none_or(|process| marker.is_of_process(process))
            || self.last_seen.is_none_or(|last_seen| marker.ts >= last_seen)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Marker {
    marker: Box<ShutdownMarker>,
    /// Written by the tracked process, not by an earlier one of the same name.
    own: bool,
    /// Number of different heartbeats since the marker was read.
    rewrites: u8,
    /// Number of readings that found the marker.
    readings: u8,
}

/// Figures of a consumer, summed over the groups of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Entries delivered and not acknowledged, without phantom IDs.
    pub pending: u64,
    /// Pending IDs whose entry no longer exists in the stream.
    pub phantom_pending: u64,
    /// Milliseconds since its last command.
    pub idle_ms: u64,
    /// Milliseconds since it last received an entry, where Redis reports it.
    pub inactive_ms: Option<u64>,
}

/// Everything that one good reading contains about one consumer.
#[derive(Debug)]
pub struct Observation<'a> {
    /// Its heartbeat and marker keys.
    pub keys: &'a BeatReading,
    /// Figures of its groups.
    pub work: Option<Work>,
    /// Time of the reading.
    pub now: Mono,
    /// Time of the reading by Redis' clock, Unix seconds.
    pub now_unix: f64,
    /// Time before which absence is ignored, because Redis itself was unreachable.
    pub absence_counts_from: Mono,
    /// Hung threshold of the stream: no progress for longer counts as hung.
    pub floor: Duration,
    /// Gap between readings in which a marker may have been written and expired; see [`super::source::marker_gap`].
    pub marker_gap: Duration,
}

impl Consumer {
    /// Returns a consumer on its first reading; pass that reading to [`Consumer::see`].
    #[must_use]
    pub fn new(now: Mono, now_unix: f64) -> Self {
        Self {
            state: ConsumerState::NoHeartbeat,
            since: now,
            since_unix: now_unix,
            heartbeat: None,
            unreadable: None,
            work: None,
            present_since: now_unix,
            was_alive: false,
            recorded: None,
            returned_after: None,
            seen: (now, now_unix),
            rewritten_at: now,
            progressed_at: now,
            marker: None,
            absences: 0,
            was_late: false,
            no_marker_until: (now, now_unix),
            overlooked: false,
            vanished: false,
            hang: None,
        }
    }

    /// Restores a consumer from the stored record: present, or stopped according to `state`. Its heartbeat last existed
    /// at `seen_unix`, by Redis' clock.
    #[must_use]
    pub fn restored(state: ConsumerState, now: Mono, since_unix: f64, seen_unix: f64) -> Self {
        Self {
            state,
            was_alive: !state.is_gone(),
            seen: (now, seen_unix),
            no_marker_until: (now, seen_unix),
            ..Self::new(now, since_unix)
        }
    }

    /// Adds the stored facts that identify the consumer.
    #[must_use]
    pub fn recognized_by(mut self, recorded: Recorded, returned_after: Option<f64>) -> Self {
        self.returned_after = returned_after;
        self.recorded = Some(Box::new(recorded));
        self
    }

    /// Returns the facts by which the next monitor process identifies the consumer.
    #[must_use]
    pub fn recorded(&self) -> (Recorded, Option<f64>) {
        (Recorded { process: self.process(), last_seen: self.last_seen() }, self.returned_after)
    }

    /// Last time its heartbeat existed, by Redis' clock, Unix seconds.
    #[must_use]
    pub fn seen_unix(&self) -> f64 {
        self.seen.1
    }

    /// Last time its heartbeat changed.
    #[must_use]
    pub fn rewritten_at(&self) -> Mono {
        self.rewritten_at
    }

    /// Identifies one presence of one process by facts that every observer reads: the process, and its last heartbeat
    /// before it returned.
    #[must_use]
    pub fn presence(&self) -> String {
        let process = self.process().unwrap_or_default();
        match self.returned_after {
            Some(last_seen) => format!("{process}+{last_seen}"),
            None if process.is_empty() => format!("since {}", self.present_since),
            None => process.into(),
        }
    }

    /// Start of this presence by the consumer's own clock, Unix seconds. Orders presences equally for every observer.
    #[must_use]
    pub fn began(&self) -> f64 {
        let beat = self.heartbeat.as_ref();
        beat.map_or(0.0, |beat| if self.returned_after.is_some() { beat.last_seen } else { beat.started_at })
    }

    /// Start of its process by the consumer's own clock, Unix seconds.
    #[must_use]
    pub fn started_at(&self) -> Option<f64> {
        self.heartbeat.as_ref().map(|beat| beat.started_at)
    }

    /// Identity of the reported hang that has not ended.
    #[must_use]
    pub fn hang(&self) -> Option<&str> {
        self.hang.as_deref()
    }

    /// Records that a hang was reported (`Some`) or has ended (`None`).
    pub fn set_hang(&mut self, hang: Option<Box<str>>) {
        self.hang = hang;
    }

    fn process(&self) -> Option<Box<str>> {
        match &self.heartbeat {
            Some(beat) => Some(beat.process()),
            None => self.recorded.as_ref().and_then(|recorded| recorded.process.clone()),
        }
    }

    fn last_seen(&self) -> Option<f64> {
        let recorded = self.recorded.as_ref().and_then(|recorded| recorded.last_seen);
        self.heartbeat.as_ref().map(|beat| beat.last_seen).or(recorded)
    }

    /// Whether it counts as running: alive, or its exit is not decided yet.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.was_alive && !self.state.is_gone()
    }

    /// Whether `beat` belongs to the known process. Records of the older monitor contain no process and match any.
    fn is_same_process(&self, beat: &Heartbeat) -> bool {
        match (&self.heartbeat, &self.recorded) {
            (Some(last), _) => last.same_incarnation(beat),
            (None, Some(recorded)) => recorded.process.as_ref().is_none_or(|process| *process == beat.process()),
            (None, None) => false,
        }
    }

    /// Applies a good reading and returns the previous state.
    pub fn see(&mut self, sighting: &Observation<'_>) -> ConsumerState {
        let before = self.state;
        let was_present = self.is_present();
        self.unreadable = None;
        let next = match &sighting.keys.beat {
            Beat::Present(beat) => self.see_heartbeat(beat, sighting),
            Beat::Unreadable(reason) => {
                self.unreadable = Some(reason.clone());
                // A graceful shutdown would have deleted the key.
                self.no_marker_until = (sighting.now, sighting.now_unix);
                ConsumerState::Unreadable
            }
            Beat::Absent => self.see_absence(sighting),
        };
        self.work = sighting.work;
        if next != before {
            self.state = next;
            self.since = sighting.now;
            self.since_unix = sighting.now_unix;
        }
        if !was_present && self.is_present() {
            self.present_since = sighting.now_unix;
        }
        before
    }

    fn see_heartbeat(&mut self, beat: &Arc<Heartbeat>, sighting: &Observation<'_>) -> ConsumerState {
        let now = sighting.now;
        let last = self.heartbeat.as_ref();
        let is_shared = last.is_some_and(|last| Arc::ptr_eq(last, beat));
        let same_process = is_shared || self.is_same_process(beat);
        let rewritten = !is_shared && last != Some(beat);
        let before_it_went = self.last_seen();
        match (&sighting.keys.marker, &mut self.marker) {
            (MarkerReading::Present(marker), _) if last.is_none() || !same_process => {
                self.marker =
                    Some(Marker { own: marker.is_of(beat), rewrites: 0, readings: 0, marker: marker.clone() });
            }
            (_, marker) if !same_process => *marker = None,
            (_, Some(marker)) if rewritten => marker.rewrites = marker.rewrites.saturating_add(1),
            _ => {}
        }
        let progressed = !same_process || self.heartbeat.as_ref().is_none_or(|last| last.progress != beat.progress);
        self.heartbeat = Some(Arc::clone(beat));
        self.recorded = None;
        if rewritten {
            self.rewritten_at = now;
        }
        let was_gone = self.state.is_gone();
        let exit = self.marker.as_ref().filter(|m| m.own && m.rewrites < REWRITES_OF_A_LIVING_PROCESS);
        // Markers of the Python workers do not contain the remaining work; use the pending count instead.
        let pending = sighting.work.map_or(0, |work| work.pending);
        let exit = exit.map(|m| match m.marker.in_flight.map_or(pending, u64::from) {
            0 => ConsumerState::Left,
            _ => ConsumerState::LeftWithWork,
        });
        match exit {
            _ if was_gone && same_process && (exit.is_some() || !rewritten) => return self.state,
            Some(how) => return self.go(how),
            None => {}
        }
        if !same_process {
            self.returned_after = None;
        } else if was_gone {
            self.returned_after = before_it_went;
        }
        if progressed || tasks_running(beat, sighting.work) == 0 {
            self.progressed_at = now;
        }
        self.was_alive = true;
        self.seen = (now, sighting.now_unix);
        self.no_marker_until = self.seen;
        (self.overlooked, self.vanished) = (false, false);
        self.absences = 0;
        let silent_for = now.since(self.rewritten_at.max(sighting.absence_counts_from));
        self.was_late = silent_for >= LATE_AFTER;
        if silent_for >= FROZEN_AFTER {
            self.go(ConsumerState::Lost)
        } else if self.was_late && now >= sighting.absence_counts_from {
            ConsumerState::Suspect
        } else if self.is_hung(beat, sighting) {
            ConsumerState::Hung
        } else if beat.draining {
            ConsumerState::Draining
        } else {
            ConsumerState::Alive
        }
    }

    /// Whether it has pending work and shows no progress. Progress is the worker's own counter where it has one,
    /// otherwise the time since its last Redis command.
    fn is_hung(&self, beat: &Heartbeat, sighting: &Observation<'_>) -> bool {
        let Some(work) = sighting.work.filter(|_| tasks_running(beat, sighting.work) > 0) else { return false };
        let still = if beat.progress.is_some() {
            sighting.now.since(self.progressed_at)
        } else {
            Duration::from_millis(work.inactive_ms.unwrap_or(work.idle_ms))
        };
        still > sighting.floor
    }

    /// Time without progress while work was pending.
    #[must_use]
    pub fn still_for(&self, now: Mono) -> Duration {
        match (&self.heartbeat, self.work) {
            (Some(beat), _) if beat.progress.is_some() => now.since(self.progressed_at),
            (_, Some(work)) => Duration::from_millis(work.inactive_ms.unwrap_or(work.idle_ms)),
            _ => Duration::ZERO,
        }
    }

    fn see_absence(&mut self, sighting: &Observation<'_>) -> ConsumerState {
        let is_lost = matches!(self.state, ConsumerState::Lost | ConsumerState::Unobserved);
        if self.state.is_gone() && !is_lost {
            return self.state;
        }
        if !self.was_alive && !is_lost {
            return ConsumerState::NoHeartbeat;
        }
        let exit = match &sighting.keys.marker {
            MarkerReading::Present(marker) => self.is_own(marker).then(|| marker.as_ref().clone()),
            // The marker that was read before may have expired since.
            MarkerReading::Absent | MarkerReading::NotRead => self.marker_read_before(),
        };
        if let Some(marker) = exit {
            return match self.exit_by_marker(&marker, sighting.work) {
                Some(how) => self.go(how),
                None if is_lost => self.state,
                None => ConsumerState::Suspect,
            };
        }
        if is_lost {
            return self.state;
        }
        let counts = sighting.now >= sighting.absence_counts_from;
        self.look_for_gap(sighting, counts);
        if !counts {
            // The consumer keeps its state while absence is ignored.
            self.absences = 0;
            return self.state;
        }
        self.absences = self.absences.saturating_add(1);
        let is_silent = sighting.now.since(self.rewritten_at) >= ABSENT_AFTER;
        let marker_known = self.vanished || self.overlooked;
        if marker_known && is_silent && (self.absences >= 2 || self.was_late) {
            self.go(if self.overlooked { ConsumerState::Unobserved } else { ConsumerState::Lost })
        } else {
            ConsumerState::Suspect
        }
    }

    /// Records a gap in which no marker was read: a marker that was written in a gap longer than its TTL went unread.
    fn look_for_gap(&mut self, sighting: &Observation<'_>, counts: bool) {
        if self.vanished {
            return;
        }
        let (now, now_unix) = (sighting.now, sighting.now_unix);
        let (at, at_unix) = self.no_marker_until;
        let by_redis = now_unix - at_unix;
        // A clock that was set back does not measure the gap.
        let by_redis = if by_redis < -1.0 {
            Duration::MAX
        } else {
            Duration::try_from_secs_f64(by_redis.max(0.0)).unwrap_or(Duration::MAX)
        };
        let gap = now.since(at).max(by_redis);
        let idle = sighting.work.map(|work| Duration::from_millis(work.idle_ms));
        self.overlooked |= match idle.filter(|idle| *idle <= gap) {
            // It was alive at its last Redis command, so a marker can only have been written after that.
            Some(idle) => idle > marker::TTL.saturating_sub(MARKER_READ_WITHIN),
            None => gap > sighting.marker_gap,
        };
        if sighting.keys.marker != MarkerReading::NotRead {
            self.no_marker_until = (now, now_unix);
            self.vanished = counts;
        }
    }

    /// Whether a marker without a heartbeat belongs to the tracked process. A marker of an earlier process of the same
    /// name may still exist.
    fn is_own(&self, marker: &ShutdownMarker) -> bool {
        let incarnation = self.heartbeat.as_ref().and_then(|beat| beat.incarnation.as_deref());
        match (&self.marker, &marker.incarnation, incarnation) {
            (_, Some(left), Some(alive)) => left == alive,
            (Some(known), ..) if *known.marker == *marker => known.own && known.rewrites < REWRITES_OF_A_LIVING_PROCESS,
            _ => self.recorded.as_ref().is_none_or(|recorded| recorded.may_have_left(marker)),
        }
    }

    /// Its own marker, if that was read after its heartbeat had disappeared.
    fn marker_read_before(&self) -> Option<ShutdownMarker> {
        let known = self.marker.as_ref().filter(|known| known.readings > 0)?;
        self.is_own(&known.marker).then(|| known.marker.as_ref().clone())
    }

    /// Returns the state of a consumer that left its own marker; `None` when one more reading is needed.
    fn exit_by_marker(&mut self, marker: &ShutdownMarker, work: Option<Work>) -> Option<ConsumerState> {
        match &mut self.marker {
            Some(known) if *known.marker == *marker => known.readings = known.readings.saturating_add(1),
            known => *known = Some(Marker { marker: Box::new(marker.clone()), own: true, rewrites: 0, readings: 1 }),
        }
        let readings = self.marker.as_ref().map_or(0, |known| known.readings);
        match marker.in_flight {
            Some(0) => Some(ConsumerState::Left),
            Some(_) => Some(ConsumerState::LeftWithWork),
            None if work.is_none_or(|work| work.pending == 0) => Some(ConsumerState::Left),
            // The stream was read before the marker, so the entries that were pending then may be done by now.
            None => (readings >= 2).then_some(ConsumerState::LeftWithWork),
        }
    }

    fn go(&mut self, how: ConsumerState) -> ConsumerState {
        self.was_alive = false;
        self.was_late = false;
        how
    }
}

/// Number of pending entries that the consumer is working on, without those that wait for a retry delay.
fn tasks_running(beat: &Heartbeat, work: Option<Work>) -> u64 {
    let pending = work.map_or(0, |work| work.pending);
    pending.saturating_sub(u64::from(beat.waiting.unwrap_or(0)))
}

/// Time after a recovery until absence counts: every live worker has rewritten its heartbeat by then.
pub const SETTLING: Duration = heartbeat::TTL;
