//! A process of the simulated fleet: a real worker whose tasks only sleep.
//!
//! [`Demo`](super::Demo) starts it as `shepherd-monitor demo-worker …` and holds its standard input: a line `pace N`
//! changes the run time of tasks, and the end of the input ends the process, so that it cannot outlive the
//! demonstration. SIGTERM works as in any worker.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::random;
use super::shepherd::waits_for_callbacks;
use super::shepherd_database::ShepherdDatabase;
use crate::contract::task::FINISH_QUERY;
use crate::worker::{Answer, Task, TaskError, Worker};

/// One lookup in this many fails.
const FAILS_ONCE_IN: u32 = 40;

/// Configuration of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerOrders {
    /// Stream to read.
    pub stream: String,
    /// Concurrency.
    pub task_limit: usize,
    /// Mean run time of a task at pace 1.
    pub work: Duration,
    /// Redis URL.
    pub redis_url: String,
    /// URL of Shepherd's database.
    pub database_url: String,
}

/// The hidden subcommand with which the demonstration starts its workers.
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
    /// Reads the arguments of [`command`].
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

/// Runs the worker until its standard input asks it to shut down.
///
/// # Errors
/// When it cannot start.
pub fn run(orders: WorkerOrders) -> Result<(), String> {
    let pace = Arc::new(AtomicU32::new(1));
    let shared = Arc::clone(&pace);
    std::thread::spawn(move || obey(&shared));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(work(orders, pace))
}

/// Reads standard input to its end and then exits, without a graceful shutdown, because the demonstration is gone.
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
        true => Some(ShepherdDatabase::connect(&orders.database_url).await?),
        false => None,
    };
    let worker = Worker::builder(&orders.stream).map_err(|e| e.to_string())?;
    // The user's environment variables belong to their own fleet, not to this one.
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
    brain: Option<ShepherdDatabase>,
}

impl Post {
    async fn handle(&self, task: &Task) -> Result<Answer, TaskError> {
        let query_id = task.query_id().unwrap_or_default();
        let is_lookup = waits_for_callbacks(&self.stream);
        if let (Some(brain), true) = (&self.brain, is_lookup) {
            brain.add_callbacks(query_id, 1 + random::lot() % 3).await.map_err(TaskError::new)?;
        }
        tokio::time::sleep(random::around(self.work) * self.pace.load(Ordering::Relaxed)).await;
        task.progress();
        if is_lookup && random::once_in(FAILS_ONCE_IN) {
            return Err(TaskError::new("a knowledge source returned 503"));
        }
        if let (Some(brain), FINISH_QUERY) = (&self.brain, self.stream.as_str()) {
            brain.finish_query(query_id, task.status().unwrap_or("OK")).await.map_err(TaskError::new)?;
        }
        Ok(Answer::forward())
    }
}
