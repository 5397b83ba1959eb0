//! Starts the actors, forwards their messages, and restarts them after a panic.
//!
//! It also starts the ticks: one interval after the previous tick started, or as soon as that one is completed, never in a burst.

use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, Recipient, ResponseActFuture, ResponseFuture,
    SpawnHandle, WrapFuture,
};
use arc_swap::ArcSwapOption;

use super::alert_dispatcher::AlertDispatcher;
use super::alert_evaluator::AlertEvaluator;
use super::compactor::Compactor;
use super::database_probe::DatabaseProbe;
use super::dead_mans_switch::DeadMansSwitch;
use super::exporter::Exporter;
use super::heartbeat_watcher::HeartbeatWatcher;
use super::history_recorder::HistoryRecorder;
use super::io::Io;
use super::janitor::Janitor;
use super::kernel_timer;
use super::latency_bucketer::LatencyBucketer;
use super::live_feed::LiveFeed;
use super::messages::{
    ActorHealth, AlertOrder, CleanUp, Fail, ForgetWorker, FoundHeartbeats, GetChanges, GetHealth, GetMetrics, Health,
    Join, ReadBack, RenderMetrics, RenderPage, Report, Role, SendTest, SessionCount, SnapshotTaken, Stop, StopFeed,
    TestAnswer, Tick, TickTook,
};
use super::retention_sweeper::RetentionSweeper;
use super::state_tracker::StateTracker;
use super::stream_poller::StreamPoller;
use crate::fleet::cleanup::Outcome;
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;

/// The newest snapshot, readable by any thread.
pub type Newest = Arc<ArcSwapOption<Snapshot>>;

/// Creates an actor from the recipient for its reports to the supervisor.
pub type Maker<A> = Box<dyn Fn(Recipient<Report>) -> A>;

/// Constructors of all actors.
pub struct ActorFactories {
    /// Makes the stream poller.
    pub stream_poller: Maker<StreamPoller>,
    /// Makes the heartbeat watcher.
    pub heartbeat_watcher: Maker<HeartbeatWatcher>,
    /// Makes the database probe.
    pub database_probe: Maker<DatabaseProbe>,
    /// Makes the state tracker.
    pub state_tracker: Maker<StateTracker>,
    /// Makes the live feed.
    pub live_feed: Maker<LiveFeed>,
    /// Makes the history recorder.
    pub history_recorder: Maker<HistoryRecorder>,
    /// Makes the latency bucketer.
    pub latency_bucketer: Maker<LatencyBucketer>,
    /// Makes the compactor.
    pub compactor: Maker<Compactor>,
    /// Makes the retention sweeper.
    pub retention_sweeper: Maker<RetentionSweeper>,
    /// Makes the janitor.
    pub janitor: Maker<Janitor>,
    /// Makes the alert evaluator.
    pub alert_evaluator: Maker<AlertEvaluator>,
    /// Makes the alert dispatcher.
    pub alert_dispatcher: Maker<AlertDispatcher>,
    /// Makes the dead man's switch.
    pub dead_mans_switch: Maker<DeadMansSwitch>,
    /// Makes the exporter.
    pub exporter: Maker<Exporter>,
}

/// Supervises all actors; see the module documentation.
pub struct Supervisor {
    io: Io,
    interval: Duration,
    newest: Newest,
    stream_poller: Child<StreamPoller>,
    heartbeat_watcher: Child<HeartbeatWatcher>,
    database_probe: Child<DatabaseProbe>,
    state_tracker: Child<StateTracker>,
    live_feed: Child<LiveFeed>,
    history_recorder: Child<HistoryRecorder>,
    latency_bucketer: Child<LatencyBucketer>,
    compactor: Child<Compactor>,
    retention_sweeper: Child<RetentionSweeper>,
    janitor: Child<Janitor>,
    alert_evaluator: Child<AlertEvaluator>,
    alert_dispatcher: Child<AlertDispatcher>,
    dead_mans_switch: Child<DeadMansSwitch>,
    exporter: Child<Exporter>,
    /// Number of the current or last tick.
    tick: u64,
    began: Mono,
    done: Option<Done>,
    /// Timer that starts another tick if the current one does not complete.
    giving_up: Option<SpawnHandle>,
    /// The next tick should start immediately.
    hurry: bool,
    stopping: bool,
}

#[derive(Clone, Copy)]
struct Done {
    tick: u64,
    at: Mono,
    took: Duration,
}

/// A supervised actor.
struct Child<A: Actor> {
    maker: Maker<A>,
    addr: Option<Addr<A>>,
    restarts: u32,
}

/// Operations of the supervisor on any of its actors.
trait Supervised {
    fn start(&mut self, up: Recipient<Report>);
    /// Counts the panic. Returns the delay before the restart, which grows up to a minute.
    fn fell(&mut self) -> Duration;
    /// Drops the address; the actor stops when its mailbox is empty.
    fn dismiss(&mut self);
    fn fail(&self, fail: Fail);
    fn is_up(&self) -> bool;
    fn restarts(&self) -> u32;
}

