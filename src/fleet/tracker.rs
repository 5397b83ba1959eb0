//! The tracker: turns readings into states, events and the snapshot.
//!
//! Deterministic: the same readings in the same order give the same result. A repeated or older reading has no effect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::consumer::Work;
use super::event::{Event, EventKind};
use super::failures::{FailureLog, FailureRecords, StreakStart};
use super::load::{Backlog, Rates};
use super::observations::Observations;
use super::older_monitor::OlderMonitor;
use super::reading::{
    DatabaseReading, HeartbeatsReading, SourceTrouble, StreamReading, StreamsReading, UnreadableHeartbeat,
};
use super::snapshot::{DepthHistory, PostgresStatus, RedisStatus, Snapshot, StreamStatus, WorkerTypeStatus};
use super::source::{self, Availability, RedisSource, SourceChange};
use super::time::Mono;
use super::watched::WatchedStreams;
use super::worker_type::{Departures, WorkerStateRecord, WorkerType};
use crate::contract::{Name, hung_thresholds};

/// Number of events in the feed.
const RECENT_EVENTS: usize = 50;

/// Settings of the tracker.
#[derive(Debug, Clone)]
pub struct TrackerSettings {
    /// Poll interval.
    pub interval: Duration,
    /// Hung threshold of streams without a configured one.
    pub default_floor: Duration,
    /// Streams that are shown before they have consumers.
    pub seed_streams: Vec<Name>,
    /// Watched streams; others are neither read nor recorded.
    pub watched: Arc<WatchedStreams>,
    /// Products of the per-ARA panel, in order.
    pub aras: Arc<[String]>,
    /// Size of the database volume, bytes; 0 if unknown.
    pub disk_capacity_bytes: u64,
}

/// Readings of all data sources in one tick.
#[derive(Debug, Clone)]
pub struct TickReadings {
    /// Number of the tick, increasing.
    pub tick: u64,
    /// Time at which it was closed.
    pub now: Mono,
    /// Wall clock of the monitor, Unix seconds; used if Redis' clock is unknown.
    pub wall: f64,
    /// Streams, or the error.
    pub streams: Result<Arc<StreamsReading>, SourceTrouble>,
    /// Heartbeats, or the error.
    pub heartbeats: Result<Arc<HeartbeatsReading>, SourceTrouble>,
    /// Database, or the error; `None` before its first answer.
    pub database: Option<Result<Arc<DatabaseReading>, SourceTrouble>>,
}

/// Result of a tick.
#[derive(Debug)]
pub struct Advance {
    /// Events, oldest first; also in the snapshot.
    pub events: Vec<Arc<Event>>,
    /// New snapshot.
    pub snapshot: Snapshot,
    /// Types with a changed record, to save.
    pub changed_types: Vec<Name>,
    /// Types that were alive for the first time.
    pub new_types: Vec<Name>,
}

/// Tracks the states of the fleet.
#[derive(Debug, Clone)]
pub struct Tracker {
    settings: TrackerSettings,
    last_tick: Option<u64>,
    redis: RedisSource,
    postgres: Availability,
    types: BTreeMap<Name, WorkerType>,
    streams: Arc<StreamsReading>,
    rates: BTreeMap<Name, Rates>,
    failures: FailureLog,
    read_at: Option<f64>,
    database: Arc<DatabaseReading>,
    unreadable: Vec<UnreadableHeartbeat>,
    recent: VecDeque<Arc<Event>>,
    depths: Arc<DepthHistory>,
    /// Forgotten types, not shown until a consumer is seen, although their stream exists.
    forgotten: BTreeSet<Name>,
}

impl Tracker {
    /// Returns a tracker without state.
    #[must_use]
    pub fn new(settings: TrackerSettings, now: Mono, wall: f64) -> Self {
        Self {
            redis: RedisSource::new(settings.interval, now, wall),
            postgres: Availability::new(wall),
            types: settings.seed_streams.iter().map(|name| (name.clone(), WorkerType::unknown())).collect(),
            settings,
            last_tick: None,
            streams: Arc::default(),
            rates: BTreeMap::new(),
            failures: FailureLog::default(),
            read_at: None,
            database: Arc::default(),
            unreadable: Vec::new(),
            recent: VecDeque::new(),
            depths: Arc::default(),
            forgotten: BTreeSet::new(),
        }
    }

