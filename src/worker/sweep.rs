//! Reclaims lost tasks: those of dead workers, and those that were delivered to this worker in a lost reply.
//!
//! A sweep pages through all idle entries within a time budget and resumes where it stopped, so any number of slow
//! running tasks only delays it. It claims as many tasks as there are free slots and continues as soon as a slot is
//! free.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::engine::Engine;
use crate::contract::Name;
use crate::redis_streams::tasks::{Claim, Claimed, LinkError, Overdue, Taken};

/// Entries per XPENDING call.
const PAGE: usize = 200;
/// Maximum duration of a sweep, so that it does not block the main loop.
const BUDGET: Duration = Duration::from_millis(500);
/// Pause before a sweep that exceeded its budget resumes.
const RESUME_PAUSE: Duration = Duration::from_millis(100);
/// How long other workers may claim released entries before this worker reclaims them.
const RELEASE_GRACE: Duration = Duration::from_secs(1);

/// When the next sweep is due, and the ID from which it starts.
#[derive(Debug)]
pub(super) struct Sweep {
    due: Instant,
    from: String,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { due: Instant::now(), from: START.to_owned() }
    }
}

const START: &str = "-";

impl Sweep {
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    pub(super) fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Brings the next sweep forward, so that released entries do not wait for a full interval.
    pub(super) fn soon(&mut self) {
        self.due = self.due.min(Instant::now() + RELEASE_GRACE);
    }

    fn resume(&mut self, from: String, after: Duration) {
        self.from = from;
        self.due = Instant::now() + after;
    }
}

impl Engine {
    /// Reclaims lost tasks within the limits of free slots, batch size and time.
    pub(super) async fn sweep(&mut self) {
        // Jitter of ±10 %, so that workers that were started together do not sweep at the same time.
        let spread = self.random() % 200;
        let interval =
            self.settings.reclaim_interval.mul_f64(0.9 + f64::from(u8::try_from(spread).unwrap_or(0)) / 1000.0);
        let from = std::mem::replace(&mut self.sweep.from, START.to_owned());
        self.sweep.due = Instant::now() + interval;
        if let Err(e) = self.search(from).await {
            self.retry.failed("reclaiming lost tasks", &e);
        }
        self.note_held();
    }

    async fn search(&mut self, mut from: String) -> Result<(), LinkError> {
        let started = Instant::now();
        let mut left = self.settings.reclaim_max_batch;
        let (lease, floor) = (self.settings.lease, self.settings.floor);

        if self.read_is_overdue() {
            self.sweep.resume(from, RESUME_PAUSE);
            return Ok(());
        }
        let most = self.held.len() + PAGE;
        let mut lost = self.stream.overdue(&mut self.link, lease, START, most, true).await?;
        lost.retain(|entry| !self.held.contains_key(&entry.id));
        if self.take(&lost, lease, &mut left).await?.is_some() {
            self.sweep.resume(from, Duration::ZERO);
            return Ok(());
        }

        let mut alive: HashMap<Name, bool> = HashMap::new();
        loop {
            let page = self.stream.overdue(&mut self.link, floor, &from, PAGE, false).await?;
            let full = page.len() == PAGE;
            let next = page.last().map(|entry| format!("({}", entry.id));
            let mut unknown: Vec<&Name> = page.iter().map(|entry| &entry.owner).collect();
            unknown.sort_unstable();
            unknown.dedup();
            unknown.retain(|owner| *owner != self.stream.consumer() && !alive.contains_key(*owner));
            let found = self.stream.alive(&mut self.link, unknown).await?;
            alive.extend(found);
            let orphans: Vec<Overdue> =
                page.into_iter().filter(|entry| alive.get(&entry.owner) == Some(&false)).collect();
            if let Some(first_left) = self.take(&orphans, floor, &mut left).await? {
                self.sweep.resume(first_left.to_string(), Duration::ZERO);
                return Ok(());
            }
            match next {
                Some(next) if full => from = next,
                _ => return Ok(()),
            }
            if started.elapsed() > BUDGET {
                self.sweep.resume(from, RESUME_PAUSE);
                return Ok(());
            }
        }
    }

    /// Claims entries while there are free slots. Returns the first entry that had none.
    async fn take<'a>(
        &mut self,
        mut entries: &'a [Overdue],
        min_idle: Duration,
        left: &mut usize,
    ) -> Result<Option<&'a crate::redis_streams::tasks::EntryId>, LinkError> {
        let rules = Claim { min_idle, delivery_limit: self.settings.delivery_limit };
        while let Some(first) = entries.first() {
            let room = self.free().min(*left);
            if room == 0 {
                return Ok(Some(&first.id));
            }
            let (now, later) = entries.split_at(room.min(entries.len()));
            entries = later;
            for claimed in self.stream.claim(&mut self.link, now, rules).await? {
                if self.claimed(claimed) {
                    *left -= 1;
                }
            }
        }
        Ok(None)
    }

    /// Starts a claimed task. Returns whether it occupies a slot.
    fn claimed(&mut self, claimed: Claimed) -> bool {
        let stream = self.stream.stream();
        match claimed {
            Claimed::Taken(Taken { entry, deliveries, age }) => {
                tracing::info!(%stream, entry = %entry.id, deliveries, "reclaimed a lost task");
                self.start(entry, deliveries, age, true);
                return true;
            }
            Claimed::Buried { id, deliveries } => {
                tracing::error!(%stream, entry = %id, deliveries, "delivery limit exceeded; dead-lettered");
            }
            Claimed::Vanished(id) => {
                tracing::warn!(%stream, entry = %id, "a pending entry had been deleted; acknowledged it");
            }
            Claimed::Spared(_) => {}
            Claimed::Refused(id, error) => {
                tracing::error!(%stream, entry = %id, %error, "delivery limit exceeded, and it cannot be \
                 dead-lettered");
            }
        }
        false
    }
}
