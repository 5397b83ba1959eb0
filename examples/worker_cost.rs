//! Overhead of the library: tasks per second and Redis commands per task through one stream with an empty handler,
//! compared in one run with a hand-written minimum.
//!
//! `REDIS_URL=redis://127.0.0.1:PORT cargo run --release --no-default-features --features worker --example worker_cost
//! [-- TASKS]`. Use a dedicated Redis: the database is emptied.
//!
//! With `load`, `run` or `run-bare` it is one of the programs that scripts/bench-workers compares: it adds TASKS tasks,
//! or processes them with the library or by hand with IN_FLIGHT at a time, and prints the seconds.
//!
//! The minimum reads N entries and sends XADD, XACK and XDEL for each of them in one pipeline with the next XREADGROUP:
//! one round trip per N tasks, without any checks or safety.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::MultiplexedConnection;
use shepherd_monitor::worker::{Answer, NewTask, Producer, Worker, Workflow};
use tokio::sync::Notify;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let url = std::env::var("REDIS_URL")
        .map_err(|_| "REDIS_URL is not set; expected a Redis instance that can be flushed")?;
    let mut redis = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
    let producer = Producer::builder().redis_url(&url).connect().await?;
    let argument = std::env::args().nth(1);
    if let Some(verb @ ("load" | "run" | "run-bare")) = argument.as_deref() {
        return compared(verb, &url, &mut redis, &producer).await;
    }
    let tasks: u64 = argument.map_or(Ok(50_000), |text| text.parse())?;
    println!("Figures are per task; median of three runs.\n");
    println!(
        "{:>9} | {:>12} {:>12} {:>6} | {:>13} {:>13} | {:>11} {:>11} | {:>11} {:>11}",
        "in flight",
        "bare per s",
        "worker per s",
        "ratio",
        "bare commands",
        "worker (sent)",
        "bare Redis",
        "worker Redis",
        "bare client",
        "worker client"
    );
    let only = std::env::var("ONLY").ok().and_then(|text| text.parse::<u64>().ok());
    for in_flight in [1_u64, 10, 100].into_iter().filter(|n| only.is_none_or(|only| only == *n)) {
        let tasks = if in_flight == 1 { tasks / 4 } else { tasks };
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let bare =
                measured(&mut redis, &producer, tasks, async |mut redis| bare(&mut redis, in_flight).await).await?;
            let worker =
                measured(&mut redis, &producer, tasks, async |_| worker(&url, in_flight, tasks).await.map(drop))
                    .await?;
            ratios.push((worker.rate / bare.rate, bare, worker));
        }
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((ratio, bare, worker)) = ratios.get(1) else { continue };
        println!(
            "{in_flight:>9} | {:>12.0} {:>12.0} {ratio:>6.2} | {:>13.2} {:>6.2} ({:>4.2}) | {:>8.1} µs {:>8.1} µs | {:>8.1} µs {:>8.1} µs",
            bare.rate,
            worker.rate,
            bare.commands,
            worker.commands,
            worker.commands - worker.inside,
            bare.redis_us,
            worker.redis_us,
            bare.client_us,
            worker.client_us
        );
    }
    Ok(())
}

/// Runs one of the compared programs.
async fn compared(
    verb: &str,
    url: &str,
    redis: &mut MultiplexedConnection,
    producer: &Producer,
) -> Result<(), Failure> {
    let number = |name: &str| -> Result<u64, Failure> { Ok(std::env::var(name)?.parse()?) };
    let (tasks, in_flight) = (number("TASKS")?, number("IN_FLIGHT")?);
    if verb == "load" {
        return load(redis, producer, tasks).await;
    }
    let started = Instant::now();
    let took = match verb {
        // Until the last task is handled, without the shutdown, as in the other programs.
        "run" => worker(url, in_flight, tasks).await? - started,
        _ => {
            bare(redis, in_flight).await?;
            started.elapsed()
        }
    };
    println!("{}", took.as_secs_f64());
    Ok(())
}

struct Measured {
    /// Tasks per second.
    rate: f64,
    /// Commands that Redis executed, and those among them called by scripts.
    commands: f64,
    inside: f64,
    /// CPU time in microseconds of Redis and of this process.
    redis_us: f64,
    client_us: f64,
}

