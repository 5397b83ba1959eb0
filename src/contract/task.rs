//! Task: a stream entry that is forwarded along a workflow.
//!
//! [`Fields`] are the fields of the entry, [`Workflow`] the remaining operations, [`trace`] the trace context, and
//! [`Outgoing`] is a message to another stream. Unknown fields are forwarded unchanged.

pub mod fields;
pub mod new_task;
pub mod outgoing;
pub mod trace;
pub mod typed;
pub mod workflow;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use fields::Fields;
pub use new_task::NewTask;
pub use outgoing::Outgoing;
pub use trace::TraceContext;
pub use workflow::{Operation, OperationError, Workflow};

use super::Name;

/// Consumer group of all Shepherd workers.
pub const GROUP: &str = "consumer";
/// Stream to which completed and failed tasks are forwarded.
pub const FINISH_QUERY: &str = "finish_query";
/// Status of a failed task.
pub const STATUS_ERROR: &str = "ERROR";
/// Field with the [`Origin`] of a task.
pub const ORIGIN_FIELD: &str = "shepherd_origin";

/// Dead-letter stream of `stream`.
#[must_use]
pub fn dead_letters(stream: &Name) -> Name {
    let mut key = stream.as_bytes().to_vec();
    key.extend_from_slice(b":dead");
    Name::from(key)
}

/// Key of the delivery record of an entry (hash: `first_ms`, `history`, `error`).
///
/// Only entries that ran for long, were reclaimed or are retried have one. It expires after at most a day.
#[must_use]
pub fn delivery_record(stream: &Name, group: &Name, id: &str) -> Vec<u8> {
    let mut key = b"worker:deliveries:".to_vec();
    for part in [stream.as_bytes(), b":", group.as_bytes(), b":", id.as_bytes()] {
        key.extend_from_slice(part);
    }
    key
}

/// Idempotency key of a step: the first stream and ID of a task, and the number of hops since.
///
/// The same for every delivery of the step. A worker that drops unknown fields restarts the count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// First stream.
    pub stream: String,
    /// ID of the entry in the first stream.
    pub id: String,
    /// Number of hops: 0 in the first stream.
    pub hop: u32,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.stream, self.id, self.hop)
    }
}

/// Reason why a task or a field is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed task: {0}")]
pub struct Malformed(pub String);

/// A task: its fields, with workflow and trace context parsed.
///
/// Any entry is a task. The worker decides what a missing or invalid field means.
#[derive(Debug, Clone)]
pub struct Task {
    fields: Arc<Fields>,
    workflow: WorkflowField,
    origin: Origin,
    trace: Option<TraceContext>,
}

/// Content of the `workflow` field.
#[derive(Debug, Clone)]
enum WorkflowField {
    /// No such field, as in tasks of `merge_message`.
    Missing,
    /// Empty or the JSON text `null`: the entry worker sets the workflow.
    Undecided,
    List(Workflow),
    Unreadable(Malformed),
}

impl Task {
    /// Parses the entry `id` of `stream`.
    #[must_use]
    pub fn read(stream: &Name, id: &str, fields: Arc<Fields>) -> Self {
        let workflow = match fields.get("workflow").map(<[u8]>::trim_ascii) {
            None => WorkflowField::Missing,
            Some(b"" | b"null") => WorkflowField::Undecided,
            Some(json) => match Workflow::parse(json) {
                Ok(list) => WorkflowField::List(list),
                Err(reason) => WorkflowField::Unreadable(Malformed(reason)),
            },
        };
        let origin = origin_of(stream, id, &fields);
        let trace = fields.get("otel").and_then(TraceContext::parse);
        Self { fields, workflow, origin, trace }
    }

    /// All fields, unchanged.
    #[must_use]
    pub fn fields(&self) -> &Arc<Fields> {
        &self.fields
    }

