//! Failures of Redis and Postgres: the page reports them within two ticks, no worker counts as crashed, and the monitor recovers
//! without a restart.

use std::time::{Duration, Instant};

use serde_json::Value;
use shepherd_monitor::demo::servers::{PrivatePostgres, RedisOptions};

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::proxy::Proxy;
use crate::support::python::Python;
use crate::support::redis::{TestRedis, run};
use crate::support::wait::eventually;

const WORKER: &str = include_str!("fleet.py");
const TICK: Duration = Duration::from_millis(500);
/// A data source may take 0.5 s at this interval: two ticks, and tolerance for a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(4);

fn worker(redis: &TestRedis) -> Python {
    Python::start(WORKER, &[&redis.port().to_string(), "s", "aaaa0001"])
}

fn is_down(source: &'static str, kind: &'static str) -> impl Fn(&Value) -> bool {
    move |snapshot| snapshot[source]["source"]["status"] == "down" && snapshot[source]["source"]["kind"] == kind
}

fn is_back(source: &'static str) -> impl Fn(&Value) -> bool {
    move |snapshot| snapshot[source]["source"]["status"] == "ok" && snapshot[source]["error"].is_null()
}

fn worker_is_alive(snapshot: &Value) -> bool {
    snapshot["workers"]["s"]["state"] == "alive" && snapshot["workers"]["s"]["lost"] == 0
}

async fn no_crash_was_told(monitor: &Monitor) {
    for event in monitor.events().await {
        assert!(!["consumers_lost", "scale_down"].contains(&event["type"].as_str().unwrap()), "{event}");
    }
}

/// Breaks Redis, checks that it is reported and no worker is lost, repairs it, and checks the recovery.
async fn redis_trouble(
    break_it: impl AsyncFnOnce(&TestRedis),
    kind: &'static str,
    mend_it: impl AsyncFnOnce(&TestRedis),
) {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _worker = worker(&redis);
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    monitor.until("all is well", Duration::from_secs(25), |s| worker_is_alive(s) && is_back("redis")(s)).await;
    break_it(&redis).await;
    let broken = Instant::now();
    let snapshot = monitor.until("the trouble is told", TOLD_WITHIN + TICK, is_down("redis", kind)).await;
    assert!(snapshot["redis"]["error"].as_str().is_some_and(|e| e.contains("Redis")), "{snapshot}");
    assert!(worker_is_alive(&snapshot), "what was known stays: {snapshot}");
    let (status, page) = monitor.get("/").await;
    assert_eq!(status, 200);
    assert!(
        page.contains(snapshot["redis"]["error"].as_str().unwrap().split('(').next().unwrap().trim()),
        "the page says it"
    );
    // Longer than a heartbeat lives.
    let rest = Duration::from_secs(17).saturating_sub(broken.elapsed());
    tokio::time::sleep(rest).await;
    assert!(worker_is_alive(&monitor.snapshot().await));
    mend_it(&redis).await;
    monitor
        .until("Redis is back and the fleet with it", Duration::from_secs(40), |s| {
            is_back("redis")(s) && worker_is_alive(s)
        })
        .await;
    no_crash_was_told(&monitor).await;
}

#[tokio::test]
async fn redis_killed_and_restarted_empty() {
    redis_trouble(async |r| r.kill().unwrap(), "unreachable", async |r| r.restart_empty().unwrap()).await;
}

#[tokio::test]
async fn redis_stopped_and_continued() {
    redis_trouble(async |r| r.stop().unwrap(), "timed_out", async |r| r.resume().unwrap()).await;
}

#[tokio::test]
async fn redis_turned_into_a_replica_and_back() {
    let order = async |redis: &TestRedis, host: &str, port: &str| {
        let mut connection = redis.connection().await;
        let _: String = redis::cmd("REPLICAOF").arg(host).arg(port).query_async(&mut connection).await.unwrap();
    };
    redis_trouble(async |r| order(r, "127.0.0.1", "1").await, "replica", async |r| order(r, "NO", "ONE").await).await;
}

#[tokio::test]
async fn redis_with_a_changed_password() {
    let set = async |redis: &TestRedis, password: &str, new: &str| {
        let url = redis.url().replace("redis://", &format!("redis://:{password}@"));
        let url = if password.is_empty() { redis.url() } else { url };
        let mut connection = crate::support::redis::connection(&url, Duration::from_secs(5)).await.unwrap();
        let _: String =
            redis::cmd("CONFIG").arg(&["SET", "requirepass", new]).query_async(&mut connection).await.unwrap();
        let _: i64 = redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .query_async(&mut connection)
            .await
            .unwrap();
    };
    redis_trouble(async |r| set(r, "", "secret").await, "refused", async |r| set(r, "secret", "").await).await;
}

#[tokio::test]
async fn loading_redis_is_reported_as_loading() {
    let redis = TestRedis::start_with(RedisOptions::with_args([
        "--key-load-delay",
        "300",
        "--loading-process-events-interval-bytes",
        "1024",
        "--save",
        "900 1",
    ]));
    let database = TestDatabase::create();
    let mut connection = redis.connection().await;
    let mut fill = redis::pipe();
    for n in 0..60_000 {
        fill.cmd("SET").arg(n).arg("x".repeat(50)).ignore();
    }
    let _: () = fill.query_async(&mut connection).await.unwrap();
    let _: String = redis::cmd("SAVE").query_async(&mut connection).await.unwrap();
    redis.kill().unwrap();
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    monitor.until("it is away", Duration::from_secs(5), is_down("redis", "unreachable")).await;
    redis.relaunch().unwrap();
    monitor.until("it is loading", Duration::from_secs(15), is_down("redis", "loading")).await;
    monitor.until("it is there", Duration::from_secs(60), |s| s["redis"]["source"]["status"] == "settling").await;
}

