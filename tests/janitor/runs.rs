//! Complete cleanup runs of the program: by which instance, how often, interrupted, requested by a user, and displayed.

use futures_util::future::join_all;
use redis::Value as Answer;
use serde_json::Value;
use tokio_postgres::Client;

use super::*;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

/// Time for Redis to recover, the lease of a killed monitor to expire, and a busy machine.
const LATER: Duration = Duration::from_secs(120);

struct Ground {
    server: TestRedis,
    database: TestDatabase,
    redis: MultiplexedConnection,
    sql: Client,
}

impl Ground {
    /// A stream with 300 entries of which the first 250 are finished; a query without a result, a completed one, and their
    /// callbacks.
    async fn new() -> Self {
        let (server, database) = (TestRedis::start(), TestDatabase::create());
        let mut redis = server.connection().await;
        let _: Answer = ask(&mut redis, &["XGROUP", "CREATE", "a", "consumer", "0", "MKSTREAM"]).await;
        let mut ids: Vec<String> = Vec::new();
        for _ in 0..300 {
            ids.push(ask(&mut redis, &["XADD", "a", "*", "query_id", "q"]).await);
        }
        let read = ["XREADGROUP", "GROUP", "consumer", "c", "COUNT", "300", "STREAMS", "a", ">"];
        let _: Answer = ask(&mut redis, &read).await;
        let mut ack = vec!["XACK", "a", "consumer"];
        ack.extend(ids[..250].iter().map(String::as_str));
        let _: Answer = ask(&mut redis, &ack).await;
        let sql = database.connect().await;
        sql.batch_execute(include_str!("../../migrations/0001_fleet_tables/up.sql")).await.unwrap();
        sql.batch_execute(
            "INSERT INTO shepherd_brain (qid, start_time, domain, state) VALUES
                 ('lost', LOCALTIMESTAMP - interval '1 hour', 'aragorn', 'QUEUED'),
                 ('lost too', LOCALTIMESTAMP - interval '1 hour', 'bte', 'QUEUED'),
                 ('young', LOCALTIMESTAMP, 'bte', 'QUEUED'),
                 ('done', LOCALTIMESTAMP - interval '1 hour', 'bte', 'COMPLETED'),
                 ('ancient', LOCALTIMESTAMP - interval '40 days', 'bte', 'COMPLETED');
             INSERT INTO callbacks SELECT qid, 'x' FROM shepherd_brain",
        )
        .await
        .unwrap();
        Self { server, database, redis, sql }
    }

    /// Starts a monitor whose notifications are not accepted.
    async fn monitor(&self, more: &[(&str, &str)]) -> Monitor {
        let (redis, database) = (self.server.url(), self.database.url());
        let mut given = vec![
            ("REDIS_URL", redis.as_str()),
            ("DATABASE_URL", database.as_str()),
            ("ALERT_WEBHOOK_URL", "http://127.0.0.1:9/nobody"),
        ];
        given.extend(more);
        Monitor::start(&given).await
    }

    async fn count(&self, what: &str) -> Result<i64, String> {
        let row = self.sql.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.map_err(|e| e.to_string())?;
        Ok(row.get(0))
    }

    async fn length(&self) -> i64 {
        ask(&mut self.redis.clone(), &["XLEN", "a"]).await
    }

    /// Waits until a run ended and its alert is written, and checks everything.
    async fn is_clean(&self, what: &str) {
        eventually(&format!("{what}: a pass ends"), LATER, || async {
            let ended = self.count("monitor_janitor_passes WHERE ended IS NOT NULL").await?;
            let told = self.count("monitor_janitor_passes WHERE alerted IS NOT NULL").await?;
            if (ended, told) == (1, 1) { Ok(()) } else { Err(format!("{ended} ended, {told} told")) }
        })
        .await;
        assert_eq!(self.length().await, 50, "{what}");
        for (wanted, of) in [
            (1, "monitor_janitor_passes"),
            (2, "shepherd_brain WHERE state = 'ABANDONED' AND status = 'Abandoned: no completion within budget'"),
            (1, "shepherd_brain WHERE state = 'COMPLETED'"),
            (1, "shepherd_brain WHERE state = 'QUEUED'"),
            (1, "callbacks"),
            (1, "monitor_alerts WHERE rule = 'queries_abandoned' AND value = 2"),
            (1, "monitor_alert_outbox WHERE message->>'about' = 'firing'"),
            (1, "monitor_events WHERE type = 'alert' AND worker = 'queries_abandoned'"),
            (
                2,
                "monitor_events, jsonb_array_elements(payload->'queries') q
                 WHERE q->>'qid' IN ('lost', 'lost too') AND (q->>'callbacks_deleted')::int = 1
                     AND (q->>'age_sec')::float BETWEEN 3500 AND 4500 AND q->>'ara' IN ('aragorn', 'bte')",
            ),
        ] {
            assert_eq!(self.count(of).await, Ok(wanted), "{what}: {of}");
        }
    }
}