    /// Deserializes the fields into a type of the worker; see [`typed::parse`].
    ///
    /// # Errors
    /// Names the field and the expected type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Malformed> {
        typed::parse(&self.fields)
    }

    /// Value of a field as text; `None` if it is missing or not UTF-8.
    #[must_use]
    pub fn text(&self, field: &str) -> Option<&str> {
        std::str::from_utf8(self.fields.get(field)?).ok()
    }

    /// Remaining operations, usually including the current one; `None` if the field is missing, empty or `null`.
    ///
    /// # Errors
    /// If the field is not a JSON list of `{"id": stream}`.
    pub fn workflow(&self) -> Result<Option<&Workflow>, Malformed> {
        match &self.workflow {
            WorkflowField::Missing | WorkflowField::Undecided => Ok(None),
            WorkflowField::List(list) => Ok(Some(list)),
            WorkflowField::Unreadable(reason) => Err(reason.clone()),
        }
    }

    /// Whether the task has a `workflow` field, whatever its value. Such tasks belong to a query that ends in
    /// `finish_query`.
    #[must_use]
    pub fn has_workflow_field(&self) -> bool {
        !matches!(self.workflow, WorkflowField::Missing)
    }

    /// Idempotency key of this step.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Trace context, if there is one.
    #[must_use]
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Returns the message that forwards the task from `stream` to the next operation of its workflow, or else to
    /// `finish_query`. `None` if nothing follows: on `finish_query` itself, and for a task without a `workflow` field
    /// if `changes` sets none.
    ///
    /// # Errors
    /// If the workflow is malformed and `changes` does not replace it.
    pub fn next(&self, stream: &Name, changes: Changes) -> Result<Option<Outgoing>, Malformed> {
        let (left, changed) = match (changes.workflow, &self.workflow) {
            (Some(new), _) => (new.after(stream), true),
            (None, WorkflowField::List(list)) => {
                let left = list.after(stream);
                let changed = left.len() != list.len();
                (left, changed)
            }
            (None, WorkflowField::Undecided) => (Workflow::default(), true),
            (None, WorkflowField::Missing) => return Ok(None),
            (None, WorkflowField::Unreadable(reason)) => return Err(reason.clone()),
        };
        let destination = match left.first() {
            Some(next) => Name::from(next),
            None if is_finish_query(stream) => return Ok(None),
            None => Name::from(FINISH_QUERY),
        };
        let mut out = Outgoing::new(destination, Arc::clone(&self.fields));
        for (field, value) in changes.fields {
            out.set(field, value);
        }
        if changed {
            out.set("workflow", left.to_json());
        }
        self.continue_in(&mut out, changes.span);
        Ok(Some(out))
    }

    /// Returns the message that sends the failed task to `finish_query`; `None` on `finish_query` itself, where it
    /// would fail in an endless loop.
    #[must_use]
    pub fn failed(&self, stream: &Name, reason: &str, span: Option<trace::OwnSpan>) -> Option<Outgoing> {
        if is_finish_query(stream) {
            return None;
        }
        let mut out = Outgoing::new(Name::from(FINISH_QUERY), Arc::clone(&self.fields));
        out.set("workflow", "[]");
        out.set("status", STATUS_ERROR);
        out.set("error", reason);
        self.continue_in(&mut out, span);
        Some(out)
    }

    fn continue_in(&self, out: &mut Outgoing, span: Option<trace::OwnSpan>) {
        out.set(ORIGIN_FIELD, next_hop(&self.origin));
        if let (Some(trace), Some(span)) = (&self.trace, span) {
            out.set("otel", trace.continued(span));
        }
    }
}

fn origin_of(stream: &Name, id: &str, fields: &Fields) -> Origin {
    fields.get(ORIGIN_FIELD).and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_else(|| Origin {
        stream: stream.to_text(),
        id: id.to_owned(),
        hop: 0,
    })
}

fn is_finish_query(stream: &Name) -> bool {
    stream.as_bytes() == FINISH_QUERY.as_bytes()
}

/// Changes of a handler to the forwarded task.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Fields to set, in addition to those that the library sets.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Replacement of the workflow.
    pub workflow: Option<Workflow>,
    /// Span of the run: the parent of the forwarded task.
    pub span: Option<trace::OwnSpan>,
}

/// Origin of a dead letter.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetterSource<'a> {
    /// Stream of the entry.
    pub stream: &'a Name,
    /// Consumer group of the worker.
    pub group: &'a Name,
    /// ID of the entry.
    pub id: &'a str,
    /// Delivery count.
    pub deliveries: u64,
}

/// Returns the message that moves a task to the dead-letter stream for `reason` at `now_ms` (Unix milliseconds).
#[must_use]
pub fn dead_letter(from: DeadLetterSource<'_>, fields: &Arc<Fields>, reason: &str, now_ms: u64) -> Outgoing {
    let mut out = Outgoing::new(dead_letters(from.stream), Arc::clone(fields));
    out.set("dead_stream", from.stream.as_bytes());
    out.set("dead_group", from.group.as_bytes());
    out.set("dead_id", from.id);
    out.set("dead_deliveries", from.deliveries.to_string());
    out.set("dead_at_ms", now_ms.to_string());
    out.set("dead_history", "[]");
    out.set("dead_error", reason);
    out
}

