//! A server that can be read and rejects writes: told as its state, and got out of where the monitor can help.

use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::contract::keys;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run};
use crate::support::wait::eventually;

const LIMIT: Duration = Duration::from_secs(15);

/// A Redis that holds 20,000 finished entries of the stream `s`, and the monitor.
async fn finished_entries() -> (TestRedis, TestDatabase, Monitor) {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut ask = redis.connection().await;
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    // The next scheduled one is minutes away.
    eventually("the first cleanup is done", LIMIT * 2, || async {
        redis::cmd("EXISTS")
            .arg(keys::LAST_JANITOR_PASS)
            .query_async::<bool>(&mut redis.connection().await)
            .await
            .unwrap()
    })
    .await;
    run(&mut ask, "XGROUP CREATE s consumer $ MKSTREAM").await;
    let mut fill = redis::pipe();
    for _ in 0..20_000 {
        fill.cmd("XADD").arg("s").arg("*").arg("f").arg("x".repeat(100)).ignore();
    }
    fill.query_async::<()>(&mut ask).await.unwrap();
    run(&mut ask, "XGROUP SETID s consumer $").await;
    monitor.until("the stream is read", LIMIT, |s| s["streams"]["s"]["xlen"] == 20_000).await;
    (redis, database, monitor)
}

#[tokio::test]
async fn redis_without_memory_is_told_first_and_freed_by_the_cleanup() {
    let (redis, _database, monitor) = finished_entries().await;
    monitor.takes_orders().await;
    let mut ask = redis.connection().await;
    let full: String = redis::cmd("INFO").arg("memory").query_async(&mut ask).await.unwrap();
    let used: u64 = full.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap();
    run(&mut ask, &format!("CONFIG SET maxmemory {}", used - 200_000)).await;
    let is_full = |s: &Value| s["redis"]["write_error"]["kind"] == "out_of_memory";
    let snapshot = monitor.until("it is told", LIMIT, is_full).await;
    assert_eq!(snapshot["redis"]["source"]["status"], "settling", "absence does not count");
    assert!(snapshot["redis"]["error"].as_str().unwrap().contains("memory"));
    let (_, page) = monitor.get("/").await;
    assert!(page.contains("Redis rejects writes"), "{page}");
    let cleaned = reqwest::Client::new().post(monitor.url("/api/admin/cleanup")).send().await.unwrap();
    let cleaned: Value = serde_json::from_str(&cleaned.text().await.unwrap()).unwrap();
    assert!(
        cleaned["details"]["streams"]["s"]["removed"].as_u64().is_some_and(|removed| removed > 10_000),
        "{cleaned}"
    );
    monitor.until("it is over", LIMIT, |s| s["redis"]["write_error"].is_null()).await;
}

#[tokio::test]
async fn redis_that_cannot_save_is_told_when_it_refuses_a_write_and_no_longer_when_it_takes_one() {
    let redis = TestRedis::start();
    let database = TestDatabase::create();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    monitor.until("Redis is read", LIMIT, |s| s["redis"]["source"]["status"] == "settling").await;
    let mut ask = redis.connection().await;
    run(&mut ask, "CONFIG SET min-replicas-to-write 1").await;
    let refuses = |s: &Value| {
        s["redis"]["write_error"]["detail"].as_str().is_some_and(|detail| detail.contains("min-replicas-to-write"))
    };
    monitor.until("it is told", LIMIT, refuses).await;
    run(&mut ask, "CONFIG SET min-replicas-to-write 0").await;
    monitor.until("it is over", LIMIT, |s| s["redis"]["write_error"].is_null()).await;
}

#[tokio::test]
async fn a_postgres_that_may_only_be_read_is_told_first_and_reconnected_to_when_it_may_be_written() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let sql = database.connect().await;
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    eventually("history is archived", LIMIT, || async {
        sql.query_one("SELECT count(*) FROM monitor_metrics", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
    let read_only = |is: &str| {
        format!(
            "ALTER DATABASE {} SET default_transaction_read_only = {is};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
            database.name()
        )
    };
    sql.batch_execute(&read_only("on")).await.unwrap();
    let refuses =
        |s: &Value| s["postgres"]["write_error"]["kind"] == "read_only" && s["postgres"]["source"]["status"] == "ok";
    monitor.until("it is told", LIMIT, refuses).await;
    assert!(monitor.get("/").await.1.contains("Postgres rejects writes"));
    // The sessions that are open stay as they are: only new ones may write.
    let allow = format!(
        "SET default_transaction_read_only = off; ALTER DATABASE {} RESET default_transaction_read_only",
        database.name()
    );
    sql.batch_execute(&allow).await.unwrap();
    monitor.until("it is over", LIMIT, |s| s["postgres"]["write_error"].is_null()).await;
}

#[tokio::test]
async fn a_readable_postgres_whose_writes_hang_is_reported_until_they_succeed() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    monitor.takes_orders().await;
    let sql = database.connect().await;
    sql.batch_execute("BEGIN; LOCK TABLE monitor_metrics IN EXCLUSIVE MODE").await.unwrap();
    let is_reported =
        |s: &Value| s["postgres"]["write_error"]["detail"].as_str().is_some_and(|d| d.contains("no write"));
    let snapshot = monitor.until("the page reports it", Duration::from_secs(90), is_reported).await;
    assert_eq!(snapshot["postgres"]["source"]["status"], "ok", "it can be read");
    let (_, page) = monitor.get("/").await;
    assert!(page.contains("Postgres rejects writes: no write succeeded for"), "{page}");
    sql.batch_execute("ROLLBACK").await.unwrap();
    monitor.until("it is over", LIMIT * 2, |s| s["postgres"]["write_error"].is_null()).await;
}
