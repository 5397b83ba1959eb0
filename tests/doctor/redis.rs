//! A Redis that is wrong, in one way after another.

use std::time::Instant;

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::servers::{HeldPort, RedisOptions};
use shepherd_monitor::worker::Producer;

use super::*;
use crate::support::wait::eventually;

/// What it says of this Redis; Postgres is away in these tests.
fn doctor_of(redis: &str, arguments: &[&str]) -> Said {
    doctor(arguments, &[("REDIS_URL", redis), ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres")])
}

#[tokio::test]
async fn one_that_deletes_keys_when_it_is_full() {
    let options = RedisOptions::with_args(["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let redis = TestRedis::start_with(options);
    let told = doctor_of(&redis.url(), &[]).says("redis.eviction", "wrong");
    assert!(told.contains("allkeys-lru") && told.contains("noeviction"), "{told}");
    ask(&redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    doctor_of(&redis.url(), &[]).says("redis.eviction", "worth_knowing");
    ask(&redis, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    doctor_of(&redis.url(), &[]).is_fine("redis.eviction");
}

#[tokio::test]
async fn one_that_is_nearly_full_and_one_that_is_full() {
    let redis = TestRedis::start();
    let used = async || -> u64 {
        let ::redis::Value::BulkString(info) = ask(&redis, &["INFO", "memory"]).await else { panic!() };
        let info = String::from_utf8(info).unwrap();
        info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
    };
    let limit = (used().await * 100 / 95).to_string();
    ask(&redis, &["CONFIG", "SET", "maxmemory", &limit]).await;
    let told = doctor_of(&redis.url(), &[]).says("redis.memory", "wrong");
    assert!(told.contains("maxmemory"), "{told}");
    ask(&redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let told = doctor_of(&redis.url(), &[]).says("redis.refuses", "wrong");
    assert!(told.contains("rejects commands that need memory (OOM"), "{told}");
}

#[tokio::test]
async fn one_that_accepts_no_more_clients_says_so_to_monitor_and_worker() {
    let redis = TestRedis::start();
    let mut only = redis.connection().await;
    ::redis::cmd("CONFIG").arg(&["SET", "maxclients", "1"]).exec_async(&mut only).await.unwrap();
    let told = doctor_of(&redis.url(), &[]).says("redis.reached", "wrong");
    assert!(told.starts_with("Redis accepts no more connections (maxclients is reached) /"), "{told}");
    let error = Producer::builder().redis_url(redis.url()).connect().await.err().unwrap().to_string();
    assert!(error.contains("raise maxclients"), "{error}");
    drop(only);
}

#[tokio::test]
async fn one_whose_password_is_not_set() {
    let redis = TestRedis::start();
    ask(&redis, &["CONFIG", "SET", "requirepass", "s3cret"]).await;
    let told = doctor_of(&redis.url(), &[]).says("redis.reached", "wrong");
    assert!(told.contains("requires a password, and none is set") && told.contains("Set REDIS_PASSWORD"), "{told}");
}

#[tokio::test]
async fn a_sentinel_is_no_redis() {
    let port = HeldPort::take().unwrap();
    let sentinel = Reaper::start("sentinel", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
    let file = sentinel.folder().join("sentinel.conf");
    std::fs::write(&file, format!("bind 127.0.0.1\nport {}\n", port.number())).unwrap();
    sentinel.serve(&["redis-server", file.to_str().unwrap(), "--sentinel"]).unwrap();
    let url = format!("redis://127.0.0.1:{}", port.number());
    let told = eventually("the Sentinel answers", Duration::from_secs(20), || async {
        let said = doctor_of(&url, &[]);
        said.of("wrong")
            .contains(&"redis.role")
            .then(|| said.says("redis.role", "wrong"))
            .ok_or_else(|| format!("{:?}", said.findings))
    })
    .await;
    assert!(told.contains("this is a Redis Sentinel") && told.contains("to the primary"), "{told}");
}

#[tokio::test]
async fn one_that_keeps_nothing_on_disk() {
    let redis = TestRedis::start();
    let said = doctor_of(&redis.url(), &[]);
    let told = said.says("redis.persistence", "wrong");
    assert!(told.contains("appendonly yes"), "{told}");
    ask(&redis, &["CONFIG", "SET", "save", "900 1"]).await;
    doctor_of(&redis.url(), &[]).says("redis.persistence", "worth_knowing");
    ask(&redis, &["CONFIG", "SET", "appendonly", "yes"]).await;
    doctor_of(&redis.url(), &[]).is_fine("redis.persistence");
}

#[tokio::test]
async fn work_that_nobody_reads_has_a_name() {
    let redis = TestRedis::start();
    ask_all(
        &redis,
        &[
            &["XADD", "a.log", "*", "f", "v"],
            &["XGROUP", "CREATE", "deserted", "consumer", "0", "MKSTREAM"],
            &["XADD", "deserted", "*", "f", "v"],
            &["XGROUP", "CREATE", "at.rest", "consumer", "0", "MKSTREAM"],
            // Undelivered since 2020, and its only consumer asks for nothing.
            &["XGROUP", "CREATE", "stopped", "consumer", "0", "MKSTREAM"],
            &["XGROUP", "CREATECONSUMER", "stopped", "consumer", "c1"],
            &["XADD", "stopped", "1577836800000-0", "f", "v"],
            &["XADD", "finish_query:dead", "*", "f", "v"],
        ],
    )
    .await;
    let said = doctor_of(&redis.url(), &["--idle", "1ms"]);
    for (id, verdict, name) in [
        ("redis.without_group", "worth_knowing", "a.log"),
        ("redis.without_consumer", "wrong", "consumer of deserted"),
        ("redis.group_at_rest", "worth_knowing", "consumer of at.rest"),
        ("redis.group_stopped", "wrong", "consumer of stopped"),
        ("redis.dead_letters", "worth_knowing", "finish_query:dead"),
    ] {
        let told = said.says(id, verdict);
        assert!(told.contains(name), "{id}: {told}");
        assert!(id == "redis.dead_letters" || !told.contains(":dead"), "{told}");
    }
    // With an hour's patience its consumer only just came.
    let patient = doctor_of(&redis.url(), &[]);
    assert!(!patient.of("wrong").contains(&"redis.group_stopped"), "{:#?}", patient.findings);
    // What is not watched is nobody's trouble.
    let watching = [
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres"),
        ("MONITOR_STREAMS", "at.*"),
    ];
    assert!(!doctor(&[], &watching).of("wrong").contains(&"redis.without_consumer"));
}

#[tokio::test]
async fn phantoms_and_dead_consumers_are_told_from_those_that_live() {
    let redis = TestRedis::start();
    ask_all(
        &redis,
        &[
            &["XGROUP", "CREATE", "s", "consumer", "0", "MKSTREAM"],
            &["XADD", "s", "*", "f", "v"],
            &["XREADGROUP", "GROUP", "consumer", "holder", "STREAMS", "s", ">"],
            &["XGROUP", "CREATECONSUMER", "s", "consumer", "phantom"],
            &["XGROUP", "CREATECONSUMER", "s", "consumer", "living"],
            &["XGROUP", "CREATECONSUMER", "s", "consumer", "garbled"],
            &[
                "SET",
                "worker:heartbeat:s:living",
                r#"{"stream":"s","consumer":"living","started_at":1.0,"last_seen":1.0,"task_limit":1}"#,
            ],
            &["SET", "worker:heartbeat:s:garbled", "no JSON at all"],
        ],
    )
    .await;
    let said = doctor_of(&redis.url(), &["--idle", "1ms"]);
    let phantom = said.says("redis.phantom", "worth_knowing");
    let holder = said.says("redis.dead_consumer", "wrong");
    let garbled = said.says("redis.heartbeat_unreadable", "wrong");
    assert!(
        phantom.contains("phantom of s") && !phantom.contains("holder") && !phantom.contains("living"),
        "{phantom}"
    );
    assert!(holder.contains("1 message pending on 1 consumer") && holder.contains("holder of s"), "{holder}");
    assert!(garbled.contains("worker:heartbeat:s:garbled"), "{garbled}");
    let patient = doctor_of(&redis.url(), &[]);
    assert!(!patient.of("worth_knowing").contains(&"redis.phantom"), "{:#?}", patient.findings);
}

#[tokio::test]
async fn a_user_that_may_not_do_what_the_monitor_needs() {
    let redis = TestRedis::start();
    ask(&redis, &["XGROUP", "CREATE", "s", "consumer", "0", "MKSTREAM"]).await;
    ask(
        &redis,
        &["ACL", "SETUSER", "watcher", "on", ">pass", "~*", "&*", "+@all", "-xtrim", "-xgroup|delconsumer", "-zadd"],
    )
    .await;
    let url = format!("redis://watcher:pass@127.0.0.1:{}/", redis.port());
    let said = doctor_of(&url, &[]);
    let told = said.says("redis.may_tend", "wrong");
    assert!(told.contains("user watcher") && told.contains("XTRIM and XGROUP DELCONSUMER"), "{told}");
    assert!(told.contains("ACL SETUSER watcher +xtrim +xgroup|delconsumer"), "{told}");
    assert!(said.says("redis.may_remember", "wrong").contains("ZADD"));
    assert!(!said.of("wrong").contains(&"redis.may_watch"));
    // What it says to do is what helps.
    ask(&redis, &["ACL", "SETUSER", "watcher", "+xtrim", "+xgroup|delconsumer", "+zadd"]).await;
    doctor_of(&url, &[]).is_fine("redis.may");

    // May send everything, to other keys.
    ask(&redis, &["ACL", "SETUSER", "elsewhere", "on", ">pass", "~other:*", "&*", "+@all"]).await;
    let said = doctor_of(&format!("redis://elsewhere:pass@127.0.0.1:{}/", redis.port()), &[]);
    let told = said.says("redis.may_watch", "wrong");
    assert!(told.contains("XLEN") && told.contains("ACL SETUSER elsewhere ~*"), "{told}");

    // May begin a transaction and not carry it out.
    ask(&redis, &["ACL", "SETUSER", "halfway", "on", ">pass", "~*", "&*", "+@all", "-exec", "-ping"]).await;
    let said = doctor_of(&format!("redis://halfway:pass@127.0.0.1:{}/", redis.port()), &[]);
    assert!(said.says("redis.may_remember", "wrong").contains("ACL SETUSER halfway +exec"));
    assert!(said.says("redis.may_watch", "wrong").contains("ACL SETUSER halfway +ping"));

    // May not even begin a transaction.
    ask(&redis, &["ACL", "SETUSER", "reader", "on", ">pass", "~*", "&*", "+@read", "+info", "+time", "+scan"]).await;
    let said = doctor_of(&format!("redis://reader:pass@127.0.0.1:{}/", redis.port()), &[]);
    assert!(said.says("redis.may_remember", "wrong").contains("MULTI"));
    let size = ask(&redis, &["DBSIZE"]).await;
    assert_eq!(size, ::redis::Value::Int(1), "nothing was carried out instead of queued");
}

#[tokio::test]
async fn a_replica() {
    let primary = TestRedis::start();
    let port = primary.port().to_string();
    let replica = TestRedis::start_with(RedisOptions::with_args(["--replicaof", "127.0.0.1", &port]));
    let told = doctor_of(&replica.url(), &[]).says("redis.role", "wrong");
    assert!(told.contains("replica") && told.contains("primary"), "{told}");
    doctor_of(&primary.url(), &[]).is_fine("redis.role");
}

#[tokio::test]
async fn one_that_is_loading() {
    let slow = ["--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024", "--save", "900 1"];
    let redis = TestRedis::start_with(RedisOptions::with_args(slow));
    let mut connection = redis.connection().await;
    let mut fill = ::redis::pipe();
    for n in 0..60_000 {
        fill.cmd("SET").arg(n).arg("x".repeat(50)).ignore();
    }
    let _: () = fill.query_async(&mut connection).await.unwrap();
    let _: String = ::redis::cmd("SAVE").query_async(&mut connection).await.unwrap();
    redis.relaunch().unwrap();
    crate::support::wait::eventually("it is loading", Duration::from_secs(15), || async {
        let said = doctor_of(&redis.url(), &[]);
        let told = said.findings.iter().find(|f| f["id"] == "redis.loading" && f["verdict"] == "wrong").cloned();
        told.ok_or_else(|| format!("{:?}", said.of("wrong")))
    })
    .await;
}

#[tokio::test]
async fn one_that_refuses_the_password_one_that_is_away_and_one_that_hangs() {
    let redis = TestRedis::start_with(RedisOptions::with_args(["--requirepass", "right"]));
    let wrong = format!("redis://:wr0ngpass@127.0.0.1:{}/", redis.port());
    let told = doctor_of(&wrong, &[]).says("redis.reached", "wrong");
    assert!(told.contains("password") && !told.contains("wr0ngpass"), "{told}");

    let redis = TestRedis::start();
    redis.stop().unwrap();
    let began = Instant::now();
    let told = doctor_of(&redis.url(), &[]).says("redis.reached", "wrong");
    assert!(told.contains("timed out"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(40), "it took {:?}", began.elapsed());
    redis.resume().unwrap();
    redis.kill().unwrap();
    let told = doctor_of(&redis.url(), &[]).says("redis.reached", "wrong");
    assert!(told.contains("cannot connect to Redis") && told.contains("REDIS_URL"), "{told}");
}

#[tokio::test]
async fn a_watched_key_that_is_no_stream() {
    let redis = TestRedis::start();
    ask(&redis, &["SET", "arax", "a string"]).await;
    let settings = [
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres"),
        ("MONITOR_SEED_STREAMS", "arax,not.yet"),
    ];
    let told = doctor(&[], &settings).says("redis.stream_unreadable", "wrong");
    assert!(told.contains("arax (this key is not a stream)") && !told.contains("not.yet"), "{told}");
}
