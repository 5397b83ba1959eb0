//! The older monitor as Redis and the database see it, written from the contract: what it leaves behind, what
//! its pages read, and how it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;

/// Full days that it recorded, before today.
pub(super) const DAYS: usize = 3;
/// Recordings of a day.
pub(super) const PER_DAY: usize = 2880;
/// What it records in each tick of [`OlderMonitor::goes_on`].
pub(super) const BEAT: f64 = 77.0;
/// Series that it leaves.
pub(super) const SERIES: [&str; 3] = ["backlog:arax", "xlen:bte.lookup", "pg:db_size_bytes"];

const DAY: u64 = 86_400;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// When its recordings begin, Unix seconds: a midnight (UTC).
pub(super) fn began() -> u64 {
    ended() - DAYS as u64 * DAY
}

/// When they end: the same for all tests, however long they take.
pub(super) fn ended() -> u64 {
    static ENDED: OnceLock<u64> = OnceLock::new();
    *ENDED.get_or_init(|| now() / DAY * DAY)
}

/// Its tables, with its indexes.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS monitor_metrics (ts timestamptz NOT NULL, metric text NOT NULL, value double precision,
        PRIMARY KEY (metric, ts));
    CREATE TABLE IF NOT EXISTS monitor_events (id bigserial PRIMARY KEY, ts timestamptz NOT NULL DEFAULT now(),
        type text NOT NULL, worker text, severity text, detail text, payload jsonb);
    CREATE TABLE IF NOT EXISTS monitor_task_latency (ts timestamptz NOT NULL, stream text NOT NULL, count int NOT NULL,
        mean_ms double precision, p50_ms double precision, p90_ms double precision, p95_ms double precision,
        p99_ms double precision, min_ms double precision, max_ms double precision, PRIMARY KEY (stream, ts));
    CREATE INDEX IF NOT EXISTS monitor_metrics_ts_idx ON monitor_metrics (ts);
    CREATE INDEX IF NOT EXISTS monitor_events_ts_idx ON monitor_events (ts);
    CREATE INDEX IF NOT EXISTS monitor_task_latency_ts_idx ON monitor_task_latency (ts);";
const FLEET: &str = "
    CREATE TABLE shepherd_brain (qid varchar(255) PRIMARY KEY, start_time timestamp, stop_time timestamp, submitter text,
        remote_ip text, domain text, hostname text, response_id text, callback_url text, state text, status text,
        description text);
    CREATE TABLE callbacks (query_id varchar(255) REFERENCES shepherd_brain (qid), callback_id varchar(255),
        otel_trace varchar(255));
    INSERT INTO shepherd_brain (qid, start_time, stop_time, domain, state, status)
        SELECT 'q' || n, now() - n * interval '1 hour', now() - n * interval '1 hour' + interval '9 s', 'arax',
            'COMPLETED', 'OK' FROM generate_series(1, 40) n;
    INSERT INTO callbacks VALUES ('q1', 'c1', NULL);";

/// An event as its page lists it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) id: i64,
    pub(super) kind: String,
    pub(super) worker: String,
    pub(super) detail: String,
}

/// Everything that it would show.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) known: BTreeSet<String>,
    /// The record of each known type.
    pub(super) states: BTreeMap<String, Value>,
    /// Samples of the last days, from Redis: seconds and value.
    pub(super) recent: BTreeMap<String, Vec<(i64, String)>>,
    pub(super) alerts: Vec<Value>,
    /// Samples of all days: milliseconds and value.
    pub(super) series: BTreeMap<String, Vec<(i64, f64)>>,
    /// Rows of all days: milliseconds, tasks and p99.
    pub(super) latencies: BTreeMap<String, Vec<(i64, i32, f64)>>,
    pub(super) events: Vec<Event>,
}

/// The older monitor.
pub(super) struct OlderMonitor {
    redis: MultiplexedConnection,
    sql: Client,
}

impl OlderMonitor {
    pub(super) async fn of(redis: &TestRedis, database: &TestDatabase) -> Self {
        Self { redis: redis.connection().await, sql: database.connect().await }
    }

