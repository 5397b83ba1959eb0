//! Taking over entries whose owner lost them.
//!
//! Two gates, both needed: the entry has been idle longer than the floor, and its owner has no
//! heartbeat. [`TaskStream::overdue`] finds what passes the first, page by page;
//! [`TaskStream::claim`] checks both again in the script that takes, so that several workers may
//! sweep at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::script::{Call, Script};
use super::{Entry, EntryId, Link, LinkError, RECORD_LIFE, TaskStream, entry};
use crate::contract::failures::{self, FailureKind};
use crate::contract::task::{dead_letters, delivery_record};
use crate::contract::{Name, keys};

pub(super) static CLAIM: Script = Script::new(concat!(
    include_str!("../scripts/before.lua"),
    include_str!("../scripts/unneeded.lua"),
    include_str!("../scripts/claim.lua")
));

/// A pending entry that has been idle for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// The entry.
    pub id: EntryId,
    /// The consumer that has it.
    pub owner: Name,
    /// How often it has been delivered.
    pub deliveries: u64,
}

/// The rules of taking over.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The first gate.
    pub min_idle: Duration,
    /// An entry delivered more often goes to the dead letters.
    pub delivery_limit: u64,
}

/// What became of an overdue entry.
#[derive(Debug, Clone)]
pub enum Claimed {
    /// It is this consumer's now.
    Taken(Taken),
    /// It had been delivered too often and is a dead letter now.
    Buried {
        /// The entry.
        id: EntryId,
        /// How often it had been delivered.
        deliveries: u64,
    },
    /// Somebody had deleted it; its place in the pending list is cleared.
    Vanished(EntryId),
    /// It has another owner, a heartbeat, or moved on meanwhile.
    Spared(EntryId),
    /// Redis did not take the dead letter.
    Refused(EntryId, LinkError),
}

/// An entry that was taken over.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The entry.
    pub entry: Entry,
    /// How often it has been delivered, this time included.
    pub deliveries: u64,
    /// Since its first delivery, to whomever.
    pub age: Duration,
}

impl TaskStream {
    /// Up to `count` entries from `start` on (`-`, an id, or an id after `(`) that have been idle
    /// for at least `min_idle`; with `own`, only this consumer's.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn overdue(
        &self,
        link: &mut Link,
        min_idle: Duration,
        start: &str,
        count: usize,
        own: bool,
    ) -> Result<Vec<Overdue>, LinkError> {
        let mut pipe = redis::pipe();
        pipe.cmd("XPENDING").arg(self.stream.as_bytes()).arg(self.group.as_bytes());
        pipe.arg("IDLE").arg(millis(min_idle)).arg(start).arg("+").arg(count);
        if own {
            pipe.arg(self.consumer.as_bytes());
        }
        match link.one(&mut pipe).await? {
            Value::Array(list) => {
                let unexpected = || LinkError::unexpected("XPENDING", &Value::Nil);
                list.into_iter().map(|row| overdue(row).ok_or_else(unexpected)).collect()
            }
            other => Err(LinkError::unexpected("XPENDING", &other)),
        }
    }

    /// Which of these consumers have a heartbeat.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn alive<'a>(
        &self,
        link: &mut Link,
        consumers: impl IntoIterator<Item = &'a Name>,
    ) -> Result<HashMap<Name, bool>, LinkError> {
        let consumers: Vec<&Name> = consumers.into_iter().collect();
        let mut pipe = redis::pipe();
        for consumer in &consumers {
            pipe.cmd("EXISTS").arg(keys::heartbeat(&self.stream, consumer));
        }
        let replies = link.send(&mut pipe).await?;
        // What cannot be told counts as alive.
        let alive = |reply: Result<Value, LinkError>| !matches!(reply, Ok(Value::Int(0)));
        Ok(consumers.into_iter().cloned().zip(replies.into_iter().map(alive)).collect())
    }

    /// Takes these entries over, or buries them, where nothing changed since they were seen.
    /// An entry of this very consumer needs no missing heartbeat: the caller knows that no task
    /// of its own runs it.
    ///
    /// # Errors
    /// Of the connection: what was taken is then this consumer's own, and found again by a later
    /// sweep.
    pub async fn claim(&self, link: &mut Link, entries: &[Overdue], rules: Claim) -> Result<Vec<Claimed>, LinkError> {
        let mut call = Call::default();
        call.key(self.stream().as_bytes())
            .key(dead_letters(&self.stream).as_bytes())
            .key(keys::TASK_FAILURES.as_bytes());
        call.arg(self.group.as_bytes()).arg(self.consumer.as_bytes()).number(millis(rules.min_idle));
        call.number(rules.delivery_limit).number(millis(RECORD_LIFE)).number(entries.len());
        call.arg(&failures::counter(FailureKind::DeadLettered, &self.stream)).arg(&failures::last(&self.stream));
        for Overdue { id, owner, deliveries } in entries {
            call.arg(id.as_bytes()).arg(owner.as_bytes()).number(deliveries);
            call.key_index(&delivery_record(&self.stream, &self.group, id.as_str()));
            if *owner == self.consumer {
                call.number(0);
            } else {
                call.key_index(&keys::heartbeat(&self.stream, owner));
            }
        }
        match CLAIM.run(link, &call).await? {
            Value::Array(list) => {
                let unexpected = || LinkError::unexpected("claim", &Value::Nil);
                list.into_iter().map(|row| claimed(row).ok_or_else(unexpected)).collect()
            }
            other => Err(LinkError::unexpected("claim", &other)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn overdue(row: Value) -> Option<Overdue> {
    let Value::Array(row) = row else { return None };
    let mut row = row.into_iter();
    let id = EntryId::from_value(row.next()?)?;
    let Value::BulkString(owner) = row.next()? else { return None };
    let _idle = row.next()?;
    Some(Overdue { id, owner: Name::from(owner), deliveries: number(row.next()?)? })
}

fn claimed(row: Value) -> Option<Claimed> {
    let Value::Array(row) = row else { return None };
    let mut row = row.into_iter();
    let Value::BulkString(word) = row.next()? else { return None };
    let id = EntryId::from_value(row.next()?)?;
    Some(match word.as_slice() {
        b"claimed" => {
            let deliveries = number(row.next()?)?;
            let age = Duration::from_millis(number(row.next()?)?);
            let fields = Arc::new(entry::fields(row.next()?)?);
            Claimed::Taken(Taken { entry: Entry { id, fields }, deliveries, age })
        }
        b"buried" => Claimed::Buried { id, deliveries: number(row.next()?)? },
        b"vanished" => Claimed::Vanished(id),
        b"spared" => Claimed::Spared(id),
        b"refused" => {
            let Value::BulkString(error) = row.next()? else { return None };
            Claimed::Refused(id, LinkError::from_text(&String::from_utf8_lossy(&error)))
        }
        _ => return None,
    })
}

fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => Some(u64::try_from(number).unwrap_or(0)),
        _ => None,
    }
}
