//! The lock of a response: one holder at a time, whatever its language and whatever happens to it.

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
async fn the_lock_is_the_key_that_python_workers_know_with_its_value_and_its_life() {
    let server = TestRedis::start();
    let (shepherd, mut locks) = (shepherd(&server).await, database(&server, LOCKS).await);
    let lock = shepherd.lock("r", "rust-1").await.unwrap();
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("rust-1"));
    let ttl: i64 = ask!(locks, "TTL", "r");
    assert!((43..=45).contains(&ttl), "{ttl}");
    assert!(!lock.is_lost() && lock.response_id() == "r");
    // Held, for everybody: others, and another task of the same worker.
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
async fn rust_waits_for_python_and_python_for_rust_and_neither_longer_than_needed() {
    let server = TestRedis::start();
    let (shepherd, mut locks) = (shepherd(&server).await, database(&server, LOCKS).await);
    let python_first = python_started(&server, &["hold", "r", "python", "1"]);
    locked_by(&python_first).await;
    let asked = Instant::now();
    let lock = shepherd.lock("r", "rust").await.unwrap();
    // Woken by the release, long before the next poll.
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
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
async fn rust_and_python_merge_in_turns_and_no_merge_is_lost() {
    let server = TestRedis::start();
    let shepherd = shepherd(&server).await;
    shepherd.put_body("r", &json!({"n": 0, "kept": [1.5]})).await.unwrap();
    let pythons: Vec<Python> =
        ["p1", "p2"].iter().map(|who| python_started(&server, &["count", "r", who, "40"])).collect();
    let mut merging = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let shepherd = shepherd.clone();
        // All tasks of one worker, so all with one name.
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
async fn a_killed_holder_of_either_language_is_waited_out() {
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
    // What is left of its 45 seconds passes at once.
    let _: () = ask!(locks, "PEXPIRE", "r", 100);
    let lock = timeout(Duration::from_secs(8), waiting).await.unwrap().unwrap().unwrap();
    lock.release().await.unwrap();

    // A Rust worker dies without a word: its runtime is gone, so nothing releases or renews.
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
async fn a_held_lock_is_renewed_for_as_long_as_it_is_held() {
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
    // And no longer.
    drop(lock);
    eventually("a dropped guard releases its lock", Duration::from_millis(700), || {
        let mut locks = locks.clone();
        async move { holder(&mut locks, "r").await.is_none() }
    })
    .await;
}

/// The lock of a worker that is cut off from Redis, as a stopped process is.
async fn cut_off(server: &TestRedis, proxy: &Proxy, ttl: Duration) -> ResponseLock {
    let options = short(ttl);
    let stopped = builder(server.url_through(proxy.port())).lock_options(options).connect().await.unwrap();
    let lock = stopped.lock("r", "stopped").await.unwrap();
    proxy.cut();
    lock
}

#[tokio::test]
async fn a_worker_that_cannot_renew_knows_that_the_lock_is_lost_before_another_can_have_it() {
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
            // Whenever another could have it, this worker knows.
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
async fn a_process_that_was_stopped_sees_at_once_that_its_lock_may_be_lost() {
    let server = TestRedis::start();
    let shepherd = builder(server.url()).lock_options(short(Duration::from_millis(600))).connect().await.unwrap();
    let lock = shepherd.lock("r", "rust").await.unwrap();
    // This test's runtime has one thread: while it sleeps, nothing of the process goes on.
    std::thread::sleep(Duration::from_millis(700));
    assert!(lock.is_lost());
}

#[tokio::test]
async fn a_lock_that_was_taken_away_is_lost_at_the_next_renewal() {
    let server = TestRedis::start();
    let shepherd = builder(server.url()).lock_options(short(Duration::from_secs(3))).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    // By another holder, by the same worker's next task, by a Redis that needs the memory.
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
async fn a_worker_that_wakes_up_without_its_lock_overwrites_no_body() {
    let server = TestRedis::start();
    let (shepherd, mut locks) = (shepherd(&server).await, database(&server, LOCKS).await);
    let lock = shepherd.lock("r", "stopped").await.unwrap();
    lock.put_body(&json!("first")).await.unwrap();
    let ttl: i64 = ask!(database(&server, BODIES).await, "TTL", "r");
    assert!((LIFE - 60..=LIFE).contains(&ttl), "{ttl}");
    // It sleeps, its lock expires, and another task of the same worker merges.
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
async fn a_lock_that_stays_held_is_given_up_after_the_wait() {
    let server = TestRedis::start();
    let options = LockOptions { wait: Duration::from_millis(700), ..LockOptions::default() };
    let shepherd = builder(server.url()).lock_options(options).connect().await.unwrap();
    let mut locks = database(&server, LOCKS).await;
    let _: () = ask!(locks, "SET", "r", "python", "EX", 45);
    let asked = Instant::now();
    let error = shepherd.lock("r", "rust").await.unwrap_err();
    assert_eq!(error.to_string(), "the lock of response r was held by others for 700ms");
    assert!(error.may_pass() && (700..5000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
    assert_eq!(holder(&mut locks, "r").await.as_deref(), Some("python"));
    assert_eq!(LockOptions::default().wait, LockOptions::default().poll * 12);
}

#[tokio::test]
async fn a_missed_release_is_found_by_the_next_poll() {
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
    // Without a word, as an expired lock goes; then with the connection that would have heard it gone.
    let _: () = ask!(locks, "DEL", "r");
    let lock = timeout(Duration::from_secs(3), waiting).await.unwrap().unwrap();
    lock.release().await.unwrap();
}

#[tokio::test]
async fn a_broken_subscription_costs_no_turn() {
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
async fn a_caller_that_goes_away_leaves_no_lock_behind() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let shepherd = builder(server.url_through(proxy.port())).connect().await.unwrap();
    let locks = database(&server, LOCKS).await;
    // Redis knows the scripts.
    shepherd.lock("before", "rust").await.unwrap().release().await.unwrap();
    // Redis gives the lock, and the caller is gone before it hears of it.
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
async fn lost_replies_neither_lose_the_lock_nor_hold_it_twice() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let shepherd = builder(server.url_through(proxy.port())).connect().await.unwrap();
    let locks = database(&server, LOCKS).await;
    // Redis knows the scripts.
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
    // The same of a release: it is found done.
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
