//! Starts the actors, hands their messages on, and starts them again when they panic.
//!
//! It also keeps the beat: the next tick begins one interval after the last one began, or as soon
//! as that one is done, never in a burst.

use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, Recipient, ResponseActFuture, ResponseFuture,
    SpawnHandle, WrapFuture,
};
use arc_swap::ArcSwapOption;

use super::database_probe::DatabaseProbe;
use super::heartbeat_watcher::HeartbeatWatcher;
use super::io::Io;
use super::live_feed::LiveFeed;
use super::messages::{
    ActorHealth, Fail, FoundHeartbeats, GetChanges, GetHealth, Health, Join, RenderPage, Report, Role, SessionCount,
    SnapshotTaken, Stop, StopFeed, Tick,
};
use super::state_tracker::StateTracker;
use super::stream_poller::StreamPoller;
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;

/// The newest snapshot, for whoever asks. Reading it changes nothing.
pub type Newest = Arc<ArcSwapOption<Snapshot>>;

/// How each actor is made, with the way back to the supervisor.
pub struct Makers {
    /// Makes the stream poller.
    pub stream_poller: Box<dyn Fn(Recipient<Report>) -> StreamPoller>,
    /// Makes the heartbeat watcher.
    pub heartbeat_watcher: Box<dyn Fn(Recipient<Report>) -> HeartbeatWatcher>,
    /// Makes the database probe.
    pub database_probe: Box<dyn Fn(Recipient<Report>) -> DatabaseProbe>,
    /// Makes the state tracker.
    pub state_tracker: Box<dyn Fn(Recipient<Report>) -> StateTracker>,
    /// Makes the live feed.
    pub live_feed: Box<dyn Fn(Recipient<Report>) -> LiveFeed>,
}

/// The actor.
pub struct Supervisor {
    io: Io,
    interval: Duration,
    makers: Makers,
    newest: Newest,
    stream_poller: Child<StreamPoller>,
    heartbeat_watcher: Child<HeartbeatWatcher>,
    database_probe: Child<DatabaseProbe>,
    state_tracker: Child<StateTracker>,
    live_feed: Child<LiveFeed>,
    /// Number of the tick under way or done last.
    tick: u64,
    began: Mono,
    done: Option<Done>,
    /// Begins another tick when the present one does not end.
    giving_up: Option<SpawnHandle>,
    /// There is news worth a tick at once.
    hurry: bool,
    stopping: bool,
}

#[derive(Clone, Copy)]
struct Done {
    tick: u64,
    at: Mono,
    took: Duration,
}

/// One supervised actor.
struct Child<A: Actor> {
    addr: Option<Addr<A>>,
    restarts: u32,
}

impl<A: Actor<Context = Context<A>>> Child<A> {
    fn none() -> Self {
        Self { addr: None, restarts: 0 }
    }

    fn is_up(&self) -> bool {
        self.addr.as_ref().is_some_and(Addr::connected)
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

    fn health(&self, actor: Role) -> ActorHealth {
        ActorHealth { actor, up: self.is_up(), restarts: self.restarts }
    }

    /// Counts the fall; how long to wait before the next start: longer each time, up to a minute.
    fn fell(&mut self) -> Duration {
        self.addr = None;
        self.restarts += 1;
        Duration::from_millis(100 << self.restarts.min(9)).min(Duration::from_secs(60))
    }
}

impl Supervisor {
    /// Supervises actors made by `makers`; snapshots are published to `newest`.
    #[must_use]
    pub fn new(io: Io, interval: Duration, makers: Makers, newest: Newest) -> Self {
        Self {
            io,
            interval,
            makers,
            newest,
            stream_poller: Child::none(),
            heartbeat_watcher: Child::none(),
            database_probe: Child::none(),
            state_tracker: Child::none(),
            live_feed: Child::none(),
            tick: 0,
            began: Mono::default(),
            done: None,
            giving_up: None,
            hurry: false,
            stopping: false,
        }
    }

    /// How long a source may take, so that a tick is over before the next is due.
    fn deadline(&self) -> Duration {
        answer_within(self.interval)
    }

