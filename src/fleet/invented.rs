//! What tests of several rooms start from: a tracker that knows nothing, and its first picture.

use std::sync::Arc;
use std::time::Duration;

use super::reading::{SourceTrouble, StreamsReading, TroubleKind};
use super::snapshot::Snapshot;
use super::time::Mono;
use super::tracker::{TickReadings, Tracker, TrackerSettings};

/// How often ticks come.
pub(crate) const TICK_SEC: u64 = 3;

/// A tracker that knows nothing yet.
pub(crate) fn tracker() -> Tracker {
    let settings = TrackerSettings {
        interval: Duration::from_secs(TICK_SEC),
        default_floor: Duration::from_secs(30),
        seed_streams: Vec::new(),
        aras: Arc::new([]),
        disk_capacity_bytes: 0,
    };
    Tracker::new(settings, Mono(0), 0.0)
}

/// Why a source is not read.
pub(crate) fn no_connection() -> SourceTrouble {
    SourceTrouble::new(TroubleKind::Unreachable, "no connection")
}

/// The picture after one tick that read these streams and nothing else.
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
