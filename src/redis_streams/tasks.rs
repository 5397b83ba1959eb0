//! Redis commands of a worker: read, finish, renew, release, reclaim.
//!
//! [`link`] is the connection ([`shared_link`] for concurrent callers), [`entry`] parses entries, [`additions`] adds
//! tasks of producers, [`reclaim`] claims lost entries, and [`dead_letters`] manages dead-letter streams. Each
//! operation that must be atomic is a Lua script in `scripts/`.

pub mod additions;
pub mod dead_letters;
pub mod entry;
pub mod link;
pub mod reclaim;
mod script;
pub mod shared_link;
#[cfg(feature = "worker-shepherd")]
pub mod shepherd;

use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::time::timeout;

use crate::contract::failures::TaskFailure;
use crate::contract::task::{Outgoing, delivery_record};
use crate::contract::{Heartbeat, Name, ShutdownMarker, heartbeat, keys, marker};

pub use super::address::Address;
pub use entry::{Entry, EntryId, NoEntryId};
pub use link::{Link, LinkError};
pub use reclaim::{Claim, Claimed, Overdue, Taken};
use script::Script;
pub use shared_link::{Failure, SharedLink};

static FINISH: Script = Script::new(concat!(
    include_str!("scripts/before.lua"),
    include_str!("scripts/unneeded.lua"),
    include_str!("scripts/finish.lua")
));
static RENEW: Script = Script::new(include_str!("scripts/renew.lua"));
static RELEASE: Script = Script::new(include_str!("scripts/release.lua"));
static RETRY: Script = Script::new(include_str!("scripts/retry.lua"));
static LEAVE: Script = Script::new(include_str!("scripts/leave.lua"));

/// How long after its `BLOCK` time the reply to a blocking read may arrive.
const READ_MARGIN: Duration = Duration::from_secs(5);
/// TTL of a delivery record after its last change.
const RECORD_LIFE: Duration = Duration::from_hours(24);

/// One consumer of one stream and group, with its key names and commands.
#[derive(Debug, Clone)]
pub struct TaskStream {
    stream: Name,
    group: Name,
    consumer: Name,
    durations: Vec<u8>,
}

/// A task to complete.
#[derive(Debug, Clone)]
pub struct Finish {
    /// ID of the entry.
    pub id: EntryId,
    /// Delivery count when this consumer received the entry. Together with the consumer name it is the fence: entries
    /// that were claimed since are not completed.
    pub deliveries: u64,
    /// Messages to add to other streams, all or none.
    pub outgoing: Vec<Outgoing>,
    /// Run time since the first delivery; `None` if it should not be recorded.
    pub duration: Option<Duration>,
    /// Whether a delivery record may exist.
    pub recorded: bool,
    /// Failure to count, if any.
    pub failure: Option<TaskFailure>,
}

/// Result for one task that this consumer finished, renewed, released or retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The operation was executed. For a [`Finish`]: forwarded, acknowledged and, if no other group needs the entry,
    /// deleted.
    Done,
    /// The entry belongs to another consumer or a later delivery. Nothing was changed.
    Fenced,
    /// The entry is not pending: it was finished before (as after a lost reply) or acknowledged by someone else.
    Gone,
    /// Redis refused the operation; the task is still pending.
    Refused(LinkError),
}

/// Result of [`TaskStream::finish`].
#[derive(Debug)]
pub struct Finished {
    /// One verdict per task, in order.
    pub verdicts: Vec<Verdict>,
    /// New entries, or the error of the read.
    pub entries: Result<Vec<Entry>, LinkError>,
}

impl TaskStream {
    /// Returns the consumer `consumer` of `stream` in `group`.
    #[must_use]
    pub fn new(stream: Name, group: Name, consumer: Name) -> Self {
        let durations = keys::task_durations(&stream);
        Self { stream, group, consumer, durations }
    }

    /// Stream that this consumer reads.
    #[must_use]
    pub fn stream(&self) -> &Name {
        &self.stream
    }

    /// Consumer name.
    #[must_use]
    pub fn consumer(&self) -> &Name {
        &self.consumer
    }

