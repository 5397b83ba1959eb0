//! Archives how long tasks took: sets the workers' durations aside at every interval, stores what
//! they come to, and only then drops them. Whatever is cut short is found again and counted once.

use std::collections::BTreeSet;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use uuid::Uuid;

use super::io::{Io, POSTGRES_LATE};
use super::messages::{Fail, Report, Role, SnapshotTaken, TasksFinished};
use crate::contract::Name;
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;
use crate::history::Micros;
use crate::history::latency::Latency;
use crate::postgres::history::latency;
use crate::redis_streams::connection::checkout;
use crate::redis_streams::durations;

/// How long one round may take.
const ROUND_WITHIN: Duration = Duration::from_secs(20);

/// The actor.
pub struct LatencyBucketer {
    io: Io,
    supervisor: Recipient<Report>,
    interval: Duration,
    /// The interval drained last.
    last: Option<i64>,
    /// Batches may wait: from before the start, or because a round did not end well.
    waiting: bool,
    working: bool,
}

impl LatencyBucketer {
    /// Archives at every `interval` (whole seconds).
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, interval: Duration) -> Self {
        Self { io, supervisor, interval, last: None, waiting: true, working: false }
    }
}

/// Sets aside what `streams` have, if any are given, tells what that is, and archives what waits.
/// Answers how many batches it archived.
async fn round(
    io: Io,
    supervisor: Recipient<Report>,
    streams: Vec<Name>,
    interval: Duration,
    archive: bool,
) -> Result<usize, SourceTrouble> {
    let mut redis = checkout(&io.redis).await?;
    if !streams.is_empty() {
        let set_aside = durations::drain(&mut redis, &streams).await?;
        if set_aside.too_many {
            tracing::warn!(
                "too many batches of durations wait for Postgres; workers keep the newest 10,000 of each stream"
            );
        }
        if !set_aside.durations.is_empty() {
            supervisor.do_send(Report::Finished(TasksFinished(set_aside.durations)));
        }
    }
    let mut archived = 0;
    if !archive {
        return Ok(archived);
    }
    loop {
        let batches = durations::waiting(&mut redis).await?;
        if batches.is_empty() {
            return Ok(archived);
        }
        failpoint::reached("latency.read");
        let ids: Vec<Uuid> = batches.iter().map(|batch| batch.id).collect();
        let known = tokio::task::spawn_blocking(move || {
            batches.into_iter().filter_map(|batch| archived_form(&batch, interval)).collect::<Vec<_>>()
        });
        latency::insert(&io.postgres, known.await.unwrap_or_default()).await?;
        failpoint::reached("latency.stored");
        durations::drop_archived(&mut redis, &ids).await?;
        archived += ids.len();
    }
}

/// A batch as it is archived; `None` if another monitor dropped it meanwhile.
fn archived_form(batch: &durations::Batch, interval: Duration) -> Option<latency::Batch> {
    let interval = Micros::try_from(interval.as_micros()).unwrap_or(1).max(1);
    let drained = batch.drained_ms * 1000;
    Some(latency::Batch {
        id: batch.id,
        stream: batch.stream.to_text(),
        // It is drained as an interval ends: its tasks finished in that one.
        at: (drained.div_euclid(interval) - 1) * interval,
        latency: Latency::of_durations(&batch.durations)?,
    })
}

impl Actor for LatencyBucketer {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::LatencyBucketer));
    }
}

impl Handler<SnapshotTaken> for LatencyBucketer {
    type Result = ();

    fn handle(&mut self, SnapshotTaken(snapshot): SnapshotTaken, ctx: &mut Self::Context) {
        if self.working || !snapshot.redis.source.is_current() {
            return;
        }
        let seconds = i64::try_from(self.interval.as_secs()).unwrap_or(30).max(1);
        #[expect(clippy::cast_possible_truncation, reason = "Unix seconds")]
        let interval = (snapshot.ts as i64).div_euclid(seconds);
        let due = self.last != Some(interval);
        let archive = self.io.archive_is_ready() && snapshot.postgres.source.is_current();
        let catches_up = self.waiting && archive;
        if !(due || catches_up) {
            return;
        }
        self.last = Some(interval);
        self.working = true;
        let names: BTreeSet<&Name> =
            if due { snapshot.streams.keys().chain(snapshot.workers.keys()).collect() } else { BTreeSet::new() };
        let streams: Vec<Name> = names.into_iter().cloned().collect();
        let work = round(self.io.clone(), self.supervisor.clone(), streams, self.interval, archive);
        let working = self.io.run(ROUND_WITHIN, POSTGRES_LATE, work);
        ctx.spawn(working.into_actor(self).map(move |archived, this, _| {
            this.working = false;
            this.waiting = !archive;
            if let Err(trouble) = archived {
                this.waiting = true;
                tracing::warn!(error = trouble.detail, "durations are not archived yet; they wait in Redis");
            }
        }));
    }
}

impl Handler<Fail> for LatencyBucketer {
    type Result = ();

    #[expect(clippy::panic, reason = "a test asked for it")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the latency bucketer was told to fail");
    }
}
