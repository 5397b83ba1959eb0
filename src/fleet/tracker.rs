//! The tracker: readings in, states, events and the snapshot out.
//!
//! Deterministic: the same readings in the same order give the same result. A reading that is
//! older than one already taken in, or the same again, changes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::consumer::{Consumer, ConsumerState, Sighting, Work};
use super::event::{Event, EventKind};
use super::load::{Backlog, Rates, utilization};
use super::reading::{
    Beat, BeatReading, DatabaseReading, HeartbeatsReading, MarkerReading, RedisServer, SourceTrouble, StreamFacts,
    StreamsReading, UnreadableHeartbeat,
};
use super::snapshot::{
    ConsumerStatus, DepthHistory, GroupStatus, PostgresStatus, RedisStatus, Snapshot, SourceStatus, StreamConsumer,
    StreamStatus, WorkerTypeStatus,
};
use super::source::{Availability, RedisSource, SourceChange};
use super::time::Mono;
use super::worker_type::{Departures, WorkerStateRecord, WorkerType};
use crate::contract::{Name, floors};

/// Events kept for the feed.
const RECENT_EVENTS: usize = 50;

/// What the tracker needs to know beforehand.
#[derive(Debug, Clone)]
pub struct TrackerSettings {
    /// How often ticks are meant to come.
    pub interval: Duration,
    /// The floor of streams the contract does not name.
    pub default_floor: Duration,
    /// Streams shown before anyone used them.
    pub seed_streams: Vec<Name>,
    /// Products of the per-ARA panel, in order.
    pub aras: Arc<[String]>,
    /// The database volume's size, bytes; 0 when not known.
    pub disk_capacity_bytes: u64,
}

/// Everything the sources said in one tick.
#[derive(Debug, Clone)]
pub struct TickReadings {
    /// The tick's number; ticks count up.
    pub tick: u64,
    /// When it was closed.
    pub now: Mono,
    /// The monitor's wall clock, Unix seconds: used where Redis' own is not to be had.
    pub wall: f64,
    /// The streams, or why not.
    pub streams: Result<Arc<StreamsReading>, SourceTrouble>,
    /// The heartbeats, or why not.
    pub heartbeats: Result<Arc<HeartbeatsReading>, SourceTrouble>,
    /// The database, or why not; `None` when its first answer is still out.
    pub database: Option<Result<Arc<DatabaseReading>, SourceTrouble>>,
}

/// What a tick came to.
#[derive(Debug)]
pub struct Advance {
    /// What happened, oldest first; also in the snapshot.
    pub events: Vec<Arc<Event>>,
    /// The new picture.
    pub snapshot: Snapshot,
    /// Types whose record is worth writing down again.
    pub changed_types: Vec<Name>,
    /// Types seen alive for the first time.
    pub new_types: Vec<Name>,
}

/// The fleet as it is known.
#[derive(Debug, Clone)]
pub struct Tracker {
    settings: TrackerSettings,
    last_tick: Option<u64>,
    redis: RedisSource,
    postgres: Availability,
    types: BTreeMap<Name, WorkerType>,
    streams: BTreeMap<Name, TrackedStream>,
    server: RedisServer,
    read_at: Option<f64>,
    database: Arc<DatabaseReading>,
    unreadable: Vec<UnreadableHeartbeat>,
    recent: VecDeque<Arc<Event>>,
    depths: Arc<DepthHistory>,
}

#[derive(Debug, Clone, Default)]
struct TrackedStream {
    facts: Option<Result<StreamFacts, String>>,
    rates: Rates,
}

impl Tracker {
    /// A tracker that knows nothing yet but which streams to show.
    #[must_use]
    pub fn new(settings: TrackerSettings, now: Mono, wall: f64) -> Self {
        Self {
            redis: RedisSource::new(settings.interval, now, wall),
            postgres: Availability::new(wall),
            types: settings.seed_streams.iter().map(|name| (name.clone(), WorkerType::unknown())).collect(),
            settings,
            last_tick: None,
            streams: BTreeMap::new(),
            server: RedisServer::default(),
            read_at: None,
            database: Arc::default(),
            unreadable: Vec::new(),
            recent: VecDeque::new(),
            depths: Arc::default(),
        }
    }

