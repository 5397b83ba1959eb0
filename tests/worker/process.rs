//! Worker processes for tests: this test binary, started again as a worker.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::worker::queries::finish_query;
use shepherd_monitor::worker::{Answer, Task, TaskError, Worker, Workers};
use tokio::sync::Mutex;

/// A worker process; killed when dropped.
pub(super) struct WorkerProcess {
    reaper: Reaper,
    command: Vec<String>,
    pid: u32,
}

impl WorkerProcess {
    /// Starts a worker of `stream` with these environment variables: settings of the worker, and those of
    /// [`worker_process`].
    pub(super) fn start(url: &str, stream: &str, settings: &[(&str, &str)]) -> Self {
        let reaper = Reaper::start("shepherd-worker", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
        let mut command = vec!["env".to_owned(), format!("REDIS_URL={url}"), format!("TEST_STREAM={stream}")];
        command.extend(settings.iter().map(|(name, value)| format!("{name}={value}")));
        command.push(std::env::current_exe().unwrap().to_str().unwrap().to_owned());
        command.extend(["worker::process::worker_process", "--exact", "--ignored", "--nocapture"].map(str::to_owned));
        let pid = reaper.serve(&command).unwrap();
        Self { reaper, command, pid }
    }

    /// Restarts the process; kills it first if it is running.
    pub(super) fn restart(&mut self) {
        self.pid = self.reaper.serve(&self.command).unwrap();
    }

    /// Sends `TERM`, `KILL`, `STOP` or `CONT`.
    pub(super) fn send(&self, signal: &str) {
        self.reaper.send(signal).unwrap();
    }

    pub(super) fn is_running(&self) -> bool {
        shepherd_monitor::demo::reaper::is_running(self.pid)
    }

    pub(super) fn printed(&self) -> String {
        self.reaper.log_from(0)
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Not a test: the main function of the worker process. Reads one stream or several, separated by commas. Does nothing
/// without its environment variables.
#[test]
#[ignore = "the body of worker processes that other tests start"]
fn worker_process() {
    let Some(stream) = setting("TEST_STREAM") else { return };
    let work = Duration::from_millis(setting("TEST_WORK_MS").map_or(0, |text| text.parse().unwrap()));
    let blocks = setting("TEST_BLOCKS").is_some();
    tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let builders = stream.split(',').map(|stream| {
        let builder = Worker::builder(stream).unwrap();
        match setting("TEST_FLOOR_MS") {
            Some(floor) => builder.reclaim_min_idle(Duration::from_millis(floor.parse().unwrap())),
            None => builder,
        }
    });
    let builders: Vec<_> = builders.collect();
    let left = runtime.block_on(async move {
        let database = match setting("TEST_DATABASE") {
            Some(url) => Some(Arc::new(Mutex::new(AsyncPgConnection::establish(&url).await.unwrap()))),
            None => None,
        };
        let handler = move |task: Task| {
            let database = database.clone();
            async move {
                if blocks {
                    std::thread::sleep(work);
                } else {
                    tokio::time::sleep(work).await;
                }
                if let Some(database) = database {
                    finish_query(&mut *database.lock().await, task.query_id().unwrap_or_default(), "OK").await?;
                }
                Ok::<_, TaskError>(Answer::forward())
            }
        };
        builders.into_iter().fold(Workers::new(), |workers, builder| workers.add(builder, handler.clone())).run().await
    });
    println!("returned {left:?}");
}
