//! Lock of a response: at most one holder among Rust and Python workers, under all faults.

use std::time::Instant;

use serde_json::{Value, json};
use shepherd_monitor::worker::shepherd::{ResponseLock, ShepherdError};
use tokio::time::{sleep, timeout};

use super::*;
use crate::support::proxy::Proxy;
use crate::support::wait::eventually;

async fn holder(redis: &mut MultiplexedConnection, response: &str) -> Option<String> {
    ask!(*redis, "GET", response)
}

async fn subscribers(redis: &mut MultiplexedConnection, channel: &str) -> u64 {
    let (_, count): (String, u64) = ask!(*redis, "PUBSUB", "NUMSUB", channel);
    count
}

async fn locked_by(python: &Python) {
    eventually("Python holds the lock", PATIENCE, || async { python.printed().contains("locked") }).await;
}

#[tokio::test]
async fn the_lock_has_the_key_value_and_ttl_that_python_workers_use() {
    let server = TestRedis::start();
    let (shepherd, mut locks) = (shepherd(&server).await, database(&server, LOCKS).await);
    let lock = shepherd.lock("r", "rust-1").await.unwrap();
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("rust-1"));
    let ttl: i64 = ask!(locks, "TTL", "r");
    assert!((43..=45).contains(&ttl), "{ttl}");
    assert!(!lock.is_lost() && lock.response_id() == "r");
    // Taken for other workers and for another task of the same worker.
    for who in ["rust-2", "rust-1"] {
        assert!(shepherd.try_lock("r", who).await.unwrap().is_none(), "{who}");
    }
    let other = shepherd.try_lock("other", "rust-1").await.unwrap().unwrap();
    lock.release().await.unwrap();
    assert_eq!(holder(&mut locks, "r").await, None);
    assert_eq!(holder(&mut locks, "other").await.as_deref(), Some("rust-1"));
    other.release().await.unwrap();
    let left: u64 = ask!(locks, "DBSIZE");
    assert_eq!(left, 0);
}

#[tokio::test]
async fn rust_and_python_wait_for_each_other_no_longer_than_needed() {
    let server = TestRedis::start();
    let (shepherd, mut locks) = (shepherd(&server).await, database(&server, LOCKS).await);
    let python_first = python_started(&server, &["hold", "r", "python", "1"]);
    locked_by(&python_first).await;
    let start = Instant::now();
    let lock = shepherd.lock("r", "rust").await.unwrap();
    // The release wakes the waiting worker, long before the next poll.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("rust"));
    let python_second = python_started(&server, &["hold", "r", "python", "0"]);
    eventually("Python waits", PATIENCE, || {
        let mut locks = locks.clone();
        async move { subscribers(&mut locks, "r").await == 1 }
    })
    .await;
    assert!(!python_second.printed().contains("locked"));
    lock.release().await.unwrap();
    let released = Instant::now();
    eventually("Python had its turn", PATIENCE, || async { python_second.printed().contains("released") }).await;
    assert!(released.elapsed() < Duration::from_secs(4), "{:?}", released.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_merges_of_rust_and_python_lose_no_result() {
    let server = TestRedis::start();
    let shepherd = shepherd(&server).await;
    shepherd.put_body("r", &json!({"n": 0, "kept": [1.5]})).await.unwrap();
    let pythons: Vec<Python> =
        ["p1", "p2"].iter().map(|who| python_started(&server, &["count", "r", who, "40"])).collect();
    let mut merging = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let shepherd = shepherd.clone();
        // All tasks of one worker, so all with the same consumer name.
        merging.spawn(async move {
            for _ in 0..40 {
                let lock = shepherd.lock("r", "rust").await.unwrap();
                let mut body: Value = shepherd.body("r").await.unwrap().unwrap();
                sleep(Duration::from_millis(2)).await;
                body["n"] = json!(body["n"].as_i64().unwrap() + 1);
                lock.put_body(&body).await.unwrap();
                lock.release().await.unwrap();
            }
        });
    }
    merging.join_all().await;
    for python in pythons {
        eventually("Python is done", PATIENCE, || async { python.printed().contains("done") }).await;
    }
    let body: Value = shepherd.body("r").await.unwrap().unwrap();
    assert_eq!(body, json!({"n": 200, "kept": [1.5]}));
}

#[tokio::test]
async fn the_lock_of_a_killed_rust_or_python_worker_expires() {
    let server = TestRedis::start();
    let shepherd = shepherd(&server).await;
    let mut locks = database(&server, LOCKS).await;
    let python = python_started(&server, &["hold", "r", "python", "600"]);
    locked_by(&python).await;
    python.send("KILL");
    let waiting = tokio::spawn({
        let shepherd = shepherd.clone();
        async move { shepherd.lock("r", "rust").await }
    });
    sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    // Shorten the remaining TTL of 45 s.
    let _: () = ask!(locks, "PEXPIRE", "r", 100);
    let lock = timeout(Duration::from_secs(8), waiting).await.unwrap().unwrap().unwrap();
    lock.release().await.unwrap();

    // A Rust worker crashes: its runtime is dropped, so the lock is neither released nor renewed.
    let url = server.url();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lock = runtime.block_on(async {
            let options = short(Duration::from_secs(2));
            let dying = builder(url).lock_options(options).connect().await.unwrap();
            dying.lock("r", "dying").await.unwrap()
        });
        drop(runtime);
        drop(lock);
    })
    .join()
    .unwrap();
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("dying"));
    let python = python_started(&server, &["hold", "r", "python", "0"]);
    locked_by(&python).await;
}