fn next_hop(origin: &Origin) -> Vec<u8> {
    let next = Origin { hop: origin.hop.saturating_add(1), ..origin.clone() };
    serde_json::to_vec(&next).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(stream: &str, pairs: &[(&str, &str)]) -> Task {
        Task::read(&Name::from(stream), "5-0", Arc::new(pairs.iter().copied().collect()))
    }

    fn next(
        stream: &str,
        pairs: &[(&str, &str)],
        workflow: Option<Workflow>,
    ) -> Option<(String, Vec<(String, String)>)> {
        let changes = Changes { workflow, ..Changes::default() };
        let out = task(stream, pairs).next(&stream.into(), changes).unwrap();
        out.map(|out| (out.destination().to_text(), sent(&out)))
    }

    fn sent(out: &Outgoing) -> Vec<(String, String)> {
        out.pairs()
            .map(|(k, v)| (String::from_utf8_lossy(k).into_owned(), String::from_utf8_lossy(v).into_owned()))
            .filter(|(k, _)| k != ORIGIN_FIELD)
            .collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_task_is_forwarded_to_the_next_operation() {
        let fields = [("query_id", "q"), ("workflow", r#"[{"id":"a"},{"id":"b","x":[1]}]"#), ("z", "1")];
        let wanted = pairs(&[("query_id", "q"), ("workflow", r#"[{"id":"b","x":[1]}]"#), ("z", "1")]);
        assert_eq!(next("a", &fields, None), Some(("b".to_owned(), wanted)));
    }

    #[test]
    fn a_workflow_without_the_stream_of_the_entry_worker_is_unchanged() {
        let wanted = pairs(&[("workflow", r#"[{"id":"b"}]"#)]);
        assert_eq!(next("entry", &[("workflow", r#"[{"id":"b"}]"#)], None), Some(("b".to_owned(), wanted)));
    }

    #[test]
    fn a_stream_visited_twice_is_removed_once_per_visit() {
        let wanted = pairs(&[("workflow", r#"[{"id":"a"},{"id":"b"}]"#)]);
        let fields = [("workflow", r#"[{"id":"a"},{"id":"a"},{"id":"b"}]"#)];
        assert_eq!(next("a", &fields, None), Some(("a".to_owned(), wanted)));
    }

    #[test]
    fn the_entry_worker_replaces_a_null_or_empty_workflow() {
        for undecided in ["null", " null\n", ""] {
            let fields = [("query_id", "q"), ("workflow", undecided)];
            assert!(task("entry", &fields).workflow().unwrap().is_none());
            let set = next("entry", &fields, Some(Workflow::through(["entry", "x", "y"])));
            let wanted = pairs(&[("query_id", "q"), ("workflow", r#"[{"id":"x"},{"id":"y"}]"#)]);
            assert_eq!(set, Some(("x".to_owned(), wanted)));
            // Without one, the query ends; otherwise the task would never finish.
            let end = next("entry", &fields, None);
            assert_eq!(end, Some((FINISH_QUERY.to_owned(), pairs(&[("query_id", "q"), ("workflow", "[]")]))));
        }
    }

    #[test]
    fn a_task_without_a_workflow_field_ends_unless_a_workflow_is_set() {
        let fields = [("query_id", "q"), ("callback_id", "c")];
        assert_eq!(next("merge_message", &fields, None), None);
        let forwarded = next("merge_message", &fields, Some(Workflow::through(["x"])));
        let wanted = pairs(&[("query_id", "q"), ("callback_id", "c"), ("workflow", r#"[{"id":"x"}]"#)]);
        assert_eq!(forwarded, Some(("x".to_owned(), wanted)));
    }

    #[test]
    fn the_workflow_ends_in_finish_query() {
        let last = next("a", &[("workflow", r#"[{"id":"a"}]"#)], None).unwrap();
        assert_eq!(last.0, FINISH_QUERY);
        for fields in [&[("query_id", "q")][..], &[("workflow", "[]")], &[("workflow", "null")]] {
            assert_eq!(next(FINISH_QUERY, fields, None), None);
            assert!(task(FINISH_QUERY, fields).failed(&FINISH_QUERY.into(), "x", None).is_none());
        }
    }

    #[test]
    fn each_hop_keeps_the_origin_and_increases_the_hop_count() {
        let first = task("a", &[("workflow", r#"[{"id":"a"},{"id":"b"}]"#)]);
        let out = first.next(&"a".into(), Changes::default()).unwrap().unwrap();
        let fields: Fields = out.pairs().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let second = Task::read(&"b".into(), "9-1", Arc::new(fields));
        assert_eq!(second.origin().to_string(), "a/5-0/1");
    }

    #[test]
    fn invalid_workflows_return_a_descriptive_error() {
        for (json, reason) in [
            ("[{\"id\":\"a\"", "not JSON"),
            ("nonsense", "not JSON"),
            ("{}", "not a JSON array"),
            ("[5]", "operation 1"),
            (r#"[{"id":"a"},{"x":1}]"#, "operation 2"),
            (r#"[{"id":""}]"#, "empty"),
        ] {
            let task = task("a", &[("workflow", json)]);
            let error = task.workflow().unwrap_err().to_string();
            assert!(error.contains(reason), "{json:?} gave {error:?}, wanted {reason:?}");
            assert!(task.next(&"a".into(), Changes::default()).is_err());
            // The task can still fail or be forwarded with another workflow.
            assert_eq!(sent(&task.failed(&"a".into(), "x", None).unwrap())[0].1, "[]");
            let other = Changes { workflow: Some(Workflow::through(["b"])), ..Changes::default() };
            assert!(task.next(&"a".into(), other).unwrap().is_some());
        }
    }

    #[test]
    fn a_failed_task_has_status_error_and_no_workflow() {
        let out = task("a", &[("query_id", "q"), ("workflow", "nonsense")]).failed(&"a".into(), "it was bad", None);
        let out = out.unwrap();
        assert_eq!(out.destination(), &Name::from(FINISH_QUERY));
        let sent = sent(&out);
        for pair in [("query_id", "q"), ("workflow", "[]"), ("status", "ERROR"), ("error", "it was bad")] {
            assert!(sent.contains(&(pair.0.to_owned(), pair.1.to_owned())), "{sent:?}");
        }
    }
}
