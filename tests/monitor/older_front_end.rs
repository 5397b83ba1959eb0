//! The API as the older monitor's live and history pages read it: every field that they use exists and has the expected type.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use serde_json::Value;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run, run_words};
use crate::support::wait::eventually;

const LATER: Duration = Duration::from_secs(240);

/// Required type of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    /// Used in arithmetic.
    Number,
    /// Shown unchanged; "-" for `null`.
    NumberOrNull,
    Text,
    /// Shown, or omitted if missing.
    TextOrNull,
    Object,
    List,
}

impl Is {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Number => value.is_number(),
            Self::NumberOrNull => value.is_number() || value.is_null(),
            Self::Text => value.is_string(),
            Self::TextOrNull => value.is_string() || value.is_null(),
            Self::Object => value.is_object(),
            Self::List => value.is_array(),
        }
    }
}

/// Fields of a snapshot; `*` matches each member.
const SNAPSHOT: &[(&str, Is)] = &[
    ("ts", Is::Number),
    ("workers", Is::Object),
    ("workers.*.state", Is::Text),
    ("workers.*.alive", Is::Number),
    ("workers.*.stale", Is::Number),
    ("workers.*.task_limit_total", Is::Number),
    ("workers.*.last_alive_count", Is::Number),
    ("workers.*.backlog", Is::NumberOrNull),
    ("workers.*.utilization", Is::NumberOrNull),
    ("workers.*.last_seen_alive", Is::NumberOrNull),
    ("streams", Is::Object),
    ("streams.*.xlen", Is::Number),
    ("streams.*.pending", Is::Number),
    ("streams.*.consumer_count", Is::Number),
    ("streams.*.max_idle_ms", Is::Number),
    ("postgres.state_counts", Is::Object),
    ("postgres.state_counts.*", Is::Number),
    ("postgres.queries_last_1h", Is::Number),
    ("postgres.queries_last_24h", Is::Number),
    ("postgres.callbacks_pending", Is::Number),
    ("postgres.oldest_callback_age_sec", Is::Number),
    ("postgres.disk_capacity_bytes", Is::Number),
    ("postgres.disk_used_pct", Is::NumberOrNull),
    ("postgres.disk_used_bytes", Is::NumberOrNull),
    ("postgres.db_size_bytes", Is::Number),
    ("postgres.connection_count", Is::Number),
    ("postgres.per_ara_24h", Is::Object),
    ("postgres.per_ara_24h.*", Is::Number),
    ("redis.used_memory_human", Is::Text),
    ("redis.connected_clients", Is::Number),
    ("redis.instantaneous_ops_per_sec", Is::Number),
    ("events", Is::List),
    ("events.*.type", Is::Text),
    ("events.*.worker", Is::Text),
    ("events.*.from", Is::Number),
    ("events.*.to", Is::Number),
    ("events.*.kind", Is::TextOrNull),
    ("recent_events.*.from", Is::Number),
    ("recent_events.*.to", Is::Number),
];

const ALERTS: &[(&str, Is)] = &[
    ("alerts", Is::List),
    ("alerts.*.ts", Is::Number),
    ("alerts.*.severity", Is::Text),
    ("alerts.*.rule", Is::Text),
    ("alerts.*.message", Is::TextOrNull),
    ("alerts.*.detail", Is::Text),
];

const SUMMARY: &[(&str, Is)] = &[
    ("queries_started", Is::Number),
    ("crashes", Is::Number),
    ("scale_events", Is::Number),
    ("alert_count", Is::Number),
];

/// Points are pairs of numbers.
const SERIES: &[(&str, Is)] = &[("series", Is::Object), ("series.*", Is::List), ("series.*.*.*", Is::Number)];

const LATENCY: &[(&str, Is)] = &[
    ("series", Is::Object),
    ("series.*.*.ts", Is::Number),
    ("series.*.*.count", Is::Number),
    ("series.*.*.p50_ms", Is::Number),
    ("series.*.*.p95_ms", Is::Number),
    ("series.*.*.p99_ms", Is::Number),
];

