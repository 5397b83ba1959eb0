//! Phantom pending IDs, whose entries were deleted or trimmed: counted separately, never as work.

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use shepherd_monitor::contract::Name;
use shepherd_monitor::fleet::reading::GroupReading;
use shepherd_monitor::fleet::watched::WatchedStreams;
use shepherd_monitor::redis_streams::streams_reader::StreamsReader;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run, run_words};
use crate::support::wait::eventually;

const LATER: Duration = Duration::from_secs(120);
/// Passes after which each of the two groups was surveyed.
const TURNS: usize = 12;

fn reader() -> StreamsReader {
    StreamsReader::new(WatchedStreams::default(), &[Name::from("s")])
}

async fn groups(reader: &mut StreamsReader, redis: &mut MultiplexedConnection) -> Vec<GroupReading> {
    let (mut reading, _) = reader.read(redis).await.unwrap();
    reading.streams.remove(&Name::from("s")).unwrap().facts.unwrap().groups
}

/// Returns the pending IDs of a group by consumer, and those without an entry.
async fn counted(redis: &mut MultiplexedConnection, group: &str) -> (u64, Vec<(String, u64)>) {
    let rows: Vec<(String, String, u64, u64)> =
        redis::cmd("XPENDING").arg(&["s", group, "-", "+", "100000"]).query_async(redis).await.unwrap();
    let entries: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg(&["s", "-", "+"]).query_async(redis).await.unwrap();
    let mut by_consumer = std::collections::BTreeMap::new();
    for (id, consumer, ..) in rows.iter().filter(|(id, ..)| !entries.iter().any(|(entry, _)| entry == id)) {
        assert!(!id.is_empty());
        *by_consumer.entry(consumer.clone()).or_default() += 1;
    }
    (by_consumer.values().sum(), by_consumer.into_iter().collect())
}

