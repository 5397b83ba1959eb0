//! Figures of the database: their age, and figures that cannot be measured.

use std::time::{Duration, Instant};

use serde_json::Value;
use shepherd_monitor::postgres::{connection, probe};

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(60);

async fn monitor_of(redis: &TestRedis, database: &TestDatabase, interval: &str) -> Monitor {
    let (redis, database) = (redis.url(), database.url());
    let settings = [
        ("REDIS_URL", redis.as_str()),
        ("DATABASE_URL", database.as_str()),
        ("MONITOR_POLL_INTERVAL_SEC", interval),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ];
    Monitor::start(&settings).await
}

fn age(snapshot: &Value, group: &str) -> f64 {
    snapshot["postgres"]["freshness"][group]["age_sec"].as_f64().unwrap_or(f64::INFINITY)
}

#[tokio::test]
async fn figures_of_small_tables_are_at_most_two_ticks_old() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = monitor_of(&redis, &database, "2s").await;
    let sql = database.connect().await;
    let groups = ["counts", "volume", "callbacks", "connections", "database_size"];
    let known = |snapshot: &Value| groups.iter().all(|group| age(snapshot, group) < 4.0);
    monitor.until("all figures are known", SOON, known).await;
    sql.batch_execute(
        "INSERT INTO shepherd_brain (qid, start_time, domain, state)
             SELECT 'q' || n, LOCALTIMESTAMP - interval '1 minute', 'arax', 'QUEUED' FROM generate_series(1, 35) n;
         INSERT INTO callbacks (query_id, callback_id) VALUES ('q1', 'a')",
    )
    .await
    .unwrap();
    let inserted = Instant::now();
    monitor.until("the new queries are counted", SOON, |s| s["postgres"]["state_counts"]["QUEUED"] == 35).await;
    assert!(inserted.elapsed() < Duration::from_secs(8), "{:?}", inserted.elapsed());
    let (mut oldest, mut last) = (Vec::new(), 0.0);
    while inserted.elapsed() < Duration::from_secs(22) {
        let snapshot = monitor.snapshot().await;
        oldest.extend(groups.iter().map(|group| (age(&snapshot, group), *group)));
        let callback = snapshot["postgres"]["oldest_callback_age_sec"].as_f64().unwrap();
        // The age follows the clock, within rounding of a tick.
        let since = inserted.elapsed().as_secs_f64() + 60.0;
        assert!(callback == 0.0 || (since - 4.0..since + 2.0).contains(&callback), "{callback} at {since}");
        assert!(callback >= last, "{callback} after {last}");
        last = callback;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Two ticks, and tolerance for a busy machine.
    let oldest = oldest.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(oldest.0 <= 5.5, "{oldest:?}");
}

#[tokio::test]
async fn unmeasurable_figure_is_shown_with_its_age_and_counts_as_unknown() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let sql = database.connect().await;
    let monitor = monitor_of(&redis, &database, "500ms").await;
    monitor.until("callbacks are counted", SOON, |s| s["postgres"]["callbacks_pending"] == 0).await;
    sql.batch_execute("ALTER TABLE callbacks RENAME COLUMN query_id TO another").await.unwrap();
    let outdated = |s: &Value| s["postgres"]["freshness"]["callbacks"]["outdated"] == true;
    let snapshot = monitor.until("they are outdated", SOON, outdated).await;
    let callbacks = &snapshot["postgres"]["freshness"]["callbacks"];
    assert!(callbacks["error"].as_str().unwrap().contains("tables in Postgres are not ready"), "{callbacks}");
    assert_eq!(snapshot["postgres"]["callbacks_pending"], 0, "the last value is shown");
    assert_eq!(snapshot["postgres"]["freshness"]["counts"]["outdated"], false, "the others go on");
    // It is neither recorded nor exported.
    let recorded = async |series: &str| {
        let count = "SELECT count(*) FROM monitor_metrics_all WHERE metric = $1";
        sql.query_one(count, &[&series]).await.unwrap().get::<_, i64>(0)
    };
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (callbacks, connections) = (recorded("pg:callbacks_pending").await, recorded("pg:connection_count").await);
    eventually("others are recorded on", SOON, || async { recorded("pg:connection_count").await >= connections + 3 })
        .await;
    assert_eq!(recorded("pg:callbacks_pending").await, callbacks);
    let (_, metrics) = monitor.get("/metrics").await;
    assert!(!metrics.contains("\nshepherd_monitor_callbacks"), "{metrics}");
    assert!(metrics.contains("\nshepherd_monitor_postgres_connections"));
    let (_, page) = monitor.get("/").await;
    assert!(page.contains("Callbacks measured"), "the page says how old it is");
    sql.batch_execute("ALTER TABLE callbacks RENAME COLUMN another TO query_id").await.unwrap();
    monitor.until("they are measured again", SOON, |s| !outdated(s)).await;
}

#[tokio::test]
async fn refused_statistics_function_does_not_affect_other_figures() {
    let database = TestDatabase::create();
    let sql = database.connect().await;
    let role = format!("limited_{}", database.name());
    for (refused, missing) in [
        ("pg_database_size(oid)", "size"),
        ("pg_database_size(name)", "size"),
        ("has_function_privilege(text, text)", "wal"),
        ("pg_stat_get_db_numbackends(oid)", "connections"),
    ] {
        sql.batch_execute(&format!(
            "DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN; REVOKE EXECUTE ON FUNCTION {refused} FROM PUBLIC"
        ))
        .await
        .unwrap();
        let url = database.url().replace("postgres@", &format!("{role}@"));
        let pool = connection::pool(&url, Duration::from_secs(10)).unwrap();
        let server = probe::server(&pool, false).await.unwrap();
        let expected_to_see_wal = probe::server(&pool, true).await.unwrap();
        assert_eq!(expected_to_see_wal, server, "{refused}");
        let known = (server.connections.is_ok(), server.db_size_bytes.is_ok(), server.wal_size_bytes.is_ok());
        let wanted = match missing {
            "size" if refused.ends_with("(name)") => (true, false, true),
            "wal" => (true, true, false),
            "connections" => (false, true, true),
            // A function with the same name and other parameters.
            _ => (true, true, true),
        };
        assert_eq!(known, wanted, "{refused}: {server:?}");
        let reasons = [server.connections.err(), server.db_size_bytes.err(), server.wal_size_bytes.err()];
        for reason in reasons.into_iter().flatten() {
            assert!(reason.contains("permission denied"), "{reason}");
        }
        drop(pool);
        sql.batch_execute(&format!("GRANT EXECUTE ON FUNCTION {refused} TO PUBLIC")).await.unwrap();
    }
    sql.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}
