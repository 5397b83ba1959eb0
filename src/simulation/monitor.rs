//! A monitor process of a simulated world: the decisions of the real one, on models of the servers.
//!
//! Four loops replace the actors: tracking, lease renewal, alert evaluation, delivery. The decisions are the product's code
//! ([`FleetTracking`], [`Evaluation`], [`Ledger`], [`DeliveryQueue`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::scenario::ChannelMode;
use super::servers::OwnedRows;
use super::world::{Delivered, QUANTUM, Server, Task, World};
use crate::actors::alert_evaluation::{Decision, Evaluation};
use crate::actors::alert_ledger::{Change, LEASE, LeaseChange, Ledger};
use crate::actors::alert_store::AlertStore;
use crate::actors::delivery_queue::{Begun, DeliveryQueue, settle};
use crate::actors::fleet_tracking::{Closed, FleetTracking, ToWrite};
use crate::actors::messages::ChannelState;
use crate::alerting::alert_manager::{AlertManager, AlertManagerSettings};
use crate::alerting::file;
use crate::alerting::lifecycle::Alert;
use crate::alerting::rule::RuleSet;
use crate::alerting::silences::Silence;
use crate::contract::Name;
use crate::delivery::Outcome;
use crate::fleet::event::Event;
use crate::fleet::reading::{Callbacks, DatabaseReading, Probed, SourceTrouble};
use crate::fleet::simulated::{Fleet, Reader};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::fleet::tracker::{TickReadings, Tracker, TrackerSettings};
use crate::fleet::watched::WatchedStreams;
use crate::fleet::worker_type::WorkerStateRecord;
use crate::postgres::alerts::{LeaseReply, NotWritten, OutboxRow, Rows, StoredAlerts};
use crate::postgres::alerts_spool::Unsaved;
use crate::postgres::events::NewRow;

/// Time limit for queries, milliseconds.
const SOURCE_WITHIN: u64 = 900;
const WRITE_WITHIN: u64 = 1000;
/// Spooled events moved to Postgres at a time; small, so that several rounds are needed.
const SPOOL_BATCH: usize = 3;

/// Variants of the rules file: a glob, the stream by name, no rule for it.
pub(super) const RULES: [&str; 3] = [
    "rules: [{name: long, type: threshold, metric: xlen, stream: '[ab]rax*', threshold: 100, duration: 6s, cooldown: 60s}, \
     {name: storm, type: threshold, metric: xlen, stream: 'storm-*', threshold: 100, severity: critical, cooldown: 60s}]\n\
     group_by: [stream]",
    "rules: [{name: long, type: threshold, metric: xlen, stream: arax, threshold: 100, duration: 6s, cooldown: 60s}, \
     {name: storm, type: threshold, metric: xlen, stream: 'storm-*', threshold: 100, severity: critical, cooldown: 60s}]\n\
     group_by: [stream]",
    "rules: [{name: storm, type: threshold, metric: xlen, stream: 'storm-*', threshold: 100, severity: critical, cooldown: 60s}]\n\
     group_by: [stream]",
];

/// Parsed [`RULES`].
pub(super) type RuleSets = Rc<Vec<Arc<RuleSet>>>;

pub(super) fn rule_sets() -> RuleSets {
    Rc::new(RULES.iter().map(|text| Arc::new(file::read(text).unwrap())).collect())
}

/// Returns the streams of the workers. One name is too long for an index row.
pub(super) fn worker_types() -> [Name; 2] {
    ["arax".into(), format!("long-{}", "x".repeat(3000)).as_str().into()]
}

