//! Renders the metrics response from the latest snapshot and the counters.
//!
//! An unreachable data source has no samples, so that stale values do not look current. The monitor's own counters and
//! health remain.

use super::catalogue as of;
use super::counters::{Attempt, Counters, TRANSITIONS};
use super::text::{Format, Writer};
use crate::alerting::alert_manager::Shown;
use crate::alerting::lifecycle::{Alert, Phase};
use crate::contract::Name;
use crate::contract::failures::FailureKind;
use crate::fleet::consumer::ConsumerState;
use crate::fleet::event::Severity;
use crate::fleet::reading::{GroupConsumer, Lag};
use crate::fleet::snapshot::{GroupStatus, PostgresStatus, Snapshot, SourceStatus, StreamStatus, WorkerTypeStatus};
use crate::fleet::worker_type::TypeState;

/// Settings that are constant while the monitor runs.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Number of the watched Redis database.
    pub db: i64,
    /// Whether to include series per consumer.
    pub per_consumer: bool,
}

/// Health of the monitor.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// Actors: name, whether it runs, number of restarts.
    pub actors: Vec<(String, bool, u32)>,
    /// Seconds since the last poll completed; `None` before the first.
    pub last_tick_age_sec: Option<f64>,
    /// Configured poll interval, seconds.
    pub interval_sec: f64,
    /// Connected websocket sessions.
    pub sessions: usize,
    /// Sessions dropped because the client did not read.
    pub sessions_dropped: u64,
}

/// Input of a response.
pub struct Sight<'a> {
    /// Latest snapshot; `None` before the first.
    pub snapshot: Option<&'a Snapshot>,
    /// Counters.
    pub counters: &'a Counters,
    /// Alerts.
    pub alerts: &'a Shown,
    /// Health of the monitor.
    pub condition: &'a Condition,
    /// Constant settings.
    pub shape: &'a Shape,
}

/// Renders the response.
#[must_use]
pub fn write(sight: &Sight<'_>, format: Format) -> String {
    let mut page = Writer::new(format);
    let fresh = sight.snapshot.filter(|snapshot| snapshot.redis.source.is_current());
    if let Some(snapshot) = fresh {
        streams(&mut page, snapshot, sight.shape);
    }
    if let Some(snapshot) = sight.snapshot {
        tasks(&mut page, snapshot, sight.counters);
    }
    if let Some(snapshot) = fresh {
        failures(&mut page, snapshot);
        workers(&mut page, snapshot);
    }
    if let Some(snapshot) = sight.snapshot {
        transitions(&mut page, snapshot, sight.counters);
    }
    alerts(&mut page, sight);
    janitor(&mut page, sight.counters);
    sources(&mut page, sight);
    monitor(&mut page, sight);
    if let Some(snapshot) = fresh {
        redis(&mut page, snapshot);
    }
    if let Some(snapshot) = sight.snapshot.filter(|snapshot| snapshot.postgres.source.is_current()) {
        postgres(&mut page, &snapshot.postgres.current());
    }
    page.finish()
}

fn streams(page: &mut Writer, snapshot: &Snapshot, shape: &Shape) {
    let db = format!("db{}", shape.db);
    let db = db.as_str();
    let streams: Vec<(String, &StreamStatus)> = snapshot.streams.iter().map(|(name, s)| (name.to_text(), s)).collect();
    let read: Vec<(&str, &StreamStatus)> =
        streams.iter().filter(|(_, s)| s.error.is_none()).map(|(name, s)| (name.as_str(), *s)).collect();
    let groups: Vec<(&str, String, &GroupStatus)> = read
        .iter()
        .flat_map(|(stream, s)| s.groups.iter().map(|group| (*stream, group.name.to_text(), group)))
        .collect();

    let mut family = page.family(&of::STREAM_LENGTH);
    for (stream, status) in &read {
        family.add_known(&[db, stream], status.xlen);
    }
    let mut family = page.family(&of::STREAM_GROUPS);
    for (stream, status) in &read {
        family.add(&[db, stream], status.groups.len());
    }
    let mut family = page.family(&of::GROUP_CONSUMERS);
    for (stream, name, group) in &groups {
        family.add_known(&[db, stream, name], group.consumer_count);
    }
    let mut family = page.family(&of::GROUP_PENDING);
    for (stream, name, group) in &groups {
        family.add(&[db, stream, name], group.pending);
    }
    let mut family = page.family(&of::GROUP_LAST_DELIVERED);
    for (stream, name, group) in &groups {
        let milliseconds = group.last_delivered_id.split('-').next().and_then(|ms| ms.parse::<u64>().ok());
        family.add_known(&[db, stream, name], milliseconds);
    }
    let mut family = page.family(&of::GROUP_ENTRIES_READ);
    for (stream, name, group) in &groups {
        family.add_known(&[db, stream, name], group.entries_read);
    }
    let mut family = page.family(&of::GROUP_LAG);
    for (stream, name, group) in &groups {
        family.add_known(&[db, stream, name], group.lag.value().filter(|_| !group.lag.is_lower_bound()));
    }
    if shape.per_consumer {
        consumers(page, db, &read);
    }
    let mut family = page.family(&of::GROUP_LAG_LOWER_BOUND);
    for (stream, name, group) in &groups {
        if let Lag::AtLeast(least) = group.lag {
            family.add(&[stream, name], least);
        }
    }
    let mut family = page.family(&of::GROUP_PHANTOM_PENDING);
    for (stream, name, group) in &groups {
        family.add(&[stream, name], group.phantom_pending);
    }
    let mut family = page.family(&of::OLDEST_WAITING);
    for (stream, status) in &read {
        family.add_known(&[stream], status.oldest_waiting_sec);
    }
    let mut family = page.family(&of::STREAM_READABLE);
    for (stream, status) in &streams {
        family.add(&[stream], u8::from(status.error.is_none()));
    }
}

