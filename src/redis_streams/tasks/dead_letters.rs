//! Dead letters: entries that were delivered too often, kept in `{stream}:dead` with their history.
//!
//! A letter holds the entry's own fields and, beginning with `dead_`, where it came from, how often
//! and to whom it was delivered, and what went wrong last. [`run`] is the command line's half.

use std::fmt::{self, Write as _};

use redis::Value;
use serde::{Deserialize, Serialize};

use super::script::{Call, Script};
use super::{Address, Entry, EntryId, Link, LinkError, entry};
use crate::contract::Name;
use crate::contract::task::dead_letters;

static REPLAY: Script = Script::new(include_str!("../scripts/replay.lua"));

const PAGE: usize = 100;
const RESPONSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// One dead letter.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its entry in the stream of dead letters.
    pub entry: Entry,
    /// The id it had in its own stream.
    pub id: String,
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

/// Which letters a command means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All that are there now.
    All,
    /// These, by their ids in the stream of dead letters.
    These(Vec<EntryId>),
}

/// What to do with the dead letters of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Show them, oldest first.
    List {
        /// At most this many.
        most: usize,
    },
    /// Put them back into their stream as new tasks.
    Replay(Which),
    /// Throw them away.
    Drop(Which),
}

/// Up to `count` dead letters of `stream` from `start` on (`-`, an id, or an id after `(`).
///
/// # Errors
/// Of the connection or the server.
pub async fn list(link: &mut Link, stream: &Name, start: &str, count: usize) -> Result<Vec<DeadLetter>, LinkError> {
    let mut pipe = redis::pipe();
    pipe.cmd("XRANGE").arg(dead_letters(stream).as_bytes()).arg(start).arg("+").arg("COUNT").arg(count);
    match link.one(&mut pipe).await? {
        Value::Array(list) => Ok(list.into_iter().filter_map(entry::one).map(letter).collect()),
        other => Err(LinkError::unexpected("XRANGE", &other)),
    }
}

/// Puts letters back into `stream` as new tasks; each is there or still dead, never both or
/// neither. Gives how many were put back.
///
/// # Errors
/// Of the connection, or of Redis refusing to add to the stream.
pub async fn replay(link: &mut Link, stream: &Name, ids: &[EntryId]) -> Result<u64, LinkError> {
    let mut call = Call::default();
    call.key(dead_letters(stream).as_bytes()).key(stream.as_bytes());
    for id in ids {
        call.arg(id.as_bytes());
    }
    count(REPLAY.run(link, &call).await?)
}

/// Deletes letters for good; gives how many.
///
/// # Errors
/// Of the connection or the server.
pub async fn discard(link: &mut Link, stream: &Name, ids: &[EntryId]) -> Result<u64, LinkError> {
    if ids.is_empty() {
        return Ok(0);
    }
    let mut pipe = redis::pipe();
    pipe.cmd("XDEL").arg(dead_letters(stream).as_bytes());
    for id in ids {
        pipe.arg(id.as_bytes());
    }
    count(link.one(&mut pipe).await?)
}

/// Carries out a command and tells in words what happened, one line for each letter or result.
///
/// # Errors
/// Of the connection or the server.
pub async fn run(address: Address, stream: &Name, command: Command) -> Result<String, LinkError> {
    let mut link = Link::new(address, RESPONSE_TIMEOUT);
    let mut told = String::new();
    match command {
        Command::List { most } => {
            let letters = list(&mut link, stream, "-", most).await?;
            if letters.is_empty() {
                let _ = writeln!(told, "no dead letters of {stream}");
            }
            for letter in letters {
                let _ = writeln!(told, "{letter}");
            }
        }
        Command::Replay(which) => {
            let mut put_back = 0;
            for page in pages(&mut link, stream, which).await? {
                put_back += replay(&mut link, stream, &page).await?;
            }
            let _ = writeln!(told, "{put_back} put back into {stream}");
        }
        Command::Drop(which) => {
            let mut dropped = 0;
            for page in pages(&mut link, stream, which).await? {
                dropped += discard(&mut link, stream, &page).await?;
            }
            let _ = writeln!(told, "{dropped} dead letters of {stream} dropped");
        }
    }
    Ok(told)
}

/// The letters meant, as they are now: what dies later is not touched.
async fn pages(link: &mut Link, stream: &Name, which: Which) -> Result<Vec<Vec<EntryId>>, LinkError> {
    let ids = match which {
        Which::These(ids) => ids,
        Which::All => {
            let mut ids: Vec<EntryId> = Vec::new();
            loop {
                let start = ids.last().map_or_else(|| "-".to_owned(), |last| format!("({last}"));
                let page = list(link, stream, &start, PAGE).await?;
                let full = page.len() == PAGE;
                ids.extend(page.into_iter().map(|letter| letter.entry.id));
                if !full {
                    break ids;
                }
            }
        }
    };
    Ok(ids.chunks(PAGE).map(<[EntryId]>::to_vec).collect())
}

fn letter(entry: Entry) -> DeadLetter {
    let text = |name: &str| entry.fields.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    DeadLetter {
        id: text("dead_id").unwrap_or_default(),
        deliveries: number("dead_deliveries"),
        at_ms: number("dead_at_ms"),
        error: text("dead_error").unwrap_or_default(),
        history: text("dead_history").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        entry,
    }
}

fn count(reply: Value) -> Result<u64, LinkError> {
    match reply {
        Value::Int(count) => Ok(u64::try_from(count).unwrap_or(0)),
        other => Err(LinkError::unexpected("a count", &other)),
    }
}

impl fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, id, deliveries, error, history, .. } = self;
        let query = entry.fields.get("query_id").map_or_else(|| "—".into(), String::from_utf8_lossy);
        write!(f, "{}  entry {id}  query {query}  delivered {deliveries} times: {error}", entry.id)?;
        for Delivery { consumer, deliveries, delivered_ms, lost_ms, reason, .. } in history {
            let held = lost_ms.saturating_sub(*delivered_ms);
            write!(f, "\n    {deliveries}. by {consumer}, held {held} ms: {reason}")?;
        }
        Ok(())
    }
}
