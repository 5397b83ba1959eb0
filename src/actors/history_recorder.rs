//! Records the series of the snapshot at every interval: recent samples in Redis, the archive in Postgres. Recordings that Postgres
//! does not accept are spooled on disk and written first when it is reachable again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use serde::{Deserialize, Serialize};

use super::io::{Io, POSTGRES_LATE, REDIS_LATE};
use super::messages::{Fail, Report, Role, SnapshotTaken};
use crate::failpoint;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::history::SECOND;
use crate::history::series::{self, Sample};
use crate::postgres::history::metrics;
use crate::redis_streams::recent_series;
use crate::spool::Spool;

/// Time limit for a write, per data source.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// Number of recordings between removals of ended series.
const FORGET_EVERY: u64 = 120;
/// Maximum number of spooled recordings moved to Postgres at a time.
const SPOOL_BATCH: usize = 100;

/// Interval and retention of recordings.
#[derive(Debug, Clone, Copy)]
pub struct Recording {
    /// Interval; whole seconds.
    pub interval: Duration,
    /// Retention in Redis.
    pub recent: Duration,
}

/// The spool; it survives restarts of the actor.
pub type SharedSpool = Arc<Mutex<Spool>>;

/// Records series; see the module documentation.
pub struct HistoryRecorder {
    io: Io,
    supervisor: Recipient<Report>,
    recording: Recording,
    spool: SharedSpool,
    /// Interval that was recorded last.
    last: Option<i64>,
    /// Number of recordings in Redis since the start.
    recordings: u64,
    /// A write to Postgres is in progress.
    writing: bool,
    /// The spool may not be empty.
    spooled: bool,
}

/// A recording, as spooled.
#[derive(Serialize, Deserialize)]
struct Recorded {
    /// Unix seconds.
    ts: i64,
    samples: Vec<Sample>,
}

impl HistoryRecorder {
    /// Returns the actor; `spool` holds recordings while Postgres is unreachable.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, recording: Recording, spool: SharedSpool) -> Self {
        Self { io, supervisor, recording, spool, last: None, recordings: 0, writing: false, spooled: true }
    }

    fn keep_recent(&mut self, ts: i64, samples: Vec<Sample>, ctx: &mut Context<Self>) {
        let (pool, keep) = (self.io.redis.clone(), self.recording.recent);
        let nth = self.last.map_or(0, i64::unsigned_abs);
        let pushing = self
            .io
            .run(WRITE_WITHIN, REDIS_LATE, async move { recent_series::push(&pool, nth, ts, &samples, keep).await });
        ctx.spawn(pushing.into_actor(self).map(|pushed, this, _| match pushed {
            Ok(()) => this.io.redis.manager().wrote(),
            Err(trouble) => {
                tracing::warn!(error = trouble.detail, "cannot write samples to Redis; the recent series have a gap");
            }
        }));
        if self.recordings.is_multiple_of(FORGET_EVERY) {
            self.forget_ended(ts, ctx);
        }
        self.recordings += 1;
    }

    fn forget_ended(&self, ts: i64, ctx: &mut Context<Self>) {
        let (pool, keep) = (self.io.redis.clone(), self.recording.recent);
        let forgetting =
            self.io.run(WRITE_WITHIN, REDIS_LATE, async move { recent_series::forget_ended(&pool, ts, keep).await });
        ctx.spawn(forgetting.into_actor(self).map(|forgotten, _, _| match forgotten {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deleted the recent samples of {count} series that ended"),
            Err(trouble) => {
                tracing::debug!(
                    error = trouble.detail,
                    "cannot delete the recent samples of ended series; retrying later"
                )
            }
        }));
    }

    /// Writes a recording to Postgres, or to the spool if earlier ones wait there, to keep the order.
    fn archive(&mut self, recorded: Recorded, ctx: &mut Context<Self>) {
        let straight = !self.writing && !self.spooled && self.io.archive_is_ready();
        let (io, spool) = (self.io.clone(), Arc::clone(&self.spool));
        self.writing |= straight;
        // Only the write to Postgres has a deadline. A monitor that was stopped finds every deadline expired when it continues, and
        // would lose the recording on its way to disk.
        let archiving = self.io.run(Duration::MAX, POSTGRES_LATE, async move {
            if straight {
                let ticks = [(recorded.ts * SECOND, recorded.samples)];
                match write(&io, &ticks).await {
                    Ok(()) => return Ok(false),
                    Err(trouble) => {
                        tracing::warn!(error = trouble.detail, "samples spooled to disk until Postgres accepts them")
                    }
                }
                let [(_, samples)] = ticks;
                put(spool, Recorded { samples, ..recorded }).await?;
            } else {
                put(spool, recorded).await?;
            }
            Ok(true)
        });
        ctx.spawn(archiving.into_actor(self).map(move |spooled, this, ctx| {
            if straight {
                this.writing = false;
            }
            match spooled {
                Ok(spooled) => this.spooled |= spooled,
                Err(trouble) => tracing::error!(error = trouble.detail, "samples lost"),
            }
            if this.spooled {
                this.catch_up(ctx);
            }
        }));
    }

    /// Moves spooled recordings to Postgres: stores them, then removes them. Each is stored once, even if this is interrupted.
    fn catch_up(&mut self, ctx: &mut Context<Self>) {
        if self.writing || !self.spooled || !self.io.archive_is_ready() {
            return;
        }
        self.writing = true;
        let (io, spool) = (self.io.clone(), Arc::clone(&self.spool));
        let moving = self.io.run(WRITE_WITHIN * 2, POSTGRES_LATE, async move { move_some(&io, spool).await });
        ctx.spawn(moving.into_actor(self).map(|moved, this, ctx| {
            this.writing = false;
            match moved {
                Ok(0) => this.spooled = false,
                Ok(count) => {
                    this.io.note_write(&Ok(()));
                    tracing::info!(count, "spooled samples were written to Postgres");
                    this.catch_up(ctx);
                }
                Err(trouble) => {
                    tracing::debug!(error = trouble.detail, "spooled samples are still waiting for Postgres")
                }
            }
        }));
    }
}

