//! A fleet of Python and Rust workers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const WORKER: &str = include_str!("fleet.py");

fn python_worker(redis: &TestRedis, stream: &str, consumer: &str) -> Python {
    Python::start(WORKER, &[&redis.port().to_string(), stream, consumer])
}

/// Starts a worker that uses the library: the example, built with the tests.
fn rust_worker(redis: &TestRedis, stream: &str) -> Reaper {
    let reaper = Reaper::start("shepherd-relay", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
    let url = format!("REDIS_URL={}", redis.url());
    let relay = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/relay");
    reaper.serve(&["env", &url, relay.to_str().unwrap(), "--stream", stream, "--task-limit", "4"]).unwrap();
    reaper
}

async fn monitor(redis: &TestRedis, database: &TestDatabase) -> Monitor {
    Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await
}

fn alive(snapshot: &Value, stream: &str) -> u64 {
    snapshot["workers"][stream]["alive"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn python_and_rust_workers_are_both_shown() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _workers = [python_worker(&redis, "both", "aaaa1111"), python_worker(&redis, "py", "bbbb2222")];
    let _relays = [rust_worker(&redis, "both"), rust_worker(&redis, "rust:with:colons")];
    let monitor = monitor(&redis, &database).await;
    let snapshot = monitor
        .until("all four workers are alive", Duration::from_secs(20), |snapshot| {
            alive(snapshot, "both") == 2 && alive(snapshot, "py") == 1 && alive(snapshot, "rust:with:colons") == 1
        })
        .await;
    assert_eq!(snapshot["workers"]["both"]["state"], "alive");
    assert_eq!(snapshot["workers"]["both"]["task_limit_total"], 14);
    assert_eq!(snapshot["workers"]["both"]["backlog"], 0);
    assert_eq!(snapshot["streams"]["both"]["groups"][0]["name"], "consumer");
    assert_eq!(snapshot["streams"]["both"]["groups"][0]["lag_source"], "reported");
    // Reading changes nothing: every client gets the same.
    let events = monitor.events().await;
    assert!(events.iter().all(|event| event["type"] == "scale_up"), "{events:?}");
    assert_eq!(monitor.events().await, events);
}

#[tokio::test]
async fn readings_are_equal_in_resp2_and_resp3() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _workers = [python_worker(&redis, "both", "aaaa1111"), python_worker(&redis, "both", "bbbb2222")];
    let mut connection = redis.connection().await;
    for n in 0..3 {
        let _: String =
            redis::cmd("XADD").arg("waiting").arg("*").arg("n").arg(n).query_async(&mut connection).await.unwrap();
    }
    let mut pipe = redis::pipe();
    pipe.cmd("XGROUP").arg(&["CREATE", "waiting", "consumer", "0"]).ignore();
    pipe.cmd("XREADGROUP").arg(&["GROUP", "consumer", "somebody", "COUNT", "1", "STREAMS", "waiting", ">"]).ignore();
    let _: () = pipe.query_async(&mut connection).await.unwrap();
    let mut told = Vec::new();
    for url in [redis.url(), format!("{}?protocol=resp3", redis.url())] {
        let monitor = Monitor::start(&[("REDIS_URL", &url), ("DATABASE_URL", &database.url())]).await;
        let snapshot = monitor
            .until("both workers are alive", Duration::from_secs(20), |snapshot| alive(snapshot, "both") == 2)
            .await;
        let waiting = &snapshot["streams"]["waiting"];
        assert!(waiting["consumers"][0]["idle_ms"].is_u64(), "{waiting}");
        assert!(waiting["oldest_waiting_sec"].is_f64(), "{waiting}");
        told.push(json!([
            waiting["consumers"][0]["name"],
            waiting["consumers"][0]["pending"],
            waiting["groups"][0]["lag_source"],
            waiting["groups"][0]["lag"],
            waiting["groups"][0]["last_delivered_id"],
            snapshot["workers"]["both"]["task_limit_total"],
            snapshot["redis"]["version"],
        ]));
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0][1], 1);
}

