//! Storage of the alert ledger: rows in Postgres, the leader's key in Redis, a file on disk, and a clock.
//!
//! A trait, so that the simulation (`simulation/`) can run the same ledger on models.

use std::time::{Duration, Instant};

use crate::alerting::lifecycle::Alert;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::time::Mono;
use crate::postgres::alerts::{self, LeaseReply, NotWritten, OutboxRow, Rows, StoredAlerts};
use crate::postgres::alerts_spool::{Spool, Unsaved};
use crate::postgres::connection::PgPool;
use crate::redis_streams::leader::{LEASE, LeaderLease};

/// Time limit for Postgres before rows are written to disk.
const POSTGRES_WITHIN: Duration = Duration::from_secs(1);
/// Time limit for Redis.
const REDIS_WITHIN: Duration = Duration::from_millis(500);

/// Postgres, Redis, the disk and the clock; each call has a time limit.
#[expect(async_fn_in_trait, reason = "the ledger is used with one store only, whose futures are Send")]
pub trait AlertStore {
    /// Returns the time of the monotonic clock.
    fn now(&self) -> Mono;
    /// Postgres: requests or renews the lease.
    async fn lead(&self) -> Result<LeaseReply, SourceTrouble>;
    /// Postgres: writes rows if `epoch` is current.
    async fn write(&self, epoch: i64, rows: Rows<'_>) -> Result<(), NotWritten>;
    /// Postgres: writes the notifications that a deposed leader sent.
    async fn hand_over(&self, rows: Rows<'_>) -> Result<(), SourceTrouble>;
    /// Postgres: returns alerts and waiting notifications.
    async fn load(&self) -> Result<StoredAlerts, SourceTrouble>;
    /// Postgres: returns alerts.
    async fn alerts(&self) -> Result<Vec<Alert>, SourceTrouble>;
    /// Postgres: returns the state that is needed without the lease.
    async fn follow(&self) -> Result<LeaseReply, SourceTrouble>;
    /// Postgres: returns the newest notifications.
    async fn newest_messages(&self, limit: u32) -> Result<Vec<OutboxRow>, SourceTrouble>;
    /// Postgres: gives up the lease.
    async fn resign(&self) -> Result<(), SourceTrouble>;
    /// Redis: returns whether another instance holds the lease.
    async fn another_leads(&self) -> Result<bool, SourceTrouble>;
    /// Redis: takes the lease unconditionally.
    async fn claim_redis(&self) -> Result<(), SourceTrouble>;
    /// Redis: takes the lease unless another instance holds it. Returns whether this instance holds it.
    async fn claim_redis_if_free(&self) -> Result<bool, SourceTrouble>;
    /// Redis: releases the lease of this instance.
    async fn release_redis(&self) -> Result<(), SourceTrouble>;
    /// Disk: loads the rows that an earlier run left.
    fn load_from_disk(&self) -> Unsaved;
    /// Disk: replaces the file.
    ///
    /// # Errors
    /// If the disk is full or cannot be written.
    fn save_to_disk(&self, unsaved: &Unsaved) -> std::io::Result<()>;
}

/// The store of a running monitor.
pub struct LiveStore {
    postgres: PgPool,
    /// Pool for queries of the web front end.
    reads: PgPool,
    place: LeaderLease,
    /// This monitor's id, which identifies it as the leader.
    holder: String,
    spool: Spool,
    started: Instant,
}

impl LiveStore {
    /// Returns the store of the instance `holder`.
    #[must_use]
    pub fn new((postgres, reads): (PgPool, PgPool), place: LeaderLease, holder: String, spool: Spool) -> Self {
        Self { postgres, reads, place, holder, spool, started: Instant::now() }
    }
}

impl AlertStore for LiveStore {
    fn now(&self) -> Mono {
        Mono(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    async fn lead(&self) -> Result<LeaseReply, SourceTrouble> {
        postgres(alerts::lead(&self.postgres, &self.holder, LEASE.as_secs_f64())).await
    }

    async fn write(&self, epoch: i64, rows: Rows<'_>) -> Result<(), NotWritten> {
        let writing = Box::pin(alerts::write(&self.postgres, epoch, rows));
        let late = || NotWritten::Trouble(SourceTrouble::new(TroubleKind::TimedOut, super::io::POSTGRES_LATE));
        tokio::time::timeout(POSTGRES_WITHIN, writing).await.unwrap_or_else(|_| Err(late()))
    }

    async fn hand_over(&self, rows: Rows<'_>) -> Result<(), SourceTrouble> {
        postgres(alerts::hand_over(&self.postgres, rows)).await
    }

    async fn load(&self) -> Result<StoredAlerts, SourceTrouble> {
        postgres(alerts::load(&self.postgres)).await
    }

    async fn alerts(&self) -> Result<Vec<Alert>, SourceTrouble> {
        postgres(alerts::alerts(&self.postgres)).await
    }

    async fn follow(&self) -> Result<LeaseReply, SourceTrouble> {
        postgres(alerts::follow(&self.postgres)).await
    }

    async fn newest_messages(&self, limit: u32) -> Result<Vec<OutboxRow>, SourceTrouble> {
        postgres(alerts::newest_messages(&self.reads, limit)).await
    }

    async fn resign(&self) -> Result<(), SourceTrouble> {
        postgres(alerts::resign(&self.postgres, &self.holder)).await
    }

    async fn another_leads(&self) -> Result<bool, SourceTrouble> {
        redis(self.place.is_anothers()).await
    }

    async fn claim_redis(&self) -> Result<(), SourceTrouble> {
        redis(self.place.take(LEASE)).await
    }

    async fn claim_redis_if_free(&self) -> Result<bool, SourceTrouble> {
        redis(self.place.take_if_free(LEASE)).await
    }

    async fn release_redis(&self) -> Result<(), SourceTrouble> {
        redis(self.place.leave()).await
    }

    fn load_from_disk(&self) -> Unsaved {
        self.spool.load()
    }

    fn save_to_disk(&self, unsaved: &Unsaved) -> std::io::Result<()> {
        self.spool.save(unsaved)
    }
}

async fn postgres<T>(work: impl Future<Output = Result<T, SourceTrouble>>) -> Result<T, SourceTrouble> {
    // Boxed, because the future of a lease request is as large as the largest of its calls.
    tokio::time::timeout(POSTGRES_WITHIN, Box::pin(work))
        .await
        .unwrap_or_else(|_| Err(SourceTrouble::new(TroubleKind::TimedOut, super::io::POSTGRES_LATE)))
}

async fn redis<T>(work: impl Future<Output = Result<T, SourceTrouble>>) -> Result<T, SourceTrouble> {
    tokio::time::timeout(REDIS_WITHIN, work)
        .await
        .unwrap_or_else(|_| Err(SourceTrouble::new(TroubleKind::TimedOut, super::io::REDIS_LATE)))
}
