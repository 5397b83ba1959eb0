//! What a handler answers: an [`Answer`], or a [`TaskError`] that any error turns into with `?`.

use std::fmt;
use std::time::Duration;

use crate::contract::Name;
use crate::contract::task::{Changes, Malformed, NewTask, Workflow};

/// What becomes of a task. Each answer is carried out by one script in Redis, all or nothing, and
/// only while the task still belongs to this worker.
///
/// ```
/// use std::time::Duration;
/// use shepherd_monitor::worker::{Answer, NewTask, Workflow};
///
/// // Along the workflow, with a changed field.
/// let forward = Answer::forward().set("status", "partial");
/// // An entry worker decides the workflow.
/// let entry = Answer::forward().workflow(Workflow::through(["example.lookup", "example.score"]));
/// // Nothing follows, but two other streams get a task each.
/// let split = Answer::end().emit("thumbnails", NewTask::new().set("n", "1")).emit("index", NewTask::new().set("n", "1"));
/// // Once more in a minute; not a delivery, so the delivery limit does not count it.
/// let wait = Answer::retry_after(Duration::from_secs(60), "upstream is rebuilding").uncounted();
/// ```
#[derive(Debug, Clone)]
pub struct Answer {
    pub(super) how: How,
    pub(super) emitted: Vec<(Name, NewTask)>,
}

/// The pause before a task runs again that met an unreachable Redis or a lock that is held.
#[cfg(feature = "worker-shepherd")]
const UNREACHABLE: Duration = Duration::from_secs(2);

/// The kinds of answer.
#[derive(Debug, Clone)]
pub(super) enum How {
    Forward(Changes),
    End,
    Retry {
        after: Duration,
        counts: bool,
        reason: String,
    },
    /// To `finish_query` with status ERROR.
    Fail(String),
    DeadLetter(String),
    Release(String),
    /// An error of the handler's: the worker's [`FailurePolicy`] decides.
    Error(String),
    /// A task, or a part of it, that cannot be read: the worker's policy for those decides.
    Malformed(String),
}

impl Answer {
    fn new(how: How) -> Self {
        Self { how, emitted: Vec::new() }
    }

    /// Done: passes the task on along its workflow, to `finish_query` when nothing is left of it.
    /// A task without a `workflow` field ends here, unless [`workflow`](Self::workflow) gives it one.
    #[must_use]
    pub fn forward() -> Self {
        Self::new(How::Forward(Changes::default()))
    }

    /// Done, and nothing follows: the task is acknowledged and deleted.
    #[must_use]
    pub fn end() -> Self {
        Self::new(How::End)
    }

    /// Not yet: the handler runs again after `delay`. Until then the task stays this worker's; its
    /// lease is renewed, it needs no permit and is not counted as hung. If the worker dies, others
    /// take the task over like any other. The next run counts as a delivery unless
    /// [`uncounted`](Self::uncounted); beyond the delivery limit the task becomes a dead letter.
    #[must_use]
    pub fn retry_after(delay: Duration, reason: impl Into<String>) -> Self {
        Self::new(How::Retry { after: delay, counts: true, reason: reason.into() })
    }

    /// Failed: the task goes to `finish_query` with status ERROR and this reason, which ends its
    /// query. On `finish_query` itself it becomes a dead letter.
    #[must_use]
    pub fn fail(reason: impl Into<String>) -> Self {
        Self::new(How::Fail(reason.into()))
    }

    /// Cannot be done: the task goes to the dead letters of its stream (`{stream}:dead`), from
    /// where `shepherd-monitor dead-letters replay` brings it back.
    #[must_use]
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::new(How::DeadLetter(reason.into()))
    }

    /// Not here: the task is given back, delivered again within seconds, preferably to another
    /// worker, and this delivery does not count.
    #[must_use]
    pub fn give_back(reason: impl Into<String>) -> Self {
        Self::new(How::Release(reason.into()))
    }

    /// Sets a field of the task that is passed on. Has no effect on other answers than
    /// [`forward`](Self::forward).
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Vec<u8>>) -> Self {
        if let How::Forward(changes) = &mut self.how {
            changes.fields.push((field.to_owned(), value.into()));
        }
        self
    }

    /// Passes the task on along this workflow instead of its own; if it begins with this worker's
    /// own stream, that operation counts as done. Has no effect on other answers than
    /// [`forward`](Self::forward).
    #[must_use]
    pub fn workflow(mut self, workflow: Workflow) -> Self {
        if let How::Forward(changes) = &mut self.how {
            changes.workflow = Some(workflow);
        }
        self
    }

    /// Adds `task` to `stream` at the same moment at which this task is completed: exactly once
    /// for each completion. With an answer that keeps the task (retry, give back), nothing is added.
    #[must_use]
    pub fn emit(mut self, stream: &str, task: NewTask) -> Self {
        self.emitted.push((Name::from(stream), task));
        self
    }

    /// Leaves the number of deliveries as it is. Has an effect on
    /// [`retry_after`](Self::retry_after) only; a given-back task never counts.
    #[must_use]
    pub fn uncounted(mut self) -> Self {
        if let How::Retry { counts, .. } = &mut self.how {
            *counts = false;
        }
        self
    }
}

