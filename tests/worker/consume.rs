//! Reading entries, task slots, heartbeats, and Redis servers that are unavailable or unusable.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use redis::Value;
use shepherd_monitor::worker::{Answer, TaskError, Worker, Workflow};
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_task_follows_its_workflow_and_is_deleted_from_each_stream() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..50 {
        let through = workflow(&["a", "b"]);
        let fields = [("query_id", format!("q{n}")), ("workflow", through), ("else", "kept".to_owned())];
        let fields: Vec<(&str, &str)> = fields.iter().map(|(k, v)| (*k, v.as_str())).collect();
        add_fields(&mut redis, "a", &fields).await;
    }
    let first = Running::start(quick(&server, "a").task_limit(7), done);
    let second =
        Running::start(quick(&server, "b").task_limit(7), |_| async { Ok(Answer::forward().set("extra", "1")) });
    reaches(&redis, "finish_query", 50).await;
    assert_eq!((first.leave().await.in_flight, second.leave().await.in_flight), (0, 0));

    let mut finished = queries(&mut redis, "finish_query").await;
    finished.sort_by_key(|query| query[1..].parse::<u32>().unwrap());
    assert_eq!(finished, (0..50).map(|n| format!("q{n}")).collect::<Vec<_>>());
    for (_, fields) in entries(&mut redis, "finish_query").await {
        assert_eq!((field(&fields, "else"), field(&fields, "extra"), field(&fields, "workflow")), ("kept", "1", "[]"));
    }
    assert_eq!((length(&mut redis, "a").await, length(&mut redis, "b").await), (0, 0));
    assert_eq!((pending(&mut redis, "a").await, pending(&mut redis, "b").await), (0, 0));
    let durations: Vec<u64> = ask!(redis, "LRANGE", "monitor:task_durations:a", 0, -1);
    assert_eq!(durations.len(), 50);
    let left_over: Vec<String> = ask!(redis, "KEYS", "worker:deliveries:*");
    assert_eq!(left_over, Vec::<String>::new());
}

#[tokio::test]
async fn a_worker_without_tasks_is_listed_in_its_group() {
    let server = TestRedis::start();
    let redis = server.connection().await;
    let worker = Running::start(quick(&server, "a"), done);
    eventually("the group lists it", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let mut ask = redis::cmd("XINFO");
            let listed: redis::RedisResult<Vec<Value>> =
                ask.arg("CONSUMERS").arg("a").arg("consumer").query_async(&mut redis).await;
            listed.is_ok_and(|consumers| consumers.len() == 1)
        }
    })
    .await;
    worker.leave().await;
}

#[tokio::test]
async fn a_handler_can_replace_the_workflow() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["entry", "never"]).await;
    let worker = Running::start(quick(&server, "entry"), |_| async {
        Ok(Answer::forward().workflow(Workflow::through(["entry", "x", "y"])))
    });
    reaches(&redis, "x", 1).await;
    assert_eq!(field(&entries(&mut redis, "x").await[0].1, "workflow"), r#"[{"id":"x"},{"id":"y"}]"#);
    worker.leave().await;
}

#[tokio::test]
async fn no_more_tasks_are_in_flight_than_slots() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let (gate, now, most) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = Running::start(quick(&server, "a").task_limit(3), {
        let (gate, now, most) = (gate.clone(), now.clone(), most.clone());
        move |_| {
            let (gate, now, most) = (gate.clone(), now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                gate.acquire().await?.forget();
                now.fetch_sub(1, SeqCst);
                Ok(Answer::forward())
            }
        }
    });
    for n in 0..20 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    for _ in 0..20 {
        eventually("three tasks run, or all that are left", PATIENCE, || async { now.load(SeqCst) == 3 }).await;
        assert_eq!(pending(&mut redis, "a").await, 3);
        if length(&mut redis, "a").await == 3 {
            break;
        }
        let before = length(&mut redis, "a").await;
        gate.add_permits(1);
        reaches(&redis, "a", before - 1).await;
    }
    gate.add_permits(3);
    reaches(&redis, "finish_query", 20).await;
    assert_eq!(most.load(SeqCst), 3);
    worker.leave().await;
}