#[tokio::test]
async fn a_held_lock_is_renewed_until_it_is_released() {
    let server = TestRedis::start();
    let ttl = Duration::from_millis(900);
    let shepherd = builder(server.url()).lock_options(short(ttl)).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    let lock = shepherd.lock("r", "rust").await.unwrap();
    let until = Instant::now() + ttl * 4;
    while Instant::now() < until {
        assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("rust"));
        assert!(!lock.is_lost());
        sleep(Duration::from_millis(50)).await;
    }
    // Once the guard is dropped, the lock is released.
    drop(lock);
    eventually("a dropped guard releases its lock", Duration::from_millis(700), || {
        let mut locks = locks.clone();
        async move { holder(&mut locks, "r").await.is_none() }
    })
    .await;
}

/// Returns a lock whose worker cannot reach Redis, like a stopped process.
async fn cut_off(server: &TestRedis, proxy: &Proxy, ttl: Duration) -> ResponseLock {
    let options = short(ttl);
    let stopped = builder(server.url_through(proxy.port())).lock_options(options).connect().await.unwrap();
    let lock = stopped.lock("r", "stopped").await.unwrap();
    proxy.cut();
    lock
}

#[tokio::test]
async fn a_worker_that_cannot_renew_considers_the_lock_lost_before_another_can_acquire_it() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let mut locks = database(&server, LOCKS).await;
    let lock = cut_off(&server, &proxy, Duration::from_millis(1500)).await;
    assert!(!lock.is_lost());
    timeout(PATIENCE, lock.lost()).await.unwrap();
    assert!(lock.is_lost());
    eventually("the lock expires", PATIENCE, || {
        let (mut locks, lost) = (locks.clone(), lock.is_lost());
        async move {
            let held = holder(&mut locks, "r").await.is_some();
            // Before another worker can acquire the lock, this one must consider it lost.
            assert!(held || lost);
            !held
        }
    })
    .await;
    let python = python_started(&server, &["hold", "r", "python", "600"]);
    locked_by(&python).await;
    proxy.pass();
    let error = lock.release().await.unwrap_err();
    assert!(matches!(error, ShepherdError::LockLost { .. }), "{error}");
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("python"));
}

#[tokio::test]
async fn a_stopped_process_detects_the_lost_lock_immediately() {
    let server = TestRedis::start();
    let shepherd = builder(server.url()).lock_options(short(Duration::from_millis(600))).connect().await.unwrap();
    let lock = shepherd.lock("r", "rust").await.unwrap();
    // The runtime of this test has one thread, so blocking it stops the whole process.
    std::thread::sleep(Duration::from_millis(700));
    assert!(lock.is_lost());
}

#[tokio::test]
async fn a_lock_taken_by_another_is_lost_at_the_next_renewal() {
    let server = TestRedis::start();
    let shepherd = builder(server.url()).lock_options(short(Duration::from_secs(3))).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    // Taken by another holder, by another task of the same worker, or evicted.
    for (value, token) in [(Some("python"), None), (Some("rust"), Some("another")), (None, None)] {
        let lock = shepherd.lock("r", "rust").await.unwrap();
        let _: () = ask!(locks, "FLUSHDB");
        for (key, value) in [("r", value), ("r:token", token)] {
            if let Some(value) = value {
                let _: () = ask!(locks, "SET", key, value);
            }
        }
        timeout(Duration::from_millis(2500), lock.lost()).await.unwrap();
        let error = lock.put_body(&json!({})).await.unwrap_err();
        assert!(matches!(error, ShepherdError::LockLost { .. }), "{error}");
        assert!(matches!(lock.release().await.unwrap_err(), ShepherdError::LockLost { .. }));
        assert_eq!(holder(&mut locks, "r").await.as_deref(), value);
        let _: () = ask!(locks, "FLUSHDB");
    }
}

#[tokio::test]
async fn a_worker_that_continues_without_its_lock_overwrites_no_body() {
    let server = TestRedis::start();
    let (shepherd, mut locks) = (shepherd(&server).await, database(&server, LOCKS).await);
    let lock = shepherd.lock("r", "stopped").await.unwrap();
    lock.put_body(&json!("first")).await.unwrap();
    let ttl: i64 = ask!(database(&server, BODIES).await, "TTL", "r");
    assert!((LIFE - 60..=LIFE).contains(&ttl), "{ttl}");
    // While the worker sleeps, its lock expires and another task of the same worker merges.
    let _: () = ask!(locks, "DEL", "r", "r:token");
    let second = shepherd.lock("r", "stopped").await.unwrap();
    second.put_body(&json!("second")).await.unwrap();
    assert!(!lock.is_lost(), "it does not know yet");
    let error = lock.put_body(&json!("third")).await.unwrap_err();
    assert_eq!(error.to_string(), "the lock of response r is lost; another worker may hold it");
    assert!(lock.is_lost() && error.may_pass());
    assert_eq!(shepherd.body::<Value>("r").await.unwrap(), Some(json!("second")));
    drop(lock);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("stopped"), "the second task holds it still");
    second.release().await.unwrap();
}