const EVENTS: &[(&str, Is)] = &[
    ("events", Is::List),
    ("events.*.ts", Is::Number),
    ("events.*.type", Is::Text),
    ("events.*.severity", Is::TextOrNull),
    ("events.*.worker", Is::TextOrNull),
    ("events.*.detail", Is::TextOrNull),
];

/// Returns the values at `path`, each with its own path.
fn at<'a>(value: &'a Value, path: &str, so_far: &str) -> Vec<(String, &'a Value)> {
    let Some((first, rest)) = path.split_once('.').or((!path.is_empty()).then_some((path, ""))) else {
        return vec![(so_far.to_owned(), value)];
    };
    let members: Vec<(String, &Value)> = match (first, value) {
        ("*", Value::Object(map)) => map.iter().map(|(name, value)| (name.clone(), value)).collect(),
        ("*", Value::Array(list)) => list.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect(),
        ("*", _) => Vec::new(),
        (name, _) => vec![(name.to_owned(), value.get(name).unwrap_or(&Value::Null))],
    };
    members.into_iter().flat_map(|(name, value)| at(value, rest, &format!("{so_far}/{name}"))).collect()
}

/// Returns the mismatches; with `all`, each path must exist at least once.
fn faults(value: &Value, fields: &[(&str, Is)], all: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, is) in fields {
        let found = at(value, path, "");
        if all && found.is_empty() {
            faults.push(format!("{path}: none to look at"));
        }
        faults.extend(
            found.iter().filter(|(_, value)| !is.fits(value)).map(|(at, value)| format!("{at}: {value}, not {is:?}")),
        );
    }
    faults
}