    /// Restores saved records, read at `now`, when Redis' clock was `now_unix`.
    pub fn restore(&mut self, records: &BTreeMap<Name, WorkerStateRecord>, now: Mono, now_unix: f64) {
        let watched = records.iter().filter(|(name, _)| self.settings.watched.contains(name));
        let restored = watched.map(|(name, record)| (name.clone(), WorkerType::restored(record, now, now_unix)));
        self.types.extend(restored);
    }

    /// Restores saved records of task failures.
    pub fn restore_failures(&mut self, records: FailureRecords) {
        self.failures.restore(records);
    }

    /// Returns the task failures, to save.
    #[must_use]
    pub fn failures(&self) -> &FailureLog {
        &self.failures
    }

    /// Restores events of an earlier run, newest first, after those of this run.
    pub fn restore_events(&mut self, newest: Vec<Event>) {
        let known: BTreeSet<String> = self.recent.iter().map(|event| event.key.clone()).collect();
        let older = newest.into_iter().filter(|event| event.key.is_empty() || !known.contains(&event.key));
        self.recent.extend(older.map(Arc::new));
        self.recent.truncate(RECENT_EVENTS);
    }

    /// Applies the readings of a tick. Returns `None` if they are not newer than the previous ones.
    pub fn advance(&mut self, readings: TickReadings) -> Option<Advance> {
        let TickReadings { tick, now, wall, streams, heartbeats, database } = readings;
        if self.last_tick.is_some_and(|last| tick <= last) {
            return None;
        }
        self.last_tick = Some(tick);
        let mut told: Vec<Event> = Vec::new();
        let mut changed_types = Vec::new();
        let mut new_types = Vec::new();
        let mut ts = wall;

        self.judge_postgres(database, (now, wall), &mut told);
        let trouble = match (&streams, &heartbeats) {
            (Err(trouble), _) | (_, Err(trouble)) => Some(trouble.clone()),
            (Ok(_), Ok(_)) => None,
        };
        if let Ok(streams) = &streams {
            ts = streams.redis_time;
            self.read_at = Some(ts);
            self.take_streams(streams, now);
        }
        let change = match (&streams, trouble) {
            (Ok(streams), None) => self.redis.good(now, wall, ts, &streams.server),
            (_, Some(trouble)) => self.redis.bad(now, trouble),
            (Err(trouble), None) => self.redis.bad(now, trouble.clone()),
        };
        told.extend(change.map(|change| source_event("redis", change, wall)));
        if let (Ok(streams), Ok(beats)) = (&streams, &heartbeats) {
            let starts = self.failures.take(streams.failures.as_ref(), now, ts);
            told.extend(starts.into_iter().map(|start| {
                let running = self.types.get(&start.stream).map_or(0, WorkerType::running);
                failure_event(start, ts, running)
            }));
            self.unreadable.clone_from(&beats.unreadable);
            self.take_heartbeats(beats, now, ts, &mut told, &mut changed_types, &mut new_types);
        }
        // Frees the memory of a large fleet's heartbeats before the snapshot is built.
        drop(heartbeats);
        self.remember_depths(ts, streams.is_ok());

        let events: Vec<Arc<Event>> = told.into_iter().map(Arc::new).collect();
        for event in &events {
            self.recent.push_front(Arc::clone(event));
        }
        self.recent.truncate(RECENT_EVENTS);
        let snapshot = self.snapshot(tick, ts, now, events.clone());
        Some(Advance { events, snapshot, changed_types, new_types })
    }

    /// Forgets a worker type until one of its workers or consumers is seen again. Returns whether it was known.
    pub fn forget(&mut self, worker_type: &Name) -> bool {
        self.failures.forget(worker_type);
        let was = self.types.remove(worker_type);
        let known = was.is_some_and(|was| was.last_seen_alive.is_some() || !was.consumers.is_empty());
        self.forgotten.insert(worker_type.clone());
        if self.is_seed(worker_type) {
            self.types.insert(worker_type.clone(), WorkerType::unknown());
        }
        known
    }