fn consumers(page: &mut Writer, db: &str, streams: &[(&str, &StreamStatus)]) {
    let mut consumers: Vec<(&str, String, String, &GroupConsumer)> = Vec::new();
    for (stream, status) in streams {
        let those = status.consumers.iter();
        consumers.extend(those.map(|(group, consumer)| (*stream, group.to_text(), consumer.name.to_text(), consumer)));
    }
    let mut family = page.family(&of::CONSUMER_PENDING);
    for (stream, group, name, consumer) in &consumers {
        family.add(&[db, stream, group, name], consumer.pending);
    }
    let mut family = page.family(&of::CONSUMER_IDLE);
    for (stream, group, name, consumer) in &consumers {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a pause")]
        family.add(&[db, stream, group, name], consumer.idle_ms as f64 / 1000.0);
    }
}

fn tasks(page: &mut Writer, snapshot: &Snapshot, counters: &Counters) {
    let only_types = snapshot.workers.keys().filter(|name| !snapshot.streams.contains_key(*name));
    let mut family = page.family(&of::TASK_DURATION);
    for name in snapshot.streams.keys().chain(only_types).map(Name::to_text) {
        if let Some(histogram) = counters.tasks.get(&name) {
            family.add_histogram(&[&name], histogram);
        }
    }
}

/// Includes zeros: `increase` needs a sample from before the first failure.
fn failures(page: &mut Writer, snapshot: &Snapshot) {
    let mut family = page.family(&of::TASK_FAILURES);
    let known = snapshot.streams.iter().filter_map(|(name, s)| Some((name.to_text(), s.failures.as_ref()?)));
    for (stream, failures) in known {
        for kind in FailureKind::ALL {
            family.add(&[&stream, kind.as_str()], failures.counts.of(kind));
        }
    }
}

fn workers(page: &mut Writer, snapshot: &Snapshot) {
    let types: Vec<(String, &WorkerTypeStatus)> =
        snapshot.workers.iter().map(|(name, t)| (name.to_text(), t)).collect();
    let mut family = page.family(&of::TYPE_STATE);
    for (name, status) in &types {
        for (state, word) in [
            (TypeState::Alive, "alive"),
            (TypeState::ScaledDown, "scaled_down"),
            (TypeState::Crashed, "crashed"),
            (TypeState::Unknown, "unknown"),
        ] {
            family.add(&[name, word], u8::from(status.state == state));
        }
    }
    let mut family = page.family(&of::WORKERS);
    for (name, status) in &types {
        for (state, word) in [
            (ConsumerState::Alive, "alive"),
            (ConsumerState::Draining, "draining"),
            (ConsumerState::Hung, "hung"),
            (ConsumerState::Suspect, "suspect"),
            (ConsumerState::Unreadable, "unreadable"),
            (ConsumerState::NoHeartbeat, "no_heartbeat"),
            (ConsumerState::Left, "left"),
            (ConsumerState::LeftWithWork, "left_with_work"),
            (ConsumerState::Lost, "lost"),
            (ConsumerState::Unobserved, "unobserved"),
        ] {
            family.add(&[name, word], status.consumers.iter().filter(|consumer| consumer.state == state).count());
        }
    }
    let mut family = page.family(&of::CAPACITY);
    for (name, status) in &types {
        family.add(&[name], status.capacity);
    }
    let mut family = page.family(&of::BACKLOG);
    for (name, status) in &types {
        family.add_known(&[name], status.backlog.filter(|_| !status.backlog_at_least));
    }
    let mut family = page.family(&of::UTILIZATION);
    for (name, status) in &types {
        family.add_known(&[name], status.utilization.filter(|_| !status.backlog_at_least));
    }
    page.family(&of::UNREADABLE_HEARTBEATS).add(&[], snapshot.unreadable_heartbeats.len());
}

