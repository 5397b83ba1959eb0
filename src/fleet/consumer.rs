//! One consumer's life as a state machine.
//!
//! ```text
//!                 heartbeat                 late, or gone once
//!  NoHeartbeat ─────────────▶ Alive ⇄ Draining ⇄ Hung ─────────▶ Suspect
//!                               ▲                                  │ still gone at a later good reading
//!                               │ heartbeat again                  ├── its own marker ────▶ Left / LeftWithWork
//!                               │                                  ├── none ──────────────▶ Lost
//!                               └──────────────────────────────────┴── nobody could see ──▶ Unobserved
//! ```
//!
//! Only good readings get here (see [`super::source`]). A consumer whose heartbeat returns is alive again, and
//! can go again; a marker that a lost consumer leaves later still makes its exit a graceful one. A heartbeat that
//! arrives once after its process's marker was in flight at the exit and means nothing.
//!
//! Every undecided state ends: each good reading either sees the heartbeat, or brings the decision closer.

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
    /// It is gone, and how it went is decided.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Left | Self::LeftWithWork | Self::Lost | Self::Unobserved)
    }

    /// Its heartbeat is there and being rewritten.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Draining | Self::Hung)
    }
}

/// A heartbeat that was not rewritten for this long is late: one rewrite was missed.
pub const LATE_AFTER: Duration = Duration::from_secs(8);
/// Absence is a sign only if by the monitor's own clock two heartbeats are missing: a key can be gone earlier, by a
/// step of Redis' clock or by eviction, and comes back with the next heartbeat.
const ABSENT_AFTER: Duration = heartbeat::INTERVAL.saturating_mul(2);
/// A heartbeat that stands unchanged for so long belongs to nobody: Redis' clock was set back, or the key has no TTL.
const FROZEN_AFTER: Duration = marker::TTL;
/// A process that rewrites its heartbeat so often after a marker is not the one that left it.
const REWRITES_OF_A_LIVING_PROCESS: u8 = 2;

/// One consumer as the tracker keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Consumer {
    /// The decided state.
    pub state: ConsumerState,
    /// When it took that state.
    pub since: Mono,
    /// The same by Redis' clock, Unix seconds.
    pub since_unix: f64,
    /// Its last good heartbeat.
    pub heartbeat: Option<Arc<Heartbeat>>,
    /// Why what stands under its key cannot be read, while that is so.
    pub unreadable: Option<Box<str>>,
    /// What its groups last said of it; `None` when no group lists it.
    pub work: Option<Work>,
    /// Since when it counts as present, by Redis' clock, Unix seconds.
    pub present_since: f64,
    /// The heartbeat was seen alive since it last went: only such a consumer can be lost.
    was_alive: bool,
    /// Its process and last heartbeat as the record has them, until a heartbeat is seen.
    recorded: Option<Box<Recorded>>,
    /// The last heartbeat before it returned, by its own clock: tells its presences apart.
    returned_after: Option<f64>,
    /// When its heartbeat was last there, and the same by Redis' clock (Unix seconds).
    seen: (Mono, f64),
    /// When its heartbeat was last seen to change.
    rewritten_at: Mono,
    /// When its progress counter was last seen to change.
    progressed_at: Mono,
    /// The newest marker read.
    marker: Option<Marker>,
    /// Good readings in a row without its heartbeat.
    absences: u32,
    /// It was late before it was gone, so the first absence is the second sign.
    was_late: bool,
    /// Until when it is known that it left no marker.
    no_marker_until: (Mono, f64),
    /// A marker may have expired unread.
    overlooked: bool,
    /// It was gone without a marker when absence counted: what is not seen later changes nothing.
    vanished: bool,
    /// The hang that was reported and has not ended: the same for every observer.
    hang: Option<Box<str>>,
}

/// What the record keeps to recognize a consumer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recorded {
    /// [`Heartbeat::process`].
    pub process: Option<Box<str>>,
    /// Its last heartbeat, by its own clock.
    pub last_seen: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Marker {
    marker: Box<ShutdownMarker>,
    /// Left by the process that is watched, not by an earlier one of that name.
    own: bool,
    /// Different heartbeats seen since it was read.
    rewrites: u8,
    /// Readings that found it.
    readings: u8,
}

