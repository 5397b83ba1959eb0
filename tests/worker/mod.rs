//! Worker library against a real Redis.

mod answers;
mod chaos;
mod consume;
mod dead_letters;
mod drain;
mod failover;
mod finish;
mod model;
mod process;
mod producer;
mod python;
mod queries;
mod reclaim;
mod storm;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use shepherd_monitor::worker::{Answer, Left, Task, TaskError, Worker, WorkerBuilder, WorkerError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

/// Generous, for busy machines; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A worker in this process.
struct Running {
    stop: oneshot::Sender<Option<i32>>,
    work: JoinHandle<Result<Left, WorkerError>>,
}

impl Running {
    fn start<H, F>(builder: WorkerBuilder, handler: H) -> Self
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer, TaskError>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { stopped.await.unwrap_or_default() };
        Self { stop, work: tokio::spawn(builder.run_until(stopped, handler)) }
    }

    /// Shuts down gracefully and waits for the end.
    async fn leave(self) -> Left {
        self.stop.send(Some(15)).unwrap();
        self.work.await.unwrap().unwrap()
    }

    /// Aborts the worker, like SIGKILL.
    async fn crash(self) {
        self.work.abort();
        let _ = self.work.await;
    }
}

/// Returns a worker with short sweep interval and reclaim threshold.
fn quick(redis: &TestRedis, stream: &str) -> WorkerBuilder {
    Worker::builder(stream)
        .unwrap()
        .environment(|_| None)
        .redis_url(redis.url())
        .reclaim_min_idle(Duration::from_millis(300))
        .reclaim_interval(Duration::from_millis(100))
}

/// A handler that forwards immediately.
async fn done(_task: Task) -> Result<Answer, TaskError> {
    Ok(Answer::forward())
}

/// Records the tasks that a handler was called with.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Task>>>);

impl Calls {
    fn note(&self, task: &Task) {
        self.0.lock().unwrap().push(task.clone());
    }

    fn tasks(&self) -> Vec<Task> {
        self.0.lock().unwrap().clone()
    }

    fn queries(&self) -> Vec<String> {
        self.tasks().iter().map(|task| task.query_id().unwrap_or("none").to_owned()).collect()
    }
}

/// Returns a workflow through these streams.
fn workflow(streams: &[&str]) -> String {
    let operations: Vec<String> = streams.iter().map(|stream| format!(r#"{{"id": "{stream}"}}"#)).collect();
    format!("[{}]", operations.join(", "))
}

/// Adds a task with a workflow through `streams` to the first of them.
async fn add(redis: &mut MultiplexedConnection, query: &str, streams: &[&str]) -> String {
    let through = workflow(streams);
    let fields = [("query_id", query), ("response_id", "r"), ("workflow", &through), ("log_level", "20")];
    add_fields(redis, streams[0], &fields).await
}

async fn add_fields(redis: &mut MultiplexedConnection, stream: &str, fields: &[(&str, &str)]) -> String {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(stream).arg("*");
    for (name, value) in fields {
        cmd.arg(name).arg(value);
    }
    cmd.query_async(redis).await.unwrap()
}

/// Sends a command to Redis: `ask!(redis, "XLEN", "a")`.
macro_rules! ask {
    ($redis:expr, $command:expr $(, $arg:expr)* $(,)?) => {
        redis::cmd($command)$(.arg($arg))*.query_async(&mut $redis).await.unwrap()
    };
}
use ask;

/// Entries of a stream: ID and fields.
async fn entries(redis: &mut MultiplexedConnection, stream: &str) -> Vec<(String, Vec<(String, String)>)> {
    let list: Vec<(String, Vec<String>)> = ask!(*redis, "XRANGE", stream, "-", "+");
    let pairs = |flat: Vec<String>| flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    list.into_iter().map(|(id, flat)| (id, pairs(flat))).collect()
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

/// Query IDs in a stream, in order.
async fn queries(redis: &mut MultiplexedConnection, stream: &str) -> Vec<String> {
    entries(redis, stream).await.iter().map(|(_, fields)| field(fields, "query_id").to_owned()).collect()
}

async fn length(redis: &mut MultiplexedConnection, stream: &str) -> usize {
    ask!(*redis, "XLEN", stream)
}

async fn pending(redis: &mut MultiplexedConnection, stream: &str) -> usize {
    held(redis, stream).await.len()
}

/// An entry in the pending list of a group.
#[derive(Debug)]
struct Held {
    id: String,
    owner: String,
    idle_ms: u64,
    deliveries: u64,
}

/// Pending list of a stream; empty if there is no group.
async fn held(redis: &mut MultiplexedConnection, stream: &str) -> Vec<Held> {
    let mut cmd = redis::cmd("XPENDING");
    let rows = cmd.arg(stream).arg("consumer").arg("-").arg("+").arg(1_000_000).query_async(redis).await;
    let rows: Vec<(String, String, u64, u64)> = match rows {
        Err(e) if e.code() == Some("NOGROUP") => Vec::new(),
        rows => rows.unwrap(),
    };
    rows.into_iter().map(|(id, owner, idle_ms, deliveries)| Held { id, owner, idle_ms, deliveries }).collect()
}

/// Waits until `stream` has `count` entries.
async fn reaches(redis: &MultiplexedConnection, stream: &str, count: usize) {
    eventually(&format!("{stream} holds {count} entries"), PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let now = length(&mut redis, stream).await;
            if now == count { Ok(()) } else { Err(format!("{now} entries")) }
        }
    })
    .await;
}

/// Reads up to `count` entries as another consumer and returns their IDs.
async fn taken_by(redis: &mut MultiplexedConnection, consumer: &str, stream: &str, count: usize) -> Vec<String> {
    let _: Result<Value, _> = redis::cmd("XGROUP")
        .arg("CREATE")
        .arg(stream)
        .arg("consumer")
        .arg("0")
        .arg("MKSTREAM")
        .query_async(redis)
        .await;
    let _: Value = ask!(*redis, "XREADGROUP", "GROUP", "consumer", consumer, "COUNT", count, "STREAMS", stream, ">");
    held(redis, stream).await.into_iter().filter(|entry| entry.owner == consumer).map(|entry| entry.id).collect()
}

/// Sets the idle time of pending entries and changes nothing else.
async fn idle_for(redis: &mut MultiplexedConnection, consumer: &str, stream: &str, ids: &[String], idle: Duration) {
    let _: Value =
        ask!(*redis, "XCLAIM", stream, "consumer", consumer, 0, ids, "IDLE", idle.as_millis() as u64, "JUSTID");
}
