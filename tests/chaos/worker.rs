//! The worker processes of the run: this very binary, started again as one of four kinds.
//!
//! What becomes of a task is decided by its number, so that the end of each is known beforehand. Each completed step
//! leaves a receipt, emitted in the step's own script: two receipts are two completions.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::process::ExitCode;
use std::time::Duration;

use shepherd_monitor::worker::{Answer, NewTask, Task, TaskError, Worker, Workflow};

pub(crate) const ENTRY: &str = "chaos.entry";
pub(crate) const RELAY: &str = "chaos.relay";
pub(crate) const MERGE: &str = "chaos.merge";
pub(crate) const FINISH: &str = "finish_query";
/// Where dead letters of the third kind go.
pub(crate) const DEAD: &str = "chaos.merge:dead";
/// A receipt for each completed step.
pub(crate) const RECEIPTS: &str = "chaos.receipts";

/// So long a lost task lies idle before another worker takes it over.
pub(crate) const FLOOR: Duration = Duration::from_secs(5);
/// Far above what a run needs: no task is dead-lettered for the faults that its workers met.
const DELIVERIES: u64 = 100;

/// How a task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Through all four kinds of workers.
    Done,
    /// Its second step fails: the last kind finishes it with status ERROR.
    Failed,
    /// Its third step dead-letters it.
    DeadLetter,
}

pub(crate) fn ending(number: u64) -> Ending {
    match number {
        _ if matches!(number % 50, 13 | 37) => Ending::Failed,
        _ if number.is_multiple_of(97) => Ending::DeadLetter,
        _ => Ending::Done,
    }
}

/// The number in a task's query id.
pub(crate) fn number(query_id: &str) -> Option<u64> {
    query_id.strip_prefix('q')?.parse().ok()
}

/// Runs as a worker of this stream until it is asked to shut down.
pub(crate) fn run(stream: &str) -> ExitCode {
    tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let builder = Worker::builder(stream).unwrap().task_limit(8).reclaim_min_idle(FLOOR);
    let builder = builder.reclaim_interval(Duration::from_secs(2)).delivery_limit(DELIVERIES);
    let kind = stream.to_owned();
    let handler = move |task: Task| {
        let kind = kind.clone();
        async move { handle(&kind, &task).await }
    };
    match runtime.block_on(builder.drain_timeout(Duration::from_secs(8)).run(handler)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker of {stream}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True for one in `n` calls.
fn one_in(n: u64) -> bool {
    RandomState::new().hash_one(0_u8).is_multiple_of(n)
}

async fn handle(stream: &str, task: &Task) -> Result<Answer, TaskError> {
    let query = task.query_id().unwrap_or_default();
    let n = number(query).ok_or_else(|| TaskError::new(format!("{query:?} is not a task of this run")))?;
    // Most steps are short; some last long enough to be met by a fault.
    let work = if n.is_multiple_of(41) { 3_000 } else { 5 + n % 60 };
    tokio::time::sleep(Duration::from_millis(work)).await;
    task.progress();
    let receipt = |status: &str| NewTask::new().set("n", n.to_string()).set("step", stream).set("status", status);
    let done = |answer: Answer| answer.emit(RECEIPTS, receipt("OK"));
    match stream {
        ENTRY => Ok(done(Answer::forward().workflow(Workflow::through([RELAY, MERGE])))),
        RELAY => match n % 50 {
            13 => Err(TaskError::new("fails, as its number says")),
            37 => panic!("panics, as its number says"),
            _ if n % 7 == 5 && one_in(2) => Ok(Answer::give_back("given back, as its number says")),
            _ => Ok(done(Answer::forward())),
        },
        MERGE if ending(n) == Ending::DeadLetter => Ok(Answer::dead_letter("a dead letter, as its number says")),
        MERGE if n % 11 == 3 && one_in(2) => {
            Ok(Answer::retry_after(Duration::from_secs(2), "later, as its number says").uncounted())
        }
        FINISH => Ok(Answer::end().emit(RECEIPTS, receipt(task.status().unwrap_or("none")))),
        _ => Ok(done(Answer::forward())),
    }
}