#[tokio::test]
async fn killed_worker_is_lost_within_20_s_while_another_shuts_down() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let workers = ["aaaa0001", "aaaa0002", "aaaa0003"].map(|name| python_worker(&redis, "s", name));
    let monitor = monitor(&redis, &database).await;
    monitor.until("three are alive", Duration::from_secs(10), |snapshot| alive(snapshot, "s") == 3).await;
    workers[0].send("TERM");
    workers[1].send("KILL");
    let killed = Instant::now();
    let snapshot = monitor
        .until("the crash is seen", Duration::from_secs(25), |snapshot| snapshot["workers"]["s"]["lost"] == 1)
        .await;
    assert!(killed.elapsed() <= Duration::from_secs(20), "seen after {:?}", killed.elapsed());
    let state = |name: &str| {
        let consumers = snapshot["workers"]["s"]["consumers"].as_array().unwrap();
        consumers.iter().find(|c| c["consumer"] == name).map(|c| c["state"].clone()).unwrap()
    };
    assert_eq!([state("aaaa0001"), state("aaaa0002"), state("aaaa0003")], ["left", "lost", "alive"].map(|s| json!(s)));
    assert_eq!(snapshot["workers"]["s"]["state"], "alive");
    let lost: Vec<Value> = monitor.events().await.into_iter().filter(|e| e["type"] == "consumers_lost").collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0]["payload"]["consumers"], json!(["aaaa0002"]));
}

#[tokio::test]
async fn rust_worker_drains_and_shuts_down_gracefully() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let relay = rust_worker(&redis, "s");
    let monitor = monitor(&redis, &database).await;
    monitor.until("it is alive", Duration::from_secs(10), |snapshot| alive(snapshot, "s") == 1).await;
    relay.send("TERM").unwrap();
    let snapshot = monitor
        .until("it has left", Duration::from_secs(15), |snapshot| snapshot["workers"]["s"]["state"] == "scaled_down")
        .await;
    assert_eq!(snapshot["workers"]["s"]["consumers"][0]["state"], "left");
}

#[tokio::test]
async fn restarted_monitor_detects_losses_during_its_downtime() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let workers = ["aaaa0001", "aaaa0002"].map(|name| python_worker(&redis, "s", name));
    let first = monitor(&redis, &database).await;
    first.until("two are alive", Duration::from_secs(10), |snapshot| alive(snapshot, "s") == 2).await;
    eventually("the state is written down", Duration::from_secs(5), || async {
        let mut redis = redis.connection().await;
        let record: Option<String> =
            redis::cmd("GET").arg("shepherd-monitor:worker_state:s").query_async(&mut redis).await.unwrap();
        record.filter(|record| record.contains("aaaa0002"))
    })
    .await;
    drop(first);
    workers[0].send("KILL");
    let second = monitor(&redis, &database).await;
    let snapshot = second
        .until("the crash is seen", Duration::from_secs(40), |snapshot| snapshot["workers"]["s"]["lost"] == 1)
        .await;
    assert_eq!(alive(&snapshot, "s"), 1);
    let kinds: Vec<Value> = second.events().await.iter().map(|e| e["type"].clone()).collect();
    assert_eq!(kinds[..2], ["scale_down", "consumers_lost"].map(|k| json!(k)), "newest first");
    assert!(kinds[2..].iter().all(|kind| kind == "scale_up"), "each once: {kinds:?}");
}

#[tokio::test]
async fn rejected_record_is_saved_once_redis_accepts_it() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let worker = python_worker(&redis, "s", "aaaa0001");
    let monitor = monitor(&redis, &database).await;
    monitor.until("it is alive", Duration::from_secs(10), |snapshot| alive(snapshot, "s") == 1).await;
    let state = || async {
        let mut connection = redis.connection().await;
        let records: Vec<String> =
            redis::cmd("KEYS").arg("*worker_state*:s").query_async(&mut connection).await.unwrap();
        let record: String = redis::cmd("GET").arg(records.first()?).query_async(&mut connection).await.unwrap();
        serde_json::from_str::<Value>(&record).unwrap()["state"].as_str().map(str::to_owned)
    };
    eventually("the state is saved", Duration::from_secs(10), || async { state().await.filter(|s| s == "alive") })
        .await;
    // All writes are permitted except the monitor's records of workers.
    let mut admin = redis.connection().await;
    for rule in ["resetkeys", "%R~*", "%W~worker:*", "%W~s", "%W~monitor:hist*", "%W~monitor:events*"] {
        let _: () = redis::cmd("ACL").arg(&["SETUSER", "default", rule]).query_async(&mut admin).await.unwrap();
    }
    worker.send("TERM");
    monitor
        .until("it has left", Duration::from_secs(15), |snapshot| snapshot["workers"]["s"]["state"] == "scaled_down")
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(state().await.as_deref(), Some("alive"), "refused");
    let _: () = redis::cmd("ACL").arg(&["SETUSER", "default", "allkeys"]).query_async(&mut admin).await.unwrap();
    eventually("the state is saved", Duration::from_secs(10), || async {
        state().await.filter(|s| s == "scaled_down")
    })
    .await;
}

