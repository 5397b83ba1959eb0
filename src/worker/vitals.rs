//! What the engine knows of itself and the heartbeat tells: shared by both threads.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Counters of a running worker. Each stands alone, so relaxed order is enough.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    in_flight: AtomicU32,
    progress: AtomicU64,
    draining: AtomicBool,
}

impl Vitals {
    /// A task started, ended or moved.
    pub(super) fn progressed(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Entries that are held: running, or ended and not yet out of the stream.
    pub(super) fn set_in_flight(&self, tasks: usize) {
        self.in_flight.store(u32::try_from(tasks).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
