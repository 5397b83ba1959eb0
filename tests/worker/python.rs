//! Rust and Python workers in one group. The Python worker implements only the documented protocol.

use std::collections::HashSet;
use std::time::Duration;

use redis::Value;
use shepherd_monitor::worker::Answer;

use super::*;
use crate::support::python::Python;

const WORKER: &str = include_str!("../python/worker.py");

fn python(server: &TestRedis, stream: &str, work_seconds: &str, floor_seconds: &str) -> Python {
    Python::start(WORKER, &[&server.port().to_string(), stream, work_seconds, floor_seconds])
}

async fn name_of(python: &Python) -> String {
    eventually("the Python worker says its name", PATIENCE, || async {
        let printed = python.printed();
        printed.lines().find_map(|line| line.strip_prefix("consumer ").map(str::to_owned)).ok_or(printed)
    })
    .await
}

#[tokio::test]
async fn rust_and_python_workers_share_the_tasks_of_a_group() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let python = python(&server, "a", "0.002", "60");
    name_of(&python).await;
    let calls = Calls::default();
    let rust = Running::start(quick(&server, "a").task_limit(2), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok(Answer::forward())
            }
        }
    });
    for n in 0..300 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    reaches(&redis, "b", 300).await;
    rust.leave().await;
    let by_python = python.printed().lines().filter(|line| line.starts_with("done")).count();
    assert!(by_python > 0 && !calls.tasks().is_empty(), "all went to one of the two");
    let forwarded = queries(&mut redis, "b").await;
    assert_eq!(forwarded.iter().collect::<HashSet<_>>().len(), 300);
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (0, 0));
    // Tasks of either worker can be read by the other.
    for (_, fields) in entries(&mut redis, "b").await {
        let left: serde_json::Value = serde_json::from_str(field(&fields, "workflow")).unwrap();
        assert_eq!(left, serde_json::json!([{"id": "b"}]));
    }
}

#[tokio::test]
async fn a_rust_worker_reclaims_tasks_of_a_killed_python_worker() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let python = python(&server, "a", "600", "60");
    let name = name_of(&python).await;
    for n in 0..4 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    eventually("Python runs all four", PATIENCE, || async {
        python.printed().lines().filter(|line| line.starts_with("start")).count() == 4
    })
    .await;
    let rust = Running::start(quick(&server, "a").task_limit(4), done);
    // The heartbeat protects the tasks regardless of their idle time.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((length(&mut redis, "b").await, pending(&mut redis, "a").await), (0, 4));
    python.send("KILL");
    let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{name}"));
    reaches(&redis, "b", 4).await;
    rust.leave().await;
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (0, 0));
}

#[tokio::test]
async fn a_python_worker_reclaims_tasks_of_a_crashed_rust_worker() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let calls = Calls::default();
    let rust = Running::start(quick(&server, "a").task_limit(3), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            std::future::pending()
        }
    });
    for n in 0..3 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    eventually("Rust runs all three", PATIENCE, || async { calls.tasks().len() == 3 }).await;
    let python = python(&server, "a", "0", "0.5");
    name_of(&python).await;
    // Heartbeat and lease protect the tasks.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!((length(&mut redis, "b").await, pending(&mut redis, "a").await), (0, 3));
    let name = calls.tasks()[0].fence().consumer.to_text();
    rust.crash().await;
    let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{name}"));
    reaches(&redis, "b", 3).await;
    let reclaimed = python.printed().lines().filter(|line| line.ends_with(&format!("from {name}"))).count();
    assert_eq!((reclaimed, length(&mut redis, "a").await, pending(&mut redis, "a").await), (3, 0, 0));
    python.send("TERM");
    eventually("Python leaves", PATIENCE, || async { !python.is_running() }).await;
}

#[tokio::test]
async fn tasks_reclaimed_by_python_are_not_changed() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let (go, calls) = (std::sync::Arc::new(tokio::sync::Notify::new()), Calls::default());
    // A lease too long to be renewed in this test, as if the process had been stopped.
    let builder = quick(&server, "a").reclaim_min_idle(Duration::from_secs(600)).lease(Duration::from_secs(600));
    let rust = Running::start(builder, {
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
    add(&mut redis, "q", &["a", "b"]).await;
    eventually("Rust runs it", PATIENCE, || async { calls.tasks().len() == 1 }).await;
    let name = calls.tasks()[0].fence().consumer.to_text();
    let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{name}"));
    let python = python(&server, "a", "600", "0.3");
    eventually("Python has it", PATIENCE, || async { python.printed().contains("reclaimed") }).await;
    go.notify_one();
    rust.leave().await;
    assert_eq!((length(&mut redis, "b").await, held(&mut redis, "a").await[0].deliveries), (0, 2));
}
