//! Fixtures: snapshots of all states of the live page. Also used by the tests of `pages`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shepherd_monitor::contract::Name;
use shepherd_monitor::contract::failures::{FailureCounts, FailureKind};
use shepherd_monitor::fleet::consumer::ConsumerState;
use shepherd_monitor::fleet::event::{Event, EventKind, Unread};
use shepherd_monitor::fleet::older_monitor::OlderMonitor;
use shepherd_monitor::fleet::reading::{Lag, RedisServer, SourceTrouble, TroubleKind, UnreadableHeartbeat};
use shepherd_monitor::fleet::snapshot::{
    ConsumerStatus, DepthHistory, GroupStatus, NewestFailure, PostgresFreshness, PostgresStatus, RedisStatus, Snapshot,
    SourceStatus, StreamConsumers, StreamStatus, TaskFailures, WorkerTypeStatus,
};
use shepherd_monitor::fleet::worker_type::TypeState;

/// Streams of the platform.
const STREAMS: [&str; 20] = [
    "aragorn",
    "aragorn.lookup",
    "aragorn.pathfinder",
    "aragorn.omnicorp",
    "aragorn.score",
    "arax",
    "arax.rank",
    "bte",
    "bte.lookup",
    "sipr",
    "example",
    "example.lookup",
    "example.score",
    "merge_message",
    "sort_results_score",
    "filter_results_top_n",
    "filter_kgraph_orphans",
    "filter_analyses_top_n",
    "score_paths",
    "finish_query",
];

/// All states by name. `None`: the monitor has not finished its first poll.
pub(crate) fn all(now: f64) -> Vec<(&'static str, Option<Snapshot>)> {
    vec![
        ("small", Some(small(now))),
        ("healthy", Some(healthy(now))),
        ("trouble", Some(trouble(now))),
        ("starting", None),
        ("empty", Some(empty(now))),
        ("redis-down", Some(redis_down(now))),
        ("postgres-down", Some(postgres_down(now))),
        ("settling", Some(settling(now))),
        ("hostile", Some(hostile(now))),
        ("other-fleet", Some(other_fleet(now))),
        ("full", Some(full(now))),
    ]
}

/// Deterministic random numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

/// One of each kind, with a short history.
pub(crate) fn small(now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    fleet.add("aragorn", 3, 10, 12);
    fleet.add("bte.lookup", 3, 10, 1234);
    fleet.add("orders", 0, 0, 4);
    fleet.add("wrong", 2, 5, 0);
    fleet.change("bte.lookup", |w, s| {
        (w.state, w.alive, w.lost, w.capacity, w.utilization) = (TypeState::Crashed, 0, 1, 0, Some(1.0));
        (w.state_changed_at, w.lost_at) = (Some(now - 30.0), Some(now - 30.0));
        (s.drain_sec, s.read_per_sec) = (None, Some(0.0));
    });
    fleet.change("orders", |w, s| {
        (w.state, w.without_heartbeat, w.state_changed_at) = (TypeState::Unknown, 2, None);
        (s.consumer_count, s.max_idle_ms) = (2, Some(125_000));
    });
    fleet.change("wrong", |w, s| {
        s.error = Some("WRONGTYPE Operation against a key holding the wrong kind of value".to_owned());
        (s.xlen, s.undelivered, s.pending, s.oldest_waiting_sec, s.drain_sec) = (None, None, None, None, None);
        (w.backlog, w.utilization, w.pending) = (None, None, None);
    });
    fleet.event(30.0, "bte.lookup", EventKind::ScaleDown { from: 3, to: 0, kind: TypeState::Crashed });
    fleet.event(400.0, "aragorn", EventKind::ScaleUp { from: 2, to: 3, recovered_from: None });
    let mut snapshot = fleet.finish();
    let depths = Arc::make_mut(&mut snapshot.depths);
    depths.times.drain(..190);
    depths.depths.values_mut().for_each(|series| drop(series.drain(..190)));
    snapshot
}

