//! A worker's view of its stream: read, finish, renew, release, reclaim.
//!
//! [`link`] is the connection underneath ([`shared_link`] for many callers at once), [`entry`] what comes
//! out of a stream, [`additions`] what producers add, [`reclaim`] the taking over of what others lost, and
//! [`dead_letters`] what nobody could finish. Each step that
//! must not be cut in two is one Lua script (`scripts/*.lua`).

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

/// How much later than its end the answer to a blocking read may come.
const READ_MARGIN: Duration = Duration::from_secs(5);
/// How long a delivery record outlives its last change.
const RECORD_LIFE: Duration = Duration::from_hours(24);

/// One consumer of one stream, in one group: the key names and commands of its life.
#[derive(Debug, Clone)]
pub struct TaskStream {
    stream: Name,
    group: Name,
    consumer: Name,
    durations: Vec<u8>,
}

/// A task that ended and is to leave the stream.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The entry.
    pub id: EntryId,
    /// How often it had been delivered when this consumer got it: with the consumer's name, the
    /// fence that keeps a consumer from finishing what others have taken over.
    pub deliveries: u64,
    /// What is added to other streams, all or nothing.
    pub outgoing: Vec<Outgoing>,
    /// Since its first delivery; `None` when it should not count.
    pub duration: Option<Duration>,
    /// Whether a delivery record may exist.
    pub recorded: bool,
    /// The failure that this completion counts as, if any.
    pub failure: Option<TaskFailure>,
}

/// What became of a task that this consumer finished, renewed or released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was so: for a [`Finish`], forwarded, acknowledged and, if no other group needs it,
    /// deleted.
    Done,
    /// It belongs to another consumer or to a later delivery: nothing was changed.
    Fenced,
    /// It is pending no more: finished before (a retry after a lost reply finds this) or dropped.
    Gone,
    /// Redis refused; the task is pending as before.
    Refused(LinkError),
}

/// What came of finishing.
#[derive(Debug)]
pub struct Finished {
    /// One for each task, in order.
    pub verdicts: Vec<Verdict>,
    /// The new tasks, or why there are none.
    pub entries: Result<Vec<Entry>, LinkError>,
}

impl TaskStream {
    /// The consumer `consumer` of `stream` in `group`.
    #[must_use]
    pub fn new(stream: Name, group: Name, consumer: Name) -> Self {
        let durations = keys::task_durations(&stream);
        Self { stream, group, consumer, durations }
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &Name {
        &self.stream
    }

    /// This consumer's name.
    #[must_use]
    pub fn consumer(&self) -> &Name {
        &self.consumer
    }

    /// Makes the group (from the stream's beginning) and loads the scripts.
    ///
    /// # Errors
    /// When the stream's key holds something else, or the server or its user cannot run scripts.
    pub async fn prepare(&self, link: &mut Link) -> Result<(), LinkError> {
        let mut pipe = redis::pipe();
        pipe.cmd("XGROUP")
            .arg("CREATE")
            .arg(self.stream.as_bytes())
            .arg(self.group.as_bytes())
            .arg("0")
            .arg("MKSTREAM");
        for script in [&FINISH, &RENEW, &RELEASE, &RETRY, &LEAVE, &reclaim::CLAIM] {
            pipe.cmd("SCRIPT").arg("LOAD").arg(script.code());
        }
        for reply in link.send(&mut pipe).await? {
            match reply {
                Err(e) if e.code() != "BUSYGROUP" => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes up to `count` entries that nobody has had yet, waiting up to `block` for the first.
    ///
    /// # Errors
    /// Of the connection, or `NOGROUP` when the stream was deleted.
    pub async fn read(&self, link: &mut Link, count: usize, block: Option<Duration>) -> Result<Vec<Entry>, LinkError> {
        let mut pipe = redis::pipe();
        self.add_read(&mut pipe, count, block);
        // Its own limit: the link's is meant for the longest block.
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
            // BLOCK 0 would wait for ever.
            pipe.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX).max(1));
        }
        pipe.arg("STREAMS").arg(self.stream.as_bytes()).arg(">");
    }

    /// Finishes tasks, each all or nothing, and in the same round trip takes up to `then_read` new
    /// ones.
    ///
    /// A Redis without memory refuses the finishing and the reading alike, so that nobody reads on
    /// who cannot pass on.
    ///
    /// # Errors
    /// Of the connection: whether the tasks were finished is then unknown, and asking again is
    /// safe.
    pub async fn finish(&self, link: &mut Link, tasks: &[Finish], then_read: usize) -> Result<Finished, LinkError> {
        let call = self.finish_call(tasks);
        let mut pipe = redis::pipe();
        pipe.add_command(FINISH.call(&call));
        if then_read > 0 {
            // Not for its atomicity: inside MULTI, a Redis without memory refuses every command.
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
            Ok(reply) => self.verdicts(reply, tasks.len(), "finish"),
            Err(e) => Err(e),
        };
        // What was read is not lost with an error.
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

    /// Sets the idle time of running tasks (entry and deliveries) back to zero. One verdict each:
    /// [`Verdict::Done`] when it is still this consumer's.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn renew(&self, link: &mut Link, tasks: &[(EntryId, u64)]) -> Result<Vec<Verdict>, LinkError> {
        let mut call = script::Call::default();
        call.key(self.stream.as_bytes());
        call.arg(self.group.as_bytes()).arg(self.consumer.as_bytes()).number(RECORD_LIFE.as_millis());
        for (id, deliveries) in tasks {
            call.key(&delivery_record(&self.stream, &self.group, id.as_str()));
            call.arg(id.as_bytes()).number(deliveries);
        }
        self.verdicts(RENEW.run(link, &call).await?, tasks.len(), "renew")
    }

    /// Gives entries back without their delivery counting; each is then as idle as it says, so that
    /// whoever may take it over need not wait. [`Verdict::Done`] when it was so.
    ///
    /// # Errors
    /// Of the connection or the server.
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
        self.verdicts(RELEASE.run(link, &call).await?, tasks.len(), "release")
    }

