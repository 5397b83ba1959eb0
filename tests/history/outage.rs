//! Postgres killed, stopped or out of disk space: durations and samples are spooled, and arrive in order and once.
//!
//! `OUTAGE_SEC` is the duration of the outage (8; the full size is 120).

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use shepherd_monitor::demo::servers::PrivatePostgres;

use super::*;
use crate::support::monitor::Monitor;
use crate::support::postgres::connect;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

fn outage() -> Duration {
    Duration::from_secs(std::env::var("OUTAGE_SEC").map_or(8, |text| text.parse().unwrap()))
}

/// Continuously finished tasks, counted.
struct Work {
    going_on: Arc<AtomicBool>,
    pushing: tokio::task::JoinHandle<u64>,
}

impl Work {
    async fn start(redis: &TestRedis) -> Self {
        let mut connection = redis.connection().await;
        let _: String =
            redis::cmd("XADD").arg(&["s", "*", "query_id", "q"]).query_async(&mut connection).await.unwrap();
        let going_on = Arc::new(AtomicBool::new(true));
        let go_on = Arc::clone(&going_on);
        let pushing = tokio::spawn(async move {
            let mut pushed = 0;
            while go_on.load(Ordering::SeqCst) {
                let mut push = redis::cmd("LPUSH");
                push.arg("monitor:task_durations:s").arg(&[5, 50]);
                push.exec_async(&mut connection).await.unwrap();
                pushed += 2;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            pushed
        });
        Self { going_on, pushing }
    }

    async fn stop(self) -> u64 {
        self.going_on.store(false, Ordering::SeqCst);
        self.pushing.await.unwrap()
    }
}

fn settings<'a>(redis: &'a str, database: &'a str, spool: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("REDIS_URL", redis),
        ("DATABASE_URL", database),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
        ("MONITOR_POLL_INTERVAL_SEC", "250ms"),
        ("POSTGRES_POOL_TIMEOUT", "1"),
        ("MONITOR_SPOOL_DIR", spool),
    ]
}

/// Waits until all `pushed` tasks are archived; fails if there are more.
async fn assert_archived(monitor: &Monitor, pushed: u64) {
    let count = async || {
        let (_, body) = monitor.get("/api/historical/latency").await;
        serde_json::from_str::<Value>(&body).unwrap_or_default()["all"]["count"].as_u64().unwrap_or(0)
    };
    eventually("all durations are archived", Duration::from_secs(60), || async {
        let got = count().await;
        if got == pushed { Ok(()) } else { Err(format!("{got} of {pushed}")) }
    })
    .await;
}

