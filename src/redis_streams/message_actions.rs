//! Executes operations of users on messages in bounded batches, by scripts that check and act atomically. Deleted messages are
//! stored in the recycle bin before.
//!
//! Each row of the bin has a mark in Redis that is set once: `dropped` by the script that deletes the entry, or `void` by the
//! process that finds that it was not deleted. So the result is known even after a crash or a lost reply. `restored` prevents a
//! message from being restored twice.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Pipeline, Script, Value};

use super::connection::{Pool, checkout, send, trouble};
use super::resp_reader::Reply;
use super::tasks::EntryId;
use crate::contract::task::{ORIGIN_FIELD, Origin, dead_letters, delivery_record};
use crate::contract::{Name, keys};
use crate::fleet::message::{Action, Binned, CONSUMER_KEPT, MessageState, Verdict};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

static OPERATE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/before.lua"),
        include_str!("scripts/unneeded.lua"),
        include_str!("scripts/operate.lua")
    ))
});
static DROP_DEAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/drop_dead.lua")));
static REPLAY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/replay.lua")));
static RESTORE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/restore.lua")));
static REMOVE_CONSUMER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/remove_consumer.lua")));

/// TTL of marks; longer than the thirty days of the recycle bin.
const MARKS_LIFE: Duration = Duration::from_hours(45 * 24);
/// TTL of a delivery record after its last change.
const RECORD_LIFE: Duration = Duration::from_hours(24);

/// Location of the entries of a call.
#[derive(Debug, Clone)]
pub struct Place {
    /// Stream.
    pub stream: Name,
    /// Consumer group; ignored for dead letters.
    pub group: Name,
    /// State of the entries.
    pub state: MessageState,
}

impl Place {
    /// Returns the key under which they are stored.
    #[must_use]
    pub fn home(&self) -> Name {
        match self.state {
            MessageState::Dead => dead_letters(&self.stream),
            MessageState::Pending | MessageState::Unread => self.stream.clone(),
        }
    }
}

/// A selected entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// ID.
    pub id: String,
    /// Owner when it was selected; empty unless it was pending.
    pub owner: Name,
    /// Delivery count when it was selected.
    pub deliveries: u64,
    /// Row in the recycle bin, if it is to be deleted.
    pub binned: Option<i64>,
}

/// Conditions that the script checks.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Minimum idle time, milliseconds.
    pub min_idle_ms: u64,
    /// The owner must have no heartbeat.
    pub owner_is_dead: bool,
    /// Batch of the recycle bin.
    pub batch: &'a str,
    /// Reason, for the history of the task.
    pub why: &'a str,
}

/// Fields of an entry, as pairs of name and value.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Returns the complete payloads of entries; `None` for those that do not exist.
///
/// # Errors
/// If Redis cannot be read.
pub async fn payloads(pool: &Pool, place: &Place, targets: &[Target]) -> Result<Vec<Option<Fields>>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut pipe = redis::pipe();
    for target in targets {
        pipe.cmd("XRANGE").arg(place.home().as_bytes()).arg(&target.id).arg(&target.id);
    }
    let payload = |reply: Value| {
        let entry = Reply::of(&reply).items().next()?;
        let mut strings = entry.items().nth(1)?.items();
        let pair = || Some((strings.next()?.bytes()?.to_vec(), strings.next()?.bytes()?.to_vec()));
        Some(std::iter::from_fn(pair).collect())
    };
    Ok(send(&mut redis, &mut pipe).await?.into_iter().map(|reply| reply.ok().and_then(payload)).collect())
}

/// Executes `action` on entries that are unchanged since they were selected. Returns one verdict per entry, in order.
///
/// # Errors
/// If Redis does not answer; the marks of the batch then show what was done.
pub async fn operate(
    pool: &Pool,
    action: Action,
    place: &Place,
    targets: &[Target],
    rules: Rules<'_>,
) -> Result<Vec<Verdict>, SourceTrouble> {
    if place.state == MessageState::Dead {
        return operate_on_the_dead(pool, action, place, targets, rules).await;
    }
    let mut redis = checkout(pool).await?;
    let mut call = OPERATE.key(place.stream.as_bytes());
    call.key(dead_letters(&place.stream).as_bytes()).key(keys::recycle_marks(rules.batch));
    call.arg(action.as_str()).arg(place.state.as_str()).arg(place.group.as_bytes()).arg(rules.min_idle_ms);
    call.arg(millis(MARKS_LIFE)).arg(millis(RECORD_LIFE)).arg(rules.why).arg(ORIGIN_FIELD);
    call.arg(place.stream.to_text()).arg(targets.len());
    let (mut key_count, mut heartbeats) = (3, HashMap::new());
    for target in targets {
        let binned = target.binned.map(|id| id.to_string()).unwrap_or_default();
        call.arg(binned).arg(&target.id).arg(target.owner.as_bytes()).arg(target.deliveries);
        call.key(delivery_record(&place.stream, &place.group, &target.id));
        key_count += 1;
        call.arg(key_count);
        if rules.owner_is_dead {
            let at = *heartbeats.entry(&target.owner).or_insert_with(|| {
                call.key(keys::heartbeat(&place.stream, &target.owner));
                key_count += 1;
                key_count
            });
            call.arg(at);
        } else {
            call.arg(0);
        }
    }
    let words: Vec<Vec<u8>> = call.invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
    Ok(verdicts(&words))
}

