//! Reads messages of a stream in bounded steps, short enough not to delay other clients.

use std::sync::LazyLock;

use redis::{Script, Value};

use super::connection::{Pool, checkout, send, trouble};
use super::resp_reader::Reply;
use crate::contract::task::dead_letters;
use crate::contract::{Name, keys};
use crate::fleet::message::{Field, Group, Message, MessageState, Page, Wanted};
use crate::fleet::reading::SourceTrouble;

static MESSAGES: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/before.lua"),
        include_str!("scripts/unneeded.lua"),
        include_str!("scripts/messages.lua")
    ))
});

/// Entries to read per call, well below a millisecond.
const LOOKED_AT_ONCE: u64 = 100;
/// Payload to read per call, bytes.
const BYTES_AT_ONCE: u64 = 1 << 20;
/// The same if values are searched for a text.
const BYTES_SEARCHED_AT_ONCE: u64 = 256 << 10;
/// Commands per round trip.
const TRIP: usize = 500;

/// Limits of a page.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Maximum number of matches.
    pub matches: usize,
    /// Maximum number of entries to examine.
    pub looked: u64,
    /// Bytes of each value to return; 0 for no payloads.
    pub shown: usize,
}

/// Start of a page.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// The oldest message.
    Beginning,
    /// After the message with this ID.
    After(&'a str),
    /// At the message with this ID.
    At(&'a str),
}

/// Returns the messages of `stream` that match `wanted`, in the order of the stream.
///
/// # Errors
/// If Redis cannot be read, or the key is not a stream.
pub async fn page(
    pool: &Pool,
    stream: &Name,
    wanted: &Wanted,
    start: Start<'_>,
    bounds: Bounds,
) -> Result<Page, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let key = match wanted.state {
        MessageState::Dead => dead_letters(stream),
        MessageState::Pending | MessageState::Unread => stream.clone(),
    };
    let mut page = Page::default();
    let mut start = match start {
        Start::Beginning => "-".to_owned(),
        Start::After(id) => format!("({id}"),
        Start::At(id) => id.to_owned(),
    };
    loop {
        let answer: Value = MESSAGES
            .key(key.as_bytes())
            .arg(wanted.state.as_str())
            .arg(wanted.group.as_bytes())
            .arg(&start)
            .arg(LOOKED_AT_ONCE.min(bounds.looked - page.looked))
            .arg(bounds.matches - page.messages.len())
            .arg(if wanted.contains.is_empty() { BYTES_AT_ONCE } else { BYTES_SEARCHED_AT_ONCE })
            .arg(bounds.shown)
            .arg(wanted.owner.as_ref().map_or(&b""[..], Name::as_bytes))
            .arg(wanted.min_idle_ms)
            .arg(u8::from(wanted.field.is_some()))
            .arg(wanted.field.as_deref().unwrap_or_default())
            .arg(wanted.contains.as_slice())
            .invoke_async(&mut redis)
            .await
            .map_err(|e| trouble(&e))?;
        let mut items = Reply::of(&answer).items();
        let next = items.next().and_then(Reply::text).unwrap_or_default().into_owned();
        page.looked += items.next().and_then(Reply::number).unwrap_or(0);
        page.messages.extend(items.filter_map(|row| message(row, wanted.state)));
        let done = next.is_empty();
        page.next = (!done).then(|| next.trim_start_matches('(').to_owned());
        if done || page.messages.len() >= bounds.matches || page.looked >= bounds.looked {
            return Ok(page);
        }
        start = next;
    }
}

fn message(row: Reply<'_>, state: MessageState) -> Option<Message> {
    let mut parts = row.items();
    let id = parts.next()?.text()?.into_owned();
    let owner = Name::from(parts.next()?.bytes()?);
    let deliveries = parts.next()?.number()?;
    let idle_ms = parts.next()?.number()?;
    let field_count = parts.next()?.number()?;
    let bytes = parts.next()?.number()?;
    let mut strings = parts.next()?.items();
    let fields = std::iter::from_fn(|| {
        Some(Field {
            name: strings.next()?.bytes()?.to_vec(),
            value: strings.next()?.bytes()?.to_vec(),
            bytes: strings.next()?.number()?,
        })
    })
    .collect();
    let owner = (state == MessageState::Pending).then_some(owner);
    Some(Message { id, owner, deliveries, idle_ms, field_count, bytes, fields })
}

/// Returns the groups of a stream and its number of dead letters; none if the stream does not exist.
///
/// # Errors
/// If Redis cannot be read.
pub async fn groups(pool: &Pool, stream: &Name) -> Result<(Vec<Group>, Option<u64>), SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO").arg("GROUPS").arg(stream.as_bytes());
    pipe.cmd("XLEN").arg(dead_letters(stream).as_bytes());
    let mut replies = send(&mut redis, &mut pipe).await?.into_iter();
    // A key that is not a stream has no groups.
    let groups = replies.next().and_then(Result::ok).unwrap_or(Value::Nil);
    let dead = replies.next().and_then(Result::ok);
    let group = |info: Reply<'_>| {
        Some(Group {
            name: Name::from(info.field("name")?.bytes()?),
            pending: info.field("pending")?.number()?,
            unread: info.field("lag").and_then(Reply::number),
        })
    };
    Ok((Reply::of(&groups).items().filter_map(group).collect(), dead.as_ref().map(Reply::of).and_then(Reply::number)))
}

/// A consumer that its group lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name.
    pub name: Name,
    /// Number of pending entries.
    pub pending: u64,
    /// Time since its last command, milliseconds.
    pub idle_ms: u64,
}

/// Returns the consumers of a group that have been idle for at least `min_idle_ms` and have no heartbeat; none if the group does
/// not exist.
///
/// # Errors
/// If Redis cannot be read.
pub async fn dead_consumers(
    pool: &Pool,
    stream: &Name,
    group: &Name,
    min_idle_ms: u64,
) -> Result<Vec<Listed>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO").arg("CONSUMERS").arg(stream.as_bytes()).arg(group.as_bytes());
    let answer = send(&mut redis, &mut pipe).await?.pop().and_then(Result::ok).unwrap_or(Value::Nil);
    let listed = |info: Reply<'_>| {
        Some(Listed {
            name: Name::from(info.field("name")?.bytes()?),
            pending: info.field("pending")?.number()?,
            idle_ms: info.field("idle")?.number()?,
        })
    };
    let idle: Vec<Listed> =
        Reply::of(&answer).items().filter_map(listed).filter(|one| one.idle_ms >= min_idle_ms).collect();
    let names: Vec<Name> = idle.iter().map(|one| one.name.clone()).collect();
    let alive = with_heartbeat(pool, stream, &names).await?;
    Ok(idle.into_iter().zip(alive).filter(|(_, alive)| !alive).map(|(one, _)| one).collect())
}

/// Returns whether each of these consumers has a heartbeat, in order. Unknown counts as alive.
///
/// # Errors
/// If Redis cannot be read.
pub async fn with_heartbeat(pool: &Pool, stream: &Name, consumers: &[Name]) -> Result<Vec<bool>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut alive = Vec::with_capacity(consumers.len());
    for some in consumers.chunks(TRIP) {
        let mut pipe = redis::pipe();
        for consumer in some {
            pipe.cmd("EXISTS").arg(keys::heartbeat(stream, consumer));
        }
        alive.extend(send(&mut redis, &mut pipe).await?.into_iter().map(|reply| !matches!(reply, Ok(Value::Int(0)))));
    }
    Ok(alive)
}