    pub(super) async fn leave_what_it_wrote(&mut self) {
        let now = now() as f64;
        let state = |state: &str, alive: u32, ago: f64| json!({"state": state, "last_alive": alive, "state_changed_at": now - ago, "last_seen_alive": now - ago});
        for (name, record) in [
            ("arax", state("alive", 1, 3600.0)),
            ("bte.lookup", state("crashed", 2, 7200.0)),
            ("sipr", state("scaled_down", 3, 900.0)),
        ] {
            let _: () = self.redis.sadd("monitor:known_workers", name).await.unwrap();
            let _: () = self.redis.set(format!("monitor:worker_state:{name}"), record.to_string()).await.unwrap();
        }
        for name in SERIES {
            let _: () = self.redis.sadd("monitor:hist:index", name).await.unwrap();
            for n in 0..200_u64 {
                let at = now as u64 - 30 * (200 - n);
                let member = format!("{at}:{}", n % 50);
                let _: () = self.redis.zadd(format!("monitor:hist:{name}"), member, at).await.unwrap();
            }
        }
        for (ago, rule) in [(5000.0, "worker_crashed:bte.lookup"), (1200.0, "arax_backlog"), (60.0, "worker_zero:sipr")]
        {
            let alert = json!({"ts": now - ago, "rule": rule, "severity": "warning", "detail": format!("{rule} was told"),
                "message": format!("{rule} was told to people")});
            let _: () = self.redis.lpush("monitor:alerts:history", alert.to_string()).await.unwrap();
        }
        let _: () = self.redis.set_ex("alert:cooldown:worker_zero:sipr", "1", 540).await.unwrap();
        let _: () = self.redis.set("monitor:janitor:last_retention_sweep", now - 3600.0).await.unwrap();

        self.sql.batch_execute(FLEET).await.unwrap();
        self.sql.batch_execute(TABLES).await.unwrap();
        let (began, last) = (began(), DAYS * PER_DAY - 1);
        // Polls come a little late, by microseconds that nobody needs.
        let rows = format!(
            "INSERT INTO monitor_metrics SELECT to_timestamp({began} + n * 30 + 0.123456), series, n % 50
                FROM generate_series(0, {last}) n, unnest(ARRAY['{}']) series;
             INSERT INTO monitor_metrics VALUES (to_timestamp({began}), 'pg:oldest_callback_age_sec', NULL);
             INSERT INTO monitor_task_latency SELECT to_timestamp({began} + n * 30 + 0.123456), 'arax', 10, 5.5, 5, 8, 9,
                9.75, 1, n % 100 + 10 FROM generate_series(0, {last}) n;
             INSERT INTO monitor_events (ts, type, worker, severity, detail, payload) VALUES
                (now() - interval '2 hours', 'scale_down', 'bte.lookup', 'critical', 'bte.lookup 2 to 0 (crashed)',
                    '{{\"type\": \"scale_down\", \"worker\": \"bte.lookup\", \"from\": 2, \"to\": 0, \"kind\": \"crashed\"}}'),
                (now() - interval '1 hour', 'scale_up', 'arax', 'info', 'arax 0 to 1 (alive)',
                    '{{\"type\": \"scale_up\", \"worker\": \"arax\", \"from\": 0, \"to\": 1, \"kind\": \"alive\"}}'),
                (now() - interval '20 minutes', 'alert', 'arax', 'warning', 'arax_backlog: 612 waiting', '{{}}'),
                (now() - interval '15 minutes', 'scale_down', 'sipr', 'info', 'sipr 3 to 0 (scaled_down)', NULL);",
            SERIES.join("', '")
        );
        self.sql.batch_execute(&rows).await.unwrap();
    }