impl<A: Actor<Context = Context<A>> + Handler<Fail>> Supervised for Child<A> {
    fn start(&mut self, up: Recipient<Report>) {
        self.addr = Some((self.maker)(up).start());
    }

    fn fell(&mut self) -> Duration {
        self.addr = None;
        self.restarts += 1;
        Duration::from_millis(100 << self.restarts.min(9)).min(Duration::from_secs(60))
    }

    fn dismiss(&mut self) {
        self.addr = None;
    }

    fn fail(&self, fail: Fail) {
        self.tell(fail);
    }

    fn is_up(&self) -> bool {
        self.addr.as_ref().is_some_and(Addr::connected)
    }

    fn restarts(&self) -> u32 {
        self.restarts
    }
}

impl<A: Actor<Context = Context<A>>> Child<A> {
    fn made_by(maker: Maker<A>) -> Self {
        Self { maker, addr: None, restarts: 0 }
    }

    fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        if let Some(addr) = &self.addr {
            addr.do_send(message);
        }
    }
}

impl Supervisor {
    /// Returns the supervisor of actors created by `factories`; it publishes snapshots to `newest`.
    #[must_use]
    pub fn new(io: Io, interval: Duration, factories: ActorFactories, newest: Newest) -> Self {
        Self {
            io,
            interval,
            newest,
            stream_poller: Child::made_by(factories.stream_poller),
            heartbeat_watcher: Child::made_by(factories.heartbeat_watcher),
            database_probe: Child::made_by(factories.database_probe),
            state_tracker: Child::made_by(factories.state_tracker),
            live_feed: Child::made_by(factories.live_feed),
            history_recorder: Child::made_by(factories.history_recorder),
            latency_bucketer: Child::made_by(factories.latency_bucketer),
            compactor: Child::made_by(factories.compactor),
            retention_sweeper: Child::made_by(factories.retention_sweeper),
            janitor: Child::made_by(factories.janitor),
            alert_evaluator: Child::made_by(factories.alert_evaluator),
            alert_dispatcher: Child::made_by(factories.alert_dispatcher),
            dead_mans_switch: Child::made_by(factories.dead_mans_switch),
            exporter: Child::made_by(factories.exporter),
            tick: 0,
            began: Mono::default(),
            done: None,
            giving_up: None,
            hurry: false,
            stopping: false,
        }
    }

    /// Returns the child with this role; the only mapping of roles to children.
    fn child(&mut self, role: Role) -> &mut dyn Supervised {
        match role {
            Role::StreamPoller => &mut self.stream_poller,
            Role::HeartbeatWatcher => &mut self.heartbeat_watcher,
            Role::DatabaseProbe => &mut self.database_probe,
            Role::StateTracker => &mut self.state_tracker,
            Role::LiveFeed => &mut self.live_feed,
            Role::HistoryRecorder => &mut self.history_recorder,
            Role::LatencyBucketer => &mut self.latency_bucketer,
            Role::Compactor => &mut self.compactor,
            Role::RetentionSweeper => &mut self.retention_sweeper,
            Role::Janitor => &mut self.janitor,
            Role::AlertEvaluator => &mut self.alert_evaluator,
            Role::AlertDispatcher => &mut self.alert_dispatcher,
            Role::DeadMansSwitch => &mut self.dead_mans_switch,
            Role::Exporter => &mut self.exporter,
        }
    }

    fn restart(&mut self, role: Role, ctx: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        let backoff = self.child(role).fell();
        tracing::error!(actor = ?role, again_in_ms = backoff.as_millis(), "an actor stopped; restarting it");
        ctx.run_later(backoff, move |this, ctx| {
            if this.stopping {
                return;
            }
            this.child(role).start(ctx.address().recipient());
            if this.done.is_none_or(|done| done.tick < this.tick) {
                this.begin_tick(ctx);
            }
        });
    }

    fn begin_tick(&mut self, ctx: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        self.tick += 1;
        self.hurry = false;
        self.began = self.io.now();
        let tick = Tick {
            n: self.tick,
            at: self.began,
            deadline: read_within(self.interval),
            answer_within: answer_within(self.interval),
        };
        self.state_tracker.tell(tick);
        self.database_probe.tell(tick);
        self.stream_poller.tell(tick);
        self.heartbeat_watcher.tell(tick);
        self.alert_evaluator.tell(tick);
        // A tick is not awaited if its tracker panicked.
        let given_up = self.interval.max(tick.deadline + Duration::from_secs(6));
        let giving_up = ctx.run_later(given_up, move |this, ctx| {
            if this.tick == tick.n && this.done.is_none_or(|done| done.tick < tick.n) {
                this.begin_tick(ctx);
            }
        });
        if let Some(earlier) = self.giving_up.replace(giving_up) {
            ctx.cancel_future(earlier);
        }
    }

