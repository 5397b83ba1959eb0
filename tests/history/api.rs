//! The history API: parameters, errors and responses.

use serde_json::Value;

use super::*;
use crate::support::monitor::Monitor;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

/// A monitor without a fleet, and an hour of known history that starts at 1772323200.
async fn with_history() -> (TestRedis, TestDatabase, Monitor) {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    drop(migrated(&database).await);
    let sql = database.connect().await;
    sql.batch_execute(
        "INSERT INTO monitor_metrics SELECT to_timestamp(1772323200 + n * 30), 'backlog:' || s,
             CASE WHEN n = 50 THEN 1000 ELSE n % 2 END
         FROM generate_series(0, 119) n, unnest(ARRAY['arax', 'a%b', 'a_b', 'axb']) s;
         INSERT INTO monitor_events (ts, type, worker, severity, detail, payload) VALUES
             (to_timestamp(1772323300), 'scale_down', 'arax', 'critical', 'crashed, \"none left\"', '{\"kind\": \"crashed\"}'),
             (to_timestamp(1772323400), 'alert', 'arax', 'critical', '=cmd()', '{}')",
    )
    .await
    .unwrap();
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    eventually("the archive can be read", Duration::from_secs(20), || async {
        monitor.get("/api/historical/summary").await.0 == 200
    })
    .await;
    (redis, database, monitor)
}

async fn json(monitor: &Monitor, path: &str) -> Value {
    let (status, body) = monitor.get(path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

const HOUR: &str = "since=1772323200&until=1772326800";

#[tokio::test]
async fn series_have_buckets_with_minimum_and_maximum_also_as_csv() {
    let (_redis, _database, monitor) = with_history().await;
    let answer =
        json(&monitor, &format!("/api/historical/metrics?metric=backlog:arax,none&{HOUR}&bucket_seconds=600")).await;
    let points = answer["series"]["backlog:arax"].as_array().unwrap();
    assert_eq!((points.len(), answer["bucket_seconds"].as_u64()), (6, Some(600)));
    assert_eq!(points[0], serde_json::json!([1_772_323_200.0, 0.5]));
    assert!(answer["series"].get("none").is_none());
    let path = format!("/api/historical/metrics?metric=backlog:arax&{HOUR}&bucket_seconds=3600&minmax=1");
    let point = json(&monitor, &path).await["series"]["backlog:arax"][0].clone();
    assert_eq!((point[2].as_f64(), point[3].as_f64()), (Some(0.0), Some(1000.0)), "a spike is never averaged away");
    // A prefix is taken literally.
    let literal = json(&monitor, &format!("/api/historical/metrics_by_prefix?prefix=backlog:a%25&{HOUR}")).await;
    assert_eq!(literal["series"].as_object().unwrap().keys().collect::<Vec<_>>(), ["backlog:a%b"]);
    let literal = json(&monitor, &format!("/api/historical/metrics_by_prefix?prefix=backlog:a_&{HOUR}")).await;
    assert_eq!(literal["series"].as_object().unwrap().keys().collect::<Vec<_>>(), ["backlog:a_b"]);
    let (_, csv) = monitor
        .get(&format!("/api/historical/metrics?metric=backlog:arax&{HOUR}&bucket_seconds=1800&minmax=1&format=csv"))
        .await;
    assert_eq!(
        csv,
        "series,ts,value,min,max\nbacklog:arax,1772323200,17.166666666666668,0,1000\nbacklog:arax,1772325000,0.5,0,1\n"
    );
    let (_, csv) = monitor.get(&format!("/api/historical/events?{HOUR}&format=csv")).await;
    assert!(csv.contains(",'=cmd()\n") && csv.contains("\"crashed, \"\"none left\"\"\""), "{csv}");
}

#[tokio::test]
async fn summary_covers_the_requested_time_range() {
    let (_redis, _database, monitor) = with_history().await;
    let summary = json(&monitor, &format!("/api/historical/summary?{HOUR}")).await;
    assert_eq!(
        (summary["crashes"].as_i64(), summary["scale_events"].as_i64(), summary["alert_count"].as_i64()),
        (Some(1), Some(1), Some(1))
    );
    assert_eq!(summary["peak_backlog"]["a%b"], 1000);
    let before = json(&monitor, "/api/historical/summary?since=1772319600&until=1772323200").await;
    assert_eq!(
        (before["crashes"].as_i64(), before["peak_backlog"].as_object().map(serde_json::Map::len)),
        (Some(0), Some(0))
    );
}

#[tokio::test]
async fn invalid_requests_are_rejected_with_a_message() {
    let (_redis, _database, monitor) = with_history().await;
    for (path, names) in [
        ("metrics?metric=", "metric"),
        ("metrics", "metric"),
        ("metrics?metric=a&since=5&until=5", "since"),
        ("metrics?metric=a&since=9&until=5", "since"),
        ("metrics?metric=a&since=NaN", "since"),
        ("metrics?metric=a&since=-1", "since"),
        ("metrics?metric=a&until=inf", "until"),
        ("metrics?metric=a&until=tomorrow", "until"),
        ("metrics?metric=a&bucket_seconds=0", "bucket_seconds"),
        ("metrics?metric=a&bucket_seconds=-30", "bucket_seconds"),
        ("metrics?metric=a&bucket_seconds=1.5", "bucket_seconds"),
        ("metrics?metric=a&bucket_seconds=99999999999", "bucket_seconds"),
        ("metrics?metric=a&bucket_seconds=1", "points"),
        ("metrics?metric=a&since=0", "days"),
        ("metrics?metric=a&minmax=maybe", "minmax"),
        ("metrics?metric=a&format=xml", "format"),
        ("metrics_by_prefix", "prefix"),
        ("metrics_by_prefix?prefix=", "prefix"),
        ("latency?streams=", "streams"),
        ("latency?streams=a&since=x", "since"),
        ("queries?since=x", "since"),
        ("summary?until=x", "until"),
        ("events?limit=0", "limit"),
        ("events?limit=5001", "limit"),
        ("events?type=nonsense", "type"),
        ("events?severity=loud", "severity"),
        ("events?since=9&until=5", "since"),
    ] {
        let (status, body) = monitor.get(&format!("/api/historical/{path}")).await;
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 400, "{path}: {body}");
        assert_eq!(problem["type"], "urn:shepherd-monitor:problem:bad-request");
        assert!(problem["detail"].as_str().unwrap().contains(names), "{path}: {body}");
    }
    let many = vec!["x"; 1000].iter().enumerate().map(|(n, x)| format!("{x}{n}")).collect::<Vec<_>>().join(",");
    assert_eq!(monitor.get(&format!("/api/historical/metrics?metric={many}")).await.0, 400);
}

#[tokio::test]
async fn unchanged_responses_are_not_sent_again() {
    let (_redis, _database, monitor) = with_history().await;
    let url = monitor.url(&format!("/api/historical/metrics?metric=backlog:arax&{HOUR}"));
    let client = reqwest::Client::new();
    let first = client.get(&url).header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(first.headers()["content-encoding"], "gzip");
    let etag = first.headers()["etag"].clone();
    let again = client.get(&url).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.bytes().await.unwrap().len()), (304, 0));
    let other = client.get(&url).header("if-none-match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), 200);
}

