//! Workers and producers whose Redis fails over behind one name: the demoted primary stays up, as a replica.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shepherd_monitor::redis_streams::tasks::{Address, Link, SharedLink};
use tokio::sync::Semaphore;

use super::*;
use crate::support::proxy::Proxy;
use crate::support::redis::run;

#[tokio::test]
async fn after_a_failover_workers_go_on_with_the_new_primary_and_no_task_is_lost() {
    let (old, new) = (TestRedis::start(), TestRedis::start());
    let mut replica = new.connection().await;
    run(&mut replica, &format!("REPLICAOF 127.0.0.1 {}", old.port())).await;
    let name = Proxy::to(old.port());
    let url = format!("redis://127.0.0.1:{}/", name.port());
    let mut redis = old.connection().await;
    for n in 0..10 {
        add(&mut redis, &format!("before{n}"), &["a"]).await;
    }
    let gate = Arc::new(Semaphore::new(0));
    let (held, seen) = (Arc::clone(&gate), Calls::default());
    let noted = seen.clone();
    let worker = Running::start(quick(&old, "a").redis_url(url).task_limit(3), move |task| {
        let (held, noted) = (Arc::clone(&held), noted.clone());
        async move {
            noted.note(&task);
            held.acquire().await.unwrap().forget();
            Ok(Answer::forward())
        }
    });
    eventually("three are at work", PATIENCE, || async { seen.tasks().len() == 3 }).await;
    fail_over(&mut redis, &new, &name).await;
    let began = Instant::now();
    for n in 0..10 {
        add(&mut replica, &format!("after{n}"), &["a"]).await;
    }
    gate.add_permits(1000);
    reaches(&replica, "finish_query", 20).await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let mut finished = queries(&mut replica, "finish_query").await;
    finished.sort();
    let mut expected: Vec<String> = (0..10).flat_map(|n| [format!("before{n}"), format!("after{n}")]).collect();
    expected.sort();
    assert_eq!(finished, expected);
    assert_eq!(worker.leave().await.in_flight, 0);
}

/// The replica, which has all of `redis` by then, becomes its primary, and new connections lead to it.
async fn fail_over(redis: &mut MultiplexedConnection, new: &TestRedis, name: &Proxy) {
    run(redis, &format!("WAIT 1 {}", PATIENCE.as_millis())).await;
    run(&mut new.connection().await, "REPLICAOF NO ONE").await;
    run(redis, &format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    name.lead_to(new.port());
}

#[tokio::test]
async fn no_idle_connection_of_a_worker_stays_with_the_demoted_primary() {
    let (old, new) = (TestRedis::start(), TestRedis::start());
    run(&mut new.connection().await, &format!("REPLICAOF 127.0.0.1 {}", old.port())).await;
    let name = Proxy::to(old.port());
    let url = format!("redis://127.0.0.1:{}/", name.port());
    let mut redis = old.connection().await;
    for n in 0..8 {
        add(&mut redis, &format!("before{n}"), &["a"]).await;
    }
    let (gate, calls) = (Arc::new(Semaphore::new(0)), Calls::default());
    let (waits, noted) = (Arc::clone(&gate), calls.clone());
    let worker = Running::start(quick(&old, "a").redis_url(url).task_limit(8), move |task| {
        let (waits, noted) = (Arc::clone(&waits), noted.clone());
        async move {
            noted.note(&task);
            waits.acquire().await.unwrap().forget();
            Ok(Answer::forward())
        }
    });
    eventually("all are at work", PATIENCE, || async { calls.tasks().len() == 8 }).await;
    // While the reply to one batch is under way, another one is sent over a connection that is idle afterwards.
    name.delay(Duration::ZERO, Duration::from_millis(300));
    gate.add_permits(1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.add_permits(7);
    reaches(&redis, "finish_query", 8).await;
    name.pass();
    gate.add_permits(1000);
    fail_over(&mut redis, &new, &name).await;
    let mut primary = new.connection().await;
    for n in 0..5 {
        add(&mut primary, &format!("after{n}"), &["a"]).await;
        reaches(&primary, "finish_query", 9 + n).await;
    }
    eventually("no connection of the worker stays", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let clients: String = ask!(redis, "CLIENT", "LIST", "TYPE", "normal");
            if clients.lines().count() == 1 { Ok(()) } else { Err(clients) }
        }
    })
    .await;
    assert_eq!(worker.leave().await.in_flight, 0);
}

#[tokio::test]
async fn a_connection_that_only_reads_leaves_the_demoted_primary_once_another_is_refused_a_write() {
    let (old, new) = (TestRedis::start(), TestRedis::start());
    run(&mut new.connection().await, &format!("REPLICAOF 127.0.0.1 {}", old.port())).await;
    let name = Proxy::to(old.port());
    let address = Address::from_url("url", &format!("redis://127.0.0.1:{}/", name.port())).unwrap();
    let reader = SharedLink::new(address.clone(), PATIENCE);
    let mut writer = Link::new(address, PATIENCE);
    let mut redis = old.connection().await;
    run(&mut redis, "SET k old").await;
    let mut get = redis::pipe();
    get.cmd("GET").arg("k");
    assert_eq!(reader.one(&mut get).await.unwrap(), Value::BulkString(b"old".into()));
    let mut set = redis::pipe();
    set.cmd("SET").arg("other").arg("v");
    writer.one(&mut set).await.unwrap();
    fail_over(&mut redis, &new, &name).await;
    // The demoted primary has lost its new one, and goes on to answer what it had.
    run(&mut redis, "REPLICAOF 127.0.0.1 1").await;
    run(&mut new.connection().await, "SET k new").await;
    assert_eq!(writer.one(&mut set).await.unwrap_err().code(), "READONLY");
    assert_eq!(reader.one(&mut get).await.unwrap(), Value::BulkString(b"new".into()));
}
