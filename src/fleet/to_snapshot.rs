//! From what is known to what is shown: the statuses that a snapshot is made of.

use super::consumer::{Consumer, ConsumerState};
use super::load::{Backlog, Rate, utilization};
use super::reading::{DatabaseReading, GroupReading, RedisServer, StreamFacts, StreamReading};
use super::snapshot::{
    ConsumerStatus, GroupStatus, PostgresStatus, RedisStatus, SourceStatus, StreamConsumers, StreamStatus,
    WorkerTypeStatus,
};
use super::time::Mono;
use super::worker_type::WorkerType;
use crate::contract::Name;

impl WorkerTypeStatus {
    /// A type's status, with the load of its stream where that was read.
    pub(super) fn of(worker_type: &WorkerType, facts: Option<&StreamFacts>) -> Self {
        let backlog = facts.map(Backlog::of);
        let total = backlog.and_then(Backlog::total);
        let (lost, lost_open, lost_at) = worker_type.losses();
        let mut consumers: Vec<ConsumerStatus> =
            worker_type.consumers.iter().map(|(name, consumer)| ConsumerStatus::of(name, consumer)).collect();
        let alive = consumers.iter().filter(|c| c.state.is_alive());
        let capacity = alive.filter_map(|c| c.task_limit).map(u64::from).sum();
        consumers.sort_by_key(|c| c.state == ConsumerState::NoHeartbeat || c.state.is_gone());
        let count = |wanted: fn(ConsumerState) -> bool| {
            u32::try_from(consumers.iter().filter(|c| wanted(c.state)).count()).unwrap_or(u32::MAX)
        };
        Self {
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
            lost_open,
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
}

impl ConsumerStatus {
    fn of(name: &Name, consumer: &Consumer) -> Self {
        let beat = consumer.heartbeat.as_deref();
        Self {
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
}

impl StreamStatus {
    /// A stream's status at `ts` (Redis' clock, Unix seconds).
    pub(super) fn of(stream: &StreamReading, rate: Rate, ts: f64) -> Self {
        let facts = stream.facts.as_ref().ok();
        let backlog = facts.map(Backlog::of);
        let consumers = facts.map(|f| StreamConsumers::of(&f.groups)).unwrap_or_default();
        let groups: Vec<GroupStatus> =
            facts.map(|f| f.groups.iter().map(|g| GroupStatus::of(g, ts)).collect()).unwrap_or_default();
        Self {
            xlen: facts.map(|f| f.length),
            pending: backlog.map(|b| b.pending),
            consumer_count: consumers.count(),
            max_idle_ms: consumers.iter().map(|(_, c)| c.idle_ms).max(),
            consumers,
            error: stream.facts.as_ref().err().cloned(),
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

impl GroupStatus {
    fn of(group: &GroupReading, ts: f64) -> Self {
        Self {
            name: group.name.clone(),
            pending: group.pending,
            lag: group.lag,
            consumer_count: group.consumers.as_ref().map(|consumers| consumers.len()),
            last_delivered_id: group.last_delivered_id.clone(),
            entries_read: group.entries_read,
            #[expect(clippy::cast_precision_loss, reason = "Unix milliseconds")]
            oldest_waiting_sec: group.oldest_undelivered_ms.map(|ms| (ts - ms as f64 / 1000.0).max(0.0).round()),
        }
    }
}

impl RedisStatus {
    /// The server as last read at `read_at`, and how the source stands now.
    pub(super) fn of(server: &RedisServer, source: SourceStatus, read_at: Option<f64>) -> Self {
        Self { server: server.clone(), error: source.error(), source, read_at }
    }
}

impl PostgresStatus {
    /// The database as last read, and how the source stands now.
    pub(super) fn of(reading: &DatabaseReading, source: SourceStatus, disk_capacity_bytes: u64, now: Mono) -> Self {
        let counts = reading.query_counts.latest();
        let volume = reading.query_volume.latest();
        let callbacks = reading.callbacks.latest();
        let server = reading.server.latest();
        let used = server.and_then(|s| Some(s.db_size_bytes + s.wal_size_bytes?));
        let probe_errors =
            [&reading.query_counts.error, &reading.query_volume.error, &reading.callbacks.error, &reading.server.error];
        Self {
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
            disk_capacity_bytes,
            disk_used_bytes: used,
            #[expect(clippy::cast_precision_loss, reason = "bytes of a disk, shown as a percentage")]
            disk_used_pct: used
                .filter(|_| disk_capacity_bytes > 0)
                .map(|used| (used as f64 / disk_capacity_bytes as f64 * 1000.0).round() / 10.0),
            without_queries: server.is_some_and(|s| !s.has_queries),
            error: source.error().or_else(|| probe_errors.into_iter().flatten().next().cloned()),
            source,
        }
    }
}

impl SourceStatus {
    fn error(&self) -> Option<String> {
        match self {
            Self::Down { trouble, .. } => Some(trouble.detail.clone()),
            _ => None,
        }
    }
}
