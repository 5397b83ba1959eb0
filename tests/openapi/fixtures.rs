//! A fleet with current and recorded data for every field of the API.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use serde_json::json;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::postgres::migrate;

use crate::alerting::fleet::Fleet;
use crate::alerting::slack::Slack;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::proxy::Proxy;
use crate::support::redis::{TestRedis, connection, run};
use crate::support::wait::eventually;

/// Reached only by failing tests.
pub(super) const SOON: Duration = Duration::from_secs(60);

/// Recorded data; the time range of the examples starts at 1795456800.
const PAST: &str = "
    INSERT INTO monitor_metrics SELECT to_timestamp(1795456800 + n * 30), name, n % 7
        FROM generate_series(0, 119) n, unnest(ARRAY['backlog:aragorn.lookup', 'redis:connected_clients']) name;
    INSERT INTO monitor_task_latency SELECT to_timestamp(1795456800 + n * 30), 'aragorn.lookup', 10, 5.5, 5, 8, 9, 9.75,
        1, 12 FROM generate_series(0, 119) n;
    INSERT INTO shepherd_brain (qid, start_time, domain, state, status) VALUES
        ('past', to_timestamp(1795457000), 'aragorn', 'COMPLETED', 'OK'),
        ('lost', LOCALTIMESTAMP - interval '1 hour', 'arax', 'QUEUED', NULL),
        ('young', LOCALTIMESTAMP, 'bte', 'QUEUED', NULL);
    INSERT INTO callbacks (query_id, callback_id) VALUES ('past', 'a'), ('lost', 'b'), ('young', 'c');
    INSERT INTO monitor_events (ts, type, worker, severity, detail, payload) VALUES
        (to_timestamp(1795457100), 'scale_down', 'arax', 'critical', 'crashed', '{\"kind\": \"crashed\", \"to\": 0}'),
        (to_timestamp(1795457400), 'scale_up', 'arax', 'info', 'back', '{\"kind\": \"alive\", \"to\": 2}')";

const RULES: &str = "rules: [{name: aragorn_backlog, type: threshold, metric: xlen, stream: aragorn.lookup, \
    threshold: 0, duration: 0, severity: warning}]";

/// Servers, workers and a monitor.
pub(super) struct World {
    pub(super) monitor: Monitor,
    pub(super) redis: Proxy,
    pub(super) postgres: Proxy,
    pub(super) fleet: Fleet,
    pub(super) ask: MultiplexedConnection,
    _server: TestRedis,
    _database: TestDatabase,
    _slack: Slack,
    _folder: Reaper,
    _beating: tokio::sync::oneshot::Sender<()>,
}

