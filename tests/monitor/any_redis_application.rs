//! Streams whose consumers write no heartbeats: shown with what Redis reports, and without crashes.

use std::time::Duration;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run};

#[tokio::test]
async fn groups_without_heartbeats_are_shown_with_presence_unknown() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    for command in [
        "XGROUP CREATE orders billing 0 MKSTREAM",
        "XGROUP CREATE orders shipping 0",
        "XADD orders 1-1 f v",
        "XADD orders 2-1 f v",
        "XADD orders 3-1 f v",
        "XREADGROUP GROUP billing alice COUNT 2 STREAMS orders >",
        "XADD loose * f v",
        "SET not-a-stream text",
    ] {
        run(&mut connection, command).await;
    }
    let settings = [
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_SEED_STREAMS", "not-a-stream,never-used"),
    ];
    let monitor = Monitor::start(&settings).await;
    let snapshot = monitor
        .until("both streams are shown", Duration::from_secs(10), |s| {
            s["streams"]["orders"]["xlen"] == 3 && s["streams"]["loose"]["xlen"] == 1
        })
        .await;
    let orders = &snapshot["streams"]["orders"];
    assert_eq!(orders["groups"].as_array().unwrap().len(), 2);
    assert_eq!(orders["groups"][0]["lag"], 1);
    assert_eq!(orders["groups"][1]["lag"], 3);
    assert_eq!(orders["undelivered"], 3, "the group that is furthest behind");
    assert_eq!(orders["pending"], 2);
    assert_eq!(orders["consumers"][0]["name"], "alice");
    assert_eq!(orders["consumers"][0]["group"], "billing");
    assert_eq!(snapshot["workers"]["orders"]["state"], "unknown");
    assert_eq!(snapshot["workers"]["orders"]["consumers"][0]["state"], "no_heartbeat");
    assert_eq!(snapshot["streams"]["not-a-stream"]["error"], "this key is not a stream");
    assert_eq!(snapshot["streams"]["not-a-stream"]["xlen"], serde_json::Value::Null);
    assert_eq!(snapshot["streams"]["never-used"]["exists"], false);

    // Deleted consumers, groups and streams cause no event.
    for command in ["XGROUP DELCONSUMER orders billing alice", "XGROUP DESTROY orders shipping", "DEL loose"] {
        run(&mut connection, command).await;
    }
    monitor
        .until("they are gone", Duration::from_secs(10), |s| {
            s["streams"]["orders"]["groups"].as_array().is_some_and(|g| g.len() == 1)
                && s["streams"]["loose"]["exists"] == false
        })
        .await;
    assert_eq!(monitor.events().await, Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn unknown_lag_is_estimated_and_labelled() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    // A group created in the middle: Redis reports nil until it has read.
    for n in 1..=5 {
        run(&mut connection, &format!("XADD few {n}-1 f v")).await;
    }
    run(&mut connection, "XGROUP CREATE few g 3-1").await;
    // Many on both sides.
    for n in 1..=400 {
        run(&mut connection, &format!("XADD many {n}-1 f v")).await;
    }
    run(&mut connection, "XGROUP CREATE many g 200-1").await;
    run(&mut connection, "XGROUP CREATE many end 350-1").await;
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let snapshot =
        monitor.until("both are shown", Duration::from_secs(10), |s| s["streams"]["many"]["xlen"] == 400).await;
    let lag = |stream: &str, n: usize| {
        let group = &snapshot["streams"][stream]["groups"][n];
        (group["lag"].as_u64(), group["lag_source"].as_str().unwrap().to_owned())
    };
    assert_eq!(lag("few", 0), (Some(2), "derived".to_owned()));
    assert_eq!(lag("many", 0), (Some(50), "counted".to_owned()));
    assert_eq!(lag("many", 1), (Some(100), "at_least".to_owned()));
    assert_eq!(snapshot["streams"]["many"]["undelivered_at_least"], true);
}

#[tokio::test]
async fn globs_select_watched_streams() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    for stream in ["app.one", "app.two", "app.secret", "other"] {
        run(&mut connection, &format!("XADD {stream} * f v")).await;
    }
    let settings = [
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_STREAMS", "app.*"),
        ("MONITOR_STREAMS_EXCLUDE", "*.secret"),
    ];
    let monitor = Monitor::start(&settings).await;
    let snapshot =
        monitor.until("a tick is done", Duration::from_secs(10), |s| s["streams"]["app.one"]["xlen"] == 1).await;
    let shown: Vec<&String> = snapshot["streams"].as_object().unwrap().keys().collect();
    assert_eq!(shown, ["app.one", "app.two"]);
}
