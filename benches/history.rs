//! Cost of thirty days of history, compared with the tables of the older monitor in one run: `cargo bench --bench
//! history [-- DAYS]`.
//!
//! Fills a private Postgres as the older monitor did (220 series every 30 s, latencies of twenty streams, a million
//! queries), reads the data of the page with that monitor's statements, lets the monitor migrate the tables, and reads
//! the same data from its API. Then measures retention, and compares percentiles of a skewed load with the exact ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark may fail loudly")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::time::{Duration, Instant, SystemTime};

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::seed_history::{self, Past};
use shepherd_monitor::demo::servers::{PrivatePostgres, PrivateRedis, RedisOptions};
use shepherd_monitor::history::Keep;
use shepherd_monitor::history::latency::Latency;
use shepherd_monitor::history::window::Window;
use shepherd_monitor::postgres::connection::{self, PgPool};
use shepherd_monitor::postgres::history::latency::{self, Batch};
use shepherd_monitor::postgres::history::{Selection, compaction, retention};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// Number of measurements; the median counts.
const TIMES: usize = 5;
const TYPES: usize = 34;
const QUERIES: u32 = 1_000_000;

#[tokio::main]
async fn main() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let days: u32 = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(30);
    let (redis, postgres) = (PrivateRedis::start(RedisOptions::default()).unwrap(), PrivatePostgres::start().unwrap());
    let sql = connect(&postgres.url()).await;
    sql.batch_execute(FLEET_TABLES).await.unwrap();
    let began = Instant::now();
    let types = (0..TYPES).map(|n| format!("extra.worker{n:02}")).collect();
    seed_history::fill(&postgres.url(), &Past { days, types, queries: QUERIES / 30 * days }).await.unwrap();
    let samples: i64 = sql.query_one("SELECT count(*) FROM monitor_metrics", &[]).await.unwrap().get(0);
    println!("{days} days, {samples} samples, made in {:.0} s", began.elapsed().as_secs_f64());
    let older_bytes = bytes(&sql, &["monitor_metrics", "monitor_task_latency"]).await;

    let mut older = Vec::new();
    for (name, seconds) in windows(days) {
        let cpu = cpu_seconds(postgres.pid());
        let took = older_page(&sql, seconds).await;
        older.push((name, seconds, took, cpu_seconds(postgres.pid()) - cpu));
    }

    let monitor = Monitor::start(&redis.url(), &postgres.url());
    let began = Instant::now();
    let mut first_page = None;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if first_page.is_none() {
            first_page = monitor.page(3600.0).await.map(|_| began.elapsed());
        }
        let left = sql.query_one("SELECT count(*) FROM monitor_takeover", &[]).await;
        if left.is_ok_and(|row| row.get::<_, i64>(0) == 0) {
            break;
        }
    }
    println!(
        "taken over in {:.0} s; the page answered {:.1} s after the start",
        began.elapsed().as_secs_f64(),
        first_page.unwrap_or_default().as_secs_f64()
    );
    // Also wait for the one-time count of queries.
    loop {
        let counted = sql.query_one("SELECT count(*) FROM monitor_query_counts", &[]).await.unwrap();
        if counted.get::<_, i64>(0) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let tables = [
        "monitor_metrics",
        "monitor_task_latency",
        "monitor_metrics_before",
        "monitor_task_latency_before",
        "monitor_metric_days",
        "monitor_latency_days",
        "monitor_query_counts",
    ];
    let our_bytes = bytes(&sql, &tables).await;
    for table in tables {
        println!("  {table:28} {:8.1} MB", bytes(&sql, &[table]).await / 1e6);
    }
    println!(
        "bytes on disk: older {:.0} MB, ours {:.0} MB: 1/{:.1}",
        older_bytes / 1e6,
        our_bytes / 1e6,
        older_bytes / our_bytes
    );

    println!("{:>8} {:>14} {:>12} {:>12} {:>12} {:>8}", "window", "older", "older CPU", "ours", "ours CPU", "ratio");
    for (name, seconds, took, cpu_older) in older {
        monitor.page(seconds).await.unwrap();
        let mut times = Vec::new();
        let cpu = cpu_seconds(postgres.pid());
        for _ in 0..TIMES {
            times.push(monitor.page(seconds).await.unwrap());
        }
        let cpu = (cpu_seconds(postgres.pid()) - cpu) / TIMES as f64;
        times.sort_unstable();
        let ours = times[TIMES / 2].as_secs_f64();
        println!(
            "{name:>8} {:>11.0} ms {:>9.0} ms {:>9.0} ms {:>9.0} ms {:>8.1}",
            took.as_secs_f64() * 1e3,
            cpu_older * 1e3,
            ours * 1e3,
            cpu * 1e3,
            took.as_secs_f64() / ours
        );
    }
    for path in PAGE {
        let began = Instant::now();
        let size = monitor.get(&format!("{path}{}", range(f64::from(days) * 86_400.0))).await.unwrap();
        println!("  {path:64} {:6.0} ms {size:9} bytes", began.elapsed().as_secs_f64() * 1e3);
    }
    drop(monitor);

    let pool = connection::pool(&postgres.url(), Duration::from_secs(10)).unwrap();
    let keep = days.saturating_sub(1).max(1);
    let began = Instant::now();
    let deleted =
        retention::sweep(&pool, Keep { metrics_days: keep, latency_days: keep, events_days: keep }).await.unwrap();
    println!("retention of a day: {:.0} ms ({deleted:?})", began.elapsed().as_secs_f64() * 1e3);

    skewed(&pool, &sql, days).await;
}