#[tokio::test]
async fn a_denied_command_hides_only_what_needs_it_and_is_shown() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _worker = python_worker(&redis, "s", "aaaa0001");
    let mut admin = redis.connection().await;
    let mut acl = async |rule: &str| {
        let _: () = redis::cmd("ACL").arg(&["SETUSER", "monitor", rule]).query_async(&mut admin).await.unwrap();
    };
    for rule in ["on", ">pass", "~*", "&*", "+@all", "-info"] {
        acl(rule).await;
    }
    let url = redis.url().replace("redis://", "redis://monitor:pass@");
    let monitor = Monitor::start(&[("REDIS_URL", &url), ("DATABASE_URL", &database.url())]).await;
    let seen = monitor.until("it is alive", Duration::from_secs(15), |snapshot| alive(snapshot, "s") == 1).await;
    assert_ne!(seen["redis"]["source"]["status"], "down", "{}", seen["redis"]);
    assert!(seen["redis"]["error"].as_str().unwrap().contains("'info'"), "{}", seen["redis"]);
    assert!(seen["redis"]["version"].is_null());
    acl("+info").await;
    acl("-set").await;
    monitor
        .until("the denied write is shown", Duration::from_secs(15), |snapshot| {
            snapshot["redis"]["error"].as_str().is_some_and(|error| error.contains("'set'"))
        })
        .await;
    acl("-time").await;
    let down = monitor
        .until("it is down", Duration::from_secs(15), |snapshot| snapshot["redis"]["source"]["status"] == "down")
        .await;
    assert_eq!(down["redis"]["source"]["kind"], "refused", "{}", down["redis"]);
    let page = monitor.get("/").await.1;
    assert!(page.contains("Redis denying access since") && !page.contains("unreachable"), "{page}");
}

#[tokio::test]
async fn two_monitors_record_each_loss_recovery_and_crash_once() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let workers = ["aaaa0001", "aaaa0002"].map(|name| python_worker(&redis, "s", name));
    let one = monitor(&redis, &database).await;
    let other = monitor(&redis, &database).await;
    for monitor in [&one, &other] {
        monitor.until("two are alive", Duration::from_secs(10), |snapshot| alive(snapshot, "s") == 2).await;
    }
    workers[0].send("STOP");
    for monitor in [&one, &other] {
        monitor.until("it is lost", Duration::from_secs(30), |s| s["workers"]["s"]["lost"] == 1).await;
    }
    workers[0].send("CONT");
    for monitor in [&one, &other] {
        monitor.until("it is back", Duration::from_secs(10), |s| s["workers"]["s"]["lost"] == 0).await;
    }
    workers.iter().for_each(|worker| worker.send("KILL"));
    for monitor in [&one, &other] {
        monitor.until("all crashed", Duration::from_secs(30), |s| s["workers"]["s"]["state"] == "crashed").await;
    }
    let events = one.events().await;
    let count = |what: &dyn Fn(&Value) -> bool| events.iter().filter(|event| what(event)).count();
    assert_eq!(count(&|e| e["type"] == "consumers_lost"), 3, "{events:?}");
    assert_eq!(count(&|e| e["type"] == "consumer_recovered"), 1, "{events:?}");
    assert_eq!(count(&|e| e["type"] == "scale_down" && e["payload"]["to"] == 0), 1, "{events:?}");
}
