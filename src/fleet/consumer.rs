//! One consumer's life as a state machine.
//!
//! ```text
//!                 heartbeat                 late, or gone once
//!  NoHeartbeat ─────────────▶ Alive ⇄ Draining ⇄ Hung ─────────▶ Suspect
//!                               ▲                                  │ still gone at the next good reading
//!                               │ heartbeat again                  ├── its own new marker ──▶ Left / LeftWithWork
//!                               └──────────────────────────────────┴── none ─────────────▶ Lost
//! ```
//!
//! Only good readings get here (see [`super::source`]). A marker counts only if it was not there
//! already when this process of the consumer was first seen: no clocks are compared.
//! A consumer whose heartbeat returns after it was gone is alive again, and can go again.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::reading::{Beat, BeatReading, MarkerReading};
use super::time::Mono;
use crate::contract::{Heartbeat, ShutdownMarker, heartbeat};

/// What is known of one consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    /// Its group lists it; it never wrote a heartbeat, so nothing is concluded from silence.
    NoHeartbeat,
    /// Its heartbeat is being rewritten.
    Alive,
    /// Alive and leaving: it takes no new work.
    Draining,
    /// Alive with work pending and no progress for longer than its stream's floor.
    Hung,
    /// Something stands under its heartbeat key that cannot be read.
    Unreadable,
    /// Its heartbeat is late or just gone; one more good reading decides.
    Suspect,
    /// It said goodbye.
    Left,
    /// It said goodbye and left entries pending.
    LeftWithWork,
    /// It vanished without a goodbye: a crash.
    Lost,
}

impl ConsumerState {
    /// It is gone, and how it went is decided.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Left | Self::LeftWithWork | Self::Lost)
    }

    /// Its heartbeat is there and being rewritten.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Draining | Self::Hung)
    }
}

/// A heartbeat that was not rewritten for this long is late: one rewrite was missed.
pub const LATE_AFTER: Duration = Duration::from_secs(8);

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
    /// When its heartbeat was last seen to change.
    rewritten_at: Mono,
    /// When its progress counter was last seen to change.
    progressed_at: Mono,
    /// A marker that lay there when this process was first seen: an earlier one's.
    earlier_marker: Option<Box<ShutdownMarker>>,
    /// Good readings in a row without its heartbeat.
    absences: u32,
    /// It was late before it was gone, so the first absence is the second sign.
    was_late: bool,
}

/// What a stream's groups say of a consumer, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Entries delivered to it and not acknowledged.
    pub pending: u64,
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
            rewritten_at: now,
            progressed_at: now,
            earlier_marker: None,
            absences: 0,
            was_late: false,
        }
    }

    /// A consumer that was alive when the monitor last wrote its state down.
    #[must_use]
    pub fn restored(now: Mono, since_unix: f64) -> Self {
        Self { state: ConsumerState::Alive, was_alive: true, ..Self::new(now, since_unix) }
    }

    /// Counted as one of its type's consumers: alive, or not decided to be gone yet.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.was_alive && !self.state.is_gone()
    }

    fn is_new_process(&self, beat: &Heartbeat) -> bool {
        self.state.is_gone() || self.heartbeat.as_ref().is_none_or(|last| !last.same_incarnation(beat))
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
        if self.is_new_process(beat) {
            self.earlier_marker = match &sighting.keys.marker {
                MarkerReading::Present(marker) => Some(marker.clone()),
                MarkerReading::Absent | MarkerReading::NotRead => None,
            };
            self.progressed_at = now;
        }
        let last = self.heartbeat.replace(Arc::clone(beat));
        if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, beat) || last == beat) {
            self.rewritten_at = now;
        }
        let no_work = sighting.work.is_none_or(|work| work.pending == 0);
        if no_work || last.is_none_or(|last| last.progress != beat.progress) {
            self.progressed_at = now;
        }
        self.was_alive = true;
        self.absences = 0;
        self.was_late = now.since(self.rewritten_at.max(sighting.absence_counts_from)) >= LATE_AFTER;
        if self.was_late && now >= sighting.absence_counts_from {
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
        let Some(work) = sighting.work.filter(|work| work.pending > 0) else { return false };
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
        if self.state.is_gone() {
            return self.state;
        }
        if !self.was_alive {
            return ConsumerState::NoHeartbeat;
        }
        let marker = match &sighting.keys.marker {
            MarkerReading::NotRead => return self.gone_or_settling(sighting),
            MarkerReading::Present(marker) if self.earlier_marker.as_ref() != Some(marker) => Some(marker),
            MarkerReading::Present(_) | MarkerReading::Absent => None,
        };
        self.absences += 1;
        if let Some(marker) = marker {
            let pending = marker.in_flight.map_or_else(|| sighting.work.map_or(0, |w| w.pending), u64::from);
            // The stream was read before the marker: what was pending then may be done by now,
            // so a Python worker's leftover is believed at the second reading only.
            return if pending == 0 {
                self.go(ConsumerState::Left)
            } else if marker.in_flight.is_some() || self.absences >= 2 {
                self.go(ConsumerState::LeftWithWork)
            } else {
                ConsumerState::Suspect
            };
        }
        if sighting.now < sighting.absence_counts_from {
            self.absences = 0;
            return self.gone_or_settling(sighting);
        }
        if self.absences >= 2 || self.was_late { self.go(ConsumerState::Lost) } else { ConsumerState::Suspect }
    }

    /// While absence means nothing a consumer stays what it was.
    fn gone_or_settling(&self, sighting: &Sighting<'_>) -> ConsumerState {
        if sighting.now < sighting.absence_counts_from { self.state } else { ConsumerState::Suspect }
    }

    fn go(&mut self, how: ConsumerState) -> ConsumerState {
        self.was_alive = false;
        self.was_late = false;
        how
    }
}

/// How long after a source is good again absence starts to count: every living worker has
/// rewritten its heartbeat by then.
pub const SETTLING: Duration = heartbeat::TTL;
