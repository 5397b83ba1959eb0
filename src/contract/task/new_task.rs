//! A task to add to a stream.

use serde::Serialize;

use super::{Fields, Name, Workflow};

/// Python's level number for INFO, the platform's default.
const LOG_LEVEL_INFO: &str = "20";

/// Key of the record of an idempotency key (string: the ID of the entry that was added with it).
///
/// The length of the stream name makes the key unambiguous, whatever characters stream and idempotency key contain.
#[must_use]
pub fn addition_record(stream: &Name, idempotency_key: &[u8]) -> Vec<u8> {
    let mut key = format!("producer:added:{}:", stream.as_bytes().len()).into_bytes();
    key.extend_from_slice(stream.as_bytes());
    key.push(b':');
    key.extend_from_slice(idempotency_key);
    key
}

/// A task to add to a stream: ordered fields and an optional idempotency key.
///
/// Setting a field again replaces its value and keeps its position.
///
/// ```
/// # #[cfg(feature = "worker")] {
/// use shepherd_monitor::worker::{NewTask, Workflow};
///
/// // A query for an entry worker, which sets the workflow.
/// let query = NewTask::query("3f2a9c41", "8b01d7e2").null_workflow();
/// // A task with a workflow.
/// let task = NewTask::query("3f2a9c41", "8b01d7e2").workflow(Workflow::through(["aragorn.score", "sort_results_score"]));
/// // A task outside Shepherd, with arbitrary fields.
/// let order = NewTask::new().set("order_id", "17").set("payload", vec![0x1f, 0x8b]);
/// assert_eq!(order.fields().get("order_id"), Some(&b"17"[..]));
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewTask {
    fields: Fields,
    idempotency_key: Option<Vec<u8>>,
}

impl NewTask {
    /// Returns a task without fields. Redis rejects entries without fields, so set at least one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a task with the fields of all Shepherd tasks: `query_id`, `response_id`, and the platform's defaults of
    /// `log_level` (`20`), `otel` (`{}`) and `metadata` (`{}`). Python workers fail without the last two.
    ///
    /// There is no `workflow` field, as in tasks of `merge_message`. Most other streams require
    /// [`workflow`](Self::workflow) or [`null_workflow`](Self::null_workflow).
    #[must_use]
    pub fn query(query_id: &str, response_id: &str) -> Self {
        Self::new()
            .set("query_id", query_id)
            .set("response_id", response_id)
            .set("log_level", LOG_LEVEL_INFO)
            .set("otel", "{}")
            .set("metadata", "{}")
    }

    /// Sets a field, replacing an existing one.
    #[must_use]
    pub fn set(mut self, field: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.fields.set(field.into(), value.into());
        self
    }

    /// Sets the remaining operations of the task.
    #[must_use]
    pub fn workflow(self, workflow: Workflow) -> Self {
        self.set("workflow", workflow.to_json())
    }

    /// Sets `workflow` to the JSON text `null`, as the server does for a query without a workflow. The entry worker
    /// then sets it.
    #[must_use]
    pub fn null_workflow(self) -> Self {
        self.set("workflow", "null")
    }

    /// Sets `metadata` as JSON.
    ///
    /// # Errors
    /// If `metadata` cannot be serialized, for example a map whose keys are not strings.
    pub fn metadata(self, metadata: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(self.set("metadata", serde_json::to_vec(metadata)?))
    }

    /// Sets the idempotency key. A producer that adds the task again to the same stream gets the ID of the first entry
    /// and adds nothing. The key is not a field of the task. Emitted tasks need none: they are added exactly once.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The idempotency key, if set.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.idempotency_key.as_deref()
    }

    /// The fields.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Converts the task into its fields.
    #[must_use]
    pub fn into_fields(self) -> Fields {
        self.fields
    }
}

impl From<Fields> for NewTask {
    fn from(fields: Fields) -> Self {
        Self { fields, idempotency_key: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(task: &NewTask) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        task.fields().iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn query_tasks_have_all_fields_that_python_workers_read() {
        let task = NewTask::query("q", "r").null_workflow();
        let expected = owned(&[
            ("query_id", "q"),
            ("response_id", "r"),
            ("log_level", "20"),
            ("otel", "{}"),
            ("metadata", "{}"),
            ("workflow", "null"),
        ]);
        assert_eq!(pairs(&task), expected);
    }

    #[test]
    fn setting_a_field_again_replaces_its_value_and_keeps_its_position() {
        let task = NewTask::new().set("a", "1").set("b", "2").set("a", "3");
        assert_eq!(pairs(&task), owned(&[("a", "3"), ("b", "2")]));
        let twice: Fields = [("a", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
        assert_eq!(pairs(&NewTask::from(twice).set("a", "4")), owned(&[("a", "4"), ("b", "2")]));
    }

    #[test]
    fn workflow_and_metadata_are_json() {
        let task =
            NewTask::new().workflow(Workflow::through(["a", "b"])).metadata(&serde_json::json!({"n": [1, 2]})).unwrap();
        assert_eq!(pairs(&task), owned(&[("workflow", r#"[{"id":"a"},{"id":"b"}]"#), ("metadata", r#"{"n":[1,2]}"#)]));
        let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(NewTask::new().metadata(&no_json).is_err());
    }

    #[test]
    fn records_of_different_streams_and_keys_have_distinct_redis_keys() {
        let record = |stream: &str, key: &str| addition_record(&stream.into(), key.as_bytes());
        assert_ne!(record("a:b", "c"), record("a", "b:c"));
        assert_ne!(record("1:a", "b"), record("a", "b"));
        assert_eq!(record("a", "b"), record("a", "b"));
    }

    #[test]
    fn invalid_utf8_is_preserved() {
        let task = NewTask::new().set(vec![0xff], vec![0, 0xfe]);
        assert_eq!(task.into_fields().iter().collect::<Vec<_>>(), [(&[0xff_u8][..], &[0, 0xfe_u8][..])]);
    }
}
