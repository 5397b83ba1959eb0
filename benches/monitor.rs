//! What watching costs, as ratios taken in one run: `cargo bench --bench monitor [-- PART…]`.
//!
//! Parts: `small` (20 streams × 5 workers), `large` (200 × 50), each with 0 and 1,000,000 unrelated
//! keys; `browsers` (2,000 of them); `queries` (a million); `rules` (500 of them on 200 streams). All
//! of them when none is named.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark may fail loudly")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use shepherd_monitor::alerting::board::{Board, BoardSettings};
use shepherd_monitor::demo::reaper::{Farewell, Reaper};
use shepherd_monitor::demo::servers::{PrivatePostgres, PrivateRedis, RedisOptions};

const TICK: Duration = Duration::from_secs(3);
const TICKS: u32 = 10;
const WORKER_REWRITES: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    for (part, streams, workers) in [("small", 20, 5), ("large", 200, 50)] {
        if wanted(part) {
            for unrelated in [0, 1_000_000] {
                tick_cost(streams, workers, unrelated).await;
            }
        }
    }
    if wanted("rules") {
        rules(500, 200);
    }
    if wanted("browsers") {
        browsers(2000).await;
    }
    if wanted("queries") {
        queries(1_000_000).await;
    }
}

#[path = "../examples/pages/states.rs"]
#[expect(dead_code, reason = "the pages' tests use the rest of these states")]
mod states;

/// What judging a snapshot costs: rules that name a stream each, and rules that match all of them.
fn rules(count: usize, streams: usize) {
    let mut fleet = states::Fleet::new(unix());
    for s in 0..streams {
        fleet.add(&format!("stream.{s:03}"), 3, 10, 5);
    }
    let snapshot = fleet.finish();
    for (what, glob) in [("a stream each", false), ("all streams each", true)] {
        let rule = |i: usize| {
            let stream = if glob { "'stream.*'".to_owned() } else { format!("stream.{:03}", i % streams) };
            format!("\n  - {{name: r{i}, type: threshold, metric: xlen, stream: {stream}, threshold: 500}}")
        };
        let text: String = (0..count).map(rule).collect();
        let rules = shepherd_monitor::alerting::file::read(&format!("rules:{text}")).unwrap();
        let settings = BoardSettings { grace_until: 0.0, debounce: 5.0, channels: vec!["slack".to_owned()] };
        let mut board = Board::new(settings, Arc::new(rules));
        let mut took: Vec<Duration> = (0..50)
            .map(|i| {
                let began = Instant::now();
                assert!(board.advance(&snapshot, unix() + f64::from(i)).is_empty());
                board.due(unix() + f64::from(i));
                began.elapsed()
            })
            .collect();
        took.sort();
        println!("{count} rules on {streams} streams, {what}: median {:?}, slowest {:?} a tick", took[25], took[49]);
    }
}

/// A fleet of keys: streams with groups, consumers, entries and heartbeats that are rewritten.
struct Fleet {
    redis: PrivateRedis,
    workers: Vec<(String, String)>,
    streams: usize,
    writing: Arc<AtomicBool>,
}

impl Fleet {
    async fn new(streams: usize, workers: usize, unrelated: usize) -> Self {
        let redis = PrivateRedis::start(RedisOptions::default()).unwrap();
        let mut connection = connect(&redis).await;
        let mut names = Vec::new();
        for s in 0..streams {
            let stream = format!("stream.{s:03}");
            let mut pipe = redis::pipe();
            pipe.cmd("XGROUP").arg(&["CREATE", &stream, "consumer", "0", "MKSTREAM"]).ignore();
            for w in 0..workers {
                let consumer = format!("{:08x}", (s * 1000 + w) * 7919);
                pipe.cmd("XADD")
                    .arg(&[&stream, "*", "query_id", "0b6dbe30", "workflow", "[{\"id\":\"next\"}]"])
                    .ignore();
                pipe.cmd("XADD")
                    .arg(&[&stream, "*", "query_id", "0b6dbe31", "workflow", "[{\"id\":\"next\"}]"])
                    .ignore();
                pipe.cmd("XREADGROUP")
                    .arg(&["GROUP", "consumer", &consumer, "COUNT", "1", "STREAMS", &stream, ">"])
                    .ignore();
                names.push((stream.clone(), consumer));
            }
            let _: () = pipe.query_async(&mut connection).await.unwrap();
        }
        for some in (0..unrelated).collect::<Vec<_>>().chunks(10_000) {
            let mut pipe = redis::pipe();
            for n in some {
                pipe.cmd("SET").arg(format!("unrelated:{n}")).arg(n).ignore();
            }
            let _: () = pipe.query_async(&mut connection).await.unwrap();
        }
        let fleet = Self { redis, workers: names, streams, writing: Arc::new(AtomicBool::new(true)) };
        fleet.rewrite_heartbeats(connection);
        fleet
    }

