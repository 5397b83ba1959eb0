//! Fault test of complete workers: crashes, closed and silent connections, a Redis that is stopped or out of memory.
//! Afterwards every task must have been completed once and within a time limit.
//!
//! `STORM_CASES` sets the number of runs (default 16), `STORM_SEED` repeats a run.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use redis::Value;
use shepherd_monitor::worker::{Answer, TaskError};

use super::chaos::Dice;
use super::*;
use crate::support::proxy::Proxy;

const TASKS: usize = 60;
const FLOOR: Duration = Duration::from_millis(300);
const SWEEP: Duration = Duration::from_millis(100);
const WORK: Duration = Duration::from_millis(60);
/// Time limit after the last fault: reclaim threshold, sweep and run time, with a margin for reconnecting and busy
/// machines.
const RECOVERY_LIMIT: Duration = Duration::from_secs(8);

struct Node {
    proxy: Proxy,
    worker: Running,
    consumer: String,
}

impl Node {
    async fn start(server: &TestRedis, redis: &MultiplexedConnection, known: &mut HashSet<String>) -> Self {
        let proxy = Proxy::to(server.port());
        let (worker, consumer) = Self::start_worker(server, &proxy, redis, known).await;
        Self { proxy, worker, consumer }
    }

    /// Replaces the worker with a new one.
    async fn replace(
        &mut self,
        server: &TestRedis,
        redis: &MultiplexedConnection,
        known: &mut HashSet<String>,
    ) -> Running {
        let (worker, consumer) = Self::start_worker(server, &self.proxy, redis, known).await;
        self.consumer = consumer;
        std::mem::replace(&mut self.worker, worker)
    }

    /// Starts a worker and returns it with its consumer name.
    async fn start_worker(
        server: &TestRedis,
        proxy: &Proxy,
        redis: &MultiplexedConnection,
        known: &mut HashSet<String>,
    ) -> (Running, String) {
        // With a low task limit one batch is in flight at a time, with a higher one two.
        let limit = if known.len().is_multiple_of(2) { 4 } else { 12 };
        let builder = quick(server, "a").redis_url(server.url_through(proxy.port())).task_limit(limit);
        let builder = builder.reclaim_min_idle(FLOOR).reclaim_interval(SWEEP).delivery_limit(20);
        let worker = Running::start(builder, handle);
        let key = eventually("the worker appears", PATIENCE, || {
            let (mut redis, known) = (redis.clone(), &*known);
            async move {
                let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
                keys.into_iter().find(|key| !known.contains(key))
            }
        })
        .await;
        known.insert(key.clone());
        (worker, key.rsplit(':').next().unwrap().to_owned())
    }
}

/// The number in the query ID determines what the handler does.
async fn handle(task: Task) -> Result<Answer, TaskError> {
    let number: u64 = task.query_id().unwrap()[1..].parse().unwrap();
    tokio::time::sleep(WORK * (number % 4) as u32 / 3).await;
    match number % 10 {
        7 => Err(TaskError::new("as it is written")),
        8 => panic!("as it is written"),
        9 if task.fence().deliveries == 1 && number.is_multiple_of(3) => {
            // A released delivery does not count, so only chance ends the repetition.
            if uuid::Uuid::new_v4().as_u128().is_multiple_of(2) {
                Err(TaskError::give_back("later"))
            } else {
                Ok(Answer::forward())
            }
        }
        _ => Ok(Answer::forward()),
    }
}

async fn storm(mut dice: Dice) {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut known = HashSet::new();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::start(&server, &redis, &mut known).await);
    }
    let mut added = 0;
    for _ in 0..25 {
        for _ in 0..3 {
            if added < TASKS {
                add(&mut redis, &format!("q{added}"), &["a", "b"]).await;
                added += 1;
            }
        }
        let at = dice.below(nodes.len());
        match dice.below(8) {
            // Crash, and a new process.
            0 | 1 => {
                let name = nodes[at].consumer.clone();
                let crashed = nodes[at].replace(&server, &redis, &mut known).await;
                crashed.crash().await;
                forget(&mut redis, &name).await;
            }
            // Stopped process or network failure, for longer than the TTL of the heartbeat.
            2 => {
                nodes[at].proxy.swallow_requests();
                forget(&mut redis, &nodes[at].consumer).await;
                tokio::time::sleep(FLOOR + Duration::from_millis(dice.below(200) as u64)).await;
                nodes[at].proxy.cut();
                nodes[at].proxy.pass();
            }
            // Redis executes commands, but replies are lost.
            3 => {
                nodes[at].proxy.swallow_replies();
                tokio::time::sleep(Duration::from_millis(dice.below(60) as u64)).await;
                nodes[at].proxy.cut();
                nodes[at].proxy.pass();
            }
            4 => {
                nodes[at].proxy.cut();
                nodes[at].proxy.pass();
            }
            5 => {
                let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 1);
                tokio::time::sleep(Duration::from_millis(dice.below(150) as u64)).await;
                let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 0);
            }
            6 => {
                server.stop().unwrap();
                tokio::time::sleep(Duration::from_millis(dice.below(200) as u64)).await;
                server.resume().unwrap();
            }
            // Graceful shutdown, and a new worker.
            _ => {
                let name = nodes[at].consumer.clone();
                let left = nodes[at].replace(&server, &redis, &mut known).await.leave().await;
                let marker: String = ask!(redis, "GET", format!("worker:shutdown:a:{name}"));
                assert!(marker.contains(&format!(r#""in_flight":{}"#, left.in_flight)), "{marker}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(added, TASKS);

    let calm = Instant::now();
    eventually("all is quiet", RECOVERY_LIMIT, || {
        let mut redis = redis.clone();
        async move {
            let (left, rows) = (length(&mut redis, "a").await, held(&mut redis, "a").await);
            if left == 0 && rows.is_empty() { Ok(()) } else { Err(format!("{left} entries, {rows:?}")) }
        }
    })
    .await;
    let quiet = calm.elapsed();
    for node in nodes {
        assert_eq!(node.worker.leave().await.in_flight, 0);
    }
    let mut ended: Vec<String> = Vec::new();
    for (stream, expected) in [("b", true), ("finish_query", false), ("a:dead", false)] {
        for query in queries(&mut redis, stream).await {
            let number: usize = query[1..].parse().unwrap();
            assert_eq!(![7, 8].contains(&(number % 10)), expected, "{query} ended in {stream}");
            ended.push(query);
        }
    }
    ended.sort();
    let mut all: Vec<String> = (0..TASKS).map(|n| format!("q{n}")).collect();
    all.sort();
    assert_eq!(ended, all, "each task ends once, after {quiet:?}");
}

/// Deletes the heartbeat of a lost consumer, as if it had expired.
async fn forget(redis: &mut MultiplexedConnection, name: &str) {
    let _: Value = ask!(*redis, "DEL", format!("worker:heartbeat:a:{name}"));
}

#[test]
fn every_task_completes_once_and_soon_after_any_faults() {
    let cases: usize = std::env::var("STORM_CASES").map_or(16, |text| text.parse().unwrap());
    let seed = Dice::seed("STORM_SEED");
    let next = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4.min(cases))
            .map(|_| {
                let next = Arc::clone(&next);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    loop {
                        let case = next.fetch_add(1, SeqCst);
                        if case >= cases {
                            break;
                        }
                        println!("storm {case} of STORM_SEED={seed}");
                        runtime.block_on(storm(Dice::of(seed.wrapping_add(case as u64 * 0x9e37_79b9))));
                    }
                })
            })
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
