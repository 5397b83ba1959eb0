//! Leases of running tasks: resets their idle time before other workers consider them lost.
//!
//! The engine adds and removes tasks; the heartbeat thread renews the leases, so that a handler that blocks the runtime
//! loses neither lease nor heartbeat.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::task::Cancelled;
use crate::redis_streams::tasks::{EntryId, Link, TaskStream, Verdict};

/// Maximum number of leases per script call.
const BATCH: usize = 256;

/// Leases of one worker.
#[derive(Debug)]
pub(super) struct Leases {
    lease: Duration,
    held: Mutex<HashMap<EntryId, Lease>>,
}

#[derive(Debug)]
struct Lease {
    deliveries: u64,
    /// When the idle time was last known to be zero.
    touched: Instant,
    cancelled: watch::Sender<Option<Cancelled>>,
}

impl Lease {
    /// Cancels the run; the first reason is kept.
    fn cancel(&self, why: Cancelled) {
        self.cancelled.send_if_modified(|known| {
            let first = known.is_none();
            *known = known.or(Some(why));
            first
        });
    }
}

impl Leases {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, held: Mutex::default() }
    }

    /// Starts to renew the lease of this delivery, replacing an earlier delivery of the same entry. The receiver is
    /// notified when the delivery is lost.
    pub(super) fn enter(&self, id: EntryId, deliveries: u64) -> watch::Receiver<Option<Cancelled>> {
        let (cancelled, receiver) = watch::channel(None);
        let lease = Lease { deliveries, touched: Instant::now(), cancelled };
        if let Some(earlier) = self.held().insert(id, lease) {
            earlier.cancel(Cancelled::Lost);
        }
        receiver
    }

    /// Whether a lease that was added at `since` may have been renewed, in which case a delivery record may exist.
    pub(super) fn may_have_renewed(&self, since: Instant) -> bool {
        since.elapsed() >= self.tick()
    }

    /// Interval of the renewal loop, and the minimum age of a lease to be renewed.
    fn tick(&self) -> Duration {
        self.lease / 6
    }

    pub(super) fn remove(&self, id: &EntryId) {
        self.held().remove(id);
    }

    /// Notifies all handlers that the worker shuts down.
    pub(super) fn cancel_all(&self) {
        for lease in self.held().values() {
            lease.cancel(Cancelled::ShuttingDown);
        }
    }

    /// Renews due leases in an endless loop, each at the latest a third of the lease after its last renewal.
    pub(super) async fn keep(&self, stream: &TaskStream, link: &mut Link) {
        let tick = self.tick();
        loop {
            tokio::time::sleep(tick).await;
            let due = self.due(tick);
            link.close_if_outdated();
            for batch in due.chunks(BATCH) {
                let sent_at = Instant::now();
                match stream.renew(link, batch).await {
                    Ok(verdicts) => self.note(stream, batch, &verdicts, sent_at),
                    // The next ticks retry, several times before the lease expires.
                    Err(e) => tracing::debug!(error = %e, "cannot renew leases"),
                }
            }
        }
    }

    fn due(&self, age: Duration) -> Vec<(EntryId, u64)> {
        let held = self.held();
        let due = held.iter().filter(|(_, lease)| lease.touched.elapsed() >= age);
        due.filter(|(_, lease)| lease.cancelled.borrow().is_none())
            .map(|(id, lease)| (id.clone(), lease.deliveries))
            .collect()
    }

    fn note(&self, stream: &TaskStream, batch: &[(EntryId, u64)], verdicts: &[Verdict], sent_at: Instant) {
        let mut held = self.held();
        for ((id, deliveries), verdict) in batch.iter().zip(verdicts) {
            let Some(lease) = held.get_mut(id).filter(|lease| lease.deliveries == *deliveries) else { continue };
            match verdict {
                Verdict::Done => lease.touched = sent_at,
                Verdict::Fenced => {
                    lease.cancel(Cancelled::Lost);
                    tracing::warn!(stream = %stream.stream(), entry = %id, "a running task was claimed by another \
                     worker");
                }
                // Most likely completed a moment ago.
                Verdict::Gone | Verdict::Refused(_) => {}
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<EntryId, Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
