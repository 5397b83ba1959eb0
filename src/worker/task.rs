//! What a handler gets.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::vitals::{Vitals, unix_ms};
use crate::contract::task::{self as wire, Fields, Malformed, NewTask, Origin, Workflow, trace::SpanId};
use crate::contract::{Name, task::TraceContext};
use crate::redis_streams::tasks::EntryId;

/// One task, as its handler sees it. Cloning is cheap.
///
/// A task is its fields. [`parse`](Self::parse) reads them as a type of the worker's own; a handler
/// made with [`typed`](super::typed) gets a `Task<T>` whose [`body`](Self::body) is that already.
#[derive(Debug, Clone)]
pub struct Task<T = ()> {
    pub(super) wire: Arc<wire::Task>,
    pub(super) fence: Fence,
    pub(super) vitals: Arc<Vitals>,
    /// Why the task's run is of no use any more, if it is.
    pub(super) cancelled: watch::Receiver<Option<Cancelled>>,
    pub(super) span: SpanId,
    pub(super) body: T,
}

/// Why a run is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// Another worker has the task: this process was taken for dead.
    Lost,
    /// The worker shuts down and its drain timeout is over.
    ShuttingDown,
}

/// Which delivery of which entry a handler works on. A later delivery has a higher count (unless
/// the one before was given back), so outside systems can refuse the writes of a worker that was
/// taken for dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The entry's id in this worker's stream.
    pub entry: EntryId,
    /// The consumer it was delivered to: this worker.
    pub consumer: Name,
    /// How often it has been delivered, this time included.
    pub deliveries: u64,
}

impl<T> Task<T> {
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

    /// The metadata as `M`; a missing field is JSON's `null`.
    ///
    /// # Errors
    /// When it has another shape.
    pub fn metadata<M: DeserializeOwned>(&self) -> Result<M, Malformed> {
        let json = self.field("metadata").unwrap_or(b"null");
        serde_json::from_slice(json).map_err(|e| Malformed(format!("the field \"metadata\": {e}")))
    }

    /// All fields as `B`: text as it is, numbers, lists and objects from JSON, `Option` for what may
    /// be missing or `null`.
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
    /// Names the field, and what was expected of it. With `?` it becomes a
    /// [malformed](super::TaskError::malformed) task.
    pub fn parse<B: DeserializeOwned>(&self) -> Result<B, Malformed> {
        self.wire.parse()
    }

    /// The fields as they were parsed for a handler made with [`typed`](super::typed).
    #[must_use]
    pub fn body(&self) -> &T {
        &self.body
    }

    /// The same task with another body.
    #[must_use]
    pub fn with_body<B>(self, body: B) -> Task<B> {
        let Self { wire, fence, vitals, cancelled, span, body: _ } = self;
        Task { wire, fence, vitals, cancelled, span, body }
    }

    /// All fields, as they came.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        self.wire.fields()
    }

    /// A task to [emit](super::Answer::emit) that belongs to the same query and trace: it has this
    /// task's `query_id`, `response_id`, `log_level`, `otel` and `metadata`, and no workflow.
    #[must_use]
    pub fn related(&self) -> NewTask {
        let start = NewTask::query(self.query_id().unwrap_or_default(), self.response_id().unwrap_or_default());
        let kept = ["log_level", "otel", "metadata"].iter().filter_map(|name| Some((*name, self.field(name)?)));
        let related = kept.fold(start, |new, (name, value)| new.set(name, value));
        match self.trace() {
            Some((trace, id)) => related.set("otel", trace.continued(wire::trace::OwnSpan { id, sampled: None })),
            None => related,
        }
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

    /// The operations still to do, this one included; `None` when the field is missing, empty or
    /// `null` (an entry worker then decides the workflow).
    ///
    /// # Errors
    /// When the field holds something else than a JSON list of `{"id": stream}`.
    pub fn workflow(&self) -> Result<Option<&Workflow>, Malformed> {
        self.wire.workflow()
    }

    /// Since the task's query was added to its first stream, by this machine's clock. A Python worker
    /// on the way starts the count anew.
    #[must_use]
    pub fn age(&self) -> Duration {
        let added = self.wire.origin().id.split('-').next().and_then(|ms| ms.parse::<u64>().ok());
        Duration::from_millis(added.map_or(0, |added| unix_ms().saturating_sub(added)))
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

    /// Whether another worker has the task by now: this process was taken for dead. Whatever the
    /// handler answers then changes nothing; it may stop.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.cancelled.borrow() == Some(Cancelled::Lost)
    }

    /// Ready when the run is of no use any more; never ready while it is. For `tokio::select!`. When
    /// the worker shuts down, the handler has 200 ms from then on to clean up.
    pub async fn cancelled(&self) -> Cancelled {
        let mut cancelled = self.cancelled.clone();
        let why = cancelled.wait_for(Option::is_some).await.ok().and_then(|why| *why);
        match why {
            Some(why) => why,
            // The worker has forgotten the task: it was completed or given back.
            None => std::future::pending().await,
        }
    }

    /// The trace this task continues, and the span that it runs in.
    #[must_use]
    pub fn trace(&self) -> Option<(&TraceContext, SpanId)> {
        self.wire.trace().map(|trace| (trace, self.span))
    }

    /// Reports progress. The monitor calls a worker hung whose long tasks report none.
    pub fn progress(&self) {
        self.vitals.progressed();
    }
}