/// Includes zeros: `increase` needs a sample from before the first transition.
fn transitions(page: &mut Writer, snapshot: &Snapshot, counters: &Counters) {
    let types: Vec<_> = snapshot
        .workers
        .keys()
        .map(Name::to_text)
        .map(|name| {
            let counted = counters.types.get(&name).copied().unwrap_or_default();
            (name, counted)
        })
        .collect();
    let mut family = page.family(&of::TRANSITIONS);
    for (name, counted) in &types {
        for (transition, count) in TRANSITIONS.iter().zip(counted.transitions) {
            family.add(&[name, transition], count);
        }
    }
    let mut family = page.family(&of::WORKERS_LOST);
    for (name, counted) in &types {
        family.add(&[name], counted.lost);
    }
    let mut family = page.family(&of::TYPE_CRASHES);
    for (name, counted) in &types {
        family.add(&[name], counted.crashes);
    }
}

/// State label of an alert; `None` for a resolved one.
fn alert_state((alert, quiet): &(Alert, bool)) -> Option<&'static str> {
    match alert.phase {
        Phase::Pending => Some("pending"),
        Phase::Firing if alert.acknowledged.is_some() => Some("acknowledged"),
        Phase::Firing if *quiet => Some("silenced"),
        Phase::Firing => Some("firing"),
        Phase::Resolved => None,
    }
}

fn alerts(page: &mut Writer, sight: &Sight<'_>) {
    let shown = sight.alerts;
    // Alerts are unknown before their first evaluation.
    if shown.at > 0.0 {
        let mut family = page.family(&of::ALERTS);
        for state in ["pending", "firing", "acknowledged", "silenced"] {
            for severity in [Severity::Info, Severity::Warning, Severity::Critical] {
                let those = |alert: &&(Alert, bool)| alert.0.severity == severity && alert_state(alert) == Some(state);
                family.add(&[state, severity.as_str()], shown.alerts.iter().filter(those).count());
            }
        }
        page.family(&of::ALERTS_LEADER).add(&[], u8::from(shown.leads));
        page.family(&of::RULES_FILE_OK).add(&[], u8::from(shown.mistakes.is_empty()));
    }
    let mut family = page.family(&of::NOTIFICATIONS);
    for ((channel, result), count) in &sight.counters.notifications {
        family.add(&[channel, Attempt::as_str(*result)], count);
    }
    let mut family = page.family(&of::LOGINS);
    for (result, count) in &sight.counters.logins {
        family.add(&[result.as_str()], count);
    }
    let mut family = page.family(&of::SECURITY_EVENTS);
    for (kind, count) in &sight.counters.security {
        family.add(&[kind.as_str()], count);
    }
    page.family(&of::CONNECTIONS_CLOSED).add(&[], sight.counters.connections_closed);
}

fn janitor(page: &mut Writer, counters: &Counters) {
    let janitor = &counters.janitor;
    let mut family = page.family(&of::JANITOR_PASSES);
    for (result, count) in [("done", janitor.done), ("with_errors", janitor.with_errors), ("cut_off", janitor.cut_off)]
    {
        family.add(&[result], count);
    }
    page.family(&of::JANITOR_LAST_PASS).add_known(&[], janitor.last);
    page.family(&of::JANITOR_ENTRIES).add(&[], janitor.entries);
    page.family(&of::JANITOR_CONSUMERS).add(&[], janitor.consumers);
    page.family(&of::JANITOR_PHANTOMS).add(&[], janitor.phantoms);
    page.family(&of::JANITOR_CALLBACKS).add(&[], janitor.callbacks);
    page.family(&of::JANITOR_ABANDONED).add(&[], janitor.abandoned);
    page.family(&of::JANITOR_OLD_QUERIES).add(&[], janitor.old_queries);
}