pub(crate) fn healthy(now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    for (i, name) in STREAMS.iter().enumerate() {
        let busy = matches!(*name, "aragorn.lookup" | "bte.lookup" | "merge_message" | "arax" | "finish_query");
        fleet.add(name, 3 + i as u64 % 4, 10, if busy { 20 + 13 * i as u64 } else { i as u64 % 3 });
    }
    fleet.event(40.0, "bte.lookup", EventKind::ScaleUp { from: 4, to: 6, recovered_from: None });
    fleet.event(900.0, "arax", EventKind::ScaleDown { from: 6, to: 5, kind: TypeState::Alive });
    fleet.event(7200.0, "sipr", EventKind::ScaleUp { from: 0, to: 3, recovered_from: Some(TypeState::ScaledDown) });
    fleet.event(9000.0, "postgres", EventKind::SourceUp { away_sec: 12 });
    fleet.finish()
}

pub(crate) fn trouble(now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    for (i, name) in STREAMS.iter().enumerate() {
        fleet.add(name, 3 + i as u64 % 4, 10, (i as u64 * 7) % 23);
    }
    fleet.change("aragorn.lookup", |w, s| {
        (w.state, w.alive, w.lost, w.capacity) = (TypeState::Crashed, 0, 3, 0);
        w.state_changed_at = Some(now - 252.0);
        w.lost_at = Some(now - 252.0);
        (w.backlog, w.utilization) = (Some(1234), Some(1.0));
        (s.undelivered, s.pending, s.xlen) = (Some(1220), Some(14), Some(1234));
        (s.oldest_waiting_sec, s.drain_sec, s.added_per_sec, s.read_per_sec) =
            (Some(250.0), None, Some(4.9), Some(0.0));
    });
    fleet.change("bte.lookup", |w, _| {
        (w.alive, w.lost, w.lost_at) = (2, 1, Some(now - 75.0));
        w.capacity = 20;
    });
    fleet.change("merge_message", |w, _| {
        w.hung = 1;
        if let Some(c) = w.consumers.first_mut() {
            (c.state, c.state_since, c.pending) = (ConsumerState::Hung, now - 400.0, Some(4));
        }
    });
    fleet.change("sipr", |w, s| {
        (w.state, w.alive, w.capacity, w.backlog, w.utilization) = (TypeState::ScaledDown, 0, 0, Some(17), Some(1.0));
        (s.undelivered, s.oldest_waiting_sec) = (Some(17), Some(1900.0));
    });
    fleet.change("example", |w, s| {
        (w.state, w.alive, w.capacity, w.backlog, w.utilization) = (TypeState::ScaledDown, 0, 0, Some(0), Some(0.0));
        (s.undelivered, s.pending, s.oldest_waiting_sec) = (Some(0), Some(0), None);
    });
    fleet.change("example.score", |w, _| w.draining = 1);
    let reason = "missing field `query_graph` in the message of response 7c1e90aa, which the task's handler needs";
    fleet.fail("arax", (2, 14, 12), 7, (FailureKind::Malformed, reason, now - 12.0));
    fleet.fail("finish_query", (3, 0, 0), 0, (FailureKind::Failed, "database: connection refused", now - 4000.0));
    fleet.change("score_paths", |w, s| {
        s.error = Some("WRONGTYPE Operation against a key holding the wrong kind of value".to_owned());
        (s.xlen, s.undelivered, s.pending, s.oldest_waiting_sec, s.drain_sec) = (None, None, None, None, None);
        (w.backlog, w.utilization, w.pending) = (None, None, None);
    });
    fleet.change("arax.rank", |w, s| {
        (w.backlog, w.backlog_at_least) = (Some(100), true);
        (s.undelivered, s.undelivered_at_least) = (Some(100), true);
    });
    fleet.snapshot.postgres.disk_used_bytes = Some(93_000_000_000);
    fleet.snapshot.postgres.disk_used_pct = Some(86.6);
    fleet.snapshot.unreadable_heartbeats = vec![
        UnreadableHeartbeat {
            key: "worker:heartbeat:arax:0badc0de".to_owned(),
            reason: "missing field `task_limit`".to_owned(),
            stream: Some("arax".into()),
            consumer: Some("0badc0de".into()),
        },
        UnreadableHeartbeat {
            key: "worker:heartbeat:somebody".to_owned(),
            reason: "not a JSON object".to_owned(),
            stream: None,
            consumer: None,
        },
    ];
    let lost = |name: &str, remaining, pending| EventKind::ConsumerLost { consumer: name.into(), remaining, pending };
    fleet.event(75.0, "bte.lookup", lost("7f3a90c1", 2, 4));
    fleet.event(252.0, "aragorn.lookup", EventKind::ScaleDown { from: 3, to: 0, kind: TypeState::Crashed });
    for (consumer, pending) in [("a1", 5), ("a2", 9), ("a3", 0)] {
        fleet.event(252.0, "aragorn.lookup", lost(consumer, 0, pending));
    }
    fleet.event(
        130.0,
        "arax",
        EventKind::TaskFailures {
            kind: FailureKind::Malformed,
            reason: Some(reason.to_owned()),
            entry: Some("1795456858000-0".to_owned()),
            count: 3,
            unread: Unread::No,
        },
    );
    fleet.event(
        400.0,
        "merge_message",
        EventKind::Hung { consumer: "merge_message-0".into(), pending: 4, for_sec: 60 },
    );
    fleet.event(1900.0, "sipr", EventKind::ScaleDown { from: 3, to: 0, kind: TypeState::ScaledDown });
    fleet.event(2500.0, "example", EventKind::LeftWithWork { consumer: "deadbeef".into(), pending: 2 });
    fleet.finish()
}

