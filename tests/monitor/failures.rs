//! Failed tasks as counted by workers: what the monitor shows, records and reports, whatever else is in the hash.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use shepherd_monitor::contract::failures::{FailureKind, TaskFailure};
use shepherd_monitor::contract::{Name, keys};
use shepherd_monitor::fleet::watched::WatchedStreams;
use shepherd_monitor::redis_streams::streams_reader::StreamsReader;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run, run_words};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Records a failed task like a worker's script.
async fn fail(redis: &mut MultiplexedConnection, stream: &[u8], kinds: &[FailureKind], reason: &str) {
    let strings = TaskFailure::new(kinds, reason.to_owned(), now_ms()).strings(&Name::from(stream), "7-0");
    let mut pipe = redis::pipe();
    pipe.atomic();
    for counter in &strings[2..] {
        pipe.cmd("HINCRBY").arg(keys::TASK_FAILURES).arg(counter).arg(1).ignore();
    }
    pipe.cmd("HSET").arg(keys::TASK_FAILURES).arg(&strings[0]).arg(&strings[1]).ignore();
    let () = pipe.query_async(redis).await.unwrap();
}

async fn stream(redis: &mut MultiplexedConnection, name: &[u8]) {
    run_words(redis, &[b"XGROUP", b"CREATE", name, b"g", b"0", b"MKSTREAM"]).await;
}

fn failures<'a>(snapshot: &'a Value, stream: &str) -> &'a Value {
    &snapshot["streams"][stream]["failures"]
}

/// Returns the stored events of this type about `stream`, newest first.
async fn events(monitor: &Monitor, stream: &str) -> Vec<Value> {
    let of = |event: &Value| event["type"] == "task_failures" && event["worker"] == stream;
    monitor.events().await.into_iter().filter(of).collect()
}

const FAILED: &[FailureKind] = &[FailureKind::Failed];
const LETTER: &[FailureKind] = &[FailureKind::Malformed, FailureKind::DeadLettered];

