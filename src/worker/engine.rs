//! The loop between Redis and the handlers: read, run, finish.
//!
//! One task owns every entry that this worker holds, so that reading, finishing and (once they
//! compete for the same permits) reclaiming never race. Handlers run as tasks of their own; what
//! they answer comes back here and leaves the stream in batches, as many as ended while the last
//! batch was under way.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::builder::{Settings, WorkerError};
use super::presence::Presence;
use super::task::{Done, Fence, Task, TaskFailed};
use super::vitals::Vitals;
use crate::contract::Name;
use crate::contract::task::{self as wire, Fields, Outgoing, trace::SpanId};
use crate::redis_streams::tasks::{Entry, EntryId, Finish, Finished, Link, LinkError, TaskStream, Verdict};

/// How long a blocking read waits.
const BLOCK: Duration = Duration::from_secs(5);
/// How long any other command may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most tasks that one script call finishes.
const BATCH: usize = 128;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// How a worker left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Entries that it could not finish and that stay for others.
    pub in_flight: u32,
    /// Handlers among them that still ran when their time was up.
    pub running: u32,
}

pub(super) async fn run<H, F, S>(settings: Settings, stop: S, handler: H) -> Result<Left, WorkerError>
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Done, TaskFailed>> + Send + 'static,
    S: Future<Output = Option<i32>> + Send,
{
    let consumer: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
    let stream = TaskStream::new(settings.stream.clone(), settings.group.clone(), Name::from(consumer));
    let mut stop = pin!(stop);
    let mut link = Link::new(settings.address.clone(), RESPONSE_TIMEOUT);
    tokio::select! {
        prepared = prepare(&stream, &mut link, &settings) => prepared?,
        _ = &mut stop => return Ok(Left { in_flight: 0, running: 0 }),
    }
    let vitals = Arc::new(Vitals::default());
    let (presence, first) = Presence::start(&settings, stream.clone(), Arc::clone(&vitals))
        .map_err(|e| WorkerError::System(format!("no thread for the heartbeat: {e}")))?;
    let engine = Engine {
        reader: Some(Link::new(settings.address.clone(), BLOCK + RESPONSE_TIMEOUT)),
        reading: None,
        more: true,
        held: HashMap::new(),
        running: JoinSet::new(),
        running_ids: HashMap::new(),
        ended: VecDeque::new(),
        retry: Retry::default(),
        spans: uuid::Uuid::new_v4().as_u64_pair().0,
        handler: Arc::new(handler),
        settings,
        stream,
        link,
        vitals,
        presence,
    };
    tokio::select! {
        _ = first => {}
        signum = &mut stop => return Ok(engine.leave(signum).await),
    }
    tracing::info!(stream = %engine.stream.stream(), consumer = %engine.stream.consumer(),
        task_limit = engine.settings.task_limit, "working");
    // On a thread of the runtime's pool, beside the handlers: what wakes what stays on one core.
    let (say_stop, told) = oneshot::channel();
    let mut work = tokio::spawn(engine.work(told));
    let left = tokio::select! {
        left = &mut work => left,
        signum = &mut stop => {
            let _ = say_stop.send(signum);
            work.await
        }
    };
    left.map_err(|e| WorkerError::System(format!("the worker's own loop failed: {e}")))
}

/// Makes the group and loads the scripts, as soon as Redis is there.
async fn prepare(stream: &TaskStream, link: &mut Link, settings: &Settings) -> Result<(), WorkerError> {
    let mut retry = Retry::default();
    loop {
        match stream.prepare(link).await {
            Ok(()) => return Ok(()),
            Err(e) if e.may_pass() => {
                if retry.is_first() {
                    tracing::warn!(error = %e, "waiting for Redis");
                }
                sleep_until(retry.next()).await;
            }
            Err(e) => return Err(WorkerError::redis(&settings.address, stream.stream(), &e)),
        }
    }
}

/// An entry that this worker holds, from its delivery until it has left the stream.
struct Held {
    deliveries: u64,
    fields: Arc<Fields>,
    task: Option<Arc<wire::Task>>,
    since: Instant,
    span: SpanId,
}

