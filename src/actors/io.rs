//! How actors do their I/O: each query is a task of its own, so that no actor waits for another's,
//! and a panic in a query is an error, not an actor's end.
//!
//! The tasks run on the actors' own thread: most of a tick at rest is waking threads, and one thread
//! wakes half as often as two. What computes for long is sent to a thread for that.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tracing::Instrument;

use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::time::Mono;
use crate::postgres::connection::PgPool;
use crate::redis_streams::connection::Pool;

/// Connections for the requests of clients. They are apart from those of the actors, so that no client can delay a
/// reading, an alert or a notification, and no reader a change or its row in the audit.
#[derive(Clone)]
pub struct WebPools {
    /// Redis.
    pub redis: Pool,
    /// Postgres, for requests that change nothing.
    pub reads: PgPool,
    /// Postgres, for changes and the audit.
    pub changes: PgPool,
}

/// The way out: runtime, pools and clocks, shared by all actors.
#[derive(Clone)]
pub struct Io {
    runtime: Handle,
    /// Redis, for the actors.
    pub redis: Pool,
    /// Postgres, for the actors.
    pub postgres: PgPool,
    /// Redis and Postgres, for the requests of clients.
    pub web: WebPools,
    /// Nothing may be changed in Redis or in the fleet's tables (`MONITOR_OBSERVE_ONLY`).
    pub observe_only: bool,
    started: Instant,
    archive_ready: Arc<AtomicBool>,
    refused_write: Arc<Mutex<Option<SourceTrouble>>>,
}

impl Io {
    /// Work is done on `runtime`.
    #[must_use]
    pub fn new(runtime: Handle, (redis, postgres): (Pool, PgPool), web: WebPools, observe_only: bool) -> Self {
        Self {
            runtime,
            redis,
            postgres,
            web,
            observe_only,
            started: Instant::now(),
            archive_ready: Arc::default(),
            refused_write: Arc::default(),
        }
    }

    /// Whether the database's tables are up to date: before that nothing is archived.
    #[must_use]
    pub fn archive_is_ready(&self) -> bool {
        self.archive_ready.load(Ordering::Relaxed)
    }

    /// The database's tables are up to date.
    pub fn set_archive_ready(&self) {
        self.archive_ready.store(true, Ordering::Relaxed);
    }

    /// Why Postgres refused to write last, if nothing was written since: a full disk, say.
    #[must_use]
    pub fn refused_write(&self) -> Option<SourceTrouble> {
        self.refused_write.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how a write to Postgres went, as far as that says something about its condition.
    pub fn note_write<T>(&self, written: &Result<T, SourceTrouble>) {
        let refused = match written {
            Ok(_) => None,
            Err(trouble) if trouble.is_write_refused_by_postgres() => Some(trouble.clone()),
            Err(_) => return,
        };
        *self.refused_write.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// Now, on the clock that never jumps.
    #[must_use]
    pub fn now(&self) -> Mono {
        Mono(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Now, on the wall, Unix seconds.
    #[must_use]
    pub fn wall(&self) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    /// As [`Io::run`], but the work ends when nobody waits for its answer any more: a client that hangs up leaves no
    /// query behind.
    pub fn read<T: Send + 'static, W: Future<Output = Result<T, SourceTrouble>> + Send + 'static>(
        &self,
        deadline: Duration,
        late: &'static str,
        work: W,
    ) -> impl Future<Output = Result<T, SourceTrouble>> + use<T, W> {
        let (wanted, unwanted) = tokio::sync::oneshot::channel::<()>();
        let work = Box::pin(work);
        let answer = self.run(deadline, late, async move {
            tokio::select! {
                answer = work => answer,
                _ = unwanted => Err(SourceTrouble::new(TroubleKind::Failed, "the client hung up")),
            }
        });
        async move {
            let _wanted = wanted;
            answer.await
        }
    }

    /// Does `work` as a task of its own and answers within `deadline`, whatever happens.
    pub fn run<T: Send + 'static, W: Future<Output = Result<T, SourceTrouble>> + Send + 'static>(
        &self,
        deadline: Duration,
        late: &'static str,
        work: W,
    ) -> impl Future<Output = Result<T, SourceTrouble>> + use<T, W> {
        // In a box: a task is moved as a whole when it begins, when it ends and when its answer is taken.
        let work = Box::pin(work);
        let task = self.runtime.spawn(async move { tokio::time::timeout(deadline, work).await }.in_current_span());
        let refused_write = Arc::clone(&self.refused_write);
        async move {
            match task.await {
                Ok(Ok(Err(trouble))) if trouble.is_write_refused_by_postgres() => {
                    *refused_write.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.clone());
                    Err(trouble)
                }
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(SourceTrouble::new(TroubleKind::TimedOut, late)),
                Err(error) => {
                    tracing::error!(%error, "a query panicked");
                    Err(SourceTrouble::new(TroubleKind::Failed, "internal error; see the log"))
                }
            }
        }
    }
}

/// What is said when Redis timed out.
pub const REDIS_LATE: &str = "Redis timed out";
/// What is said when Postgres timed out.
pub const POSTGRES_LATE: &str = "Postgres timed out";
/// What is said when a change is asked of a monitor that only observes.
pub const OBSERVES_ONLY: &str = "this monitor is read-only (MONITOR_OBSERVE_ONLY=yes); restart it with \
 MONITOR_OBSERVE_ONLY=no to make changes";
