//! Workflow: the remaining operations of a task.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Name;

/// A list of operations. Each is a JSON object whose `id` is the stream that processes it; other members are preserved.
/// Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Workflow {
    /// The whole list, unchanged.
    json: Arc<str>,
    /// Stream of each operation, and the offset of its object in `json`.
    operations: Arc<[(Box<str>, usize)]>,
    /// Number of completed operations.
    done: usize,
}

/// The member of an operation that every worker reads.
#[derive(Serialize, Deserialize)]
struct OperationId<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// An operation of a workflow: its stream and the members that the user set beside `id`.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    stream: &'a str,
    json: &'a str,
}

impl<'a> Operation<'a> {
    /// Stream that processes the operation: its `id`.
    #[must_use]
    pub fn stream(&self) -> &'a str {
        self.stream
    }

    /// The JSON object.
    #[must_use]
    pub fn json(&self) -> &'a str {
        self.json
    }

    /// Parses `parameters`; `None` if missing or `null`.
    ///
    /// # Errors
    /// [`OperationError`] if `parameters` is not a `T`.
    pub fn parameters<T: Deserialize<'a>>(&self) -> Result<Option<T>, OperationError> {
        self.member("parameters")
    }

    /// Parses any member; `None` if missing or `null`.
    ///
    /// # Errors
    /// See [`parameters`](Self::parameters).
    pub fn member<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, OperationError> {
        let error = |e: serde_json::Error| OperationError {
            stream: self.stream.to_owned(),
            member: name.to_owned(),
            reason: e.to_string(),
        };
        let members: BTreeMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(self.json).map_err(error)?;
        let Some(member) = members.get(name) else { return Ok(None) };
        serde_json::from_str(member.get()).map_err(error)
    }
}

/// A member of an operation has the wrong type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {member} of operation {stream}: {reason}")]
pub struct OperationError {
    /// Stream of the operation.
    pub stream: String,
    /// Name of the member.
    pub member: String,
    /// What is wrong with the member.
    pub reason: String,
}

impl Default for Workflow {
    fn default() -> Self {
        Self { json: "[]".into(), operations: [].into(), done: 0 }
    }
}

impl Workflow {
    /// Returns a workflow through these streams in order. Empty names are skipped.
    #[must_use]
    pub fn through<'a>(streams: impl IntoIterator<Item = &'a str>) -> Self {
        let named = streams.into_iter().filter(|stream| !stream.is_empty());
        let operations: Vec<OperationId<'_>> = named.map(|stream| OperationId { id: stream.into() }).collect();
        let json = serde_json::to_vec(&operations).unwrap_or_default();
        Self::parse(&json).unwrap_or_default()
    }

    /// Parses the `workflow` field.
    ///
    /// # Errors
    /// A description of what is wrong with the field.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let json = std::str::from_utf8(json).map_err(|_| "the workflow is not UTF-8".to_owned())?;
        let list: Vec<&RawValue> = serde_json::from_str(json).map_err(|e| {
            if e.is_data() {
                "the workflow is not a JSON array".to_owned()
            } else {
                format!("the workflow is not JSON: {e}")
            }
        })?;
        let operation = |(at, raw): (usize, &&RawValue)| {
            let OperationId { id } = serde_json::from_str(raw.get()).map_err(|_| {
                format!("operation {} of the workflow is not an object with an id that names a stream", at + 1)
            })?;
            if id.is_empty() {
                return Err(format!("the id of operation {} of the workflow is empty", at + 1));
            }
            // The object borrows from `json`, so the pointer difference is its offset.
            Ok((id.into(), raw.get().as_ptr() as usize - json.as_ptr() as usize))
        };
        let operations = list.iter().enumerate().map(operation).collect::<Result<_, _>>()?;
        Ok(Self { json: json.trim_end().into(), operations, done: 0 })
    }

    /// Returns the workflow after `stream` has completed its operation. If the workflow does not begin with `stream`,
    /// it was set by an entry worker and is returned unchanged.
    #[must_use]
    pub fn after(&self, stream: &Name) -> Self {
        let done = usize::from(self.first().is_some_and(|first| first.as_bytes() == stream.as_bytes()));
        Self { done: self.done + done, ..self.clone() }
    }

    /// Stream of the first operation.
    #[must_use]
    pub fn first(&self) -> Option<&str> {
        self.streams().next()
    }

    /// Streams of the remaining operations, in order.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.operations.iter().skip(self.done).map(|(stream, _)| stream.as_ref())
    }

    /// Remaining operations, in order.
    ///
    /// ```
    /// # #[cfg(feature = "worker")] {
    /// use shepherd_monitor::worker::Workflow;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Parameters {
    ///     max_results: usize,
    /// }
    ///
    /// let json = br#"[{"id": "filter_results_top_n", "parameters": {"max_results": 500}}, {"id": "score_paths"}]"#;
    /// let workflow = Workflow::parse(json).unwrap();
    /// let most = workflow.operations().next().unwrap().parameters::<Parameters>().unwrap();
    /// assert_eq!(most.map_or(100, |parameters| parameters.max_results), 500);
    /// # }
    /// ```
    pub fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let object = |at: usize| {
            let mut rest = serde_json::Deserializer::from_str(self.json.get(at..)?).into_iter::<&RawValue>();
            rest.next()?.ok().map(RawValue::get)
        };
        let left = self.operations.iter().skip(self.done);
        left.filter_map(move |(stream, at)| Some(Operation { stream, json: object(*at)? }))
    }

    /// Number of remaining operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len().saturating_sub(self.done)
    }

    /// Whether no operation remains.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the value of the `workflow` field.
    #[must_use]
    pub fn to_json(&self) -> String {
        let rest = self.operations.get(self.done).and_then(|(_, at)| self.json.get(*at..));
        format!("[{}", rest.unwrap_or("]"))
    }
}

