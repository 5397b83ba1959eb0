//! Completes each tick: [`super::fleet_tracking`] decides, then this actor writes the events and publishes the snapshot. On startup
//! it restores the written state and moves events that are spooled in Redis to Postgres.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture, SpawnHandle, WrapFuture,
};
use tokio::sync::oneshot;

use super::fleet_tracking::{Closed, FleetTracking, ToWrite};
use super::io::{Io, POSTGRES_LATE, REDIS_LATE};
use super::messages::{
    DatabaseRead, Fail, FleetChanged, ForgetWorker, HeartbeatsRead, Report, Role, SnapshotTaken, StreamsRead, Tick,
};
use crate::contract::Name;
use crate::fleet::event::Event;
use crate::fleet::older_monitor::{OlderMonitor, Watch};
use crate::fleet::reading::{DatabaseReading, HeartbeatsReading, SourceTrouble, StreamsReading};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::tracker::{TickReadings, Tracker, TrackerSettings};
use crate::postgres::events;
use crate::redis_streams::{event_spool, failure_records, older_monitor, worker_type_records};

/// Maximum time that a tick waits for Postgres after Redis was read.
const WAIT_FOR_DATABASE: Duration = Duration::from_millis(200);
/// Time limit for writing events, per data source.
const WRITE_WITHIN: Duration = Duration::from_secs(1);
/// Time limit for restoring the state at the start: many round trips for a large fleet. Each reply has a limit of its own.
const RESTORE_WITHIN: Duration = Duration::from_secs(30);
/// Maximum number of spooled events moved to Postgres at a time.
const SPOOL_BATCH: usize = 500;

/// Completes ticks; see the module documentation.
pub struct StateTracker {
    io: Io,
    supervisor: Recipient<Report>,
    tracking: FleetTracking,
    /// Progress of restoring the state of an earlier run.
    restored: Restored,
    tick: Option<OpenTick>,
    database: Option<Result<Arc<DatabaseReading>, SourceTrouble>>,
    /// It was logged that events cannot be written anywhere.
    kept_nowhere: bool,
    /// Events may be spooled in Redis.
    spooled: bool,
    /// Events of this instance are spooled; later ones must be stored after them.
    stores_behind_spool: bool,
    flushing: bool,
    /// It was logged that a record could not be saved.
    save_failed: bool,
    /// Marks of forgotten types, as far as this instance has applied them.
    forgotten: BTreeMap<Name, String>,
    /// Whether an older monitor is active, and whether a check is in progress.
    older: Watch,
    looking: bool,
}

#[derive(Default)]
struct Restored {
    records: bool,
    events: bool,
    loading_events: bool,
}

/// Readings received for the current tick.
struct OpenTick {
    n: u64,
    streams: Option<Result<Arc<StreamsReading>, SourceTrouble>>,
    heartbeats: Option<Result<Arc<HeartbeatsReading>, SourceTrouble>>,
    database_is_in: bool,
    closes: Option<SpawnHandle>,
}