const FLEET_TABLES: &str = include_str!("../migrations/0001_fleet_tables/up.sql");

fn windows(days: u32) -> Vec<(&'static str, f64)> {
    let day = 86_400.0;
    let all = [("1h", 3600.0), ("24h", day), ("7d", 7.0 * day), ("30d", 30.0 * day)];
    all.into_iter().filter(|(_, seconds)| *seconds <= f64::from(days) * day).collect()
}

fn unix() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn range(seconds: f64) -> String {
    format!("since={}&until={}", unix() - seconds, unix())
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn bytes(sql: &Client, tables: &[&str]) -> f64 {
    let mut all = 0;
    for table in tables {
        let row = sql.query_one("SELECT pg_total_relation_size($1::text::regclass)", &[table]).await.unwrap();
        all += row.get::<_, i64>(0);
    }
    all as f64
}

/// Reads the data of the page from plain rows.
async fn older_page(sql: &Client, seconds: f64) -> Duration {
    let bucket = f64::from(shepherd_monitor::history::window::bucket_for(seconds));
    let (since, until) = (unix() - seconds, unix());
    let began = Instant::now();
    let series = "SELECT metric, floor(extract(epoch FROM ts) / $3) * $3 AS bucket, avg(value) FROM monitor_metrics \
         WHERE metric LIKE $4 AND ts >= to_timestamp($1) AND ts < to_timestamp($2) GROUP BY 1, 2 ORDER BY 1, 2";
    let series = series.replace("extract(epoch FROM ts)", "date_part('epoch', ts)");
    for prefix in ["workers_alive:%", "backlog:%", "capacity:%", "redis:%", "pg:%"] {
        sql.query(&series, &[&since, &until, &bucket, &prefix]).await.unwrap();
    }
    let latency = "SELECT stream, floor(date_part('epoch', ts) / $3) * $3 AS bucket, sum(count), avg(mean_ms), avg(p50_ms), \
         avg(p90_ms), avg(p95_ms), avg(p99_ms), min(min_ms), max(max_ms) FROM monitor_task_latency \
         WHERE ts >= to_timestamp($1) AND ts < to_timestamp($2) GROUP BY 1, 2 ORDER BY 1, 2";
    sql.query(latency, &[&since, &until, &bucket]).await.unwrap();
    for query in [
        "SELECT metric, max(value) FROM monitor_metrics WHERE metric LIKE 'backlog:%' AND ts >= to_timestamp($1) \
         AND ts < to_timestamp($2) GROUP BY metric ORDER BY 2 DESC LIMIT 10",
        "SELECT stream, sum(count) FROM monitor_task_latency WHERE ts >= to_timestamp($1) AND ts < to_timestamp($2) \
         GROUP BY stream",
        "SELECT count(*) FROM shepherd_brain WHERE start_time >= to_timestamp($1)::timestamp \
         AND start_time < to_timestamp($2)::timestamp",
        "SELECT type, count(*) FROM monitor_events WHERE ts >= to_timestamp($1) AND ts < to_timestamp($2) GROUP BY type",
        "SELECT * FROM monitor_events WHERE ts >= to_timestamp($1) AND ts < to_timestamp($2) ORDER BY ts DESC LIMIT 500",
    ] {
        sql.query(query, &[&since, &until]).await.unwrap();
    }
    began.elapsed()
}

/// Requests of the page.
const PAGE: [&str; 9] = [
    "/api/historical/summary?",
    "/api/historical/queries?",
    "/api/historical/metrics_by_prefix?prefix=workers_alive:&",
    "/api/historical/metrics_by_prefix?prefix=backlog:&minmax=1&",
    "/api/historical/metrics_by_prefix?prefix=capacity:&",
    "/api/historical/metrics_by_prefix?prefix=redis:&",
    "/api/historical/metrics_by_prefix?prefix=pg:&",
    "/api/historical/latency?",
    "/api/historical/events?",
];

/// The monitor as a process, in release mode.
struct Monitor {
    _reaper: Reaper,
    address: String,
    /// One client for all requests, as in a browser: creating one loads the system's certificates.
    client: reqwest::Client,
}

impl Monitor {
    fn start(redis: &str, database: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let reaper = Reaper::start("shepherd-bench", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        let spool = reaper.folder().join("spool").display().to_string();
        let program = env!("CARGO_BIN_EXE_shepherd-monitor");
        let serve = [program, "serve", "--log-level", "warn", "--port", &port, "--spool-dir", &spool];
        reaper.serve(&[&serve[..], &["--redis-url", redis, "--database-url", database]].concat()).unwrap();
        Self { _reaper: reaper, address: format!("127.0.0.1:{port}"), client: reqwest::Client::new() }
    }

    /// Returns the size of the response in bytes.
    async fn get(&self, path: &str) -> Option<usize> {
        let answer = self.client.get(format!("http://{}{path}", self.address)).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        Some(answer.bytes().await.ok()?.len())
    }

    /// Sends all requests of the page, one after the other.
    async fn page(&self, seconds: f64) -> Option<Duration> {
        let began = Instant::now();
        for path in PAGE {
            self.get(&format!("{path}{}", range(seconds))).await?;
        }
        Some(began.elapsed())
    }
}

/// CPU time of a server and its children. The time of an exited child is lost, so sessions stay open here.
fn cpu_seconds(parent: u32) -> f64 {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let of_server = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let ppid = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        ppid == Some(parent)
    };
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(of_server)
        .filter_map(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        })
        .sum::<f64>()
        / 1e9
}