/// What a stream's groups say of a consumer, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Entries delivered to it and not acknowledged, without phantom ones: those it can work on.
    pub pending: u64,
    /// Pending IDs whose entry is no longer in the stream.
    pub phantom_pending: u64,
    /// Milliseconds since it last asked for anything.
    pub idle_ms: u64,
    /// Milliseconds since it last got anything, where Redis says so.
    pub inactive_ms: Option<u64>,
}

/// What one good reading says of one consumer.
#[derive(Debug)]
pub struct Sighting<'a> {
    /// Its keys.
    pub keys: &'a BeatReading,
    /// Its groups' view.
    pub work: Option<Work>,
    /// When the reading was made.
    pub now: Mono,
    /// The same by Redis' clock, Unix seconds.
    pub now_unix: f64,
    /// Until this moment absence means nothing, since Redis itself was away.
    pub absence_counts_from: Mono,
    /// The stream's reclaim floor: no progress for longer is hung.
    pub floor: Duration,
    /// After so long without a reading a marker may have come and expired; see [`super::source::marker_gap`].
    pub marker_gap: Duration,
}

impl Consumer {
    /// A consumer seen for the first time; [`Consumer::see`] it next.
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

    /// A consumer as it was when the monitor last wrote it down: present, or gone as `state` says. Its heartbeat was
    /// last there at `seen_unix`, by Redis' clock.
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

    /// The same, recognized by what the record has of it.
    #[must_use]
    pub fn recognized_by(mut self, recorded: Recorded, returned_after: Option<f64>) -> Self {
        self.returned_after = returned_after;
        self.recorded = Some(Box::new(recorded));
        self
    }

    /// What the next monitor recognizes it by.
    #[must_use]
    pub fn recorded(&self) -> (Recorded, Option<f64>) {
        (Recorded { process: self.process(), last_seen: self.last_seen() }, self.returned_after)
    }

    /// When its heartbeat was last there, by Redis' clock, Unix seconds.
    #[must_use]
    pub fn seen_unix(&self) -> f64 {
        self.seen.1
    }

    /// When its heartbeat was last seen to change.
    #[must_use]
    pub fn rewritten_at(&self) -> Mono {
        self.rewritten_at
    }

    /// Identifies one presence of one process, from facts that every observer reads: the process, and its last
    /// heartbeat before it returned.
    #[must_use]
    pub fn presence(&self) -> String {
        let process = self.process().unwrap_or_default();
        match self.returned_after {
            Some(last_seen) => format!("{process}+{last_seen}"),
            None if process.is_empty() => format!("since {}", self.present_since),
            None => process.into(),
        }
    }

    /// When this presence began, by its own clock, Unix seconds: orders presences for every observer alike.
    #[must_use]
    pub fn began(&self) -> f64 {
        let beat = self.heartbeat.as_ref();
        beat.map_or(0.0, |beat| if self.returned_after.is_some() { beat.last_seen } else { beat.started_at })
    }

    /// The hang that was reported and has not ended.
    #[must_use]
    pub fn hang(&self) -> Option<&str> {
        self.hang.as_deref()
    }

    /// Takes note that a hang was reported (`Some`) or has ended.
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

