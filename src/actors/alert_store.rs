//! What the ledger of the alerts stands on: rows in Postgres, the leader's key in Redis, a file on disk, and a clock.
//!
//! A trait, so that the simulation (`simulation/`) runs the same ledger on models of them.

use std::time::{Duration, Instant};

use crate::alerting::lifecycle::Alert;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::time::Mono;
use crate::postgres::alerts::{self, Kept, Led, NotWritten, OutboxRow, Rows};
use crate::postgres::alerts_spool::{Spool, Unsaved};
use crate::postgres::connection::PgPool;
use crate::redis_streams::leader::LeadersPlace;

/// A leader that has not renewed its lease for this long is no longer the leader.
pub const LEASE: Duration = Duration::from_secs(10);
/// How long Postgres may take to answer before the disk is used.
const POSTGRES_WITHIN: Duration = Duration::from_secs(1);
/// How long Redis may take to answer.
const REDIS_WITHIN: Duration = Duration::from_millis(500);

/// Postgres, Redis, the disk and the clock, each call within its time limit.
#[expect(async_fn_in_trait, reason = "the ledger is used with one store only, whose futures are Send")]
pub trait AlertStore {
    /// Now, on the clock that never jumps.
    fn now(&self) -> Mono;
    /// Postgres: asks for the lease or renews it.
    async fn lead(&self) -> Result<Led, SourceTrouble>;
    /// Postgres: writes rows if `epoch` is still the present one.
    async fn write(&self, epoch: i64, rows: Rows<'_>) -> Result<(), NotWritten>;
    /// Postgres: writes what a deposed leader sent.
    async fn hand_over(&self, rows: Rows<'_>) -> Result<(), SourceTrouble>;
    /// Postgres: alerts, and messages that wait.
    async fn load(&self) -> Result<Kept, SourceTrouble>;
    /// Postgres: alerts.
    async fn alerts(&self) -> Result<Vec<Alert>, SourceTrouble>;
    /// Postgres: what has to be known without the lease.
    async fn follow(&self) -> Result<Led, SourceTrouble>;
    /// Postgres: the newest messages.
    async fn newest_messages(&self, limit: u32) -> Result<Vec<OutboxRow>, SourceTrouble>;
    /// Postgres: gives the lease up.
    async fn resign(&self) -> Result<(), SourceTrouble>;
    /// Redis: whether another monitor says that it leads.
    async fn another_leads(&self) -> Result<bool, SourceTrouble>;
    /// Redis: says that this monitor leads, whatever Redis says now.
    async fn claim_redis(&self) -> Result<(), SourceTrouble>;
    /// Redis: the same unless another leads; whether this one does.
    async fn claim_redis_if_free(&self) -> Result<bool, SourceTrouble>;
    /// Redis: says no longer that this monitor leads.
    async fn release_redis(&self) -> Result<(), SourceTrouble>;
    /// Disk: what an earlier run left.
    fn load_from_disk(&self) -> Unsaved;
    /// Disk: replaces what is there.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    fn save_to_disk(&self, unsaved: &Unsaved) -> std::io::Result<()>;
}

/// The real ones.
pub struct LiveStore {
    postgres: PgPool,
    /// For what only pages ask.
    reads: PgPool,
    place: LeadersPlace,
    /// This monitor's id, which identifies it as the leader.
    holder: String,
    spool: Spool,
    started: Instant,
}

impl LiveStore {
    /// The store of the monitor `holder`.
    #[must_use]
    pub fn new((postgres, reads): (PgPool, PgPool), place: LeadersPlace, holder: String, spool: Spool) -> Self {
        Self { postgres, reads, place, holder, spool, started: Instant::now() }
    }
}

impl AlertStore for LiveStore {
    fn now(&self) -> Mono {
        Mono(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    async fn lead(&self) -> Result<Led, SourceTrouble> {
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

    async fn load(&self) -> Result<Kept, SourceTrouble> {
        postgres(alerts::load(&self.postgres)).await
    }

    async fn alerts(&self) -> Result<Vec<Alert>, SourceTrouble> {
        postgres(alerts::alerts(&self.postgres)).await
    }

    async fn follow(&self) -> Result<Led, SourceTrouble> {
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
    // In a box: asking for the lease has room for all of them, and mostly makes one.
    tokio::time::timeout(POSTGRES_WITHIN, Box::pin(work))
        .await
        .unwrap_or_else(|_| Err(SourceTrouble::new(TroubleKind::TimedOut, super::io::POSTGRES_LATE)))
}

async fn redis<T>(work: impl Future<Output = Result<T, SourceTrouble>>) -> Result<T, SourceTrouble> {
    tokio::time::timeout(REDIS_WITHIN, work)
        .await
        .unwrap_or_else(|_| Err(SourceTrouble::new(TroubleKind::TimedOut, super::io::REDIS_LATE)))
}
