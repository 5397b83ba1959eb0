//! The two scripts by example: what prevents trimming, which consumers are deleted, and other servers.

use redis::Value;
use shepherd_monitor::contract::Name;
use shepherd_monitor::demo::servers::RedisOptions;
use shepherd_monitor::fleet::cleanup::{Need, ReasonKept};
use shepherd_monitor::redis_streams::cleanup::{is_about_the_stream, retire_some, trim_step};

use super::*;
use crate::support::redis::TestRedis;

async fn add(redis: &mut MultiplexedConnection, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(ask(redis, &["XADD", "s", "*", "query_id", "q"]).await);
    }
    ids
}

async fn read(redis: &mut MultiplexedConnection, group: &str, count: usize) {
    let count = count.to_string();
    let _: Value = ask(redis, &["XREADGROUP", "GROUP", group, "c", "COUNT", &count, "STREAMS", "s", ">"]).await;
}

fn stream() -> Name {
    Name::from("s")
}

#[tokio::test]
async fn group_that_stopped_reading_prevents_trimming_and_is_reported() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for group in ["quick", "stuck"] {
        let _: Value = ask(&mut redis, &["XGROUP", "CREATE", "s", group, "0", "MKSTREAM"]).await;
    }
    let ids = add(&mut redis, 250).await;
    read(&mut redis, "quick", 250).await;
    for id in &ids {
        let _: Value = ask(&mut redis, &["XACK", "s", "quick", id]).await;
    }
    let step = trim_step(&mut redis, &stream(), 1000, 0).await.unwrap();
    assert_eq!((step.removed, step.more, step.length), (0, false, Some(250)));
    let Some(ReasonKept::Group { group, need, since, pending, undelivered, .. }) = step.kept_because else { panic!() };
    assert_eq!((group.as_str(), need, pending, undelivered), ("stuck", Need::Unread, 0, Some(250)));
    let added: f64 = ids[0].split('-').next().unwrap().parse().unwrap();
    assert_eq!(since, Some(added / 1000.0));

    // It continues, and stops at the third entry.
    read(&mut redis, "stuck", 250).await;
    for id in ids.iter().enumerate().filter(|(n, _)| *n != 2).map(|(_, id)| id) {
        let _: Value = ask(&mut redis, &["XACK", "s", "stuck", id]).await;
    }
    let step = trim_step(&mut redis, &stream(), 1000, 100).await.unwrap();
    assert_eq!((step.removed, step.more, step.length, step.counted), (2, false, Some(248), 100));
    let Some(ReasonKept::Group { group, need, pending, consumer, idle_sec, .. }) = step.kept_because else { panic!() };
    assert_eq!((group.as_str(), need, pending, consumer.as_deref()), ("stuck", Need::Pending, 1, Some("c")));
    assert!(idle_sec.is_some());

    // Finished, or deleted by another client: it no longer prevents trimming.
    let _: Value = ask(&mut redis, &["XDEL", "s", &ids[2]]).await;
    let mut left = Vec::new();
    loop {
        let step = trim_step(&mut redis, &stream(), 1000, 0).await.unwrap();
        left.push(step.length.unwrap());
        if !step.more {
            assert_eq!(step.kept_because, None);
            break;
        }
    }
    assert_eq!(left.last(), Some(&0), "{left:?}");
    let pending: Vec<Value> = ask(&mut redis, &["XPENDING", "s", "stuck", "-", "+", "10"]).await;
    assert_eq!(pending.len(), 1, "the pending list is its owner's");
}

#[tokio::test]
async fn streams_without_groups_and_other_types_are_not_changed() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, 5).await;
    let step = trim_step(&mut redis, &stream(), 1000, 0).await.unwrap();
    assert_eq!((step.removed, step.length, step.kept_because), (0, Some(5), Some(ReasonKept::NoGroups)));
    let none = trim_step(&mut redis, &Name::from("none"), 1000, 0).await.unwrap();
    assert_eq!((none.removed, none.length), (0, None));
    let _: Value = ask(&mut redis, &["SET", "text", "x"]).await;
    let error = trim_step(&mut redis, &Name::from("text"), 1000, 0).await.unwrap_err();
    assert!(is_about_the_stream(&error), "{error}");
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
}

