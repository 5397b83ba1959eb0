//! One process of the simulated fleet: a real worker whose work is to wait.
//!
//! Started by [`Demo`](super::Demo) as `shepherd-monitor demo-worker …`. Its standard input is
//! held by the demonstration: `pace N` on a line changes how long tasks take, and the end of it
//! ends the process, so that it cannot outlive the demonstration. SIGTERM is what it is to any
//! worker.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::brain::Brain;
use super::chance;
use super::shepherd::waits_for_callbacks;
use crate::contract::task::FINISH_QUERY;
use crate::worker::{Answer, Task, TaskError, Worker};

/// One lookup in this many fails.
const FAILS_ONCE_IN: u32 = 40;

/// What one process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerOrders {
    /// The stream it reads.
    pub stream: String,
    /// How many tasks it runs at once.
    pub task_limit: usize,
    /// How long a task takes on average at pace 1.
    pub work: Duration,
    /// Where Redis is.
    pub redis_url: String,
    /// Where Shepherd's database is.
    pub database_url: String,
}

/// The subcommand by which the demonstration starts its workers; not for people.
#[must_use]
pub fn command() -> Command {
    let needed = |name| Arg::new(name).long(name).required(true);
    Command::new("demo-worker").hide(true).about("A worker of the demo fleet").args([
        needed("stream"),
        needed("task-limit").value_parser(value_parser!(usize)),
        needed("work-ms").value_parser(value_parser!(u64)),
        needed("redis-url").env("REDIS_URL"),
        needed("database-url").env("DATABASE_URL"),
    ])
}

impl From<&ArgMatches> for WorkerOrders {
    /// What [`command`] was given.
    fn from(given: &ArgMatches) -> Self {
        let text = |name| given.get_one::<String>(name).cloned().unwrap_or_default();
        Self {
            stream: text("stream"),
            task_limit: given.get_one("task-limit").copied().unwrap_or_default(),
            work: Duration::from_millis(given.get_one("work-ms").copied().unwrap_or_default()),
            redis_url: text("redis-url"),
            database_url: text("database-url"),
        }
    }
}

/// Works until told to leave.
///
/// # Errors
/// Why it could not start, in words.
pub fn run(orders: WorkerOrders) -> Result<(), String> {
    let pace = Arc::new(AtomicU32::new(1));
    let told = Arc::clone(&pace);
    std::thread::spawn(move || obey(&told));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(work(orders, pace))
}

/// Reads standard input to its end and then ends the process: who would hear of an orderly leave?
fn obey(pace: &AtomicU32) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if let Some(factor) = line.strip_prefix("pace ").and_then(|factor| factor.parse().ok()) {
            pace.store(factor, Ordering::Relaxed);
        }
    }
    std::process::exit(0);
}

async fn work(orders: WorkerOrders, pace: Arc<AtomicU32>) -> Result<(), String> {
    let uses_database = waits_for_callbacks(&orders.stream) || orders.stream == FINISH_QUERY;
    let brain = match uses_database {
        true => Some(Brain::connect(&orders.database_url).await?),
        false => None,
    };
    let worker = Worker::builder(&orders.stream).map_err(|e| e.to_string())?;
    // The visitor's environment is about their own fleet, not about this one.
    let worker = worker.environment(|_| None).task_limit(orders.task_limit).redis_url(&orders.redis_url);
    let post = Arc::new(Post { stream: orders.stream, work: orders.work, pace, brain });
    let handler = move |task| {
        let post = Arc::clone(&post);
        async move { post.handle(&task).await }
    };
    worker.run(handler).await.map(drop).map_err(|e| e.to_string())
}

struct Post {
    stream: String,
    work: Duration,
    pace: Arc<AtomicU32>,
    brain: Option<Brain>,
}

impl Post {
    async fn handle(&self, task: &Task) -> Result<Answer, TaskError> {
        let query_id = task.query_id().unwrap_or_default();
        let is_lookup = waits_for_callbacks(&self.stream);
        if let (Some(brain), true) = (&self.brain, is_lookup) {
            brain.add_callbacks(query_id, 1 + chance::lot() % 3).await.map_err(TaskError::new)?;
        }
        tokio::time::sleep(chance::around(self.work) * self.pace.load(Ordering::Relaxed)).await;
        task.progress();
        if is_lookup && chance::once_in(FAILS_ONCE_IN) {
            return Err(TaskError::new("a knowledge source returned 503"));
        }
        if let (Some(brain), FINISH_QUERY) = (&self.brain, self.stream.as_str()) {
            brain.finish_query(query_id, task.status().unwrap_or("OK")).await.map_err(TaskError::new)?;
        }
        Ok(Answer::forward())
    }
}