    fn start(&mut self, role: Role, ctx: &mut Context<Self>) {
        let up = ctx.address().recipient();
        match role {
            Role::StreamPoller => self.stream_poller.addr = Some((self.makers.stream_poller)(up).start()),
            Role::HeartbeatWatcher => self.heartbeat_watcher.addr = Some((self.makers.heartbeat_watcher)(up).start()),
            Role::DatabaseProbe => self.database_probe.addr = Some((self.makers.database_probe)(up).start()),
            Role::StateTracker => self.state_tracker.addr = Some((self.makers.state_tracker)(up).start()),
            Role::LiveFeed => self.live_feed.addr = Some((self.makers.live_feed)(up).start()),
        }
    }

    fn restart(&mut self, role: Role, ctx: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        let backoff = match role {
            Role::StreamPoller => self.stream_poller.fell(),
            Role::HeartbeatWatcher => self.heartbeat_watcher.fell(),
            Role::DatabaseProbe => self.database_probe.fell(),
            Role::StateTracker => self.state_tracker.fell(),
            Role::LiveFeed => self.live_feed.fell(),
        };
        tracing::error!(actor = ?role, again_in_ms = backoff.as_millis(), "an actor ended; it is started again");
        ctx.run_later(backoff, move |this, ctx| {
            if this.stopping {
                return;
            }
            this.start(role, ctx);
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
        let tick = Tick { n: self.tick, at: self.began, deadline: self.deadline() };
        self.state_tracker.tell(tick);
        self.database_probe.tell(tick);
        self.stream_poller.tell(tick);
        // A tick whose tracker fell is not waited for.
        let given_up = self.interval.max(self.deadline() + Duration::from_secs(6));
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
        self.live_feed.tell(SnapshotTaken(snapshot));
        if tick != self.tick || self.done.is_some_and(|done| done.tick >= tick) {
            return;
        }
        self.done = Some(Done { tick, at: now, took });
        if let Some(giving_up) = self.giving_up.take() {
            ctx.cancel_future(giving_up);
        }
        let rest = if self.hurry { Duration::ZERO } else { self.interval.saturating_sub(took) };
        ctx.run_later(rest.max(Duration::from_millis(10)), move |this, ctx| {
            if this.tick == tick {
                this.begin_tick(ctx);
            }
        });
    }
}

/// How long a source may take when ticks come every `interval`.
#[must_use]
pub fn answer_within(interval: Duration) -> Duration {
    (interval * 4 / 5).clamp(Duration::from_millis(500), Duration::from_millis(2400))
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        for role in Role::ALL {
            self.start(role, ctx);
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
            }
            Report::Ended(role) => self.restart(role, ctx),
        }
    }
}

impl Handler<Fail> for Supervisor {
    type Result = ();

    fn handle(&mut self, fail: Fail, _: &mut Self::Context) {
        match fail.0 {
            Role::StreamPoller => self.stream_poller.tell(fail),
            Role::HeartbeatWatcher => self.heartbeat_watcher.tell(fail),
            Role::DatabaseProbe => self.database_probe.tell(fail),
            Role::StateTracker => self.state_tracker.tell(fail),
            Role::LiveFeed => self.live_feed.tell(fail),
        }
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

const NO_FEED: &str = "the live feed is being started again";

impl Handler<GetHealth> for Supervisor {
    type Result = ResponseActFuture<Self, Health>;

    fn handle(&mut self, _: GetHealth, _: &mut Self::Context) -> Self::Result {
        let feed = self.live_feed.addr.clone();
        let counting = async move {
            match feed {
                Some(feed) => feed.send(SessionCount).await.unwrap_or_default(),
                None => (0, 0),
            }
        };
        Box::pin(counting.into_actor(self).map(|(sessions, sessions_jammed), this, _| Health {
            actors: vec![
                this.stream_poller.health(Role::StreamPoller),
                this.heartbeat_watcher.health(Role::HeartbeatWatcher),
                this.database_probe.health(Role::DatabaseProbe),
                this.state_tracker.health(Role::StateTracker),
                this.live_feed.health(Role::LiveFeed),
            ],
            ticks: this.done.map_or(0, |done| done.tick),
            last_tick_age_sec: this.done.map(|done| this.io.now().since(done.at).as_secs_f64()),
            last_tick_took_ms: this.done.map(|done| u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX)),
            interval_sec: this.interval.as_secs_f64(),
            sessions,
            sessions_jammed,
            stopping: this.stopping,
        }))
    }
}

impl Handler<Stop> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        self.stopping = true;
        self.stream_poller.addr = None;
        self.heartbeat_watcher.addr = None;
        self.database_probe.addr = None;
        self.live_feed.tell(StopFeed);
    }
}
