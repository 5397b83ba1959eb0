//! Adds the tasks of producers to streams.

use std::time::Duration;

use redis::Value;

use super::script::{Call, Script};
use super::shared_link::{Failure, SharedLink};
use super::{EntryId, LinkError};
use crate::contract::Name;
use crate::contract::task::NewTask;
use crate::contract::task::new_task::addition_record;

static ADD: Script = Script::new(include_str!("../scripts/add.lua"));

/// Maximum number of fields of a task: Lua can unpack about 8,000 strings.
pub const MOST_FIELDS: usize = 3500;

/// Limits of one call.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum length of the stream.
    pub max_length: Option<u64>,
    /// How long idempotency keys are stored.
    pub record_life: Duration,
}

/// Result of [`add`].
#[derive(Debug)]
pub struct Added {
    /// IDs of the added tasks, in order.
    pub ids: Vec<EntryId>,
    /// Why the remaining tasks were not added; `None` if all were.
    pub stopped: Option<Stopped>,
}

/// Why a task was not added.
#[derive(Debug)]
pub enum Stopped {
    /// The stream has reached its maximum length.
    Full {
        /// Length of the stream.
        length: u64,
    },
    /// Redis refused the entry.
    Refused(LinkError),
}

/// Adds `tasks` to the end of `stream` in one atomic script.
///
/// # Errors
/// If the script fails. Nothing was added, or the outcome is unknown if [`Failure::unanswered`] is set.
pub async fn add(link: &SharedLink, stream: &Name, tasks: &[NewTask], limits: Limits) -> Result<Added, Failure> {
    let mut call = Call::default();
    call.key(stream.as_bytes());
    match limits.max_length {
        Some(most) => call.number(most),
        None => call.arg(b"-1"),
    };
    call.number(limits.record_life.as_millis().max(1));
    for task in tasks {
        match task.key() {
            Some(key) => call.key_index(&addition_record(stream, key)),
            None => call.number(0),
        };
        call.number(2 * task.fields().len());
        for (field, value) in task.fields().iter() {
            call.arg(field).arg(value);
        }
    }
    let added = read(link.run(&ADD, &call).await?);
    if let Some(Stopped::Refused(error)) = &added.stopped {
        link.close_if_of_server(error).await;
    }
    Ok(added)
}

fn read(reply: Value) -> Added {
    let unexpected =
        |reply: &Value| Added { ids: Vec::new(), stopped: Some(Stopped::Refused(LinkError::unexpected("add", reply))) };
    let Value::Array(parts) = &reply else { return unexpected(&reply) };
    let [Value::Array(ids), Value::BulkString(word), Value::Int(length)] = parts.as_slice() else {
        return unexpected(&reply);
    };
    let ids = ids.iter().filter_map(|id| EntryId::from_value(id.clone())).collect();
    let stopped = match word.as_slice() {
        b"added" => None,
        b"full" => Some(Stopped::Full { length: u64::try_from(*length).unwrap_or(0) }),
        error => Some(Stopped::Refused(LinkError::from_text(&String::from_utf8_lossy(error)))),
    };
    Added { ids, stopped }
}