/// Waits until a series has a sample for each second between its first and last one; seconds in which the machine was suspended may
/// be missing.
async fn assert_without_gap(url: &str, at_least: Duration) {
    let sql = connect(url).await.unwrap();
    let query = "SELECT count(*), count(DISTINCT ts), coalesce(extract(epoch FROM max(ts) - min(ts)), 0)::bigint, \
         count(*) FILTER (WHERE value <> 1) FROM monitor_metrics_all WHERE metric = 'xlen:s'";
    eventually("no sample is missing", Duration::from_secs(60), || async {
        let row = sql.query_one(query, &[]).await.map_err(|e| e.to_string())?;
        let (rows, moments, seconds, wrong): (i64, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!((rows, wrong), (moments, 0), "stored once, as measured");
        let enough = seconds as u64 >= at_least.as_secs() && rows * 100 >= (seconds + 1) * 85;
        if enough { Ok(()) } else { Err(format!("{rows} samples in {seconds} s")) }
    })
    .await;
}

async fn assert_nothing_is_lost(break_it: impl FnOnce(&PrivatePostgres), mend_it: impl FnOnce(&PrivatePostgres)) {
    let (redis, postgres) = (TestRedis::start(), PrivatePostgres::start().unwrap());
    let (redis_url, database_url) = (redis.url(), postgres.url());
    let spool = redis.folder().join("spool").display().to_string();
    let work = Work::start(&redis).await;
    let monitor = Monitor::start(&settings(&redis_url, &database_url, &spool)).await;
    eventually("something is archived", Duration::from_secs(30), || async {
        monitor.get("/api/historical/latency").await.1.contains("\"s\"")
    })
    .await;
    break_it(&postgres);
    tokio::time::sleep(outage() / 2).await;
    // The monitor is also killed during the outage.
    monitor.send("KILL");
    eventually("it is dead", Duration::from_secs(10), || async { !monitor.is_running() }).await;
    drop(monitor);
    let monitor = Monitor::start(&settings(&redis_url, &database_url, &spool)).await;
    tokio::time::sleep(outage() / 2).await;
    mend_it(&postgres);
    eventually("it is back", Duration::from_secs(30), || async {
        monitor.snapshot().await["postgres"]["source"]["status"] == "ok"
    })
    .await;
    let pushed = work.stop().await;
    assert_archived(&monitor, pushed).await;
    assert_without_gap(&database_url, outage()).await;
}

#[tokio::test]
async fn nothing_is_lost_while_postgres_is_down() {
    assert_nothing_is_lost(|p| p.kill().unwrap(), |p| p.restart().unwrap()).await;
}

#[tokio::test]
async fn nothing_is_lost_while_postgres_is_stopped() {
    assert_nothing_is_lost(|p| p.stop().unwrap(), |p| p.resume().unwrap()).await;
}

/// A small disk for this test; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf, megabytes: u32) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let options = format!("size={megabytes}m,mode=777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder).status();
        assert!(mounted.unwrap().success(), "a small disk can be mounted by root alone");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn nothing_is_lost_while_the_database_disk_is_full() {
    if !std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t") {
        eprintln!("left out: only root can mount a small disk");
        return;
    }
    let (redis, postgres) = (TestRedis::start(), PrivatePostgres::start().unwrap());
    // Next to the data folder, because its owner deletes everything in it.
    let disk = SmallDisk::mount(postgres.folder().join("small"), 40);
    let sql = connect(&postgres.url()).await.unwrap();
    let place = disk.0.join("space");
    std::fs::create_dir(&place).unwrap();
    drop(Command::new("chown").arg("postgres").arg(&place).status());
    sql.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display())).await.unwrap();
    sql.batch_execute("CREATE DATABASE small TABLESPACE small").await.unwrap();
    let database_url = postgres.url_of("small");
    let redis_url = redis.url();
    let spool = redis.folder().join("spool").display().to_string();
    let work = Work::start(&redis).await;
    let monitor = Monitor::start(&settings(&redis_url, &database_url, &spool)).await;
    eventually("something is archived", Duration::from_secs(30), || async {
        monitor.get("/api/historical/latency").await.1.contains("\"s\"")
    })
    .await;
    let filler = connect(&database_url).await.unwrap();
    filler.batch_execute("CREATE UNLOGGED TABLE filler (text text)").await.unwrap();
    let fill = "INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, $1::int) n";
    for rows in [20_000, 1000, 100, 10, 1] {
        while filler.execute(fill, &[&rows]).await.is_ok() {}
    }
    // Full enough that the next page is rejected and archiving stops.
    eventually("the monitor meets the full disk", Duration::from_secs(60), || async {
        monitor.log().contains("No space left on device")
    })
    .await;
    // The page also reports the cause and the remedy.
    let named = |text: &str| text.contains("Postgres is out of disk space") && text.contains("Free disk space");
    eventually("the full disk is named", Duration::from_secs(60), || async {
        let (_, ready) = monitor.get("/readyz?verbose").await;
        let (_, page) = monitor.get("/").await;
        if named(&ready) && named(&page) && named(&monitor.log()) { Ok(()) } else { Err(ready) }
    })
    .await;
    tokio::time::sleep(outage() / 2).await;
    filler.batch_execute("DROP TABLE filler").await.unwrap();
    let pushed = work.stop().await;
    assert_archived(&monitor, pushed).await;
    assert_without_gap(&database_url, outage() / 2).await;
    eventually("the page shows that it ended", Duration::from_secs(60), || async {
        !named(&monitor.get("/readyz?verbose").await.1)
    })
    .await;
    drop(monitor);
    drop(filler);
    for drop in ["DROP DATABASE small WITH (FORCE)", "DROP TABLESPACE small"] {
        sql.batch_execute(drop).await.unwrap();
    }
    drop(disk);
}