    /// Everything that its pages and its API read, by its own commands and statements.
    pub(super) async fn finds(&mut self) -> Found {
        let known: BTreeSet<String> = self.redis.smembers("monitor:known_workers").await.unwrap();
        let mut states = BTreeMap::new();
        for name in &known {
            let record: String = self.redis.get(format!("monitor:worker_state:{name}")).await.unwrap();
            let record: Value = serde_json::from_str(&record).unwrap();
            let state = record["state"].as_str().unwrap();
            assert!(["alive", "scaled_down", "crashed", "unknown"].contains(&state), "{name}: {record}");
            for time in ["state_changed_at", "last_seen_alive", "last_alive"] {
                assert!(record[time].is_number(), "{name} has no {time}: {record}");
            }
            states.insert(name.clone(), record);
        }
        let mut recent = BTreeMap::new();
        let names: BTreeSet<String> = self.redis.smembers("monitor:hist:index").await.unwrap();
        for name in names {
            let members: Vec<String> =
                self.redis.zrangebyscore(format!("monitor:hist:{name}"), "-inf", "+inf").await.unwrap();
            let sample = |member: &String| {
                let (at, value) = member.split_once(':').unwrap();
                serde_json::from_str::<Value>(value).unwrap();
                (at.parse().unwrap(), value.to_owned())
            };
            recent.insert(name, members.iter().map(sample).collect());
        }
        let alerts: Vec<String> = self.redis.lrange("monitor:alerts:history", 0, 49).await.unwrap();
        let alerts: Vec<Value> = alerts.iter().map(|alert| serde_json::from_str(alert).unwrap()).collect();
        for alert in &alerts {
            assert!(alert["ts"].is_number(), "{alert}");
            for field in ["rule", "severity", "detail", "message"] {
                assert!(alert[field].is_string(), "no {field}: {alert}");
            }
        }
        let swept: f64 = self.redis.get("monitor:janitor:last_retention_sweep").await.unwrap();
        assert!(swept > 0.0);

        let mut series: BTreeMap<String, Vec<(i64, f64)>> = BTreeMap::new();
        let samples = "SELECT metric, floor(extract(epoch FROM ts) * 1000)::bigint, value FROM monitor_metrics \
                       WHERE ts >= now() - interval '30 days' AND value IS NOT NULL ORDER BY ts";
        for row in self.sql.query(samples, &[]).await.unwrap() {
            series.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
        let mut latencies: BTreeMap<String, Vec<(i64, i32, f64)>> = BTreeMap::new();
        let rows = "SELECT stream, floor(extract(epoch FROM ts) * 1000)::bigint, count, p99_ms, mean_ms, p50_ms, p90_ms, \
                    p95_ms, min_ms, max_ms FROM monitor_task_latency WHERE stream = ANY($1) ORDER BY ts";
        for row in self.sql.query(rows, &[&vec!["arax"]]).await.unwrap() {
            latencies.entry(row.get(0)).or_default().push((row.get(1), row.get(2), row.get(3)));
        }
        let rows = "SELECT id, type, worker, detail FROM monitor_events ORDER BY ts DESC LIMIT 500";
        let events = self.sql.query(rows, &[]).await.unwrap();
        let text = |row: &tokio_postgres::Row, column| row.get::<_, Option<String>>(column).unwrap_or_default();
        let event = |row: &tokio_postgres::Row| Event {
            id: row.get(0),
            kind: row.get(1),
            worker: text(row, 2),
            detail: text(row, 3),
        };
        Found { known, states, recent, alerts, series, latencies, events: events.iter().map(event).collect() }
    }

    /// What it does at its start and in a tick: it makes its tables unless they are there, records, notes an
    /// event, marks a rule as quiet and sweeps.
    pub(super) async fn goes_on(&mut self, event: &str) {
        self.sql.batch_execute(TABLES).await.unwrap();
        let at = now();
        for statement in [
            "INSERT INTO monitor_metrics (ts, metric, value) VALUES (now(), 'pg:db_size_bytes', 77) \
             ON CONFLICT DO NOTHING",
            "INSERT INTO monitor_task_latency (ts, stream, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms) \
             VALUES (now(), 'arax', 3, 5, 5, 5, 5, 5, 5, 5) ON CONFLICT DO NOTHING",
            "DELETE FROM monitor_metrics WHERE ts < now() - interval '30 days'",
            "DELETE FROM monitor_task_latency WHERE ts < now() - interval '30 days'",
            "DELETE FROM monitor_events WHERE ts < now() - interval '30 days'",
        ] {
            self.sql.execute(statement, &[]).await.unwrap();
        }
        let insert = "INSERT INTO monitor_events (ts, type, worker, severity, detail, payload) \
                      VALUES (now(), 'alert', 'arax', 'info', $1, '{}')";
        self.sql.execute(insert, &[&event]).await.unwrap();
        let alert = json!({"ts": at, "rule": "arax_backlog", "severity": "info", "detail": event, "message": event});
        let _: () = self.redis.lpush("monitor:alerts:history", alert.to_string()).await.unwrap();
        let _: () = self.redis.set_ex("alert:cooldown:arax_backlog", "1", 600).await.unwrap();
        let _: () = self.redis.zadd("monitor:hist:backlog:arax", format!("{at}:7"), at).await.unwrap();
        let record = json!({"state": "alive", "last_alive": 1, "state_changed_at": at - 3600, "last_seen_alive": at});
        let _: () = self.redis.set("monitor:worker_state:arax", record.to_string()).await.unwrap();
    }

    /// The fleet's tables as they are made: each column and its type.
    pub(super) async fn columns_of_the_fleet(&self) -> Vec<(String, String, String)> {
        let columns = "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns \
                       WHERE table_name IN ('shepherd_brain', 'callbacks') ORDER BY 1, ordinal_position";
        let rows = self.sql.query(columns, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }
}
