//! A task: one stream entry that travels along a workflow.
//!
//! [`Fields`] are the entry's bytes as they came, [`Workflow`] is where it still has to go,
//! [`trace`] is the trace it belongs to, and [`Outgoing`] is what leaves for the next stream.
//! Fields that nobody here knows travel on unchanged.

pub mod fields;
pub mod outgoing;
pub mod trace;
pub mod workflow;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use fields::Fields;
pub use outgoing::Outgoing;
pub use trace::TraceContext;
pub use workflow::Workflow;

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

/// Why an entry is no task, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed task: {0}")]
pub struct Malformed(pub String);

/// A task as it was read from a stream.
#[derive(Debug, Clone)]
pub struct Task {
    fields: Arc<Fields>,
    workflow: Workflow,
    origin: Origin,
    trace: Option<TraceContext>,
}

impl Task {
    /// Reads the entry `id` of `stream`.
    ///
    /// On `finish_query` the workflow may be missing, since nothing comes after it.
    ///
    /// # Errors
    /// Says what is wrong when the workflow is missing or no JSON list of `{"id": stream}`, or
    /// the metadata is no JSON. A trace context that cannot be read is no error: it is left alone.
    pub fn read(stream: &Name, id: &str, fields: Arc<Fields>) -> Result<Self, Malformed> {
        let workflow = match fields.get("workflow") {
            Some(json) => Workflow::parse(json).map_err(Malformed)?,
            None if stream.as_bytes() == FINISH_QUERY.as_bytes() => Workflow::default(),
            None => return Err(Malformed("it has no workflow field".to_owned())),
        };
        if let Some(metadata) = fields.get("metadata") {
            serde_json::from_slice::<serde::de::IgnoredAny>(metadata)
                .map_err(|e| Malformed(format!("its metadata is not JSON: {e}")))?;
        }
        let origin = fields
            .get(ORIGIN_FIELD)
            .and_then(|json| serde_json::from_slice(json).ok())
            .unwrap_or_else(|| Origin { stream: stream.to_text(), id: id.to_owned(), hop: 0 });
        let trace = fields.get("otel").and_then(TraceContext::parse);
        Ok(Self { fields, workflow, origin, trace })
    }

    /// All fields, as they came.
    #[must_use]
    pub fn fields(&self) -> &Arc<Fields> {
        &self.fields
    }

    /// One field as text; `None` when it is missing or not UTF-8.
    #[must_use]
    pub fn text(&self, field: &str) -> Option<&str> {
        std::str::from_utf8(self.fields.get(field)?).ok()
    }

