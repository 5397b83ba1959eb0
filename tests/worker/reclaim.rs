//! Leases, and reclaiming lost entries.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use redis::Value;
use shepherd_monitor::contract::Name;
use shepherd_monitor::redis_streams::tasks::{Address, Claim, Claimed, EntryId, Link, TaskStream, Verdict};
use shepherd_monitor::worker::{Answer, TaskError};
use tokio::sync::Notify;

use super::*;
use crate::support::proxy::Proxy;

const LONG_AGO: Duration = Duration::from_secs(600);

#[tokio::test]
async fn orphans_behind_many_slow_running_tasks_are_found() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..700 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let slow = taken_by(&mut redis, "slow", "a", 650).await;
    let orphans = taken_by(&mut redis, "dead", "a", 50).await;
    idle_for(&mut redis, "slow", "a", &slow, LONG_AGO).await;
    idle_for(&mut redis, "dead", "a", &orphans, LONG_AGO).await;
    let _: Value = ask!(redis, "SET", "worker:heartbeat:a:slow", "{}");
    let worker = Running::start(quick(&server, "a").task_limit(4), done);
    reaches(&redis, "finish_query", 50).await;
    worker.leave().await;
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (650, 650));
}

#[tokio::test]
async fn reclaim_requires_idle_time_and_missing_heartbeat() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..3 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let beating = taken_by(&mut redis, "beating", "a", 1).await;
    let fresh = taken_by(&mut redis, "fresh", "a", 1).await;
    let lost = taken_by(&mut redis, "lost", "a", 1).await;
    let _: Value = ask!(redis, "SET", "worker:heartbeat:a:beating", "{}");
    idle_for(&mut redis, "beating", "a", &beating, LONG_AGO).await;
    idle_for(&mut redis, "lost", "a", &lost, LONG_AGO).await;
    let floor = Duration::from_secs(300);
    let worker = Running::start(quick(&server, "a").reclaim_min_idle(floor), done);
    reaches(&redis, "finish_query", 1).await;
    // After several sweeps, the other two entries still have their owners.
    add(&mut redis, "later", &["a"]).await;
    reaches(&redis, "finish_query", 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(queries(&mut redis, "finish_query").await, ["q2", "later"]);
    worker.leave().await;
    let rows = held(&mut redis, "a").await;
    let owners: Vec<(&str, &str)> = rows.iter().map(|row| (row.id.as_str(), row.owner.as_str())).collect();
    assert_eq!(owners, [(beating[0].as_str(), "beating"), (fresh[0].as_str(), "fresh")]);
}

#[tokio::test]
async fn a_running_task_keeps_its_lease_and_is_not_reclaimed() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let (go, started) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let handler = || {
        let (go, started) = (go.clone(), started.clone());
        move |_| {
            let go = go.clone();
            started.fetch_add(1, SeqCst);
            async move {
                go.notified().await;
                Ok(Answer::forward())
            }
        }
    };
    let workers = [0, 1].map(|_| Running::start(quick(&server, "a").task_limit(8), handler()));
    for n in 0..8 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    eventually("all eight run", PATIENCE, || async { started.load(SeqCst) == 8 }).await;
    // Delete the heartbeats: the lease alone must protect the tasks.
    let mut idlest = 0;
    for _ in 0..20 {
        let beats: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
        let _: Result<Value, _> = redis::cmd("DEL").arg(beats).query_async(&mut redis).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let rows = held(&mut redis, "a").await;
        idlest = rows.iter().map(|row| row.idle_ms).max().unwrap().max(idlest);
        assert!(rows.iter().all(|row| row.deliveries == 1), "{rows:?}");
    }
    assert!(idlest < 300, "idle for {idlest} ms with a floor of 300");
    for _ in 0..8 {
        go.notify_one();
    }
    reaches(&redis, "finish_query", 8).await;
    for worker in workers {
        worker.leave().await;
    }
    assert_eq!(started.load(SeqCst), 8);
    let records: Vec<String> = ask!(redis, "KEYS", "worker:deliveries:*");
    assert_eq!(records, Vec::<String>::new());
}

