//! Counts events and renders them for Prometheus on request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::{Actor, Context, Handler, Recipient, ResponseFuture};
use arc_swap::ArcSwap;

use super::io::Io;
use super::messages::{
    Attempted, Fail, FleetChanged, Health, PassEnded, RenderMetrics, Report, Role, TasksFinished, TickTook,
};
use super::supervisor::Newest;
use crate::alerting::alert_manager::Shown;
use crate::exposition::counters::Counters;
use crate::exposition::page::{self, Condition, Shape, Sight};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Time limit for rendering, about the scrape timeout.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// The counters; they survive restarts of the actor.
pub type SharedCounters = Arc<Mutex<Counters>>;

/// Serves Prometheus metrics.
pub struct Exporter {
    io: Io,
    supervisor: Recipient<Report>,
    counters: SharedCounters,
    newest: Newest,
    alerts: Arc<ArcSwap<Shown>>,
    shape: Shape,
}

impl Exporter {
    /// Returns the actor. It renders `counters`, the `newest` snapshot and the `alerts`.
    #[must_use]
    pub fn new(
        io: Io,
        supervisor: Recipient<Report>,
        counters: SharedCounters,
        newest: Newest,
        alerts: Arc<ArcSwap<Shown>>,
        shape: Shape,
    ) -> Self {
        Self { io, supervisor, counters, newest, alerts, shape }
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room before new names are counted.
    fn forget_old_names(&self) {
        if let Some(snapshot) = &*self.newest.load() {
            self.counters().keep_only(snapshot);
        }
    }
}

fn condition(health: &Health) -> Condition {
    let name = |role: Role| serde_json::to_value(role).ok().and_then(|name| name.as_str().map(str::to_owned));
    let actors = health.actors.iter();
    Condition {
        actors: actors.filter_map(|actor| Some((name(actor.actor)?, actor.up, actor.restarts))).collect(),
        last_tick_age_sec: health.last_tick_age_sec,
        interval_sec: health.interval_sec,
        sessions: health.sessions,
        sessions_dropped: health.sessions_jammed,
    }
}

impl Actor for Exporter {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::Exporter));
    }
}

impl Handler<TickTook> for Exporter {
    type Result = ();

    fn handle(&mut self, TickTook(took): TickTook, _: &mut Self::Context) {
        self.counters().count_tick(took);
    }
}

impl Handler<FleetChanged> for Exporter {
    type Result = ();

    fn handle(&mut self, FleetChanged(events): FleetChanged, _: &mut Self::Context) {
        self.forget_old_names();
        self.counters().count_events(&events);
    }
}

impl Handler<TasksFinished> for Exporter {
    type Result = ();

    fn handle(&mut self, TasksFinished(batches): TasksFinished, _: &mut Self::Context) {
        self.forget_old_names();
        let mut counters = self.counters();
        for (stream, durations) in &batches {
            counters.count_tasks(stream, durations);
        }
    }
}

impl Handler<Attempted> for Exporter {
    type Result = ();

    fn handle(&mut self, attempted: Attempted, _: &mut Self::Context) {
        self.counters().count_attempt(&attempted.channel, attempted.result);
    }
}

impl Handler<PassEnded> for Exporter {
    type Result = ();

    fn handle(&mut self, PassEnded(outcome): PassEnded, _: &mut Self::Context) {
        self.counters().count_pass(outcome.as_deref(), self.io.wall());
    }
}

impl Handler<RenderMetrics> for Exporter {
    type Result = ResponseFuture<Result<String, String>>;

    fn handle(&mut self, asked: RenderMetrics, _: &mut Self::Context) -> Self::Result {
        let counters = self.counters().clone();
        let (snapshot, alerts, shape) = (self.newest.load_full(), self.alerts.load_full(), self.shape.clone());
        let writing = self.io.run(WRITE_WITHIN, "rendering the metrics timed out", async move {
            let written = tokio::task::spawn_blocking(move || {
                let sight = Sight {
                    snapshot: snapshot.as_deref(),
                    counters: &counters,
                    alerts: &alerts,
                    condition: &condition(&asked.health),
                    shape: &shape,
                };
                page::write(&sight, asked.format)
            });
            written.await.map_err(|error| SourceTrouble::new(TroubleKind::Failed, error.to_string()))
        });
        Box::pin(async move { writing.await.map_err(|trouble| trouble.detail) })
    }
}

impl Handler<Fail> for Exporter {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the exporter failed on request");
    }
}