    /// Creates the group at the beginning of the stream, joins it, and loads the scripts.
    ///
    /// # Errors
    /// If the key is not a stream, or the user or server does not allow scripts.
    pub async fn prepare(&self, link: &mut Link) -> Result<(), LinkError> {
        let mut pipe = redis::pipe();
        pipe.cmd("XGROUP")
            .arg("CREATE")
            .arg(self.stream.as_bytes())
            .arg(self.group.as_bytes())
            .arg("0")
            .arg("MKSTREAM");
        // Before Redis 7.2, a read that finds no entry does not create the consumer, so monitors would not list it.
        pipe.cmd("XGROUP").arg("CREATECONSUMER").arg(self.stream.as_bytes());
        pipe.arg(self.group.as_bytes()).arg(self.consumer.as_bytes());
        for script in [&FINISH, &RENEW, &RELEASE, &RETRY, &LEAVE, &reclaim::CLAIM] {
            pipe.cmd("SCRIPT").arg("LOAD").arg(script.code());
        }
        // A server before 6.2 or a user without this right cannot join; the first task does that.
        const JOINS: usize = 1;
        for (at, reply) in link.send(&mut pipe).await?.into_iter().enumerate() {
            match reply {
                Err(e) if e.code() != "BUSYGROUP" && at != JOINS => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads up to `count` undelivered entries, and blocks up to `block` for the first one.
    ///
    /// # Errors
    /// If the connection fails; `NOGROUP` if the stream or group was deleted.
    pub async fn read(&self, link: &mut Link, count: usize, block: Option<Duration>) -> Result<Vec<Entry>, LinkError> {
        let mut pipe = redis::pipe();
        self.add_read(&mut pipe, count, block);
        // A separate limit, because the response timeout of the link allows for the longest block.
        let limit = block.unwrap_or_default() + READ_MARGIN;
        match timeout(limit, link.one(&mut pipe)).await {
            Ok(reply) => entry::from_read(reply?),
            Err(_) => Err(LinkError::Unusable(format!("no reply within {limit:?}"))),
        }
    }

    fn add_read(&self, pipe: &mut Pipeline, count: usize, block: Option<Duration>) {
        pipe.cmd("XREADGROUP").arg("GROUP").arg(self.group.as_bytes()).arg(self.consumer.as_bytes());
        pipe.arg("COUNT").arg(count);
        if let Some(block) = block {
            // BLOCK 0 would block forever.
            pipe.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX).max(1));
        }
        pipe.arg("STREAMS").arg(self.stream.as_bytes()).arg(">");
    }

    /// Finishes tasks, each atomically, and reads up to `then_read` new entries in the same round trip.
    ///
    /// If Redis is out of memory, it refuses both, so a worker that cannot forward does not read either.
    ///
    /// # Errors
    /// If the connection fails. The outcome is then unknown; repeating the call is safe.
    pub async fn finish(&self, link: &mut Link, tasks: &[Finish], then_read: usize) -> Result<Finished, LinkError> {
        let call = self.finish_call(tasks);
        let mut pipe = redis::pipe();
        pipe.add_command(FINISH.call(&call));
        if then_read > 0 {
            // MULTI is not for atomicity: within it, Redis refuses every command when it is out of memory.
            pipe.cmd("MULTI");
            self.add_read(&mut pipe, then_read, None);
            pipe.cmd("EXEC");
        }
        let mut replies = link.send(&mut pipe).await?.into_iter();
        let mut verdicts = script::next(&mut replies);
        let entries = match replies.nth(2) {
            None => Ok(Vec::new()),
            Some(Ok(Value::Array(mut reads))) => entry::from_read(reads.pop().unwrap_or_default()),
            Some(Ok(other)) => Err(LinkError::unexpected("EXEC", &other)),
            Some(Err(e)) => Err(e),
        };
        if matches!(&verdicts, Err(e) if e.code() == "NOSCRIPT") {
            verdicts = FINISH.reload_and_run(link, &call).await;
        }
        let verdicts = match verdicts {
            Ok(reply) => verdicts_of(link, reply, tasks.len(), "finish"),
            Err(e) => Err(e),
        };
        // On an error, entries that were read must still be returned.
        let verdicts = verdicts.unwrap_or_else(|e| vec![Verdict::Refused(e); tasks.len()]);
        Ok(Finished { verdicts, entries })
    }

    fn finish_call(&self, tasks: &[Finish]) -> script::Call {
        let mut call = script::Call::default();
        call.key(self.stream.as_bytes()).key(&self.durations).key(keys::TASK_FAILURES.as_bytes());
        call.arg(self.group.as_bytes()).arg(self.consumer.as_bytes()).number(tasks.len());
        let lowest = tasks.iter().map(|task| &task.id).min();
        let highest = tasks.iter().map(|task| &task.id).max();
        call.arg(lowest.map_or(&[], EntryId::as_bytes)).arg(highest.map_or(&[], EntryId::as_bytes));
        for task in tasks {
            call.arg(task.id.as_bytes()).number(task.deliveries);
            if task.recorded {
                call.key_index(&delivery_record(&self.stream, &self.group, task.id.as_str()));
            } else {
                call.number(0);
            }
            match task.duration {
                Some(spent) => call.number(spent.as_millis()),
                None => call.arg(b"-1"),
            };
            let failure = task.failure.as_ref().map(|failure| failure.strings(&self.stream, task.id.as_str()));
            let failure = failure.unwrap_or_default();
            let strings: usize = task.outgoing.iter().map(|message| 2 + 2 * message.pairs().count()).sum();
            call.number(failure.len()).number(task.outgoing.len()).number(strings);
            for string in failure {
                call.arg(&string);
            }
            for message in &task.outgoing {
                call.key_index(message.destination().as_bytes()).number(2 * message.pairs().count());
                for (name, value) in message.pairs() {
                    call.arg(name).arg(value);
                }
            }
        }
        call
    }

    /// Resets the idle time of running tasks (entry and delivery count). Returns one verdict per task,
    /// [`Verdict::Done`] if this consumer still owns it.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn renew(&self, link: &mut Link, tasks: &[(EntryId, u64)]) -> Result<Vec<Verdict>, LinkError> {
        let mut call = script::Call::default();
        call.key(self.stream.as_bytes());
        call.arg(self.group.as_bytes()).arg(self.consumer.as_bytes()).number(RECORD_LIFE.as_millis());
        for (id, deliveries) in tasks {
            call.key(&delivery_record(&self.stream, &self.group, id.as_str()));
            call.arg(id.as_bytes()).number(deliveries);
        }
        let reply = RENEW.run(link, &call).await?;
        verdicts_of(link, reply, tasks.len(), "renew")
    }