    /// Returns the record of a type, to save.
    #[must_use]
    pub fn record(&self, worker_type: &Name) -> Option<WorkerStateRecord> {
        self.types.get(worker_type).map(WorkerType::record)
    }

    /// Returns the types with a consumer present, whose `last_seen_alive` advances.
    pub fn alive_types(&self) -> impl Iterator<Item = &Name> {
        self.types.iter().filter(|(_, t)| t.state == super::worker_type::TypeState::Alive).map(|(name, _)| name)
    }

    fn judge_postgres(
        &mut self,
        reading: Option<Result<Arc<DatabaseReading>, SourceTrouble>>,
        (now, wall): (Mono, f64),
        told: &mut Vec<Event>,
    ) {
        let change = match reading {
            None => None,
            Some(Ok(reading)) => {
                self.database = reading;
                self.postgres.good(now, wall)
            }
            Some(Err(trouble)) => self.postgres.bad(now, trouble),
        };
        told.extend(change.map(|change| source_event("postgres", change, wall)));
    }

    fn take_streams(&mut self, reading: &Arc<StreamsReading>, now: Mono) {
        self.rates.retain(|name, _| reading.streams.contains_key(name));
        for (name, stream) in &reading.streams {
            if let Ok(facts) = &stream.facts {
                self.rates.entry(name.clone()).or_default().record(now, facts);
            }
        }
        self.streams = Arc::clone(reading);
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
        let streams = &self.streams.streams;
        let with_consumers = streams.iter().filter(|(_, s)| s.consumers().next().is_some()).map(|(name, _)| name);
        let names: BTreeSet<&Name> = with_consumers.chain(beats.consumers.keys()).collect();
        for name in names {
            self.forgotten.remove(name);
            if !self.types.contains_key(name) {
                self.types.insert(name.clone(), WorkerType::unknown());
            }
        }
        for (name, worker_type) in &mut self.types {
            let work = streams.get(name).map(work_by_consumer).unwrap_or_default();
            let beats = beats.consumers.get(name).map_or(&[][..], Vec::as_slice);
            let was_known = worker_type.last_seen_alive.is_some();
            let mut sightings = Observations {
                now,
                ts,
                absence_counts_from: self.redis.absence_counts_from(),
                floor: hung_thresholds::reclaim_floor(name, self.settings.default_floor),
                marker_gap: source::marker_gap(self.settings.interval),
                departures: Departures::default(),
                told: Vec::new(),
                present_changed: false,
            };
            sightings.look_at(&mut worker_type.consumers, &work, beats);
            let Observations { departures, told: mut occurrences, present_changed, .. } = sightings;
            occurrences.extend(worker_type.roll_up(departures, now, ts, settled));
            worker_type.forget_gone(now);
            if !occurrences.is_empty() || present_changed {
                changed_types.push(name.clone());
            }
            if !was_known && worker_type.last_seen_alive.is_some() {
                new_types.push(name.clone());
            }
            let running = worker_type.running();
            told.extend(
                occurrences.into_iter().map(|(kind, occurrence)| fleet_event(name, kind, ts, &occurrence, running)),
            );
        }
    }

    fn remember_depths(&mut self, ts: f64, readable: bool) {
        let values: Vec<(Name, Option<u64>)> = self
            .streams
            .streams
            .iter()
            .map(|(name, stream)| {
                let facts = stream.facts.as_ref().ok().filter(|_| readable);
                (name.clone(), facts.and_then(|facts| Backlog::of(facts).total()))
            })
            .collect();
        Arc::make_mut(&mut self.depths).push(ts, values.into_iter());
    }