fn sources(page: &mut Writer, sight: &Sight<'_>) {
    let starting = SourceStatus::Starting;
    let sources = [
        ("redis", sight.snapshot.map_or(&starting, |snapshot| &snapshot.redis.source)),
        ("postgres", sight.snapshot.map_or(&starting, |snapshot| &snapshot.postgres.source)),
    ];
    let mut family = page.family(&of::SOURCE_UP);
    for (name, status) in sources {
        family.add(&[name], u8::from(status.is_current()));
    }
    let mut family = page.family(&of::SOURCE_STATE);
    for (name, status) in sources {
        let now = match status {
            SourceStatus::Starting => "starting",
            SourceStatus::Ok => "ok",
            SourceStatus::Settling { .. } => "settling",
            SourceStatus::Down { .. } => "frozen",
        };
        for state in ["starting", "ok", "settling", "frozen"] {
            family.add(&[name, state], u8::from(state == now));
        }
    }
    let mut family = page.family(&of::SOURCE_TRANSITIONS);
    for (name, counts) in &sight.counters.sources {
        for (transition, count) in ["down", "up"].into_iter().zip(counts) {
            family.add(&[name, transition], count);
        }
    }
}

fn monitor(page: &mut Writer, sight: &Sight<'_>) {
    let condition = sight.condition;
    page.family(&of::TICK_DURATION).add_histogram(&[], &sight.counters.ticks);
    page.family(&of::TICK_INTERVAL).add(&[], condition.interval_sec);
    page.family(&of::LAST_TICK_AGE).add_known(&[], condition.last_tick_age_sec);
    let mut family = page.family(&of::ACTOR_UP);
    for (actor, up, _) in &condition.actors {
        family.add(&[actor], u8::from(*up));
    }
    let mut family = page.family(&of::ACTOR_RESTARTS);
    for (actor, _, restarts) in &condition.actors {
        family.add(&[actor], restarts);
    }
    page.family(&of::SESSIONS).add(&[], condition.sessions);
    page.family(&of::SESSIONS_DROPPED).add(&[], condition.sessions_dropped);
    page.family(&of::BUILD).add(&[env!("CARGO_PKG_VERSION")], 1);
}

fn redis(page: &mut Writer, snapshot: &Snapshot) {
    let server = &snapshot.redis.server;
    if let Some(version) = &server.version {
        page.family(&of::REDIS).add(&[version], 1);
    }
    page.family(&of::REDIS_MEMORY).add_known(&[], server.used_memory_bytes);
    page.family(&of::REDIS_MEMORY_LIMIT).add_known(&[], server.maxmemory_bytes);
    page.family(&of::REDIS_CLIENTS).add_known(&[], server.connected_clients);
    page.family(&of::REDIS_COMMANDS).add_known(&[], server.instantaneous_ops_per_sec);
    page.family(&of::REDIS_UPTIME).add_known(&[], server.uptime_in_seconds);
    page.family(&of::REDIS_EVICTED).add_known(&[], server.evicted_keys);
}

fn postgres(page: &mut Writer, postgres: &PostgresStatus) {
    page.family(&of::POSTGRES_CONNECTIONS).add_known(&[], postgres.connection_count);
    page.family(&of::POSTGRES_DATABASE_SIZE).add_known(&[], postgres.db_size_bytes);
    page.family(&of::POSTGRES_WAL_SIZE).add_known(&[], postgres.wal_size_bytes);
    let capacity = Some(postgres.disk_capacity_bytes).filter(|bytes| *bytes > 0);
    page.family(&of::POSTGRES_DISK_CAPACITY).add_known(&[], capacity);
    page.family(&of::POSTGRES_DISK_USED).add_known(&[], postgres.disk_used_bytes);
    #[expect(clippy::cast_precision_loss, reason = "bytes of a disk")]
    let ratio = postgres.disk_used_bytes.zip(capacity).map(|(used, capacity)| used as f64 / capacity as f64);
    page.family(&of::POSTGRES_DISK_USED_RATIO).add_known(&[], ratio);
    let mut family = page.family(&of::QUERIES);
    for (state, count) in postgres.state_counts.iter().flatten() {
        family.add(&[state], count);
    }
    page.family(&of::QUERIES_LAST_HOUR).add_known(&[], postgres.queries_last_1h);
    let mut family = page.family(&of::QUERIES_LAST_DAY);
    for (ara, count) in postgres.per_ara_24h.iter().flatten() {
        family.add(&[ara], count);
    }
    page.family(&of::CALLBACKS).add_known(&[], postgres.callbacks_pending);
    page.family(&of::OLDEST_CALLBACK).add_known(&[], postgres.oldest_callback_age_sec);
}
