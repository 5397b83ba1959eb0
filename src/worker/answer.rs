//! Results of a handler: [`Answer`], and [`TaskError`], into which `?` converts any error.

use std::fmt;
use std::time::Duration;

use crate::contract::Name;
use crate::contract::task::{Changes, Malformed, NewTask, Workflow};

/// Result of a task. Each answer is one atomic script in Redis that takes effect only while this worker owns the task.
///
/// ```
/// use std::time::Duration;
/// use shepherd_monitor::worker::{Answer, NewTask, Workflow};
///
/// // Forward along the workflow, with a changed field.
/// let forward = Answer::forward().set("status", "partial");
/// // Set the workflow, as an entry worker does.
/// let entry = Answer::forward().workflow(Workflow::through(["example.lookup", "example.score"]));
/// // End here, and add a task to each of two other streams.
/// let split = Answer::end().emit("thumbnails", NewTask::new().set("n", "1")).emit("index", NewTask::new().set("n", "1"));
/// // Retry in a minute, without counting towards the delivery limit.
/// let wait = Answer::retry_after(Duration::from_secs(60), "upstream is rebuilding").uncounted();
/// ```
#[derive(Debug, Clone)]
pub struct Answer {
    pub(super) how: How,
    pub(super) emitted: Vec<(Name, NewTask)>,
}

/// Retry delay of a task that failed because Redis is unreachable or a lock is taken.
#[cfg(feature = "worker-shepherd")]
const UNREACHABLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub(super) enum How {
    Forward(Changes),
    End,
    Retry {
        after: Duration,
        counts: bool,
        reason: String,
    },
    /// Forward to `finish_query` with status ERROR.
    Fail(String),
    DeadLetter(String),
    Release(String),
    /// Error of the handler; the [`FailurePolicy`] for errors applies.
    Error(String),
    /// Malformed task; the [`FailurePolicy`] for malformed tasks applies.
    Malformed(String),
}

impl Answer {
    fn new(how: How) -> Self {
        Self { how, emitted: Vec::new() }
    }

    /// Completes the task and forwards it along its workflow, or to `finish_query` after the last operation. A task
    /// without a `workflow` field ends here, unless [`workflow`](Self::workflow) sets one.
    #[must_use]
    pub fn forward() -> Self {
        Self::new(How::Forward(Changes::default()))
    }

    /// Completes the task without forwarding it: it is acknowledged and deleted.
    #[must_use]
    pub fn end() -> Self {
        Self::new(How::End)
    }

    /// Runs the handler again on this worker after `delay`. Meanwhile the lease is renewed, and the task occupies no
    /// slot and does not count as hung. If the worker dies, other workers reclaim the task. The next run counts as a
    /// delivery unless [`uncounted`](Self::uncounted) is set; beyond the delivery limit the task is dead-lettered.
    #[must_use]
    pub fn retry_after(delay: Duration, reason: impl Into<String>) -> Self {
        Self::new(How::Retry { after: delay, counts: true, reason: reason.into() })
    }

    /// Fails the task: it goes to `finish_query` with status ERROR and `reason`, which ends the query. On
    /// `finish_query` itself it is dead-lettered.
    #[must_use]
    pub fn fail(reason: impl Into<String>) -> Self {
        Self::new(How::Fail(reason.into()))
    }