#[tokio::test]
async fn failed_tasks_are_reported_everywhere_until_forgotten() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    for name in ["arax", "a:b c", "hidden"] {
        stream(&mut connection, name.as_bytes()).await;
    }
    let rules = redis.folder().join("rules.yaml");
    std::fs::write(&rules, "rules: [{name: failing, type: threshold, metric: failures, stream: 'a*', threshold: 1}]")
        .unwrap();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_STREAMS_EXCLUDE", "hid*"),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
        ("MONITOR_ALERTS_CONFIG", rules.to_str().unwrap()),
        ("MONITOR_STARTUP_GRACE_SEC", "0"),
    ])
    .await;
    monitor.takes_orders().await;
    let none = json!({"failed": 0, "malformed": 0, "dead_lettered": 0, "last_5m": 0, "last": null});
    monitor.until("no task failed", SOON, |snapshot| *failures(snapshot, "arax") == none).await;
    assert!(!monitor.get("/").await.1.contains("failures</dt>"));
    assert!(!monitor.get("/streams/arax").await.1.contains("group-title"));

    fail(&mut connection, b"arax", LETTER, "no field <b>x</b>").await;
    fail(&mut connection, b"arax", FAILED, "database \"is\" away").await;
    fail(&mut connection, b"hidden", FAILED, "x").await;
    let snapshot = monitor.until("two tasks failed", SOON, |snapshot| failures(snapshot, "arax")["last_5m"] == 2).await;
    let arax = failures(&snapshot, "arax");
    assert_eq!((&arax["failed"], &arax["malformed"], &arax["dead_lettered"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!((&arax["last"]["kind"], &arax["last"]["reason"]), (&json!("failed"), &json!("database \"is\" away")));
    assert_eq!((failures(&snapshot, "a:b c"), failures(&snapshot, "hidden")), (&none, &Value::Null));
    assert!(monitor.get("/").await.1.contains("failures</dt>"));
    for page in ["/streams/arax", "/streams/a:b%20c"] {
        let shown = monitor.get(page).await.1.contains("group-title");
        assert_eq!(shown, page == "/streams/arax", "{page}");
    }
    assert!(monitor.get("/streams/arax").await.1.contains("database &quot;is&quot; away"));

    let told = eventually("an event tells of it", SOON, || async {
        let events = events(&monitor, "arax").await;
        (!events.is_empty()).then_some(events)
    })
    .await;
    assert_eq!(told.len(), 1, "{told:?}");
    let (payload, severity) = (&told[0]["payload"], &told[0]["severity"]);
    assert_eq!((severity, &payload["entry"]), (&json!("warning"), &json!("7-0")));
    assert!(payload["count"].as_u64().unwrap() >= 1 && payload["reason"].is_string() && payload["kind"].is_string());
    assert!(events(&monitor, "hidden").await.is_empty());

    let (_, metrics) = monitor.get("/metrics").await;
    for line in [
        "shepherd_monitor_task_failures_total{stream=\"arax\",kind=\"dead_lettered\"} 1",
        "shepherd_monitor_task_failures_total{stream=\"a:b c\",kind=\"failed\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    assert!(!metrics.contains("hidden"));
    eventually("it is recorded, and the rule fires", SOON, || async {
        let (_, series) = monitor.get("/api/history/failures:arax").await;
        let (_, alerts) = monitor.get("/api/alerts").await;
        let found = series.contains(",2.0]") && alerts.contains("failing") && alerts.contains("failures of arax is 2");
        if found { Ok(()) } else { Err(format!("{series} {alerts}")) }
    })
    .await;

    let forget = reqwest::Client::new().post(monitor.url("/api/admin/forget_worker?name=arax")).send().await.unwrap();
    assert_eq!(forget.status(), 200);
    let left: Vec<String> = connection.hkeys(keys::TASK_FAILURES).await.unwrap();
    assert!(left.iter().all(|field| field.ends_with(":hidden")), "{left:?}");
    assert_eq!(connection.hlen::<_, u64>(keys::SEEN_FAILURES).await.unwrap(), 1, "only when it was read");
    monitor.until("it is forgotten", SOON, |snapshot| *failures(snapshot, "arax") == none).await;
}

#[tokio::test]
async fn restart_repeats_no_event_and_counts_failures_meanwhile() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    stream(&mut connection, b"s").await;
    let settings = [("REDIS_URL", &*redis.url()), ("DATABASE_URL", &*database.url())];
    let monitor = Monitor::start(&settings).await;
    monitor.takes_orders().await;
    monitor.until("it is read", SOON, |snapshot| failures(snapshot, "s")["failed"] == 0).await;
    fail(&mut connection, b"s", FAILED, "first").await;
    eventually("an event tells of it", SOON, || async { events(&monitor, "s").await.len() == 1 }).await;
    drop(monitor);

    // The streak continues.
    fail(&mut connection, b"s", FAILED, "second").await;
    let monitor = Monitor::start(&settings).await;
    monitor.until("both count", SOON, |snapshot| failures(snapshot, "s")["last_5m"] == 2).await;
    let ticks = monitor.snapshot().await["tick"].as_u64().unwrap() + 3;
    monitor.until("some ticks passed", SOON, |snapshot| snapshot["tick"].as_u64() > Some(ticks)).await;
    assert_eq!(events(&monitor, "s").await.len(), 1);
    drop(monitor);

    // An hour later.
    let record: String = connection.hget(keys::SEEN_FAILURES, "stream:s").await.unwrap();
    let mut record: Value = serde_json::from_str(&record).unwrap();
    let read_at: f64 = connection.hget(keys::SEEN_FAILURES, "read_at").await.unwrap();
    record["streak_until"] = json!(record["streak_until"].as_f64().unwrap() - 3600.0);
    record["recent"] = json!([]);
    let () = connection.hset(keys::SEEN_FAILURES, "stream:s", record.to_string()).await.unwrap();
    let () = connection.hset(keys::SEEN_FAILURES, "read_at", read_at - 3600.0).await.unwrap();
    for _ in 0..4 {
        fail(&mut connection, b"s", LETTER, "meanwhile").await;
    }
    let monitor = Monitor::start(&settings).await;
    eventually("an event tells how many", SOON, || async { events(&monitor, "s").await.len() == 2 }).await;
    let newest = &events(&monitor, "s").await[0];
    assert_eq!((&newest["payload"]["count"], &newest["payload"]["kind"]), (&json!(4), &json!("malformed")));
    assert!(newest["payload"]["unread_sec"].as_u64().unwrap() >= 3600, "{newest}");
    let snapshot = monitor.snapshot().await;
    assert_eq!((&failures(&snapshot, "s")["last_5m"], &failures(&snapshot, "s")["malformed"]), (&json!(1), &json!(4)));
}

#[tokio::test]
async fn figures_freeze_during_an_outage_and_restart_at_zero_after_a_flush() {
    let redis = TestRedis::start();
    let mut connection = redis.connection().await;
    stream(&mut connection, b"s").await;
    fail(&mut connection, b"s", FAILED, "x").await;
    fail(&mut connection, b"s", FAILED, "x").await;
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("MONITOR_SEED_STREAMS", "s")]).await;
    monitor.until("it is read", SOON, |snapshot| failures(snapshot, "s")["failed"] == 2).await;
    redis.stop().unwrap();
    let down = monitor.until("it is down", SOON, |snapshot| snapshot["redis"]["source"]["status"] == "down").await;
    assert_eq!(failures(&down, "s")["failed"], 2);
    redis.resume().unwrap();
    let mut connection = redis.connection().await;
    run(&mut connection, "FLUSHALL").await;
    monitor.until("it begins again", SOON, |snapshot| failures(snapshot, "s")["failed"] == 0).await;
    stream(&mut connection, b"s").await;
    fail(&mut connection, b"s", FAILED, "x").await;
    let again = monitor.until("it counts on", SOON, |snapshot| failures(snapshot, "s")["failed"] == 1).await;
    assert_eq!(failures(&again, "s")["last_5m"], 2, "one before, of which it is known when, and one after");
}