/// An entry whose handler ended.
struct Ended {
    id: EntryId,
    outcome: Outcome,
}

enum Outcome {
    Answered(Result<Done, TaskFailed>),
    Malformed(String),
}

type Reading = Pin<Box<dyn Future<Output = (Link, Result<Vec<Entry>, LinkError>)> + Send>>;

struct Engine<H> {
    settings: Settings,
    stream: TaskStream,
    handler: Arc<H>,
    vitals: Arc<Vitals>,
    presence: Presence,
    /// For everything but blocking reads.
    link: Link,
    /// The blocking reads' connection, while none is under way.
    reader: Option<Link>,
    reading: Option<Reading>,
    /// Whether the stream probably holds more that can be read at once.
    more: bool,
    held: HashMap<EntryId, Held>,
    running: JoinSet<Result<Done, TaskFailed>>,
    running_ids: HashMap<Id, EntryId>,
    /// What is to leave the stream next.
    ended: VecDeque<Finish>,
    retry: Retry,
    spans: u64,
}

impl<H, F> Engine<H>
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Done, TaskFailed>> + Send + 'static,
{
    async fn work(mut self, mut stop: oneshot::Receiver<Option<i32>>) -> Left {
        loop {
            self.act().await;
            tokio::select! {
                biased;
                signum = &mut stop => return self.drain(signum.unwrap_or_default()).await,
                Some(joined) = self.running.join_next_with_id() => self.joined(joined),
                (link, read) = wait(&mut self.reading) => self.waited(link, read),
                () = sleep_until(self.retry.until()), if self.retry.waits() => self.retry.expire(),
            }
        }
    }

    /// Does all that can be done without waiting for anybody but Redis.
    async fn act(&mut self) {
        loop {
            while let Some(joined) = self.running.try_join_next_with_id() {
                self.joined(joined);
            }
            if self.retry.waits() {
                return;
            }
            if !self.ended.is_empty() {
                let room = (self.more && self.reading.is_none()).then(|| self.free());
                self.finish(room).await;
                continue;
            }
            let free = self.free();
            if free == 0 || self.reading.is_some() {
                return;
            }
            if !self.more {
                self.wait_for_one();
                return;
            }
            match self.stream.read(&mut self.link, free, None).await {
                Ok(entries) => {
                    self.retry.succeeded();
                    self.more = entries.len() == free;
                    self.start_all(entries);
                }
                Err(e) => self.read_failed(&e).await,
            }
        }
    }

    /// How many more tasks may be held; the read under way may bring one.
    fn free(&self) -> usize {
        let reserved = usize::from(self.reading.is_some());
        self.settings.task_limit.saturating_sub(self.held.len() + reserved)
    }

    /// Waits on the reader's connection for the next entry.
    fn wait_for_one(&mut self) {
        let Some(mut link) = self.reader.take() else { return };
        let stream = self.stream.clone();
        self.reading = Some(Box::pin(async move {
            let read = stream.read(&mut link, 1, Some(BLOCK)).await;
            (link, read)
        }));
    }

    fn waited(&mut self, link: Link, read: Result<Vec<Entry>, LinkError>) {
        self.reader = Some(link);
        self.reading = None;
        match read {
            Ok(entries) => {
                self.more = !entries.is_empty();
                self.start_all(entries);
            }
            // Reading without waiting meets the same trouble and deals with it.
            Err(_) => self.more = true,
        }
    }

    async fn read_failed(&mut self, error: &LinkError) {
        if error.code() == "NOGROUP" {
            tracing::warn!(stream = %self.stream.stream(), "the stream or its group was deleted; making it again");
            if self.stream.prepare(&mut self.link).await.is_ok() {
                return;
            }
        }
        self.retry.failed("reading", error);
    }

    fn start_all(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.start(entry, 1);
        }
        self.vitals.set_in_flight(self.held.len());
    }

    fn start(&mut self, entry: Entry, deliveries: u64) {
        self.vitals.progressed();
        let Entry { id, fields } = entry;
        let read = wire::Task::read(self.stream.stream(), id.as_str(), Arc::clone(&fields));
        let span = self.next_span();
        let mut held = Held { deliveries, fields, task: None, since: Instant::now(), span };
        match read {
            Err(malformed) => {
                tracing::warn!(stream = %self.stream.stream(), entry = %id, reason = %malformed, "failing a task");
                self.held.insert(id.clone(), held);
                self.ended(Ended { id, outcome: Outcome::Malformed(malformed.to_string()) });
            }
            Ok(task) => {
                let task = Arc::new(task);
                held.task = Some(Arc::clone(&task));
                let fence = Fence { entry: id.clone(), consumer: self.stream.consumer().clone(), deliveries };
                let log = tracing::info_span!(
                    "task",
                    stream = %self.stream.stream(),
                    entry = %id,
                    query_id = task.text("query_id"),
                    trace_id = task.trace().map(|trace| trace.trace_id()),
                    parent_span_id = task.trace().map(|trace| trace.parent()),
                    span_id = task.trace().map(|_| format!("{span:016x}")),
                );
                let task = Task { wire: task, fence, vitals: Arc::clone(&self.vitals), span };
                let handler = Arc::clone(&self.handler);
                let handle = self.running.spawn(async move { handler(task).await }.instrument(log));
                self.running_ids.insert(handle.id(), id.clone());
                self.held.insert(id, held);
            }
        }
    }

    fn joined(&mut self, joined: Result<(Id, Result<Done, TaskFailed>), JoinError>) {
        let (task, answer) = match joined {
            Ok((task, answer)) => (task, answer),
            Err(e) => {
                let task = e.id();
                let reason = match e.try_into_panic() {
                    Ok(panic) => format!("the handler panicked: {}", panic_text(panic.as_ref())),
                    Err(_) => "the handler was cancelled".to_owned(),
                };
                tracing::error!(stream = %self.stream.stream(), %reason, "failing a task");
                (task, Err(TaskFailed::new(reason)))
            }
        };
        if let Some(id) = self.running_ids.remove(&task) {
            self.ended(Ended { id, outcome: Outcome::Answered(answer) });
        }
    }

    /// Decides where an ended task goes.
    fn ended(&mut self, ended: Ended) {
        self.vitals.progressed();
        let Ended { id, outcome } = ended;
        let Some(held) = self.held.get(&id) else { return };
        let stream = self.stream.stream();
        let fail = |reason: &str| wire::failed(stream, id.as_str(), &held.fields, reason);
        let (outgoing, counts): (Option<Outgoing>, bool) = match (outcome, &held.task) {
            (Outcome::Answered(Ok(mut done)), Some(task)) => {
                done.changes.span = Some(held.span);
                (task.done(stream, done.changes), true)
            }
            (Outcome::Answered(Err(failed)), _) => {
                tracing::warn!(%stream, entry = %id, reason = %failed, "a task failed");
                (fail(&failed.reason), true)
            }
            (Outcome::Malformed(reason), _) => (fail(&reason), false),
            (Outcome::Answered(Ok(_)), None) => (fail("the task was lost from memory"), false),
        };
        let duration = counts.then(|| held.since.elapsed());
        let deliveries = held.deliveries;
        self.ended.push_back(Finish { id, deliveries, outgoing, duration, recorded: deliveries > 1 });
    }

    /// Takes ended tasks out of the stream and new ones in; what Redis refuses waits for the next
    /// time.
    async fn finish(&mut self, room: Option<usize>) {
        let count = self.ended.len().min(BATCH);
        let batch: Vec<Finish> = self.ended.drain(..count).collect();
        match self.stream.finish(&mut self.link, &batch, room).await {
            Err(e) => {
                self.retry.failed("finishing", &e);
                self.again(batch);
            }
            Ok(Finished { verdicts, entries }) => {
                let mut refused = Vec::new();
                for (task, verdict) in batch.into_iter().zip(verdicts) {
                    match verdict {
                        Verdict::Done => self.let_go(&task.id),
                        Verdict::Fenced | Verdict::Gone => {
                            tracing::info!(stream = %self.stream.stream(), entry = %task.id, ?verdict,
                                "a task was not ours to finish any more");
                            self.let_go(&task.id);
                        }
                        Verdict::Refused(e) if e.may_pass() => {
                            self.retry.failed("finishing", &e);
                            refused.push(task);
                        }
                        Verdict::Refused(e) => {
                            tracing::error!(stream = %self.stream.stream(), entry = %task.id, error = %e,
                                "a task cannot be passed on; it stays pending");
                            self.let_go(&task.id);
                        }
                    }
                }
                if refused.is_empty() {
                    self.retry.succeeded();
                }
                self.again(refused);
                match entries {
                    Ok(entries) if room.is_some() => {
                        self.more = !entries.is_empty();
                        self.start_all(entries);
                    }
                    Ok(_) => {}
                    // Reading by itself meets the same trouble and deals with it.
                    Err(_) => self.more = true,
                }
            }
        }
        self.vitals.set_in_flight(self.held.len());
    }

    fn again(&mut self, tasks: Vec<Finish>) {
        for task in tasks.into_iter().rev() {
            self.ended.push_front(task);
        }
    }

    fn let_go(&mut self, id: &EntryId) {
        self.held.remove(id);
    }

    /// Leaves in good order: no new task, the running ones until the deadline.
    async fn drain(mut self, signum: Option<i32>) -> Left {
        self.vitals.drain();
        self.presence.say_now();
        self.reading = None;
        self.more = false;
        let deadline = Instant::now() + self.settings.drain_timeout;
        while !self.held.is_empty() {
            if !self.ended.is_empty() && !self.retry.waits() {
                if timeout(deadline - Instant::now(), self.finish(None)).await.is_err() {
                    break;
                }
                continue;
            }
            tokio::select! {
                Some(joined) = self.running.join_next_with_id() => self.joined(joined),
                () = sleep_until(self.retry.until()), if self.retry.waits() => self.retry.expire(),
                () = sleep_until(deadline) => break,
            }
        }
        self.leave(signum).await
    }

    async fn leave(mut self, signum: Option<i32>) -> Left {
        let in_flight = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        self.running.abort_all();
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        if !self.presence.leave(signum, in_flight).await {
            tracing::warn!("could not leave a shutdown marker");
        }
        tracing::info!(in_flight, "left");
        Left { in_flight, running }
    }

    /// A span id that no other span of this trace has: not zero, spread over all 64 bits.
    fn next_span(&mut self) -> SpanId {
        self.spans = self.spans.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.spans;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).max(1)
    }
}

