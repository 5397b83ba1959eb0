//! Conversion of tracked state and readings to the statuses of a snapshot.

use std::time::Duration;

use super::consumer::{Consumer, ConsumerState, Work};
use super::load::{Backlog, Rate, utilization};
use super::reading::{DatabaseReading, GroupReading, Probed, RedisServer, StreamFacts, StreamReading};
use super::snapshot::{
    ConsumerStatus, Freshness, GroupStatus, PostgresFreshness, PostgresStatus, RedisStatus, SourceStatus,
    StreamConsumers, StreamStatus, TaskFailures, WorkerTypeStatus,
};
use super::time::Mono;
use super::worker_type::WorkerType;
use crate::contract::Name;

impl WorkerTypeStatus {
    /// Status of a type at `ts` (Redis' clock, Unix seconds), with the load of its stream if that was read; `floor` is
    /// the hung threshold of the stream.
    pub(super) fn of(worker_type: &WorkerType, facts: Option<&StreamFacts>, floor: Duration, ts: f64) -> Self {
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
            not_consuming: facts.is_some_and(|facts| {
                let consumers = worker_type.consumers.values().map(|consumer| (consumer.state, consumer.work));
                not_consuming(consumers, &facts.groups, floor, ts)
            }),
            unreadable: count(|s| s == ConsumerState::Unreadable),
            without_heartbeat: count(|s| s == ConsumerState::NoHeartbeat),
            lost,
            lost_open,
            lost_at,
            task_limit_total: capacity,
            backlog: total,
            backlog_at_least: backlog.is_some_and(|b| b.at_least),
            pending: backlog.map(|b| b.pending),
            phantom_pending: backlog.map(|b| b.phantom_pending),
            phantom_pending_at_least: backlog.is_some_and(|b| b.phantom_at_least),
            capacity,
            utilization: utilization(total, capacity),
            consumers,
        }
    }
}

/// Whether messages wait for longer than `floor` while no running consumer has read for as long or has pending work.
/// Draining consumers take no new work by design, and consumers with pending work are busy or hung.
fn not_consuming(
    consumers: impl Iterator<Item = (ConsumerState, Option<Work>)>,
    groups: &[GroupReading],
    floor: Duration,
    ts: f64,
) -> bool {
    let floor_ms = floor.as_secs_f64() * 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "Unix milliseconds")]
    let waits =
        |group: &GroupReading| group.oldest_undelivered_ms.is_some_and(|at| ts * 1000.0 - at as f64 >= floor_ms);
    if !groups.iter().any(waits) {
        return false;
    }
    let mut running = consumers.filter(|(state, _)| state.is_alive()).peekable();
    running.peek().is_some()
        && running.all(|(state, work)| {
            state != ConsumerState::Draining
                && work.is_none_or(|work| work.pending == 0 && u128::from(work.idle_ms) >= floor.as_millis())
        })
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
            pending: consumer.work.map(|w| w.pending + w.phantom_pending),
            phantom_pending: consumer.work.map(|w| w.phantom_pending),
            idle_ms: consumer.work.map(|w| w.idle_ms),
            in_flight: beat.and_then(|b| b.in_flight),
            unreadable: consumer.unreadable.clone(),
        }
    }
}

impl StreamStatus {
    /// Status of a stream at `ts` (Redis' clock, Unix seconds).
    pub(super) fn of(stream: &StreamReading, rate: Rate, failures: Option<TaskFailures>, ts: f64) -> Self {
        let facts = stream.facts.as_ref().ok();
        let backlog = facts.map(Backlog::of);
        let consumers = facts.map(|f| StreamConsumers::of(&f.groups)).unwrap_or_default();
        let groups: Vec<GroupStatus> =
            facts.map(|f| f.groups.iter().map(|g| GroupStatus::of(g, ts)).collect()).unwrap_or_default();
        Self {
            xlen: facts.map(|f| f.length),
            pending: backlog.map(|b| b.pending),
            phantom_pending: backlog.map(|b| b.phantom_pending),
            phantom_pending_at_least: backlog.is_some_and(|b| b.phantom_at_least),
            consumer_count: consumers.count(),
            max_idle_ms: facts.map(|_| consumers.iter().map(|(_, c)| c.idle_ms).max().unwrap_or(0)),
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
            failures,
        }
    }
}