#[test]
fn a_handler_that_blocks_its_runtime_keeps_heartbeat_and_lease() {
    let server = TestRedis::start();
    let blocked = Arc::new(AtomicBool::new(false));
    let release = Arc::new(AtomicBool::new(false));
    let url = server.url();
    let thread = std::thread::spawn({
        let (blocked, release) = (blocked.clone(), release.clone());
        let builder = quick(&server, "a");
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (stop, stopped) = oneshot::channel();
                let stop = std::sync::Mutex::new(Some(stop));
                let stopped = async move { stopped.await.unwrap_or_default() };
                builder
                    .run_until(stopped, move |_| {
                        blocked.store(true, SeqCst);
                        while !release.load(SeqCst) {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        let _ = stop.lock().unwrap().take().map(|stop| stop.send(None));
                        async { Ok(Answer::forward()) }
                    })
                    .await
                    .unwrap()
            })
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut redis = crate::support::redis::connection(&url, PATIENCE).await.unwrap();
        add(&mut redis, "q", &["a"]).await;
        eventually("the handler blocks", PATIENCE, || async { blocked.load(SeqCst) }).await;
        let beats: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
        let before: String = ask!(redis, "GET", &beats[0]);
        eventually("the heartbeat is written again", PATIENCE, || {
            let (mut redis, key, before) = (redis.clone(), beats[0].clone(), before.clone());
            async move {
                let now: String = ask!(redis, "GET", &key);
                now != before
            }
        })
        .await;
        let rows = held(&mut redis, "a").await;
        assert!(rows[0].idle_ms < 300, "idle for {} ms with a floor of 300", rows[0].idle_ms);
        release.store(true, SeqCst);
        reaches(&redis, "finish_query", 1).await;
    });
    assert_eq!(thread.join().unwrap().in_flight, 0);
}

#[tokio::test]
async fn concurrent_sweeps_share_orphans_without_running_one_twice() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..300 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    let orphans = taken_by(&mut redis, "dead", "a", 300).await;
    idle_for(&mut redis, "dead", "a", &orphans, LONG_AGO).await;
    let calls = Calls::default();
    let workers: Vec<Running> = (0..4)
        .map(|_| {
            let calls = calls.clone();
            Running::start(quick(&server, "a").task_limit(20), move |task| {
                calls.note(&task);
                async { Ok(Answer::forward()) }
            })
        })
        .collect();
    reaches(&redis, "b", 300).await;
    for worker in workers {
        worker.leave().await;
    }
    let ran = calls.queries();
    assert_eq!(ran.len(), 300);
    assert_eq!(ran.into_iter().collect::<HashSet<_>>().len(), 300);
    assert!(calls.tasks().iter().all(|task| task.fence().deliveries == 2));
}

#[tokio::test]
async fn a_worker_finds_entries_that_were_delivered_in_a_lost_reply() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let worker = quick(&server, "a").redis_url(server.url_through(proxy.port())).task_limit(3);
    // Long enough that the worker is in a blocking read, not a sweep, when replies are swallowed.
    let worker = Running::start(worker.reclaim_interval(Duration::from_secs(3)), done);
    add(&mut redis, "first", &["a"]).await;
    reaches(&redis, "finish_query", 1).await;
    eventually("the worker waits for entries", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let clients: String = redis::cmd("INFO").arg("clients").query_async(&mut redis).await.unwrap();
            clients.contains("blocked_clients:1")
        }
    })
    .await;
    proxy.swallow_replies();
    for n in 0..3 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    eventually("Redis has delivered one", PATIENCE, || {
        let mut redis = redis.clone();
        async move { pending(&mut redis, "a").await > 0 }
    })
    .await;
    proxy.cut();
    proxy.pass();
    reaches(&redis, "finish_query", 4).await;
    worker.leave().await;
    assert_eq!(pending(&mut redis, "a").await, 0);
}