    /// The operations that are still to do; the first is usually the one being done now.
    #[must_use]
    pub fn workflow(&self) -> &Workflow {
        &self.workflow
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

    /// Where the task goes when `stream` is done with it: the next operation of its workflow, else
    /// `finish_query`, else (on `finish_query` itself) nowhere.
    #[must_use]
    pub fn done(&self, stream: &Name, changes: Changes) -> Option<Outgoing> {
        let popped;
        let (left, changed) = match changes.workflow {
            Some(workflow) => (workflow.after(stream), true),
            None => {
                popped = self.workflow.after(stream);
                let changed = popped.len() != self.workflow.len();
                (popped, changed)
            }
        };
        let destination = match left.first() {
            Some(next) => Name::from(next),
            None if stream.as_bytes() == FINISH_QUERY.as_bytes() => return None,
            None => Name::from(FINISH_QUERY),
        };
        let mut out = Outgoing::new(destination, Arc::clone(&self.fields));
        for (field, value) in changes.fields {
            out.set(field, value);
        }
        if changed {
            out.set("workflow", left.to_json());
        }
        out.set(ORIGIN_FIELD, next_hop(&self.origin));
        if let (Some(trace), Some(span)) = (&self.trace, changes.span) {
            out.set("otel", trace.continued(span));
        }
        Some(out)
    }
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
pub struct Corpse<'a> {
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
pub fn dead(from: Corpse<'_>, fields: &Arc<Fields>, reason: &str, now_ms: u64) -> Outgoing {
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

/// A failed task on its way to `finish_query`; `None` on `finish_query` itself, where failing
/// again would never end.
#[must_use]
pub fn failed(stream: &Name, id: &str, fields: &Arc<Fields>, reason: &str) -> Option<Outgoing> {
    if stream.as_bytes() == FINISH_QUERY.as_bytes() {
        return None;
    }
    let origin = fields
        .get(ORIGIN_FIELD)
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or_else(|| Origin { stream: stream.to_text(), id: id.to_owned(), hop: 0 });
    let mut out = Outgoing::new(Name::from(FINISH_QUERY), Arc::clone(fields));
    out.set("workflow", "[]");
    out.set("status", STATUS_ERROR);
    out.set("error", reason);
    out.set(ORIGIN_FIELD, next_hop(&origin));
    Some(out)
}

fn next_hop(origin: &Origin) -> Vec<u8> {
    let next = Origin { hop: origin.hop.saturating_add(1), ..origin.clone() };
    serde_json::to_vec(&next).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(stream: &str, pairs: &[(&str, &str)]) -> Result<Task, Malformed> {
        Task::read(&Name::from(stream), "5-0", Arc::new(pairs.iter().copied().collect()))
    }

    fn sent(out: &Outgoing) -> Vec<(String, String)> {
        out.pairs()
            .map(|(k, v)| (String::from_utf8_lossy(k).into_owned(), String::from_utf8_lossy(v).into_owned()))
            .filter(|(k, _)| k != ORIGIN_FIELD)
            .collect()
    }

    #[test]
    fn a_task_goes_to_the_operation_after_the_one_just_done() {
        let task = task("a", &[("query_id", "q"), ("workflow", r#"[{"id":"a"},{"id":"b","x":[1]}]"#), ("z", "1")]);
        let out = task.unwrap().done(&"a".into(), Changes::default()).unwrap();
        assert_eq!(out.destination(), &Name::from("b"));
        assert_eq!(
            sent(&out),
            [("query_id", "q"), ("workflow", r#"[{"id":"b","x":[1]}]"#), ("z", "1")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
    }

    #[test]
    fn an_entry_worker_that_its_workflow_does_not_name_pops_nothing() {
        let task = task("entry", &[("workflow", r#"[{"id":"b"}]"#)]).unwrap();
        let out = task.done(&"entry".into(), Changes::default()).unwrap();
        assert_eq!((out.destination(), sent(&out).len()), (&Name::from("b"), 1));
    }

    #[test]
    fn the_end_of_the_workflow_is_finish_query_and_nothing_follows_that() {
        let last = task("a", &[("workflow", r#"[{"id":"a"}]"#)]).unwrap();
        assert_eq!(last.done(&"a".into(), Changes::default()).unwrap().destination(), &Name::from(FINISH_QUERY));
        let end = task(FINISH_QUERY, &[("query_id", "q")]).unwrap();
        assert!(end.done(&FINISH_QUERY.into(), Changes::default()).is_none());
        assert!(failed(&FINISH_QUERY.into(), "1-0", end.fields(), "x").is_none());
    }

    #[test]
    fn each_hop_keeps_the_origin_and_counts_one_more() {
        let first = task("a", &[("workflow", r#"[{"id":"a"},{"id":"b"}]"#)]).unwrap();
        let out = first.done(&"a".into(), Changes::default()).unwrap();
        let fields: Fields = out.pairs().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        let second = Task::read(&"b".into(), "9-1", Arc::new(fields)).unwrap();
        assert_eq!(second.origin().to_string(), "a/5-0/1");
    }

    #[test]
    fn each_malformed_task_says_what_is_wrong_with_it() {
        for (pairs, told) in [
            (vec![("query_id", "q")], "no workflow field"),
            (vec![("workflow", "[{\"id\":\"a\"")], "not JSON"),
            (vec![("workflow", "{}")], "not a JSON list"),
            (vec![("workflow", "[5]")], "operation 1"),
            (vec![("workflow", r#"[{"id":"a"},{"x":1}]"#)], "operation 2"),
            (vec![("workflow", r#"[{"id":""}]"#)], "empty"),
            (vec![("workflow", "[]"), ("metadata", "{")], "metadata"),
        ] {
            let reason = task("a", &pairs).unwrap_err().to_string();
            assert!(reason.contains(told), "{pairs:?} gave {reason:?}, wanted {told:?}");
        }
    }

    #[test]
    fn a_failed_task_carries_its_status_and_no_workflow() {
        let fields = Arc::new([("query_id", "q"), ("workflow", "nonsense")].into_iter().collect());
        let out = failed(&"a".into(), "1-0", &fields, "it was bad").unwrap();
        assert_eq!(out.destination(), &Name::from(FINISH_QUERY));
        let sent = sent(&out);
        for pair in [("query_id", "q"), ("workflow", "[]"), ("status", "ERROR"), ("error", "it was bad")] {
            assert!(sent.contains(&(pair.0.to_owned(), pair.1.to_owned())), "{sent:?}");
        }
    }
}