async fn measured(
    redis: &mut MultiplexedConnection,
    producer: &Producer,
    tasks: u64,
    work: impl AsyncFnOnce(MultiplexedConnection) -> Result<(), Failure>,
) -> Result<Measured, Failure> {
    redis::cmd("FLUSHALL").exec_async(redis).await?;
    load(redis, producer, tasks).await?;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(redis).await?;
    let before = Spent::so_far(redis).await?;
    let started = Instant::now();
    work(redis.clone()).await?;
    let took = started.elapsed().as_secs_f64();
    let after = Spent::so_far(redis).await?;
    let moved: u64 = redis::cmd("XLEN").arg("next").query_async(redis).await?;
    if moved != tasks {
        return Err(format!("{moved} of {tasks} tasks were forwarded").into());
    }
    let tasks = tasks as f64;
    Ok(Measured {
        rate: tasks / took,
        commands: (after.commands - before.commands) / tasks,
        inside: (after.inside - before.inside) / tasks,
        redis_us: (after.redis_cpu - before.redis_cpu) * 1e6 / tasks,
        client_us: (after.client_cpu - before.client_cpu) * 1e6 / tasks,
    })
}

async fn load(redis: &mut MultiplexedConnection, producer: &Producer, tasks: u64) -> Result<(), Failure> {
    redis::cmd("XGROUP").arg("CREATE").arg("s").arg("consumer").arg("0").arg("MKSTREAM").exec_async(redis).await?;
    let otel = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
    let task = |n: u64| {
        let task = NewTask::query(&format!("{n:08x}"), "r").workflow(Workflow::through(["s", "next"]));
        task.set("otel", otel)
    };
    producer.add_all("s", (0..tasks).map(task)).await?;
    Ok(())
}

/// Usage since the statistics were reset; CPU time in seconds.
struct Spent {
    commands: f64,
    inside: f64,
    redis_cpu: f64,
    client_cpu: f64,
}

impl Spent {
    async fn so_far(redis: &mut MultiplexedConnection) -> Result<Self, Failure> {
        let info: String = redis::cmd("INFO").arg("everything").query_async(redis).await?;
        let line = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let read = |name: &str| line(name).and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0);
        let calls = |name: &str| {
            let stats = line(&format!("cmdstat_{name}"))?;
            stats.strip_prefix("calls=")?.split(',').next()?.parse::<f64>().ok()
        };
        // Commands that the worker only calls from scripts.
        let scripted = ["xadd", "xack", "xdel", "xinfo|groups", "xpending", "lpush", "ltrim"];
        let ran_scripts = calls("evalsha").is_some();
        let inside = if ran_scripts { scripted.iter().filter_map(|name| calls(name)).sum() } else { 0.0 };
        // User and system time, in units of 10 ms.
        let own = std::fs::read_to_string("/proc/self/stat")?;
        let own = own.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = own.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(Self {
            commands: read("total_commands_processed"),
            inside,
            redis_cpu: read("used_cpu_user") + read("used_cpu_sys"),
            client_cpu: ticks / 100.0,
        })
    }
}

/// Runs the worker and returns when the last task was handled.
async fn worker(url: &str, in_flight: u64, tasks: u64) -> Result<Instant, Failure> {
    let last = Arc::new(OnceLock::new());
    let handled = Arc::clone(&last);
    let (count, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let stop = {
        let all = Arc::clone(&all);
        async move {
            all.notified().await;
            None
        }
    };
    Worker::builder("s")?
        .redis_url(url)
        .task_limit(usize::try_from(in_flight)?)
        .drain_timeout(Duration::from_secs(10))
        .run_until(stop, move |_task| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == tasks {
                let _ = handled.set(Instant::now());
                all.notify_one();
            }
            std::future::ready(Ok(Answer::forward()))
        })
        .await?;
    Ok(last.get().copied().unwrap_or_else(Instant::now))
}

async fn bare(redis: &mut MultiplexedConnection, in_flight: u64) -> Result<(), Failure> {
    let mut entries: Vec<(Value, Vec<Value>)> = Vec::new();
    loop {
        let mut pipe = redis::pipe();
        for (id, fields) in &entries {
            let Value::BulkString(id) = id else { continue };
            pipe.cmd("XADD").arg("next").arg("*");
            for field in fields {
                let Value::BulkString(field) = field else { continue };
                pipe.arg(field);
            }
            pipe.ignore();
            pipe.cmd("XACK").arg("s").arg("consumer").arg(id).ignore();
            pipe.cmd("XDEL").arg("s").arg(id).ignore();
        }
        pipe.cmd("XREADGROUP").arg("GROUP").arg("consumer").arg("bare").arg("COUNT").arg(in_flight);
        pipe.arg("STREAMS").arg("s").arg(">");
        let (read,): (Value,) = pipe.query_async(redis).await?;
        entries.clear();
        let Value::Array(mut streams) = read else { return Ok(()) };
        let Some(Value::Array(mut stream)) = streams.pop() else { return Ok(()) };
        let Some(Value::Array(list)) = stream.pop() else { return Ok(()) };
        for entry in list {
            let Value::Array(entry) = entry else { continue };
            let mut entry = entry.into_iter();
            if let (Some(id), Some(Value::Array(fields))) = (entry.next(), entry.next()) {
                entries.push((id, fields));
            }
        }
    }
}