pub(crate) fn empty(now: f64) -> Snapshot {
    let mut snapshot = Fleet::new(now).finish();
    snapshot.postgres.without_queries = true;
    snapshot
}

pub(crate) fn redis_down(now: f64) -> Snapshot {
    let mut snapshot = trouble(now);
    let trouble = SourceTrouble::new(TroubleKind::Unreachable, "connection refused (127.0.0.1:6379)");
    snapshot.redis.error = Some(trouble.detail.clone());
    snapshot.redis.source = SourceStatus::Down { since: now - 95.0, trouble };
    gap(&mut snapshot, 31);
    snapshot
}

pub(crate) fn postgres_down(now: f64) -> Snapshot {
    let mut snapshot = healthy(now);
    let trouble = SourceTrouble::new(TroubleKind::TimedOut, "no answer within 2 s");
    snapshot.postgres.error = Some(trouble.detail.clone());
    snapshot.postgres.source = SourceStatus::Down { since: now - 3700.0, trouble };
    snapshot
}

pub(crate) fn settling(now: f64) -> Snapshot {
    let mut snapshot = healthy(now);
    snapshot.redis.source = SourceStatus::Settling { remaining_sec: 12.0 };
    snapshot.postgres.error = Some("permission denied for function pg_ls_waldir".to_owned());
    gap(&mut snapshot, 0);
    snapshot
}

/// Removes the last columns of the chart, or with 0 some in the middle.
fn gap(snapshot: &mut Snapshot, last: usize) {
    let depths = Arc::make_mut(&mut snapshot.depths);
    let n = depths.times.len();
    let missing = if last == 0 { n - 60..n - 30 } else { n - last..n };
    for series in depths.depths.values_mut() {
        series.range_mut(missing.clone()).for_each(|depth| *depth = None);
    }
}