    /// Goes on from what was written down before.
    pub fn restore(&mut self, records: &BTreeMap<Name, WorkerStateRecord>, now: Mono) {
        self.types.extend(records.iter().map(|(name, record)| (name.clone(), WorkerType::restored(record, now))));
    }

    /// Shows events of an earlier run, newest first, behind those of this one.
    pub fn restore_events(&mut self, newest: Vec<Event>) {
        let known: BTreeSet<String> = self.recent.iter().map(|event| event.key.clone()).collect();
        let older = newest.into_iter().filter(|event| event.key.is_empty() || !known.contains(&event.key));
        self.recent.extend(older.map(Arc::new));
        self.recent.truncate(RECENT_EVENTS);
    }

    /// Takes in a tick's readings; `None` if they are not newer than what was taken in already.
    pub fn advance(&mut self, readings: &TickReadings) -> Option<Advance> {
        if self.last_tick.is_some_and(|last| readings.tick <= last) {
            return None;
        }
        self.last_tick = Some(readings.tick);
        let now = readings.now;
        let mut told: Vec<Event> = Vec::new();
        let mut changed_types = Vec::new();
        let mut new_types = Vec::new();
        let mut ts = readings.wall;

        self.judge_postgres(readings, &mut told);
        let trouble = match (&readings.streams, &readings.heartbeats) {
            (Err(trouble), _) | (_, Err(trouble)) => Some(trouble.clone()),
            (Ok(_), Ok(_)) => None,
        };
        if let Ok(streams) = &readings.streams {
            ts = streams.redis_time;
            self.read_at = Some(ts);
            self.server = streams.server.clone();
            self.take_streams(streams, now);
        }
        let change = match (&readings.streams, trouble) {
            (Ok(streams), None) => self.redis.good(now, readings.wall, &streams.server.run_id),
            (_, Some(trouble)) => self.redis.bad(now, trouble),
            (Err(trouble), None) => self.redis.bad(now, trouble.clone()),
        };
        told.extend(change.map(|change| source_event("redis", change, readings.wall)));
        if let (Ok(_), Ok(beats)) = (&readings.streams, &readings.heartbeats) {
            self.unreadable.clone_from(&beats.unreadable);
            self.take_heartbeats(beats, now, ts, &mut told, &mut changed_types, &mut new_types);
        }
        self.remember_depths(ts, readings.streams.is_ok());

        let events: Vec<Arc<Event>> = told.into_iter().map(Arc::new).collect();
        for event in &events {
            self.recent.push_front(Arc::clone(event));
        }
        self.recent.truncate(RECENT_EVENTS);
        let snapshot = self.snapshot(readings.tick, ts, now, events.clone());
        Some(Advance { events, snapshot, changed_types, new_types })
    }

    /// The record of a type, to write down.
    #[must_use]
    pub fn record(&self, worker_type: &Name) -> Option<WorkerStateRecord> {
        self.types.get(worker_type).map(WorkerType::record)
    }

    /// Types with a consumer present: their `last_seen_alive` moves on.
    pub fn alive_types(&self) -> impl Iterator<Item = &Name> {
        self.types.iter().filter(|(_, t)| t.state == super::worker_type::TypeState::Alive).map(|(name, _)| name)
    }

    fn judge_postgres(&mut self, readings: &TickReadings, told: &mut Vec<Event>) {
        let change = match &readings.database {
            None => None,
            Some(Ok(reading)) => {
                self.database = Arc::clone(reading);
                self.postgres.good(readings.now, readings.wall)
            }
            Some(Err(trouble)) => self.postgres.bad(readings.now, trouble.clone()),
        };
        told.extend(change.map(|change| source_event("postgres", change, readings.wall)));
    }