#[tokio::test]
async fn recent_samples_are_stored_in_redis_as_in_the_contract() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["a:b", "*", "f", "v"]).query_async(&mut connection).await.unwrap();
    // Expired samples are removed gradually.
    let _: i64 = redis::cmd("ZADD")
        .arg("shepherd-monitor:hist:xlen:a:b")
        .arg(1000)
        .arg("1000:7")
        .query_async(&mut connection)
        .await
        .unwrap();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    let answer = eventually("two samples are there, and the old one is not", Duration::from_secs(60), || async {
        let answer = json(&monitor, "/api/history/xlen:a:b").await;
        let samples = answer["samples"].as_array().unwrap();
        (samples.len() >= 2 && samples[0][0].as_f64() > Some(1000.0)).then_some(answer)
    })
    .await;
    assert_eq!((answer["metric"].as_str(), answer["samples"][0][1].as_f64()), (Some("xlen:a:b"), Some(1.0)));
    let first = answer["samples"][0][0].as_f64().unwrap();
    assert!(first > 1e9 && first.fract() == 0.0);
    let later = json(&monitor, &format!("/api/history/xlen:a:b?since={}", first + 1.0)).await;
    assert!(later["samples"][0][0].as_f64().unwrap() > first);
    let names = json(&monitor, "/api/history").await;
    assert!(names["series"].as_array().unwrap().iter().any(|name| name == "redis:used_memory_bytes"));
    eventually("the old sample goes from Redis too", Duration::from_secs(60), || async {
        let mut connection = connection.clone();
        let mut oldest = redis::cmd("ZRANGE");
        let oldest: Vec<String> =
            oldest.arg("shepherd-monitor:hist:xlen:a:b").arg(0).arg(0).query_async(&mut connection).await.unwrap();
        if oldest == [format!("{first:.0}:1")] { Ok(()) } else { Err(format!("{oldest:?}")) }
    })
    .await;
}
