//! What a handler gets and what it answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;

use super::vitals::Vitals;
use crate::contract::task::{self as wire, Changes, Origin, Workflow, trace::SpanId};
use crate::contract::{Name, task::TraceContext};
use crate::redis_streams::tasks::EntryId;

/// One task, as its handler sees it. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Task {
    pub(super) wire: Arc<wire::Task>,
    pub(super) fence: Fence,
    pub(super) vitals: Arc<Vitals>,
    pub(super) lost: Arc<AtomicBool>,
    pub(super) span: SpanId,
}

/// Which delivery of which entry a handler works on. A later delivery has a higher count (unless
/// the one before was given back), so outside systems can refuse the work of a worker that was
/// thought dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The entry's id in this worker's stream.
    pub entry: EntryId,
    /// The consumer it was delivered to: this worker.
    pub consumer: Name,
    /// How often it has been delivered, this time included.
    pub deliveries: u64,
}

impl Task {
    /// The query that it belongs to.
    #[must_use]
    pub fn query_id(&self) -> Option<&str> {
        self.wire.text("query_id")
    }

    /// Where the query's answer is kept.
    #[must_use]
    pub fn response_id(&self) -> Option<&str> {
        self.wire.text("response_id")
    }

    /// The log level asked for, as its producer wrote it (Python's numbers: 20 is info).
    #[must_use]
    pub fn log_level(&self) -> Option<&str> {
        self.wire.text("log_level")
    }

    /// `ERROR` when an operation before this one failed; usually missing.
    #[must_use]
    pub fn status(&self) -> Option<&str> {
        self.wire.text("status")
    }

    /// The metadata as `T`; a missing field is JSON's `null`.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.field("metadata").unwrap_or(b"null"))
    }

    /// Any field, as bytes.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.wire.fields().get(name)
    }

    /// Any field, as text; `None` when it is missing or not UTF-8.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.wire.text(name)
    }

    /// The operations still to do, this one included.
    #[must_use]
    pub fn workflow(&self) -> &Workflow {
        self.wire.workflow()
    }

    /// Names this step of this piece of work, whoever runs it and however often: the same for each
    /// delivery, different for each hop. Effects outside Redis should be keyed by it.
    #[must_use]
    pub fn idempotency_key(&self) -> &Origin {
        self.wire.origin()
    }

    /// Which delivery this is.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether somebody else has the task by now: this process was thought dead. Whatever the
    /// handler answers then changes nothing; it may stop.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The trace this task continues, and the span that it runs in.
    #[must_use]
    pub fn trace(&self) -> Option<(&TraceContext, SpanId)> {
        self.wire.trace().map(|trace| (trace, self.span))
    }

    /// Says that the work moves on. A long task that reports nothing looks hung.
    pub fn progress(&self) {
        self.vitals.progressed();
    }
}

/// The task is done: pass it on along its workflow, with these changes.
#[derive(Debug, Clone, Default)]
pub struct Done {
    pub(super) changes: Changes,
}

impl Done {
    /// Passes the task on as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a field of what is passed on.
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Vec<u8>>) -> Self {
        self.changes.fields.push((field.to_owned(), value.into()));
        self
    }

    /// Gives it this workflow from here on; if it begins with this worker's own stream, that
    /// operation counts as done.
    #[must_use]
    pub fn workflow(mut self, workflow: Workflow) -> Self {
        self.changes.workflow = Some(workflow);
        self
    }
}

/// The task is not done. Any error turns into this with `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailed {
    pub(super) reason: String,
    pub(super) release: bool,
}

impl TaskFailed {
    /// It failed: it goes to `finish_query` with status ERROR and this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), release: false }
    }

    /// Not now, not here: the entry is given back and will be delivered again, without this
    /// delivery counting towards the limit.
    #[must_use]
    pub fn give_back(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), release: true }
    }
}

impl<E: std::error::Error> From<E> for TaskFailed {
    fn from(error: E) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        Self::new(reason)
    }
}

impl fmt::Display for TaskFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
