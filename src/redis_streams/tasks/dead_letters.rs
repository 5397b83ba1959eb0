//! Dead letters: entries in `{stream}:dead` that exceeded the delivery limit or could not be processed.
//!
//! A dead letter has the fields of the original entry and additional ones with the prefix `dead_`: its origin, its
//! deliveries and the last error.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::script::{Call, Script};
use super::{Entry, EntryId, Link, LinkError, entry};
use crate::contract::Name;
use crate::contract::task::{ORIGIN_FIELD, dead_letters};

static REPLAY: Script = Script::new(include_str!("../scripts/replay.lua"));

/// Prefix of the additional fields.
const MARK: &[u8] = b"dead_";

/// A dead letter.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its entry in the dead-letter stream.
    pub entry: Entry,
    /// ID of the original entry.
    pub id: String,
    /// Consumer group that could not process the entry.
    pub group: String,
    /// Delivery count.
    pub deliveries: u64,
    /// When it was dead-lettered, in Unix milliseconds by the clock of Redis.
    pub at_ms: u64,
    /// Last error.
    pub error: String,
    /// Deliveries, oldest first. Workers of other libraries record none.
    pub history: Vec<Delivery>,
}

/// A delivery that was lost. Times are Unix milliseconds by the clock of Redis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Consumer that received the entry.
    pub consumer: String,
    /// Delivery count.
    pub deliveries: u64,
    /// When it was delivered.
    pub delivered_ms: u64,
    /// When it was reclaimed.
    pub lost_ms: u64,
    /// Idle time when it was reclaimed.
    pub idle_ms: u64,
    /// Why it was reclaimed.
    pub reason: String,
}

/// Result of [`replay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// IDs of the replayed dead letters.
    pub ids: Vec<EntryId>,
    /// Error that stopped the replay, if any.
    pub refused: Option<LinkError>,
}

impl DeadLetter {
    /// Fields of the original entry, as its producer wrote them.
    pub fn own_fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entry.fields.iter().filter(|(name, _)| !name.starts_with(MARK))
    }
}

/// Returns the number of dead letters of `stream`.
///
/// # Errors
/// If the connection or the command fails.
pub async fn count(link: &mut Link, stream: &Name) -> Result<u64, LinkError> {
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(dead_letters(stream).as_bytes());
    match link.one(&mut pipe).await? {
        Value::Int(count) => Ok(u64::try_from(count).unwrap_or(0)),
        other => Err(LinkError::unexpected("XLEN", &other)),
    }
}

/// Returns up to `count` dead letters of `stream`, oldest first. `start` is `-`, an ID, or an ID after `(`, which
/// excludes it.
///
/// # Errors
/// If the connection or the command fails.
pub async fn list(link: &mut Link, stream: &Name, start: &str, count: usize) -> Result<Vec<DeadLetter>, LinkError> {
    let mut pipe = redis::pipe();
    pipe.cmd("XRANGE").arg(dead_letters(stream).as_bytes()).arg(start).arg("+").arg("COUNT").arg(count);
    letters(link.one(&mut pipe).await?)
}

/// Returns the dead letters with these IDs that exist.
///
/// # Errors
/// If the connection or the command fails.
pub async fn find(link: &mut Link, stream: &Name, ids: &[EntryId]) -> Result<Vec<DeadLetter>, LinkError> {
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("XRANGE").arg(dead_letters(stream).as_bytes()).arg(id.as_bytes()).arg(id.as_bytes());
    }
    let mut found = Vec::with_capacity(ids.len());
    for reply in link.send(&mut pipe).await? {
        found.extend(letters(reply?)?);
    }
    Ok(found)
}

/// Moves dead letters back into `stream` as new tasks, each atomically. They keep their idempotency key, because they
/// are the same work.
///
/// # Errors
/// If the connection fails, or if the first dead letter cannot be read.
pub async fn replay(link: &mut Link, stream: &Name, ids: &[EntryId]) -> Result<Replayed, LinkError> {
    let mut call = Call::default();
    call.key(dead_letters(stream).as_bytes()).key(stream.as_bytes()).arg(ORIGIN_FIELD.as_bytes());
    call.arg(stream.to_text().as_bytes());
    for id in ids {
        call.arg(id.as_bytes());
    }
    let Value::Array(reply) = REPLAY.run(link, &call).await? else {
        return Err(LinkError::unexpected("replay", &Value::Nil));
    };
    let mut reply = reply.into_iter();
    let refused = match reply.next() {
        Some(Value::BulkString(error)) if !error.is_empty() => {
            Some(LinkError::from_text(&String::from_utf8_lossy(&error)))
        }
        _ => None,
    };
    Ok(Replayed { ids: reply.filter_map(EntryId::from_value).collect(), refused })
}

fn letters(reply: Value) -> Result<Vec<DeadLetter>, LinkError> {
    match reply {
        Value::Array(list) => Ok(list.into_iter().filter_map(entry::one).map(letter).collect()),
        other => Err(LinkError::unexpected("XRANGE", &other)),
    }
}

fn letter(entry: Entry) -> DeadLetter {
    let text = |name: &str| entry.fields.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    DeadLetter {
        id: text("dead_id").unwrap_or_default(),
        group: text("dead_group").unwrap_or_default(),
        deliveries: number("dead_deliveries"),
        at_ms: number("dead_at_ms"),
        error: text("dead_error").unwrap_or_default(),
        history: text("dead_history").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        entry,
    }
}
