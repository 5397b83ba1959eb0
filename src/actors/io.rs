//! I/O of actors: each query runs as a separate task, so that no actor waits for another's query and a panic in a query is an error
//! and not the end of an actor.
//!
//! The tasks run on the thread of the actors: in an idle monitor, waking threads dominates the cost of a tick. Long computations
//! run on a blocking thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::time::Mono;
use crate::postgres::connection::PgPool;
use crate::redis_streams::connection::Pool;

/// Connections for requests of clients. They are separate from those of the actors, so that clients cannot delay a poll, an alert
/// or a notification; reads are separate from changes, so that reads cannot delay a change or its row in the audit log.
#[derive(Clone)]
pub struct WebPools {
    /// Redis.
    pub redis: Pool,
    /// Postgres, for read-only requests.
    pub reads: PgPool,
    /// Postgres, for changes and the audit log.
    pub changes: PgPool,
}

/// A query, boxed: a task is moved as a whole when it starts, when it ends and when its result is taken.
type Work<T> = Pin<Box<dyn Future<Output = Result<T, SourceTrouble>> + Send>>;

/// Writes that fail for this long while Postgres can be read are its state: a lock, a lost synchronous standby, a missing
/// privilege.
const FAILING_FOR: Duration = Duration::from_secs(25);

/// Whether Postgres accepts writes, according to their results.
#[derive(Debug, Default)]
struct WriteHealth {
    refused: Option<SourceTrouble>,
    /// First of the failures since the last successful write or read failure.
    failing: Option<Instant>,
}

impl WriteHealth {
    fn note(&mut self, failed: Option<&SourceTrouble>, now: Instant) {
        match failed {
            None => *self = Self::default(),
            // It says so itself.
            Some(trouble) if trouble.is_write_refused_by_postgres() => self.refused = Some(trouble.clone()),
            Some(trouble) => {
                let failing = now.duration_since(*self.failing.get_or_insert(now));
                if failing >= FAILING_FOR {
                    let detail = format!("no write succeeded for {} s ({})", failing.as_secs(), trouble.detail);
                    self.refused = Some(SourceTrouble { detail, ..trouble.clone() });
                }
            }
        }
    }
}

/// Runtime, pools and clocks, shared by all actors.
#[derive(Clone)]
pub struct Io {
    runtime: Handle,
    /// Redis, for the actors.
    pub redis: Pool,
    /// Postgres, for the actors.
    pub postgres: PgPool,
    /// Redis and Postgres, for the requests of clients.
    pub web: WebPools,
    /// Nothing may be changed in Redis or the fleet's tables (`MONITOR_OBSERVE_ONLY`).
    pub observe_only: bool,
    started: Instant,
    archive_ready: Arc<AtomicBool>,
    writes: Arc<Mutex<WriteHealth>>,
}