impl StateTracker {
    /// Returns the actor without state; it restores the written state with the first successful reading.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, settings: TrackerSettings) -> Self {
        let tracker = Tracker::new(settings, io.now(), io.wall());
        Self {
            tracking: FleetTracking::new(tracker, io.observe_only),
            io,
            supervisor,
            restored: Restored::default(),
            tick: None,
            database: None,
            kept_nowhere: false,
            spooled: true,
            stores_behind_spool: false,
            flushing: false,
            save_failed: false,
            forgotten: BTreeMap::new(),
            older: Watch::default(),
            looking: false,
        }
    }

    fn close_when_complete(&mut self, ctx: &mut Context<Self>) {
        let Some(tick) = &mut self.tick else { return };
        let (Some(_), Some(_)) = (&tick.streams, &tick.heartbeats) else { return };
        if tick.database_is_in {
            return self.close(ctx);
        }
        if let Some(handle) = tick.closes.replace(ctx.run_later(WAIT_FOR_DATABASE, |this, ctx| this.close(ctx))) {
            ctx.cancel_future(handle);
        }
    }

    /// Completes the tick. A tick whose readers panicked has no reading of Redis: it is dropped, and the supervisor starts the next
    /// one.
    fn close(&mut self, ctx: &mut Context<Self>) {
        let Some(tick) = self.tick.take() else { return };
        if let Some(handle) = tick.closes {
            ctx.cancel_future(handle);
        }
        let (Some(streams), Some(heartbeats)) = (tick.streams, tick.heartbeats) else {
            tracing::warn!(tick = tick.n, "dropped a tick: some readings did not arrive");
            return;
        };
        let readings = TickReadings {
            tick: tick.n,
            now: self.io.now(),
            wall: self.io.wall(),
            streams,
            heartbeats,
            database: self.database.clone(),
        };
        if self.restored.records || readings.heartbeats.is_err() {
            return self.advance(readings, ctx);
        }
        let (redis, observe_only) = (self.io.redis.clone(), self.io.observe_only);
        let loading = self.io.run(RESTORE_WITHIN, REDIS_LATE, async move {
            // The order matters: a type that is forgotten between the two reads is loaded, and forgotten by the next tick.
            let forgotten = worker_type_records::forgotten(&redis).await?;
            let failures = failure_records::load(&redis).await?;
            if observe_only {
                return Ok((worker_type_records::load_to_observe(&redis).await?, failures, forgotten));
            }
            match older_monitor::take_over(&redis).await {
                Ok(Some(types)) if types > 0 => {
                    tracing::info!(types, "imported the older monitor's worker states and alerts");
                }
                Ok(_) => {}
                // If Redis is out of memory, the fleet is still shown.
                Err(trouble) => {
                    tracing::warn!(
                        error = trouble.detail,
                        "cannot import the older monitor's state; retrying at the next start"
                    );
                    return Ok((worker_type_records::load_to_observe(&redis).await?, failures, forgotten));
                }
            }
            Ok((worker_type_records::load(&redis).await?, failures, forgotten))
        });
        ctx.wait(loading.into_actor(self).map(move |loaded, this, ctx| {
            match loaded {
                Ok((records, failures, forgotten)) => {
                    this.forgotten = forgotten;
                    this.tracking.tracker.restore_failures(failures);
                    let now_unix = readings.streams.as_ref().map_or(readings.wall, |streams| streams.redis_time);
                    this.tracking.tracker.restore(&records, readings.now, now_unix);
                    this.restored.records = true;
                    this.advance(readings, ctx);
                }
                // Without the records, a lost consumer cannot be told from one that never existed.
                Err(trouble) => this.advance(TickReadings { heartbeats: Err(trouble), ..readings }, ctx),
            }
        }));
    }

    fn advance(&mut self, readings: TickReadings, ctx: &mut Context<Self>) {
        let read = readings.heartbeats.is_ok();
        let Some(Closed { mut snapshot, to_write, refreshes }) = self.tracking.close(readings) else { return };
        snapshot.older_monitor = self.older.verdict();
        snapshot.observe_only = self.io.observe_only;
        if read {
            self.look_for_older_monitor(ctx);
        }
        if refreshes {
            self.forget_what_others_forgot(ctx);
        }
        let snapshot = Arc::new(snapshot);
        if to_write.is_empty() {
            self.tell(snapshot, Arc::new([]));
        } else {
            self.write_then_tell(snapshot, to_write, ctx);
        }
        if matches!(self.database, Some(Ok(_))) {
            self.load_events(ctx);
            self.flush_spool(ctx);
        }
    }

    /// Checks for activity of an older monitor, if that is due.
    fn look_for_older_monitor(&mut self, ctx: &mut Context<Self>) {
        let now = self.io.now();
        if self.looking || !self.older.is_due(now) {
            return;
        }
        self.looking = true;
        let (redis, alive) = (self.io.redis.clone(), self.tracking.tracker.alive_types().next().cloned());
        let looking =
            self.io.run(WRITE_WITHIN, REDIS_LATE, async move { older_monitor::traces(&redis, alive.as_ref()).await });
        ctx.spawn(looking.into_actor(self).map(move |found, this, _| {
            this.looking = false;
            let Ok((wall, traces)) = found else { return };
            let before = this.older.verdict();
            this.older.looked(now, wall, traces);
            match this.older.verdict() {
                is if is == before => {}
                OlderMonitor::Active if this.io.observe_only => {
                    tracing::info!("an older monitor is active on this Redis; this one only observes");
                }
                OlderMonitor::Active => tracing::warn!(
                    "an older monitor is active on this Redis too: both send alerts; this one runs no scheduled \
                     cleanup and records no task durations. Stop one of them, or set MONITOR_OBSERVE_ONLY=yes"
                ),
                OlderMonitor::Absent if before == OlderMonitor::Active => {
                    tracing::info!("the older monitor on this Redis has stopped");
                }
                OlderMonitor::Absent | OlderMonitor::Unknown => {}
            }
        }));
    }

    fn forget_what_others_forgot(&mut self, ctx: &mut Context<Self>) {
        let redis = self.io.redis.clone();
        let reading =
            self.io.run(WRITE_WITHIN, REDIS_LATE, async move { worker_type_records::forgotten(&redis).await });
        ctx.spawn(reading.into_actor(self).map(|marks, this, _| {
            let Ok(marks) = marks else { return };
            let known = std::mem::replace(&mut this.forgotten, marks);
            let of_others = this.forgotten.iter().filter(|(name, mark)| known.get(*name) != Some(*mark));
            let of_others: Vec<Name> = of_others.map(|(name, _)| name.clone()).collect();
            for name in of_others {
                tracing::info!(worker_type = %name, "another instance removed a worker type");
                this.tracking.forget(&name);
            }
        }));
    }

    fn write_then_tell(&mut self, snapshot: Arc<Snapshot>, to_write: ToWrite, ctx: &mut Context<Self>) {
        let ToWrite { events, records, new_types, failures } = to_write;
        let rows: Vec<events::NewRow> = events.iter().map(|event| events::NewRow::from(&**event)).collect();
        let try_postgres = matches!(self.database, Some(Ok(_))) && !self.stores_behind_spool;
        let io = self.io.clone();
        let writing = self.io.run(WRITE_WITHIN * 4, REDIS_LATE, async move {
            let kept = if rows.is_empty() { WrittenTo::Postgres } else { keep(&io, &rows, try_postgres).await };
            if kept == WrittenTo::Nowhere {
                return Ok((kept, None));
            }
            let saved = worker_type_records::save(&io.redis, &records, &new_types).await;
            if let Err(trouble) = failure_records::save(&io.redis, &failures).await {
                tracing::warn!(
                    error = trouble.detail,
                    "cannot save the task failures read so far; retrying within 30 s"
                );
            }
            Ok((kept, Some(saved)))
        });
        ctx.wait(writing.into_actor(self).map(move |written, this, _| {
            let (kept, saved) = written.unwrap_or((WrittenTo::Nowhere, None));
            match saved {
                Some(Ok(())) => {
                    this.tracking.records_written();
                    this.save_failed = false;
                }
                Some(Err(trouble)) if !std::mem::replace(&mut this.save_failed, true) => {
                    tracing::warn!(
                        error = trouble.detail,
                        "cannot save the state of the worker types in Redis; retrying with every tick"
                    );
                }
                _ => {}
            }
            this.spooled |= kept == WrittenTo::Spool;
            this.stores_behind_spool |= kept == WrittenTo::Spool;
            if kept == WrittenTo::Nowhere {
                if !std::mem::replace(&mut this.kept_nowhere, true) {
                    tracing::warn!("cannot write events to Postgres or to Redis; retrying with every tick");
                }
                this.tell(snapshot, Arc::new([]));
            } else {
                this.kept_nowhere = false;
                this.tracking.events_written();
                this.tell(snapshot, events);
            }
        }));
    }

    fn tell(&self, snapshot: Arc<Snapshot>, events: Arc<[Arc<Event>]>) {
        if !events.is_empty() {
            self.supervisor.do_send(Report::Changed(FleetChanged(events)));
        }
        self.supervisor.do_send(Report::Snapshot(SnapshotTaken(snapshot)));
    }

    fn load_events(&mut self, ctx: &mut Context<Self>) {
        if self.restored.events || self.restored.loading_events {
            return;
        }
        self.restored.loading_events = true;
        let pool = self.io.postgres.clone();
        let loading = self.io.run(Duration::from_secs(5), POSTGRES_LATE, async move {
            events::newest(&pool, &events::Filter::default(), 50).await
        });
        ctx.spawn(loading.into_actor(self).map(|rows, this, _| {
            this.restored.loading_events = false;
            if let Ok(rows) = rows {
                this.restored.events = true;
                this.tracking.tracker.restore_events(rows.into_iter().map(Event::from).collect());
            }
        }));
    }

    /// Moves spooled events to Postgres: stores them, then removes them. Each is stored once, even if this is interrupted.
    fn flush_spool(&mut self, ctx: &mut Context<Self>) {
        if !self.spooled || self.flushing || !self.restored.events || self.io.observe_only {
            return;
        }
        self.flushing = true;
        // Events that are spooled during the move set it again.
        self.spooled = false;
        let io = self.io.clone();
        let flushing = self.io.run(Duration::from_secs(10), POSTGRES_LATE, async move {
            let waiting = event_spool::peek(&io.redis, SPOOL_BATCH).await?;
            let read = |json: &String| {
                let row = serde_json::from_str::<events::NewRow>(json);
                row.inspect_err(|error| tracing::warn!(%error, "skipped an invalid event in Redis")).ok()
            };
            let rows: Vec<events::NewRow> = waiting.iter().filter_map(read).collect();
            events::insert(&io.postgres, &rows).await?;
            Ok((waiting.len(), event_spool::remove(&io.redis, &waiting).await))
        });
        ctx.spawn(flushing.into_actor(self).map(|flushed, this, _| {
            this.flushing = false;
            if matches!(flushed, Ok((count, _)) if count < SPOOL_BATCH && !this.spooled) {
                // All of them are stored, whether Redis removed them or not.
                this.stores_behind_spool = false;
            }
            this.spooled |= !matches!(flushed, Ok((0, _)));
            match flushed {
                Ok((0, _)) => {}
                Ok((count, Ok(()))) => {
                    this.io.note_write(&Ok(()));
                    tracing::info!(count, "spooled events were written to Postgres");
                }
                Ok((_, Err(trouble))) | Err(trouble) => {
                    tracing::debug!(error = trouble.detail, "spooled events are still waiting for Postgres");
                }
            }
        }));
    }
}

