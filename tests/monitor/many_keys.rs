//! A Redis with many other keys: ticks do not scan it, and new streams are found.

use std::time::Duration;

use redis::aio::MultiplexedConnection;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run};
use crate::support::wait::eventually;

/// Returns how often SCAN was called.
async fn scans(redis: &mut MultiplexedConnection) -> Option<String> {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.unwrap();
    stats.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls=")?.split(',').next()).map(str::to_owned)
}

#[tokio::test]
async fn ticks_do_not_scan_many_keys_and_new_groups_are_found() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    let _: () = redis::cmd("EVAL")
        .arg("for n = 1, 50000 do redis.call('SET', 'unrelated:' .. n, n) end")
        .arg(0)
        .query_async(&mut connection)
        .await
        .unwrap();
    run(&mut connection, "XADD arax * f v").await;
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    eventually("the keyspace was walked", Duration::from_secs(20), || async {
        let log = monitor.log();
        ["keyspace scan finished", "keyspace scan found"].iter().any(|line| log.contains(line)).then_some(())
    })
    .await;
    monitor.until("its stream is shown", Duration::from_secs(10), |s| s["streams"].get("arax").is_some()).await;

    // After a walk, one tick checks whether this still holds.
    let then = monitor.snapshot().await["ts"].as_f64().unwrap();
    monitor.until("some ticks", Duration::from_secs(20), |s| s["ts"].as_f64().unwrap() > then + 2.0).await;
    let before = scans(&mut connection).await;
    assert!(before.is_some());
    monitor.until("ten more", Duration::from_secs(20), |s| s["ts"].as_f64().unwrap() > then + 7.0).await;
    assert_eq!(scans(&mut connection).await, before);

    // The first group ever created on this server.
    run(&mut connection, "XGROUP CREATE bte consumer 0 MKSTREAM").await;
    monitor.until("the new one is shown", Duration::from_secs(100), |s| s["streams"].get("bte").is_some()).await;
}
