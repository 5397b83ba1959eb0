//! `MONITOR_OBSERVE_ONLY`: a trial beside the older monitor reads, shows and records, and changes nothing.

use super::older::OlderMonitor;
use super::*;
use crate::support::pgbouncer::{Pgbouncer, PoolMode};

/// The relations of a schema, each with the file that it is stored in: another one after a rewrite.
const RELATIONS: &str = "SELECT c.oid::int8, c.relname::text, c.relfilenode::int8 FROM pg_class c \
    WHERE relnamespace = 'public'::regnamespace ORDER BY 1";
const ROWS: &str = "SELECT (SELECT count(*) FROM monitor_metrics), (SELECT count(*) FROM monitor_events), \
    (SELECT count(*) FROM monitor_task_latency), (SELECT count(*) FROM shepherd_brain), (SELECT count(*) FROM callbacks)";

async fn state_of_database(database: &TestDatabase) -> (Vec<(i64, String, i64)>, Vec<i64>) {
    let sql = database.connect().await;
    let relations = sql.query(RELATIONS, &[]).await.unwrap();
    let rows = sql.query_one(ROWS, &[]).await.unwrap();
    (relations.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(), (0..5).map(|n| rows.get(n)).collect())
}

#[tokio::test]
async fn a_monitor_that_only_observes_shows_and_records_and_tries_to_change_nothing() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let workers = ["aaaa0001", "aaaa0002"]
        .map(|name| Python::start(include_str!("../monitor/fleet.py"), &[&redis.port().to_string(), "arax", name]));
    let mut older = OlderMonitor::of(&redis, &database).await;
    older.leave_what_it_wrote().await;
    let mut connection = redis.connection().await;
    let user = ["SETUSER", "observer", "on", ">secret", "~*", "&*", "+@all", "-@write"];
    let _: () = redis::cmd("ACL").arg(&user).query_async(&mut connection).await.unwrap();
    let before = (older.finds().await, state_of_database(&database).await);

    let url = format!("redis://observer:secret@127.0.0.1:{}", redis.port());
    let monitor = Monitor::start(&[
        ("REDIS_URL", &url),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_OBSERVE_ONLY", "yes"),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
        ("MONITOR_STARTUP_GRACE_SEC", "0"),
    ])
    .await;
    // It goes on from the older one's states, and shows its queries.
    let shown = monitor.until("both are alive", SOON, |s| s["workers"]["arax"]["alive"] == 2).await;
    assert_eq!((&shown["observe_only"], &shown["workers"]["bte.lookup"]["state"]), (&true.into(), &"crashed".into()));
    monitor.until("queries are counted", SOON, |s| s["postgres"]["state_counts"]["COMPLETED"] == 40).await;
    let recent = json(&monitor, "/api/history/backlog:arax").await;
    assert_eq!(recent["samples"].as_array().unwrap().len(), before.0.recent["backlog:arax"].len());

    // It records what happens, in tables of its own.
    workers[0].send("KILL");
    let durations = ["LPUSH", "monitor:task_durations:arax", "5", "6", "7"];
    let _: () = redis::cmd(durations[0]).arg(&durations[1..]).query_async(&mut connection).await.unwrap();
    monitor.until("the loss is seen", SOON, |s| s["workers"]["arax"]["lost"] == 1).await;
    eventually("events, series and latencies are recorded", SOON, || async {
        let events = monitor.events().await;
        let lost = events.iter().any(|event| event["type"] == "consumers_lost");
        let series = json(&monitor, "/api/historical/metrics?metric=redis:connected_clients").await;
        let latency = json(&monitor, "/api/historical/latency?streams=arax").await;
        let tasks: u64 =
            latency["series"]["arax"].as_array().into_iter().flatten().filter_map(|r| r["count"].as_u64()).sum();
        let recorded = series["series"]["redis:connected_clients"].as_array().is_some_and(|points| !points.is_empty());
        if lost && recorded && tasks == 3 { Ok(()) } else { Err(format!("{lost} {recorded} {tasks}")) }
    })
    .await;
    let left: u64 = redis::cmd("LLEN").arg("monitor:task_durations:arax").query_async(&mut connection).await.unwrap();
    assert_eq!(left, 3, "durations are left to the older monitor");

    for page in ["/", "/history", "/alerts", "/admin", "/api", "/streams/arax", "/workers/arax", "/admin/audit"] {
        eventually(page, SOON, || async {
            let (status, body) = monitor.get(page).await;
            if status == 200 && body.contains("Observe only") { Ok(()) } else { Err(format!("{status}: {body}")) }
        })
        .await;
    }
    let client = reqwest::Client::new();
    for path in [
        "/api/admin/cleanup",
        "/api/admin/forget_worker?name=sipr",
        "/api/admin/reclaim_dead_consumers",
        "/api/alerts/test",
        "/-/reload",
    ] {
        let answer = client.post(monitor.url(path)).send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert!(status == 403 && body.contains("MONITOR_OBSERVE_ONLY"), "{path}: {status} {body}");
    }

    // Until after a cleanup run would have been due, nothing was even tried.
    monitor.until("it has run for a while", SOON, |s| s["tick"].as_u64() > Some(60)).await;
    let refused: Vec<redis::Value> = redis::cmd("ACL").arg("LOG").query_async(&mut connection).await.unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    let after = (older.finds().await, state_of_database(&database).await);
    assert_eq!(after.1, before.1, "the fleet's and the older monitor's tables");
    assert_eq!((after.0.states, after.0.recent, after.0.alerts), (before.0.states, before.0.recent, before.0.alerts));
    assert!(!monitor.log().contains("ERROR"), "{}", monitor.log());
}

