//! Phantom pending IDs: which are acknowledged, and which are kept.

use redis::Value as Answer;
use shepherd_monitor::contract::Name;
use shepherd_monitor::redis_streams::cleanup::{PhantomRules, clear_phantoms, clear_phantoms_step};
use shepherd_monitor::redis_streams::connection;

use super::*;
use crate::support::redis::TestRedis;

const HOUR: Duration = Duration::from_secs(3600);

fn rules(without_heartbeat: Option<Duration>) -> PhantomRules {
    PhantomRules { without_heartbeat, in_flight: HOUR }
}

/// Adds `count` entries and delivers them to `consumer`. Returns their IDs.
async fn deliver(redis: &mut MultiplexedConnection, consumer: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(ask(redis, &["XADD", "s", "*", "f", "v"]).await);
    }
    let count = count.to_string();
    let _: Answer =
        ask(redis, &["XREADGROUP", "GROUP", "consumer", consumer, "COUNT", &count, "STREAMS", "s", ">"]).await;
    ids
}

async fn pending(redis: &mut MultiplexedConnection) -> Vec<String> {
    let rows: Vec<(String, String, u64, u64)> = ask(redis, &["XPENDING", "s", "consumer", "-", "+", "100000"]).await;
    rows.into_iter().map(|row| row.0).collect()
}

async fn delete(redis: &mut MultiplexedConnection, ids: &[String]) {
    let mut words = vec!["XDEL", "s"];
    words.extend(ids.iter().map(String::as_str));
    let _: Answer = ask(redis, &words).await;
}

async fn clear(redis: &mut MultiplexedConnection, rules: PhantomRules) -> (u64, u64) {
    let (mut after, mut sum) = ("-".to_owned(), (0, 0));
    for _ in 0..1000 {
        let (next, acknowledged, kept) =
            clear_phantoms_step(redis, &Name::from("s"), &Name::from("consumer"), rules, &after).await.unwrap();
        sum = (sum.0 + acknowledged, sum.1 + kept);
        if next.is_empty() {
            return sum;
        }
        after = next;
    }
    panic!("the walk does not end at {after}");
}

async fn beat(redis: &mut MultiplexedConnection, consumer: &str, in_flight: Option<&str>, lives_ms: u32) {
    let in_flight = in_flight.map_or(String::new(), |n| format!(r#","in_flight":{n}"#));
    let value =
        format!(r#"{{"stream":"s","consumer":"{consumer}","started_at":1,"last_seen":1,"task_limit":4{in_flight}}}"#);
    let key = format!("worker:heartbeat:s:{consumer}");
    let _: Answer = ask(redis, &["SET", &key, &value, "PX", &lives_ms.to_string()]).await;
}

#[tokio::test]
async fn ids_are_acknowledged_only_if_their_entry_is_deleted() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Answer = ask(&mut redis, &["XGROUP", "CREATE", "s", "consumer", "0", "MKSTREAM"]).await;
    let ids = deliver(&mut redis, "c", 1200).await;
    // Sequences of phantoms of every length, at the start, between existing entries and at the end.
    let gone: Vec<String> = ids
        .iter()
        .enumerate()
        .filter(|(n, _)| n % 7 > 2 || *n < 600 && n % 100 < 90 || *n > 1190)
        .map(|(_, id)| id.clone())
        .collect();
    delete(&mut redis, &gone).await;
    let left: Vec<String> = ids.iter().filter(|id| !gone.contains(id)).cloned().collect();
    assert_eq!(clear(&mut redis, rules(Some(Duration::ZERO))).await, (gone.len() as u64, 0));
    assert_eq!(pending(&mut redis).await, left);
    assert_eq!(clear(&mut redis, rules(Some(Duration::ZERO))).await, (0, 0));
    // The stream is emptied, and then the group deleted.
    let _: Answer = ask(&mut redis, &["XTRIM", "s", "MAXLEN", "=", "0"]).await;
    assert_eq!(clear(&mut redis, rules(Some(Duration::ZERO))).await, (left.len() as u64, 0));
    let _: Answer = ask(&mut redis, &["DEL", "s"]).await;
    assert_eq!(clear(&mut redis, rules(Some(Duration::ZERO))).await, (0, 0));
}

#[tokio::test]
async fn ids_that_a_worker_may_be_processing_are_kept() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Answer = ask(&mut redis, &["XGROUP", "CREATE", "s", "consumer", "0", "MKSTREAM"]).await;
    for (consumer, in_flight, lives_ms, acknowledged) in [
        // Written by a Python worker, which does not check when it finishes.
        ("python", None, 15_000, 1),
        ("busy", Some("1"), 15_000, 0),
        ("tries.again.later", Some(r#"0,"waiting":1"#), 15_000, 0),
        // Written just now, after the delivery.
        ("idle", Some("0"), 15_000, 1),
        // Written before the delivery: the worker may have started the task since.
        ("delivered.just.now", Some("0"), 5_000, 0),
    ] {
        let ids = deliver(&mut redis, consumer, 1).await;
        delete(&mut redis, &ids).await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        beat(&mut redis, consumer, in_flight, lives_ms).await;
        assert_eq!(clear(&mut redis, rules(None)).await, (acknowledged, 1 - acknowledged), "{consumer}");
        let _: Answer = ask(&mut redis, &["XACK", "s", "consumer", &ids[0]]).await;
    }
    let ids = deliver(&mut redis, "absent", 1).await;
    delete(&mut redis, &ids).await;
    assert_eq!(clear(&mut redis, rules(None)).await, (0, 1), "absence means nothing yet");
    assert_eq!(clear(&mut redis, rules(Some(HOUR))).await, (0, 1), "it may come back");
    assert_eq!(clear(&mut redis, rules(Some(Duration::ZERO))).await, (1, 0));
}

#[tokio::test]
async fn thousands_are_acknowledged_in_steps_with_their_delivery_records() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Answer = ask(&mut redis, &["XGROUP", "CREATE", "s", "consumer", "0", "MKSTREAM"]).await;
    let ids = deliver(&mut redis, "c", 5000).await;
    let record = format!("worker:deliveries:s:consumer:{}", ids[0]);
    let _: Answer = ask(&mut redis, &["HSET", &record, "first_ms", "1"]).await;
    let _: Answer = ask(&mut redis, &["XTRIM", "s", "MAXLEN", "=", "10"]).await;
    let pool = connection::pool(&server.url(), Duration::from_secs(10)).unwrap();
    let (stream, group) = (Name::from("s"), Name::from("consumer"));
    let until = std::time::Instant::now() + Duration::from_secs(60);
    let cleared = clear_phantoms(&pool, &stream, &group, rules(Some(Duration::ZERO)), (until, u64::MAX)).await.unwrap();
    assert_eq!((cleared.acknowledged, cleared.kept, cleared.unfinished), (4990, 0, false));
    assert_eq!(pending(&mut redis).await, ids[4990..]);
    let kept: bool = ask(&mut redis, &["EXISTS", &record]).await;
    assert!(!kept);
    // The key has another type now: reported for this stream, and the cleanup continues.
    let _: Answer = ask(&mut redis, &["DEL", "s"]).await;
    let _: Answer = ask(&mut redis, &["SET", "s", "text"]).await;
    let cleared = clear_phantoms(&pool, &stream, &group, rules(Some(Duration::ZERO)), (until, u64::MAX)).await.unwrap();
    assert!(cleared.error.is_some() && cleared.acknowledged == 0, "{cleared:?}");
}