async fn operate_on_the_dead(
    pool: &Pool,
    action: Action,
    place: &Place,
    targets: &[Target],
    rules: Rules<'_>,
) -> Result<Vec<Verdict>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let grave = place.home();
    match action {
        Action::Drop => {
            let mut call = DROP_DEAD.key(grave.as_bytes());
            call.key(keys::recycle_marks(rules.batch)).arg(millis(MARKS_LIFE));
            for target in targets {
                call.arg(target.binned.unwrap_or(0)).arg(&target.id);
            }
            let words: Vec<Vec<u8>> = call.invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
            Ok(verdicts(&words))
        }
        Action::Retry => {
            let mut call = REPLAY.key(grave.as_bytes());
            call.key(place.stream.as_bytes()).arg(ORIGIN_FIELD).arg(place.stream.to_text());
            for target in targets {
                call.arg(&target.id);
            }
            let words: Vec<Vec<u8>> = call.invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
            let mut words = words.into_iter().map(|word| String::from_utf8_lossy(&word).into_owned());
            let refused = words.next().unwrap_or_default();
            let done: Vec<String> = words.collect();
            // The script stops at the first entry that it refuses.
            let last = done.last().map(|last| EntryId::from(last.as_str()));
            let reached = |target: &Target| last.as_ref().is_some_and(|last| EntryId::from(target.id.as_str()) < *last);
            let verdict = |target: &Target| match () {
                () if done.contains(&target.id) => Verdict::Done,
                () if refused.is_empty() || reached(target) => Verdict::LeftAlone("gone"),
                () => Verdict::Refused(refused.clone()),
            };
            Ok(targets.iter().map(verdict).collect())
        }
        Action::Bury => Err(SourceTrouble::new(TroubleKind::Failed, "messages are already dead-lettered")),
    }
}

fn verdicts(words: &[Vec<u8>]) -> Vec<Verdict> {
    words.iter().map(|word| Verdict::from_word(&String::from_utf8_lossy(word))).collect()
}

/// Determines whether the entry of each row was deleted; those that were not never will be.
///
/// # Errors
/// If Redis does not answer.
pub async fn settle(pool: &Pool, batch: &str, places: &[i64]) -> Result<Vec<bool>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let marks = keys::recycle_marks(batch);
    let mut pipe = Pipeline::new();
    for place in places {
        pipe.cmd("HSETNX").arg(&marks).arg(*place).arg("void");
    }
    pipe.cmd("PEXPIRE").arg(&marks).arg(millis(MARKS_LIFE));
    let set = send(&mut redis, &mut pipe).await?;
    if let Some(Err(error)) = set.into_iter().find(Result::is_err) {
        return Err(trouble(&error));
    }
    let mut pipe = Pipeline::new();
    pipe.cmd("HMGET").arg(&marks);
    for place in places {
        pipe.arg(*place);
    }
    let marks = send(&mut redis, &mut pipe).await?.pop().unwrap_or(Ok(Value::Nil)).map_err(|e| trouble(&e))?;
    Ok(Reply::of(&marks).items().map(|mark| mark.bytes() != Some(b"void")).collect())
}

/// Result of restoring an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutBack {
    /// In its stream, with this ID; also if it was restored before.
    Restored(String),
    /// It was never deleted from its stream.
    Void,
    /// Redis refused.
    Refused(String),
}

/// Restores entries of one batch, key and group, each once. Returns one result per entry, in order.
///
/// # Errors
/// If Redis does not answer; repeating the call is safe.
pub async fn restore(pool: &Pool, entries: &[Binned]) -> Result<Vec<PutBack>, SourceTrouble> {
    let Some(first) = entries.first() else { return Ok(Vec::new()) };
    let mut redis = checkout(pool).await?;
    let mut call = RESTORE.key(first.home.as_bytes());
    call.key(keys::recycle_marks(&first.batch)).arg(millis(MARKS_LIFE));
    call.arg(first.group.as_ref().map_or(&b""[..], Name::as_bytes)).arg(ORIGIN_FIELD).arg(entries.len());
    for entry in entries {
        let known = entry.state == crate::fleet::message::BinState::Binned;
        call.arg(entry.id).arg(u8::from(known)).arg(&entry.entry);
        call.arg(entry.owner.as_ref().map_or(&b""[..], Name::as_bytes)).arg(entry.deliveries);
        let origin = Origin { stream: entry.stream.to_text(), id: entry.entry.clone(), hop: 0 };
        let origin = serde_json::to_string(&origin).unwrap_or_default();
        call.arg(if entry.was == MessageState::Dead { "" } else { &origin });
        call.arg(2 * entry.fields.len());
        for (name, value) in &entry.fields {
            call.arg(name.as_slice()).arg(value.as_slice());
        }
    }
    let words: Vec<Vec<u8>> = call.invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
    let put_back = |word: &Vec<u8>| {
        let word = String::from_utf8_lossy(word);
        match word.strip_prefix("restored ") {
            Some(id) => PutBack::Restored(id.to_owned()),
            None if word == "void" => PutBack::Void,
            None => PutBack::Refused(word.into_owned()),
        }
    };
    Ok(words.iter().map(put_back).collect())
}

/// Removes a consumer that has no heartbeat and no pending entries; otherwise returns the reason, one of [`CONSUMER_KEPT`].
///
/// # Errors
/// If Redis does not answer.
pub async fn remove_consumer(
    pool: &Pool,
    stream: &Name,
    group: &Name,
    consumer: &Name,
) -> Result<Option<&'static str>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let said: String = REMOVE_CONSUMER
        .key(stream.as_bytes())
        .key(keys::heartbeat(stream, consumer))
        .arg(group.as_bytes())
        .arg(consumer.as_bytes())
        .invoke_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(CONSUMER_KEPT.into_iter().map(|(word, _)| word).find(|word| *word == said))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
