//! Evaluation of rule conditions against a snapshot, per stream or worker type.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::lifecycle::Seen;
use super::names::{Matched, Names};
use super::rule::{Bound, Metric, Missing, Per, Rule, Subjects};
use crate::contract::Name;
use crate::fleet::reading::TroubleKind;
use crate::fleet::snapshot::{PostgresStatus, Snapshot, SourceStatus, StreamStatus, WorkerTypeStatus};

/// Maximum number of samples retained per value for change conditions.
const SAMPLES: usize = 240;
/// Window for extrapolating disk usage.
const FILLING_OVER: Duration = Duration::from_secs(3600);

/// A snapshot, indexed so that hundreds of rules find their subjects quickly.
pub struct Sight<'a> {
    snapshot: &'a Snapshot,
    streams: Vec<(&'a Name, &'a StreamStatus)>,
    workers: Vec<(&'a Name, &'a WorkerTypeStatus)>,
    redis_current: bool,
    /// Current Postgres figures; `None` when Postgres is unreachable.
    postgres: Option<PostgresStatus>,
}

impl<'a> Sight<'a> {
    /// Indexes `snapshot`.
    #[must_use]
    pub fn of(snapshot: &'a Snapshot) -> Self {
        Self {
            streams: snapshot.streams.iter().collect(),
            workers: snapshot.workers.iter().collect(),
            redis_current: snapshot.redis.source.is_current(),
            postgres: snapshot.postgres.source.is_current().then(|| snapshot.postgres.current()),
            snapshot,
        }
    }
}

/// State that one rule retains between snapshots.
#[derive(Debug, Default)]
pub struct Memory {
    /// Names that its glob matches.
    matched: Matched,
    samples: BTreeMap<String, VecDeque<(f64, f64)>>,
}