/// Never ready while nothing is being read.
async fn wait(reading: &mut Option<Reading>) -> (Link, Result<Vec<Entry>, LinkError>) {
    match reading {
        Some(reading) => reading.as_mut().await,
        None => std::future::pending().await,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "with something that is no text",
    }
}

/// When to try Redis again after trouble: soon, then less and less often.
struct Retry {
    delay: Duration,
    until: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { delay: FIRST_RETRY, until: None }
    }
}

impl Retry {
    fn is_first(&self) -> bool {
        self.delay == FIRST_RETRY
    }

    fn next(&mut self) -> Instant {
        let until = Instant::now() + self.delay;
        self.delay = LAST_RETRY.min(self.delay * 2);
        until
    }

    fn failed(&mut self, doing: &str, error: &LinkError) {
        if self.until.is_some() {
            return;
        }
        if self.is_first() {
            tracing::warn!(%error, "trouble while {doing}; trying again until it is over");
        }
        self.until = Some(self.next());
    }

    fn succeeded(&mut self) {
        if !self.is_first() && self.until.is_none() {
            tracing::info!("Redis works again");
            self.delay = FIRST_RETRY;
        }
    }

    fn waits(&self) -> bool {
        self.until.is_some()
    }

    fn until(&self) -> Instant {
        self.until.unwrap_or_else(Instant::now)
    }

    fn expire(&mut self) {
        self.until = None;
    }
}
