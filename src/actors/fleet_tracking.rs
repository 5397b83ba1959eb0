//! What the state tracker decides, without its I/O: lets [`Tracker`] decide and keeps what is not written down yet.
//! [`super::state_tracker`] writes it down; the simulation runs it on models.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::Name;
use crate::fleet::event::Event;
use crate::fleet::failures::FailureRecords;
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::fleet::tracker::{Advance, TickReadings, Tracker};
use crate::fleet::worker_type::WorkerStateRecord;

/// How often `last_seen_alive` is written down for types that are simply alive.
const REFRESH_RECORDS_EVERY: Duration = Duration::from_secs(30);

/// The tracker, and what is to be written down of it.
pub struct FleetTracking {
    /// The tracker.
    pub tracker: Tracker,
    /// Nothing is written in Redis.
    observe_only: bool,
    /// Events that neither Postgres nor Redis took yet, oldest first.
    unwritten: Vec<Arc<Event>>,
    /// Types whose record changed and that Redis did not take yet.
    unsaved: BTreeSet<Name>,
    /// Types that are to be remembered as known, and are not yet.
    unsaved_new: BTreeSet<Name>,
    records_refreshed: Mono,
}

/// What a tick came to.
pub struct Closed {
    /// The new picture.
    pub snapshot: Snapshot,
    /// To write before the snapshot and the events are published.
    pub to_write: ToWrite,
    /// All records were due; so is what else is refreshed as often.
    pub refreshes: bool,
}

/// Events first, then the states they lead to: a restart in between finds them again, under the same key.
pub struct ToWrite {
    /// Events, oldest first.
    pub events: Arc<[Arc<Event>]>,
    /// Records of worker types.
    pub records: Vec<(Name, WorkerStateRecord)>,
    /// Types to remember as known.
    pub new_types: Vec<Name>,
    /// Records of task failures.
    pub failures: FailureRecords,
}

impl ToWrite {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.records.is_empty()
            && self.new_types.is_empty()
            && self.failures.streams.is_empty()
    }
}

impl FleetTracking {
    /// Of `tracker`. With `observe_only`, no record is to be written.
    #[must_use]
    pub fn new(tracker: Tracker, observe_only: bool) -> Self {
        Self {
            tracker,
            observe_only,
            unwritten: Vec::new(),
            unsaved: BTreeSet::new(),
            unsaved_new: BTreeSet::new(),
            records_refreshed: Mono::default(),
        }
    }

    /// Takes in a tick's readings; `None` if they are not newer than what was taken in already.
    pub fn close(&mut self, readings: TickReadings) -> Option<Closed> {
        let read_at = readings.heartbeats.is_ok().then_some(readings.now);
        let Advance { events, snapshot, changed_types, new_types } = self.tracker.advance(readings)?;
        self.unwritten.extend(events);
        let refreshes = read_at.is_some_and(|now| now.since(self.records_refreshed) >= REFRESH_RECORDS_EVERY);
        if refreshes {
            self.records_refreshed = read_at.unwrap_or_default();
        }
        let mut failures = FailureRecords::default();
        if !self.observe_only {
            self.unsaved.extend(changed_types);
            self.unsaved_new.extend(new_types);
            if refreshes {
                self.unsaved.extend(self.tracker.alive_types().cloned());
            }
            let log = self.tracker.failures();
            failures = if refreshes { log.records() } else { log.changed_records() };
        }
        let record = |name: &Name| self.tracker.record(name).map(|record| (name.clone(), record));
        let to_write = ToWrite {
            events: self.unwritten.as_slice().into(),
            records: self.unsaved.iter().filter_map(record).collect(),
            new_types: self.unsaved_new.iter().cloned().collect(),
            failures,
        };
        Some(Closed { snapshot, to_write, refreshes })
    }

    /// The events are written down.
    pub fn events_written(&mut self) {
        self.unwritten.clear();
    }

    /// The records are written down. No tick was closed meanwhile.
    pub fn records_written(&mut self) {
        self.unsaved.clear();
        self.unsaved_new.clear();
    }

    /// Knows nothing of a type any more; whether it was known.
    pub fn forget(&mut self, name: &Name) -> bool {
        self.unsaved.remove(name);
        self.unsaved_new.remove(name);
        self.tracker.forget(name)
    }
}