    fn snapshot(&self, tick: u64, ts: f64, now: Mono, events: Vec<Arc<Event>>) -> Snapshot {
        let facts = |name: &Name| self.streams.streams.get(name).and_then(|stream| stream.facts.as_ref().ok());
        let rate = |name: &Name| self.rates.get(name).map(Rates::per_second).unwrap_or_default();
        let streams = self.streams.streams.iter();
        // A stream with a group is meant for workers, even before the first one.
        let awaits_workers =
            |name: &Name| !self.forgotten.contains(name) && facts(name).is_some_and(|facts| !facts.groups.is_empty());
        let status = |name: &Name, worker_type: &WorkerType| {
            let floor = hung_thresholds::reclaim_floor(name, self.settings.default_floor);
            WorkerTypeStatus::of(worker_type, facts(name), floor, ts)
        };
        let mut workers: BTreeMap<Name, WorkerTypeStatus> = self
            .types
            .iter()
            .filter(|(name, t)| {
                t.last_seen_alive.is_some() || !t.consumers.is_empty() || self.is_seed(name) || awaits_workers(name)
            })
            .map(|(name, t)| (name.clone(), status(name, t)))
            .collect();
        for name in self.streams.streams.keys().filter(|name| awaits_workers(name)) {
            if !workers.contains_key(name) {
                workers.insert(name.clone(), status(name, &WorkerType::unknown()));
            }
        }
        Snapshot {
            tick,
            ts,
            workers,
            streams: streams
                .map(|(name, s)| (name.clone(), StreamStatus::of(s, rate(name), self.failures.status(name), ts)))
                .collect(),
            postgres: PostgresStatus::of(
                &self.database,
                self.postgres.status(),
                self.settings.disk_capacity_bytes,
                self.settings.interval,
                now,
            ),
            redis: RedisStatus::of(&self.streams.server, self.redis.status(now), self.read_at),
            events,
            recent_events: self.recent.clone(),
            aras: Arc::clone(&self.settings.aras),
            unreadable_heartbeats: self.unreadable.clone(),
            older_monitor: OlderMonitor::default(),
            observe_only: false,
            depths: Arc::clone(&self.depths),
        }
    }

    fn is_seed(&self, name: &Name) -> bool {
        self.settings.seed_streams.contains(name)
    }
}

/// Returns the work of each consumer, summed over its groups; sorted by name.
fn work_by_consumer(stream: &StreamReading) -> Vec<(Name, Work)> {
    let mut work: Vec<(Name, Work)> = stream
        .consumers()
        .map(|(_, c)| {
            let phantom_pending = c.phantom_pending.min(c.pending);
            let pending = c.pending - phantom_pending;
            (c.name.clone(), Work { pending, phantom_pending, idle_ms: c.idle_ms, inactive_ms: c.inactive_ms })
        })
        .collect();
    work.sort_by(|(a, _), (b, _)| a.cmp(b));
    work.dedup_by(|(name, more), (kept, work)| {
        let same = name == kept;
        if same {
            work.pending += more.pending;
            work.phantom_pending += more.phantom_pending;
            work.idle_ms = work.idle_ms.min(more.idle_ms);
            work.inactive_ms = work.inactive_ms.into_iter().chain(more.inactive_ms).min();
        }
        same
    });
    work
}

fn fleet_event(name: &Name, kind: EventKind, ts: f64, occurrence: &str, running: u32) -> Event {
    let mut event = Event { ts, subject: name.to_text(), kind, key: String::new(), running: (running, running) };
    event.key = occurrence_key(&[event.type_name(), &event.subject, occurrence]);
    event
}

fn failure_event(StreakStart { stream, kind, occurrence }: StreakStart, ts: f64, running: u32) -> Event {
    fleet_event(&stream, kind, ts, &occurrence, running)
}

fn source_event(source: &str, change: SourceChange, wall: f64) -> Event {
    let kind = match change {
        SourceChange::WentDown(trouble) => EventKind::SourceDown { trouble },
        SourceChange::CameBack(away) => EventKind::SourceUp { away_sec: away.as_secs() },
    };
    let mut event = Event { ts: wall, subject: source.to_owned(), kind, key: String::new(), running: (0, 0) };
    event.key = occurrence_key(&[event.type_name(), source, &wall.to_string()]);
    event
}

fn occurrence_key(parts: &[&str]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\n").as_bytes()).to_string()
}