#[tokio::test]
async fn the_heartbeat_precedes_the_first_task_and_reports_running_tasks() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let (calls, go) = (Calls::default(), Arc::new(Notify::new()));
    let beats = {
        let (calls, go, url) = (calls.clone(), go.clone(), server.url());
        Running::start(quick(&server, "a").task_limit(4), move |task| {
            let (calls, go, url) = (calls.clone(), go.clone(), url.clone());
            async move {
                let mut redis = crate::support::redis::connection(&url, PATIENCE).await?;
                let keys: Vec<String> = redis::cmd("KEYS").arg("worker:heartbeat:a:*").query_async(&mut redis).await?;
                if keys.len() != 1 {
                    return Err(TaskError::new("no heartbeat before the first task"));
                }
                calls.note(&task);
                go.notified().await;
                Ok(Answer::forward())
            }
        })
    };
    eventually("the task runs", PATIENCE, || async { calls.tasks().len() == 1 }).await;
    let consumer = calls.tasks()[0].fence().consumer.to_text();
    assert!(consumer.len() == 8 && consumer.bytes().all(|b| b.is_ascii_hexdigit()), "{consumer}");
    let key = format!("worker:heartbeat:a:{consumer}");
    let json: String = ask!(redis, "GET", &key);
    let beat = shepherd_monitor::contract::Heartbeat::parse(key.as_bytes(), json.as_bytes()).unwrap();
    assert_eq!((beat.task_limit, beat.draining), (4, false));
    let ttl: u64 = ask!(redis, "PTTL", &key);
    assert!((1..=15_000).contains(&ttl), "{ttl}");
    go.notify_one();
    beats.leave().await;
    let marker: String = ask!(redis, "GET", format!("worker:shutdown:a:{consumer}"));
    assert!(marker.contains(r#""signum":15"#) && marker.contains(r#""in_flight":0"#), "{marker}");
    let heartbeat: Option<String> = ask!(redis, "GET", &key);
    assert_eq!(heartbeat, None);
}

#[tokio::test]
async fn a_worker_waits_for_redis_at_startup() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    proxy.cut();
    let worker = quick(&server, "a").redis_url(server.url_through(proxy.port()));
    let worker = Running::start(worker, done);
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    proxy.pass();
    reaches(&redis, "finish_query", 1).await;
    worker.leave().await;
}

#[tokio::test]
async fn a_worker_recreates_a_deleted_stream() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let worker = Running::start(quick(&server, "a"), done);
    for round in 1..=3 {
        add(&mut redis, "q", &["a"]).await;
        reaches(&redis, "finish_query", round).await;
        let _: Value = ask!(redis, "DEL", "a");
    }
    let _: Value = ask!(redis, "FLUSHALL");
    add(&mut redis, "q", &["a"]).await;
    reaches(&redis, "finish_query", 1).await;
    worker.leave().await;
}

#[tokio::test]
async fn an_unusable_redis_returns_a_descriptive_error() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "text", "x");
    let error = quick(&server, "text").run_until(std::future::pending(), done).await.unwrap_err().to_string();
    assert!(error.contains("the key with that name is not a stream") && error.contains("text"), "{error}");

    let _: Value = ask!(redis, "ACL", "SETUSER", "poor", "on", ">x", "~*", "+@all", "-@scripting");
    let url = format!("redis://poor:x@127.0.0.1:{}/", server.port());
    let error = quick(&server, "a").redis_url(url).run_until(std::future::pending(), done).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("script") && error.contains("NOPERM") && !error.contains(":x@"), "{error}");

    let url = format!("redis://nobody:x@127.0.0.1:{}/", server.port());
    let error = quick(&server, "a").redis_url(url).run_until(std::future::pending(), done).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("password"), "{error}");
}

#[tokio::test]
async fn nothing_is_read_while_the_next_stream_is_too_long() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..20 {
        add(&mut redis, &format!("old{n}"), &["b"]).await;
    }
    for n in 0..5 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    let worker = Running::start(quick(&server, "a").task_limit(1).back_off_above(10), done);
    // The worker learns the destination stream from its first task.
    reaches(&redis, "b", 21).await;
    // Longer than several measurements of the stream length.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (4, 0));
    let _: Value = ask!(redis, "XTRIM", "b", "MAXLEN", 0);
    reaches(&redis, "b", 4).await;
    worker.leave().await;
}