    fn rewrite_heartbeats(&self, mut connection: MultiplexedConnection) {
        let (workers, writing) = (self.workers.clone(), Arc::clone(&self.writing));
        tokio::spawn(async move {
            while writing.load(Ordering::Relaxed) {
                for some in workers.chunks(500) {
                    let mut pipe = redis::pipe();
                    for (stream, consumer) in some {
                        let beat = json!({"stream": stream, "consumer": consumer, "started_at": 1.5, "last_seen": unix(), "task_limit": 10});
                        pipe.cmd("SET")
                            .arg(format!("worker:heartbeat:{stream}:{consumer}"))
                            .arg(beat.to_string())
                            .arg("EX")
                            .arg(15)
                            .ignore();
                    }
                    let _: () = pipe.query_async(&mut connection).await.unwrap();
                }
                tokio::time::sleep(WORKER_REWRITES).await;
            }
        });
    }

    /// The cheapest pipeline that reads the same facts, when everything is known beforehand.
    async fn read_at_least(&self, connection: &mut MultiplexedConnection) {
        let mut pipe = redis::pipe();
        pipe.cmd("INFO").arg(&["server", "clients", "memory", "stats", "replication", "persistence"]).cmd("TIME");
        for s in 0..self.streams {
            let stream = format!("stream.{s:03}");
            pipe.cmd("XLEN").arg(&stream).cmd("XINFO").arg(&["GROUPS", &stream]);
            pipe.cmd("XINFO").arg(&["CONSUMERS", &stream, "consumer"]);
            pipe.cmd("XRANGE").arg(&[&stream, "0-1", "+", "COUNT", "1"]);
        }
        for some in self.workers.chunks(500) {
            pipe.cmd("MGET").arg(some.iter().map(|(s, c)| format!("worker:heartbeat:{s}:{c}")).collect::<Vec<_>>());
        }
        let _: Vec<redis::Value> = pipe.query_async(connection).await.unwrap();
    }
}

async fn connect(redis: &PrivateRedis) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Microseconds of Redis' own time since the last reset, without what the fleet itself costs.
async fn redis_time(connection: &mut MultiplexedConnection) -> f64 {
    let text: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
    let commands = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'));
    commands
        .filter(|(name, _)| *name != "set" && !name.starts_with("config"))
        .filter_map(|(_, figures)| figures.split(',').find_map(|f| f.strip_prefix("usec="))?.parse::<f64>().ok())
        .sum()
}

async fn bytes_out(connection: &mut MultiplexedConnection) -> f64 {
    let text: String = redis::cmd("INFO").arg("stats").query_async(connection).await.unwrap();
    text.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap().trim().parse().unwrap()
}

async fn reset(connection: &mut MultiplexedConnection) {
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(connection).await.unwrap();
}

async fn tick_cost(streams: usize, workers: usize, unrelated: usize) {
    let fleet = Fleet::new(streams, workers, unrelated).await;
    let postgres = PrivatePostgres::start().unwrap();
    let mut connection = connect(&fleet.redis).await;
    println!("\n{streams} streams x {workers} workers, {unrelated} unrelated keys");

    // On an instance of its own: whoever polls whole snapshots makes the monitor build them.
    let first = Monitor::start(&fleet.redis.url(), &postgres.url()).first_snapshot(streams).await;
    let monitor = Monitor::start(&fleet.redis.url(), &postgres.url());
    // The walk at the start is over, and the fleet has settled.
    tokio::time::sleep(Duration::from_secs(if unrelated > 0 { 45 } else { 20 })).await;

    reset(&mut connection).await;
    let (bytes, cpu, tick) = (bytes_out(&mut connection).await, monitor.cpu_seconds(), monitor.ticks().await);
    tokio::time::sleep(TICK * TICKS).await;
    let ticks = (monitor.ticks().await - tick) as f64;
    let (spent, sent, used) =
        (redis_time(&mut connection).await, bytes_out(&mut connection).await - bytes, monitor.cpu_seconds() - cpu);
    let (memory, minutes) = (monitor.resident_mb(), (TICK * TICKS).as_secs_f64() / 60.0);
    drop(monitor);

    reset(&mut connection).await;
    let idle = bytes_out(&mut connection).await;
    tokio::time::sleep(TICK * TICKS).await;
    let idle = bytes_out(&mut connection).await - idle;

    reset(&mut connection).await;
    let bytes = bytes_out(&mut connection).await;
    for _ in 0..TICKS {
        fleet.read_at_least(&mut connection).await;
        tokio::time::sleep(TICK).await;
    }
    let (least, least_sent) = (redis_time(&mut connection).await, bytes_out(&mut connection).await - bytes - idle);
    let (per_tick, least_per_tick) = (spent / ticks, least / f64::from(TICKS));
    println!(
        "  Redis time per tick   {per_tick:9.0} us   cheapest {least_per_tick:9.0} us   ratio {:.2}",
        per_tick / least_per_tick
    );
    let (kb, least_kb) = ((sent - idle) / ticks / 1024.0, least_sent / f64::from(TICKS) / 1024.0);
    println!("  bytes per tick        {kb:9.1} KB   cheapest {least_kb:9.1} KB   ratio {:.2}", kb / least_kb);
    println!("  CPU                   {:9.3} s/min", used / minutes);
    println!("  resident memory       {memory:9.1} MB");
    println!("  exec to first snapshot {:8.0} ms", first.as_secs_f64() * 1000.0);
    fleet.writing.store(false, Ordering::Relaxed);
}