#[tokio::test]
async fn one_slot_suffices_to_read_and_reclaim() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let worker = Running::start(quick(&server, "a").task_limit(1), done);
    for round in 0..3 {
        add(&mut redis, &format!("new{round}"), &["a"]).await;
        reaches(&redis, "finish_query", 2 * round + 1).await;
        let id = ask_for_an_orphan(&mut redis, &format!("orphan{round}")).await;
        reaches(&redis, "finish_query", 2 * round + 2).await;
        assert!(!id.is_empty());
    }
    worker.leave().await;
}

/// Adds an entry that is pending for a consumer that died long ago.
async fn ask_for_an_orphan(redis: &mut MultiplexedConnection, query: &str) -> String {
    let script = redis::Script::new(
        r"local id = redis.call('XADD', 'a', '*', 'query_id', ARGV[1], 'workflow', '[]')
          redis.call('XREADGROUP', 'GROUP', 'consumer', 'dead', 'STREAMS', 'a', '>')
          redis.call('XCLAIM', 'a', 'consumer', 'dead', 0, id, 'IDLE', 600000, 'JUSTID')
          return id",
    );
    script.arg(query).invoke_async(redis).await.unwrap()
}

#[tokio::test]
async fn orphans_of_a_busy_stream_are_not_starved() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..5 {
        add(&mut redis, &format!("orphan{n}"), &["a", "b"]).await;
    }
    let orphans = taken_by(&mut redis, "dead", "a", 5).await;
    idle_for(&mut redis, "dead", "a", &orphans, LONG_AGO).await;
    for n in 0..3000 {
        add(&mut redis, &format!("new{n}"), &["a", "b"]).await;
    }
    let worker = Running::start(quick(&server, "a").task_limit(2), |_| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(Answer::forward())
    });
    eventually("all orphans are through", PATIENCE, || {
        let mut redis = redis.clone();
        async move { queries(&mut redis, "b").await.iter().filter(|query| query.starts_with("orphan")).count() == 5 }
    })
    .await;
    assert!(length(&mut redis, "a").await > 1000, "the stream was not busy any more");
    worker.leave().await;
}

#[tokio::test]
async fn run_time_is_measured_from_the_first_delivery() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let ids = taken_by(&mut redis, "dead", "a", 1).await;
    idle_for(&mut redis, "dead", "a", &ids, Duration::from_secs(100)).await;
    // The next two workers crash as well.
    for _ in 0..2 {
        let calls = Calls::default();
        let stuck = Running::start(quick(&server, "a"), {
            let calls = calls.clone();
            move |task| {
                calls.note(&task);
                std::future::pending()
            }
        });
        eventually("it is taken over", PATIENCE, || async { calls.tasks().len() == 1 }).await;
        let consumer = calls.tasks()[0].fence().consumer.to_text();
        stuck.crash().await;
        let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{consumer}"));
    }
    let worker = Running::start(quick(&server, "a"), done);
    reaches(&redis, "finish_query", 1).await;
    worker.leave().await;
    let durations: Vec<u64> = ask!(redis, "LRANGE", "monitor:task_durations:a", 0, -1);
    assert!(durations.len() == 1 && (100_000..130_000).contains(&durations[0]), "{durations:?}");
}

#[tokio::test]
async fn a_released_task_is_redelivered_and_the_delivery_does_not_count() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a", "b"]).await;
    let calls = Calls::default();
    let worker = Running::start(quick(&server, "a").delivery_limit(2), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            let often = calls.tasks().len();
            async move { if often < 6 { Err(TaskError::give_back("not yet")) } else { Ok(Answer::forward()) } }
        }
    });
    reaches(&redis, "b", 1).await;
    worker.leave().await;
    let counts: Vec<u64> = calls.tasks().iter().map(|task| task.fence().deliveries).collect();
    assert_eq!(counts, [1; 6]);
}

