//! Dead letters: entries that were delivered too often, kept in `{stream}:dead` with their history.
//!
//! A letter holds the entry's own fields and, beginning with `dead_`, where it came from, how often
//! and to whom it was delivered, and what went wrong last.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::script::{Call, Script};
use super::{Entry, EntryId, Link, LinkError, entry};
use crate::contract::Name;
use crate::contract::task::{ORIGIN_FIELD, dead_letters};

static REPLAY: Script = Script::new(include_str!("../scripts/replay.lua"));

/// Begins the names of the fields that a letter has beside the entry's own.
const MARK: &[u8] = b"dead_";

/// One dead letter.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its entry in the stream of dead letters.
    pub entry: Entry,
    /// The id it had in its own stream.
    pub id: String,
    /// The group in which nobody could finish it.
    pub group: String,
    /// How often it was delivered.
    pub deliveries: u64,
    /// When it was given up, in Unix milliseconds by Redis' clock.
    pub at_ms: u64,
    /// What went wrong last.
    pub error: String,
    /// Whom it was delivered to, oldest first; workers of other libraries leave no trace here.
    pub history: Vec<Delivery>,
}

/// One delivery that came to nothing. Times are Unix milliseconds by Redis' clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Who had it.
    pub consumer: String,
    /// Which delivery it was.
    pub deliveries: u64,
    /// Since when.
    pub delivered_ms: u64,
    /// Until when.
    pub lost_ms: u64,
    /// How long it had lain idle then.
    pub idle_ms: u64,
    /// Why it was taken away.
    pub reason: String,
}

/// What came of putting letters back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// These are tasks again.
    pub ids: Vec<EntryId>,
    /// Why it ended before the last letter, if it did.
    pub refused: Option<LinkError>,
}

impl DeadLetter {
    /// The entry's own fields, as its producer wrote them.
    pub fn own_fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entry.fields.iter().filter(|(name, _)| !name.starts_with(MARK))
    }
}

/// How many dead letters `stream` has.
///
/// # Errors
/// Of the connection or the server.
pub async fn count(link: &mut Link, stream: &Name) -> Result<u64, LinkError> {
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(dead_letters(stream).as_bytes());
    match link.one(&mut pipe).await? {
        Value::Int(count) => Ok(u64::try_from(count).unwrap_or(0)),
        other => Err(LinkError::unexpected("XLEN", &other)),
    }
}

/// Up to `count` dead letters of `stream` from `start` on (`-`, an id, or an id after `(`), oldest
/// first.
///
/// # Errors
/// Of the connection or the server.
pub async fn list(link: &mut Link, stream: &Name, start: &str, count: usize) -> Result<Vec<DeadLetter>, LinkError> {
    let mut pipe = redis::pipe();
    pipe.cmd("XRANGE").arg(dead_letters(stream).as_bytes()).arg(start).arg("+").arg("COUNT").arg(count);
    letters(link.one(&mut pipe).await?)
}

/// Those of these letters that are there.
///
/// # Errors
/// Of the connection or the server.
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

/// Puts letters back into `stream` as new tasks; each is there or still dead, never both or
/// neither. They keep their idempotency key: it is the same work, tried again.
///
/// # Errors
/// Of the connection, or when not even the first could be looked at.
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

/// Deletes letters for good; gives those that were there.
///
/// # Errors
/// Of the connection or the server.
pub async fn discard(link: &mut Link, stream: &Name, ids: &[EntryId]) -> Result<Vec<EntryId>, LinkError> {
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("XDEL").arg(dead_letters(stream).as_bytes()).arg(id.as_bytes());
    }
    let mut gone = Vec::with_capacity(ids.len());
    for (id, reply) in ids.iter().zip(link.send(&mut pipe).await?) {
        if reply? == Value::Int(1) {
            gone.push(id.clone());
        }
    }
    Ok(gone)
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
