//! Entry worker: sets the workflow of queries without one and forwards all.
//!
//! `cargo run --release --no-default-features --features worker --example entry -- --stream NAME --workflow a,b,c
//! [--task-limit N]`; Redis is set by `REDIS_URL` (or `REDIS_HOST`, `REDIS_PORT`, `REDIS_PASSWORD`).

mod shared;

use std::process::ExitCode;

use shared::Flags;
use shepherd_monitor::worker::{Answer, Task, Worker, Workflow, with_state};

const USAGE: &str = "usage: entry --stream NAME --workflow a,b,c [--task-limit N]";

fn main() -> ExitCode {
    let flags = Flags::read(std::env::args().skip(1), &["--stream", "--workflow", "--task-limit"]);
    let started = flags.and_then(|mut flags| {
        let workflow = flags.text("--workflow")?;
        let workflow = Workflow::through(workflow.split(',').map(str::trim));
        Ok(work(flags.text("--stream")?, workflow, flags.number("--task-limit", 10)?))
    });
    shared::exit("entry", USAGE, started)
}

#[tokio::main]
async fn work(stream: String, default: Workflow, task_limit: u64) -> Result<(), String> {
    shared::log();
    let decide = with_state(default, |default, task: Task| async move {
        // Keep a workflow that the user sent, with all members of its operations.
        match task.workflow()? {
            Some(_) => Ok(Answer::forward()),
            None => Ok(Answer::forward().workflow(default)),
        }
    });
    let worker = Worker::builder(&stream).map_err(|e| e.to_string())?;
    let task_limit = usize::try_from(task_limit).unwrap_or(usize::MAX);
    worker.task_limit(task_limit).run(decide).await.map(drop).map_err(|e| e.to_string())
}
