//! Runs a handler without Redis and returns what a worker would do with its answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::answer::{Answer, FailurePolicy, TaskError};
use super::outcome::{Delivery, Outcome};
use super::task::{Fence, Task};
use super::vitals::unix_ms;
use crate::contract::Name;
use crate::contract::task::{self as wire, GROUP, NewTask};

/// What a worker would do with a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// The task is completed, and these tasks are added: stream and task.
    Done(Vec<(String, NewTask)>),
    /// Like [`Done`](Self::Done), and counted as failed with this reason.
    Failed(Vec<(String, NewTask)>, String),
    /// The task is retried after this delay.
    RunsAgain(Duration),
    /// The task is released.
    HandedBack,
}

/// Runs `handler` on `task` as the first delivery in `stream`, with the default policies.
///
/// ```
/// # use shepherd_monitor::worker::testing::{Completion, run};
/// # use shepherd_monitor::worker::{Answer, NewTask, Task, Workflow};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let entry = |_: Task| async { Ok(Answer::forward().workflow(Workflow::through(["example.lookup"]))) };
/// let Completion::Done(added) = run("example", NewTask::query("q", "r").null_workflow(), entry).await else { panic!() };
/// assert_eq!(added[0].0, "example.lookup");
/// assert_eq!(added[0].1.fields().get("query_id"), Some(&b"q"[..]));
/// # }
/// ```
///
/// # Panics
/// If the handler panics.
pub async fn run<H, F>(stream: &str, task: NewTask, handler: H) -> Completion
where
    H: Fn(Task) -> F,
    F: Future<Output = Result<Answer, TaskError>>,
{
    let id = format!("{}-0", unix_ms());
    let (stream, group) = (Name::from(stream), Name::from(GROUP));
    let wire = Arc::new(wire::Task::read(&stream, &id, Arc::new(task.into_fields())));
    let fence = Fence { entry: id.as_str().into(), consumer: Name::from("testing"), deliveries: 1 };
    let (_keep, cancelled) = watch::channel(None);
    let delivered = Task { wire: Arc::clone(&wire), fence, vitals: Arc::default(), cancelled, span: 1, body: () };
    let answer = handler(delivered).await.unwrap_or_else(|TaskError(answer)| answer);
    let delivery = Delivery {
        stream: &stream,
        group: &group,
        id: &id,
        deliveries: 1,
        delivery_limit: u64::MAX,
        on_error: FailurePolicy::default(),
        on_malformed: FailurePolicy::default(),
        span: None,
        now_ms: unix_ms(),
    };
    match delivery.decide(&wire, answer) {
        Outcome::Complete { outgoing, failure } => {
            let message = |out: wire::Outgoing| {
                let fields: wire::Fields = out.pairs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                (out.destination().to_text(), NewTask::from(fields))
            };
            let added = outgoing.into_iter().map(message).collect();
            match failure {
                None => Completion::Done(added),
                Some(failure) => Completion::Failed(added, failure.reason().to_owned()),
            }
        }
        Outcome::Retry { after, .. } => Completion::RunsAgain(after),
        Outcome::Release { .. } => Completion::HandedBack,
    }
}
