//! The loop between Redis and the handlers: read, run, finish.
//!
//! One task owns every entry that this worker holds, so that reading, finishing and reclaiming,
//! which share the permits, never race. Handlers run as tasks of their own; what they answer comes
//! back here and leaves the stream in batches, as many as ended while the last batch was under way
//! (of many, two halves take turns). The answer to a batch brings the next tasks with it.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::Instrument;

use super::builder::{Settings, WorkerError};
use super::leases::Leases;
use super::presence::{Presence, Shared};
use super::retry::Retry;
use super::sweep::Sweep;
use super::task::{Done, Fence, Task, TaskFailed};
use super::vitals::Vitals;
use crate::contract::Name;
use crate::contract::task::{self as wire, Corpse, Fields, trace::OwnSpan};
use crate::redis_streams::tasks::{Entry, EntryId, Finish, Finished, Link, LinkError, TaskStream, Verdict};
use crate::traces::{self, Traced};

/// How long a blocking read waits.
const BLOCK: Duration = Duration::from_secs(5);
/// How long any other command may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most tasks that one script call finishes.
const BATCH: usize = 128;
/// With so many permits, a batch is half of them at most, and two may be under way: Redis works on
/// one half, this process on the other. With fewer, the price of a call is better shared by all.
const HALVES: usize = 8;
/// How long a leaving worker waits for the read under way to end.
const LAST_READ: Duration = Duration::from_secs(1);
/// How long cancelled handlers have to go.
const CANCELLED: Duration = Duration::from_millis(200);
/// How often the streams that follow are measured, when there is a limit to their length.
const MEASURE: Duration = Duration::from_millis(200);
/// Most streams that are measured.
const DESTINATIONS: usize = 16;

/// How a worker left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Entries that it could not finish and that stay for others.
    pub in_flight: u32,
    /// Handlers among them that still ran when their time was up.
    pub running: u32,
}

/// Who says that the worker should leave.
pub(super) enum Stop<S> {
    /// A future of the caller's; its value is the signal that was obeyed, if any.
    Future(S),
    /// The signals of the process.
    Signals,
}

pub(super) async fn run<H, F, S>(settings: Settings, stop: Stop<S>, handler: H) -> Result<Left, WorkerError>
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Done, TaskFailed>> + Send + 'static,
    S: Future<Output = Option<i32>> + Send,
{
    let consumer: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
    let stream = TaskStream::new(settings.stream.clone(), settings.group.clone(), Name::from(consumer));
    let shared = Shared { vitals: Arc::default(), leases: Arc::new(Leases::new(settings.lease)) };
    let (stop, asked, signalled) = match stop {
        Stop::Future(stop) => (Some(stop), None, None),
        Stop::Signals => {
            let (asked, signalled) = oneshot::channel();
            (None, Some(asked), Some(signalled))
        }
    };
    let presence = Presence::start(&settings, stream.clone(), &shared, asked)
        .map_err(|e| WorkerError::System(format!("no thread for the heartbeat: {e}")))?;
    let mut stop = pin!(async {
        match (stop, signalled) {
            (Some(stop), _) => stop.await,
            (None, Some(signalled)) => signalled.await.unwrap_or_default(),
            (None, None) => std::future::pending().await,
        }
    });
    let mut link = Link::new(settings.address.clone(), RESPONSE_TIMEOUT);
    tokio::select! {
        prepared = prepare(&stream, &mut link, &settings) => prepared?,
        _ = &mut stop => return Ok(Left { in_flight: 0, running: 0 }),
    }
    let reader = Link::new(settings.address.clone(), BLOCK + RESPONSE_TIMEOUT).identified();
    let engine = Engine {
        reader_id: reader.identity(),
        reader: Some(reader),
        reading: None,
        spare: Vec::new(),
        finishing: Vec::new(),
        more: true,
        held: HashMap::new(),
        running: JoinSet::new(),
        running_ids: HashMap::new(),
        ended: VecDeque::new(),
        released: Vec::new(),
        sweep: Sweep::default(),
        retry: Retry::default(),
        destinations: Destinations::default(),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        handler: Arc::new(handler),
        settings,
        stream,
        link,
        vitals: shared.vitals,
        leases: shared.leases,
        presence,
    };
    tokio::select! {
        () = engine.presence.appear() => {}
        signum = &mut stop => return Ok(engine.leave(signum).await),
    }
    tracing::info!(stream = %engine.stream.stream(), consumer = %engine.stream.consumer(),
        task_limit = engine.settings.task_limit, "working");
    // On a thread of the runtime's pool, beside the handlers: what wakes what stays on one core.
    let (say_stop, told) = oneshot::channel();
    let mut work = AbortOnDrop(tokio::spawn(engine.work(told)));
    let left = tokio::select! {
        left = &mut work.0 => left,
        signum = &mut stop => {
            let _ = say_stop.send(signum);
            (&mut work.0).await
        }
    };
    left.map_err(|e| WorkerError::System(format!("the worker's own loop failed: {e}")))
}