/// Calls `tell` for each subject of `rule` with its observation at `now`; `names` are those in the snapshot. Without
/// `all`, subjects whose value does not meet the condition may be omitted.
pub fn observe(
    rule: &Rule,
    (sight, names): (&Sight<'_>, &Names),
    memory: &mut Memory,
    now: f64,
    all: bool,
    mut tell: impl FnMut(Option<&str>, Seen),
) {
    let metric = rule.watch.metric;
    match (&rule.watch.of, metric.per()) {
        (_, Per::Whole) | (None, _) => {
            let value = whole(metric, sight);
            let value = if metric == Metric::DiskFullIn { filling(value, sight, memory, now) } else { value };
            tell(None, judge(rule, None, value, memory, now));
        }
        (Some(Subjects::One(subject)), _) => {
            let name = Name::from(subject.as_str());
            let value = of_name(metric, sight, &name);
            tell(Some(subject), judge(rule, Some(subject), value, memory, now));
        }
        (Some(Subjects::Glob(glob)), per) => {
            let listing = if per == Per::WorkerType { &names.workers } else { &names.streams };
            let mut matched = std::mem::take(&mut memory.matched);
            for at in matched.follow(listing, glob) {
                let (name, value) = match per {
                    Per::WorkerType => match sight.workers.get(*at) {
                        Some((name, status)) => (name, of_worker(metric, sight, Some(status))),
                        None => continue,
                    },
                    _ => match sight.streams.get(*at) {
                        Some((name, status)) => (name, of_stream(metric, sight, Some(status))),
                        None => continue,
                    },
                };
                if rule.watch.change_over.is_none() && value.is_some_and(|value| !rule.bound.holds(value)) {
                    // By far the most common case: nothing to store, no text to format.
                    if all {
                        tell(Some(&name.to_text()), Seen::Clear(value));
                    }
                    continue;
                }
                let text = name.to_text();
                tell(Some(&text), judge(rule, Some(&text), value, memory, now));
            }
            memory.matched = matched;
        }
    }
}

/// Current value of a rule with at most one subject, for display.
#[must_use]
pub fn present_value(rule: &Rule, sight: &Sight<'_>) -> Option<f64> {
    match &rule.watch.of {
        Some(Subjects::One(subject)) => of_name(rule.watch.metric, sight, &Name::from(subject.as_str())),
        None => whole(rule.watch.metric, sight),
        Some(Subjects::Glob(glob)) => {
            let values = |per: Per| -> Vec<f64> {
                let fits = |name: &Name| glob.is_match(&name.to_text());
                match per {
                    Per::WorkerType => sight
                        .workers
                        .iter()
                        .filter(|(n, _)| fits(n))
                        .filter_map(|(_, w)| of_worker(rule.watch.metric, sight, Some(w)))
                        .collect(),
                    _ => sight
                        .streams
                        .iter()
                        .filter(|(n, _)| fits(n))
                        .filter_map(|(_, s)| of_stream(rule.watch.metric, sight, Some(s)))
                        .collect(),
                }
            };
            let values = values(rule.watch.metric.per()).into_iter();
            if matches!(rule.bound, Bound::Below(_)) { values.reduce(f64::min) } else { values.reduce(f64::max) }
        }
    }
}

/// Compares a value, or its absence, with the condition of `rule`.
pub(super) fn judge(rule: &Rule, subject: Option<&str>, value: Option<f64>, memory: &mut Memory, now: f64) -> Seen {
    let value = match rule.watch.change_over {
        Some(over) => value.and_then(|value| memory.change(subject.unwrap_or_default(), value, over, now)),
        None => value,
    };
    match (value, rule.bound, rule.missing) {
        (Some(value), Bound::NoData, _) => Seen::Clear(Some(value)),
        (None, Bound::NoData, _) | (None, _, Missing::Fires) => Seen::Holds(None),
        (None, _, Missing::Resolves) => Seen::Clear(None),
        (None, _, Missing::Keep) => Seen::Missing,
        (Some(value), bound, _) if bound.holds(value) => Seen::Holds(Some(value)),
        (Some(value), ..) => Seen::Clear(Some(value)),
    }
}

impl Memory {
    /// Shifts sample times by a step of the wall clock, in seconds.
    pub fn shift_timers(&mut self, by: f64) {
        for (at, _) in self.samples.values_mut().flatten() {
            *at += by;
        }
    }

    /// Change of `value` over the period; `None` until it was observed for that long.
    fn change(&mut self, subject: &str, value: f64, over: Duration, now: f64) -> Option<f64> {
        if !self.samples.contains_key(subject) {
            self.samples.insert(subject.to_owned(), VecDeque::new());
        }
        let samples = self.samples.get_mut(subject)?;
        let over = over.as_secs_f64();
        let spacing = over / SAMPLES as f64;
        if samples.back().is_none_or(|(at, _)| now - at >= spacing) {
            samples.push_back((now, value));
        }
        while samples.get(1).is_some_and(|(at, _)| now - at >= over) {
            samples.pop_front();
        }
        samples.front().filter(|(at, _)| now - at >= over).map(|(_, then)| value - then)
    }

    /// Growth of `value` per second over at most that period, once it is known.
    fn slope(&mut self, value: f64, over: Duration, now: f64) -> Option<f64> {
        let samples = self.samples.entry(String::new()).or_default();
        let spacing = over.as_secs_f64() / SAMPLES as f64;
        if samples.back().is_none_or(|(at, _)| now - at >= spacing) {
            samples.push_back((now, value));
        }
        while samples.front().is_some_and(|(at, _)| now - at > over.as_secs_f64()) {
            samples.pop_front();
        }
        samples.front().filter(|(at, _)| now - at >= 60.0).map(|(at, then)| (value - then) / (now - at))
    }
}

/// Seconds until the volume is full, based on the usage now.
fn filling(used: Option<f64>, sight: &Sight<'_>, memory: &mut Memory, now: f64) -> Option<f64> {
    let capacity = sight.snapshot.postgres.disk_capacity_bytes;
    let (used, slope) = (used?, memory.slope(used?, FILLING_OVER, now)?);
    if capacity == 0 {
        return None;
    }
    Some(if slope > 0.0 { ((count(capacity) - used) / slope).max(0.0) } else { f64::INFINITY })
}

fn of_name(metric: Metric, sight: &Sight<'_>, name: &Name) -> Option<f64> {
    match metric.per() {
        Per::Stream => of_stream(metric, sight, sight.snapshot.streams.get(name)),
        Per::WorkerType => of_worker(metric, sight, sight.snapshot.workers.get(name)),
        Per::QueryState => {
            let counts = sight.postgres.as_ref()?.state_counts.as_ref()?;
            // A state without rows has no count.
            Some(counts.get(name.to_text().as_str()).copied().map_or(0.0, signed))
        }
        Per::Whole => whole(metric, sight),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes far below 2^53")]
fn count(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes far below 2^53")]
fn signed(n: i64) -> f64 {
    n as f64
}

fn of_stream(metric: Metric, sight: &Sight<'_>, stream: Option<&StreamStatus>) -> Option<f64> {
    if !sight.redis_current {
        return None;
    }
    let stream = stream?;
    match metric {
        Metric::Xlen => stream.xlen.map(count),
        Metric::Pending => stream.pending.map(count),
        Metric::PhantomPending => stream.phantom_pending.map(count),
        Metric::Lag => stream.undelivered.map(count),
        Metric::LagSeconds => match (stream.undelivered, stream.oldest_waiting_sec) {
            (Some(0), _) => Some(0.0),
            (_, seconds) => seconds,
        },
        Metric::DrainSeconds => match (stream.drain_sec, stream.undelivered, stream.added_per_sec) {
            (Some(seconds), ..) => Some(seconds),
            (None, Some(waiting), Some(_)) if waiting > 0 => Some(f64::INFINITY),
            _ => None,
        },
        Metric::Consumers => stream.xlen.map(|_| count(stream.consumer_count as u64)),
        Metric::AddedPerSec => stream.added_per_sec,
        Metric::Failures => stream.failures.as_ref().map(|failures| count(failures.last_5m)),
        _ => None,
    }
}

fn of_worker(metric: Metric, sight: &Sight<'_>, worker: Option<&WorkerTypeStatus>) -> Option<f64> {
    if !sight.redis_current {
        return None;
    }
    if metric == Metric::WorkersAlive {
        let alive = worker.map_or(0, |worker| worker.alive + worker.stale);
        // While Redis is recovering, absent heartbeats do not count.
        let settling = matches!(sight.snapshot.redis.source, SourceStatus::Settling { .. });
        return (alive > 0 || !settling).then(|| f64::from(alive));
    }
    let worker = worker?;
    match metric {
        Metric::LostWorkers => Some(f64::from(worker.lost)),
        Metric::HungWorkers => Some(f64::from(worker.hung)),
        Metric::Backlog => worker.backlog.map(count),
        Metric::Capacity => Some(count(worker.capacity)),
        Metric::Utilization => worker.utilization,
        _ => None,
    }
}

fn whole(metric: Metric, sight: &Sight<'_>) -> Option<f64> {
    let (redis, postgres) = (&sight.snapshot.redis, &sight.snapshot.postgres);
    let down = |source: &SourceStatus| match source {
        SourceStatus::Starting => None,
        SourceStatus::Down { .. } => Some(1.0),
        SourceStatus::Ok | SourceStatus::Settling { .. } => Some(0.0),
    };
    match metric {
        Metric::RedisDown => return down(&redis.source),
        Metric::PostgresDown => return down(&postgres.source),
        Metric::LoginRefused => {
            let refused = |source: &SourceStatus| match source {
                SourceStatus::Starting => None,
                SourceStatus::Down { trouble, .. } => Some(trouble.kind == TroubleKind::Refused),
                _ => Some(false),
            };
            return match (refused(&redis.source), refused(&postgres.source)) {
                (Some(true), _) | (_, Some(true)) => Some(1.0),
                (None, None) => None,
                _ => Some(0.0),
            };
        }
        _ => {}
    }
    let server = sight.redis_current.then_some(&redis.server);
    let database = sight.postgres.as_ref();
    match metric {
        Metric::CallbacksPending => database?.callbacks_pending.map(signed),
        Metric::OldestCallbackAge => database?.oldest_callback_age_sec,
        Metric::QueriesLastHour => database?.queries_last_1h.map(signed),
        Metric::PgConnections => database?.connection_count.map(signed),
        Metric::DbSize => database?.db_size_bytes.map(signed),
        Metric::WalSize => database?.wal_size_bytes.map(signed),
        Metric::DiskUsed | Metric::DiskFullIn => database?.disk_used_bytes.map(signed),
        Metric::DiskUsedPct => database?.disk_used_pct,
        Metric::DiskCapacity => Some(count(database?.disk_capacity_bytes)).filter(|bytes| *bytes > 0.0),
        Metric::RedisMemory => server?.used_memory_bytes.map(count),
        Metric::RedisMemoryPct => {
            let (used, limit) = (server?.used_memory_bytes?, server?.maxmemory_bytes?);
            (limit > 0).then(|| count(used) / count(limit) * 100.0)
        }
        Metric::RedisClients => server?.connected_clients.map(count),
        Metric::RedisOps => server?.instantaneous_ops_per_sec.map(count),
        Metric::RedisEvicted => server?.evicted_keys.map(count),
        _ => None,
    }
}