#[tokio::test]
async fn entries_changed_since_the_search_are_not_claimed() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..7 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let ids = taken_by(&mut redis, "dead", "a", 7).await;
    idle_for(&mut redis, "dead", "a", &ids, LONG_AGO).await;
    let stream = TaskStream::new(Name::from("a"), Name::from("consumer"), Name::from("me"));
    let mut link = Link::new(Address::from_url("url", &server.url()).unwrap(), PATIENCE);
    let floor = Duration::from_secs(60);
    let overdue_entries = stream.overdue(&mut link, floor, "-", 100, false).await.unwrap();
    assert_eq!(overdue_entries.len(), 7);

    idle_for(&mut redis, "other", "a", &ids[0..1], LONG_AGO).await;
    let claim = |redis: &MultiplexedConnection, id: &str, options: &[&str]| {
        let (mut redis, mut cmd) = (redis.clone(), redis::cmd("XCLAIM"));
        cmd.arg("a").arg("consumer").arg("dead").arg(0).arg(id).arg(options);
        async move { cmd.query_async::<Value>(&mut redis).await.unwrap() }
    };
    claim(&redis, &ids[1], &["IDLE", "600000", "RETRYCOUNT", "2", "JUSTID"]).await;
    claim(&redis, &ids[2], &["IDLE", "100", "JUSTID"]).await;
    let _: Value = ask!(redis, "XACK", "a", "consumer", &ids[3]);
    let _: Value = ask!(redis, "XDEL", "a", &ids[4]);
    let rules = Claim { min_idle: floor, delivery_limit: 5 };
    let _: Value = ask!(redis, "SET", "worker:heartbeat:a:dead", "{}");
    let back = stream.claim(&mut link, &overdue_entries[5..6], rules).await.unwrap();
    assert!(matches!(&back[..], [Claimed::Spared(_)]), "{back:?}");
    let _: Value = ask!(redis, "DEL", "worker:heartbeat:a:dead");

    let outcomes = stream.claim(&mut link, &overdue_entries, rules).await.unwrap();
    let words: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Claimed::Taken(_) => "taken",
            Claimed::Spared(_) => "spared",
            Claimed::Vanished(_) => "vanished",
            Claimed::Buried { .. } | Claimed::Refused(..) => "buried",
        })
        .collect();
    assert_eq!(words, ["spared", "spared", "spared", "spared", "vanished", "taken", "taken"]);
    let left: Vec<String> =
        held(&mut redis, "a").await.into_iter().filter(|row| row.owner != "me").map(|row| row.id).collect();
    assert_eq!(left, ids[..3]);
}

#[tokio::test]
async fn no_more_orphans_are_claimed_than_there_are_slots() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..20 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let orphans = taken_by(&mut redis, "dead", "a", 20).await;
    idle_for(&mut redis, "dead", "a", &orphans, LONG_AGO).await;
    let calls = Calls::default();
    let worker = Running::start(quick(&server, "a").task_limit(3).drain_timeout(Duration::ZERO), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            std::future::pending()
        }
    });
    eventually("three run", PATIENCE, || async { calls.tasks().len() == 3 }).await;
    // After several sweeps, three entries are still left.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = held(&mut redis, "a").await.iter().filter(|row| row.owner == "dead").count();
    assert_eq!((calls.tasks().len(), left), (3, 17));
    worker.leave().await;
}

