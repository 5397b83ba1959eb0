//! Crashes at every step between draining and deleting, and during compaction: nothing is lost or counted twice.

use serde_json::Value;

use super::*;
use crate::support::monitor::Monitor;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const LIMIT: Duration = Duration::from_secs(40);

fn settings<'a>(redis: &'a str, database: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("REDIS_URL", redis), ("DATABASE_URL", database), ("MONITOR_HISTORY_INTERVAL_SEC", "1")]
}

async fn push(redis: &mut redis::aio::MultiplexedConnection, stream: &str, from: u64, count: u64) -> u64 {
    let durations: Vec<u64> = (from..from + count).collect();
    let key = format!("monitor:task_durations:{stream}");
    let _: i64 = redis::cmd("LPUSH").arg(key).arg(&durations).query_async(redis).await.unwrap();
    durations.iter().sum()
}

/// Returns the number of archived tasks and the sum of their run times.
async fn archived(monitor: &Monitor) -> (u64, u64) {
    let (_, body) = monitor.get("/api/historical/latency").await;
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    let all = &answer["all"];
    let count = all["count"].as_u64().unwrap_or(0);
    (count, (all["mean_ms"].as_f64().unwrap_or(0.0) * count as f64).round() as u64)
}

#[tokio::test]
async fn durations_are_archived_once_after_a_crash_at_any_step() {
    let places = ["latency.drained", "latency.read", "latency.inserted", "latency.stored", "latency.dropped"];
    // Checks the test itself: without a failpoint the process survives.
    for place in places.into_iter().chain(["no.such.place"]) {
        let (server, database) = (TestRedis::start(), TestDatabase::create());
        let mut redis = server.connection().await;
        for stream in ["a", "b"] {
            let _: String =
                redis::cmd("XADD").arg(&[stream, "*", "query_id", "q"]).query_async(&mut redis).await.unwrap();
        }
        let mut sum = push(&mut redis, "a", 1, 500).await + push(&mut redis, "b", 1000, 300).await;
        let (redis_url, database_url) = (server.url(), database.url());
        let mut given = settings(&redis_url, &database_url);
        given.push(("SHEPHERD_FAILPOINT", place));
        let doomed = Monitor::start(&given).await;
        if place == "no.such.place" {
            eventually("all is archived", LIMIT, || async { archived(&doomed).await == (800, sum) }).await;
            assert!(doomed.is_running());
            continue;
        }
        eventually("it dies there", LIMIT, || async { !doomed.is_running() }).await;
        sum += push(&mut redis, "a", 5000, 200).await;
        let monitor = Monitor::start(&settings(&redis_url, &database_url)).await;
        eventually(&format!("all is archived after {place}"), LIMIT, || async {
            let got = archived(&monitor).await;
            if got == (1000, sum) { Ok(()) } else { Err(format!("{got:?}, not {:?}", (1000, sum))) }
        })
        .await;
        eventually("nothing is left in Redis", LIMIT, || async {
            let keys: Vec<String> =
                redis::cmd("KEYS").arg("monitor:latency:*").query_async(&mut redis.clone()).await.unwrap();
            if keys.is_empty() { Ok(()) } else { Err(format!("{keys:?}")) }
        })
        .await;
        assert_eq!(archived(&monitor).await, (1000, sum), "{place}");
    }
}

#[tokio::test]
async fn compaction_continues_without_loss_after_a_crash() {
    let (server, database) = (TestRedis::start(), TestDatabase::create());
    drop(migrated(&database).await);
    let sql = database.connect().await;
    sql.batch_execute(
        "INSERT INTO monitor_metrics SELECT date_trunc('hour', now()) - n * interval '30 seconds', 'm', n
         FROM generate_series(1, 5000) n",
    )
    .await
    .unwrap();
    let count = async || -> (i64, f64) {
        let row = sql.query_one("SELECT count(*), sum(value) FROM monitor_metrics_all WHERE metric = 'm'", &[]).await;
        let row = row.unwrap();
        (row.get(0), row.get(1))
    };
    let all = count().await;
    let (redis_url, database_url) = (server.url(), database.url());
    let mut given = settings(&redis_url, &database_url);
    given.push(("SHEPHERD_FAILPOINT", "compaction.moved"));
    let doomed = Monitor::start(&given).await;
    eventually("it dies there", LIMIT, || async { !doomed.is_running() }).await;
    assert_eq!(count().await, all);
    let _monitor = Monitor::start(&settings(&redis_url, &database_url)).await;
    eventually("they are moved", LIMIT, || async {
        let left = sql.query_one("SELECT count(*) FROM monitor_metrics WHERE metric = 'm'", &[]).await.unwrap();
        left.get::<_, i64>(0) == 0
    })
    .await;
    assert_eq!(count().await, all);
}

#[tokio::test]
async fn takeover_continues_without_loss_after_a_crash() {
    let (server, database) = (TestRedis::start(), TestDatabase::create());
    let sql = database.connect().await;
    sql.batch_execute(
        "CREATE TABLE monitor_metrics (ts timestamptz NOT NULL, metric text NOT NULL, value double precision, PRIMARY KEY (metric, ts));
         INSERT INTO monitor_metrics SELECT now() - n * interval '30 seconds', 'm', n FROM generate_series(1, 9000) n",
    )
    .await
    .unwrap();
    let (redis_url, database_url) = (server.url(), database.url());
    let mut given = settings(&redis_url, &database_url);
    given.push(("SHEPHERD_FAILPOINT", "takeover.moved"));
    let doomed = Monitor::start(&given).await;
    eventually("it dies there", LIMIT, || async { !doomed.is_running() }).await;
    let _monitor = Monitor::start(&settings(&redis_url, &database_url)).await;
    eventually("all is taken over", LIMIT, || async {
        let row = sql.query_one("SELECT count(*) FROM monitor_takeover", &[]).await.map_err(|e| e.to_string())?;
        if row.get::<_, i64>(0) == 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let row =
        sql.query_one("SELECT count(*), sum(value) FROM monitor_metrics_all WHERE metric = 'm'", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, f64>(1)), (9000, 9000.0 * 9001.0 / 2.0));
}