/// Writes to Postgres, and notes whether it accepts writes.
async fn write(io: &Io, ticks: &[(i64, Vec<Sample>)]) -> Result<(), SourceTrouble> {
    let written = tokio::time::timeout(WRITE_WITHIN, metrics::insert(&io.postgres, ticks)).await;
    let written = written.unwrap_or_else(|_| Err(SourceTrouble::new(TroubleKind::TimedOut, POSTGRES_LATE)));
    io.note_write(&written);
    written
}

async fn put(spool: SharedSpool, recorded: Recorded) -> Result<(), SourceTrouble> {
    let lost = on_disk(move || {
        let line = serde_json::to_string(&recorded).map_err(std::io::Error::other)?;
        spool.lock().unwrap_or_else(PoisonError::into_inner).put(&line)
    })
    .await?;
    if lost > 0 {
        tracing::error!(bytes = lost, "the spool is full: the oldest samples are dropped");
    }
    failpoint::reached("history.spooled");
    Ok(())
}

async fn move_some(io: &Io, spool: SharedSpool) -> Result<usize, SourceTrouble> {
    let peeked = Arc::clone(&spool);
    let (lines, seen) =
        on_disk(move || peeked.lock().unwrap_or_else(PoisonError::into_inner).peek(SPOOL_BATCH)).await?;
    let count = lines.len();
    let recorded = lines.iter().filter(|line| !line.is_empty()).filter_map(|line| {
        // A line that was torn by a crash or a full disk is skipped.
        let recorded = serde_json::from_str::<Recorded>(line);
        recorded.inspect_err(|error| tracing::warn!(%error, "skipped a truncated record in the spool")).ok()
    });
    let ticks: Vec<_> = recorded.map(|r| (r.ts * SECOND, r.samples)).collect();
    write(io, &ticks).await?;
    failpoint::reached("history.caught_up");
    on_disk(move || spool.lock().unwrap_or_else(PoisonError::into_inner).take(seen)).await?;
    Ok(count)
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, SourceTrouble> {
    let failed = |error: &dyn std::fmt::Display| {
        SourceTrouble::new(TroubleKind::Failed, format!("cannot write to the spool: {error}"))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

impl Actor for HistoryRecorder {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::HistoryRecorder));
    }
}

impl Handler<SnapshotTaken> for HistoryRecorder {
    type Result = ();

    fn handle(&mut self, SnapshotTaken(snapshot): SnapshotTaken, ctx: &mut Self::Context) {
        let seconds = i64::try_from(self.recording.interval.as_secs()).unwrap_or(30).max(1);
        #[expect(clippy::cast_possible_truncation, reason = "Unix seconds")]
        let interval = (snapshot.ts as i64).div_euclid(seconds);
        if self.last.is_some_and(|last| last == interval) {
            return;
        }
        self.last = Some(interval);
        // Aligned to the interval, so that two instances record the same times, and regular times compress well.
        let ts = interval * seconds;
        let samples = series::of(&snapshot);
        if samples.is_empty() {
            return;
        }
        if snapshot.redis.source.is_current() && !self.io.observe_only {
            self.keep_recent(ts, samples.clone(), ctx);
        }
        self.archive(Recorded { ts, samples }, ctx);
    }
}

impl Handler<Fail> for HistoryRecorder {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the history recorder failed on request");
    }
}
