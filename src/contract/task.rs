//! A task: one stream entry that travels along a workflow.
//!
//! [`Fields`] are the entry's bytes as they came, [`Workflow`] is where it still has to go,
//! [`trace`] is the trace it belongs to, and [`Outgoing`] is what leaves for the next stream.
//! Unknown fields travel on unchanged.

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

/// The consumer group of every Shepherd worker.
pub const GROUP: &str = "consumer";
/// The stream where every task ends, done or failed.
pub const FINISH_QUERY: &str = "finish_query";
/// The status of a task that failed.
pub const STATUS_ERROR: &str = "ERROR";
/// Field that carries a task's [`Origin`] from hop to hop.
pub const ORIGIN_FIELD: &str = "shepherd_origin";

/// The stream that takes in the entries of `stream` that nobody could finish.
#[must_use]
pub fn dead_letters(stream: &Name) -> Name {
    let mut key = stream.as_bytes().to_vec();
    key.extend_from_slice(b":dead");
    Name::from(key)
}

/// Key of what is known of an entry's deliveries (hash: `first_ms`, `history`, `error`).
///
/// Only entries that run long or were taken over have one; it lives a day at most.
#[must_use]
pub fn delivery_record(stream: &Name, group: &Name, id: &str) -> Vec<u8> {
    let mut key = b"worker:deliveries:".to_vec();
    for part in [stream.as_bytes(), b":", group.as_bytes(), b":", id.as_bytes()] {
        key.extend_from_slice(part);
    }
    key
}

/// Where a task first entered the fleet, and how many streams it has passed since.
///
/// The three together name one step of one piece of work, whoever runs it and however often: the
/// idempotency key. A worker that drops unknown fields starts the count anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The first stream.
    pub stream: String,
    /// The entry's id there.
    pub id: String,
    /// 0 in the first stream, one more in each next.
    pub hop: u32,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.stream, self.id, self.hop)
    }
}

/// Why a task, or a part of it, cannot be read, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed task: {0}")]
pub struct Malformed(pub String);

/// A task as it was read from a stream: its fields, and what two of them mean.
///
/// Any entry is a task. What a missing or unreadable field means is its worker's decision.
#[derive(Debug, Clone)]
pub struct Task {
    fields: Arc<Fields>,
    workflow: WorkflowField,
    origin: Origin,
    trace: Option<TraceContext>,
}

/// What the `workflow` field holds.
#[derive(Debug, Clone)]
enum WorkflowField {
    /// No such field, as in the tasks of `merge_message`.
    Missing,
    /// Empty or the JSON text `null`: the entry worker decides.
    Undecided,
    List(Workflow),
    Unreadable(Malformed),
}

impl Task {
    /// Reads the entry `id` of `stream`.
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

    /// All fields, as they came.
    #[must_use]
    pub fn fields(&self) -> &Arc<Fields> {
        &self.fields
    }

    /// The fields as a value of the worker's own type; see [`typed::parse`].
    ///
    /// # Errors
    /// Names the field, and what was expected of it.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Malformed> {
        typed::parse(&self.fields)
    }

    /// One field as text; `None` when it is missing or not UTF-8.
    #[must_use]
    pub fn text(&self, field: &str) -> Option<&str> {
        std::str::from_utf8(self.fields.get(field)?).ok()
    }

    /// The operations that are still to do; the first is usually the one being done now. `None`
    /// when the field is missing, empty or `null`.
    ///
    /// # Errors
    /// When the field holds something else than a JSON list of `{"id": stream}`.
    pub fn workflow(&self) -> Result<Option<&Workflow>, Malformed> {
        match &self.workflow {
            WorkflowField::Missing | WorkflowField::Undecided => Ok(None),
            WorkflowField::List(list) => Ok(Some(list)),
            WorkflowField::Unreadable(reason) => Err(reason.clone()),
        }
    }

    /// Whether the task has a `workflow` field, whatever it holds: it belongs to a query that ends
    /// in `finish_query`.
    #[must_use]
    pub fn has_workflow_field(&self) -> bool {
        !matches!(self.workflow, WorkflowField::Missing)
    }

    /// The idempotency key of this step.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The trace that it belongs to.
    #[must_use]
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// The task as `stream` passes it on: to the next operation of its workflow, else to
    /// `finish_query`. `None` when nothing follows: on `finish_query` itself, and for a task
    /// without a `workflow` field that is given none.
    ///
    /// # Errors
    /// When the workflow cannot be read and `changes` bring no other one.
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

    /// The failed task on its way to `finish_query`; `None` on `finish_query` itself, where failing
    /// again would never end.
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

/// What a handler changed about its task before passing it on.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Fields to set, beside the ones that the library sets.
    pub fields: Vec<(String, Vec<u8>)>,
    /// A new workflow in place of the one that came.
    pub workflow: Option<Workflow>,
    /// The span in which the task ran, as the parent of what follows.
    pub span: Option<trace::OwnSpan>,
}

/// Where a task that could not be finished came from.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetterSource<'a> {
    /// Its stream.
    pub stream: &'a Name,
    /// The group in which nobody could finish it.
    pub group: &'a Name,
    /// Its id there.
    pub id: &'a str,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// A task on its way to the dead letters of its stream, for `reason`, at `now_ms` (Unix