pub(crate) fn hostile(now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    let long = "long".repeat(1000);
    for name in [
        "<img src=x onerror=alert(1)>",
        "\"quotes' & <b>tags</b>",
        "new\nline\ttab\0nul",
        "q[1]*?",
        "a:b:c",
        "\u{202e}turned round",
        "{{triple}} {{{braces}}}",
        "</script><script>alert(2)</script>",
        "",
        "ünïcödé 漢字 🐑",
        "plain",
        long.as_str(),
    ] {
        fleet.add(name, 2, 5, 7);
        fleet.event(60.0, name, EventKind::Hung { consumer: name.into(), pending: 3, for_sec: 90 });
        fleet.fail(name, (1, 0, 1), 2, (FailureKind::Failed, name, now - 5.0));
    }
    fleet.change("plain", |_, s| {
        s.groups = ["<script>alert(3)</script>", "second"]
            .map(|group| GroupStatus {
                name: group.into(),
                pending: 3,
                phantom_pending: 0,
                phantom_pending_at_least: false,
                lag: Lag::AtLeast(100),
                consumer_count: Some(2),
                last_delivered_id: "0-0".to_owned(),
                entries_read: None,
                oldest_waiting_sec: Some(12.0),
            })
            .into();
    });
    fleet.snapshot.unreadable_heartbeats = vec![UnreadableHeartbeat {
        key: "worker:heartbeat:<img src=x onerror=alert(4)>".to_owned(),
        reason: "not JSON: expected value, found \"<svg onload=alert(5)>\"".to_owned(),
        stream: None,
        consumer: None,
    }];
    fleet.snapshot.redis.server.version = Some("<i>7.0.15</i>".to_owned());
    fleet.finish()
}

/// Redis Streams applications whose consumers write no heartbeats.
pub(crate) fn other_fleet(now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    for (i, name) in ["orders", "orders:retry", "mail out", "thumbnails"].into_iter().enumerate() {
        fleet.add(name, 0, 0, 30 * i as u64);
        fleet.change(name, |w, s| {
            (w.state, w.without_heartbeat, w.state_changed_at) = (TypeState::Unknown, 2, None);
            s.consumer_count = 2;
            s.max_idle_ms = Some(4000 * 10_u64.pow(i as u32));
            if i == 2 {
                s.groups = ["mailer", "audit", "archive"]
                    .map(|group| GroupStatus {
                        name: group.into(),
                        pending: 4,
                        phantom_pending: 0,
                        phantom_pending_at_least: false,
                        lag: if group == "audit" { Lag::Unknown } else { Lag::Reported(60) },
                        consumer_count: Some(1),
                        last_delivered_id: "0-0".to_owned(),
                        entries_read: Some(10),
                        oldest_waiting_sec: (group != "audit").then_some(33.0),
                    })
                    .into();
                (s.undelivered, w.backlog, w.utilization) = (None, None, None);
            }
        });
    }
    fleet.snapshot.postgres.without_queries = true;
    fleet.finish()
}

pub(crate) fn full(now: f64) -> Snapshot {
    let mut fleet = Fleet::new(now);
    let mut dice = Dice(7);
    for i in 0..200 {
        let step = match i % 4 {
            0 => "ingest",
            1 => "enrich",
            2 => "score",
            _ => "merge",
        };
        let name = format!("{step}.stage-{i:03}");
        let backlog = if dice.below(3) == 0 { dice.below(900) } else { dice.below(4) };
        fleet.add(&name, 50, 10, backlog);
    }
    fleet.change("score.stage-042", |w, _| {
        (w.state, w.alive, w.lost, w.lost_at) = (TypeState::Crashed, 0, 50, Some(now - 20.0));
        w.state_changed_at = Some(now - 20.0);
    });
    fleet.fail("enrich.stage-001", (4, 0, 0), 4, (FailureKind::Failed, "timeout after 30 s", now - 5.0));
    fleet.change("merge.stage-007", |w, _| (w.alive, w.lost, w.lost_at) = (49, 1, Some(now - 300.0)));
    fleet.finish()
}

/// Builder of a snapshot.
pub(crate) struct Fleet {
    now: f64,
    pub(crate) snapshot: Snapshot,
    dice: Dice,
}