    fn tick_done(&mut self, snapshot: Arc<Snapshot>, ctx: &mut Context<Self>) {
        let now = self.io.now();
        let took = now.since(self.began);
        let tick = snapshot.tick;
        self.newest.store(Some(Arc::clone(&snapshot)));
        self.history_recorder.tell(SnapshotTaken(Arc::clone(&snapshot)));
        self.latency_bucketer.tell(SnapshotTaken(Arc::clone(&snapshot)));
        self.janitor.tell(SnapshotTaken(Arc::clone(&snapshot)));
        self.alert_evaluator.tell(SnapshotTaken(Arc::clone(&snapshot)));
        self.stream_poller.tell(SnapshotTaken(Arc::clone(&snapshot)));
        self.live_feed.tell(SnapshotTaken(snapshot));
        if tick != self.tick || self.done.is_some_and(|done| done.tick >= tick) {
            return;
        }
        self.done = Some(Done { tick, at: now, took });
        self.exporter.tell(TickTook(took));
        if let Some(giving_up) = self.giving_up.take() {
            ctx.cancel_future(giving_up);
        }
        let rest = if self.hurry { Duration::ZERO } else { self.interval.saturating_sub(took) };
        kernel_timer::later(ctx, rest.max(Duration::from_millis(10)), move |this, ctx| {
            if this.tick == tick {
                this.begin_tick(ctx);
            }
        });
    }
}

/// Maximum time for reading all streams.
const READING_AT_MOST: Duration = Duration::from_secs(60);

/// Returns the time limit for reading a data source, in as many round trips as that takes, if ticks start every `interval`.
fn read_within(interval: Duration) -> Duration {
    (interval * 4 / 5).clamp(Duration::from_millis(500), READING_AT_MOST)
}

/// Returns the time limit for one reply of a data source if ticks start every `interval`.
#[must_use]
pub fn answer_within(interval: Duration) -> Duration {
    (interval * 4 / 5).clamp(Duration::from_millis(500), Duration::from_millis(2400))
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        for role in Role::ALL {
            self.child(role).start(ctx.address().recipient());
        }
        self.begin_tick(ctx);
    }
}

impl Handler<Report> for Supervisor {
    type Result = ();

    fn handle(&mut self, report: Report, ctx: &mut Self::Context) {
        match report {
            Report::Streams(read) => {
                self.heartbeat_watcher.tell(read.clone());
                self.state_tracker.tell(read);
            }
            Report::Walked { news, heartbeat_keys } => {
                self.heartbeat_watcher.tell(FoundHeartbeats(heartbeat_keys));
                self.hurry |= news;
                if self.hurry && self.done.is_some_and(|done| done.tick == self.tick) {
                    self.begin_tick(ctx);
                }
            }
            Report::Heartbeats(read) => self.state_tracker.tell(read),
            Report::Database(read) => self.state_tracker.tell(read),
            Report::Snapshot(SnapshotTaken(snapshot)) => self.tick_done(snapshot, ctx),
            Report::Changed(changed) => {
                for event in changed.0.iter() {
                    tracing::info!(
                        subject = event.subject,
                        event = event.type_name(),
                        severity = event.severity().as_str(),
                        "{}",
                        event.summary()
                    );
                }
                self.exporter.tell(changed.clone());
                self.alert_evaluator.tell(changed);
            }
            Report::Deliver(deliver) => self.alert_dispatcher.tell(deliver),
            Report::Alerts(alerts) => self.live_feed.tell(alerts),
            Report::AlertingWorks(works) => self.dead_mans_switch.tell(works),
            Report::Channel(channel) => self.alert_evaluator.tell(channel),
            Report::Attempted(attempted) => self.exporter.tell(attempted),
            Report::Finished(finished) => self.exporter.tell(finished),
            Report::Passed(passed) => self.exporter.tell(passed),
            Report::DispatcherStarted => self.alert_evaluator.tell(ReadBack),
            Report::Ended(role) => self.restart(role, ctx),
        }
    }
}

impl Handler<Fail> for Supervisor {
    type Result = ();

    fn handle(&mut self, fail: Fail, _: &mut Self::Context) {
        self.child(fail.0).fail(fail);
    }
}

impl Handler<Join> for Supervisor {
    type Result = ();

    fn handle(&mut self, join: Join, _: &mut Self::Context) {
        self.live_feed.tell(join);
    }
}

impl Handler<RenderPage> for Supervisor {
    type Result = ResponseFuture<Result<String, String>>;

