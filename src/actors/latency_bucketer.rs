//! Archives run times of tasks: moves the durations from the workers' lists to batches at every interval, archives them, and then
//! deletes the batches. An interrupted round is repeated, and each batch is counted once.
//!
//! While an older monitor is active, it drains the lists instead, since a duration can be drained only once. A monitor in
//! observe-only mode drains nothing; it records the durations that it finds in the lists.

use std::collections::{BTreeMap, BTreeSet};
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

/// Time limit for a round.
const ROUND_WITHIN: Duration = Duration::from_secs(20);

/// Archives run times of tasks; see the module documentation.
pub struct LatencyBucketer {
    io: Io,
    supervisor: Recipient<Report>,
    interval: Duration,
    /// Interval that was drained last.
    last: Option<i64>,
    /// Batches may wait, from before the start or because a round failed.
    waiting: bool,
    working: bool,
    /// The lists as last read in observe-only mode.
    read: BTreeMap<Name, Vec<u64>>,
}

impl LatencyBucketer {
    /// Returns the actor; `interval` is in whole seconds.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, interval: Duration) -> Self {
        Self { io, supervisor, interval, last: None, waiting: true, working: false, read: BTreeMap::new() }
    }
}

/// Moves the durations of `streams` (if given) to batches, reports them, and archives waiting batches. Returns the number of
/// archived batches.
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
                "too many batches of task durations are waiting for Postgres; only the newest 10,000 per stream are kept"
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

/// Reads the lists of `streams` without changing them, and archives durations that were pushed since `before`. Returns the lists.
async fn sample(
    io: Io,
    supervisor: Recipient<Report>,
    streams: Vec<Name>,
    before: BTreeMap<Name, Vec<u64>>,
    interval: Duration,
) -> Result<BTreeMap<Name, Vec<u64>>, SourceTrouble> {
    let mut redis = checkout(&io.redis).await?;
    let lists = durations::read(&mut redis, &streams).await?;
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds of a date")]
    let read_ms = (io.wall() * 1000.0) as i64;
    let new = |(stream, now): &(Name, Vec<u64>)| {
        let durations = durations::pushed_since(before.get(stream).map_or(&[], Vec::as_slice), now).to_vec();
        (!durations.is_empty()).then(|| (stream.clone(), durations))
    };
    let new: Vec<(Name, Vec<u64>)> = lists.iter().filter_map(new).collect();
    if !new.is_empty() {
        let batch = |(stream, durations): &(Name, Vec<u64>)| {
            let (id, stream, durations) = (Uuid::now_v7(), stream.clone(), durations.clone());
            archived_form(&durations::Batch { id, stream, drained_ms: read_ms, durations }, interval)
        };
        latency::insert(&io.postgres, new.iter().filter_map(batch).collect()).await?;
        supervisor.do_send(Report::Finished(TasksFinished(new)));
    }
    Ok(lists.into_iter().collect())
}

/// Converts a batch for the archive; `None` if another instance deleted it meanwhile.
fn archived_form(batch: &durations::Batch, interval: Duration) -> Option<latency::Batch> {
    let interval = Micros::try_from(interval.as_micros()).unwrap_or(1).max(1);
    let drained = batch.drained_ms * 1000;
    Some(latency::Batch {
        id: batch.id,
        stream: batch.stream.to_text(),
        // Batches are drained at the end of an interval: its tasks finished in that interval.
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
        let is_left_to_another = snapshot.older_monitor.may_be_active() && !self.io.observe_only;
        let due = self.last != Some(interval) && !is_left_to_another;
        let archive = self.io.archive_is_ready() && snapshot.postgres.source.is_current();
        let catches_up = self.waiting && archive && !self.io.observe_only;
        // Durations that are only read stay in the lists until they can be recorded.
        if !(due || catches_up) || (self.io.observe_only && !archive) {
            return;
        }
        if due {
            self.last = Some(interval);
        }
        self.working = true;
        let names: BTreeSet<&Name> =
            if due { snapshot.streams.keys().chain(snapshot.workers.keys()).collect() } else { BTreeSet::new() };
        let streams: Vec<Name> = names.into_iter().cloned().collect();
        if self.io.observe_only {
            let (io, up, before) = (self.io.clone(), self.supervisor.clone(), self.read.clone());
            let sampling = self.io.run(ROUND_WITHIN, POSTGRES_LATE, sample(io, up, streams, before, self.interval));
            ctx.spawn(sampling.into_actor(self).map(|read, this, _| {
                this.working = false;
                match read {
                    Ok(read) => this.read = read,
                    Err(trouble) => tracing::warn!(error = trouble.detail, "task durations are not recorded"),
                }
            }));
            return;
        }
        let work = round(self.io.clone(), self.supervisor.clone(), streams, self.interval, archive);
        let working = self.io.run(ROUND_WITHIN, POSTGRES_LATE, work);
        ctx.spawn(working.into_actor(self).map(move |archived, this, _| {
            this.working = false;
            this.waiting = !archive;
            if let Err(trouble) = archived {
                this.waiting = true;
                tracing::warn!(error = trouble.detail, "cannot store task durations yet; they stay in Redis");
            }
        }));
    }
}

impl Handler<Fail> for LatencyBucketer {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the latency bucketer failed on request");
    }
}
