//! The workflow: the operations that a task still has before it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Name;

/// A list of operations, first one first. Each is a JSON object whose `id` is the stream that does
/// it; whatever else the object holds is kept as it is.
#[derive(Debug, Clone, Default)]
pub struct Workflow(Vec<Operation>);

#[derive(Debug, Clone)]
struct Operation {
    stream: String,
    json: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Id<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl Workflow {
    /// A workflow through these streams, in this order.
    #[must_use]
    pub fn through<'a>(streams: impl IntoIterator<Item = &'a str>) -> Self {
        let operation = |stream: &'a str| {
            let json = serde_json::value::to_raw_value(&Id { id: stream.into() }).ok()?;
            Some(Operation { stream: stream.to_owned(), json })
        };
        Self(streams.into_iter().filter_map(operation).collect())
    }

    /// Reads the `workflow` field.
    ///
    /// # Errors
    /// Says in words what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let list: Vec<&RawValue> = serde_json::from_slice(json).map_err(|e| {
            if e.is_data() {
                "its workflow is not a JSON list".to_owned()
            } else {
                format!("its workflow is not JSON: {e}")
            }
        })?;
        let operation = |(at, raw): (usize, &&RawValue)| {
            let Id { id } = serde_json::from_str(raw.get()).map_err(|_| {
                format!("operation {} of its workflow is not an object with an id that names a stream", at + 1)
            })?;
            if id.is_empty() {
                return Err(format!("the id of operation {} of its workflow is empty", at + 1));
            }
            Ok(Operation { stream: id.into_owned(), json: (*raw).to_owned() })
        };
        list.iter().enumerate().map(operation).collect::<Result<_, _>>().map(Self)
    }

    /// What is left when `stream` has done its operation. A workflow that does not begin with
    /// `stream` is that of an entry worker: nothing is taken off.
    #[must_use]
    pub fn after(&self, stream: &Name) -> Self {
        match self.0.split_first() {
            Some((first, rest)) if first.stream.as_bytes() == stream.as_bytes() => Self(rest.to_vec()),
            _ => self.clone(),
        }
    }

    /// The stream of the first operation.
    #[must_use]
    pub fn first(&self) -> Option<&str> {
        self.0.first().map(|operation| operation.stream.as_str())
    }

    /// The streams, in order.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|operation| operation.stream.as_str())
    }

    /// How many operations are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the `workflow` field.
    #[must_use]
    pub fn to_json(&self) -> String {
        let operations: Vec<&str> = self.0.iter().map(|operation| operation.json.get()).collect();
        format!("[{}]", operations.join(","))
    }
}