    /// Releases entries without counting their delivery. Each gets the given idle time, so that others can reclaim it
    /// without waiting for the threshold. Returns one verdict per entry.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn release(
        &self,
        link: &mut Link,
        tasks: &[(EntryId, u64, Duration)],
    ) -> Result<Vec<Verdict>, LinkError> {
        let mut call = script::Call::default();
        call.key(self.stream.as_bytes());
        call.arg(self.group.as_bytes()).arg(self.consumer.as_bytes());
        for (id, deliveries, idle) in tasks {
            call.arg(id.as_bytes()).number(deliveries).number(idle.as_millis());
        }
        let reply = RELEASE.run(link, &call).await?;
        verdicts_of(link, reply, tasks.len(), "release")
    }

    /// Keeps a task pending for a retry; `counts` decides whether the next run counts as a delivery. `Ok(Ok(_))` is the
    /// new delivery count.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn retry(
        &self,
        link: &mut Link,
        (id, deliveries): (&EntryId, u64),
        counts: bool,
        reason: &str,
    ) -> Result<Result<u64, Verdict>, LinkError> {
        let mut call = script::Call::default();
        call.key(self.stream.as_bytes()).key(&delivery_record(&self.stream, &self.group, id.as_str()));
        call.arg(self.group.as_bytes()).arg(self.consumer.as_bytes()).arg(id.as_bytes());
        call.number(deliveries).number(u8::from(counts)).arg(reason.as_bytes()).number(RECORD_LIFE.as_millis());
        match RETRY.run(link, &call).await? {
            Value::Int(deliveries) => Ok(Ok(u64::try_from(deliveries).unwrap_or(0))),
            word => Ok(Err(verdict(word))),
        }
    }

    /// Stores in the delivery record why an entry could not be finished, for the error of its dead letter.
    ///
    /// # Errors
    /// If the connection or the command fails.
    pub async fn note_error(&self, link: &mut Link, id: &EntryId, error: &str) -> Result<(), LinkError> {
        let record = delivery_record(&self.stream, &self.group, id.as_str());
        let mut pipe = redis::pipe();
        pipe.cmd("HSET").arg(&record).arg("error").arg(error);
        pipe.cmd("PEXPIRE").arg(&record).arg(u64::try_from(RECORD_LIFE.as_millis()).unwrap_or(u64::MAX));
        link.send(&mut pipe).await?.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }

    /// Returns the lengths of `streams`, in order. A missing key or one that is not a stream counts as empty.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn lengths(link: &mut Link, streams: &[Name]) -> Result<Vec<u64>, LinkError> {
        let mut pipe = redis::pipe();
        for stream in streams {
            pipe.cmd("XLEN").arg(stream.as_bytes());
        }
        let length = |reply| match reply {
            Ok(Value::Int(length)) => u64::try_from(length).unwrap_or(0),
            _ => 0,
        };
        Ok(link.send(&mut pipe).await?.into_iter().map(length).collect())
    }

    /// Writes the heartbeat with a TTL of [`heartbeat::TTL`].
    ///
    /// # Errors
    /// If it cannot be written and the previous one cannot be extended either.
    pub async fn beat(&self, link: &mut Link, beat: &Heartbeat) -> Result<(), LinkError> {
        let key = keys::heartbeat(&self.stream, &self.consumer);
        let json = serde_json::to_string(beat).map_err(|e| LinkError::Unusable(e.to_string()))?;
        let ttl = heartbeat::TTL.as_secs();
        let mut set = redis::pipe();
        set.cmd("SET").arg(&key).arg(json).arg("EX").arg(ttl);
        match link.one(&mut set).await {
            // Out of memory: no new value can be stored, but extending the TTL needs no memory.
            Err(e) if e.code() == "OOM" => {
                let mut prolong = redis::pipe();
                prolong.cmd("EXPIRE").arg(&key).arg(ttl);
                match link.one(&mut prolong).await? {
                    Value::Int(1) => Ok(()),
                    _ => Err(e),
                }
            }
            other => other.map(drop),
        }
    }

    /// Writes the shutdown marker and deletes the heartbeat, atomically.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn leave(&self, link: &mut Link, left: &ShutdownMarker) -> Result<(), LinkError> {
        let mut call = script::Call::default();
        call.key(&keys::heartbeat(&self.stream, &self.consumer)).key(&keys::marker(&self.stream, &self.consumer));
        call.arg(serde_json::to_string(left).unwrap_or_default().as_bytes()).number(marker::TTL.as_secs());
        LEAVE.run(link, &call).await.map(drop)
    }
}

/// A script passes on what Redis refused it in its answer, which `link` does not look into.
fn verdicts_of(link: &mut Link, reply: Value, expected: usize, command: &str) -> Result<Vec<Verdict>, LinkError> {
    let verdicts: Vec<Verdict> = match reply {
        Value::Array(words) if words.len() == expected => words.into_iter().map(verdict).collect(),
        other => return Err(LinkError::unexpected(command, &other)),
    };
    for verdict in &verdicts {
        if let Verdict::Refused(error) = verdict {
            link.close_if_useless(error);
        }
    }
    Ok(verdicts)
}

fn verdict(word: Value) -> Verdict {
    let bytes = match &word {
        Value::BulkString(bytes) => bytes.as_slice(),
        other => return Verdict::Refused(LinkError::unexpected("finish", other)),
    };
    match bytes {
        b"done" | b"kept" | b"released" => Verdict::Done,
        b"fenced" => Verdict::Fenced,
        b"gone" => Verdict::Gone,
        error => Verdict::Refused(LinkError::from_text(&String::from_utf8_lossy(error))),
    }
}
