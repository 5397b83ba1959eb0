//! Several workers in one process that shut down together.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::task::JoinSet;

use super::answer::{Answer, TaskError};
use super::builder::{Settings, WorkerBuilder, WorkerError};
use super::engine::{self, Left, Stop};
use super::handler::{self, Handler};
use super::task::Task;

/// Workers of several streams in one process. They share its signals and shut down together.
///
/// ```no_run
/// # use shepherd_monitor::worker::{Answer, Task, Worker, WorkerError, Workers};
/// # async fn example() -> Result<(), WorkerError> {
/// Workers::new()
///     .add(Worker::builder("example.lookup")?.task_limit(10), |_: Task| async { Ok(Answer::forward()) })
///     .add(Worker::builder("example.score")?, |_: Task| async { Ok(Answer::forward()) })
///     .run()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Workers {
    workers: Vec<(WorkerBuilder, Handler)>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.workers.iter().map(|(builder, _)| builder)).finish()
    }
}

impl Workers {
    /// Returns an empty set of workers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a worker.
    #[must_use]
    pub fn add<H, F>(self, builder: WorkerBuilder, handler: H) -> Self
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer, TaskError>> + Send + 'static,
    {
        self.add_handler(builder, handler::boxed(handler))
    }

    pub(super) fn add_handler(mut self, builder: WorkerBuilder, handler: Handler) -> Self {
        self.workers.push((builder, handler));
        self
    }

    /// Runs until SIGTERM or SIGINT, then shuts down all workers as [`WorkerBuilder::run`] does, and returns the sum of
    /// their unfinished tasks. If one worker cannot start, none starts.
    ///
    /// # Errors
    /// The first error of a worker; see [`WorkerBuilder::run`].
    pub async fn run(self) -> Result<Left, WorkerError> {
        let checked = |(builder, handler): (WorkerBuilder, Handler)| Ok((builder.checked()?, handler));
        let workers =
            self.workers.into_iter().map(checked).collect::<Result<Vec<(Settings, Handler)>, WorkerError>>()?;
        let remaining = Arc::new(AtomicUsize::new(workers.len()));
        // Dropping this future drops the set, which aborts all workers.
        let mut running = JoinSet::new();
        for (settings, handler) in workers {
            let stop = Stop::<std::future::Pending<Option<i32>>>::Signals(Arc::clone(&remaining));
            running.spawn(engine::run(settings, stop, handler));
        }
        let mut all = Left { in_flight: 0, running: 0 };
        while let Some(ended) = running.join_next().await {
            let left = ended.map_err(|e| WorkerError::System(format!("a worker's main loop failed: {e}")))??;
            all.in_flight = all.in_flight.saturating_add(left.in_flight);
            all.running = all.running.saturating_add(left.running);
        }
        if all.running > 0 {
            // A handler that blocks its thread would keep the runtime, and thus the process, alive.
            tracing::warn!(unfinished = all.running, "exiting with unfinished tasks; other workers reclaim them");
            std::process::exit(0);
        }
        Ok(all)
    }
}