#[tokio::test]
async fn two_monitors_make_one_cleanup_run_and_one_alert() {
    let ground = Ground::new().await;
    let monitors = [ground.monitor(&[]).await, ground.monitor(&[]).await];
    ground.is_clean("two monitors").await;
    for monitor in &monitors {
        eventually("each wanted to", LATER, || async {
            let log = monitor.log();
            log.contains("cleanup run: 250 finished messages") || log.contains("the last cleanup run was too recent")
        })
        .await;
    }
    ground.is_clean("both had looked").await;
    let cleaned = monitors.iter().filter(|monitor| monitor.log().contains("cleanup run: ")).count();
    assert_eq!(cleaned, 1);
}

#[tokio::test]
async fn interrupted_run_is_completed_by_the_next_and_reported_once() {
    let places = [
        "janitor.begun",
        "janitor.trimmed",
        "janitor.abandoning",
        "janitor.abandoned",
        "janitor.old_queries",
        "janitor.ended_queries",
    ];
    join_all(places.map(|place| async move {
        let ground = Ground::new().await;
        let doomed = ground.monitor(&[("SHEPHERD_FAILPOINT", place)]).await;
        eventually(&format!("it dies at {place}"), LATER, || async { !doomed.is_running() }).await;
        assert_eq!(ground.count("monitor_janitor_passes WHERE ended IS NULL").await, Ok(1), "{place}");
        // Changes are atomic: a query and its callbacks, the mark and its count.
        let lost = ground.count("shepherd_brain WHERE state = 'ABANDONED'").await.unwrap();
        let counted = ground.count("monitor_janitor_passes WHERE abandoned <> '{}'").await.unwrap();
        let callbacks = ground.count("callbacks WHERE query_id LIKE 'lost%'").await.unwrap();
        assert!([(0, 0, 2), (2, 1, 0)].contains(&(lost, counted, callbacks)), "{place}: {lost} {counted} {callbacks}");
        let _monitor = ground.monitor(&[]).await;
        ground.is_clean(place).await;
        assert_eq!(ground.count("monitor_janitor_passes WHERE resumed = 1").await, Ok(1), "{place}");
    }))
    .await;
}

async fn post(monitor: &Monitor, path: &str) -> (u16, Value) {
    let answer = reqwest::Client::new().post(monitor.url(path)).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test]
