//! Keys of the monitor that hold another type, such as those of another application: each concerns only what it was for.

use std::time::Duration;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run};
use crate::support::wait::eventually;

#[tokio::test]
async fn key_of_another_type_stops_neither_polling_nor_recording() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut commands = redis.connection().await;
    let batch = "01890000-0000-7000-8000-000000000000";
    for command in [
        "XGROUP CREATE s consumer $ MKSTREAM",
        "XGROUP CREATE other consumer $ MKSTREAM",
        "SET shepherd-monitor:known_workers foreign",
        "SET monitor:events:spool foreign",
        "SET shepherd-monitor:worker_state:s foreign",
        "SET shepherd-monitor:hist:xlen:s foreign",
        "SET shepherd-monitor:task_failures foreign",
        "SET monitor:task_durations:other foreign",
        &format!("SET monitor:latency:batch:{batch} foreign"),
        "HSET monitor:latency:batches no-id 1 other-no-id 2",
        "RPUSH monitor:task_durations:s 40 50 60",
    ] {
        run(&mut commands, command).await;
    }
    // With the time and name that a batch has, it is read.
    let noted = redis::cmd("HSET").arg("monitor:latency:batches").arg(batch).arg("1800000000000 s").to_owned();
    let _: i64 = noted.query_async(&mut commands).await.unwrap();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &redis.url()),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    let shown = |s: &serde_json::Value| s["redis"]["error"].is_null() && s["streams"].get("other").is_some();
    monitor.until("the streams are shown", Duration::from_secs(10), shown).await;
    let sql = database.connect().await;
    eventually("the run times are stored", Duration::from_secs(20), || async {
        let stored = sql.query("SELECT DISTINCT stream FROM monitor_task_latency WHERE stream = 's'", &[]).await;
        stored.is_ok_and(|rows| rows.len() == 1).then_some(())
    })
    .await;
    eventually("the series of another stream is recorded", Duration::from_secs(10), || async {
        let length: i64 = redis::cmd("ZCARD")
            .arg("shepherd-monitor:hist:xlen:other")
            .query_async(&mut redis.connection().await)
            .await
            .unwrap();
        (length > 1).then_some(())
    })
    .await;
    let foreign: String =
        redis::cmd("GET").arg(format!("monitor:latency:batch:{batch}")).query_async(&mut commands).await.unwrap();
    assert_eq!(foreign, "foreign", "not deleted");
    let waiting: i64 = redis::cmd("HLEN").arg("monitor:latency:batches").query_async(&mut commands).await.unwrap();
    assert_eq!(waiting, 0, "they no longer delay others");
    let log = monitor.log();
    for named in ["shepherd-monitor:known_workers", batch, "no-id"] {
        assert!(log.contains(named), "{named} is not in the log:\n{log}");
    }
}