impl GroupStatus {
    fn of(group: &GroupReading, ts: f64) -> Self {
        Self {
            name: group.name.clone(),
            pending: group.pending,
            phantom_pending: group.phantom_pending,
            phantom_pending_at_least: group.phantom_at_least,
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
    /// Server status from the reading at `read_at`, with the current status of the data source.
    pub(super) fn of(server: &RedisServer, source: SourceStatus, read_at: Option<f64>) -> Self {
        let write_error = server.write_trouble.clone().filter(|_| source.is_current());
        let error = source.error().or_else(|| write_error.as_ref().map(|trouble| trouble.detail.clone()));
        let error = error.or_else(|| server.denied.clone());
        Self { server: server.clone(), error, source, read_at, write_error }
    }
}

impl PostgresStatus {
    /// Database status from the latest reading, with the current status of the data source.
    pub(super) fn of(
        reading: &DatabaseReading,
        source: SourceStatus,
        disk_capacity_bytes: u64,
        interval: Duration,
        now: Mono,
    ) -> Self {
        let counts = reading.query_counts.latest();
        let volume = reading.query_volume.latest();
        let callbacks = reading.callbacks.latest();
        let server = reading.server.latest();
        let connections = server.and_then(|s| s.connections.as_ref().ok().copied());
        let db_size_bytes = server.and_then(|s| s.db_size_bytes.as_ref().ok().copied());
        let wal_size_bytes = server.and_then(|s| s.wal_size_bytes.as_ref().ok().copied().flatten());
        let used = db_size_bytes.zip(wal_size_bytes).map(|(database, wal)| database + wal);
        let freshness = PostgresFreshness::of(reading, interval, now);
        let counts_age_sec = freshness.counts.age_sec.map(f64::round);
        let write_error = reading.write_trouble.clone();
        let failed = freshness.error();
        // A query also ages between two measurements; while Postgres is unreachable, it may have ended.
        let elapsed = reading.callbacks.value.as_ref().filter(|_| source.is_current());
        let elapsed = elapsed.map_or(0.0, |(at, _)| now.since(*at).as_secs_f64());
        Self {
            state_counts: counts.map(|c| c.by_state.clone()),
            status_counts: counts.map(|c| c.by_status.clone()),
            counts_age_sec,
            queries_last_1h: volume.map(|v| v.last_1h),
            queries_last_24h: volume.map(|v| v.last_24h),
            per_ara_24h: volume.map(|v| v.per_ara_24h.clone()),
            callbacks_pending: callbacks.map(|c| c.pending),
            oldest_callback_age_sec: callbacks.map(|c| c.oldest_age_sec.map_or(0.0, |age| age + elapsed)),
            connection_count: connections,
            db_size_bytes,
            wal_size_bytes,
            disk_capacity_bytes,
            disk_used_bytes: used,
            #[expect(clippy::cast_precision_loss, reason = "bytes of a disk, shown as a percentage")]
            disk_used_pct: used
                .filter(|_| disk_capacity_bytes > 0)
                .map(|used| (used as f64 / disk_capacity_bytes as f64 * 1000.0).round() / 10.0),
            without_queries: server.is_some_and(|s| !s.has_queries),
            error: source.error().or_else(|| write_error.as_ref().map(|trouble| trouble.detail.clone())).or(failed),
            source,
            write_error,
            freshness,
        }
    }
}

impl PostgresFreshness {
    fn of(reading: &DatabaseReading, interval: Duration, now: Mono) -> Self {
        let server = Freshness::of(&reading.server, interval, now);
        // A single figure of the server may have failed.
        let alone = |failed: Option<&String>| match failed {
            Some(error) => Freshness { outdated: true, error: Some(error.clone()), ..server.clone() },
            None => server.clone(),
        };
        let of_server = reading.server.latest();
        Self {
            counts: Freshness::of(&reading.query_counts, interval, now),
            volume: Freshness::of(&reading.query_volume, interval, now),
            callbacks: Freshness::of(&reading.callbacks, interval, now),
            connections: alone(of_server.and_then(|s| s.connections.as_ref().err())),
            database_size: alone(of_server.and_then(|s| s.db_size_bytes.as_ref().err())),
            wal_size: alone(of_server.and_then(|s| s.wal_size_bytes.as_ref().err())),
        }
    }

    /// Name and reason of the figure that could not be measured last.
    fn error(&self) -> Option<String> {
        let groups = [
            ("connections", &self.connections),
            ("database size", &self.database_size),
            ("write-ahead log size", &self.wal_size),
            ("query counts", &self.counts),
            ("queries of the last day", &self.volume),
            ("callbacks", &self.callbacks),
        ];
        groups.into_iter().find_map(|(group, freshness)| Some(format!("{group}: {}", freshness.error.as_ref()?)))
    }
}

impl Freshness {
    fn of<T>(probed: &Probed<T>, interval: Duration, now: Mono) -> Self {
        let two_ticks = interval * 2;
        let age = probed.value.as_ref().map(|(at, _)| now.since(*at));
        Self {
            age_sec: age.map(|age| (age.as_secs_f64() * 10.0).round() / 10.0),
            stale: age.is_some_and(|age| age > two_ticks),
            outdated: probed.error.is_some() || age.is_some() && now > probed.expected_by.plus(two_ticks),
            error: probed.error.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::reading::Lag;
    use crate::fleet::reading::{Callbacks, DatabaseServer, QueryCounts};
    use ConsumerState::{Alive, Draining, Lost};

    const TICK: Duration = Duration::from_secs(3);

    fn measured<T>(at: u64, value: T) -> Probed<T> {
        Probed { value: Some((Mono(at), value)), error: None, expected_by: Mono(at) }
    }

    fn reading() -> DatabaseReading {
        DatabaseReading {
            query_counts: measured(
                10_000,
                QueryCounts { by_state: [("QUEUED".to_owned(), 7)].into(), ..Default::default() },
            ),
            callbacks: measured(10_000, Callbacks { pending: 2, oldest_age_sec: Some(1.5) }),
            server: measured(
                10_000,
                DatabaseServer {
                    connections: Ok(5),
                    db_size_bytes: Err("permission denied for function pg_database_size".to_owned()),
                    wal_size_bytes: Ok(Some(10)),
                    has_queries: true,
                },
            ),
            ..DatabaseReading::default()
        }
    }

    fn at(reading: &DatabaseReading, now: u64) -> PostgresStatus {
        PostgresStatus::of(reading, SourceStatus::Ok, 0, TICK, Mono(now))
    }

    #[test]
    fn oldest_callback_ages_between_measurements() {
        assert_eq!(at(&reading(), 10_000).oldest_callback_age_sec, Some(1.5));
        assert_eq!(at(&reading(), 14_000).oldest_callback_age_sec, Some(5.5));
        let mut none = reading();
        none.callbacks = measured(10_000, Callbacks { pending: 0, oldest_age_sec: None });
        assert_eq!(at(&none, 14_000).oldest_callback_age_sec, Some(0.0));
        let down = SourceStatus::Starting;
        let frozen = PostgresStatus::of(&reading(), down, 0, TICK, Mono(14_000));
        assert_eq!(frozen.oldest_callback_age_sec, Some(1.5), "nothing is known of it while Postgres is not read");
    }

    #[test]
    fn old_figure_has_an_age_and_overdue_one_is_ignored() {
        let status = at(&reading(), 15_000);
        assert_eq!((status.freshness.counts.stale, status.freshness.counts.outdated), (false, false));
        assert_eq!(status.current().state_counts, status.state_counts);
        let status = at(&reading(), 17_000);
        assert_eq!(status.freshness.counts.age_sec, Some(7.0));
        assert!(status.freshness.counts.stale && status.freshness.counts.outdated);
        assert!(status.state_counts.is_some(), "the last value is still shown");
        assert_eq!(status.current().state_counts, None);
        assert_eq!(status.current().oldest_callback_age_sec, None);
        // A large table is counted less often: its figure is displayed with its age and used until it is overdue.
        let mut large = reading();
        large.query_counts.expected_by = Mono(70_000);
        let status = at(&large, 60_000);
        assert!(status.freshness.counts.stale && !status.freshness.counts.outdated);
        assert!(status.current().state_counts.is_some());
        assert!(at(&large, 77_000).freshness.counts.outdated);
    }

    #[test]
    fn failed_probe_has_no_current_figure() {
        let mut failing = reading();
        failing.query_counts.error = Some("permission denied for table shepherd_brain".to_owned());
        let status = at(&failing, 11_000);
        assert!(status.freshness.counts.outdated && status.error.as_ref().unwrap().contains("permission denied"));
        assert_eq!(status.current().state_counts, None);
        assert_eq!(status.current().callbacks_pending, Some(2), "the others go on");
    }

    #[test]
    fn single_failed_figure_has_a_reason() {
        let status = at(&reading(), 11_000);
        assert_eq!((status.connection_count, status.db_size_bytes, status.wal_size_bytes), (Some(5), None, Some(10)));
        assert_eq!(status.disk_used_bytes, None);
        assert!(status.freshness.database_size.error.as_ref().unwrap().contains("pg_database_size"));
        assert!(status.error.as_ref().unwrap().contains("database size: permission denied"), "{:?}", status.error);
        assert_eq!(status.freshness.connections.error, None);
    }

    const FLOOR: Duration = Duration::from_secs(30);
    const NOW: f64 = 1_795_456_871.0;

    fn group(oldest_waiting_sec: Option<u64>) -> GroupReading {
        GroupReading {
            name: "consumer".into(),
            pending: 0,
            phantom_pending: 0,
            phantom_at_least: false,
            lag: Lag::Reported(u64::from(oldest_waiting_sec.is_some())),
            entries_read: None,
            last_delivered_id: String::new(),
            oldest_undelivered_ms: oldest_waiting_sec.map(|age| (NOW as u64 - age) * 1000),
            consumers: None,
        }
    }

    fn seen(waiting: Option<u64>, consumers: &[(ConsumerState, u64, u64)]) -> bool {
        let consumers = consumers.iter().map(|(state, pending, idle_sec)| {
            (*state, Some(Work { pending: *pending, idle_ms: idle_sec * 1000, ..Work::default() }))
        });
        not_consuming(consumers, &[group(waiting)], FLOOR, NOW)
    }

    #[test]
    fn type_is_not_consuming_when_no_consumer_reads() {
        assert!(seen(Some(60), &[(Alive, 0, 1200), (Alive, 0, 31)]));
        assert!(seen(Some(60), &[(Alive, 0, 1200), (Lost, 3, 1200)]), "a lost consumer says nothing of the others");
        assert!(!seen(None, &[(Alive, 0, 1200)]), "nothing waits");
        assert!(!seen(Some(5), &[(Alive, 0, 1200)]), "it has not waited long: a consumer may block without a limit");
        assert!(!seen(Some(60), &[(Alive, 0, 1200), (Alive, 0, 2)]), "one reads");
        assert!(!seen(Some(60), &[(Alive, 2, 1200)]), "it is busy, or hung");
        assert!(!seen(Some(60), &[(Draining, 0, 1200)]), "it takes no new work on purpose");
        assert!(!seen(Some(60), &[(Lost, 0, 1200)]), "none runs");
    }

    #[test]
    fn consumer_outside_the_group_is_not_consuming() {
        assert!(not_consuming([(ConsumerState::Alive, None)].into_iter(), &[group(Some(60))], FLOOR, NOW));
    }
}