async fn cleanup_can_be_requested_and_is_shown_before_and_after() {
    let ground = Ground::new().await;
    // No scheduled run is due: another instance has just made one.
    let now: Vec<String> = ask(&mut ground.redis.clone(), &["TIME"]).await;
    let _: Answer = ask(&mut ground.redis.clone(), &["SET", "monitor:janitor:last_pass", &now[0]]).await;
    let monitor = ground.monitor(&[]).await;
    monitor.takes_orders().await;
    assert_eq!(ground.length().await, 300);
    monitor.until("Redis is believed", LATER, |s| s["redis"]["source"]["status"] == "ok").await;
    monitor.until("Postgres is read", LATER, |s| s["postgres"]["callbacks_pending"] == 5).await;
    let (_, page) = monitor.get("/admin").await;
    for words in [
        "250 finished messages",
        "2 queries as abandoned",
        "No cleanup runs recorded",
        "2 callbacks of finished queries",
    ] {
        assert!(page.contains(words), "{words} in {page}");
    }
    let (status, answer) = post(&monitor, "/api/admin/cleanup").await;
    assert_eq!(status, 200, "{answer}");
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(answer["streams"], json(r#"[{"stream":"a","trimmed":250,"before":300,"after":50}]"#), "{answer}");
    assert_eq!(answer["callbacks_deleted"], 4, "{answer}");
    let abandoned = answer["abandoned_queries"].as_array().unwrap();
    assert_eq!(abandoned.iter().map(|of| of["callbacks_deleted"].as_u64().unwrap()).sum::<u64>(), 2, "{answer}");
    assert_eq!(abandoned.len(), 2, "{answer}");
    assert_eq!(answer["stale_consumers"], json(r#"{"deleted":0,"by_stream":{}}"#), "{answer}");
    let retention = &answer["query_retention"];
    assert_eq!((&retention["skipped"], &retention["deleted"]), (&false.into(), &1.into()), "{answer}");
    assert!(retention["last_run"].as_f64().unwrap() > 1.7e9 && answer["history_retention"]["skipped"] == true);
    let kept = &answer["details"]["streams"]["a"]["kept_because"];
    assert_eq!((&kept["reason"], &kept["group"], &kept["pending"]), (&"group".into(), &"consumer".into(), &50.into()));
    ground.is_clean("asked for").await;
    let (_, page) = monitor.get("/admin").await;
    for words in
        ["250 finished messages removed", "2 queries abandoned", "50 messages pending in group consumer", "127.0.0.1"]
    {
        assert!(page.contains(words), "{words} in {page}");
    }
    let (_, passes) = monitor.get("/api/admin/passes").await;
    let passes: Value = serde_json::from_str(&passes).unwrap();
    assert_eq!(passes["passes"][0]["outcome"]["streams"]["a"]["removed"], 250);
    assert_eq!(monitor.get("/api/admin/passes?limit=0").await.0, 400);
    // A form redirects to the page.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let form =
        client.post(monitor.url("/api/admin/cleanup")).header("content-type", "application/x-www-form-urlencoded");
    let answer = form.send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (303, "/admin"));
}

#[tokio::test]
async fn early_cleanup_does_safe_steps_and_reports_skipped_ones() {
    let ground = Ground::new().await;
    let mut redis = ground.redis.clone();
    let now: Vec<String> = ask(&mut redis, &["TIME"]).await;
    let _: Answer = ask(&mut redis, &["SET", "monitor:janitor:last_pass", &now[0]]).await;
    // A consumer that looks stale to Redis.
    let _: Answer = ask(&mut redis, &["XGROUP", "CREATECONSUMER", "a", "consumer", "stale"]).await;
    let monitor = ground.monitor(&[]).await;
    let client = reqwest::Client::new();
    let (mut trimmed, mut abandoned) = (0, 0);
    let partial = eventually("what is safe is done", LATER, || {
        let asking = client.post(monitor.url("/api/admin/cleanup")).send();
        async {
            let answer = asking.await.unwrap();
            let status = answer.status().as_u16();
            let retry_after: Option<u64> =
                answer.headers().get("retry-after").map(|seconds| seconds.to_str().unwrap().parse().unwrap());
            let body = answer.text().await.unwrap();
            for raw in ["relation", "does not exist", "column", "monitor_janitor", "monitor_audit"] {
                assert!(!body.contains(raw), "the database's own words: {body}");
            }
            assert!(matches!(status, 200 | 503), "{status}: {body}");
            assert!((1..=15).contains(&retry_after.unwrap()), "{retry_after:?}: {body}");
            Ok::<_, String>((status, body))
        }
    });
    let (mut status, mut body) = partial.await;
    let began = std::time::Instant::now();
    while trimmed < 250 || abandoned < 2 {
        assert!(began.elapsed() < LATER, "{status}: {body}");
        if status == 200 {
            let answer: Value = serde_json::from_str(&body).unwrap();
            let streams = answer["streams"].as_array().unwrap();
            trimmed += streams.iter().map(|stream| stream["trimmed"].as_u64().unwrap()).sum::<u64>();
            abandoned += answer["abandoned_queries"].as_array().unwrap().len();
            let left_out = answer["details"]["left_out"].to_string();
            assert!(left_out.contains("stale consumers"), "{answer}");
            assert!(answer["details"]["retry_after_sec"].as_u64().unwrap() >= 1, "{answer}");
            assert_eq!(answer["stale_consumers"]["deleted"], 0);
        }
        if trimmed < 250 || abandoned < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let answer = client.post(monitor.url("/api/admin/cleanup")).send().await.unwrap();
            assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
            status = answer.status().as_u16();
            body = answer.text().await.unwrap();
            assert!(!body.contains("relation") && !body.contains("does not exist"), "{body}");
        }
    }
    assert_eq!(monitor.snapshot().await["redis"]["source"]["status"], "settling", "all of it was in the first seconds");
    assert_eq!((trimmed, abandoned, ground.length().await), (250, 2, 50));
    monitor.until("Redis is read for long enough", LATER, |s| s["redis"]["source"]["status"] == "ok").await;
    let answer = client.post(monitor.url("/api/admin/cleanup")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (200, false));
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(answer["details"]["left_out"], serde_json::json!([]), "{answer}");
}

#[tokio::test]
async fn missing_tables_cause_no_raw_database_errors_in_responses() {
    let (server, database) = (TestRedis::start(), TestDatabase::create());
    let (redis, url) = (server.url(), database.url());
    let monitor = Monitor::start(&[("REDIS_URL", &redis), ("DATABASE_URL", &url)]).await;
    monitor.takes_orders().await;
    let sql = database.connect().await;
    // As during a migration by another instance: half of the tables are missing.
    let tables = sql.query("SELECT tablename::text FROM pg_tables WHERE tablename LIKE 'monitor%'", &[]).await.unwrap();
    assert!(tables.len() > 5);
    for table in tables {
        let name: String = table.get(0);
        sql.batch_execute(&format!("ALTER TABLE {name} RENAME TO away_{name}")).await.unwrap();
    }
    let (_, document) = monitor.get("/api/openapi.json").await;
    let document: Value = serde_json::from_str(&document).unwrap();
    let mut paths: Vec<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(path, verbs)| !path.contains('{') && verbs.get("get").is_some())
        .map(|(path, _)| path.clone())
        .collect();
    for page in ["/", "/history", "/admin", "/alerts", "/admin/audit", "/admin/recycle-bin", "/admin/dead-consumers"] {
        paths.push(page.to_owned());
    }
    for path in ["/api/historical/metrics?metric=xlen:a", "/api/historical/metrics_by_prefix?prefix=xlen:"] {
        paths.push(path.to_owned());
    }
    let mut unavailable = 0;
    for path in paths.iter().filter(|path| !path.ends_with("/ws")) {
        let answer = reqwest::get(monitor.url(path)).await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.text().await.unwrap();
        for words in ["Postgres returned an error", "relation \"", "relation &quot;", "relation \\\""] {
            assert!(!body.contains(words), "{path}: {status}, {words}");
        }
        if status == 503 {
            unavailable += 1;
            assert!(headers.contains_key("retry-after"), "{path}");
        }
    }
    assert!(unavailable >= 5, "{unavailable} of {paths:?}");
    for path in ["/api/admin/cleanup", "/api/admin/forget_worker?name=a", "/api/admin/reclaim_dead_consumers"] {
        let (status, answer) = post(&monitor, path).await;
        assert_eq!(status, 503, "{path}: {answer}");
        assert!(!answer.to_string().contains("does not exist"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn forgotten_worker_type_loses_its_alert_and_can_return() {
    let ground = Ground::new().await;
    let monitor = ground.monitor(&[("MONITOR_STARTUP_GRACE_SEC", "0")]).await;
    let another = ground.monitor(&[]).await;
    let beat = r#"{"stream":"b","consumer":"w","started_at":1,"last_seen":1,"task_limit":1}"#;
    let _: Answer = ask(&mut ground.redis.clone(), &["SET", "worker:heartbeat:b:w", beat]).await;
    monitor.until("it is alive", LATER, |s| s["workers"]["b"]["state"] == "alive").await;
    monitor.takes_orders().await;
    let _: Answer = ask(&mut ground.redis.clone(), &["DEL", "worker:heartbeat:b:w"]).await;
    for monitor in [&monitor, &another] {
        monitor.until("it crashed", LATER, |s| s["workers"]["b"]["state"] == "crashed").await;
    }
    eventually("that is told", LATER, || async {
        ground.count("monitor_alerts WHERE key = 'worker_crashed:b' AND phase = 'firing'").await == Ok(1)
    })
    .await;
    let (status, answer) = post(&monitor, "/api/admin/forget_worker?name=b").await;
    assert_eq!((status, answer), (200, serde_json::json!({"forgot": "b"})));
    let known: bool = ask(&mut ground.redis.clone(), &["SISMEMBER", "shepherd-monitor:known_workers", "b"]).await;
    let recorded: bool = ask(&mut ground.redis.clone(), &["EXISTS", "shepherd-monitor:worker_state:b"]).await;
    assert_eq!((known, recorded), (false, false));
    monitor.until("it is not shown", LATER, |s| s["workers"]["b"].is_null()).await;
    another.until("nor by the other monitor", LATER, |s| s["ts"].is_f64() && s["workers"]["b"].is_null()).await;
    eventually("its alert ends", LATER, || async {
        ground.count("monitor_alerts WHERE key = 'worker_crashed:b' AND phase = 'resolved'").await == Ok(1)
    })
    .await;
    assert_eq!(post(&monitor, "/api/admin/forget_worker?name=b").await.0, 400);
    assert_eq!(post(&monitor, "/api/admin/forget_worker").await.0, 400);
    let _: Answer = ask(&mut ground.redis.clone(), &["SET", "worker:heartbeat:b:w", beat]).await;
    for monitor in [&monitor, &another] {
        monitor.until("it is learned again", LATER, |s| s["workers"]["b"]["state"] == "alive").await;
    }
}

#[tokio::test]
async fn abandoned_queries_are_reported_with_details() {
    let ground = Ground::new().await;
    let mut redis = ground.redis.clone();
    // One is undelivered on `b` after it was finished on `c`; 18 more are on no stream.
    for stream in ["c", "b"] {
        let _: Answer = ask(&mut redis, &["XGROUP", "CREATE", stream, "consumer", "0", "MKSTREAM"]).await;
    }
    let _: String = ask(&mut redis, &["XADD", "b", "*", "query_id", "lost", "metadata", "{}"]).await;
    let done: String = ask(&mut redis, &["XADD", "c", "*", "query_id", "lost"]).await;
    let _: Answer = ask(&mut redis, &["XREADGROUP", "GROUP", "consumer", "w", "STREAMS", "c", ">"]).await;
    let _: Answer = ask(&mut redis, &["XACK", "c", "consumer", &done]).await;
    let _: String = ask(&mut redis, &["XADD", "c", "*", "query_id", "another"]).await;
    ground
        .sql
        .batch_execute(
            "INSERT INTO shepherd_brain (qid, start_time, domain, state)
             SELECT 'gone' || n, LOCALTIMESTAMP - interval '20 minutes', NULL, 'QUEUED' FROM generate_series(1, 18) n",
        )
        .await
        .unwrap();
    // No scheduled run is due.
    let _: Answer = ask(&mut redis, &["SET", "monitor:janitor:last_pass", &unix_now().to_string()]).await;
    let monitor = ground.monitor(&[]).await;
    monitor.takes_orders().await;
    let answer = eventually("it cleans up", LATER, || async {
        let client = reqwest::Client::new();
        let answer = client.post(monitor.url("/api/admin/cleanup")).send().await.unwrap();
        let (status, body) = (answer.status(), answer.text().await.unwrap());
        if status.is_success() { Ok(serde_json::from_str::<Value>(&body).unwrap()) } else { Err(body) }
    })
    .await;
    let queries = answer["abandoned_queries"].as_array().unwrap();
    assert_eq!(queries.len(), 20, "{answer}");
    let of = |qid: &str| queries.iter().find(|query| query["qid"] == qid).unwrap();
    let lost = of("lost");
    assert_eq!(
        (&lost["ara"], &lost["callbacks_deleted"], &lost["last_stream"]),
        (&"aragorn".into(), &1.into(), &"b".into())
    );
    assert!((3500.0..4500.0).contains(&lost["age_sec"].as_f64().unwrap()), "{lost}");
    let gone = of("gone7");
    assert_eq!(
        (&gone["ara"], &gone["callbacks_deleted"], &gone["last_stream"]),
        (&"none".into(), &0.into(), &Value::Null)
    );

    // The log, the page, the runs, the event and the notification have the same text; the notification lists ten.
    let described = "lost (aragorn, 60 m old, 1 callback outstanding, last stream b)";
    assert!(monitor.log().contains(described), "{}", monitor.log());
    assert!(monitor.log().contains("gone18 (none, 20 m old, 0 callbacks outstanding, last stream unknown)"));
    let (_, page) = monitor.get("/admin").await;
    assert!(page.contains(described), "{page}");
    let (_, passes) = monitor.get("/api/admin/passes").await;
    let passes: Value = serde_json::from_str(&passes).unwrap();
    assert_eq!(passes["passes"][0]["abandoned_queries"].as_array().unwrap().len(), 20, "{passes}");
    let notification = eventually("one notification is written", LATER, || async {
        let rows =
            ground.sql.query("SELECT message::text FROM monitor_alert_outbox", &[]).await.map_err(|e| e.to_string())?;
        match rows.as_slice() {
            [row] => Ok(row.get::<_, String>(0)),
            _ => Err(format!("{} rows", rows.len())),
        }
    })
    .await;
    assert!(notification.contains(described) && notification.contains("and 10 more"), "{notification}");
    let events = monitor.events().await;
    let event = events.iter().find(|event| event["worker"] == "queries_abandoned").unwrap();
    assert_eq!(event["payload"]["queries"].as_array().unwrap().len(), 20, "{event}");
    let detail = event["detail"].as_str().unwrap();
    assert!(
        detail.contains("20 queries abandoned") && detail.contains("lost") && detail.contains("and 10 more"),
        "{detail}"
    );
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