/// What is in the tables of `public`, all of it.
async fn content(database: &TestDatabase) -> Vec<String> {
    let sql = database.connect().await;
    let content = "SELECT relname || query_to_xml(format('SELECT t::text FROM public.%I t ORDER BY 1', relname), true, true, '')::text \
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1";
    sql.query(content, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn observer(redis: &TestRedis, database_url: &str) -> Monitor {
    let given = [
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", database_url),
        ("MONITOR_OBSERVE_ONLY", "yes"),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
        ("MONITOR_STARTUP_GRACE_SEC", "0"),
    ];
    let monitor = Monitor::start(&given).await;
    monitor.until("queries are counted", SOON, |s| s["postgres"]["state_counts"]["RUNNING"] == 1).await;
    monitor
}

/// A database that another monitor migrated, with one query.
async fn watched_database() -> TestDatabase {
    let database = TestDatabase::create();
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", database.port(), database.name());
    shepherd_monitor::postgres::migrate::run(&url, SOON).await.unwrap();
    let sql = database.connect().await;
    sql.batch_execute("INSERT INTO shepherd_brain (qid, start_time, state) VALUES ('q', LOCALTIMESTAMP, 'RUNNING')")
        .await
        .unwrap();
    database
}

async fn ticks(monitor: &Monitor, more: u64) {
    let tick = monitor.snapshot().await["tick"].as_u64().unwrap_or(0);
    monitor.until("it goes on", SOON, |s| s["tick"].as_u64() > Some(tick + more)).await;
}

#[tokio::test]
async fn an_observing_monitor_without_a_schema_of_its_own_writes_nothing_to_the_tables_of_another() {
    let (redis, database) = (TestRedis::start(), watched_database().await);
    let role = format!("observer_of_{}", database.name());
    let sql = database.connect().await;
    let create = format!("CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}");
    sql.batch_execute(&create).await.unwrap();
    let before = content(&database).await;
    let url = format!("postgres://{role}@127.0.0.1:{}/{}", database.port(), database.name());
    let monitor = observer(&redis, &url).await;
    ticks(&monitor, 8).await;
    assert!(monitor.log().contains("cannot create schema"), "{}", monitor.log());
    assert_eq!(content(&database).await, before);
    drop(monitor);
    sql.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn an_observing_monitor_behind_a_pooler_records_in_its_own_schema_and_nowhere_else_once_that_is_dropped() {
    let (redis, database) = (TestRedis::start(), watched_database().await);
    let before = content(&database).await;
    let bouncer = Pgbouncer::start(database.port(), PoolMode::Transaction, 4);
    let monitor = observer(&redis, &database.url_through(bouncer.port())).await;
    let sql = database.connect().await;
    eventually("the observer records in its own schema", SOON, || async {
        let recorded = sql.query_one("SELECT count(*) FROM shepherd_monitor_observer.monitor_metrics", &[]).await?;
        Ok::<_, tokio_postgres::Error>(recorded.get::<_, i64>(0))
    })
    .await;
    eventually("the observer leads in its own schema", SOON, || async {
        let row = sql.query_one("SELECT count(*) FROM shepherd_monitor_observer.monitor_alert_leader", &[]).await;
        row.map(|row| row.get::<_, i64>(0))
            .map_err(|e| e.to_string())
            .and_then(|n| if n > 0 { Ok(()) } else { Err(n.to_string()) })
    })
    .await;
    let (status, page) = monitor.get("/api/historical/queries").await;
    assert_eq!(status, 200, "{page}");
    assert_eq!(content(&database).await, before);
    sql.batch_execute("DROP SCHEMA shepherd_monitor_observer CASCADE").await.unwrap();
    ticks(&monitor, 8).await;
    assert_eq!(content(&database).await, before);
    monitor.until("queries are still counted", SOON, |s| s["postgres"]["source"]["status"] == "ok").await;
}