    /// Keeps a task for another run after a failure; `counts` says whether that run counts as a
    /// delivery. `Ok` holds the deliveries that the task has then.
    ///
    /// # Errors
    /// Of the connection or the server.
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

    /// Notes on an entry's delivery record why it could not be finished, for its dead letter.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn note_error(&self, link: &mut Link, id: &EntryId, error: &str) -> Result<(), LinkError> {
        let record = delivery_record(&self.stream, &self.group, id.as_str());
        let mut pipe = redis::pipe();
        pipe.cmd("HSET").arg(&record).arg("error").arg(error);
        pipe.cmd("PEXPIRE").arg(&record).arg(u64::try_from(RECORD_LIFE.as_millis()).unwrap_or(u64::MAX));
        link.send(&mut pipe).await?.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }

    /// The lengths of some streams, in order; a stream that is none counts as empty.
    ///
    /// # Errors
    /// Of the connection.
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

    fn verdicts(&self, reply: Value, expected: usize, command: &str) -> Result<Vec<Verdict>, LinkError> {
        match reply {
            Value::Array(words) if words.len() == expected => Ok(words.into_iter().map(verdict).collect()),
            other => Err(LinkError::unexpected(command, &other)),
        }
    }

    /// Writes the heartbeat, for [`heartbeat::TTL`].
    ///
    /// # Errors
    /// When it could not be written, and the one before could not be prolonged either.
    pub async fn beat(&self, link: &mut Link, beat: &Heartbeat) -> Result<(), LinkError> {
        let key = keys::heartbeat(&self.stream, &self.consumer);
        let json = serde_json::to_string(beat).map_err(|e| LinkError::Unusable(e.to_string()))?;
        let ttl = heartbeat::TTL.as_secs();
        let mut set = redis::pipe();
        set.cmd("SET").arg(&key).arg(json).arg("EX").arg(ttl);
        match link.one(&mut set).await {
            // A Redis that is full takes no new value, but being alive needs no memory.
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

    /// Leaves the marker and takes the heartbeat away, both at once.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn leave(&self, link: &mut Link, left: &ShutdownMarker) -> Result<(), LinkError> {
        let mut call = script::Call::default();
        call.key(&keys::heartbeat(&self.stream, &self.consumer)).key(&keys::marker(&self.stream, &self.consumer));
        call.arg(serde_json::to_string(left).unwrap_or_default().as_bytes()).number(marker::TTL.as_secs());
        LEAVE.run(link, &call).await.map(drop)
    }
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