/// State shared by the loops of a process.
pub(super) struct Monitor {
    pub(super) world: Rc<World>,
    fleet: Rc<RefCell<Fleet>>,
    rule_sets: RuleSets,
    pub(super) machine: usize,
    interval: u64,
    reader: Reader,
    started: u64,
    inbox: RefCell<VecDeque<Message>>,
    pub(super) tracking: RefCell<FleetTracking>,
    pub(super) evaluation: RefCell<Evaluation>,
    ledger: Ledger<Store>,
    queue: RefCell<DeliveryQueue>,
    /// Time of the next evaluation without a snapshot, milliseconds of true time.
    wakes: Cell<Option<u64>>,
    /// The result of the last renewal was applied.
    lease_taken_in: Cell<bool>,
    /// Published snapshot.
    pub(super) newest: RefCell<Option<Arc<Snapshot>>>,
    /// Published events, which are written.
    pub(super) announced: RefCell<Vec<Arc<Event>>>,
}

/// What a process knows about the spool in Redis.
struct Spool {
    /// It may not be empty.
    waits: bool,
    /// It contains events of this process, so later ones must be stored after them.
    stores_behind: bool,
}

impl Default for Spool {
    fn default() -> Self {
        Self { waits: true, stores_behind: false }
    }
}

enum Message {
    Changed(Arc<[Arc<Event>]>),
    Snapshot(Arc<Snapshot>),
    Renewed { news: LeaseChange, silences: Vec<Silence>, may_act: bool },
    Channel(ChannelState),
}

impl Monitor {
    /// Starts a process on `machine`.
    pub(super) fn start(
        world: &Rc<World>,
        fleet: &Rc<RefCell<Fleet>>,
        rule_sets: &RuleSets,
        (machine, interval): (usize, u64),
    ) -> (Rc<Self>, Vec<Task>) {
        let started = world.now.get();
        let [_, second] = worker_types();
        let excludes = world.machines[machine].excludes.get().then_some(second);
        let excluded: Vec<String> = excludes.iter().map(|_| "long-*".to_owned()).collect();
        let settings = TrackerSettings {
            interval: Duration::from_secs(interval),
            default_floor: Duration::from_secs(30),
            seed_streams: Vec::new(),
            watched: Arc::new(WatchedStreams::new(&[], &excluded).unwrap()),
            aras: Arc::new([]),
            disk_capacity_bytes: 0,
        };
        let (wall, now) = (world.wall(machine), Mono(0));
        let rules = Arc::clone(&rule_sets[world.rules.get()]);
        let manager = AlertManager::new(
            AlertManagerSettings { grace_until: wall + 5.0, debounce: 3.0, channels: vec!["webhook".to_owned()] },
            rules,
        );
        let holder = world.random.borrow_mut().between(0, u64::MAX);
        let monitor = Rc::new(Self {
            world: Rc::clone(world),
            fleet: Rc::clone(fleet),
            rule_sets: Rc::clone(rule_sets),
            machine,
            interval,
            reader: Reader { machine, interval, excludes },
            started,
            inbox: RefCell::default(),
            tracking: RefCell::new(FleetTracking::new(Tracker::new(settings, now, wall), false)),
            evaluation: RefCell::new(Evaluation::new(manager, wall, now)),
            ledger: Ledger::new(Store { world: Rc::clone(world), machine, holder, started }),
            queue: RefCell::default(),
            wakes: Cell::new(None),
            lease_taken_in: Cell::new(true),
            newest: RefCell::default(),
            announced: RefCell::default(),
        });
        let span = || tracing::info_span!("monitor", machine);
        let tasks: Vec<Task> = vec![
            Box::pin(Rc::clone(&monitor).track().instrument(span())),
            Box::pin(Rc::clone(&monitor).lease().instrument(span())),
            Box::pin(Rc::clone(&monitor).evaluate().instrument(span())),
            Box::pin(Rc::clone(&monitor).dispatch().instrument(span())),
        ];
        (monitor, tasks)
    }

    fn now(&self) -> Mono {
        Mono(self.world.now.get() - self.started)
    }

    fn wall(&self) -> f64 {
        self.world.wall(self.machine)
    }

