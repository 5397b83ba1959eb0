//! A task as its handler sees it.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::vitals::{Vitals, unix_ms};
use crate::contract::task::{self as wire, Fields, Malformed, NewTask, Origin, Workflow, trace::SpanId};
use crate::contract::{Name, task::TraceContext};
use crate::redis_streams::tasks::EntryId;

/// A task. Cloning is cheap.
///
/// [`parse`](Self::parse) reads the fields into a struct; a handler wrapped in [`typed`](super::typed) gets a `Task<T>`
/// with the parsed struct in [`body`](Self::body).
#[derive(Debug, Clone)]
pub struct Task<T = ()> {
    pub(super) wire: Arc<wire::Task>,
    pub(super) fence: Fence,
    pub(super) vitals: Arc<Vitals>,
    /// Set when the run is cancelled.
    pub(super) cancelled: watch::Receiver<Option<Cancelled>>,
    pub(super) span: SpanId,
    pub(super) body: T,
}

/// Reason why a run was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// Another worker has claimed the task because this process was considered dead.
    Lost,
    /// The worker shuts down and the drain timeout has expired.
    ShuttingDown,
}

/// Fencing token: identifies one delivery of one entry. A later delivery has a higher count, unless the previous one
/// was released, so external systems can reject late writes of a worker that was considered dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// ID of the entry in the stream of this worker.
    pub entry: EntryId,
    /// Consumer that the entry was delivered to: this worker.
    pub consumer: Name,
    /// Delivery count, including this delivery.
    pub deliveries: u64,
}

impl<T> Task<T> {
    /// ID of the query.
    #[must_use]
    pub fn query_id(&self) -> Option<&str> {
        self.wire.text("query_id")
    }

    /// ID of the response.
    #[must_use]
    pub fn response_id(&self) -> Option<&str> {
        self.wire.text("response_id")
    }

    /// Requested log level as the producer wrote it (Python numbers; 20 is INFO).
    #[must_use]
    pub fn log_level(&self) -> Option<&str> {
        self.wire.text("log_level")
    }

    /// `ERROR` if an earlier operation failed; usually `None`.
    #[must_use]
    pub fn status(&self) -> Option<&str> {
        self.wire.text("status")
    }

    /// Parses the `metadata` field. A missing field is parsed as JSON `null`.
    ///
    /// # Errors
    /// If the JSON does not match `M`.
    pub fn metadata<M: DeserializeOwned>(&self) -> Result<M, Malformed> {
        let json = self.field("metadata").unwrap_or(b"null");
        serde_json::from_slice(json).map_err(|e| Malformed(format!("the field \"metadata\": {e}")))
    }

    /// Parses all fields into `B`: strings as they are, numbers, arrays and objects from JSON, `Option` for fields that
    /// may be missing or `null`.
    ///
    /// ```
    /// # use shepherd_monitor::worker::{Answer, Task, TaskError};
    /// #[derive(serde::Deserialize)]
    /// struct Callback {
    ///     query_id: String,
    ///     callback_id: String,
    ///     log_level: Option<u8>,
    /// }
    ///
    /// async fn merge(task: Task) -> Result<Answer, TaskError> {
    ///     let callback: Callback = task.parse()?;
    ///     println!("merging {} of {}", callback.callback_id, callback.query_id);
    ///     Ok(Answer::end())
    /// }
    /// ```
    ///
    /// # Errors
    /// Names the field and the expected type. `?` turns it into a [malformed](super::TaskError::malformed) task.
    pub fn parse<B: DeserializeOwned>(&self) -> Result<B, Malformed> {
        self.wire.parse()
    }

    /// The parsed fields, for a handler wrapped in [`typed`](super::typed).
    #[must_use]
    pub fn body(&self) -> &T {
        &self.body
    }

    /// Returns the task with another body.
    #[must_use]
    pub fn with_body<B>(self, body: B) -> Task<B> {
        let Self { wire, fence, vitals, cancelled, span, body: _ } = self;
        Task { wire, fence, vitals, cancelled, span, body }
    }

    /// All fields, unchanged.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        self.wire.fields()
    }

    /// Returns a task to [emit](super::Answer::emit) for the same query and trace: it has `query_id`, `response_id`,
    /// `log_level`, `otel` and `metadata` of this task, and no workflow.
    #[must_use]
    pub fn related(&self) -> NewTask {
        let start = NewTask::query(self.query_id().unwrap_or_default(), self.response_id().unwrap_or_default());
        let copied = ["log_level", "otel", "metadata"].iter().filter_map(|name| Some((*name, self.field(name)?)));
        let related = copied.fold(start, |new, (name, value)| new.set(name, value));
        match self.trace() {
            Some((trace, id)) => related.set("otel", trace.continued(wire::trace::OwnSpan { id, sampled: None })),
            None => related,
        }
    }

    /// Value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.wire.fields().get(name)
    }

    /// Value of a field as text; `None` if it is missing or not UTF-8.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.wire.text(name)
    }

    /// Remaining operations, including the current one; `None` if the field is missing, empty or `null` (the entry
    /// worker then sets the workflow).
    ///
    /// # Errors
    /// If the field is not a JSON list of `{"id": stream}`.
    pub fn workflow(&self) -> Result<Option<&Workflow>, Malformed> {
        self.wire.workflow()
    }

    /// Time since the query was added to its first stream, by the clock of this host. Restarts after a Python worker,
    /// which drops the field.
    #[must_use]
    pub fn age(&self) -> Duration {
        let added = self.wire.origin().id.split('-').next().and_then(|ms| ms.parse::<u64>().ok());
        Duration::from_millis(added.map_or(0, |added| unix_ms().saturating_sub(added)))
    }

    /// Idempotency key of this step: the same for every delivery, different for every hop. Use it for side effects
    /// outside Redis.
    #[must_use]
    pub fn idempotency_key(&self) -> &Origin {
        self.wire.origin()
    }

    /// Fencing token of this delivery.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether another worker has claimed the task because this process was considered dead. The handler can stop: its
    /// answer is discarded.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.cancelled.borrow() == Some(Cancelled::Lost)
    }

    /// Completes when the run is cancelled; for `tokio::select!`. At shutdown, the handler then has 200 ms to clean up.
    pub async fn cancelled(&self) -> Cancelled {
        let mut cancelled = self.cancelled.clone();
        let why = cancelled.wait_for(Option::is_some).await.ok().and_then(|why| *why);
        match why {
            Some(why) => why,
            // The worker has already completed or released the task.
            None => std::future::pending().await,
        }
    }

    /// Trace that this task continues, and the span of this run.
    #[must_use]
    pub fn trace(&self) -> Option<(&TraceContext, SpanId)> {
        self.wire.trace().map(|trace| (trace, self.span))
    }

    /// Reports progress. The monitor reports a worker as hung if its long-running tasks report none.
    pub fn progress(&self) {
        self.vitals.progressed();
    }
}