#[tokio::test]
async fn a_sweep_over_tens_of_thousands_of_running_tasks_does_not_block() {
    const SLOW: usize = 40_000;
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let crowd = redis::Script::new(
        r"redis.call('XGROUP', 'CREATE', 'a', 'consumer', '0', 'MKSTREAM')
          for n = 1, tonumber(ARGV[1]) do redis.call('XADD', 'a', '*', 'query_id', n, 'workflow', '[]') end
          for _, owner in ipairs({{'slow', ARGV[1] - 1}, {'dead', 1}}) do
            redis.call('XREADGROUP', 'GROUP', 'consumer', owner[1], 'COUNT', owner[2], 'STREAMS', 'a', '>')
          end
          for _, row in ipairs(redis.call('XPENDING', 'a', 'consumer', '-', '+', ARGV[1])) do
            redis.call('XCLAIM', 'a', 'consumer', row[2], 0, row[1], 'IDLE', 600000, 'JUSTID')
          end
          redis.call('SET', 'worker:heartbeat:a:slow', '{}')",
    );
    let _: Value = crowd.arg(SLOW + 1).invoke_async(&mut redis).await.unwrap();
    let calls = Calls::default();
    let worker = Running::start(quick(&server, "a").task_limit(2), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            async { Ok(Answer::forward()) }
        }
    });
    let last = (SLOW + 1).to_string();
    let mut longest = Duration::ZERO;
    let mut rounds = 0;
    while !calls.queries().contains(&last) {
        rounds += 1;
        let (query, added) = (format!("new{rounds}"), std::time::Instant::now());
        add(&mut redis, &query, &["a"]).await;
        eventually("a new task is served", PATIENCE, || async { calls.queries().contains(&query) }).await;
        longest = longest.max(added.elapsed());
    }
    assert!(longest < Duration::from_secs(3), "a new task waited {longest:?}");
    worker.leave().await;
    assert_eq!(pending(&mut redis, "a").await, SLOW);
}

#[tokio::test]
async fn a_task_claimed_by_others_is_neither_released_nor_renewed_nor_retried() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..4 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let ids = taken_by(&mut redis, "me", "a", 4).await;
    // Another owner with the same delivery count; the same owner with a later delivery; not pending.
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "thief", 0, &ids[0], "JUSTID");
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "me", 0, &ids[1]);
    let _: Value = ask!(redis, "XACK", "a", "consumer", &ids[2]);
    let before: Vec<(String, u64)> =
        held(&mut redis, "a").await.into_iter().map(|row| (row.owner, row.deliveries)).collect();

    let stream = TaskStream::new(Name::from("a"), Name::from("consumer"), Name::from("me"));
    let mut link = Link::new(Address::from_url("url", &server.url()).unwrap(), PATIENCE);
    let tasks: Vec<(EntryId, u64)> = ids.iter().map(|id| (EntryId::from(id.as_str()), 1)).collect();
    use Verdict::{Done, Fenced, Gone};
    assert_eq!(stream.renew(&mut link, &tasks).await.unwrap(), [Fenced, Fenced, Gone, Done]);
    let given_back: Vec<_> = tasks.into_iter().map(|(id, deliveries)| (id, deliveries, LONG_AGO)).collect();
    assert_eq!(stream.release(&mut link, &given_back).await.unwrap(), [Fenced, Fenced, Gone, Done]);
    for (id, kept) in ids.iter().zip([Err(Fenced), Err(Fenced), Err(Gone)]) {
        let id = EntryId::from(id.as_str());
        assert_eq!(stream.retry(&mut link, (&id, 1), false, "not yet").await.unwrap(), kept);
    }
    let after = held(&mut redis, "a").await;
    assert_eq!(after[..2].iter().map(|row| (row.owner.clone(), row.deliveries)).collect::<Vec<_>>(), before[..2]);
    assert!(after[..2].iter().all(|row| row.idle_ms < LONG_AGO.as_millis() as u64), "{after:?}");
    assert_eq!((after[2].owner.as_str(), after[2].deliveries), ("me", 0));
}

/// A server on which every pending entry was given back to its group by XNACK (Redis 8.8): no owner, idle -1.
const ALL_RELEASED: &str = "
local server = redis
local redis = setmetatable({}, {__index = server})
local function released(name, rows)
  if name == 'XPENDING' and not rows.err then
    for _, row in ipairs(rows) do row[2], row[3] = '', -1 end
    if REJECTED then for _, row in ipairs(rows) do row[4] = 9223372036854775807 end end
  end
  return rows