/// The program itself, in release.
struct Monitor {
    pid: u32,
    _reaper: Reaper,
    started: Instant,
    address: String,
}

impl Monitor {
    fn start(redis: &str, database: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let reaper = Reaper::start("shepherd-bench", Farewell { signal: "TERM", epilogue: "" }).unwrap();
        let started = Instant::now();
        let port_text = port.to_string();
        let serve = [env!("CARGO_BIN_EXE_shepherd-monitor"), "serve", "--log-level", "warn", "--port", &port_text];
        let pid = reaper.serve(&[&serve[..], &["--redis-url", redis, "--database-url", database]].concat()).unwrap();
        Self { pid, _reaper: reaper, started, address: format!("127.0.0.1:{port}") }
    }

    async fn json(&self, path: &str) -> Option<Value> {
        reqwest::get(format!("http://{}{path}", self.address)).await.ok()?.json().await.ok()
    }

    /// From exec until a snapshot shows every worker alive.
    async fn first_snapshot(&self, streams: usize) -> Duration {
        loop {
            let snapshot = self.json("/api/snapshot").await.unwrap_or_default();
            let workers = snapshot["workers"].as_object();
            if workers.is_some_and(|w| w.len() == streams && w.values().all(|w| w["state"] == "alive")) {
                return self.started.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn ticks(&self) -> u64 {
        self.json("/readyz?verbose").await.unwrap()["monitor"]["ticks"].as_u64().unwrap()
    }

    /// All its threads together, to the nanosecond.
    fn cpu_seconds(&self) -> f64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let spent = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        });
        spent.sum::<f64>() / 1e9
    }