#[cfg(test)]
mod tests {
    use super::Workflow;

    #[test]
    fn other_members_of_an_operation_are_preserved_byte_for_byte() {
        let json = "  [ {\"id\": \"a\"}, {\"id\":\"b\\u002ec\", \"parameters\": {\"n\": [1, 2]}} , {\"id\":\"d\"}]\n";
        let workflow = Workflow::parse(json.as_bytes()).unwrap();
        assert_eq!(workflow.streams().collect::<Vec<_>>(), ["a", "b.c", "d"]);
        let left = workflow.after(&"a".into());
        assert_eq!(left.to_json(), "[{\"id\":\"b\\u002ec\", \"parameters\": {\"n\": [1, 2]}} , {\"id\":\"d\"}]");
        let left = left.after(&"b.c".into()).after(&"other".into());
        assert_eq!((left.to_json().as_str(), left.len()), ("[{\"id\":\"d\"}]", 1));
        let left = left.after(&"d".into()).after(&"d".into());
        assert_eq!((left.to_json().as_str(), left.is_empty()), ("[]", true));
    }

    #[test]
    fn parameters_deserialize_and_missing_ones_are_none() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Parameters {
            most: u32,
        }
        let json = "[ {\"id\": \"a\"}, {\"id\":\"b\", \"parameters\": {\"most\": 5}, \"runner\": [\"x\\u00e9\"]} , \
                    {\"id\":\"c\",\"parameters\":null},{\"id\":\"d\",\"parameters\":{\"most\":-1}}]";
        let workflow = Workflow::parse(json.as_bytes()).unwrap().after(&"a".into());
        let operations: Vec<_> = workflow.operations().collect();
        let streams: Vec<&str> = operations.iter().map(super::Operation::stream).collect();
        assert_eq!(streams, ["b", "c", "d"]);
        assert_eq!(operations[0].parameters().unwrap(), Some(Parameters { most: 5 }));
        assert_eq!(operations[0].member::<Vec<String>>("runner").unwrap(), Some(vec!["x\u{e9}".to_owned()]));
        assert_eq!(operations[0].member::<String>("other").unwrap(), None);
        assert_eq!(operations[1].parameters::<Parameters>().unwrap(), None);
        let error = operations[2].parameters::<Parameters>().unwrap_err().to_string();
        assert!(error.starts_with("invalid parameters of operation d: invalid value"), "{error}");
    }

    #[test]
    fn workflow_through_streams_keeps_their_order() {
        let workflow = Workflow::through(["a", "q\"uote", "b"]);
        assert_eq!(
            Workflow::parse(workflow.to_json().as_bytes()).unwrap().streams().collect::<Vec<_>>(),
            ["a", "q\"uote", "b"]
        );
        assert_eq!(Workflow::through([]).to_json(), "[]");
    }
}