/// Where events were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WrittenTo {
    Postgres,
    Spool,
    Nowhere,
}

async fn keep(io: &Io, rows: &[events::NewRow], try_postgres: bool) -> WrittenTo {
    if try_postgres {
        match tokio::time::timeout(WRITE_WITHIN, events::insert(&io.postgres, rows)).await {
            Ok(Ok(())) => {
                io.note_write(&Ok(()));
                return WrittenTo::Postgres;
            }
            Ok(Err(trouble)) => {
                tracing::warn!(error = trouble.detail, "events are spooled until Postgres accepts them");
                io.note_write::<()>(&Err(trouble));
            }
            Err(_) => tracing::warn!("events are spooled until Postgres is reachable"),
        }
    }
    if io.observe_only {
        return WrittenTo::Nowhere;
    }
    let json: Vec<String> = rows.iter().filter_map(|row| serde_json::to_string(row).ok()).collect();
    match tokio::time::timeout(WRITE_WITHIN, event_spool::put(&io.redis, &json)).await {
        Ok(Ok(())) => WrittenTo::Spool,
        _ => WrittenTo::Nowhere,
    }
}

impl Actor for StateTracker {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::StateTracker));
    }
}

impl Handler<Tick> for StateTracker {
    type Result = ();

    fn handle(&mut self, tick: Tick, ctx: &mut Self::Context) {
        self.close(ctx);
        let closes = ctx.run_later(tick.deadline + WAIT_FOR_DATABASE * 2, |this, ctx| this.close(ctx));
        self.tick =
            Some(OpenTick { n: tick.n, streams: None, heartbeats: None, database_is_in: false, closes: Some(closes) });
    }
}