#[tokio::test]
async fn waiting_for_a_taken_lock_times_out() {
    let server = TestRedis::start();
    let options = LockOptions { wait: Duration::from_millis(700), ..LockOptions::default() };
    let shepherd = builder(server.url()).lock_options(options).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    let _: () = ask!(locks, "SET", "r", "python", "EX", 45);
    let start = Instant::now();
    let error = shepherd.lock("r", "rust").await.unwrap_err();
    assert_eq!(error.to_string(), "the lock of response r was held by others for 700ms");
    assert!(error.may_pass() && (700..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("python"));
    assert_eq!(LockOptions::default().wait, LockOptions::default().poll * 12);
}

#[tokio::test]
async fn the_next_poll_detects_a_missed_release() {
    let server = TestRedis::start();
    let options = LockOptions { poll: Duration::from_millis(500), ..LockOptions::default() };
    let shepherd = builder(server.url()).lock_options(options).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    let _: () = ask!(locks, "SET", "r", "python", "EX", 45);
    let waiting = tokio::spawn(async move { shepherd.lock("r", "rust").await.unwrap() });
    eventually("Rust waits", PATIENCE, || {
        let mut locks = locks.clone();
        async move { subscribers(&mut locks, "r").await == 1 }
    })
    .await;
    // Deleted without a published release, as when it expires; then also with a broken subscription.
    let _: () = ask!(locks, "DEL", "r");
    let lock = timeout(Duration::from_secs(3), waiting).await.unwrap().unwrap();
    lock.release().await.unwrap();
}

#[tokio::test]
async fn a_broken_subscription_does_not_prevent_acquiring() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let shepherd = builder(server.url_through(proxy.port())).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    let _: () = ask!(locks, "SET", "r", "python", "EX", 45);
    let waiting = tokio::spawn(async move { shepherd.lock("r", "rust").await.unwrap() });
    for _ in 0..2 {
        eventually("Rust waits", PATIENCE, || {
            let mut locks = locks.clone();
            async move { subscribers(&mut locks, "r").await == 1 }
        })
        .await;
        proxy.cut();
        eventually("Redis has noticed", PATIENCE, || {
            let mut locks = locks.clone();
            async move { subscribers(&mut locks, "r").await == 0 }
        })
        .await;
        proxy.pass();
    }
    let _: () = ask!(locks, "DEL", "r");
    let _: u64 = ask!(locks, "PUBLISH", "r", "released");
    timeout(Duration::from_secs(8), waiting).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_caller_leaves_no_lock_behind() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let shepherd = builder(server.url_through(proxy.port())).connect().await.unwrap();
    let locks = database(&server, LOCKS).await;
    // Load the scripts.
    shepherd.lock("before", "rust").await.unwrap().release().await.unwrap();
    // Redis grants the lock, but the caller is dropped before it receives the reply.
    proxy.swallow_replies();
    let asking = tokio::spawn({
        let shepherd = shepherd.clone();
        async move { shepherd.lock("r", "rust").await }
    });
    eventually("Redis gives the lock", PATIENCE, || {
        let mut locks = locks.clone();
        async move { holder(&mut locks, "r").await.is_some() }
    })
    .await;
    asking.abort();
    proxy.cut();
    proxy.pass();
    eventually("the lock is free", PATIENCE, || {
        let mut locks = locks.clone();
        async move { holder(&mut locks, "r").await.is_none() }
    })
    .await;
}

#[tokio::test]
async fn lost_replies_neither_lose_the_lock_nor_acquire_it_twice() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let shepherd = builder(server.url_through(proxy.port())).connect().await.unwrap();
    let locks = database(&server, LOCKS).await;
    // Load the scripts.
    shepherd.lock("before", "rust").await.unwrap().release().await.unwrap();
    proxy.swallow_replies();
    let asking = tokio::spawn({
        let shepherd = shepherd.clone();
        async move { shepherd.lock("r", "rust").await }
    });
    eventually("Redis gives the lock", PATIENCE, || {
        let mut locks = locks.clone();
        async move { holder(&mut locks, "r").await.is_some() }
    })
    .await;
    proxy.cut();
    proxy.pass();
    let lock = timeout(Duration::from_secs(10), asking).await.unwrap().unwrap().unwrap();
    // A release is repeated as well and finds the lock released.
    proxy.swallow_replies();
    let releasing = tokio::spawn(lock.release());
    eventually("Redis takes the lock back", PATIENCE, || {
        let mut locks = locks.clone();
        async move { holder(&mut locks, "r").await.is_none() }
    })
    .await;
    proxy.cut();
    proxy.pass();
    releasing.await.unwrap().unwrap();
}