    /// Moves the task to the dead-letter stream `{stream}:dead`, from which `shepherd-monitor dead-letters replay`
    /// restores it.
    #[must_use]
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::new(How::DeadLetter(reason.into()))
    }

    /// Releases the task: it is delivered again within seconds, preferably to another worker, and this delivery does
    /// not count.
    #[must_use]
    pub fn give_back(reason: impl Into<String>) -> Self {
        Self::new(How::Release(reason.into()))
    }

    /// Sets a field of the forwarded task. Has an effect only on [`forward`](Self::forward).
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Vec<u8>>) -> Self {
        if let How::Forward(changes) = &mut self.how {
            changes.fields.push((field.to_owned(), value.into()));
        }
        self
    }

    /// Replaces the workflow of the forwarded task. If it begins with the stream of this worker, that operation counts
    /// as completed. Has an effect only on [`forward`](Self::forward).
    #[must_use]
    pub fn workflow(mut self, workflow: Workflow) -> Self {
        if let How::Forward(changes) = &mut self.how {
            changes.workflow = Some(workflow);
        }
        self
    }

    /// Adds `task` to `stream` atomically with the completion of this task, exactly once. Has no effect on answers that
    /// keep the task (retry, release).
    #[must_use]
    pub fn emit(mut self, stream: &str, task: NewTask) -> Self {
        self.emitted.push((Name::from(stream), task));
        self
    }

    /// Does not count the next run as a delivery. Has an effect only on [`retry_after`](Self::retry_after); released
    /// tasks never count.
    #[must_use]
    pub fn uncounted(mut self) -> Self {
        if let How::Retry { counts, .. } = &mut self.how {
            *counts = false;
        }
        self
    }
}

/// Error of a handler, or an [`Answer`] to return as an error.
///
/// `?` converts any `std::error::Error`, `Box<dyn Error + Send + Sync>`, `String` or `&str`; the [`FailurePolicy`] of
/// the worker then applies. A temporary `ShepherdError` (Redis is unreachable, a lock is taken) retries the task
/// instead.
pub struct TaskError(pub(super) Answer);

impl TaskError {
    /// The handler failed; the [`FailurePolicy`] for errors applies.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(Answer::new(How::Error(reason.into())))
    }

    /// The task is malformed; the [`FailurePolicy`] for malformed tasks applies.
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

    /// Returns `answer` as an error, for use with `?`.
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

// `TaskError` does not implement `std::error::Error`, because this would overlap with `From<T> for T`.
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

/// [`TaskError`] as a `std::error::Error`, which tower layers require.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServiceError(pub(super) TaskError);

/// What happens to a task that failed or is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// [`Fail`](Self::Fail) if the task has a `workflow` field, otherwise [`DeadLetter`](Self::DeadLetter), so that one
    /// bad callback does not end its query.
    #[default]
    ByWorkflow,
    /// Forward to `finish_query` with status ERROR, like [`Answer::fail`].
    Fail,
    /// Move to the dead-letter stream, like [`Answer::dead_letter`].
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

    fn result_of(kind: &str, reason: &str) -> (String, String) {
        (kind.to_owned(), reason.to_owned())
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot rank")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn any_error_converts_into_a_failure_with_its_sources() {
        let io = || std::io::Error::other("disk on fire");
        assert_eq!(kind(|| Err(io())?), result_of("Error", "disk on fire"));
        assert_eq!(kind(|| Err(Outer(io()))?), result_of("Error", "cannot rank: disk on fire"));
        assert_eq!(
            kind(|| Err(Box::<dyn std::error::Error + Send + Sync>::from("boxed"))?),
            result_of("Error", "boxed")
        );
        assert_eq!(kind(|| Err("text".to_owned())?), result_of("Error", "text"));
        assert_eq!(kind(|| Err("literal")?), result_of("Error", "literal"));
        assert_eq!(kind(|| Err(anyhow::Error::new(Outer(io())))?), result_of("Error", "cannot rank: disk on fire"));
    }

    #[test]
    fn malformed_tasks_stay_distinct_from_failures() {
        assert_eq!(kind(|| Err(Malformed("no list".to_owned()))?), result_of("Malformed", "malformed task: no list"));
    }

    #[test]
    fn library_errors_keep_their_kind_in_a_box() {
        let through = |error: TaskError| kind(|| Err(BoxError::from(ServiceError(error)))?);
        assert_eq!(through(TaskError::dead_letter("bad")), result_of("DeadLetter", "bad"));
        assert_eq!(through(TaskError::give_back("busy")), result_of("Release", "busy"));
        assert_eq!(through(TaskError::retry_after(Duration::ZERO, "later")), result_of("Retry", "later"));
    }
}