    fn take_streams(&mut self, reading: &StreamsReading, now: Mono) {
        self.streams.retain(|name, _| reading.streams.contains_key(name));
        for (name, stream) in &reading.streams {
            let tracked = self.streams.entry(name.clone()).or_default();
            if let Ok(facts) = &stream.facts {
                tracked.rates.record(now, facts);
            }
            tracked.facts = Some(stream.facts.clone());
        }
    }

    fn take_heartbeats(
        &mut self,
        beats: &HeartbeatsReading,
        now: Mono,
        ts: f64,
        told: &mut Vec<Event>,
        changed_types: &mut Vec<Name>,
        new_types: &mut Vec<Name>,
    ) {
        let settled = now >= self.redis.absence_counts_from();
        let with_consumers = self.streams.iter().filter(|(_, s)| s.consumers().next().is_some()).map(|(name, _)| name);
        let names: BTreeSet<&Name> = with_consumers.chain(beats.consumers.keys()).collect();
        for name in names {
            if !self.types.contains_key(name) {
                self.types.insert(name.clone(), WorkerType::unknown());
            }
        }
        let no_beats = BTreeMap::new();
        for (name, worker_type) in &mut self.types {
            let work = self.streams.get(name).map(TrackedStream::work).unwrap_or_default();
            let beats = beats.consumers.get(name).unwrap_or(&no_beats);
            let was_known = worker_type.last_seen_alive.is_some();
            let mut sightings = Sightings {
                now,
                ts,
                absence_counts_from: self.redis.absence_counts_from(),
                floor: floors::reclaim_floor(name, self.settings.default_floor),
                who: BTreeSet::new(),
                departures: Departures::default(),
                told: Vec::new(),
            };
            sightings.look_at(&mut worker_type.consumers, &work, beats);
            let Sightings { who, departures, told: mut kinds, .. } = sightings;
            kinds.extend(worker_type.roll_up(departures, now, ts, settled));
            worker_type.forget_gone(now);
            if !kinds.is_empty() {
                changed_types.push(name.clone());
            }
            if !was_known && worker_type.last_seen_alive.is_some() {
                new_types.push(name.clone());
            }
            told.extend(kinds.into_iter().map(|kind| fleet_event(name, kind, ts, &who)));
        }
    }

    fn remember_depths(&mut self, ts: f64, readable: bool) {
        let values = self.streams.iter().map(|(name, stream)| {
            let depth = stream.good_facts().filter(|_| readable).and_then(|facts| Backlog::of(facts).total());
            (name.clone(), depth)
        });
        let values: Vec<_> = values.collect();
        Arc::make_mut(&mut self.depths).push(ts, values.into_iter());
    }

    fn snapshot(&self, tick: u64, ts: f64, now: Mono, events: Vec<Arc<Event>>) -> Snapshot {
        Snapshot {
            tick,
            ts,
            workers: self
                .types
                .iter()
                .filter(|(name, t)| t.last_seen_alive.is_some() || !t.consumers.is_empty() || self.is_seed(name))
                .map(|(name, t)| (name.clone(), self.type_status(name, t)))
                .collect(),
            streams: self.streams.iter().map(|(name, stream)| (name.clone(), stream.status(ts))).collect(),
            postgres: self.postgres_status(now),
            redis: self.redis_status(now),
            events,
            recent_events: self.recent.clone(),
            aras: Arc::clone(&self.settings.aras),
            unreadable_heartbeats: self.unreadable.clone(),
            depths: Arc::clone(&self.depths),
        }
    }

    fn is_seed(&self, name: &Name) -> bool {
        self.settings.seed_streams.contains(name)
    }

