//! Claims entries that their owner has lost.
//!
//! Two conditions must hold: the entry has been idle for longer than the reclaim threshold, and its owner has no
//! heartbeat. [`TaskStream::overdue`] finds entries that meet the first condition, page by page; [`TaskStream::claim`]
//! checks both again in the claiming script, so several workers can sweep at the same time.

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

/// A pending entry that has exceeded an idle time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// ID of the entry.
    pub id: EntryId,
    /// Consumer that owns the entry; empty if XNACK released it to the group.
    pub owner: Name,
    /// Delivery count.
    pub deliveries: u64,
}

/// Conditions of [`TaskStream::claim`].
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Minimum idle time.
    pub min_idle: Duration,
    /// Entries with a higher delivery count are dead-lettered.
    pub delivery_limit: u64,
}

/// Result of a claim.
#[derive(Debug, Clone)]
pub enum Claimed {
    /// The entry now belongs to this consumer.
    Taken(Taken),
    /// The entry exceeded the delivery limit and was dead-lettered.
    Buried {
        /// ID of the entry.
        id: EntryId,
        /// Delivery count.
        deliveries: u64,
    },
    /// The entry had been deleted; it was acknowledged.
    Vanished(EntryId),
    /// Skipped: the owner has changed or has a heartbeat, or the entry was delivered or touched again.
    Spared(EntryId),
    /// Redis refused the dead letter; the entry is still pending.
    Refused(EntryId, LinkError),
}

/// A claimed entry.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The entry.
    pub entry: Entry,
    /// Delivery count, including this delivery.
    pub deliveries: u64,
    /// Time since its first delivery to any consumer.
    pub age: Duration,
}

impl TaskStream {
    /// Returns up to `count` entries from `start` (`-`, an ID, or an ID after `(`, which excludes it) that have been
    /// idle for at least `min_idle`. With `own`, only those of this consumer.
    ///
    /// # Errors
    /// If the connection or the command fails.
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

    /// Returns which of `consumers` have a heartbeat.
    ///
    /// # Errors
    /// If the connection fails.
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
        // If the check fails, the consumer counts as alive.
        let alive = |reply: Result<Value, LinkError>| !matches!(reply, Ok(Value::Int(0)));
        Ok(consumers.into_iter().cloned().zip(replies.into_iter().map(alive)).collect())
    }

    /// Claims or dead-letters entries that have not changed since [`overdue`](Self::overdue) returned them. Entries of
    /// this consumer are claimed despite its heartbeat: the caller knows that it has no task for them.
    ///
    /// # Errors
    /// If the connection fails. Entries that were claimed then belong to this consumer, and a later sweep finds them.
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
    let owner = match row.next()? {
        Value::BulkString(owner) => owner,
        // XNACK gave it back to the group: it has no owner.
        Value::Nil => Vec::new(),
        _ => return None,
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_entry_without_an_owner_is_read() {
        for owner in [Value::BulkString(Vec::new()), Value::Nil] {
            let row = vec![Value::BulkString(b"1-1".to_vec()), owner, Value::Int(-1), Value::Int(1)];
            let read = overdue(Value::Array(row)).unwrap();
            assert_eq!((read.id.as_str(), read.owner.as_bytes(), read.deliveries), ("1-1", &b""[..], 1));
        }
    }
}