/// Returns how often Redis executed these commands.
async fn calls(redis: &mut MultiplexedConnection, commands: &[&str]) -> Vec<u64> {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.unwrap();
    let of = |command: &&str| {
        let rest = stats.split(&format!("cmdstat_{command}:calls=")).nth(1)?;
        rest.split(',').next()?.parse().ok()
    };
    commands.iter().map(|command| of(command).unwrap_or(0)).collect()
}

#[tokio::test]
async fn pass_uses_one_command_whatever_the_hash_contains() {
    let server = TestRedis::start();
    let (mut redis, mut passes) = (server.connection().await, server.connection().await);
    let names: Vec<Vec<u8>> = (0..90_u8).map(|n| [b"s:\xff".as_slice(), &[n], b":t"].concat()).collect();
    for name in &names {
        stream(&mut redis, name).await;
    }
    let shown: Vec<Name> = names.iter().map(|name| Name::from(&**name)).collect();
    let mut reader = StreamsReader::new(WatchedStreams::default(), &shown);
    let read = async |reader: &mut StreamsReader, passes: &mut MultiplexedConnection| {
        reader.read(passes).await.unwrap().0.failures
    };
    const COMMANDS: &[&str] = &["hlen", "hmget", "hgetall", "hscan"];
    for _ in 0..3 {
        let failures = read(&mut reader, &mut passes).await.unwrap();
        assert!(failures.len() == 90 && failures.values().all(|of| of.counts == [Some(0); 3]));
    }
    assert_eq!(calls(&mut redis, COMMANDS).await, [3, 0, 0, 0], "nothing failed yet");

    // Foreign fields, invalid values, and one real failure.
    for some in (0..100_000).collect::<Vec<_>>().chunks(10_000) {
        let mut pipe = redis::pipe();
        for n in some {
            pipe.cmd("HSET").arg(keys::TASK_FAILURES).arg(format!("failed:made up {n}")).arg(n).ignore();
        }
        let () = pipe.query_async(&mut redis).await.unwrap();
    }
    let field = |kind: &str, n: usize| [kind.as_bytes(), b":", &names[n]].concat();
    let huge = vec![b'9'; 5_000_000];
    for (kind, n, value) in [("failed", 1, &b"lots"[..]), ("failed", 2, b"-3"), ("last", 3, b"{"), ("last", 4, &huge)] {
        let () = redis.hset(keys::TASK_FAILURES, field(kind, n), value).await.unwrap();
    }
    fail(&mut redis, &names[89], LETTER, "why").await;
    let failures = read(&mut reader, &mut passes).await.unwrap();
    assert_eq!(failures[&shown[89]].counts, [Some(0), Some(1), Some(1)]);
    assert_eq!(failures[&shown[89]].last.as_ref().unwrap().reason, "why");
    assert_eq!([&failures[&shown[1]].counts, &failures[&shown[2]].counts], [&[None, Some(0), Some(0)]; 2]);
    assert!([3, 4].iter().all(|n| failures[&shown[*n]].last.is_none()) && failures.len() == 90);

    let before = calls(&mut redis, COMMANDS).await;
    let out = async |redis: &mut MultiplexedConnection| {
        let stats: String = redis::cmd("INFO").arg("stats").query_async(redis).await.unwrap();
        stats.split("total_net_output_bytes:").nth(1).unwrap().lines().next().unwrap().parse::<u64>().unwrap()
    };
    let bytes = out(&mut redis).await;
    for _ in 0..5 {
        read(&mut reader, &mut passes).await.unwrap();
    }
    let after = calls(&mut redis, COMMANDS).await;
    let asked: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(asked, [0, 5, 0, 0]);
    assert!(out(&mut redis).await - bytes < 1_000_000, "a value that is too long is not asked for again");

    // A key of another type: everything else is read, and failures are unknown.
    run(&mut redis, "SET worker:failures x").await;
    let (reading, _) = reader.read(&mut passes).await.unwrap();
    assert!(reading.failures.is_none() && reading.streams.values().all(|stream| stream.facts.is_ok()));
}