    /// Returns whether it watches a worker type.
    pub(super) fn watches(&self, stream: &Name) -> bool {
        self.reader.excludes.as_ref() != Some(stream)
    }

    /// Returns whether notifications wait.
    pub(super) fn delivers(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    async fn track(self: Rc<Self>) {
        let world = &self.world;
        let (mut restored, mut spool, mut figures) = (false, Spool::default(), DatabaseReading::default());
        let mut tick = 0;
        loop {
            let next = self.started + tick * self.interval * 1000;
            world.until(next.max(world.now.get())).await;
            tick = (world.now.get() - self.started) / (self.interval * 1000) + 1;
            let redis = async {
                let streams = world
                    .call(self.machine, Server::Redis, SOURCE_WITHIN, |world| {
                        let redis = world.redis.borrow();
                        let (time, excludes) = (redis.time(world.now.get()), self.reader.excludes.as_ref());
                        Ok(self.fleet.borrow().read_streams(excludes, time, redis.run))
                    })
                    .await?;
                let heartbeats = world
                    .call(self.machine, Server::Redis, SOURCE_WITHIN, |world| {
                        let mut fleet = self.fleet.borrow_mut();
                        let (now, redis) = (world.now.get(), world.redis.borrow());
                        fleet.is_read_by(&self.reader, now / 1000, redis.time(now / 1000 * 1000), &redis.keys);
                        if redis.takes(now).is_err() || now < world.flaky_until.get() {
                            fleet.is_interrupted(self.machine);
                        }
                        Ok(fleet.read_heartbeats(self.reader.excludes.as_ref(), &redis.keys))
                    })
                    .await;
                Ok::<_, SourceTrouble>((Arc::new(streams), heartbeats.map(Arc::new)))
            };
            let probe = world.call(self.machine, Server::Postgres, SOURCE_WITHIN, |_| Ok(()));
            let (redis, database) = futures_util::join!(redis, probe);
            if database.is_ok() {
                self.probe(&mut figures);
            }
            let database = database.map(|()| Arc::new(figures.clone()));
            let has_postgres = database.is_ok();
            let (streams, heartbeats) = match redis {
                Ok((streams, heartbeats)) => (Ok(streams), heartbeats),
                Err(trouble) => (Err(trouble.clone()), Err(trouble)),
            };
            let mut readings = TickReadings {
                tick,
                now: self.now(),
                wall: self.wall(),
                streams,
                heartbeats,
                database: Some(database),
            };
            if !restored && readings.heartbeats.is_ok() {
                let loaded = world
                    .call(self.machine, Server::Redis, WRITE_WITHIN, |world| Ok(world.redis.borrow().records.clone()))
                    .await;
                match loaded {
                    Ok(records) => {
                        let records: BTreeMap<Name, WorkerStateRecord> = records
                            .into_iter()
                            .map(|(name, json)| (name, serde_json::from_str(&json).unwrap()))
                            .collect();
                        let now_unix = readings.streams.as_ref().map_or(readings.wall, |streams| streams.redis_time);
                        self.tracking.borrow_mut().tracker.restore(&records, readings.now, now_unix);
                        restored = true;
                    }
                    Err(trouble) => readings.heartbeats = Err(trouble),
                }
            }
            let read_at = readings.now;
            let Some(Closed { snapshot, to_write, .. }) = self.tracking.borrow_mut().close(readings) else { continue };
            self.compare_figures(&snapshot, read_at);
            let events =
                if to_write.is_empty() { Arc::new([]) } else { self.write(to_write, has_postgres, &mut spool).await };
            self.announced.borrow_mut().extend(events.iter().cloned());
            let snapshot = Arc::new(snapshot);
            *self.newest.borrow_mut() = Some(Arc::clone(&snapshot));
            let changed = (!events.is_empty()).then_some(Message::Changed(events));
            self.inbox.borrow_mut().extend(changed.into_iter().chain([Message::Snapshot(snapshot)]));
            if has_postgres {
                self.flush_spool(&mut spool).await;
            }
        }
    }

    /// Measures a figure of the database: the current second, so that its age is visible.
    fn probe(&self, figures: &mut DatabaseReading) {
        let now = self.now();
        if self.world.now.get() < self.world.probe_fails_until.get() {
            figures.callbacks.error = Some("permission denied".to_owned());
            return;
        }
        let callbacks = Callbacks { pending: (now.0 / 1000) as i64, ..Callbacks::default() };
        figures.callbacks = Probed { value: Some((now, callbacks)), error: None, expected_by: now };
    }

    /// Checks that a figure shown as current was measured recently.
    fn compare_figures(&self, snapshot: &Snapshot, now: Mono) {
        let shown =
            snapshot.postgres.source.is_current().then(|| snapshot.postgres.current().callbacks_pending).flatten();
        if let Some(measured) = shown.filter(|at| now.0 / 1000 > *at as u64 + 3 * self.interval + 5) {
            let evidence = format!("monitor {} shows at {} what it measured at {measured}", self.machine, now.0 / 1000);
            *self.world.invented.borrow_mut() = Some(evidence);
        }
    }

    /// Writes the results of a tick. Returns the written events.
    async fn write(&self, to_write: ToWrite, has_postgres: bool, spool: &mut Spool) -> Arc<[Arc<Event>]> {
        let ToWrite { events, records, .. } = to_write;
        let rows: Vec<NewRow> = events.iter().map(|event| NewRow::from(&**event)).collect();
        let world = &self.world;
        let mut kept = rows.is_empty();
        if !kept && has_postgres && !spool.stores_behind {
            let rows = rows.clone();
            let insert = |world: &World| world.postgres.borrow_mut().insert_events(world, rows);
            kept = world.call(self.machine, Server::Postgres, WRITE_WITHIN, insert).await.is_ok();
        }
        if !kept {
            let put = |world: &World| {
                let mut redis = world.redis.borrow_mut();
                redis.takes(world.now.get())?;
                redis.spool.extend(rows);
                Ok(())
            };
            kept = world.call(self.machine, Server::Redis, WRITE_WITHIN, put).await.is_ok();
            if kept {
                *spool = Spool { waits: true, stores_behind: true };
            }
        }
        if !kept {
            return Arc::new([]);
        }
        let records: Vec<(Name, String)> =
            records.into_iter().map(|(name, record)| (name, serde_json::to_string(&record).unwrap())).collect();
        let save = |world: &World| {
            let mut redis = world.redis.borrow_mut();
            redis.takes(world.now.get())?;
            redis.records.extend(records);
            Ok(())
        };
        let saved = world.call(self.machine, Server::Redis, WRITE_WITHIN, save).await;
        let mut tracking = self.tracking.borrow_mut();
        tracking.events_written();
        if saved.is_ok() {
            tracking.records_written();
        }
        events
    }

    async fn flush_spool(&self, spool: &mut Spool) {
        while spool.waits {
            let Ok((count, removed)) = self.move_spooled().await else { return };
            if count < SPOOL_BATCH {
                spool.stores_behind = false;
            }
            spool.waits = count > 0 || removed.is_err();
            if removed.is_err() {
                return;
            }
        }
    }

    /// Moves the oldest spooled events to Postgres. Returns their number, and whether they were removed.
    async fn move_spooled(&self) -> Result<(usize, Result<(), SourceTrouble>), SourceTrouble> {
        let world = &self.world;
        let peek =
            |world: &World| Ok(world.redis.borrow().spool.iter().take(SPOOL_BATCH).cloned().collect::<Vec<NewRow>>());
        let waiting = world.call(self.machine, Server::Redis, WRITE_WITHIN, peek).await?;
        let (count, rows) = (waiting.len(), waiting.clone());
        let insert = |world: &World| world.postgres.borrow_mut().insert_events(world, rows);
        world.call(self.machine, Server::Postgres, WRITE_WITHIN, insert).await?;
        let remove = |world: &World| {
            let mut redis = world.redis.borrow_mut();
            redis.takes(world.now.get())?;
            while redis.spool.first().is_some_and(|first| waiting.contains(first)) {
                redis.spool.remove(0);
            }
            Ok(())
        };
        Ok((count, world.call(self.machine, Server::Redis, WRITE_WITHIN, remove).await))
    }

    async fn lease(self: Rc<Self>) {
        loop {
            let asked = self.world.now.get();
            let renewing = async {
                let (news, _) = self.ledger.renew().await;
                (news, self.ledger.silences().await, self.ledger.may_act().await)
            };
            if let Some((news, silences, may_act)) = self.world.within(8_000, renewing).await {
                self.lease_taken_in.set(false);
                self.inbox.borrow_mut().push_back(Message::Renewed { news, silences, may_act });
            }
            while !self.lease_taken_in.get() {
                self.world.rest(QUANTUM).await;
            }
            self.world.until(asked + 3_000).await;
        }
    }

    async fn evaluate(self: Rc<Self>) {
        let mut rules = self.world.rules.get();
        loop {
            if rules != self.world.rules.get() {
                rules = self.world.rules.get();
                self.evaluation.borrow_mut().manager.set_rules(Arc::clone(&self.rule_sets[rules]));
            }
            let message = self.inbox.borrow_mut().pop_front();
            match message {
                Some(Message::Changed(events)) => self.evaluation.borrow_mut().manager.take_events(&events),
                Some(Message::Channel(state)) => {
                    self.evaluation.borrow_mut().manager.channel(&state.name, state.broken.as_deref());
                }
                Some(Message::Snapshot(snapshot)) if self.evaluation.borrow().acting() => {
                    let decision = self.evaluation.borrow_mut().judge(&snapshot, self.wall(), self.now());
                    self.settle(decision).await;
                }
                Some(Message::Snapshot(_)) => {}
                Some(Message::Renewed { news, silences, may_act }) => {
                    let renewed = self.evaluation.borrow_mut().renewed(news, silences, may_act, Vec::new());
                    if let Some(deliver) = renewed.deliver {
                        self.queue.borrow_mut().deliver(deliver, self.now(), self.wall());
                    }
                    if !renewed.acknowledged.is_empty() {
                        self.record(renewed.acknowledged).await;
                    }
                    self.lease_taken_in.set(true);
                }
                None if self.wakes.get().is_some_and(|at| self.world.now.get() >= at) => {
                    self.wakes.set(None);
                    if self.evaluation.borrow().acting() {
                        let decision = self.evaluation.borrow_mut().wake(self.wall(), self.now());
                        self.settle(decision).await;
                    }
                }
                None => self.world.rest(2 * QUANTUM).await,
            }
        }
    }

    async fn settle(&self, decision: Decision) {
        for alert in &decision.change.alerts {
            let (key, phase, notified) = (&alert.key, alert.phase, alert.told.is_some());
            tracing::info!("{:.1}: {key} {phase:?}, notified: {notified}", self.world.now.get() as f64 / 1000.0);
        }
        let after = |seconds: f64| (seconds.clamp(0.01, 3600.0) * 1000.0) as u64;
        self.wakes.set(decision.next_in.map(|seconds| self.world.now.get() + after(seconds)));
        if !decision.change.is_empty() {
            self.record(decision.change).await;
        }
    }

    async fn record(&self, change: Change) {
        let messages = change.outbox.clone();
        let term = self.evaluation.borrow().term();
        match self.world.within(4_000, self.ledger.record(change, term)).await {
            Some(false) => self.evaluation.borrow_mut().refused(),
            Some(true) | None => {
                if !messages.is_empty() {
                    let deliver = self.evaluation.borrow_mut().to_deliver(messages, false);
                    self.queue.borrow_mut().deliver(deliver, self.now(), self.wall());
                }
            }
        }
    }

    async fn dispatch(self: Rc<Self>) {
        loop {
            let begin = self.queue.borrow_mut().begin(self.now(), self.wall());
            for begun in begin {
                let monitor = Rc::clone(&self);
                let attempt = async move { monitor.attempt(begun).await };
                self.world.machines[self.machine].spawned.borrow_mut().push(Box::pin(attempt));
            }
            self.world.rest(500).await;
        }
    }

    async fn attempt(&self, mut begun: Begun) {
        let (id, channel) = (begun.row.id.clone(), begun.row.channel.clone());
        let term = self.queue.borrow().term();
        let attempting = async {
            let may = self.ledger.may_act().await
                && self.ledger.record(Change { outbox: vec![begun.row.clone()], ..Change::default() }, term).await
                && self.ledger.may_act().await;
            if !may {
                return None;
            }
            let outcome = begun.meaning(self.send(&begun.row).await);
            let pause = settle(&mut begun.row, &outcome, self.wall(), begun.age);
            let row = begun.row;
            self.ledger.note(row.clone(), term).await;
            Some((row, outcome, pause))
        };
        let attempted = self.world.within(40_000, attempting).await.flatten();
        match attempted {
            Some((row, outcome, pause)) => {
                let (_, news) = self.queue.borrow_mut().attempted(row, &outcome, pause, self.now());
                self.inbox.borrow_mut().extend(news.map(Message::Channel));
            }
            None => self.queue.borrow_mut().not_made(&id, &channel, self.now()),
        }
    }

    async fn send(&self, row: &OutboxRow) -> Outcome {
        let again = |why: &str| Outcome::ChannelFailed { at_least: Duration::from_secs(2), why: why.to_owned() };
        self.world.rest(QUANTUM).await;
        let mode = self.world.channel.get();
        if mode == ChannelMode::Slow {
            self.world.rest(20_000).await;
        }
        match mode {
            ChannelMode::Fails => return again("500"),
            ChannelMode::Broken => return Outcome::ChannelBroken("404".to_owned()),
            ChannelMode::Takes | ChannelMode::LosesAnswers | ChannelMode::Slow => {}
        }
        let seconds = self.world.now.get() as f64 / 1000.0;
        tracing::info!("{seconds:.1}: delivered {} {:?}", &row.id[..4], row.message.title);
        self.world.delivered.borrow_mut().push(Delivered { at: self.world.now.get(), row: row.clone() });
        self.world.rest(QUANTUM).await;
        if mode == ChannelMode::LosesAnswers { again("no answer") } else { Outcome::Sent("200".to_owned()) }
    }
}

/// Storage of the ledger on the models.
struct Store {
    world: Rc<World>,
    machine: usize,
    holder: u64,
    started: u64,
}

impl Store {
    async fn postgres<T>(&self, effect: impl FnOnce(&World) -> Result<T, SourceTrouble>) -> Result<T, SourceTrouble> {
        self.world.call(self.machine, Server::Postgres, 1_000, effect).await
    }