    fn resident_mb(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

/// Browsers with the live page open, one of which never reads.
async fn browsers(count: usize) {
    let fleet = Fleet::new(20, 5, 0).await;
    let postgres = PrivatePostgres::start().unwrap();
    let monitor = Monitor::start(&fleet.redis.url(), &postgres.url());
    monitor.first_snapshot(20).await;
    println!("\n{count} browsers, 20 streams x 5 workers");
    let known = known_page(&monitor).await;
    let url = format!("ws://{}/live/ws?{known}", monitor.address);
    let (arrivals, mut arrived) = tokio::sync::mpsc::unbounded_channel::<(u64, f64, f64, usize)>();
    let jammed = tokio_tungstenite::connect_async(&url).await.unwrap();
    let opened = Arc::new(AtomicU64::new(0));
    for _ in 0..count {
        let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
        opened.fetch_add(1, Ordering::Relaxed);
        let arrivals = arrivals.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                let at = unix();
                let Ok(text) = message.into_text() else { continue };
                // Finding two numbers is cheaper than parsing 2,000 messages on the measured machine.
                let number = |name: &str| {
                    text.split(&format!("\"{name}\":")).nth(1)?.split([',', '}']).next()?.parse::<f64>().ok()
                };
                if let (Some(tick), Some(ts)) = (number("tick"), number("ts")) {
                    let _ = arrivals.send((tick as u64, ts, at, text.len()));
                }
            }
        });
    }
    tokio::time::sleep(TICK * 2).await;
    while arrived.try_recv().is_ok() {}
    let cpu = monitor.cpu_seconds();
    tokio::time::sleep(TICK * TICKS).await;
    let used = monitor.cpu_seconds() - cpu;
    let mut ticks: std::collections::BTreeMap<u64, Vec<(f64, f64, usize)>> = std::collections::BTreeMap::new();
    while let Ok((tick, ts, at, bytes)) = arrived.try_recv() {
        ticks.entry(tick).or_default().push((ts, at, bytes));
    }
    ticks.retain(|_, got| got.len() >= count);
    let spread = |from_first: bool| {
        let mut spreads: Vec<f64> = ticks
            .values()
            .map(|got| {
                let last = got.iter().map(|g| g.1).fold(0.0, f64::max);
                let first = got.iter().map(|g| g.1).fold(f64::MAX, f64::min);
                (last - if from_first { first } else { got[0].0 }) * 1000.0
            })
            .collect();
        spreads.sort_by(f64::total_cmp);
        (spreads[spreads.len() / 2], spreads[spreads.len() - 1])
    };
    let bytes: usize = ticks.values().flatten().map(|g| g.2).sum();
    let messages: usize = ticks.values().map(Vec::len).sum();
    let (first_median, first_worst) = spread(true);
    let (median, worst) = spread(false);
    println!("  ticks seen by all     {:9}", ticks.len());
    println!("  first to last browser {first_median:9.1} ms median {first_worst:9.1} ms worst");
    println!("  Redis read to last    {median:9.1} ms median {worst:9.1} ms worst");
    println!("  bytes a tick each     {:9.0}", bytes as f64 / messages as f64);
    println!("  CPU                   {:9.3} s/min", used / (TICK * TICKS).as_secs_f64() * 60.0);
    println!("  resident memory       {:9.1} MB", monitor.resident_mb());
    let health = monitor.json("/readyz?verbose").await.unwrap();
    println!("  sessions {} jammed {}", health["monitor"]["sessions"], health["monitor"]["sessions_jammed"]);
    drop(jammed);
    fleet.writing.store(false, Ordering::Relaxed);
}

/// The epoch and tick of a freshly loaded page, as its own script would send them.
async fn known_page(monitor: &Monitor) -> String {
    let page = reqwest::get(format!("http://{}/", monitor.address)).await.unwrap().text().await.unwrap();
    let of = |name: &str| page.split(&format!("data-{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned();
    format!("epoch={}&tick={}", of("epoch"), of("tick"))
}

/// What a million queries cost the database, per tick.
async fn queries(count: usize) {
    let fleet = Fleet::new(20, 5, 0).await;
    let postgres = PrivatePostgres::start().unwrap();
    let monitor = Monitor::start(&fleet.redis.url(), &postgres.url());
    monitor.first_snapshot(20).await;
    let (client, connection) = tokio_postgres::connect(&postgres.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    while client.simple_query("SELECT count(*) FROM shepherd_brain").await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client
        .batch_execute(&format!(
            "INSERT INTO shepherd_brain (qid, start_time, domain, state, status) \
             SELECT 'q' || n, now() - n * interval '30 days' / {count}, (array['aragorn','arax','bte','sipr'])[1 + n % 4], \
             CASE WHEN n < 100 THEN 'QUEUED' ELSE 'COMPLETED' END, 'OK' FROM generate_series(1, {count}) n; \
             INSERT INTO callbacks SELECT 'q' || n, 'c' || n, NULL FROM generate_series(1, 100) n; \
             VACUUM ANALYZE shepherd_brain;"
        ))
        .await
        .unwrap();
    drop(monitor);
    println!("\n{count} queries in the table");
    let monitor = Monitor::start(&fleet.redis.url(), &postgres.url());
    monitor.first_snapshot(20).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (before, tick) = (children_cpu_seconds(postgres.pid()), monitor.ticks().await);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let ticks = (monitor.ticks().await - tick) as f64;
    let spent = children_cpu_seconds(postgres.pid()) - before;
    println!("  database CPU per tick {:9.2} ms over {ticks} ticks", spent / ticks * 1000.0);
    let snapshot = monitor.json("/api/snapshot").await.unwrap();
    println!(
        "  shown: {} in the last 24 h, {} completed",
        snapshot["postgres"]["queries_last_24h"], snapshot["postgres"]["state_counts"]["COMPLETED"]
    );
    fleet.writing.store(false, Ordering::Relaxed);
}

/// CPU of a server's processes, to the nanosecond.
fn children_cpu_seconds(parent: u32) -> f64 {
    let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| {
            let ppid =
                stat(pid).and_then(|text| text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok());
            ppid == Some(parent) || *pid == parent.to_string()
        })
        .filter_map(|pid| {
            fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok()
        })
        .sum::<f64>()
        / 1e9
}

fn unix() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}
