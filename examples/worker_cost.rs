//! What the library costs: tasks per second and Redis commands per task through one stream with an
//! empty handler, beside the bare minimum done by hand, in one run.
//!
//! `REDIS_URL=redis://127.0.0.1:PORT cargo run --release --no-default-features --features worker
//! --example worker_cost [-- TASKS]`, against a Redis of its own: the database is emptied.
//!
//! The bare minimum takes N entries and sends XADD, XACK and XDEL for each of them in one pipeline
//! with the next XREADGROUP: one round trip for N tasks, nothing checked, nothing safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::MultiplexedConnection;
use shepherd_monitor::worker::{Done, Worker};
use tokio::sync::Notify;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let url = std::env::var("REDIS_URL").map_err(|_| "REDIS_URL is not set; expected a Redis to empty and use")?;
    let tasks: u64 = std::env::args().nth(1).map_or(Ok(50_000), |text| text.parse())?;
    let mut redis = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
    println!(
        "{:>9} {:>14} {:>14} {:>7} {:>16} {:>16} {:>9}",
        "in flight", "bare tasks/s", "worker tasks/s", "ratio", "bare commands", "worker commands", "Redis CPU"
    );
    let only = std::env::var("ONLY").ok().and_then(|text| text.parse::<u64>().ok());
    for in_flight in [1_u64, 10, 100].into_iter().filter(|n| only.is_none_or(|only| only == *n)) {
        let tasks = if in_flight == 1 { tasks / 4 } else { tasks };
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let bare = measured(&mut redis, tasks, async |mut redis| bare(&mut redis, in_flight).await).await?;
            let worker = measured(&mut redis, tasks, async |_| worker(&url, in_flight, tasks).await).await?;
            ratios.push((worker.rate / bare.rate, bare, worker));
        }
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((ratio, bare, worker)) = ratios.get(1) else { continue };
        println!(
            "{in_flight:>9} {:>14.0} {:>14.0} {ratio:>7.2} {:>16.2} {:>16.2} {:>9.2}",
            bare.rate,
            worker.rate,
            bare.commands,
            worker.commands,
            worker.redis_cpu / bare.redis_cpu
        );
    }
    Ok(())
}

struct Measured {
    /// Tasks per second.
    rate: f64,
    /// Commands that clients sent, per task.
    commands: f64,
    /// Seconds of Redis' own time, per task.
    redis_cpu: f64,
}

async fn measured(
    redis: &mut MultiplexedConnection,
    tasks: u64,
    work: impl AsyncFnOnce(MultiplexedConnection) -> Result<(), Failure>,
) -> Result<Measured, Failure> {
    redis::cmd("FLUSHALL").exec_async(redis).await?;
    redis::cmd("XGROUP").arg("CREATE").arg("s").arg("consumer").arg("0").arg("MKSTREAM").exec_async(redis).await?;
    let mut pipe = redis::pipe();
    for n in 0..tasks {
        pipe.cmd("XADD").arg("s").arg("*").arg("query_id").arg(format!("{n:08x}")).arg("response_id").arg("r");
        pipe.arg("workflow").arg(r#"[{"id":"s"},{"id":"next"}]"#).arg("log_level").arg("20");
        pipe.arg("otel").arg(r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#);
        pipe.arg("metadata").arg("{}");
        if pipe.len() == 500 {
            pipe.exec_async(redis).await?;
            pipe.clear();
        }
    }
    if !pipe.is_empty() {
        pipe.exec_async(redis).await?;
    }
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(redis).await?;
    let (commands, cpu) = spent(redis).await?;
    let started = Instant::now();
    work(redis.clone()).await?;
    let took = started.elapsed().as_secs_f64();
    let (more_commands, more_cpu) = spent(redis).await?;
    if std::env::var_os("STATS").is_some() {
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await?;
        for line in stats.lines().filter(|line| !line.contains("info")) {
            println!("{}", line.split(",rejected").next().unwrap_or_default());
        }
    }
    let moved: u64 = redis::cmd("XLEN").arg("next").query_async(redis).await?;
    if moved != tasks {
        return Err(format!("{moved} of {tasks} tasks were forwarded").into());
    }
    let tasks = tasks as f64;
    Ok(Measured {
        rate: tasks / took,
        commands: (more_commands - commands) / tasks,
        redis_cpu: (more_cpu - cpu) / tasks,
    })
}

/// Commands processed (calls out of scripts not counted) and CPU seconds used so far.
async fn spent(redis: &mut MultiplexedConnection) -> Result<(f64, f64), Failure> {
    let info: String = redis::cmd("INFO").arg("everything").query_async(redis).await?;
    let read = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
    };
    Ok((read("total_commands_processed"), read("used_cpu_user") + read("used_cpu_sys")))
}

async fn worker(url: &str, in_flight: u64, tasks: u64) -> Result<(), Failure> {
    let (seen, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
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
            if seen.fetch_add(1, Ordering::Relaxed) + 1 == tasks {
                all.notify_one();
            }
            std::future::ready(Ok(Done::new()))
        })
        .await?;
    Ok(())
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