/// A worker whose future is dropped ends as in a crash: nothing is finished, no marker is left.
struct AbortOnDrop(JoinHandle<Left>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes the group and loads the scripts, as soon as Redis is there.
async fn prepare(stream: &TaskStream, link: &mut Link, settings: &Settings) -> Result<(), WorkerError> {
    let mut retry = Retry::default();
    loop {
        match stream.prepare(link).await {
            Ok(()) => return Ok(()),
            Err(e) if e.may_pass() => {
                retry.failed("preparing", &e);
                sleep_until(retry.until()).await;
                retry.expire();
            }
            Err(e) => return Err(WorkerError::redis(&settings.address, stream.stream(), &e)),
        }
    }
}

/// An entry that this worker holds, from its delivery until it has left the stream.
pub(super) struct Held {
    deliveries: u64,
    fields: Arc<Fields>,
    task: Option<Arc<wire::Task>>,
    /// When this delivery began.
    since: Instant,
    /// How old the first delivery was then.
    age: Duration,
    span: OwnSpan,
}

/// How a task ended.
enum Outcome {
    Answered(Result<Done, TaskFailed>),
    Malformed(String),
}

/// A command under way, which has the connection until it is answered.
type UnderWay<T> = Pin<Box<dyn Future<Output = (Link, T)> + Send>>;
type Read = Result<Vec<Entry>, LinkError>;
type FinishedBatch = (Batch, Result<Finished, LinkError>);

/// Tasks on their way out of the stream.
struct Batch {
    tasks: Vec<Finish>,
    /// How many new tasks come in their place.
    then_read: usize,
}

/// A batch that Redis has been sent.
struct Sent {
    /// New tasks that it asked for beyond its own: permits that nobody else may use.
    beyond: usize,
    answer: UnderWay<FinishedBatch>,
}

/// A running worker.
pub(super) struct Engine<H> {
    pub(super) settings: Settings,
    pub(super) stream: TaskStream,
    handler: Arc<H>,
    pub(super) vitals: Arc<Vitals>,
    leases: Arc<Leases>,
    presence: Presence,
    /// For everything but blocking reads. While a batch is under way it has the connection, and
    /// this is another one, opened only if it is needed.
    pub(super) link: Link,
    /// What stood in for it before.
    spare: Vec<Link>,
    finishing: Vec<Sent>,
    /// The blocking reads' connection, while none is under way.
    reader: Option<Link>,
    reader_id: Arc<AtomicI64>,
    reading: Option<UnderWay<Read>>,
    /// Whether the stream probably holds more that can be read at once.
    more: bool,
    /// Every entry that a task of this worker stands for.
    pub(super) held: HashMap<EntryId, Held>,
    running: JoinSet<Result<Done, TaskFailed>>,
    running_ids: HashMap<Id, EntryId>,
    /// What is to leave the stream next.
    ended: VecDeque<Finish>,
    /// What is to be given back next, with its deliveries.
    released: Vec<(EntryId, u64)>,
    pub(super) sweep: Sweep,
    pub(super) retry: Retry,
    destinations: Destinations,
    seed: u64,
}

/// The streams this worker forwards to, and whether one is too long.
#[derive(Default)]
struct Destinations {
    seen: Vec<Name>,
    measured: Option<Instant>,
    too_long: bool,
}

impl<H, F> Engine<H>
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Done, TaskFailed>> + Send + 'static,
{
    async fn work(mut self, mut stop: oneshot::Receiver<Option<i32>>) -> Left {
        loop {
            self.act().await;
            let pause = if self.retry.waits() {
                Some(self.retry.until())
            } else if self.destinations.too_long {
                Some(Instant::now() + MEASURE)
            } else if self.free() > 0 {
                Some(self.sweep.due())
            } else {
                None
            };
            tokio::select! {
                biased;
                signum = &mut stop => return self.drain(signum.unwrap_or_default()).await,
                Some(joined) = self.running.join_next_with_id() => self.joined(joined),
                (link, answer) = answered(&mut self.finishing) => self.finished(link, answer).await,
                (link, read) = wait(&mut self.reading) => self.waited(link, read),
                () = sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => self.retry.expire(),
            }
        }
    }

    /// Does all that can be done without waiting for anybody but Redis.
    async fn act(&mut self) {
        let mut gathered = false;
        loop {
            while let Some(joined) = self.running.try_join_next_with_id() {
                self.joined(joined);
            }
            // Handlers that are about to end may end now, and share the call.
            if !gathered && self.finishing.is_empty() && !self.ended.is_empty() && !self.running.is_empty() {
                gathered = true;
                tokio::task::yield_now().await;
                continue;
            }
            if self.retry.waits() {
                return;
            }
            let sweep_is_due = self.sweep.is_due();
            if self.batch_is_ready() {
                let refill = self.more && self.reading.is_none() && !sweep_is_due && self.may_read().await;
                self.finish(refill.then_some(0)).await;
            } else if !self.finishing.is_empty() {
                return;
            } else if !self.released.is_empty() {
                self.release().await;
            } else if self.free() == 0 {
                return;
            } else if sweep_is_due {
                self.sweep().await;
            } else if self.reading.is_some() || !self.may_read().await {
                return;
            } else if self.more {
                self.read().await;
            } else {
                self.wait_for_one();
                return;
            }
        }
    }

    /// Reads what is there.
    async fn read(&mut self) {
        let free = self.free();
        match self.stream.read(&mut self.link, free, None).await {
            Ok(entries) => {
                self.retry.succeeded();
                self.more = entries.len() == free;
                self.start_all(entries);
            }
            Err(e) => {
                if e.code() == "NOGROUP" {
                    tracing::warn!(stream = %self.stream.stream(), "the stream or its group was deleted; making it again");
                    if self.stream.prepare(&mut self.link).await.is_ok() {
                        return;
                    }
                }
                self.retry.failed("reading", &e);
            }
        }
    }

    /// How many more tasks may be held; the read under way may bring one.
    pub(super) fn free(&self) -> usize {
        let reserved =
            usize::from(self.reading.is_some()) + self.finishing.iter().map(|sent| sent.beyond).sum::<usize>();
        self.settings.task_limit.saturating_sub(self.held.len() + reserved)
    }

    /// Whether no stream that follows is too long.
    async fn may_read(&mut self) -> bool {
        let Some(limit) = self.settings.back_off_above else { return true };
        let fresh = self.destinations.measured.is_some_and(|at| at.elapsed() < MEASURE);
        if !fresh && !self.destinations.seen.is_empty() {
            self.destinations.measured = Some(Instant::now());
            if let Ok(lengths) = TaskStream::lengths(&mut self.link, &self.destinations.seen).await {
                let longest = lengths.into_iter().max().unwrap_or(0);
                if (longest > limit) != self.destinations.too_long {
                    tracing::info!(longest, limit, "{}", if longest > limit { "backing off" } else { "going on" });
                }
                self.destinations.too_long = longest > limit;
            }
        }
        !self.destinations.too_long
    }

    /// Waits on the reader's connection for the next entry.
    fn wait_for_one(&mut self) {
        let Some(mut link) = self.reader.take() else { return };
        let stream = self.stream.clone();
        let block = self.sweep.due().saturating_duration_since(Instant::now()).min(BLOCK);
        self.reading = Some(Box::pin(async move {
            let read = stream.read(&mut link, 1, Some(block)).await;
            (link, read)
        }));
    }

    fn waited(&mut self, link: Link, read: Read) {
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

    fn start_all(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.start(entry, 1, Duration::ZERO);
        }
        self.vitals.set_in_flight(self.held.len());
    }

    /// Runs the handler on an entry that was delivered for the `deliveries`th time; `age` is that
    /// of its first delivery.
    pub(super) fn start(&mut self, entry: Entry, deliveries: u64, age: Duration) {
        self.vitals.progressed();
        let Entry { id, fields } = entry;
        let read = wire::Task::read(self.stream.stream(), id.as_str(), Arc::clone(&fields));
        let span = OwnSpan { id: self.random().max(1), sampled: None };
        let mut held = Held { deliveries, fields, task: None, since: Instant::now(), age, span };
        let lost = self.leases.enter(id.clone(), deliveries);
        match read {
            Err(malformed) => {
                tracing::warn!(stream = %self.stream.stream(), entry = %id, reason = %malformed, "failing a task");
                self.held.insert(id.clone(), held);
                self.ended(id, Outcome::Malformed(malformed.to_string()));
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
                    span_id = tracing::field::Empty,
                    otel.kind = traces::field("consumer"),
                );
                if let Some(trace) = task.trace() {
                    // What follows names the span as whoever traces it does.
                    let traced = traces::continued(&log, trace.traceparent(), || trace.tracestate());
                    if let Some(Traced { id, sampled }) = traced {
                        held.span = OwnSpan { id, sampled: Some(sampled) };
                    }
                    log.record("span_id", format!("{:016x}", held.span.id).as_str());
                }
                traces::name(&log, self.stream.stream());
                let span = held.span.id;
                let task = Task { wire: task, fence, vitals: Arc::clone(&self.vitals), lost, span };
                let handler = Arc::clone(&self.handler);
                let running = async move {
                    let answer = handler(task).await;
                    if let Err(TaskFailed { reason, release: false }) = &answer {
                        traces::failed(&tracing::Span::current(), reason);
                    }
                    answer
                };
                let handle = self.running.spawn(running.instrument(log));
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
                (task, Err(TaskFailed::new(reason)))
            }
        };
        if let Some(id) = self.running_ids.remove(&task) {
            self.ended(id, Outcome::Answered(answer));
        }
    }

    /// Decides where an ended task goes.
    fn ended(&mut self, id: EntryId, outcome: Outcome) {
        self.vitals.progressed();
        let Some(held) = self.held.get(&id) else { return };
        let (stream, deliveries) = (self.stream.stream(), held.deliveries);
        let failed = |reason: &str| {
            let from = Corpse { stream, group: &self.settings.group, id: id.as_str(), deliveries };
            let end = wire::failed(stream, id.as_str(), &held.fields, reason).map(|mut end| {
                if let Some(trace) = held.task.as_ref().and_then(|task| task.trace()) {
                    end.set("otel", trace.continued(held.span));
                }
                end
            });
            Some(end.unwrap_or_else(|| wire::dead(from, &held.fields, reason, unix_ms())))
        };
        let (outgoing, counts) = match (outcome, &held.task) {
            (Outcome::Answered(Ok(mut done)), Some(task)) => {
                done.changes.span = Some(held.span);
                (task.done(stream, done.changes), true)
            }
            (Outcome::Answered(Err(TaskFailed { reason, release: true })), _) => {
                tracing::info!(%stream, entry = %id, %reason, "giving a task back");
                self.released.push((id, deliveries));
                return;
            }
            (Outcome::Answered(Err(TaskFailed { reason, .. })), _) => {
                tracing::warn!(%stream, entry = %id, %reason, "a task failed");
                (failed(&reason), true)
            }
            (Outcome::Malformed(reason), _) => (failed(&reason), false),
            (Outcome::Answered(Ok(_)), None) => (failed("the task was lost from memory"), false),
        };
        let duration = counts.then(|| held.age + held.since.elapsed());
        let recorded = deliveries > 1 || self.leases.was_renewed(&id);
        if let (Some(outgoing), Some(_)) = (&outgoing, self.settings.back_off_above) {
            self.destinations.see(outgoing.destination());
        }
        self.ended.push_back(Finish { id, deliveries, outgoing, duration, recorded });
    }

    /// Most tasks in one batch.
    fn batch_size(&self) -> usize {
        let limit = self.settings.task_limit;
        if limit < HALVES { limit } else { BATCH.min(limit / 2) }
    }

    /// Whether to send what has ended: at once when nothing is under way, by whole batches beside
    /// another one.
    fn batch_is_ready(&self) -> bool {
        match self.finishing.len() {
            0 => !self.ended.is_empty(),
            1 => self.settings.task_limit >= HALVES && self.ended.len() >= self.batch_size(),
            _ => false,
        }
    }

    /// Sends ended tasks out of the stream and, unless `coming` is `None`, asks for new ones;
    /// `coming` is how many are about to start anyway.
    async fn finish(&mut self, coming: Option<usize>) {
        let count = self.ended.len().min(self.batch_size());
        let tasks: Vec<Finish> = self.ended.drain(..count).collect();
        let then_read = coming.map_or(0, |coming| (self.free() + tasks.len()).saturating_sub(coming));
        let beyond = then_read.saturating_sub(tasks.len());
        let batch = Batch { tasks, then_read };
        let other = self.spare.pop().unwrap_or_else(|| self.link.unopened());
        let (stream, mut link) = (self.stream.clone(), std::mem::replace(&mut self.link, other));
        let mut answer: UnderWay<FinishedBatch> = Box::pin(async move {
            let answer = stream.finish(&mut link, &batch.tasks, batch.then_read).await;
            (link, (batch, answer))
        });
        // A future does nothing before it is polled, and the connection writes in a task of its own:
        // both have their turn now, so that Redis works while handlers do.
        if let Poll::Ready(known) = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await {
            answer = Box::pin(ready(known));
        }
        self.finishing.push(Sent { beyond, answer });
        tokio::task::yield_now().await;
    }

    /// Hears what became of a batch. What Redis refused waits for the next time; the next batch
    /// goes out before the new tasks start.
    async fn finished(&mut self, link: Link, (batch, answer): FinishedBatch) {
        self.spare.push(std::mem::replace(&mut self.link, link));
        let Finished { verdicts, entries } = match answer {
            Ok(finished) => finished,
            Err(e) => {
                self.retry.failed("finishing", &e);
                self.again(batch.tasks);
                return;
            }
        };
        let mut refused = Vec::new();
        for (task, verdict) in batch.tasks.into_iter().zip(verdicts) {
            let (stream, entry) = (self.stream.stream(), &task.id);
            match verdict {
                Verdict::Done => {}
                Verdict::Fenced => {
                    tracing::warn!(%stream, %entry, "somebody else has a task that ended here; nothing was changed");
                }
                Verdict::Gone => tracing::info!(%stream, %entry, "a task had been finished before"),
                Verdict::Refused(e) if e.may_pass() => {
                    self.retry.failed("finishing", &e);
                    refused.push(task);
                    continue;
                }
                Verdict::Refused(e) => {
                    tracing::error!(%stream, %entry, error = %e, "a task cannot be passed on; it stays pending");
                    let _ = self.stream.note_error(&mut self.link, &task.id, &e.to_string()).await;
                }
            }
            self.let_go(&task.id);
        }
        if refused.is_empty() {
            self.retry.succeeded();
        }
        self.again(refused);
        self.more = match &entries {
            Ok(entries) if batch.then_read > 0 => !entries.is_empty(),
            Ok(_) => self.more,
            // Reading by itself meets the same trouble and deals with it.
            Err(_) => true,
        };
        let mut entries = entries.unwrap_or_default();
        // Those for which refused tasks left no permit, and all when leaving, are given back.
        let room = if self.vitals.draining() { 0 } else { self.free() };
        let excess = entries.split_off(room.min(entries.len()));
        self.released.extend(excess.into_iter().map(|entry| (entry.id, 1)));
        let halves = self.settings.task_limit >= HALVES && self.settings.back_off_above.is_none();
        if halves && room > 0 && self.batch_is_ready() && !self.retry.waits() {
            let refill = self.more && self.reading.is_none() && !self.sweep.is_due();
            self.finish(refill.then_some(entries.len())).await;
        }
        self.start_all(entries);
    }

    fn again(&mut self, tasks: Vec<Finish>) {
        for task in tasks.into_iter().rev() {
            self.ended.push_front(task);
        }
    }

    /// Gives tasks back.
    async fn release(&mut self) {
        match self.stream.release(&mut self.link, &self.released, self.settings.floor).await {
            Ok(_) => {
                for (id, _) in std::mem::take(&mut self.released) {
                    self.let_go(&id);
                }
                self.vitals.set_in_flight(self.held.len());
            }
            Err(e) if e.may_pass() => self.retry.failed("giving tasks back", &e),
            Err(e) => {
                tracing::error!(error = %e, "cannot give tasks back; they stay pending until they count as lost");
                for (id, _) in std::mem::take(&mut self.released) {
                    self.let_go(&id);
                }
            }
        }
    }

    fn let_go(&mut self, id: &EntryId) {
        self.held.remove(id);
        self.leases.remove(id);
    }

    /// Leaves in good order: no new task, the running ones until the deadline.
    async fn drain(mut self, signum: Option<i32>) -> Left {
        self.vitals.drain();
        self.presence.say_now();
        let deadline = Instant::now() + self.settings.drain_timeout;
        let _ = timeout_at(deadline, self.wind_down()).await;
        self.leave(signum).await
    }

    async fn wind_down(&mut self) {
        self.stop_reading().await;
        while !(self.held.is_empty() && self.released.is_empty() && self.finishing.is_empty()) {
            if !self.retry.waits() && self.finishing.is_empty() {
                if !self.ended.is_empty() {
                    self.finish(None).await;
                } else if !self.released.is_empty() {
                    self.release().await;
                    continue;
                }
            }
            tokio::select! {
                Some(joined) = self.running.join_next_with_id() => self.joined(joined),
                (link, answer) = answered(&mut self.finishing) => self.finished(link, answer).await,
                () = sleep_until(self.retry.until()), if self.retry.waits() => self.retry.expire(),
            }
        }
    }

    /// Ends the read under way. What it brings all the same was never started: it is given back.
    async fn stop_reading(&mut self) {
        self.more = false;
        let Some(mut reading) = self.reading.take() else { return };
        let id = self.reader_id.load(Ordering::Relaxed);
        let ended = timeout(LAST_READ, async {
            self.link.unblock(id).await;
            reading.as_mut().await
        });
        if let Ok((_, Ok(entries))) = ended.await {
            self.released.extend(entries.into_iter().map(|entry| (entry.id, 1)));
        }
    }

    async fn leave(mut self, signum: Option<i32>) -> Left {
        let in_flight = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        self.running.abort_all();
        let _ = timeout(CANCELLED, async { while self.running.join_next().await.is_some() {} }).await;
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        if !self.presence.leave(signum, in_flight).await {
            tracing::warn!("could not leave a shutdown marker");
        }
        tracing::info!(in_flight, "left");
        Left { in_flight, running }
    }

    /// A number that nobody else has: spread over all 64 bits.
    pub(super) fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Destinations {
    fn see(&mut self, stream: &Name) {
        if !self.seen.contains(stream) {
            self.seen.truncate(DESTINATIONS - 1);
            self.seen.insert(0, stream.clone());
        }
    }
}

/// Never ready while nothing is under way.
async fn wait<T>(under_way: &mut Option<UnderWay<T>>) -> (Link, T) {
    match under_way {
        Some(under_way) => under_way.as_mut().await,
        None => std::future::pending().await,
    }
}

/// The first answer to a batch; never ready while none is under way.
async fn answered(sent: &mut Vec<Sent>) -> (Link, FinishedBatch) {
    poll_fn(|context| {
        for at in 0..sent.len() {
            if let Some(Poll::Ready(answer)) = sent.get_mut(at).map(|one| one.answer.as_mut().poll(context)) {
                drop(sent.swap_remove(at));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "with something that is no text",
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