#[tokio::test]
async fn servers_without_trimming_by_id_are_trimmed_by_entry() {
    // As before Redis 6.2: the command fails.
    let server = TestRedis::start_with(RedisOptions::with_args(["--rename-command", "XTRIM", ""]));
    let mut redis = server.connection().await;
    let _: Value = ask(&mut redis, &["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]).await;
    let ids = add(&mut redis, 350).await;
    read(&mut redis, "g", 340).await;
    for id in &ids[..330] {
        let _: Value = ask(&mut redis, &["XACK", "s", "g", id]).await;
    }
    let mut removed = Vec::new();
    loop {
        let step = trim_step(&mut redis, &stream(), 1000, 0).await.unwrap();
        removed.push(step.removed);
        if !step.more {
            assert_eq!(step.length, Some(20));
            break;
        }
    }
    assert_eq!(removed, [100, 100, 100, 30]);
}

#[tokio::test]
async fn consumers_are_deleted_only_if_idle_without_heartbeat_and_work() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask(&mut redis, &["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]).await;
    add(&mut redis, 1).await;
    read(&mut redis, "g", 1).await;
    for name in ["phantom", "alive", "awake"] {
        let _: Value = ask(&mut redis, &["XGROUP", "CREATECONSUMER", "s", "g", name]).await;
    }
    let _: Value = ask(&mut redis, &["SET", "worker:heartbeat:s:alive", "no JSON at all"]).await;
    let names = ["phantom", "alive", "c", "unheard of"].map(Name::from);
    let hour = Duration::from_secs(3600);
    let said = retire_some(&mut redis, &stream(), &Name::from("g"), &names, hour).await.unwrap();
    assert_eq!(said, ["awake", "present", "busy", "gone"]);
    let said = retire_some(&mut redis, &stream(), &Name::from("g"), &names, Duration::ZERO).await.unwrap();
    assert_eq!(said, ["deleted", "present", "busy", "gone"]);
    let said = retire_some(&mut redis, &stream(), &Name::from("other"), &names, Duration::ZERO).await.unwrap();
    assert_eq!(said, ["gone"; 4]);
}

/// redis#15808: a node without entries, which XTRIM MINID can leave after XDEL, is saved and cannot be loaded by some servers.
#[tokio::test]
async fn a_stream_that_was_trimmed_after_deletions_can_be_saved_and_loaded() {
    let options = RedisOptions::with_args(["--stream-node-max-entries", "4", "--enable-debug-command", "yes"]);
    let server = TestRedis::start_with(options);
    let mut redis = server.connection().await;
    let _: Value = ask(&mut redis, &["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"]).await;
    let ids = add(&mut redis, 24).await;
    read(&mut redis, "g", 24).await;
    // Two entries of the second node, all of the third, the first of the fourth.
    for id in ids.get(5..7).unwrap().iter().chain(ids.get(8..13).unwrap()) {
        let _: Value = ask(&mut redis, &["XDEL", "s", id]).await;
    }
    for id in ids.get(..15).unwrap() {
        let _: Value = ask(&mut redis, &["XACK", "s", "g", id]).await;
    }
    while trim_step(&mut redis, &stream(), 3, 100).await.unwrap().more {}
    let before: Value = ask(&mut redis, &["XRANGE", "s", "-", "+"]).await;
    let _: Value = ask(&mut redis, &["DEBUG", "RELOAD"]).await;
    let after: Value = ask(&mut redis, &["XRANGE", "s", "-", "+"]).await;
    assert_eq!(before, after);
    let left: Vec<String> = ids[15..].to_vec();
    let Value::Array(entries) = after else { panic!("{after:?}") };
    assert!((left.len()..=left.len() + 3).contains(&entries.len()), "whole nodes are trimmed: {entries:?}");
    add(&mut redis, 1).await;
}
