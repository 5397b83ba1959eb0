//! Concurrent trimming: writers, readers, claimers and the janitor use separate connections without coordination. Each of three
//! groups must process every entry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::Value;
use shepherd_monitor::contract::Name;
use shepherd_monitor::redis_streams::cleanup::{retire_some, trim_step};
use tokio::task::JoinSet;

use super::*;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const GROUPS: [&str; 3] = ["one", "two", "three"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Plain {
    No,
    Yes,
}

/// Returns how many entries were added and removed, and how many each group missed.
async fn under_fire(seconds: f64, plain: Plain) -> (u64, u64, Vec<usize>) {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for group in GROUPS {
        let _: Value = ask(&mut redis, &["XGROUP", "CREATE", "s", group, "0", "MKSTREAM"]).await;
    }
    let (over, removed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut readers: JoinSet<(usize, Vec<String>)> = JoinSet::new();
    for (n, group) in GROUPS.into_iter().enumerate() {
        for name in ["a", "b"] {
            let (mut redis, over) = (server.connection().await, Arc::clone(&over));
            readers.spawn(async move {
                let mut seen = Vec::new();
                let mut turn = n;
                loop {
                    turn += 1;
                    // A new consumer name periodically, as after restarts; the old consumer remains.
                    let consumer = format!("{name}{}", turn / 50);
                    // Entries of crashed consumers are claimed by any consumer.
                    if turn % 3 == 1 {
                        let taken: Value =
                            ask(&mut redis, &["XAUTOCLAIM", "s", group, &consumer, "0", "0", "COUNT", "100"]).await;
                        let (_, entries): (String, Vec<(String, Value)>) = match taken {
                            Value::Array(mut parts) => {
                                parts.truncate(2);
                                redis::from_redis_value(Value::Array(parts)).unwrap()
                            }
                            other => panic!("{other:?}"),
                        };
                        for (id, _) in entries {
                            let _: Value = ask(&mut redis, &["XACK", "s", group, &id]).await;
                            seen.push(id);
                        }
                    }
                    let read = ["XREADGROUP", "GROUP", group, &consumer, "COUNT", "8", "STREAMS", "s", ">"];
                    let got: Got = ask(&mut redis, &read).await;
                    let entries = got.into_iter().flatten().flat_map(|(_, entries)| entries);
                    let mut any = false;
                    for (id, _) in entries {
                        any = true;
                        // Every third read is a crash: its entries stay pending and are not processed.
                        if !turn.is_multiple_of(3) {
                            let _: Value = ask(&mut redis, &["XACK", "s", group, &id]).await;
                            seen.push(id);
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if !any && over.load(Ordering::Relaxed) && turn % 3 == 2 {
                        let left: Vec<Value> = ask(&mut redis, &["XPENDING", "s", group, "-", "+", "1"]).await;
                        if left.is_empty() {
                            return (n, seen);
                        }
                    }
                }
            });
        }
    }
    let janitor = {
        let (mut redis, over, removed) = (server.connection().await, Arc::clone(&over), Arc::clone(&removed));
        tokio::spawn(async move {
            let stream = Name::from("s");
            while !over.load(Ordering::Relaxed) {
                if plain == Plain::Yes {
                    removed.fetch_add(plainly(&mut redis).await, Ordering::Relaxed);
                    continue;
                }
                let step = trim_step(&mut redis, &stream, 150, 0).await.unwrap();
                removed.fetch_add(step.removed, Ordering::Relaxed);
                for group in GROUPS {
                    let consumers: Vec<std::collections::BTreeMap<String, Value>> =
                        ask(&mut redis, &["XINFO", "CONSUMERS", "s", group]).await;
                    let name = |mut info: std::collections::BTreeMap<String, Value>| {
                        Name::from(redis::from_redis_value::<String>(info.remove("name").unwrap()).unwrap())
                    };
                    let names: Vec<Name> = consumers.into_iter().map(name).collect();
                    retire_some(&mut redis, &stream, &Name::from(group), &names, Duration::ZERO).await.unwrap();
                }
            }
        })
    };
    let until = std::time::Instant::now() + Duration::from_secs_f64(seconds);
    let mut added = BTreeSet::new();
    while std::time::Instant::now() < until {
        let mut pipe = redis::pipe();
        for _ in 0..8 {
            pipe.cmd("XADD").arg(&["s", "*", "query_id", "q"]);
        }
        added.extend(pipe.query_async::<Vec<String>>(&mut redis).await.unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    over.store(true, Ordering::Relaxed);
    janitor.await.unwrap();
    let mut missing: Vec<BTreeSet<String>> = vec![added.clone(); 3];
    while let Some(done) = readers.join_next().await {
        let (n, seen) = done.unwrap();
        for id in seen {
            missing[n].remove(&id);
        }
    }
    (added.len() as u64, removed.load(Ordering::Relaxed), missing.iter().map(BTreeSet::len).collect())
}

/// Reads pending entries, then positions, then trims to the lowest one: each is correct when it is read.
async fn plainly(redis: &mut MultiplexedConnection) -> u64 {
    let key = |id: &str| id.split_once('-').map(|(ms, seq)| (ms.parse::<u64>().unwrap(), seq.parse::<u64>().unwrap()));
    let mut bounds: Vec<String> = Vec::new();
    let mut free = Vec::new();
    for group in GROUPS {
        let pending: Vec<(String, String, u64, u64)> = ask(redis, &["XPENDING", "s", group, "-", "+", "1"]).await;
        match pending.first() {
            Some((id, ..)) => bounds.push(id.clone()),
            None => free.push(group),
        }
    }
    let groups: Vec<std::collections::BTreeMap<String, Value>> = ask(redis, &["XINFO", "GROUPS", "s"]).await;
    for info in groups {
        let word = |name: &str| redis::from_redis_value::<String>(info[name].clone()).unwrap();
        if free.contains(&word("name").as_str()) {
            bounds.push(word("last-delivered-id"));
        }
    }
    bounds.sort_by_key(|id| key(id));
    ask(redis, &["XTRIM", "s", "MINID", "=", &bounds[0]]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_group_processes_every_entry_during_trimming() {
    let seconds: f64 = std::env::var("JANITOR_FIRE_SEC").map_or(4.0, |text| text.parse().unwrap());
    let (added, removed, missing) = under_fire(seconds, Plain::No).await;
    println!("{added} entries added, {removed} removed meanwhile, never seen by a group: {missing:?}");
    assert_eq!(missing, [0, 0, 0]);
    assert!(removed > 100, "there was hardly anything to trim: {removed}");
    // The same load with the non-atomic version.
    eventually("the plain version loses something", Duration::from_secs(120), || async {
        let (added, removed, missing) = under_fire(2.0, Plain::Yes).await;
        println!("plain: {added} entries added, {removed} removed, never seen by a group: {missing:?}");
        missing.iter().sum::<usize>() > 0
    })
    .await;
}