impl Handler<StreamsRead> for StateTracker {
    type Result = ();

    fn handle(&mut self, message: StreamsRead, ctx: &mut Self::Context) {
        let Some(tick) = self.tick.as_mut().filter(|tick| tick.n == message.tick) else { return };
        if let Err(trouble) = &message.reading {
            tick.heartbeats = Some(Err(trouble.clone()));
        }
        tick.streams = Some(message.reading);
        self.close_when_complete(ctx);
    }
}

impl Handler<HeartbeatsRead> for StateTracker {
    type Result = ();

    fn handle(&mut self, message: HeartbeatsRead, ctx: &mut Self::Context) {
        let Some(tick) = self.tick.as_mut().filter(|tick| tick.n == message.tick) else { return };
        tick.heartbeats = Some(message.reading);
        self.close_when_complete(ctx);
    }
}

impl Handler<DatabaseRead> for StateTracker {
    type Result = ();

    fn handle(&mut self, message: DatabaseRead, ctx: &mut Self::Context) {
        self.database = Some(message.reading);
        let Some(tick) = self.tick.as_mut().filter(|tick| tick.n == message.tick) else { return };
        tick.database_is_in = true;
        self.close_when_complete(ctx);
    }
}

impl Handler<ForgetWorker> for StateTracker {
    type Result = ResponseActFuture<Self, Result<bool, String>>;

    /// No tick is completed meanwhile, so that the type is not written again.
    fn handle(&mut self, ForgetWorker(name): ForgetWorker, ctx: &mut Self::Context) -> Self::Result {
        let mark = uuid::Uuid::new_v4().to_string();
        let (redis, forgotten, its_mark) = (self.io.redis.clone(), name.clone(), mark.clone());
        let forgetting = self.io.run(WRITE_WITHIN * 4, REDIS_LATE, async move {
            let had_failures = failure_records::forget(&redis, &forgotten).await?;
            Ok(worker_type_records::forget(&redis, &forgotten, &its_mark).await? || had_failures)
        });
        let (answer, answered) = oneshot::channel();
        ctx.wait(forgetting.into_actor(self).map(move |recorded, this, _| {
            if recorded.is_ok() {
                this.forgotten.insert(name.clone(), mark);
            }
            let said = recorded.map(|recorded| this.tracking.forget(&name) || recorded);
            let _ = answer.send(said.map_err(|trouble| trouble.detail));
        }));
        let waiting = async move { answered.await.unwrap_or_else(|_| Err("the state tracker stopped".to_owned())) };
        Box::pin(waiting.into_actor(self))
    }
}

impl Handler<Fail> for StateTracker {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the state tracker failed on request");
    }
}