end
redis.call = function(name, ...) return released(name, server.call(name, ...)) end
redis.pcall = function(name, ...) return released(name, server.pcall(name, ...)) end
";

/// Runs a script there; `rejected`: by XNACK FATAL.
async fn on_released<T: redis::FromRedisValue>(
    redis: &mut MultiplexedConnection,
    script: &str,
    rejected: bool,
    keys: &[&str],
    args: &[&str],
) -> T {
    let shim = format!("local REJECTED = {rejected}\n{ALL_RELEASED}");
    let common = [
        include_str!("../../src/redis_streams/scripts/before.lua"),
        include_str!("../../src/redis_streams/scripts/unneeded.lua"),
    ];
    let text = format!("{shim}{}{script}", common.concat());
    redis::cmd("EVAL").arg(text).arg(keys.len()).arg(keys).arg(args).query_async(redis).await.unwrap()
}

#[tokio::test]
async fn an_entry_that_xnack_gave_back_is_visible_and_taken_over_whatever_the_floor() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let id = taken_by(&mut redis, "x", "a", 1).await.remove(0);
    // Listed, though messages that are idle for a minute were asked for.
    let messages = include_str!("../../src/redis_streams/scripts/messages.lua");
    let asked = ["pending", "consumer", "-", "100", "10", "1000000", "0", "", "60000", "0", "", ""];
    let listed: Vec<Value> = on_released(&mut redis, messages, false, &["a"], &asked).await;
    let row: (String, String, u64, u64, u64, u64, Vec<Value>) = redis::from_redis_value(listed[2].clone()).unwrap();
    assert_eq!((row.0.as_str(), row.1.as_str(), row.2, row.3), (id.as_str(), "", 1, 0));

    let claim = include_str!("../../src/redis_streams/scripts/claim.lua");
    let keys = ["a", "a:dead", "failures", "record", "worker:heartbeat:a:"];
    let args = |deliveries: &'static str| {
        let args = ["consumer", "me", "240000", "10", "60000", "1", "counter", "last"].map(str::to_owned);
        args.into_iter().chain([id.clone(), String::new(), deliveries.to_owned(), "4".to_owned(), "5".to_owned()])
    };
    let given: Vec<String> = args("1").collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let claimed: Vec<Vec<Value>> = on_released(&mut redis, claim, false, &keys, &given).await;
    assert_eq!(claimed[0][0], Value::BulkString(b"claimed".to_vec()), "{claimed:?}");
    assert_eq!(held(&mut redis, "a").await[0].owner, "me");

    // Rejected for good, it is dead-lettered, and its count is still a number.
    let given: Vec<String> = args("9223372036854775807").collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let claimed: Vec<Vec<Value>> = on_released(&mut redis, claim, true, &keys, &given).await;
    assert_eq!(claimed[0][0], Value::BulkString(b"buried".to_vec()), "{claimed:?}");
    let (_, letter) = entries(&mut redis, "a:dead").await.remove(0);
    let field = |name: &str| letter.iter().find(|(known, _)| known == name).unwrap().1.clone();
    assert_eq!(field("dead_deliveries"), "9007199254740992");
    assert!(field("dead_error").contains("rejected for good; it has no owner"), "{letter:?}");
}

#[tokio::test]
async fn an_operator_may_drop_an_entry_that_xnack_gave_back() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let id = taken_by(&mut redis, "x", "a", 1).await.remove(0);
    let operate = include_str!("../../src/redis_streams/scripts/operate.lua");
    let keys = ["a", "a:dead", "marks", "record", "worker:heartbeat:a:"];
    let args = [
        "drop", "pending", "consumer", "60000", "60000", "60000", "why", "origin", "a", "1", "place", &id, "", "1",
        "4", "5",
    ];
    let done: Vec<String> = on_released(&mut redis, operate, false, &keys, &args).await;
    assert_eq!((done, pending(&mut redis, "a").await), (vec!["done".to_owned()], 0));
}