    async fn redis<T>(&self, effect: impl FnOnce(&World) -> Result<T, SourceTrouble>) -> Result<T, SourceTrouble> {
        self.world.call(self.machine, Server::Redis, 500, effect).await
    }

    fn hold(&self, world: &World, only_if_free: bool) -> Result<bool, SourceTrouble> {
        let now = world.now.get();
        let mut redis = world.redis.borrow_mut();
        redis.expire(now);
        redis.takes(now)?;
        let expires = redis.time(now) + LEASE.as_secs_f64();
        let is_free = redis.leader.is_none_or(|(holder, _)| holder == self.holder);
        if is_free || !only_if_free {
            redis.leader = Some((self.holder, expires));
        }
        Ok(is_free || !only_if_free)
    }
}

fn owned(rows: Rows<'_>) -> OwnedRows {
    OwnedRows {
        alerts: rows.alerts.into_iter().cloned().collect(),
        outbox: rows.outbox.into_iter().cloned().collect(),
        events: rows.events.into_iter().cloned().collect(),
    }
}

impl AlertStore for Store {
    fn now(&self) -> Mono {
        Mono(self.world.now.get() - self.started)
    }

    async fn lead(&self) -> Result<LeaseReply, SourceTrouble> {
        let holder = self.holder;
        self.postgres(|world| world.postgres.borrow_mut().lead(world, holder, LEASE.as_secs_f64())).await
    }

