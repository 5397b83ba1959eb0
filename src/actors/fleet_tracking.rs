//! The decisions of the state tracker, without I/O: runs [`Tracker`] and keeps what is not written yet. [`super::state_tracker`]
//! writes it; the simulation writes it to models.

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

/// Interval at which `last_seen_alive` of alive types is written.
const REFRESH_RECORDS_EVERY: Duration = Duration::from_secs(30);

/// The tracker, and its unwritten results.
pub struct FleetTracking {
    /// The tracker.
    pub tracker: Tracker,
    /// Records are not written to Redis.
    observe_only: bool,
    /// Events that neither Postgres nor Redis accepted yet, oldest first.
    unwritten: Vec<Arc<Event>>,
    /// Types with a changed record that Redis did not accept yet.
    unsaved: BTreeSet<Name>,
    /// New types that are not yet stored as known.
    unsaved_new: BTreeSet<Name>,
    records_refreshed: Mono,
}

/// Result of a tick.
pub struct Closed {
    /// The new snapshot.
    pub snapshot: Snapshot,
    /// Rows to write before the snapshot and the events are published.
    pub to_write: ToWrite,
    /// All records are due, and other data with the same refresh interval.
    pub refreshes: bool,
}

/// Events are written before the states they lead to: after a restart in between, the tracker detects them again, under the same
/// key.
pub struct ToWrite {
    /// Events, oldest first.
    pub events: Arc<[Arc<Event>]>,
    /// Records of worker types.
    pub records: Vec<(Name, WorkerStateRecord)>,
    /// Types to store as known.
    pub new_types: Vec<Name>,
    /// Records of task failures.
    pub failures: FailureRecords,
}

impl ToWrite {
    /// Returns whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.records.is_empty()
            && self.new_types.is_empty()
            && self.failures.streams.is_empty()
    }
}

impl FleetTracking {
    /// Wraps `tracker`. With `observe_only`, no records are written.
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

    /// Applies the readings of a tick. Returns `None` if they are not newer than the previous ones.
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

    /// Marks the events as written.
    pub fn events_written(&mut self) {
        self.unwritten.clear();
    }

    /// Marks the records as written. No tick was closed in between.
    pub fn records_written(&mut self) {
        self.unsaved.clear();
        self.unsaved_new.clear();
    }

    /// Forgets a type. Returns whether it was known.
    pub fn forget(&mut self, name: &Name) -> bool {
        self.unsaved.remove(name);
        self.unsaved_new.remove(name);
        self.tracker.forget(name)
    }
}