#[tokio::test]
async fn settings_are_read_from_the_environment_by_default() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let port = server.port().to_string();
    let builder = Worker::builder("a").unwrap().environment(move |name| match name {
        "REDIS_HOST" => Some("127.0.0.1".to_owned()),
        "REDIS_PORT" => Some(port.clone()),
        "TASK_LIMIT" => Some("9".to_owned()),
        _ => None,
    });
    let worker = Running::start(builder, done);
    reaches(&redis, "finish_query", 1).await;
    let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
    let json: String = ask!(redis, "GET", &keys[0]);
    assert!(json.contains(r#""task_limit":9"#), "{json}");
    worker.leave().await;
}

/// Returns the COUNT of every read that Redis receives during `work`.
async fn counts_of_reads(server: &TestRedis, work: impl Future<Output = ()>) -> Vec<usize> {
    let mut monitor = redis::Client::open(server.url()).unwrap().get_async_monitor().await.unwrap();
    let mut commands = monitor.on_message::<String>();
    let mut counts = Vec::new();
    let mut work = std::pin::pin!(work);
    loop {
        let line = tokio::select! {
            line = futures_util::StreamExt::next(&mut commands) => line.unwrap(),
            () = &mut work => return counts,
        };
        if line.contains("\"XREADGROUP\"") {
            let count = line.split("\"COUNT\" \"").nth(1).unwrap().split('"').next().unwrap();
            counts.push(count.parse().unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_never_exceed_the_free_slots() {
    for limit in [1, 3, 12, 40] {
        let server = TestRedis::start();
        let mut redis = server.connection().await;
        for n in 0..400 {
            add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
        }
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let worker = quick(&server, "a").task_limit(limit);
        let held = Arc::new(AtomicUsize::new(0));
        let work = async {
            let worker = Running::start(worker, {
                let (now, most) = (now.clone(), most.clone());
                move |task: Task| {
                    let (now, most) = (now.clone(), most.clone());
                    async move {
                        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                        let number: u64 = task.query_id().unwrap()[1..].parse()?;
                        tokio::time::sleep(Duration::from_millis(number % 3)).await;
                        now.fetch_sub(1, SeqCst);
                        Ok(Answer::forward())
                    }
                }
            });
            let looking = tokio::spawn({
                let (mut redis, held) = (redis.clone(), held.clone());
                async move {
                    loop {
                        held.fetch_max(pending(&mut redis, "a").await, SeqCst);
                    }
                }
            });
            reaches(&redis, "b", 400).await;
            looking.abort();
            worker.leave().await;
        };
        let counts = counts_of_reads(&server, work).await;
        assert!(counts.iter().all(|count| (1..=limit).contains(count)), "limit {limit}: {counts:?}");
        assert!(limit == 1 || counts.iter().any(|count| *count > 1), "limit {limit}: {counts:?}");
        assert!(most.load(SeqCst) <= limit, "{} ran with a limit of {limit}", most.load(SeqCst));
        assert!(held.load(SeqCst) <= limit, "{} were held with a limit of {limit}", held.load(SeqCst));
    }
}

#[tokio::test]
async fn an_idle_worker_keeps_its_connections_and_starts_tasks_immediately() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let builder = quick(&server, "a").redis_url(server.url_through(proxy.port()));
    let worker = Running::start(builder.reclaim_interval(Duration::from_secs(60)), done);
    add(&mut redis, "first", &["a"]).await;
    reaches(&redis, "finish_query", 1).await;
    // Let the worker enter its blocking read.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = proxy.connections();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(proxy.connections(), before, "a blocking read that ended in good order cost a connection");
    let added = std::time::Instant::now();
    add(&mut redis, "second", &["a"]).await;
    reaches(&redis, "finish_query", 2).await;
    assert!(added.elapsed() < Duration::from_secs(2), "it took {:?}", added.elapsed());
    worker.leave().await;
}

#[tokio::test]
async fn the_heartbeat_distinguishes_busy_from_hung_workers() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..2 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let calls = Calls::default();
    let worker = Running::start(quick(&server, "a").task_limit(4).drain_timeout(Duration::ZERO), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            std::future::pending()
        }
    });
    let beat = |wanted: &'static str, holds: fn(&serde_json::Value, u64) -> bool, than: u64| {
        let redis = redis.clone();
        eventually(wanted, PATIENCE, move || {
            let mut redis = redis.clone();
            async move {
                let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
                let json: Option<String> = match keys.first() {
                    Some(key) => ask!(redis, "GET", key),
                    None => None,
                };
                let beat: serde_json::Value = serde_json::from_str(&json?).unwrap();
                holds(&beat, than).then_some(beat)
            }
        })
    };
    let busy = beat("it tells of both tasks", |beat, _| beat["in_flight"] == 2, 0).await;
    // Heartbeats continue while the progress counter does not change.
    let written = |beat: &serde_json::Value| beat["last_seen"].as_f64().unwrap() as u64;
    let hung =
        beat("it beats again", |beat, than| beat["last_seen"].as_f64().unwrap() as u64 > than, written(&busy)).await;
    assert_eq!((&hung["in_flight"], &hung["progress"]), (&busy["in_flight"], &busy["progress"]));
    calls.tasks()[0].progress();
    let before = busy["progress"].as_u64().unwrap();
    beat("it tells that something moved", |beat, than| beat["progress"].as_u64().unwrap() > than, before).await;
    assert_eq!(worker.leave().await.in_flight, 2);
}