impl Fleet {
    pub(crate) fn new(now: f64) -> Self {
        let times = (0..200).map(|i| now - 3.0 * f64::from(199 - i)).collect();
        let depths = DepthHistory { times, ..DepthHistory::default() };
        let snapshot = Snapshot {
            tick: 1,
            ts: now,
            workers: BTreeMap::new(),
            streams: BTreeMap::new(),
            postgres: postgres(),
            redis: redis(now),
            events: Vec::new(),
            recent_events: VecDeque::new(),
            aras: ["aragorn", "arax", "bte", "sipr", "gandalf", "example"].map(str::to_owned).into(),
            unreadable_heartbeats: Vec::new(),
            older_monitor: OlderMonitor::Absent,
            observe_only: false,
            depths: Arc::new(depths),
        };
        Self { now, snapshot, dice: Dice(42) }
    }

    /// Adds a type with `alive` consumers of concurrency `limit` and `backlog` messages.
    pub(crate) fn add(&mut self, name: &str, alive: u64, limit: u64, backlog: u64) {
        let now = self.now;
        let consumers: Vec<ConsumerStatus> = (0..alive)
            .map(|i| ConsumerStatus {
                consumer: format!("{name}-{i}").into(),
                state: ConsumerState::Alive,
                state_since: now - 7000.0,
                started_at: Some(now - 7000.0),
                last_seen: Some(now - 2.0),
                task_limit: Some(limit as u32),
                stale: false,
                pending: Some(backlog / alive.max(1)),
                phantom_pending: Some(0),
                idle_ms: Some(20),
                in_flight: None,
                unreadable: None,
            })
            .collect();
        let capacity = alive * limit;
        let pending = backlog.min(capacity) / 2;
        let share = if capacity == 0 { f64::from(u8::from(backlog > 0)) } else { backlog as f64 / capacity as f64 };
        let worker = WorkerTypeStatus {
            state: TypeState::Alive,
            state_changed_at: Some(now - 7000.0 - 100.0 * alive as f64),
            last_seen_alive: Some(now),
            last_alive_count: alive as u32,
            alive: alive as u32,
            stale: 0,
            draining: 0,
            hung: 0,
            unreadable: 0,
            without_heartbeat: 0,
            lost: 0,
            lost_open: 0,
            not_consuming: false,
            lost_at: None,
            task_limit_total: capacity,
            backlog: Some(backlog),
            backlog_at_least: false,
            pending: Some(pending),
            phantom_pending: Some(0),
            phantom_pending_at_least: false,
            capacity,
            utilization: Some(share),
            consumers,
        };
        let waits = backlog > pending;
        let stream = StreamStatus {
            xlen: Some(backlog),
            pending: Some(pending),
            phantom_pending: Some(0),
            phantom_pending_at_least: false,
            consumer_count: alive as usize,
            max_idle_ms: Some(4000),
            consumers: StreamConsumers::default(),
            error: None,
            exists: true,
            undelivered: Some(backlog - pending),
            undelivered_at_least: false,
            oldest_waiting_sec: waits.then_some(backlog as f64 / 3.0),
            added_per_sec: Some(4.2),
            read_per_sec: Some(6.1),
            drain_sec: waits.then_some((backlog - pending) as f64 / 1.9),
            groups: vec![GroupStatus {
                name: "consumer".into(),
                pending,
                phantom_pending: 0,
                phantom_pending_at_least: false,
                lag: Lag::Reported(backlog - pending),
                consumer_count: Some(alive as usize),
                last_delivered_id: "1-0".to_owned(),
                entries_read: Some(100),
                oldest_waiting_sec: waits.then_some(backlog as f64 / 3.0),
            }],
            failures: Some(TaskFailures::default()),
        };
        let mut depth = backlog as f64 * 0.6;
        let mut series: VecDeque<Option<u64>> = VecDeque::new();
        for i in 0..200 {
            depth += (self.dice.below(201) as f64 / 100.0 - 1.0) * backlog as f64 * 0.06;
            depth = depth.clamp(0.0, backlog as f64 * 1.8);
            let wanted = if i == 199 { backlog } else { depth as u64 };
            series.push_back(Some(wanted));
        }
        Arc::make_mut(&mut self.snapshot.depths).depths.insert(name.into(), series);
        self.snapshot.workers.insert(name.into(), worker);
        self.snapshot.streams.insert(name.into(), stream);
    }