impl Io {
    /// Returns the I/O of actors; tasks run on `runtime`.
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
            writes: Arc::default(),
        }
    }

    /// Returns whether the tables are migrated. Nothing is archived before.
    #[must_use]
    pub fn archive_is_ready(&self) -> bool {
        self.archive_ready.load(Ordering::Relaxed)
    }

    /// Marks the tables as migrated.
    pub fn set_archive_ready(&self) {
        self.archive_ready.store(true, Ordering::Relaxed);
    }

    fn writes(&self) -> MutexGuard<'_, WriteHealth> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why Postgres, which can be read, accepts no writes, such as a full disk; `None` if it does.
    #[must_use]
    pub fn refused_write(&self) -> Option<SourceTrouble> {
        self.writes().refused.clone()
    }

    /// Records the result of a write to Postgres.
    pub fn note_write<T>(&self, written: &Result<T, SourceTrouble>) {
        self.writes().note(written.as_ref().err(), Instant::now());
    }

    /// Records that the tables cannot be created or changed, which is a refused write.
    pub fn note_failed_migration(&self, trouble: &SourceTrouble) {
        if !trouble.kind.means_unreadable() {
            let detail = format!(
                "the tables of the monitor cannot be created or changed ({}). Run shepherd-monitor doctor",
                trouble.detail
            );
            self.writes().refused = Some(SourceTrouble::new(TroubleKind::ReadOnly, detail));
        }
    }

    /// Records that Postgres cannot be read either, so that failed writes say nothing more.
    pub fn note_unreadable(&self) {
        self.writes().failing = None;
    }

    /// Returns the time of the monotonic clock.
    #[must_use]
    pub fn now(&self) -> Mono {
        Mono(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Returns the time of the wall clock, Unix seconds.
    #[must_use]
    pub fn wall(&self) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    /// Like [`Io::run`], but cancels the work when the caller drops the future, so that no query continues for a disconnected
    /// client.
    pub fn read<T: Send + 'static, W: Future<Output = Result<T, SourceTrouble>> + Send + 'static>(
        &self,
        deadline: Duration,
        late: &'static str,
        work: W,
    ) -> impl Future<Output = Result<T, SourceTrouble>> + use<T, W> {
        let (wanted, unwanted) = oneshot::channel::<()>();
        let work: Work<T> = Box::pin(work);
        let answer = self.start(
            deadline,
            late,
            Box::pin(async move {
                tokio::select! {
                    answer = work => answer,
                    _ = unwanted => Err(SourceTrouble::new(TroubleKind::Failed, "the client hung up")),
                }
            }),
        );
        async move {
            let _wanted = wanted;
            answer.await
        }
    }

    /// Runs `work` as a separate task and returns its result within `deadline`.
    pub fn run<T: Send + 'static, W: Future<Output = Result<T, SourceTrouble>> + Send + 'static>(
        &self,
        deadline: Duration,
        late: &'static str,
        work: W,
    ) -> impl Future<Output = Result<T, SourceTrouble>> + use<T, W> {
        self.start(deadline, late, Box::pin(work))
    }

    fn start<T: Send + 'static>(
        &self,
        deadline: Duration,
        late: &'static str,
        work: Work<T>,
    ) -> impl Future<Output = Result<T, SourceTrouble>> + use<T> {
        let (sender, result) = oneshot::channel();
        // All tasks have the same type, because the program contains the code of the runtime once for each.
        let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            drop(sender.send(tokio::time::timeout(deadline, work).await));
        });
        let task = self.runtime.spawn(task.in_current_span());
        let writes = Arc::clone(&self.writes);
        async move {
            match result.await {
                Ok(Ok(Err(trouble))) if trouble.is_write_refused_by_postgres() => {
                    writes.lock().unwrap_or_else(PoisonError::into_inner).note(Some(&trouble), Instant::now());
                    Err(trouble)
                }
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(SourceTrouble::new(TroubleKind::TimedOut, late)),
                Err(_) => {
                    let error = task.await.err().map(|error| error.to_string()).unwrap_or_default();
                    tracing::error!(error, "a query panicked");
                    Err(SourceTrouble::new(TroubleKind::Failed, "internal error; see the log"))
                }
            }
        }
    }
}

/// Error text of a timeout of Redis.
pub const REDIS_LATE: &str = "Redis timed out";
/// Error text of a timeout of Postgres.
pub const POSTGRES_LATE: &str = "Postgres timed out";
/// Error text of changes that an observer refuses.
pub const OBSERVES_ONLY: &str = "this monitor is read-only (MONITOR_OBSERVE_ONLY=yes); restart it with \
 MONITOR_OBSERVE_ONLY=no to make changes";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_fail_while_postgres_can_be_read_are_its_state_after_a_while() {
        let (mut writes, begun) = (WriteHealth::default(), Instant::now());
        let late = SourceTrouble::new(TroubleKind::TimedOut, POSTGRES_LATE);
        let after = |seconds| begun + Duration::from_secs(seconds);
        writes.note(Some(&late), begun);
        writes.note(Some(&late), after(24));
        assert_eq!(writes.refused, None);
        // An outage is no refusal: counting begins anew when it can be read again.
        writes.failing = None;
        writes.note(Some(&late), after(30));
        assert_eq!(writes.refused, None);
        writes.note(Some(&late), after(60));
        assert_eq!(writes.refused.as_ref().unwrap().detail, "no write succeeded for 30 s (Postgres timed out)");
        writes.note(None, after(61));
        assert_eq!(writes.refused, None);
        let full = SourceTrouble::new(TroubleKind::DiskFull, "the disk is full");
        writes.note(Some(&full), after(62));
        assert_eq!(writes.refused, Some(full), "what it says itself counts at once");
    }
}