/// A load with bursts of slow tasks: compares the true p99 of a day with the average of p99s.
async fn skewed(pool: &PgPool, sql: &Client, days: u32) {
    sql.batch_execute("TRUNCATE monitor_task_latency, monitor_latency_days, monitor_latency_batches").await.unwrap();
    let bucket = 30_000_000;
    let last = (unix() as i64 / 86_400) * 86_400 * 1_000_000;
    let first = last - i64::from(days) * 86_400_000_000;
    let (mut all, mut last_day, mut averaged) = (Vec::new(), Vec::new(), (0.0, 0.0));
    let mut state = 42_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let mut batches = Vec::new();
    let mut at = first;
    while at < last {
        // 90 % of the buckets have few tasks, 10 % many slow ones.
        let busy = next() < 0.1;
        let tasks = if busy { 60 } else { 5 };
        let durations: Vec<u64> = (0..tasks)
            .map(|_| (if busy { 400.0 } else { 40.0 } * (-next().ln()).exp().min(1000.0)) as u64 + 1)
            .collect();
        let known = Latency::of_durations(&durations).unwrap();
        averaged = (averaged.0 + known.summary().p99_ms.unwrap(), averaged.1 + 1.0);
        if at >= last - 86_400_000_000 {
            last_day.extend(&durations);
        }
        all.extend(durations);
        batches.push(Batch { id: Uuid::new_v4(), stream: "skewed".into(), at, latency: known });
        if batches.len() == 2880 {
            latency::insert(pool, std::mem::take(&mut batches)).await.unwrap();
            compaction::step(pool, last).await.unwrap();
        }
        at += bucket;
    }
    while compaction::step(pool, last).await.unwrap() > 0 {}
    for (name, from, tasks) in [("24 h", last - 86_400_000_000, &mut last_day), ("all", first, &mut all)] {
        tasks.sort_unstable();
        let exact = tasks[(0.99 * (tasks.len() - 1) as f64) as usize] as f64;
        let window = Window::new(Some(from as f64 / 1e6), Some(last as f64 / 1e6), None, 0.0).unwrap();
        let found = latency::read(pool, &Selection::Prefix("skewed".into()), window).await.unwrap();
        let ours = found.totals["skewed"].summary();
        assert_eq!(ours.count, tasks.len() as u64);
        let ours = ours.p99_ms.unwrap();
        println!(
            "p99 of {name}: exact {exact:.0} ms, ours {ours:.0} ms ({:+.2} %), averaged {:.0} ms ({:+.0} %)",
            (ours / exact - 1.0) * 100.0,
            averaged.0 / averaged.1,
            (averaged.0 / averaged.1 / exact - 1.0) * 100.0
        );
    }
    let size = bytes(sql, &["monitor_latency_days"]).await;
    println!("a stream's sketches take {:.1} KB a day", size / f64::from(days) / 1e3);
}