    pub(crate) fn change(&mut self, name: &str, how: impl FnOnce(&mut WorkerTypeStatus, &mut StreamStatus)) {
        let name = Name::from(name);
        if let (Some(w), Some(s)) = (self.snapshot.workers.get_mut(&name), self.snapshot.streams.get_mut(&name)) {
            how(w, s);
        }
    }

    /// Sets the numbers of failed, malformed and dead-lettered tasks, how many of them are recent, and the newest
    /// failure.
    pub(crate) fn fail(
        &mut self,
        name: &str,
        (failed, malformed, dead_lettered): (u64, u64, u64),
        last_5m: u64,
        (kind, reason, ts): (FailureKind, &str, f64),
    ) {
        let last = NewestFailure { kind, reason: reason.to_owned(), entry: "1795456858000-0".to_owned(), ts };
        let counts = FailureCounts { failed, malformed, dead_lettered };
        self.change(name, |_, s| s.failures = Some(TaskFailures { counts, last_5m, last: Some(last) }));
    }

    /// Adds an event that occurred `ago` seconds ago; add the newest first.
    pub(crate) fn event(&mut self, ago: f64, subject: &str, kind: EventKind) {
        let event = Event {
            ts: self.now - ago,
            subject: subject.to_owned(),
            kind,
            key: self.snapshot.recent_events.len().to_string(),
            running: (0, 0),
        };
        self.snapshot.recent_events.push_back(Arc::new(event));
    }

    pub(crate) fn finish(self) -> Snapshot {
        self.snapshot
    }
}

fn redis(now: f64) -> RedisStatus {
    RedisStatus {
        server: RedisServer {
            run_id: "x".to_owned(),
            version: Some("7.0.15".to_owned()),
            used_memory_human: Some("184.20M".to_owned()),
            used_memory_bytes: Some(193_149_440),
            maxmemory_bytes: Some(536_870_912),
            connected_clients: Some(117),
            instantaneous_ops_per_sec: Some(1267),
            uptime_in_seconds: Some(432_000),
            evicted_keys: Some(0),
            write_trouble: None,
            denied: None,
        },
        source: SourceStatus::Ok,
        error: None,
        read_at: Some(now),
        write_error: None,
    }
}

fn postgres() -> PostgresStatus {
    let counts = |rows: &[(&str, i64)]| Some(rows.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect());
    PostgresStatus {
        state_counts: counts(&[("ABANDONED", 12), ("COMPLETED", 48_211), ("QUEUED", 37)]),
        status_counts: counts(&[("ERROR", 208), ("OK", 48_003), ("TIMEOUT", 12)]),
        counts_age_sec: Some(4.0),
        queries_last_1h: Some(412),
        queries_last_24h: Some(9_874),
        per_ara_24h: counts(&[("aragorn", 4120), ("arax", 2890), ("bte", 1544), ("sipr", 1199), ("example", 121)]),
        callbacks_pending: Some(23),
        oldest_callback_age_sec: Some(47.0),
        connection_count: Some(41),
        db_size_bytes: Some(42_700_000_000),
        wal_size_bytes: Some(1_073_741_824),
        disk_capacity_bytes: 107_374_182_400,
        disk_used_bytes: Some(43_773_741_824),
        disk_used_pct: Some(40.8),
        without_queries: false,
        write_error: None,
        freshness: PostgresFreshness::default(),
        source: SourceStatus::Ok,
        error: None,
    }
}