/// An answer in place of a result: the task was not done.
///
/// Any error turns into one with `?`, be it a `std::error::Error`, a `Box<dyn Error + Send + Sync>`,
/// a `String` or a `&str`. What then becomes of the task is the worker's [`FailurePolicy`]. A
/// `ShepherdError` that may pass (Redis is unreachable, a lock is held) runs the task again instead.
pub struct TaskError(pub(super) Answer);

impl TaskError {
    /// The handler failed for this reason; the worker's [`FailurePolicy`] decides.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(Answer::new(How::Error(reason.into())))
    }

    /// The task cannot be read for this reason; the worker's policy for malformed tasks decides.
    #[must_use]
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self(Answer::new(How::Malformed(reason.into())))
    }

    /// See [`Answer::fail`].
    #[must_use]
    pub fn fail(reason: impl Into<String>) -> Self {
        Self(Answer::fail(reason))
    }

    /// See [`Answer::dead_letter`].
    #[must_use]
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self(Answer::dead_letter(reason))
    }

    /// See [`Answer::retry_after`].
    #[must_use]
    pub fn retry_after(delay: Duration, reason: impl Into<String>) -> Self {
        Self(Answer::retry_after(delay, reason))
    }

    /// See [`Answer::give_back`].
    #[must_use]
    pub fn give_back(reason: impl Into<String>) -> Self {
        Self(Answer::give_back(reason))
    }

    /// Gives this answer as an error, so that `?` may return it.
    #[must_use]
    pub fn answer(answer: Answer) -> Self {
        Self(answer)
    }

    fn reason(&self) -> &str {
        match &self.0.how {
            How::Retry { reason, .. }
            | How::Fail(reason)
            | How::DeadLetter(reason)
            | How::Release(reason)
            | How::Error(reason)
            | How::Malformed(reason) => reason,
            How::Forward(_) | How::End => "",
        }
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskError({:?})", self.reason())
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

// `TaskError` is no `std::error::Error`, or this would overlap with `From<T> for T`.
impl<E: Into<BoxError>> From<E> for TaskError {
    fn from(error: E) -> Self {
        let error = match error.into().downcast::<ServiceError>() {
            Ok(known) => return known.0,
            Err(other) => other,
        };
        #[cfg(feature = "worker-shepherd")]
        if let Some(error) = error.downcast_ref::<super::shepherd::ShepherdError>()
            && error.may_pass()
        {
            return Self(Answer::retry_after(UNREACHABLE, error.to_string()).uncounted());
        }
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.ends_with(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        if error.is::<Malformed>() { Self::malformed(reason) } else { Self::new(reason) }
    }
}

/// A [`TaskError`] as an error that tower's layers can carry.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServiceError(pub(super) TaskError);

/// What becomes of a task whose handler failed, or that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// As [`Fail`](Self::Fail) when the task has a `workflow` field, else as
    /// [`DeadLetter`](Self::DeadLetter): one bad callback does not end its query.
    #[default]
    ByWorkflow,
    /// It goes to `finish_query` with status ERROR; see [`Answer::fail`].
    Fail,
    /// It becomes a dead letter of its stream; see [`Answer::dead_letter`].
    DeadLetter,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(answer: impl FnOnce() -> Result<Answer, TaskError>) -> (String, String) {
        match answer() {
            Ok(_) => unreachable!("only errors are tried here"),
            Err(e) => {
                let kind = format!("{:?}", e.0.how);
                (kind.split(['(', ' ']).next().unwrap().to_owned(), e.to_string())
            }
        }
    }

    fn told(kind: &str, reason: &str) -> (String, String) {
        (kind.to_owned(), reason.to_owned())
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot rank")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn any_error_turns_into_a_failure_that_says_its_causes() {
        let io = || std::io::Error::other("disk on fire");
        assert_eq!(kind(|| Err(io())?), told("Error", "disk on fire"));
        assert_eq!(kind(|| Err(Outer(io()))?), told("Error", "cannot rank: disk on fire"));
        assert_eq!(kind(|| Err(Box::<dyn std::error::Error + Send + Sync>::from("boxed"))?), told("Error", "boxed"));
        assert_eq!(kind(|| Err("text".to_owned())?), told("Error", "text"));
        assert_eq!(kind(|| Err("literal")?), told("Error", "literal"));
        assert_eq!(kind(|| Err(anyhow::Error::new(Outer(io())))?), told("Error", "cannot rank: disk on fire"));
    }

    #[test]
    fn what_cannot_be_read_stays_told_apart_from_what_failed() {
        assert_eq!(kind(|| Err(Malformed("no list".to_owned()))?), told("Malformed", "malformed task: no list"));
    }

    #[test]
    fn an_error_of_the_librarys_own_keeps_its_kind_through_a_box() {
        let through = |error: TaskError| kind(|| Err(BoxError::from(ServiceError(error)))?);
        assert_eq!(through(TaskError::dead_letter("bad")), told("DeadLetter", "bad"));
        assert_eq!(through(TaskError::give_back("busy")), told("Release", "busy"));
        assert_eq!(through(TaskError::retry_after(Duration::ZERO, "later")), told("Retry", "later"));
    }
}