#[tokio::test]
async fn wrong_password_at_the_start_is_reported_without_the_password() {
    let redis = TestRedis::start_with(RedisOptions::with_args(["--requirepass", "right"]));
    let database = TestDatabase::create();
    let url = format!("redis://:wr0ngpass@127.0.0.1:{}", redis.port());
    let monitor = Monitor::start(&[("REDIS_URL", &url), ("DATABASE_URL", &database.url())]).await;
    let snapshot = monitor.until("it is refused", Duration::from_secs(5), is_down("redis", "refused")).await;
    let (_, page) = monitor.get("/").await;
    for text in [snapshot.to_string(), page, monitor.log()] {
        assert!(!text.contains("wr0ngpass"), "{text}");
    }
}

#[tokio::test]
async fn page_is_served_if_both_data_sources_are_unreachable_at_the_start() {
    let monitor = Monitor::start(&[("REDIS_PORT", "1"), ("POSTGRES_PORT", "1")]).await;
    let snapshot = monitor.until("both are down", Duration::from_secs(5), is_down("redis", "unreachable")).await;
    assert!(is_down("postgres", "unreachable")(&snapshot), "{snapshot}");
    assert!(snapshot["redis"]["used_memory_bytes"].is_null() && snapshot["postgres"]["queries_last_1h"].is_null());
    let (status, page) = monitor.get("/").await;
    assert_eq!(status, 200);
    assert!(page.contains("Redis") && page.contains("Postgres"));
    assert_eq!(monitor.get("/livez").await.0, 200);
    assert_eq!(monitor.get("/readyz").await.0, 200, "it does its work: it says that they are away");
    let (status, problem) = monitor.get("/api/historical/events").await;
    assert_eq!(status, 503, "{problem}");
}

/// Breaks Postgres while a worker starts and stops; the events are stored in the end.
async fn postgres_trouble(
    break_it: impl FnOnce(&PrivatePostgres),
    kind: &'static str,
    mend_it: impl FnOnce(&PrivatePostgres),
) {
    let redis = TestRedis::start();
    let postgres = PrivatePostgres::start().unwrap();
    let worker = worker(&redis);
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &postgres.url()),
        ("POSTGRES_POOL_TIMEOUT", "1"),
    ])
    .await;
    monitor.until("all is well", Duration::from_secs(25), |s| worker_is_alive(s) && is_back("postgres")(s)).await;
    eventually("the tables are there", Duration::from_secs(10), || async {
        monitor.get("/api/historical/events").await.0 == 200
    })
    .await;
    break_it(&postgres);
    let snapshot = monitor.until("the trouble is told", TOLD_WITHIN, is_down("postgres", kind)).await;
    assert!(snapshot["redis"]["error"].is_null() && worker_is_alive(&snapshot));
    // The fleet is still watched, and events are kept.
    worker.send("TERM");
    monitor
        .until("the goodbye is seen", Duration::from_secs(10), |s| s["workers"]["s"]["state"] == "scaled_down")
        .await;
    mend_it(&postgres);
    monitor.until("Postgres is back", Duration::from_secs(20), is_back("postgres")).await;
    eventually("all of it is stored, once", Duration::from_secs(45), || async {
        let kinds: Vec<String> =
            monitor.events().await.iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect();
        let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
        if ["scale_up", "scale_down", "source_down", "source_up"].map(count) == [1; 4] {
            Ok(())
        } else {
            Err(format!("{kinds:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn postgres_killed_and_restarted() {
    postgres_trouble(|p| p.kill().unwrap(), "unreachable", |p| p.restart().unwrap()).await;
}

#[tokio::test]
async fn postgres_stopped_and_continued() {
    postgres_trouble(|p| p.stop().unwrap(), "timed_out", |p| p.resume().unwrap()).await;
}

#[tokio::test]
async fn slow_postgres_does_not_delay_the_fleet() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _worker = worker(&redis);
    let proxy = Proxy::to(database.port());
    proxy.delay(Duration::from_millis(400), Duration::from_millis(400));
    let monitor =
        Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url_through(proxy.port()))]).await;
    let began = Instant::now();
    monitor.until("the fleet is shown", Duration::from_secs(5), worker_is_alive).await;
    let first = monitor.snapshot().await["tick"].as_u64().unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let ticks = monitor.snapshot().await["tick"].as_u64().unwrap() - first;
    assert!(ticks >= 5, "{ticks} ticks in 5 s, {:?} after the start", began.elapsed());
}

#[tokio::test]
async fn many_streams_at_a_distance_are_read_if_the_interval_allows() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut commands = redis.connection().await;
    for n in 0..1600 {
        run(&mut commands, &format!("XGROUP CREATE s{n} consumer $ MKSTREAM")).await;
    }
    let proxy = Proxy::to(redis.port());
    proxy.delay(Duration::from_millis(40), Duration::from_millis(40));
    let monitor = Monitor::start(&[
        ("REDIS_URL", &redis.url_through(proxy.port())),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_POLL_INTERVAL_SEC", "10"),
        ("MONITOR_STREAMS", "s*"),
    ])
    .await;
    // Forty round trips of 80 ms, and as many again for new streams: longer than one reply may take, shorter than the interval.
    let all = |s: &Value| {
        s["streams"].as_object().is_some_and(|streams| streams.len() == 1600) && s["redis"]["error"].is_null()
    };
    let snapshot = monitor.until("all streams are read", Duration::from_secs(40), all).await;
    let next = snapshot["tick"].as_u64().unwrap() + 1;
    let snapshot = monitor.until("the next tick", Duration::from_secs(10), |s| s["tick"].as_u64() >= Some(next)).await;
    assert!(snapshot["redis"]["error"].is_null(), "{}", snapshot["redis"]);
}