/// milliseconds).
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
    fn a_task_goes_to_the_operation_after_the_one_just_done() {
        let fields = [("query_id", "q"), ("workflow", r#"[{"id":"a"},{"id":"b","x":[1]}]"#), ("z", "1")];
        let wanted = pairs(&[("query_id", "q"), ("workflow", r#"[{"id":"b","x":[1]}]"#), ("z", "1")]);
        assert_eq!(next("a", &fields, None), Some(("b".to_owned(), wanted)));
    }

    #[test]
    fn an_entry_worker_that_its_workflow_does_not_name_pops_nothing() {
        let wanted = pairs(&[("workflow", r#"[{"id":"b"}]"#)]);
        assert_eq!(next("entry", &[("workflow", r#"[{"id":"b"}]"#)], None), Some(("b".to_owned(), wanted)));
    }

    #[test]
    fn a_workflow_that_visits_a_stream_twice_loses_one_visit_at_a_time() {
        let wanted = pairs(&[("workflow", r#"[{"id":"a"},{"id":"b"}]"#)]);
        let fields = [("workflow", r#"[{"id":"a"},{"id":"a"},{"id":"b"}]"#)];
        assert_eq!(next("a", &fields, None), Some(("a".to_owned(), wanted)));
    }

    #[test]
    fn a_null_or_empty_workflow_is_replaced_by_the_entry_workers() {
        for undecided in ["null", " null\n", ""] {
            let fields = [("query_id", "q"), ("workflow", undecided)];
            assert!(task("entry", &fields).workflow().unwrap().is_none());
            let set = next("entry", &fields, Some(Workflow::through(["entry", "x", "y"])));
            let wanted = pairs(&[("query_id", "q"), ("workflow", r#"[{"id":"x"},{"id":"y"}]"#)]);
            assert_eq!(set, Some(("x".to_owned(), wanted)));
            // Without one, the query ends; a task that nobody takes further would hang.
            let end = next("entry", &fields, None);
            assert_eq!(end, Some((FINISH_QUERY.to_owned(), pairs(&[("query_id", "q"), ("workflow", "[]")]))));
        }
    }

    #[test]
    fn a_task_without_a_workflow_field_ends_where_it_is_unless_it_is_given_one() {
        let fields = [("query_id", "q"), ("callback_id", "c")];
        assert_eq!(next("merge_message", &fields, None), None);
        let given = next("merge_message", &fields, Some(Workflow::through(["x"])));
        let wanted = pairs(&[("query_id", "q"), ("callback_id", "c"), ("workflow", r#"[{"id":"x"}]"#)]);
        assert_eq!(given, Some(("x".to_owned(), wanted)));
    }

    #[test]
    fn the_end_of_the_workflow_is_finish_query_and_nothing_follows_that() {
        let last = next("a", &[("workflow", r#"[{"id":"a"}]"#)], None).unwrap();
        assert_eq!(last.0, FINISH_QUERY);
        for fields in [&[("query_id", "q")][..], &[("workflow", "[]")], &[("workflow", "null")]] {
            assert_eq!(next(FINISH_QUERY, fields, None), None);
            assert!(task(FINISH_QUERY, fields).failed(&FINISH_QUERY.into(), "x", None).is_none());
        }
    }

    #[test]
    fn each_hop_keeps_the_origin_and_counts_one_more() {
        let first = task("a", &[("workflow", r#"[{"id":"a"},{"id":"b"}]"#)]);
        let out = first.next(&"a".into(), Changes::default()).unwrap().unwrap();
        let fields: Fields = out.pairs().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let second = Task::read(&"b".into(), "9-1", Arc::new(fields));
        assert_eq!(second.origin().to_string(), "a/5-0/1");
    }

    #[test]
    fn each_workflow_that_cannot_be_read_says_what_is_wrong_with_it() {
        for (json, reason) in [
            ("[{\"id\":\"a\"", "not JSON"),
            ("nonsense", "not JSON"),
            ("{}", "not a JSON array"),
            ("[5]", "operation 1"),
            (r#"[{"id":"a"},{"x":1}]"#, "operation 2"),
            (r#"[{"id":""}]"#, "empty"),
        ] {
            let task = task("a", &[("workflow", json)]);
            let told = task.workflow().unwrap_err().to_string();
            assert!(told.contains(reason), "{json:?} gave {told:?}, wanted {reason:?}");
            assert!(task.next(&"a".into(), Changes::default()).is_err());
            // It may still be failed, or sent another way.
            assert_eq!(sent(&task.failed(&"a".into(), "x", None).unwrap())[0].1, "[]");
            let other = Changes { workflow: Some(Workflow::through(["b"])), ..Changes::default() };
            assert!(task.next(&"a".into(), other).unwrap().is_some());
        }
    }

    #[test]
    fn a_failed_task_carries_its_status_and_no_workflow() {
        let out = task("a", &[("query_id", "q"), ("workflow", "nonsense")]).failed(&"a".into(), "it was bad", None);
        let out = out.unwrap();
        assert_eq!(out.destination(), &Name::from(FINISH_QUERY));
        let sent = sent(&out);
        for pair in [("query_id", "q"), ("workflow", "[]"), ("status", "ERROR"), ("error", "it was bad")] {
            assert!(sent.contains(&(pair.0.to_owned(), pair.1.to_owned())), "{sent:?}");
        }
    }
}