    /// Counted as one of its type's consumers: alive, or not decided to be gone yet.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.was_alive && !self.state.is_gone()
    }

    /// Whether `beat` is of the process known before; a record of the older monitor names none.
    fn is_same_process(&self, beat: &Heartbeat) -> bool {
        match (&self.heartbeat, &self.recorded) {
            (Some(last), _) => last.same_incarnation(beat),
            (None, Some(recorded)) => recorded.process.as_ref().is_none_or(|process| *process == beat.process()),
            (None, None) => false,
        }
    }

    /// Takes in a good reading and answers with the state before it.
    pub fn see(&mut self, sighting: &Sighting<'_>) -> ConsumerState {
        let before = self.state;
        let was_present = self.is_present();
        self.unreadable = None;
        let next = match &sighting.keys.beat {
            Beat::Present(beat) => self.see_heartbeat(beat, sighting),
            Beat::Unreadable(reason) => {
                self.unreadable = Some(reason.clone());
                // A graceful exit would have deleted the key.
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

    fn see_heartbeat(&mut self, beat: &Arc<Heartbeat>, sighting: &Sighting<'_>) -> ConsumerState {
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
        // A marker that does not say how much was left (Python's): what is pending then.
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

    /// Work pending and no sign of progress: by its own counter where it keeps one, else by how
    /// long it has not asked Redis for anything.
    fn is_hung(&self, beat: &Heartbeat, sighting: &Sighting<'_>) -> bool {
        let Some(work) = sighting.work.filter(|_| tasks_running(beat, sighting.work) > 0) else { return false };
        let still = if beat.progress.is_some() {
            sighting.now.since(self.progressed_at)
        } else {
            Duration::from_millis(work.inactive_ms.unwrap_or(work.idle_ms))
        };
        still > sighting.floor
    }

    /// How long it has made no progress with work pending, seconds.
    #[must_use]
    pub fn still_for(&self, now: Mono) -> Duration {
        match (&self.heartbeat, self.work) {
            (Some(beat), _) if beat.progress.is_some() => now.since(self.progressed_at),
            (_, Some(work)) => Duration::from_millis(work.inactive_ms.unwrap_or(work.idle_ms)),
            _ => Duration::ZERO,
        }
    }

    fn see_absence(&mut self, sighting: &Sighting<'_>) -> ConsumerState {
        let is_lost = matches!(self.state, ConsumerState::Lost | ConsumerState::Unobserved);
        if self.state.is_gone() && !is_lost {
            return self.state;
        }
        if !self.was_alive && !is_lost {
            return ConsumerState::NoHeartbeat;
        }
        if let MarkerReading::Present(marker) = &sighting.keys.marker
            && self.is_own(marker)
        {
            return match self.exit_by_marker(marker, sighting.work) {
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
            // While absence means nothing a consumer stays what it was.
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

    /// Notes how long no marker was looked for: one that came in a longer gap than its life was not seen.
    fn look_for_gap(&mut self, sighting: &Sighting<'_>, counts: bool) {
        if self.vanished {
            return;
        }
        let (now, now_unix) = (sighting.now, sighting.now_unix);
        let (at, at_unix) = self.no_marker_until;
        let by_redis = now_unix - at_unix;
        // A clock that went back says nothing of how long it was.
        let by_redis = if by_redis < -1.0 {
            Duration::MAX
        } else {
            Duration::try_from_secs_f64(by_redis.max(0.0)).unwrap_or(Duration::MAX)
        };
        let gap = now.since(at).max(by_redis);
        let idle = sighting.work.map(|work| Duration::from_millis(work.idle_ms));
        self.overlooked |= match idle.filter(|idle| *idle <= gap) {
            // It was alive when it last asked Redis for anything: a marker came after that.
            Some(idle) => idle > marker::TTL,
            None => gap > sighting.marker_gap,
        };
        if sighting.keys.marker != MarkerReading::NotRead {
            self.no_marker_until = (now, now_unix);
            self.vanished = counts;
        }
    }

    /// Whether a marker found beside no heartbeat was left by the process last seen.
    fn is_own(&self, marker: &ShutdownMarker) -> bool {
        let incarnation = self.heartbeat.as_ref().and_then(|beat| beat.incarnation.as_deref());
        match (&self.marker, &marker.incarnation, incarnation) {
            (_, Some(left), Some(alive)) => left == alive,
            (Some(known), ..) if *known.marker == *marker => known.own && known.rewrites < REWRITES_OF_A_LIVING_PROCESS,
            _ => true,
        }
    }

    /// How a consumer went that left its own marker; `None` when one more reading has to tell.
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
            // The stream was read before the marker: what was pending then may be done by now.
            None => (readings >= 2).then_some(ConsumerState::LeftWithWork),
        }
    }

    fn go(&mut self, how: ConsumerState) -> ConsumerState {
        self.was_alive = false;
        self.was_late = false;
        how
    }
}

/// Entries pending on a consumer that it works on: those that wait for a retry delay are not.
fn tasks_running(beat: &Heartbeat, work: Option<Work>) -> u64 {
    let pending = work.map_or(0, |work| work.pending);
    pending.saturating_sub(u64::from(beat.waiting.unwrap_or(0)))
}

/// How long after a source is good again absence starts to count: every living worker has
/// rewritten its heartbeat by then.
pub const SETTLING: Duration = heartbeat::TTL;
