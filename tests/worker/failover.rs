//! Workers and producers whose Redis fails over behind one name: the demoted primary stays up, as a replica.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    // All of it has arrived at the replica.
    let waiting: i64 = redis::cmd("WAIT").arg(1).arg(10_000).query_async(&mut redis).await.unwrap();
    assert_eq!(waiting, 1);
    run(&mut replica, "REPLICAOF NO ONE").await;
    run(&mut redis, &format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    name.lead_to(new.port());
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