    fn type_status(&self, name: &Name, worker_type: &WorkerType) -> WorkerTypeStatus {
        let facts = self.streams.get(name).and_then(TrackedStream::good_facts);
        let backlog = facts.map(Backlog::of);
        let count = |wanted: fn(ConsumerState) -> bool| {
            u32::try_from(worker_type.consumers.values().filter(|c| wanted(c.state)).count()).unwrap_or(u32::MAX)
        };
        let capacity = worker_type
            .consumers
            .values()
            .filter(|c| c.state.is_alive())
            .filter_map(|c| c.heartbeat.as_ref())
            .map(|beat| u64::from(beat.task_limit))
            .sum();
        let (lost, lost_at) = worker_type.losses();
        let mut consumers: Vec<ConsumerStatus> =
            worker_type.consumers.iter().map(|(name, consumer)| consumer_status(name, consumer)).collect();
        consumers.sort_by_key(|c| c.state == ConsumerState::NoHeartbeat || c.state.is_gone());
        let total = backlog.and_then(Backlog::total);
        WorkerTypeStatus {
            state: worker_type.state,
            state_changed_at: worker_type.changed_at,
            last_seen_alive: worker_type.last_seen_alive,
            last_alive_count: worker_type.last_alive_count,
            alive: count(ConsumerState::is_alive),
            stale: count(|s| s == ConsumerState::Suspect),
            draining: count(|s| s == ConsumerState::Draining),
            hung: count(|s| s == ConsumerState::Hung),
            unreadable: count(|s| s == ConsumerState::Unreadable),
            without_heartbeat: count(|s| s == ConsumerState::NoHeartbeat),
            lost,
            lost_at,
            task_limit_total: capacity,
            backlog: total,
            backlog_at_least: backlog.is_some_and(|b| b.at_least),
            pending: backlog.map(|b| b.pending),
            capacity,
            utilization: utilization(total, capacity),
            consumers,
        }
    }

    fn redis_status(&self, now: Mono) -> RedisStatus {
        let source = self.redis.status(now);
        RedisStatus { server: self.server.clone(), error: error_of(&source), source, read_at: self.read_at }
    }

    fn postgres_status(&self, now: Mono) -> PostgresStatus {
        let reading = &self.database;
        let source = self.postgres.status();
        let counts = reading.query_counts.latest();
        let volume = reading.query_volume.latest();
        let callbacks = reading.callbacks.latest();
        let server = reading.server.latest();
        let used = server.and_then(|s| Some(s.db_size_bytes + s.wal_size_bytes?));
        let capacity = self.settings.disk_capacity_bytes;
        let probe_errors =
            [&reading.query_counts.error, &reading.query_volume.error, &reading.callbacks.error, &reading.server.error];
        PostgresStatus {
            state_counts: counts.map(|c| c.by_state.clone()),
            status_counts: counts.map(|c| c.by_status.clone()),
            counts_age_sec: reading.query_counts.value.as_ref().map(|(at, _)| now.since(*at).as_secs_f64().round()),
            queries_last_1h: volume.map(|v| v.last_1h),
            queries_last_24h: volume.map(|v| v.last_24h),
            per_ara_24h: volume.map(|v| v.per_ara_24h.clone()),
            callbacks_pending: callbacks.map(|c| c.pending),
            oldest_callback_age_sec: callbacks.map(|c| c.oldest_age_sec),
            connection_count: server.map(|s| s.connections),
            db_size_bytes: server.map(|s| s.db_size_bytes),
            wal_size_bytes: server.and_then(|s| s.wal_size_bytes),
            disk_capacity_bytes: capacity,
            disk_used_bytes: used,
            #[expect(clippy::cast_precision_loss, reason = "bytes of a disk, shown as a percentage")]
            disk_used_pct: used
                .filter(|_| capacity > 0)
                .map(|used| (used as f64 / capacity as f64 * 1000.0).round() / 10.0),
            without_queries: server.is_some_and(|s| !s.has_queries),
            error: error_of(&source).or_else(|| probe_errors.into_iter().flatten().next().cloned()),
            source,
        }
    }
}

/// What one reading says of one type's consumers.
struct Sightings {
    now: Mono,
    ts: f64,
    absence_counts_from: Mono,
    floor: Duration,
    /// Consumers that came or went, with the moment they were in their state since: the same for
    /// the same occurrence after a restart.
    who: BTreeSet<String>,
    departures: Departures,
    told: Vec<EventKind>,
}

