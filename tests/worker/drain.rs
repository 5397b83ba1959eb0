//! Graceful shutdown: SIGTERM, completed and released tasks, the shutdown marker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use shepherd_monitor::worker::Answer;
use tokio::sync::Notify;

use super::process::WorkerProcess;
use super::*;
use crate::support::proxy::Proxy;

/// Waits for the only shutdown marker of a stream.
async fn marker(redis: &MultiplexedConnection, stream: &str) -> serde_json::Value {
    eventually("a marker is left", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let keys: Vec<String> = ask!(redis, "KEYS", format!("worker:shutdown:{stream}:*"));
            let json: Option<String> = match keys.first() {
                Some(key) => ask!(redis, "GET", key),
                None => None,
            };
            json.map(|json| serde_json::from_str(&json).unwrap())
        }
    })
    .await
}

async fn running(redis: &MultiplexedConnection, stream: &str, count: usize) {
    eventually(&format!("{count} tasks run"), PATIENCE, || {
        let mut redis = redis.clone();
        async move { pending(&mut redis, stream).await == count }
    })
    .await;
}

#[tokio::test]
async fn sigterm_finishes_running_tasks_takes_no_new_ones_and_exits() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let worker = WorkerProcess::start(&server.url(), "a", &[("TASK_LIMIT", "3"), ("TEST_WORK_MS", "1500")]);
    for n in 0..3 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    running(&redis, "a", 3).await;
    worker.send("TERM");
    eventually("it says that it is draining", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
            let json: String = ask!(redis, "GET", &keys[0]);
            json.contains(r#""draining":true"#)
        }
    })
    .await;
    for n in 3..6 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    eventually("it ends", PATIENCE, || async { !worker.is_running() }).await;
    assert!(worker.printed().contains("returned Ok(Left { in_flight: 0, running: 0 })"), "{}", worker.printed());
    assert_eq!((queries(&mut redis, "finish_query").await.len(), pending(&mut redis, "a").await), (3, 0));
    assert_eq!(length(&mut redis, "a").await, 3);
    let marker = marker(&redis, "a").await;
    assert_eq!((&marker["signum"], &marker["in_flight"]), (&15.into(), &0.into()));
    let beats: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
    assert_eq!(beats, Vec::<String>::new());
}

#[tokio::test]
async fn the_marker_counts_tasks_unfinished_after_the_drain_timeout() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for blocks in [false, true] {
        let _: Value = ask!(redis, "FLUSHALL");
        let mut settings = vec![("TASK_LIMIT", "2"), ("TEST_WORK_MS", "60000"), ("WORKER_DRAIN_TIMEOUT_SEC", "0.3")];
        if blocks {
            settings.push(("TEST_BLOCKS", "1"));
        }
        let worker = WorkerProcess::start(&server.url(), "a", &settings);
        for n in 0..2 {
            add(&mut redis, &format!("q{n}"), &["a"]).await;
        }
        running(&redis, "a", 2).await;
        let signalled = Instant::now();
        worker.send("TERM");
        let marker = marker(&redis, "a").await;
        eventually("it ends", PATIENCE, || async { !worker.is_running() }).await;
        assert!(signalled.elapsed() < Duration::from_secs(10), "blocks: {blocks}, took {:?}", signalled.elapsed());
        assert_eq!(marker["in_flight"], 2);
        assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (2, 2));
    }
}

#[tokio::test]
async fn unfinished_tasks_are_available_before_the_reclaim_threshold() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a", "b"]).await;
    let slow = quick(&server, "a").reclaim_min_idle(PATIENCE * 10).drain_timeout(Duration::from_millis(50));
    let worker = Running::start(slow, |_| std::future::pending());
    running(&redis, "a", 1).await;
    assert_eq!(worker.leave().await, Left { in_flight: 1, running: 0 });
    let next = Running::start(quick(&server, "a").reclaim_min_idle(PATIENCE * 10), done);
    reaches(&redis, "b", 1).await;
    next.leave().await;
}

#[tokio::test]
async fn workers_of_one_process_shut_down_together_with_a_marker_each() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for (work, blocks) in [("10", false), ("60000", true)] {
        let _: Value = ask!(redis, "FLUSHALL");
        let mut settings = vec![("TEST_WORK_MS", work), ("WORKER_DRAIN_TIMEOUT_SEC", "0.5")];
        if blocks {
            settings.push(("TEST_BLOCKS", "1"));
        }
        let worker = WorkerProcess::start(&server.url(), "a,b,c", &settings);
        eventually("all three are present", PATIENCE, || {
            let mut redis = redis.clone();
            async move {
                let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:*");
                keys.len() == 3
            }
        })
        .await;
        add(&mut redis, "q", &["a"]).await;
        match blocks {
            true => running(&redis, "a", 1).await,
            false => reaches(&redis, "finish_query", 1).await,
        }
        worker.send("TERM");
        eventually("it ends", PATIENCE, || async { !worker.is_running() }).await;
        for stream in ["a", "b", "c"] {
            let marker = marker(&redis, stream).await;
            assert_eq!(marker["in_flight"], u8::from(blocks && stream == "a"), "{stream}");
        }
    }
}

