//! Cost of monitoring, as ratios within one run: `cargo bench --bench monitor [-- PART…]`.
//!
//! Parts: `small` (20 streams × 5 workers), `large` (200 × 50), each with 0 and 1,000,000 unrelated keys; `browsers`
//! (2,000); `queries` (a million); `rules` (500 on 200 streams). All if none is given.
//!
//! The monitor and a minimal pipeline alternate on the same Redis, so that other load on the machine affects both.
//! Browsers are plain sockets in a separate process that only record arrival times: any other work would appear as
//! slowness of the monitor on a small machine.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark may fail loudly")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use shepherd_monitor::alerting::alert_manager::{AlertManager, AlertManagerSettings};
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::servers::{PrivatePostgres, PrivateRedis, RedisOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TICK: Duration = Duration::from_secs(3);
const TICKS: u32 = 10;
/// Number of turns of the monitor and of the minimal pipeline, each of three ticks.
const TURNS: u32 = 6;
const TICKS_PER_TURN: u32 = 3;
const WORKER_REWRITES: Duration = Duration::from_secs(5);
/// After this time, the keyspace scan and other one-time work at startup are finished.
const SETTLED: Duration = Duration::from_secs(45);
/// Number of CPU time measurements, each over half a minute.
const HALF_MINUTES: usize = 3;

#[tokio::main]
async fn main() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [clients, address, path, count] = arguments.as_slice()
        && clients == "clients"
    {
        return be_browsers(address, path, count.parse().unwrap()).await;
    }
    let parts: Vec<String> = arguments.into_iter().filter(|arg| !arg.starts_with('-')).collect();
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

/// CPU time is counted in steps of milliseconds, so many ticks are measured.
const TICKS_OF_RULES: u32 = 1000;

/// CPU time of this thread in seconds.
fn thread_cpu() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Cost of evaluating a snapshot: rules for one stream each, and rules that match all streams.
fn rules(count: usize, streams: usize) {
    let snapshot = |streams: usize| {
        let mut fleet = states::Fleet::new(unix());
        for s in 0..streams {
            fleet.add(&format!("stream.{s:03}"), 3, 10, 5);
        }
        fleet.finish()
    };
    let turns = [snapshot(streams), snapshot(streams - 1)];
    for (what, glob, comes_and_goes) in [
        ("a stream each", false, false),
        ("all streams each", true, false),
        ("all streams each, one comes or goes every tick", true, true),
    ] {
        let rule = |i: usize| {
            let stream = if glob { "'stream.*'".to_owned() } else { format!("stream.{:03}", i % streams) };
            format!("\n  - {{name: r{i}, type: threshold, metric: xlen, stream: {stream}, threshold: 500}}")
        };
        let text: String = (0..count).map(rule).collect();
        let rules = shepherd_monitor::alerting::file::read(&format!("rules:{text}")).unwrap();
        let settings = AlertManagerSettings { grace_until: 0.0, debounce: 5.0, channels: vec!["slack".to_owned()] };
        let mut manager = AlertManager::new(settings, Arc::new(rules));
        let tick = |manager: &mut AlertManager, n: u32| {
            let snapshot = if comes_and_goes && n % 2 == 1 { &turns[1] } else { &turns[0] };
            assert!(manager.advance(snapshot, unix() + f64::from(n)).is_empty());
            manager.due(unix() + f64::from(n));
        };
        // The first evaluation matches the globs against the streams.
        let began = Instant::now();
        tick(&mut manager, 0);
        let first = began.elapsed();
        let (began, cpu) = (Instant::now(), thread_cpu());
        (1..=TICKS_OF_RULES).for_each(|n| tick(&mut manager, n));
        let (took, used) = (began.elapsed() / TICKS_OF_RULES, (thread_cpu() - cpu) / f64::from(TICKS_OF_RULES));
        println!(
            "{count} rules on {streams} streams, {what}: {:.2} ms of CPU a tick ({took:?} by the clock; the first {first:?})",
            used * 1000.0
        );
    }
}

/// A simulated fleet: streams with groups, consumers, entries, and heartbeats that are rewritten.
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
            // The workers make progress: ten thousand hung workers would be a different measurement.
            let mut progress = 0;
            while writing.load(Ordering::Relaxed) {
                progress += 1;
                for some in workers.chunks(500) {
                    let mut pipe = redis::pipe();
                    for (stream, consumer) in some {
                        let beat = json!({"stream": stream, "consumer": consumer, "started_at": 1.5, "last_seen": unix(), "task_limit": 10, "progress": progress});
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

    /// Reads the same data with a minimal pipeline that knows all keys in advance.
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

/// Commands with which the monitor writes its own data; not comparable with reading.
const RECORDING: [&str; 5] = ["zadd", "zremrangebyscore", "zremrangebyrank", "sadd", "evalsha"];

/// CPU time of Redis in microseconds since the last reset, without the commands of the fleet: for reading and for
/// writing; and how often all `streams` were read.
async fn redis_time(connection: &mut MultiplexedConnection, streams: usize) -> (f64, f64, f64) {
    let text: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
    let commands = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'));
    let (mut reading, mut recording, mut passes) = (0.0, 0.0, 0.0);
    for (name, figures) in commands {
        let figure = |wanted: &str| figures.split(',').find_map(|f| f.strip_prefix(wanted)?.parse::<f64>().ok());
        if name == "xlen" {
            passes = figure("calls=").unwrap() / streams as f64;
        }
        let spent = figure("usec=").unwrap();
        if RECORDING.contains(&name) {
            recording += spent;
        } else if name != "set" && !name.starts_with("config") {
            reading += spent;
        }
    }
    (reading, recording, passes)
}

async fn bytes_out(connection: &mut MultiplexedConnection) -> f64 {
    let text: String = redis::cmd("INFO").arg("stats").query_async(connection).await.unwrap();
    text.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:")).unwrap().trim().parse().unwrap()
}

async fn reset(connection: &mut MultiplexedConnection) {
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(connection).await.unwrap();
}

/// Deletes all data of the monitor in Redis.
async fn forget(connection: &mut MultiplexedConnection) {
    let mut pipe = redis::pipe();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("monitor:*").query_async(connection).await.unwrap();
    pipe.cmd("DEL").arg("nothing").arg(keys).ignore();
    let _: () = pipe.query_async(connection).await.unwrap();
}

async fn tick_cost(streams: usize, workers: usize, unrelated: usize) {
    let fleet = Fleet::new(streams, workers, unrelated).await;
    let postgres = PrivatePostgres::start().unwrap();
    let mut connection = connect(&fleet.redis).await;
    println!("\n{streams} streams x {workers} workers, {unrelated} unrelated keys");

    // On separate instances: polling whole snapshots makes the monitor build them.
    let names: Vec<String> = (0..streams).map(|s| format!("stream.{s:03}")).collect();
    let seeded = ["--seed-streams", &names.join(",")];
    let seeded = Monitor::start_with(&fleet.redis.url(), &postgres.url(), &seeded).first_snapshot(streams).await;
    forget(&mut connection).await;
    let first = Monitor::start(&fleet.redis.url(), &postgres.url()).first_snapshot(streams).await;
    let again = Monitor::start(&fleet.redis.url(), &postgres.url()).first_snapshot(streams).await;
    let monitor = Monitor::start(&fleet.redis.url(), &postgres.url());
    tokio::time::sleep(SETTLED).await;

    // Several half minutes, so that other load on the machine is visible as an outlier.
    let mut cpu = Vec::new();
    for _ in 0..HALF_MINUTES {
        cpu.push(monitor.cpu_of_ten_ticks().await);
    }
    let memory = monitor.resident_mb();

    let others = [vec![std::process::id(), monitor.pid], family(postgres.pid())].concat();
    let apart = Apart::keep(fleet.redis.pid(), others);
    let (mut spent, mut least) = (Turns::default(), Turns::default());
    for _ in 0..TURNS {
        monitor.turn(true);
        reset(&mut connection).await;
        let (began, bytes) = (Instant::now(), bytes_out(&mut connection).await);
        monitor.until_ticks(TICKS_PER_TURN).await;
        monitor.turn(false);
        spent.add(&mut connection, streams, bytes, began).await;

        reset(&mut connection).await;
        let (began, bytes) = (Instant::now(), bytes_out(&mut connection).await);
        for _ in 0..TICKS_PER_TURN {
            tokio::time::sleep(TICK).await;
            fleet.read_at_least(&mut connection).await;
        }
        least.add(&mut connection, streams, bytes, began).await;
    }
    drop(apart);
    // Traffic caused by the fleet itself.
    let bytes = bytes_out(&mut connection).await;
    tokio::time::sleep(WORKER_REWRITES * 4).await;
    let idle = (bytes_out(&mut connection).await - bytes) / (WORKER_REWRITES * 4).as_secs_f64();
    monitor.turn(true);
    let scrape = monitor.scrape().await;

    let (per_tick, least_per_tick) = (spent.micros / spent.passes, least.micros / least.passes);
    println!(
        "  Redis time per tick   {per_tick:9.0} us   cheapest {least_per_tick:9.0} us   ratio {:.2}",
        per_tick / least_per_tick
    );
    println!("  recording per tick    {:9.0} us", spent.recording / spent.passes);
    let (kb, least_kb) = (spent.kilobytes_per_pass(idle), least.kilobytes_per_pass(idle));
    println!("  bytes per tick        {kb:9.1} KB   cheapest {least_kb:9.1} KB   ratio {:.2}", kb / least_kb);
    for cpu in cpu {
        cpu.print();
    }
    println!("  resident memory       {memory:9.1} MB");
    println!("  {scrape}");
    println!("  exec to the first snapshot, and to one with every worker:");
    for (what, [first, whole]) in
        [("streams named by a setting", seeded), ("nothing known", first), ("started again", again)]
    {
        println!("    {what:27} {:8.0} ms {:8.0} ms", first.as_secs_f64() * 1000.0, whole.as_secs_f64() * 1000.0);
    }
    fleet.writing.store(false, Ordering::Relaxed);
}

/// Result of the turns of one side.
#[derive(Default)]
struct Turns {
    micros: f64,
    recording: f64,
    passes: f64,
    bytes: f64,
    seconds: f64,
}

impl Turns {
    async fn add(&mut self, connection: &mut MultiplexedConnection, streams: usize, bytes: f64, began: Instant) {
        let (micros, recording, passes) = redis_time(connection, streams).await;
        self.micros += micros;
        self.recording += recording;
        self.passes += passes;
        self.bytes += bytes_out(connection).await - bytes;
        self.seconds += began.elapsed().as_secs_f64();
    }

    fn kilobytes_per_pass(&self, idle_per_second: f64) -> f64 {
        (self.bytes - idle_per_second * self.seconds) / self.passes / 1024.0
    }
}

/// CPU time in seconds and number of voluntary context switches, by thread name.
#[derive(Default)]
struct Threads(BTreeMap<String, (f64, u64)>);

impl Threads {
    fn since(mut self, before: &Self) -> Self {
        for (name, (cpu, woken)) in &mut self.0 {
            let (cpu_before, woken_before) = before.0.get(name).copied().unwrap_or_default();
            *cpu -= cpu_before;
            *woken = woken.saturating_sub(woken_before);
        }
        self
    }

    /// Prints the values per ten ticks.
    fn print(&self) {
        let a_minute = 60.0 / (TICK * TICKS).as_secs_f64();
        println!("  CPU                   {:9.3} s/min", self.0.values().map(|(cpu, _)| cpu).sum::<f64>() * a_minute);
        for (name, (cpu, woken)) in self.0.iter().filter(|(_, (_, woken))| *woken > 0) {
            println!("    {name:17} {:12.3} s/min, woken {:.0} times", cpu * a_minute, *woken as f64 * a_minute);
        }
    }
}

/// The monitor as a process, in release mode.
struct Monitor {
    pid: u32,
    reaper: Reaper,
    started: Instant,
    address: String,
}

impl Monitor {
    fn start(redis: &str, database: &str) -> Self {
        Self::start_with(redis, database, &[])
    }

    fn start_with(redis: &str, database: &str, more: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let reaper = Reaper::start("shepherd-bench", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        let started = Instant::now();
        let port_text = port.to_string();
        let serve = [env!("CARGO_BIN_EXE_shepherd-monitor"), "serve", "--log-level", "warn", "--port", &port_text];
        let pid =
            reaper.serve(&[&serve[..], &["--redis-url", redis, "--database-url", database], more].concat()).unwrap();
        Self { pid, reaper, started, address: format!("127.0.0.1:{port}") }
    }

    async fn get(&self, path: &str) -> Option<Vec<u8>> {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.ok()?;
        answer.bytes().await.ok().map(Vec::from)
    }

    async fn json(&self, path: &str) -> Option<Value> {
        serde_json::from_slice(&self.get(path).await?).ok()
    }

    /// Time from exec to the first snapshot, and to the first with all workers alive.
    async fn first_snapshot(&self, streams: usize) -> [Duration; 2] {
        let mut first = None;
        loop {
            let answer = self.get("/api/snapshot").await.unwrap_or_default();
            // Before parsing: parsing this much JSON takes longer than building it.
            let took = self.started.elapsed();
            let snapshot: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let workers = snapshot["workers"].as_object();
            if workers.is_some() {
                first.get_or_insert(took);
            }
            if workers.is_some_and(|w| w.len() == streams && w.values().all(|w| w["state"] == "alive")) {
                return [first.unwrap_or(took), took];
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn ticks(&self) -> u64 {
        self.json("/readyz?verbose").await.unwrap()["monitor"]["ticks"].as_u64().unwrap()
    }

    /// Continues or stops the process.
    fn turn(&self, on: bool) {
        self.reaper.send(if on { "CONT" } else { "STOP" }).unwrap();
    }

    /// Waits until `count` further ticks are finished.
    async fn until_ticks(&self, count: u32) {
        let until = self.ticks().await + u64::from(count);
        while self.ticks().await < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    /// Cost of a Prometheus scrape: the mean of ten.
    async fn scrape(&self) -> String {
        const TIMES: u32 = 10;
        let (before, began) = (self.threads(), Instant::now());
        let mut length = 0;
        for _ in 0..TIMES {
            length = self.get("/metrics").await.unwrap().len();
        }
        let took = began.elapsed().as_secs_f64() / f64::from(TIMES) * 1000.0;
        let cpu: f64 = self.threads().since(&before).0.values().map(|(cpu, _)| cpu).sum();
        let (cpu, kilobytes) = (cpu / f64::from(TIMES) * 1000.0, length as f64 / 1024.0);
        format!("one scrape            {took:9.1} ms   {cpu:.1} ms of CPU   {kilobytes:.0} KB")
    }

    async fn cpu_of_ten_ticks(&self) -> Threads {
        let before = self.threads();
        tokio::time::sleep(TICK * TICKS).await;
        self.threads().since(&before)
    }

    fn threads(&self) -> Threads {
        let mut threads = Threads::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap().filter_map(Result::ok) {
            // The thread may have exited.
            let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let (times, status) = (read("schedstat"), read("status"));
            let nanoseconds: f64 = times.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
            let woken = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let (cpu, woken_before) = threads.0.entry(read("comm").trim().to_owned()).or_default();
            *cpu += nanoseconds / 1e9;
            *woken_before += woken.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        threads
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
    // All connections come from one address.
    let all = ["--max-connections-per-address", "0"];
    let monitor = Monitor::start_with(&fleet.redis.url(), &postgres.url(), &all);
    monitor.first_snapshot(20).await;
    tokio::time::sleep(SETTLED).await;
    println!("\n{count} browsers, 20 streams x 5 workers");
    let known = known_page(&monitor).await;
    let path = format!("/live/ws?{known}");
    let jammed = tokio_tungstenite::connect_async(format!("ws://{}{path}", monitor.address)).await.unwrap();
    let reader = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["clients", &monitor.address, &path, &count.to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // New sessions first receive the state of the server; wait for that before recording ten ticks.
    while monitor.json("/readyz?verbose").await.unwrap()["monitor"]["sessions"].as_u64().unwrap() <= count as u64 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(TICK).await;
    let (cpu, memory) = (monitor.cpu_of_ten_ticks().await, monitor.resident_mb());
    let health = monitor.json("/readyz?verbose").await.unwrap();
    let printed = tokio::task::spawn_blocking(|| reader.wait_with_output().unwrap().stdout).await.unwrap();
    let rounds: Vec<Vec<f64>> = String::from_utf8(printed)
        .unwrap()
        .lines()
        .map(|line| line.split(' ').map(|figure| figure.parse().unwrap()).collect())
        .collect();
    let column = |of: fn(&[f64]) -> f64| {
        let mut figures: Vec<f64> = rounds.iter().map(|round| of(round)).collect();
        figures.sort_by(f64::total_cmp);
        (figures[figures.len() / 2], figures[figures.len() - 1])
    };
    let (spread, worst_spread) = column(|round| (round[2] - round[1]) * 1000.0);
    let (since_read, worst_since_read) = column(|round| (round[2] - round[4]) * 1000.0);
    let (bytes, most_bytes) = column(|round| round[3] / round[0]);
    println!("  ticks seen by all     {:9}", rounds.iter().filter(|round| round[0] >= count as f64).count());
    println!("  first to last browser {spread:9.1} ms median {worst_spread:9.1} ms worst");
    println!("  Redis read to last    {since_read:9.1} ms median {worst_since_read:9.1} ms worst");
    println!("  bytes a tick each     {bytes:9.0} median {most_bytes:9.0} most");
    cpu.print();
    println!("  resident memory       {memory:9.1} MB");
    println!("  sessions {} jammed {}", health["monitor"]["sessions"], health["monitor"]["sessions_jammed"]);
    drop(jammed);
    fleet.writing.store(false, Ordering::Relaxed);
}

/// In a separate process: `count` WebSockets that only record when data arrives. Prints for each round in which all
/// received data: their number, first and last arrival, bytes, and when the data was read from Redis (Unix seconds).
async fn be_browsers(address: &str, path: &str, count: usize) {
    let (arrivals, mut arrived) = tokio::sync::mpsc::unbounded_channel::<(f64, usize, Option<f64>)>();
    for n in 0..count {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let arrivals = arrivals.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                let at = unix();
                let ts = (n == 0).then(|| {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    text.split("\"ts\":").nth(1)?.split([',', '}']).next()?.parse().ok()
                });
                // Pings are shorter.
                if length > 64 {
                    let _ = arrivals.send((at, length, ts.flatten()));
                } else if buffer[0] == 0x89 {
                    socket.write_all(b"\x8a\x80mask").await.unwrap();
                }
            }
        });
    }
    tokio::time::sleep(TICK).await;
    while arrived.try_recv().is_ok() {}
    tokio::time::sleep(TICK * (TICKS + 1)).await;
    let mut all = Vec::new();
    while let Ok(arrival) = arrived.try_recv() {
        all.push(arrival);
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    for round in all.chunk_by(|a, b| b.0 - a.0 < TICK.as_secs_f64() / 3.0) {
        let bytes: usize = round.iter().map(|arrival| arrival.1).sum();
        let read_at = round.iter().find_map(|arrival| arrival.2).unwrap_or(f64::NAN);
        if round.len() >= count {
            println!("{count} {} {} {bytes} {read_at}", round[0].0, round[round.len() - 1].0);
        }
    }
}

/// Epoch and tick of a newly loaded page, as its script would send them.
async fn known_page(monitor: &Monitor) -> String {
    let page = reqwest::get(format!("http://{}/", monitor.address)).await.unwrap().text().await.unwrap();
    let of = |name: &str| page.split(&format!("data-{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned();
    format!("epoch={}&tick={}", of("epoch"), of("tick"))
}

/// Cost of a million queries for the database, per tick.
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
             INSERT INTO callbacks SELECT 'q' || n, 'c' || n, NULL FROM generate_series(1, 100) n"
        ))
        .await
        .unwrap();
    client.batch_execute("VACUUM ANALYZE shepherd_brain").await.unwrap();
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

/// CPU time of a server and its children, with nanosecond resolution.
fn children_cpu_seconds(parent: u32) -> f64 {
    let nanoseconds =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok();
    family(parent).iter().filter_map(nanoseconds).sum::<f64>() / 1e9
}

/// PIDs of a process and its children.
fn family(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid == parent || parent_of(*pid) == Some(parent)).collect()
}

/// Reserves a CPU for Redis until dropped.
///
/// Redis measures its commands by wall clock. On a shared CPU, that includes the time for which it was preempted in the
/// middle of a command, which is milliseconds at random.
struct Apart {
    everybody: Vec<u32>,
    all: String,
}

impl Apart {
    fn keep(redis: u32, others: Vec<u32>) -> Self {
        let last = std::thread::available_parallelism().unwrap().get() - 1;
        if last > 0 {
            assert_eq!(pin(&[redis], "0"), 1, "taskset moves Redis");
            pin(&others, &format!("1-{last}"));
        }
        Self { everybody: [vec![redis], others].concat(), all: format!("0-{last}") }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        pin(&self.everybody, &self.all);
    }
}

/// Pins processes to CPUs and returns how many still existed.
fn pin(pids: &[u32], processors: &str) -> usize {
    let moves = |pid: &&u32| {
        let arguments = ["--all-tasks", "--cpu-list", "--pid", processors, &pid.to_string()];
        std::process::Command::new("taskset").args(arguments).output().unwrap().status.success()
    };
    pids.iter().filter(moves).count()
}

fn unix() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}