    async fn write(&self, epoch: i64, rows: Rows<'_>) -> Result<(), NotWritten> {
        let rows = owned(rows);
        let write = |world: &World| match world.postgres.borrow_mut().write(world, epoch, rows) {
            Ok(()) => Ok(true),
            Err(NotWritten::Deposed) => Ok(false),
            Err(NotWritten::Trouble(trouble)) => Err(trouble),
        };
        match self.postgres(write).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotWritten::Deposed),
            Err(trouble) => Err(NotWritten::Trouble(trouble)),
        }
    }

    async fn hand_over(&self, rows: Rows<'_>) -> Result<(), SourceTrouble> {
        let rows = owned(rows);
        self.postgres(|world| world.postgres.borrow_mut().hand_over(world, rows)).await
    }

    async fn load(&self) -> Result<StoredAlerts, SourceTrouble> {
        self.postgres(|world| Ok(world.postgres.borrow().load())).await
    }

    async fn alerts(&self) -> Result<Vec<Alert>, SourceTrouble> {
        self.postgres(|world| Ok(world.postgres.borrow().alerts.values().cloned().collect())).await
    }

    async fn follow(&self) -> Result<LeaseReply, SourceTrouble> {
        self.postgres(|world| Ok(world.postgres.borrow().follow(world.time()))).await
    }

    async fn newest_messages(&self, _: u32) -> Result<Vec<OutboxRow>, SourceTrouble> {
        Ok(Vec::new())
    }

    async fn resign(&self) -> Result<(), SourceTrouble> {
        let holder = self.holder;
        self.postgres(|world| {
            world.postgres.borrow_mut().resign(holder);
            Ok(())
        })
        .await
    }

    async fn another_leads(&self) -> Result<bool, SourceTrouble> {
        let holder = self.holder;
        self.redis(|world| {
            let mut redis = world.redis.borrow_mut();
            redis.expire(world.now.get());
            Ok(redis.leader.is_some_and(|(leader, _)| leader != holder))
        })
        .await
    }

    async fn claim_redis(&self) -> Result<(), SourceTrouble> {
        self.redis(|world| self.hold(world, false)).await.map(drop)
    }

    async fn claim_redis_if_free(&self) -> Result<bool, SourceTrouble> {
        self.redis(|world| self.hold(world, true)).await
    }

    async fn release_redis(&self) -> Result<(), SourceTrouble> {
        let holder = self.holder;
        self.redis(|world| {
            let mut redis = world.redis.borrow_mut();
            redis.leader = redis.leader.filter(|(leader, _)| *leader != holder);
            Ok(())
        })
        .await
    }

    fn load_from_disk(&self) -> Unsaved {
        let disk = self.world.machines[self.machine].disk.borrow();
        if disk.is_empty() { Unsaved::default() } else { serde_json::from_slice(&disk).unwrap() }
    }

    fn save_to_disk(&self, unsaved: &Unsaved) -> std::io::Result<()> {
        let machine = &self.world.machines[self.machine];
        if self.world.now.get() < machine.disk_full_until.get() && !unsaved.is_empty() {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        *machine.disk.borrow_mut() = if unsaved.is_empty() { Vec::new() } else { serde_json::to_vec(unsaved)? };
        Ok(())
    }
}
