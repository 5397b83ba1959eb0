//! Maps the answer of a handler to what happens to the entry.
//!
//! Free of I/O, so that [`testing`](super::testing) decides exactly as a running worker does.

use std::sync::Arc;
use std::time::Duration;

use super::answer::{Answer, FailurePolicy, How};
use crate::contract::Name;
use crate::contract::failures::{FailureKind, TaskFailure};
use crate::contract::task::{self as wire, Changes, DeadLetterSource, Outgoing, trace::OwnSpan};

#[derive(Debug)]
pub(super) enum Outcome {
    /// The entry is acknowledged and deleted, and these messages are added.
    Complete { outgoing: Vec<Outgoing>, failure: Option<TaskFailure> },
    /// The entry stays pending for this worker and runs again.
    Retry { after: Duration, counts: bool, reason: String },
    /// The entry is released.
    Release { reason: String },
}

/// Properties of the worker and the delivery on which the outcome depends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery<'a> {
    pub(super) stream: &'a Name,
    pub(super) group: &'a Name,
    pub(super) id: &'a str,
    pub(super) deliveries: u64,
    pub(super) delivery_limit: u64,
    pub(super) on_error: FailurePolicy,
    pub(super) on_malformed: FailurePolicy,
    pub(super) span: Option<OwnSpan>,
    /// Current time in Unix milliseconds.
    pub(super) now_ms: u64,
}