impl Sightings {
    fn look_at(
        &mut self,
        consumers: &mut BTreeMap<Name, Consumer>,
        work: &BTreeMap<Name, Work>,
        beats: &BTreeMap<Name, BeatReading>,
    ) {
        for name in work.keys().chain(beats.keys()) {
            if !consumers.contains_key(name) {
                consumers.insert(name.clone(), Consumer::new(self.now, self.ts));
            }
        }
        let unseen = BeatReading { beat: Beat::Absent, marker: MarkerReading::NotRead };
        for (name, consumer) in consumers {
            let keys = beats.get(name).unwrap_or(&unseen);
            self.look_at_one(name, consumer, keys, work.get(name).copied());
        }
    }

    fn look_at_one(&mut self, name: &Name, consumer: &mut Consumer, keys: &BeatReading, work: Option<Work>) {
        let was_present = consumer.is_present();
        let since = consumer.since_unix;
        let before = consumer.see(&Sighting {
            keys,
            work,
            now: self.now,
            now_unix: self.ts,
            absence_counts_from: self.absence_counts_from,
            floor: self.floor,
        });
        let after = consumer.state;
        if was_present != consumer.is_present() {
            let started = consumer.heartbeat.as_ref().map_or(since, |beat| beat.started_at);
            self.who.insert(format!("{name}@{started}"));
        }
        if after == ConsumerState::NoHeartbeat && matches!(keys.marker, MarkerReading::Present(_)) {
            self.departures.goodbyes += 1;
        }
        if before == after {
            return;
        }
        let pending = work.map_or(0, |work| work.pending);
        match (before, after) {
            (_, ConsumerState::Lost) => {
                self.departures.lost.push(name.clone());
                self.departures.lost_pending += pending;
            }
            (_, ConsumerState::LeftWithWork) => {
                let pending = match &keys.marker {
                    MarkerReading::Present(marker) => marker.in_flight.map_or(pending, u64::from),
                    _ => pending,
                };
                self.told.push(EventKind::LeftWithWork { consumer: name.clone(), pending });
            }
            (_, ConsumerState::Hung) => {
                let for_sec = consumer.still_for(self.now).as_secs();
                self.who.insert(format!("{name}@{}", consumer.since_unix));
                self.told.push(EventKind::Hung { consumer: name.clone(), pending, for_sec });
            }
            (ConsumerState::Hung, ConsumerState::Alive | ConsumerState::Draining) => {
                self.who.insert(format!("{name}@{since}"));
                self.told.push(EventKind::Unhung { consumer: name.clone() });
            }
            _ => {}
        }
    }
}

impl TrackedStream {
    fn good_facts(&self) -> Option<&StreamFacts> {
        self.facts.as_ref().and_then(|facts| facts.as_ref().ok())
    }

    fn consumers(&self) -> impl Iterator<Item = (&Name, &super::reading::GroupConsumer)> {
        self.good_facts()
            .into_iter()
            .flat_map(|facts| &facts.groups)
            .flat_map(|group| group.consumers.iter().flatten().map(move |consumer| (&group.name, consumer)))
    }

    /// Each consumer's work, added up over the groups that list it.
    fn work(&self) -> BTreeMap<Name, Work> {
        let mut work: BTreeMap<Name, Work> = BTreeMap::new();
        for (_, consumer) in self.consumers() {
            let here = Work { pending: consumer.pending, idle_ms: consumer.idle_ms, inactive_ms: consumer.inactive_ms };
            work.entry(consumer.name.clone())
                .and_modify(|w| {
                    w.pending += here.pending;
                    w.idle_ms = w.idle_ms.min(here.idle_ms);
                    w.inactive_ms = w.inactive_ms.into_iter().chain(here.inactive_ms).min();
                })
                .or_insert(here);
        }
        work
    }