    fn handle(&mut self, asked: RenderPage, _: &mut Self::Context) -> Self::Result {
        let feed = self.live_feed.addr.clone();
        Box::pin(async move { feed.ok_or(NO_FEED)?.send(asked).await.map_err(|_| NO_FEED)? })
    }
}

impl Handler<GetChanges> for Supervisor {
    type Result = ResponseFuture<Result<Option<String>, String>>;

    fn handle(&mut self, asked: GetChanges, _: &mut Self::Context) -> Self::Result {
        let feed = self.live_feed.addr.clone();
        Box::pin(async move { feed.ok_or(NO_FEED)?.send(asked).await.map_err(|_| NO_FEED)? })
    }
}

impl Handler<AlertOrder> for Supervisor {
    type Result = ResponseFuture<Result<String, String>>;

    fn handle(&mut self, order: AlertOrder, _: &mut Self::Context) -> Self::Result {
        let evaluator = self.alert_evaluator.addr.clone();
        Box::pin(async move { evaluator.ok_or(NO_EVALUATOR)?.send(order).await.map_err(|_| NO_EVALUATOR)? })
    }
}

impl Handler<CleanUp> for Supervisor {
    type Result = ResponseFuture<Result<Outcome, String>>;

    fn handle(&mut self, asked: CleanUp, _: &mut Self::Context) -> Self::Result {
        let janitor = self.janitor.addr.clone();
        Box::pin(async move { janitor.ok_or(NO_JANITOR)?.send(asked).await.map_err(|_| NO_JANITOR)? })
    }
}

impl Handler<ForgetWorker> for Supervisor {
    type Result = ResponseFuture<Result<bool, String>>;

    fn handle(&mut self, forget: ForgetWorker, _: &mut Self::Context) -> Self::Result {
        let tracker = self.state_tracker.addr.clone();
        Box::pin(async move { tracker.ok_or(NO_TRACKER)?.send(forget).await.map_err(|_| NO_TRACKER)? })
    }
}

impl Handler<SendTest> for Supervisor {
    type Result = ResponseFuture<Vec<TestAnswer>>;

    fn handle(&mut self, test: SendTest, _: &mut Self::Context) -> Self::Result {
        let dispatcher = self.alert_dispatcher.addr.clone();
        Box::pin(async move {
            match dispatcher {
                Some(dispatcher) => dispatcher.send(test).await.unwrap_or_default(),
                None => Vec::new(),
            }
        })
    }
}

const NO_JANITOR: &str = "the janitor is restarting";
const NO_TRACKER: &str = "the state tracker is restarting";
const NO_EVALUATOR: &str = "the alert evaluator is restarting";
const NO_FEED: &str = "the live feed is restarting";

const NO_EXPORTER: &str = "the exporter is restarting";

impl Handler<GetHealth> for Supervisor {
    type Result = ResponseActFuture<Self, Health>;

    fn handle(&mut self, _: GetHealth, _: &mut Self::Context) -> Self::Result {
        self.health()
    }
}

impl Handler<GetMetrics> for Supervisor {
    type Result = ResponseActFuture<Self, Result<String, String>>;

    fn handle(&mut self, GetMetrics(format): GetMetrics, _: &mut Self::Context) -> Self::Result {
        let answering = self.health().then(move |health, this, _| {
            let exporter = this.exporter.addr.clone();
            let asking = async move {
                let exporter = exporter.ok_or(NO_EXPORTER)?;
                exporter.send(RenderMetrics { format, health }).await.map_err(|_| NO_EXPORTER)?
            };
            asking.into_actor(this)
        });
        Box::pin(answering)
    }
}

impl Supervisor {
    fn health(&self) -> ResponseActFuture<Self, Health> {
        let feed = self.live_feed.addr.clone();
        let counting = async move {
            match feed {
                Some(feed) => feed.send(SessionCount).await.unwrap_or_default(),
                None => (0, 0),
            }
        };
        Box::pin(counting.into_actor(self).map(|(sessions, sessions_jammed), this, _| {
            Health {
                actors: Role::ALL
                    .map(|actor| {
                        let child = this.child(actor);
                        ActorHealth { actor, up: child.is_up(), restarts: child.restarts() }
                    })
                    .into(),
                ticks: this.done.map_or(0, |done| done.tick),
                last_tick_age_sec: this.done.map(|done| this.io.now().since(done.at).as_secs_f64()),
                last_tick_took_ms: this.done.map(|done| u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX)),
                interval_sec: this.interval.as_secs_f64(),
                sessions,
                sessions_jammed,
                stopping: this.stopping,
            }
        }))
    }
}

impl Handler<Stop> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        self.stopping = true;
        for role in Role::ALL {
            // The feed must close sessions first; the tracker completes the current tick.
            if !matches!(role, Role::LiveFeed | Role::StateTracker) {
                self.child(role).dismiss();
            }
        }
        self.live_feed.tell(StopFeed);
    }
}
