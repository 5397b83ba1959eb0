//! The workflow: the operations that a task still has before it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Name;

/// A list of operations, first one first. Each is a JSON object whose `id` is the stream that does
/// it; whatever else the object holds is kept as it is. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Workflow {
    /// The whole list as it came.
    json: Arc<str>,
    /// Each operation's stream, and where its object begins in the list.
    operations: Arc<[(Box<str>, usize)]>,
    /// How many are done.
    done: usize,
}

#[derive(Serialize, Deserialize)]
struct Operation<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl Default for Workflow {
    fn default() -> Self {
        Self { json: "[]".into(), operations: [].into(), done: 0 }
    }
}

impl Workflow {
    /// A workflow through these streams, in this order; an empty name is left out.
    #[must_use]
    pub fn through<'a>(streams: impl IntoIterator<Item = &'a str>) -> Self {
        let named = streams.into_iter().filter(|stream| !stream.is_empty());
        let operations: Vec<Operation<'_>> = named.map(|stream| Operation { id: stream.into() }).collect();
        let json = serde_json::to_vec(&operations).unwrap_or_default();
        Self::parse(&json).unwrap_or_default()
    }

    /// Reads the `workflow` field.
    ///
    /// # Errors
    /// Says in words what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let json = std::str::from_utf8(json).map_err(|_| "its workflow is not UTF-8".to_owned())?;
        let list: Vec<&RawValue> = serde_json::from_str(json).map_err(|e| {
            if e.is_data() {
                "its workflow is not a JSON list".to_owned()
            } else {
                format!("its workflow is not JSON: {e}")
            }
        })?;
        let operation = |(at, raw): (usize, &&RawValue)| {
            let Operation { id } = serde_json::from_str(raw.get()).map_err(|_| {
                format!("operation {} of its workflow is not an object with an id that names a stream", at + 1)
            })?;
            if id.is_empty() {
                return Err(format!("the id of operation {} of its workflow is empty", at + 1));
            }
            // The object is a part of the list's text: the distance is its place.
            Ok((id.into(), raw.get().as_ptr() as usize - json.as_ptr() as usize))
        };
        let operations = list.iter().enumerate().map(operation).collect::<Result<_, _>>()?;
        Ok(Self { json: json.trim_end().into(), operations, done: 0 })
    }

    /// What is left when `stream` has done its operation. A workflow that does not begin with
    /// `stream` is that of an entry worker: nothing is taken off.
    #[must_use]
    pub fn after(&self, stream: &Name) -> Self {
        let done = usize::from(self.first().is_some_and(|first| first.as_bytes() == stream.as_bytes()));
        Self { done: self.done + done, ..self.clone() }
    }

    /// The stream of the first operation.
    #[must_use]
    pub fn first(&self) -> Option<&str> {
        self.streams().next()
    }

    /// The streams, in order.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.operations.iter().skip(self.done).map(|(stream, _)| stream.as_ref())
    }

    /// How many operations are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len().saturating_sub(self.done)
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of the `workflow` field.
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
    fn what_an_operation_holds_beside_its_id_is_kept_to_the_byte() {
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
    fn a_workflow_through_streams_names_them_in_order() {
        let workflow = Workflow::through(["a", "q\"uote", "b"]);
        assert_eq!(
            Workflow::parse(workflow.to_json().as_bytes()).unwrap().streams().collect::<Vec<_>>(),
            ["a", "q\"uote", "b"]
        );
        assert_eq!(Workflow::through([]).to_json(), "[]");
    }
}
