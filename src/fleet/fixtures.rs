//! Test fixtures shared by several modules: an empty tracker and its first snapshot.

use std::sync::Arc;
use std::time::Duration;

use super::reading::{SourceTrouble, StreamsReading, TroubleKind};
use super::snapshot::Snapshot;
use super::time::Mono;
use super::tracker::{TickReadings, Tracker, TrackerSettings};
use super::watched::WatchedStreams;

/// Poll interval, seconds.
pub(crate) const TICK_SEC: u64 = 3;

/// Returns an empty tracker.
pub(crate) fn tracker() -> Tracker {
    Tracker::new(settings(), Mono(0), 0.0)
}

/// Returns an empty tracker with a poll interval of `seconds`.
pub(crate) fn tracker_with_interval(seconds: u64) -> Tracker {
    Tracker::new(TrackerSettings { interval: Duration::from_secs(seconds), ..settings() }, Mono(0), 0.0)
}

/// Returns an empty tracker that does not watch the stream `excluded`.
pub(crate) fn tracker_without(excluded: &str) -> Tracker {
    let watched = WatchedStreams::new(&[], &[excluded.to_owned()]).unwrap();
    Tracker::new(TrackerSettings { watched: Arc::new(watched), ..settings() }, Mono(0), 0.0)
}

fn settings() -> TrackerSettings {
    TrackerSettings {
        interval: Duration::from_secs(TICK_SEC),
        default_floor: Duration::from_secs(30),
        seed_streams: Vec::new(),
        watched: Arc::default(),
        aras: Arc::new([]),
        disk_capacity_bytes: 0,
    }
}

/// A refused connection.
pub(crate) fn no_connection() -> SourceTrouble {
    SourceTrouble::new(TroubleKind::Unreachable, "no connection")
}

/// Returns the snapshot after one poll that read only these streams.
pub(crate) fn first_snapshot(streams: Result<StreamsReading, SourceTrouble>) -> Snapshot {
    let readings = TickReadings {
        tick: 1,
        now: Mono(0),
        wall: 0.0,
        streams: streams.map(Arc::new),
        heartbeats: Err(no_connection()),
        database: None,
    };
    tracker().advance(readings).unwrap().snapshot
}