impl World {
    pub(super) async fn new() -> Self {
        let (redis, database, slack) = (TestRedis::start(), TestDatabase::create(), Slack::start());
        let folder = Reaper::start("shepherd-openapi", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
        let rules = folder.folder().join("rules.yaml");
        std::fs::write(&rules, RULES).unwrap();
        let ask = redis.connection().await;
        let (to_redis, postgres) = (Proxy::to(redis.port()), Proxy::to(database.port()));
        migrate::run(&database.url(), SOON).await.unwrap();
        database.connect().await.batch_execute(PAST).await.unwrap();
        let fleet = Fleet::start(&redis);
        fleet.up(&["arax", "bte", "example.score"]).await;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        beat(redis.url(), stopped);
        let settings = [
            ("REDIS_URL", format!("redis://127.0.0.1:{}", to_redis.port())),
            ("DATABASE_URL", database.url_through(postgres.port())),
            ("SLACK_WEBHOOK_URL", slack.url()),
            ("MONITOR_ALERTS_CONFIG", rules.to_str().unwrap().to_owned()),
            ("MONITOR_SEED_STREAMS", "not-a-stream".to_owned()),
            ("MONITOR_HISTORY_INTERVAL_SEC", "1".to_owned()),
            ("MONITOR_METRICS_RETENTION_DAYS", "0".to_owned()),
            ("MONITOR_LATENCY_RETENTION_DAYS", "0".to_owned()),
            ("MONITOR_EVENTS_RETENTION_DAYS", "0".to_owned()),
            ("MONITOR_STARTUP_GRACE_SEC", "0".to_owned()),
            ("PG_VOLUME_CAPACITY", "100Gi".to_owned()),
            ("RECLAIM_MIN_IDLE_SEC", "2".to_owned()),
            // Excluded from cleanup: trimming would make its lag exact.
            ("MONITOR_JANITOR_EXCLUDE", "many".to_owned()),
        ];
        let mut world = Self {
            monitor: {
                let settings: Vec<(&str, &str)> =
                    settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
                Monitor::start(&settings).await
            },
            redis: to_redis,
            postgres,
            fleet,
            ask,
            _server: redis,
            _database: database,
            _slack: slack,
            _folder: folder,
            _beating: stop,
        };
        world.fill().await;
        world.wait().await;
        world
    }

    pub(super) async fn run(&mut self, command: &str) -> redis::Value {
        run(&mut self.ask, command).await
    }

    /// Adds a task whose payload contains bytes that are not UTF-8 and exceeds the limit of a response.
    async fn add(&mut self, stream: &str, query: &str) {
        let _: String = redis::cmd("XADD")
            .arg(&[stream, "*", "query_id", query, "workflow", "[]"])
            .arg(&[&b"raw\xff"[..], b"\0\xfe"])
            .arg(&["long", "x".repeat(5000).as_str()])
            .query_async(&mut self.ask)
            .await
            .unwrap();
    }

    async fn fill(&mut self) {
        let newest = r#"{"kind":"failed","reason":"no such node","entry":"1-0","ts_ms":1795457400000}"#;
        let _: i64 = redis::cmd("HSET")
            .arg(&["worker:failures", "failed:aragorn.lookup", "2", "last:aragorn.lookup", newest])
            .query_async(&mut self.ask)
            .await
            .unwrap();
        self.run("XGROUP CREATE aragorn.lookup consumer 0 MKSTREAM").await;
        for query in ["q-16", "q-17", "q-18", "q-19"] {
            self.add("aragorn.lookup", query).await;
        }
        // Two messages pending on a dead consumer, one in progress, one undelivered.
        self.run("XREADGROUP GROUP consumer gone COUNT 2 STREAMS aragorn.lookup >").await;
        self.run("XREADGROUP GROUP consumer works COUNT 1 STREAMS aragorn.lookup >").await;
        for command in [
            // Several groups, one without a lag in Redis, which the monitor counts up to a limit.
            "XGROUP CREATE orders billing 0 MKSTREAM",
            "XGROUP CREATE orders shipping 0",
            "XADD orders * f v",
            "XADD orders * f v",
            "XREADGROUP GROUP billing alice COUNT 1 STREAMS orders >",
            "XREADGROUP GROUP shipping ghost COUNT 1 STREAMS orders >",
            "SET worker:heartbeat:orders:alice nonsense",
            "SET worker:heartbeat:nobody {}",
            "XADD few 1-1 f v",
            "XADD few 2-1 f v",
            "XADD few 3-1 f v",
            "XGROUP CREATE few g 2-1",
            // A stream without consumers, and a key of another type.
            "XADD log * f v",
            "SET not-a-stream text",
            // A consumer that will hang, and one that will shut down with pending messages.
            "XGROUP CREATE sipr consumer 0 MKSTREAM",
            "XADD sipr * query_id q-20",
            "XREADGROUP GROUP consumer stands COUNT 1 STREAMS sipr >",
            "CONFIG SET maxmemory 500mb",
            "RPUSH monitor:task_durations:aragorn.lookup 5 7 900 12",
        ] {
            self.run(command).await;
        }
        for n in 0..400 {
            self.run(&format!("XADD many {}-1 f v", n + 1)).await;
        }
        for (group, at) in [("g", 200), ("end", 350)] {
            self.run(&format!("XGROUP CREATE many {group} {at}-1")).await;
        }
    }

    /// Waits until everything is observed, stored and sent.
    async fn wait(&mut self) {
        let monitor = &self.monitor;
        monitor
            .until("Redis is believed, and everybody is seen", SOON, |s| {
                s["redis"]["source"]["status"] == "ok"
                    && ["arax", "bte", "example.score", "aragorn.lookup"]
                        .iter()
                        .all(|name| s["workers"][name]["state"] == "alive")
                    && s["workers"]["sipr"]["hung"] == 1
                    && s["postgres"]["db_size_bytes"].is_u64()
            })
            .await;
        monitor.takes_orders().await;
        for (path, holds) in [
            ("/api/alerts", "\"rule\":\"aragorn_backlog\""),
            ("/api/history", "workers_alive:aragorn.lookup"),
            ("/api/historical/latency", "\"exact\":true"),
        ] {
            eventually(path, SOON, || async {
                let (_, body) = monitor.get(path).await;
                if body.contains(holds) { Ok(()) } else { Err(body) }
            })
            .await;
        }
    }

    /// Waits until the snapshot contains an event of this type.
    pub(super) async fn happens(&self, kind: &str) {
        let told = |s: &serde_json::Value| {
            s["recent_events"].as_array().is_some_and(|all| all.iter().any(|e| e["type"] == kind))
        };
        self.monitor.until(kind, SOON, told).await;
    }
}

/// Workers with optional heartbeat fields: one busy, one hung.
fn beat(url: String, mut stopped: tokio::sync::oneshot::Receiver<()>) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut redis = connection(&url, Duration::from_secs(10)).await.unwrap();
            let began = now();
            let mut progress = 1;
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                progress += 1;
                for (stream, consumer, progress) in [("aragorn.lookup", "works", progress), ("sipr", "stands", 1)] {
                    let beat = json!({
                        "stream": stream, "consumer": consumer, "started_at": began, "last_seen": now(),
                        "task_limit": 5, "in_flight": 1, "progress": progress,
                    });
                    let set: redis::RedisResult<()> = redis::cmd("SET")
                        .arg(format!("worker:heartbeat:{stream}:{consumer}"))
                        .arg(beat.to_string())
                        .arg(&["EX", "15"])
                        .query_async(&mut redis)
                        .await;
                    drop(set);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    });
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