impl Delivery<'_> {
    /// Returns the outcome of `answer` for `task`.
    pub(super) fn decide(&self, task: &wire::Task, answer: Answer) -> Outcome {
        let Answer { how, emitted } = answer;
        let emitted = emitted
            .into_iter()
            .map(|(stream, new)| Outgoing::new(stream, Arc::new(new.into_fields())))
            .collect::<Vec<_>>();
        match how {
            How::Forward(changes) => {
                let changes = Changes { span: self.span, ..changes };
                match task.next(self.stream, changes) {
                    Ok(next) => {
                        let outgoing = next.into_iter().chain(emitted).collect();
                        Outcome::Complete { outgoing, failure: None }
                    }
                    Err(malformed) => self.malformed(task, malformed.to_string()),
                }
            }
            How::End => Outcome::Complete { outgoing: emitted, failure: None },
            How::Retry { counts: true, reason, .. } if self.deliveries > self.delivery_limit => {
                let reason = format!("delivered {} times and still to be retried: {reason}", self.deliveries);
                self.dead_letter(task, reason, &[FailureKind::DeadLettered], Vec::new())
            }
            How::Retry { after, counts, reason } => Outcome::Retry { after, counts, reason },
            How::Release(reason) => Outcome::Release { reason },
            How::Fail(reason) => self.fail(task, reason, &[FailureKind::Failed], emitted),
            How::DeadLetter(reason) => self.dead_letter(task, reason, &[FailureKind::DeadLettered], emitted),
            How::Error(reason) if self.ends_query(self.on_error, task) => {
                self.fail(task, reason, &[FailureKind::Failed], emitted)
            }
            How::Error(reason) => {
                self.dead_letter(task, reason, &[FailureKind::Failed, FailureKind::DeadLettered], emitted)
            }
            How::Malformed(reason) => self.malformed(task, reason),
        }
    }

    fn malformed(&self, task: &wire::Task, reason: String) -> Outcome {
        if self.ends_query(self.on_malformed, task) {
            self.fail(task, reason, &[FailureKind::Malformed], Vec::new())
        } else {
            self.dead_letter(task, reason, &[FailureKind::Malformed, FailureKind::DeadLettered], Vec::new())
        }
    }

    fn ends_query(&self, policy: FailurePolicy, task: &wire::Task) -> bool {
        match policy {
            FailurePolicy::ByWorkflow => task.has_workflow_field(),
            FailurePolicy::Fail => true,
            FailurePolicy::DeadLetter => false,
        }
    }

    fn fail(&self, task: &wire::Task, reason: String, kinds: &[FailureKind], emitted: Vec<Outgoing>) -> Outcome {
        let Some(failed) = task.failed(self.stream, &reason, self.span) else {
            let both = [kinds, &[FailureKind::DeadLettered]].concat();
            return self.dead_letter(task, reason, &both, emitted);
        };
        let outgoing = std::iter::once(failed).chain(emitted).collect();
        Outcome::Complete { outgoing, failure: Some(TaskFailure::new(kinds, reason, self.now_ms)) }
    }

    fn dead_letter(&self, task: &wire::Task, reason: String, kinds: &[FailureKind], emitted: Vec<Outgoing>) -> Outcome {
        let from =
            DeadLetterSource { stream: self.stream, group: self.group, id: self.id, deliveries: self.deliveries };
        let letter = wire::dead_letter(from, task.fields(), &reason, self.now_ms);
        let outgoing = std::iter::once(letter).chain(emitted).collect();
        Outcome::Complete { outgoing, failure: Some(TaskFailure::new(kinds, reason, self.now_ms)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::task::{Fields, NewTask, Workflow};

    /// All forms of the `workflow` field.
    const LIST: Option<&str> = Some(r#"[{"id":"a"},{"id":"b"}]"#);
    const LAST: Option<&str> = Some(r#"[{"id":"a"}]"#);
    const NULL: Option<&str> = Some("null");
    const EMPTY: Option<&str> = Some("");
    const BROKEN: Option<&str> = Some("{");
    const MISSING: Option<&str> = None;

    /// Destination streams (the dead-letter stream as `dead`) or the other outcome, then the counted failures.
    fn outcome(stream: &str, workflow: Option<&str>, answer: Answer, policy: FailurePolicy) -> String {
        let fields = [("query_id", "q")].into_iter().chain(workflow.map(|json| ("workflow", json)));
        let (stream, group) = (Name::from(stream), Name::from("consumer"));
        let task = wire::Task::read(&stream, "5-0", Arc::new(fields.collect::<Fields>()));
        let delivery = Delivery {
            stream: &stream,
            group: &group,
            id: "5-0",
            deliveries: 3,
            delivery_limit: 2,
            on_error: policy,
            on_malformed: policy,
            span: None,
            now_ms: 7,
        };
        match delivery.decide(&task, answer) {
            Outcome::Complete { outgoing, failure } => {
                let to: Vec<String> = outgoing.iter().map(|message| message.destination().to_text()).collect();
                let kinds =
                    failure.map(|f| f.kinds().iter().map(|kind| format!(" {}", kind.as_str())).collect::<String>());
                format!("[{}]{}", to.join(" "), kinds.unwrap_or_default())
            }
            Outcome::Retry { counts, .. } => format!("retry {counts}"),
            Outcome::Release { .. } => "release".to_owned(),
        }
    }

    #[test]
    fn every_answer_has_its_documented_outcome_for_every_form_of_workflow() {
        type Case<'a> = (&'a str, Option<&'a str>, fn() -> Answer, &'a str);
        let error: fn() -> Answer = || super::super::answer::TaskError::new("x").0;
        let malformed: fn() -> Answer = || super::super::answer::TaskError::malformed("x").0;
        let set: fn() -> Answer = || Answer::forward().workflow(Workflow::through(["a", "z"]));
        let emit: fn() -> Answer = || Answer::end().emit("y", NewTask::new()).emit("y", NewTask::new());
        let fail: fn() -> Answer = || Answer::fail("x");
        let letter: fn() -> Answer = || Answer::dead_letter("x");
        let cases: &[Case<'_>] = &[
            ("a", LIST, Answer::forward, "[b]"),
            ("a", LAST, Answer::forward, "[finish_query]"),
            ("a", NULL, Answer::forward, "[finish_query]"),
            ("a", EMPTY, Answer::forward, "[finish_query]"),
            ("a", MISSING, Answer::forward, "[]"),
            ("a", BROKEN, Answer::forward, "[finish_query] malformed"),
            ("finish_query", LAST, Answer::forward, "[a]"),
            ("finish_query", MISSING, Answer::forward, "[]"),
            ("a", BROKEN, set, "[z]"),
            ("a", MISSING, set, "[z]"),
            ("a", BROKEN, Answer::end, "[]"),
            ("a", LIST, Answer::end, "[]"),
            ("a", LIST, emit, "[y y]"),
            ("a", LIST, fail, "[finish_query] failed"),
            ("a", MISSING, fail, "[finish_query] failed"),
            ("finish_query", MISSING, fail, "[finish_query:dead] failed dead_lettered"),
            ("a", MISSING, letter, "[a:dead] dead_lettered"),
            ("a", LIST, error, "[finish_query] failed"),
            ("a", NULL, error, "[finish_query] failed"),
            ("a", BROKEN, error, "[finish_query] failed"),
            ("a", MISSING, error, "[a:dead] failed dead_lettered"),
            ("a", LIST, malformed, "[finish_query] malformed"),
            ("a", MISSING, malformed, "[a:dead] malformed dead_lettered"),
        ];
        for (stream, workflow, answer, wanted) in cases {
            let found = outcome(stream, *workflow, answer(), FailurePolicy::ByWorkflow);
            assert_eq!(found, *wanted, "{stream} {workflow:?} {:?}", answer());
        }
    }

    #[test]
    fn a_fixed_policy_applies_with_and_without_workflow() {
        let error = || super::super::answer::TaskError::new("x").0;
        assert_eq!(outcome("a", MISSING, error(), FailurePolicy::Fail), "[finish_query] failed");
        assert_eq!(outcome("a", LIST, error(), FailurePolicy::DeadLetter), "[a:dead] failed dead_lettered");
    }

    #[test]
    fn only_counted_retries_beyond_the_delivery_limit_are_dead_lettered() {
        let retry = || Answer::retry_after(Duration::from_secs(1), "busy");
        assert_eq!(outcome("a", LIST, retry(), FailurePolicy::ByWorkflow), "[a:dead] dead_lettered");
        assert_eq!(outcome("a", LIST, retry().uncounted(), FailurePolicy::ByWorkflow), "retry false");
    }
}