    fn status(&self, ts: f64) -> StreamStatus {
        let facts = self.good_facts();
        let backlog = facts.map(Backlog::of);
        let several = facts.is_some_and(|f| f.groups.len() > 1);
        let consumers: Vec<StreamConsumer> = self
            .consumers()
            .map(|(group, consumer)| StreamConsumer {
                name: consumer.name.clone(),
                pending: consumer.pending,
                idle_ms: consumer.idle_ms,
                inactive_ms: consumer.inactive_ms,
                group: several.then(|| group.clone()),
            })
            .collect();
        let groups: Vec<GroupStatus> =
            facts.map(|f| f.groups.iter().map(|g| group_status(g, ts)).collect()).unwrap_or_default();
        let rate = self.rates.per_second();
        StreamStatus {
            xlen: facts.map(|f| f.length),
            pending: backlog.map(|b| b.pending),
            consumer_count: consumers.len(),
            max_idle_ms: consumers.iter().map(|c| c.idle_ms).max(),
            consumers,
            error: self.facts.as_ref().and_then(|facts| facts.as_ref().err()).cloned(),
            exists: facts.is_some_and(|f| f.exists),
            undelivered: backlog.and_then(|b| b.undelivered),
            undelivered_at_least: backlog.is_some_and(|b| b.at_least),
            oldest_waiting_sec: groups.iter().filter_map(|g| g.oldest_waiting_sec).reduce(f64::max),
            added_per_sec: rate.added,
            read_per_sec: rate.read,
            drain_sec: rate.drain_sec(backlog.and_then(|b| b.undelivered)),
            groups,
        }
    }
}

fn group_status(group: &super::reading::GroupReading, ts: f64) -> GroupStatus {
    GroupStatus {
        name: group.name.clone(),
        pending: group.pending,
        lag: group.lag,
        consumer_count: group.consumers.as_ref().map_or(0, Vec::len),
        last_delivered_id: group.last_delivered_id.clone(),
        entries_read: group.entries_read,
        #[expect(clippy::cast_precision_loss, reason = "Unix milliseconds")]
        oldest_waiting_sec: group.oldest_undelivered_ms.map(|ms| (ts - ms as f64 / 1000.0).max(0.0).round()),
    }
}

fn consumer_status(name: &Name, consumer: &Consumer) -> ConsumerStatus {
    let beat = consumer.heartbeat.as_deref();
    ConsumerStatus {
        consumer: name.clone(),
        state: consumer.state,
        state_since: consumer.since_unix,
        started_at: beat.map(|b| b.started_at),
        last_seen: beat.map(|b| b.last_seen),
        task_limit: beat.map(|b| b.task_limit),
        stale: consumer.state == ConsumerState::Suspect,
        pending: consumer.work.map(|w| w.pending),
        idle_ms: consumer.work.map(|w| w.idle_ms),
        in_flight: beat.and_then(|b| b.in_flight),
        unreadable: consumer.unreadable.clone(),
    }
}

fn error_of(source: &SourceStatus) -> Option<String> {
    match source {
        SourceStatus::Down { trouble, .. } => Some(trouble.detail.clone()),
        _ => None,
    }
}

fn fleet_event(name: &Name, kind: EventKind, ts: f64, who: &BTreeSet<String>) -> Event {
    let mut event = Event { ts, subject: name.to_text(), kind, key: String::new() };
    let who: Vec<&str> = who.iter().map(String::as_str).collect();
    event.key = occurrence_key(&[event.type_name(), &event.subject, &who.join(" ")]);
    event
}

fn source_event(source: &str, change: SourceChange, wall: f64) -> Event {
    let kind = match change {
        SourceChange::WentDown(trouble) => EventKind::SourceDown { detail: trouble.detail },
        SourceChange::CameBack(away) => EventKind::SourceUp { away_sec: away.as_secs() },
    };
    let mut event = Event { ts: wall, subject: source.to_owned(), kind, key: String::new() };
    event.key = occurrence_key(&[event.type_name(), source, &wall.to_string()]);
    event
}

fn occurrence_key(parts: &[&str]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\n").as_bytes()).to_string()
}