async fn beat(redis: &mut MultiplexedConnection, stream: &str, consumer: &str, seconds: &str) {
    let value =
        format!(r#"{{"stream":"{stream}","consumer":"{consumer}","started_at":1,"last_seen":1,"task_limit":4}}"#);
    let key = format!("worker:heartbeat:{stream}:{consumer}");
    run_words(redis, &[b"SET", key.as_bytes(), value.as_bytes(), b"EX", seconds.as_bytes()]).await;
}

/// Keeps `jobs` and `more` alive; the others start and stop.
async fn fleet(mut redis: MultiplexedConnection) {
    for second in 0_u32.. {
        beat(&mut redis, "jobs", "w1", "15").await;
        beat(&mut redis, "hung", "w", "15").await;
        // One of three is lost, then another one starts.
        beat(&mut redis, "more", "w1", "15").await;
        if !(25..=45).contains(&second) {
            beat(&mut redis, "more", "w2", "15").await;
        }
        if second < 30 {
            beat(&mut redis, "crashed", "w", "15").await;
            beat(&mut redis, "left", "w", "15").await;
        } else if second == 30 {
            let marker = r#"{"stream":"left","consumer":"w","signum":15,"ts":1}"#;
            run_words(&mut redis, &[b"SET", b"worker:shutdown:left:w", marker.as_bytes(), b"EX", b"120"]).await;
            run(&mut redis, "DEL worker:heartbeat:left:w").await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn fields_used_by_the_older_pages_exist_with_the_expected_types() {
    let (server, database) = (TestRedis::start(), TestDatabase::create());
    let mut redis = server.connection().await;
    for stream in ["jobs", "hung", "used.by.nobody"] {
        run(&mut redis, &format!("XGROUP CREATE {stream} consumer 0 MKSTREAM")).await;
    }
    for _ in 0..3 {
        run(&mut redis, "XADD hung * f v").await;
        run(&mut redis, "XADD used.by.nobody * f v").await;
    }
    run(&mut redis, "XREADGROUP GROUP consumer w COUNT 2 STREAMS hung >").await;
    run(&mut redis, "LPUSH monitor:task_durations:jobs 100 200 300").await;
    let sql = database.connect().await;
    sql.batch_execute(include_str!("../../migrations/0001_fleet_tables/up.sql")).await.unwrap();
    sql.batch_execute(
        "INSERT INTO shepherd_brain (qid, start_time, domain, state) VALUES ('a', LOCALTIMESTAMP, 'bte', 'QUEUED'),
             ('b', LOCALTIMESTAMP, 'arax', 'COMPLETED');
         INSERT INTO callbacks SELECT 'a', 'x'",
    )
    .await
    .unwrap();
    let workers = tokio::spawn(fleet(server.connection().await));
    let (redis_url, database_url) = (server.url(), database.url());
    let settings = [
        ("REDIS_URL", redis_url.as_str()),
        ("DATABASE_URL", &database_url),
        ("MONITOR_SEED_STREAMS", "seeded"),
        ("RECLAIM_MIN_IDLE_SEC", "5"),
        ("MONITOR_STARTUP_GRACE_SEC", "0"),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
        ("ALERT_WEBHOOK_URL", "http://127.0.0.1:9/nobody"),
    ];
    let monitor = Monitor::start(&settings).await;
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", monitor.address())).await.unwrap();
    let (mut types, mut new_alerts) = (std::collections::BTreeSet::new(), Vec::new());
    let wanted = ["scale_up", "scale_down", "consumers_lost", "consumer_hung"].map(str::to_owned).into_iter().collect();
    let watching = async {
        while !types.is_superset(&wanted) || new_alerts.is_empty() {
            let message = socket.next().await.unwrap().unwrap();
            let Ok(text) = message.to_text() else { continue };
            let Ok(mut message) = serde_json::from_str::<Value>(text) else { continue };
            assert_eq!(message["type"], "snapshot");
            let snapshot = message["data"].take();
            if snapshot["postgres"]["state_counts"].is_null() || snapshot["postgres"]["db_size_bytes"].is_null() {
                continue;
            }
            assert_eq!(faults(&snapshot, SNAPSHOT, false), [""; 0]);
            for event in snapshot["events"].as_array().unwrap() {
                types.insert(event["type"].as_str().unwrap().to_owned());
            }
            if let Some(fired) = snapshot.get("new_alerts") {
                new_alerts.extend(fired.as_array().unwrap().clone());
            }
        }
    };
    if tokio::time::timeout(LATER, watching).await.is_err() {
        panic!("only {types:?}, alerts: {new_alerts:?}");
    }
    for alert in &new_alerts {
        let told = serde_json::json!({"alerts": [alert]});
        assert_eq!(faults(&told, ALERTS, true), [""; 0]);
    }
    let snapshot = monitor.snapshot().await;
    let with_events: Vec<(&str, Is)> =
        SNAPSHOT.iter().filter(|(path, _)| !path.starts_with("events.")).copied().collect();
    assert_eq!(faults(&snapshot, &with_events, true), [""; 0]);
    // Every stream with a group has a card, even without workers.
    for name in ["used.by.nobody", "seeded"] {
        assert_eq!(snapshot["workers"][name]["state"], "unknown", "{name}");
    }
    assert_eq!(snapshot["workers"]["used.by.nobody"]["backlog"], 3);

    monitor.takes_orders().await;
    let answers: [(&str, &[(&str, Is)]); 8] = [
        ("/api/alerts?limit=50", ALERTS),
        ("/api/historical/summary", SUMMARY),
        ("/api/historical/metrics?metric=pg:queries_last_1h,redis:used_memory_bytes,pg:connection_count", SERIES),
        ("/api/historical/metrics_by_prefix?prefix=workers_alive:", SERIES),
        ("/api/historical/metrics_by_prefix?prefix=backlog:", SERIES),
        ("/api/historical/metrics_by_prefix?prefix=capacity:", SERIES),
        ("/api/historical/latency", LATENCY),
        ("/api/historical/events?limit=500", EVENTS),
    ];
    for (path, fields) in answers {
        eventually(path, LATER, || async {
            let (status, body) = monitor.get(path).await;
            let answer: Value = serde_json::from_str(&body).unwrap_or_default();
            match faults(&answer, fields, true) {
                faults if status == 200 && faults.is_empty() => Ok(()),
                faults => Err(format!("{status}: {faults:?} in {}", body.chars().take(500).collect::<String>())),
            }
        })
        .await;
    }
    workers.abort();
}