#[derive(Debug, Clone)]
enum Step {
    Add,
    Read(&'static str, &'static str, u8),
    Acknowledge(&'static str, u8),
    Finish(&'static str, u8),
    Delete(u8),
    Trim(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let group = || prop_oneof![Just("one"), Just("two")];
    let consumer = prop_oneof![Just("c"), Just("d")];
    prop_oneof![
        8 => Just(Step::Add),
        6 => (group(), consumer, 1..4_u8).prop_map(|(group, consumer, n)| Step::Read(group, consumer, n)),
        2 => (group(), 0..6_u8).prop_map(|(group, nth)| Step::Acknowledge(group, nth)),
        3 => (group(), 0..6_u8).prop_map(|(group, nth)| Step::Finish(group, nth)),
        2 => (0..12_u8).prop_map(Step::Delete),
        1 => (0..12_u8).prop_map(Step::Trim),
    ]
}

async fn take(redis: &mut MultiplexedConnection, step: Step) {
    let nth = async |redis: &mut MultiplexedConnection, command: &[&str], nth: u8| -> Option<String> {
        let rows: Vec<Value> = redis::cmd(command[0])
            .arg(&command[1..])
            .query_async::<Vec<Vec<redis::Value>>>(redis)
            .await
            .unwrap()
            .into_iter()
            .map(|row| json!(redis::from_redis_value::<String>(row[0].clone()).unwrap()))
            .collect();
        rows.get(usize::from(nth)).and_then(Value::as_str).map(str::to_owned)
    };
    match step {
        Step::Add => drop(run(redis, "XADD s * f v").await),
        Step::Read(group, consumer, n) => {
            run(redis, &format!("XREADGROUP GROUP {group} {consumer} COUNT {n} STREAMS s >")).await;
        }
        Step::Acknowledge(group, at) => {
            if let Some(id) = nth(redis, &["XPENDING", "s", group, "-", "+", "100"], at).await {
                run(redis, &format!("XACK s {group} {id}")).await;
            }
        }
        Step::Finish(group, at) => {
            if let Some(id) = nth(redis, &["XPENDING", "s", group, "-", "+", "100"], at).await {
                run(redis, &format!("XACK s {group} {id}")).await;
                run(redis, &format!("XDEL s {id}")).await;
            }
        }
        Step::Delete(at) => {
            if let Some(id) = nth(redis, &["XRANGE", "s", "-", "+"], at).await {
                run(redis, &format!("XDEL s {id}")).await;
            }
        }
        Step::Trim(most) => drop(run(redis, &format!("XTRIM s MAXLEN = {most}")).await),
    }
}

/// `PHANTOM_STEPS` is the number of events (600), `PHANTOM_SEED` repeats a run.
#[tokio::test]
async fn survey_finds_exactly_the_phantoms() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let steps = number("PHANTOM_STEPS").unwrap_or(600);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    let seed = number("PHANTOM_SEED").unwrap_or_else(|| u64::try_from(now % 1_000_000).unwrap());
    println!("PHANTOM_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for group in ["one", "two"] {
        run(&mut redis, &format!("XGROUP CREATE s {group} 0 MKSTREAM")).await;
    }
    let mut reader = reader();
    let mut seen = 0;
    for _ in 0..steps / 6 {
        for _ in 0..6 {
            let step = step().new_tree(&mut runner).unwrap().current();
            take(&mut redis, step).await;
        }
        // A count that is reported as exact is exact.
        for group in groups(&mut reader, &mut redis).await {
            let (total, _) = counted(&mut redis, &group.name.to_text()).await;
            let known = group.phantom_pending;
            // A group without signs of phantoms was not surveyed yet.
            assert!(known <= total, "{known} of {total}");
        }
        for _ in 0..TURNS {
            groups(&mut reader, &mut redis).await;
        }
        for group in groups(&mut reader, &mut redis).await {
            let (total, by_consumer) = counted(&mut redis, &group.name.to_text()).await;
            assert_eq!((group.phantom_pending, group.phantom_at_least), (total, false), "{}", group.name);
            let consumers = group.consumers.unwrap();
            let told: Vec<(String, u64)> = consumers
                .iter()
                .filter(|consumer| consumer.phantom_pending > 0)
                .map(|consumer| (consumer.name.to_text(), consumer.phantom_pending))
                .collect();
            assert_eq!(told, by_consumer, "{}", group.name);
            seen += total;
        }
    }
    assert!(seen > steps / 10, "{seen}: nothing was tried");
}

#[tokio::test]
async fn large_counts_start_as_lower_bounds_and_idle_ticks_ask_nothing() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    run(&mut redis, "XGROUP CREATE s consumer 0 MKSTREAM").await;
    for _ in 0..3000 {
        run(&mut redis, "XADD s * f v").await;
    }
    run(&mut redis, "XREADGROUP GROUP consumer c COUNT 3000 STREAMS s >").await;
    // Every other of the first thousand, then all but the last ten.
    let ids: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg(&["s", "-", "+"]).query_async(&mut redis).await.unwrap();
    for (n, (id, _)) in ids.iter().enumerate() {
        if (n < 1000 && n % 2 == 0) || (1000..2990).contains(&n) {
            run(&mut redis, &format!("XDEL s {id}")).await;
        }
    }
    let mut reader = reader();
    let first = groups(&mut reader, &mut redis).await.remove(0);
    assert_eq!((first.phantom_pending, first.phantom_at_least), (2490, true), "by arithmetic, not counted yet");
    let mut passes = 0;
    let exact = loop {
        let group = groups(&mut reader, &mut redis).await.remove(0);
        passes += 1;
        assert_eq!(group.phantom_pending, 2490);
        if !group.phantom_at_least {
            break group;
        }
        assert!(passes < 30);
    };
    assert_eq!(exact.consumers.unwrap()[0].phantom_pending, 2490);
    let evals = async |redis: &mut MultiplexedConnection| -> u64 {
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.unwrap();
        let calls = stats.split("cmdstat_eval:calls=").nth(1).and_then(|rest| rest.split(',').next());
        calls.map_or(0, |calls| calls.parse().unwrap())
    };
    let before = evals(&mut redis).await;
    for _ in 0..20 {
        groups(&mut reader, &mut redis).await;
    }
    assert_eq!(evals(&mut redis).await, before, "nothing changed, so nothing is asked again");
    // Without entries, all pending IDs are phantoms, which is detected at once.
    run(&mut redis, "XTRIM s MAXLEN = 0").await;
    let all = groups(&mut reader, &mut redis).await.remove(0);
    assert_eq!((all.phantom_pending, all.pending), (3000, 3000));
}

async fn post(monitor: &Monitor, path: &str) -> (u16, Value) {
    let answer = reqwest::Client::new().post(monitor.url(path)).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

async fn beat(redis: &mut MultiplexedConnection, stream: &str, consumer: &str, more: &str) {
    let value =
        format!(r#"{{"stream":"{stream}","consumer":"{consumer}","started_at":1,"last_seen":1,"task_limit":4{more}}}"#);
    let key = format!("worker:heartbeat:{stream}:{consumer}");
    run_words(redis, &[b"SET", key.as_bytes(), value.as_bytes(), b"EX", b"15"]).await;
}

#[tokio::test]
async fn phantoms_do_not_count_as_work_until_the_janitor_acknowledges_them() {
    let (server, database) = (TestRedis::start(), TestDatabase::create());
    let mut redis = server.connection().await;
    let now: Vec<String> = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
    run(&mut redis, &format!("SET monitor:janitor:last_pass {}", now[0])).await;
    // `emptied`: five pending IDs in an empty stream. `mixed`: three of five deleted, two in progress. `kept`: a fleet that does
    // not delete finished entries, and one pending entry that was deleted.
    for stream in ["emptied", "mixed", "kept"] {
        run(&mut redis, &format!("XGROUP CREATE {stream} consumer 0 MKSTREAM")).await;
        let mut ids = Vec::new();
        for _ in 0..5 {
            let id = run(&mut redis, &format!("XADD {stream} * f v")).await;
            ids.push(redis::from_redis_value::<String>(id).unwrap());
        }
        run(&mut redis, &format!("XREADGROUP GROUP consumer w COUNT 5 STREAMS {stream} >")).await;
        let (acknowledged, deleted): (&[String], &[String]) = match stream {
            "emptied" => (&[], &ids),
            "mixed" => (&[], &ids[1..4]),
            _ => (&ids[..3], &ids[3..4]),
        };
        for id in acknowledged {
            run(&mut redis, &format!("XACK {stream} consumer {id}")).await;
        }
        for id in deleted {
            run(&mut redis, &format!("XDEL {stream} {id}")).await;
        }
    }
    let keep_beating = {
        let mut redis = server.connection().await;
        tokio::spawn(async move {
            loop {
                // A worker of the library without tasks in flight, and two like those of the older fleet.
                beat(&mut redis, "emptied", "w", r#","in_flight":0,"progress":7"#).await;
                beat(&mut redis, "mixed", "w", "").await;
                beat(&mut redis, "kept", "w", "").await;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        })
    };
    let (redis_url, database_url) = (server.url(), database.url());
    let settings = [
        ("REDIS_URL", redis_url.as_str()),
        ("DATABASE_URL", &database_url),
        ("RECLAIM_MIN_IDLE_SEC", "8"),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ];
    let monitor = Monitor::start(&settings).await;
    let figures = |s: &Value, stream: &str| {
        let (at, workers) = (&s["streams"][stream], &s["workers"][stream]);
        json!([at["pending"], at["phantom_pending"], at["phantom_pending_at_least"], workers["backlog"]])
    };
    let first = monitor.until("a first snapshot", LATER, |s| s["streams"]["emptied"]["pending"] == 5).await;
    assert_eq!(figures(&first, "emptied"), json!([5, 5, false, 0]), "in the first tick already");
    assert_eq!(figures(&first, "mixed"), json!([5, 3, false, 2]));
    let known = monitor.until("all are counted", LATER, |s| figures(s, "kept") == json!([2, 1, false, 1])).await;
    assert_eq!(known["workers"]["emptied"]["consumers"][0]["phantom_pending"], 5);
    assert_eq!(known["streams"]["mixed"]["groups"][0]["phantom_pending"], 3);
    assert_eq!(known["streams"]["mixed"]["consumers"][0]["phantom_pending"], 3);

    // Two of them have work without progress; the first has none.
    let hung = monitor
        .until("those with work hang", LATER, |s| {
            s["workers"]["mixed"]["hung"] == 1 && s["workers"]["kept"]["hung"] == 1
        })
        .await;
    assert_eq!((&hung["workers"]["emptied"]["hung"], &hung["workers"]["emptied"]["alive"]), (&json!(0), &json!(1)));
    let answer = eventually("arrivals are known", LATER, || async {
        let (_, body) = monitor.get("/api/autoscale/emptied?drain_sec=60&service_sec=3&task_limit=1").await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        if answer["unknown"] == json!([]) { Ok(answer) } else { Err(answer) }
    })
    .await;
    assert_eq!((&answer["backlog"], &answer["proposed_replicas"]), (&json!(0), &json!(0)), "{answer}");
    for page in ["/streams/emptied", "/workers/emptied"] {
        let (status, html) = monitor.get(page).await;
        assert_eq!(status, 200, "{page}");
        assert!(html.contains("Phantom pending: 5 pending IDs have no entry in the stream"), "{page}: {html}");
    }
    let (_, metrics) = monitor.get("/metrics").await;
    let line = r#"shepherd_monitor_stream_group_phantom_pending{stream="mixed",group="consumer"} 3"#;
    assert!(metrics.contains(line), "{metrics}");
    monitor.takes_orders().await;
    eventually("it is recorded", LATER, || async {
        let (_, body) = monitor.get("/api/historical/metrics?metric=phantom_pending:emptied").await;
        if body.contains(",5") { Ok(()) } else { Err(body) }
    })
    .await;

    // The library's worker has no tasks in flight, and the others make no check: all phantoms are acknowledged, the work stays.
    let answer = eventually("it is cleaned up", LATER, || async {
        match post(&monitor, "/api/admin/cleanup").await {
            (200, answer) => Ok(answer),
            (status, answer) => Err(format!("{status}: {answer}")),
        }
    })
    .await;
    let acknowledged = json!({"acknowledged": 9, "kept": 0, "by_stream": {"emptied": 5, "kept": 1, "mixed": 3}});
    assert_eq!(answer["phantom_pending"], acknowledged, "{answer}");
    for (stream, left) in [("emptied", 0), ("mixed", 2), ("kept", 1)] {
        let rows: Vec<redis::Value> =
            redis::cmd("XPENDING").arg(&[stream, "consumer", "-", "+", "10"]).query_async(&mut redis).await.unwrap();
        assert_eq!(rows.len(), left, "{stream}");
    }
    let clean = monitor.until("none is left", LATER, |s| figures(s, "kept") == json!([1, 0, false, 1])).await;
    assert_eq!(figures(&clean, "emptied"), json!([0, 0, false, 0]));
    let flapped = |event: &Value| {
        event["worker"] == "emptied" && event["type"].as_str().is_some_and(|of| of.starts_with("consumer_"))
    };
    assert!(!monitor.events().await.iter().any(flapped), "nobody hung or recovered there");
    keep_beating.abort();
}