#[tokio::test]
async fn a_second_signal_exits_the_process_immediately() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let worker = WorkerProcess::start(&server.url(), "a", &[("TEST_WORK_MS", "60000")]);
    add(&mut redis, "q", &["a"]).await;
    running(&redis, "a", 1).await;
    worker.send("TERM");
    eventually("it has heard", PATIENCE, || async { worker.printed().contains("shutting down: taking no new tasks") })
        .await;
    assert!(worker.is_running());
    worker.send("INT");
    eventually("it ends", Duration::from_secs(3), || async { !worker.is_running() }).await;
    assert!(!worker.printed().contains("returned"));
}

#[tokio::test]
async fn a_draining_worker_reclaims_nothing() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let go = Arc::new(Notify::new());
    let worker = Running::start(quick(&server, "a").task_limit(5), {
        let go = go.clone();
        move |_| {
            let go = go.clone();
            async move {
                go.notified().await;
                Ok(Answer::forward())
            }
        }
    });
    add(&mut redis, "q", &["a", "b"]).await;
    running(&redis, "a", 1).await;
    let leaving = tokio::spawn(worker.leave());
    eventually("it drains", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
            let json: String = ask!(redis, "GET", &keys[0]);
            json.contains(r#""draining":true"#)
        }
    })
    .await;
    add(&mut redis, "orphan", &["a", "b"]).await;
    let ids = taken_by(&mut redis, "dead", "a", 1).await;
    idle_for(&mut redis, "dead", "a", &ids, Duration::from_secs(600)).await;
    // Longer than several sweeps of a worker that is not shutting down.
    tokio::time::sleep(Duration::from_millis(500)).await;
    go.notify_one();
    assert_eq!(leaving.await.unwrap().in_flight, 0);
    assert_eq!((queries(&mut redis, "b").await, pending(&mut redis, "a").await), (vec!["q".to_owned()], 1));
}

#[tokio::test]
async fn entries_that_arrive_during_shutdown_are_released_unstarted_and_uncounted() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let (go, calls) = (Arc::new(Notify::new()), Calls::default());
    let builder = quick(&server, "a").task_limit(2).redis_url(server.url_through(proxy.port()));
    let worker = Running::start(builder.reclaim_interval(Duration::from_secs(60)), {
        let (go, calls) = (go.clone(), calls.clone());
        move |task| {
            let (go, calls) = (go.clone(), calls.clone());
            async move {
                calls.note(&task);
                go.notified().await;
                Ok(Answer::forward())
            }
        }
    });
    for n in 0..5 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    eventually("two run", PATIENCE, || async { calls.tasks().len() == 2 }).await;
    // Delay the reply that contains the next tasks, so that the shutdown starts in the meantime.
    proxy.delay(Duration::ZERO, Duration::from_secs(1));
    go.notify_waiters();
    reaches(&redis, "b", 2).await;
    let taken = pending(&mut redis, "a").await;
    assert!(taken > 0, "the worker asked for no new tasks");
    let left = worker.leave().await;
    assert_eq!((left.in_flight, calls.tasks().len()), (0, 2), "nothing new was started");
    let rows = held(&mut redis, "a").await;
    assert_eq!(rows.len(), taken);
    assert!(rows.iter().all(|row| row.deliveries == 0 && row.idle_ms >= 300), "{rows:?}");
    let marker = marker(&redis, "a").await;
    assert_eq!(marker["in_flight"], 0);
    // Released entries are available to other workers immediately.
    let next = Running::start(quick(&server, "a"), done);
    reaches(&redis, "b", 5).await;
    next.leave().await;
}

#[test]
fn the_exit_code_is_0_only_after_a_graceful_shutdown() {
    use std::process::{Command, Stdio};
    let server = TestRedis::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut redis = server.connection().await;
        for (work_ms, signals, code) in
            [("300", &["TERM"][..], 0), ("60000", &["TERM"], 0), ("60000", &["TERM", "INT"], 130)]
        {
            let _: Value = ask!(redis, "FLUSHALL");
            let drain = if signals.len() > 1 { "60" } else { "1" };
            let mut worker = Command::new(std::env::current_exe().unwrap())
                .args(["worker::process::worker_process", "--exact", "--ignored", "--nocapture"])
                .envs([("REDIS_URL", &*server.url()), ("TEST_STREAM", "a"), ("TEST_WORK_MS", work_ms)])
                .env("WORKER_DRAIN_TIMEOUT_SEC", drain)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            add(&mut redis, "q", &["a"]).await;
            running(&redis, "a", 1).await;
            for signal in signals {
                let sent = Command::new("kill").args(["-s", signal, &worker.id().to_string()]).status().unwrap();
                assert!(sent.success());
                eventually("it has heard", PATIENCE, || {
                    let mut redis = redis.clone();
                    async move {
                        let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
                        let json: Option<String> = match keys.first() {
                            Some(key) => ask!(redis, "GET", key),
                            None => return true,
                        };
                        json.is_none_or(|json| json.contains(r#""draining":true"#))
                    }
                })
                .await;
            }
            let ended = eventually("it ends", PATIENCE, || {
                let status = worker.try_wait().unwrap();
                async move { status }
            })
            .await;
            assert_eq!(ended.code(), Some(code), "{work_ms} {signals:?}");
        }
    });
}
