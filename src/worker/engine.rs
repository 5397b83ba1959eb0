//! Main loop of a worker: reads entries, runs handlers, completes tasks.
//!
//! One tokio task owns all pending entries of this worker, so reads, completions and reclaims, which share the task
//! slots, cannot race. Handlers run as separate tasks. Their answers are sent to Redis in batches: everything that
//! finished while the previous batch was in flight (with many slots, two half-size batches alternate). The reply to a
//! batch also contains the next entries.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::Instrument;

use super::answer::{How, TaskError};
use super::builder::{Settings, WorkerError};
use super::handler::{Handler, HandlerResult};
use super::leases::Leases;
use super::outcome::{Delivery, Outcome};
use super::presence::{Presence, Shared};
use super::retry::Retry;
use super::sweep::Sweep;
use super::task::{Cancelled, Fence, Task};
use super::vitals::{Vitals, unix_ms};
use crate::contract::Name;
use crate::contract::task::{self as wire, trace::OwnSpan};
use crate::redis_streams::tasks::{Entry, EntryId, Finish, Finished, Link, LinkError, TaskStream, Verdict};
use crate::traces::{self, Traced};

/// `BLOCK` of a blocking XREADGROUP.
const BLOCK: Duration = Duration::from_secs(5);
/// Response timeout of all non-blocking commands.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of tasks per call of the finish script.
const BATCH: usize = 128;
/// From this task limit on, a batch is at most half of the slots and two batches may be in flight: Redis executes one
/// while the handlers of the other run. Below it, one larger batch amortizes the round trip better.
const HALVES: usize = 8;
/// How long shutdown waits for the blocking read to return, and for the final release.
const LAST_READ: Duration = Duration::from_secs(1);
/// How long cancelled handlers may clean up, and again how long to wait for them after they are aborted.
const CANCELLED: Duration = Duration::from_millis(200);
/// How often the lengths of the destination streams are read when back-pressure is configured.
const MEASURE: Duration = Duration::from_millis(200);
/// Maximum number of tasks that wait for a retry without occupying a slot.
const MOST_WAITING: usize = 1000;
/// Maximum number of destination streams whose length is checked.
const DESTINATIONS: usize = 16;

/// Unfinished work of a worker that has shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Entries that were not completed; they stay pending or were released.
    pub in_flight: u32,
    /// Handlers that still ran after the drain timeout.
    pub running: u32,
}

/// What triggers a graceful shutdown.
pub(super) enum Stop<S> {
    /// A future of the caller; its output is the received signal, if any.
    Future(S),
    /// SIGTERM and SIGINT of the process. The counter is the number of workers in the process that still run.
    Signals(Arc<AtomicUsize>),
}

pub(super) async fn run<S>(settings: Settings, stop: Stop<S>, handler: Handler) -> Result<Left, WorkerError>
where
    S: Future<Output = Option<i32>> + Send,
{
    let consumer: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
    let stream = TaskStream::new(settings.stream.clone(), settings.group.clone(), Name::from(consumer));
    let shared = Shared { vitals: Arc::default(), leases: Arc::new(Leases::new(settings.lease)) };
    let (stop, signal_sender, signal_receiver) = match stop {
        Stop::Future(stop) => (Some(stop), None, None),
        Stop::Signals(remaining) => {
            let (signal_sender, signal_receiver) = oneshot::channel();
            (None, Some((signal_sender, remaining)), Some(signal_receiver))
        }
    };
    let presence = Presence::start(&settings, stream.clone(), &shared, signal_sender)
        .map_err(|e| WorkerError::System(format!("cannot start the heartbeat thread: {e}")))?;
    let mut stop = pin!(async {
        match (stop, signal_receiver) {
            (Some(stop), _) => stop.await,
            (None, Some(signal_receiver)) => signal_receiver.await.unwrap_or_default(),
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
        read_since: Instant::now(),
        spare: Vec::new(),
        finishing: Vec::new(),
        more: true,
        held: HashMap::new(),
        running: JoinSet::new(),
        running_ids: HashMap::new(),
        ended: VecDeque::new(),
        released: Vec::new(),
        retries: Vec::new(),
        waiting: BTreeMap::new(),
        sweep: Sweep::default(),
        retry: Retry::default(),
        destinations: Destinations::default(),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        handler,
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
    // Spawned, so that the loop runs on the worker threads of the runtime: waking a handler then stays on one core.
    let (shutdown, shutdown_signal) = oneshot::channel();
    let mut work = AbortOnDrop(tokio::spawn(engine.work(shutdown_signal)));
    let left = tokio::select! {
        left = &mut work.0 => left,
        signum = &mut stop => {
            let _ = shutdown.send(signum);
            (&mut work.0).await
        }
    };
    left.map_err(|e| WorkerError::System(format!("the worker's main loop failed: {e}")))
}

/// Aborts the worker when its future is dropped. As in a crash, nothing is completed and no shutdown marker is written.
struct AbortOnDrop(JoinHandle<Left>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Creates the consumer group and loads the scripts; retries until Redis is reachable.
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

/// An entry that is pending for this worker, from its delivery until it is completed or released.
pub(super) struct Held {
    pub(super) deliveries: u64,
    task: Arc<wire::Task>,
    /// Start of this delivery.
    since: Instant,
    /// Time between the first delivery and this one.
    age: Duration,
    span: OwnSpan,
    run: Option<AbortHandle>,
    /// Whether a delivery record may exist in Redis.
    recorded: bool,
}

/// Receives the reason when a run is cancelled.
type Receiver = watch::Receiver<Option<Cancelled>>;

/// A retry that a handler requested and that is not in Redis yet.
struct ScheduledRetry {
    id: EntryId,
    deliveries: u64,
    at: Instant,
    counts: bool,
    reason: String,
}

/// A command in flight; it owns the connection and returns it with the reply.
type UnderWay<T> = Pin<Box<dyn Future<Output = (Link, T)> + Send>>;
type Read = Result<Vec<Entry>, LinkError>;
type FinishedBatch = (Batch, Result<Finished, LinkError>);

/// A batch of tasks to complete.
struct Batch {
    tasks: Vec<Finish>,
    /// Number of new entries to read in the same round trip.
    then_read: usize,
}

/// A batch that was sent and has no reply yet.
struct Sent {
    /// Entries requested beyond the size of the batch; their slots are reserved.
    beyond: usize,
    answer: UnderWay<FinishedBatch>,
}

pub(super) struct Engine {
    pub(super) settings: Settings,
    pub(super) stream: TaskStream,
    handler: Handler,
    pub(super) vitals: Arc<Vitals>,
    leases: Arc<Leases>,
    presence: Presence,
    /// Connection for everything except blocking reads. A batch in flight takes it along; a spare one, opened only when
    /// needed, replaces it meanwhile.
    pub(super) link: Link,
    /// Idle connections that have replaced `link` before.
    spare: Vec<Link>,
    finishing: Vec<Sent>,
    /// Connection of blocking reads; `None` while a read is in flight.
    reader: Option<Link>,
    reader_id: Arc<AtomicI64>,
    reading: Option<UnderWay<Read>>,
    /// Start of the read in flight.
    read_since: Instant,
    /// Whether the stream probably has more undelivered entries.
    more: bool,
    /// All entries that are pending for this worker and known to it.
    pub(super) held: HashMap<EntryId, Held>,
    running: JoinSet<HandlerResult>,
    /// Entry and delivery count that each handler task runs; the run of an earlier delivery may still be active.
    running_ids: HashMap<Id, (EntryId, u64)>,
    /// Tasks to complete with the next batch.
    ended: VecDeque<Finish>,
    /// Entries to release: ID, delivery count, and the idle time to set.
    released: Vec<(EntryId, u64, Duration)>,
    /// Retries to record in Redis.
    retries: Vec<ScheduledRetry>,
    /// Entries that wait for a retry, ordered by due time.
    waiting: BTreeMap<(Instant, EntryId), Receiver>,
    pub(super) sweep: Sweep,
    pub(super) retry: Retry,
    destinations: Destinations,
    seed: u64,
}

/// Destination streams of this worker and the back-pressure state.
#[derive(Default)]
struct Destinations {
    streams: Vec<Name>,
    measured: Option<Instant>,
    too_long: bool,
}

impl Engine {
    async fn work(mut self, mut stop: oneshot::Receiver<Option<i32>>) -> Left {
        loop {
            self.act().await;
            let pause = if self.retry.waits() {
                Some(self.retry.until())
            } else if self.destinations.too_long {
                Some(Instant::now() + MEASURE)
            } else if self.free() > 0 {
                let next_run = self.waiting.keys().next().map(|(at, _)| *at);
                Some(next_run.map_or(self.sweep.due(), |at| at.min(self.sweep.due())))
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

    /// Does everything that is currently possible and only waits for Redis, not for handlers.
    async fn act(&mut self) {
        let mut gathered = false;
        loop {
            while let Some(joined) = self.running.try_join_next_with_id() {
                self.joined(joined);
            }
            // Handlers that are about to return can do so first and share the script call.
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
            } else if !self.retries.is_empty() {
                self.keep_for_retry().await;
            } else if self.free() == 0 {
                return;
            } else if self.waiting.keys().next().is_some_and(|(at, _)| *at <= Instant::now()) {
                self.run_again();
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

    /// Reads as many entries as there are free slots, without blocking.
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
                    tracing::warn!(stream = %self.stream.stream(), "the stream or its group was deleted; creating \
                     it again");
                    if self.stream.prepare(&mut self.link).await.is_ok() {
                        return;
                    }
                }
                self.retry.failed("reading", &e);
            }
        }
    }

    /// Free task slots. The blocking read and batches in flight reserve some, because their replies may contain new
    /// entries.
    pub(super) fn free(&self) -> usize {
        let reserved =
            usize::from(self.reading.is_some()) + self.finishing.iter().map(|sent| sent.beyond).sum::<usize>();
        self.settings.task_limit.saturating_sub(self.occupied() + reserved)
    }

    /// Occupied task slots. Tasks that wait for a retry occupy none, up to [`MOST_WAITING`].
    fn occupied(&self) -> usize {
        self.held.len().saturating_sub(self.waiting.len().min(MOST_WAITING))
    }

    pub(super) fn note_held(&self) {
        self.vitals.set_held(self.held.len().saturating_sub(self.waiting.len()), self.waiting.len());
    }

    /// Whether no destination stream exceeds the back-pressure limit.
    async fn may_read(&mut self) -> bool {
        let Some(limit) = self.settings.back_off_above else { return true };
        let fresh = self.destinations.measured.is_some_and(|at| at.elapsed() < MEASURE);
        if !fresh && !self.destinations.streams.is_empty() {
            self.destinations.measured = Some(Instant::now());
            if let Ok(lengths) = TaskStream::lengths(&mut self.link, &self.destinations.streams).await {
                let longest = lengths.into_iter().max().unwrap_or(0);
                if (longest > limit) != self.destinations.too_long {
                    tracing::info!(longest, limit, "{}", if longest > limit { "backing off" } else { "resuming" });
                }
                self.destinations.too_long = longest > limit;
            }
        }
        !self.destinations.too_long
    }

    /// Starts a blocking read for one entry.
    fn wait_for_one(&mut self) {
        let Some(mut link) = self.reader.take() else { return };
        let stream = self.stream.clone();
        let block = self.sweep.due().saturating_duration_since(Instant::now()).min(BLOCK).min(self.settings.lease);
        self.read_since = Instant::now();
        self.reading = Some(Box::pin(async move {
            let read = stream.read(&mut link, 1, Some(block)).await;
            (link, read)
        }));
    }

    /// Whether the read has been in flight for so long that its entries may look lost. This happens when the runtime
    /// was blocked or the process was stopped and the reply has not been processed.
    pub(super) fn read_is_overdue(&self) -> bool {
        self.reading.is_some() && self.read_since.elapsed() >= self.settings.lease
    }

    fn waited(&mut self, link: Link, read: Read) {
        self.reader = Some(link);
        self.reading = None;
        match read {
            Ok(entries) => {
                self.more = !entries.is_empty();
                self.start_all(entries);
            }
            // The next non-blocking read gets the same error and handles it.
            Err(_) => self.more = true,
        }
    }

    fn start_all(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.start(entry, 1, Duration::ZERO, false);
        }
        self.note_held();
    }

    /// Runs the handler for an entry. `deliveries` is the delivery count including this one, `age` the time since the
    /// first delivery, and `recorded` whether a delivery record exists.
    pub(super) fn start(&mut self, entry: Entry, deliveries: u64, age: Duration, recorded: bool) {
        let Entry { id, fields } = entry;
        // A sweep has already reclaimed this entry while the reply of the read was waiting.
        if self.held.get(&id).is_some_and(|held| held.deliveries >= deliveries) {
            return;
        }
        let task = Arc::new(wire::Task::read(self.stream.stream(), id.as_str(), fields));
        let span = OwnSpan { id: self.random().max(1), sampled: None };
        let held = Held { deliveries, task, since: Instant::now(), age, span, run: None, recorded };
        let cancelled = self.leases.enter(id.clone(), deliveries);
        // An earlier delivery of this entry was lost, and its handler may still run.
        if let Some(earlier) = self.held.insert(id.clone(), held) {
            self.waiting.retain(|(_, waiting), _| *waiting != id);
            earlier.abort();
        }
        self.run(&id, cancelled);
    }

    /// Runs the handler for an entry in `held`.
    fn run(&mut self, id: &EntryId, cancelled: Receiver) {
        self.vitals.progressed();
        let Some(held) = self.held.get_mut(id) else { return };
        let (task, deliveries) = (Arc::clone(&held.task), held.deliveries);
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
            // With a tracer, the parent ID of the next task is the span ID that the tracer has assigned.
            let traced = traces::continued(&log, trace.traceparent(), || trace.tracestate());
            if let Some(Traced { id, sampled }) = traced {
                held.span = OwnSpan { id, sampled: Some(sampled) };
            }
            log.record("span_id", format!("{:016x}", held.span.id).as_str());
        }
        traces::name(&log, self.stream.stream());
        let task =
            Task { wire: task, fence, vitals: Arc::clone(&self.vitals), cancelled, span: held.span.id, body: () };
        let running = limited(task, Arc::clone(&self.handler), self.settings.timeout, self.settings.deadline);
        let handle = self.running.spawn(running.instrument(log));
        self.running_ids.insert(handle.id(), (id.clone(), deliveries));
        held.run = Some(handle);
    }

    /// Starts the next waiting task, unless another worker has claimed it.
    fn run_again(&mut self) {
        let Some(((_, id), cancelled)) = self.waiting.pop_first() else { return };
        if cancelled.borrow().is_some() {
            if let Some(held) = self.held.get(&id) {
                self.let_go(&id, held.deliveries);
            }
        } else {
            self.run(&id, cancelled);
        }
        self.note_held();
    }

    fn joined(&mut self, joined: Result<(Id, HandlerResult), JoinError>) {
        let (run, answer) = match joined {
            Ok((run, answer)) => (run, answer),
            Err(e) => {
                let run = e.id();
                let reason = match e.try_into_panic() {
                    Ok(panic) => format!("the handler panicked: {}", panic_text(panic.as_ref())),
                    Err(_) => "the handler was cancelled".to_owned(),
                };
                (run, Err(TaskError::new(reason)))
            }
        };
        if let Some((id, deliveries)) = self.running_ids.remove(&run) {
            self.ended(id, deliveries, answer);
        }
    }

    /// Decides what happens to a task whose handler returned.
    fn ended(&mut self, id: EntryId, deliveries: u64, answer: HandlerResult) {
        self.vitals.progressed();
        // The result belongs to an earlier delivery of this entry and is discarded.
        let Some(held) = self.held.get(&id).filter(|held| held.deliveries == deliveries) else { return };
        let stream = self.stream.stream();
        let failed = answer.is_err();
        let answer = answer.unwrap_or_else(|TaskError(answer)| answer);
        // Malformed tasks never ran and would distort the run times.
        let counts = !matches!(answer.how, How::Malformed(_));
        let delivery = Delivery {
            stream,
            group: &self.settings.group,
            id: id.as_str(),
            deliveries,
            delivery_limit: self.settings.delivery_limit,
            on_error: self.settings.on_error,
            on_malformed: self.settings.on_malformed,
            span: Some(held.span),
            now_ms: unix_ms(),
        };
        let draining = self.vitals.draining();
        match delivery.decide(&held.task, answer) {
            Outcome::Complete { outgoing, failure } => {
                if let Some(failure) = &failure {
                    tracing::warn!(%stream, entry = %id, reason = failure.reason(), "task failed");
                }
                if self.settings.back_off_above.is_some() {
                    for message in &outgoing {
                        self.destinations.add(message.destination());
                    }
                }
                let duration = counts.then(|| held.age + held.since.elapsed());
                // A renewal without a reply yet may have created the record.
                let recorded = held.recorded || self.leases.may_have_renewed(held.since.into_std());
                self.ended.push_back(Finish { id, deliveries, outgoing, duration, recorded, failure });
            }
            Outcome::Retry { after, reason, .. } if draining => {
                tracing::info!(%stream, entry = %id, %reason, "releasing a task to be retried");
                self.released.push((id, deliveries, self.settings.floor.saturating_sub(after)));
            }
            Outcome::Retry { after, counts, reason } => {
                tracing::info!(%stream, entry = %id, %reason, ?after, failed, "retrying a task later");
                self.retries.push(ScheduledRetry { id, deliveries, at: Instant::now() + after, counts, reason });
            }
            Outcome::Release { reason } => {
                tracing::info!(%stream, entry = %id, %reason, "releasing a task");
                self.released.push((id, deliveries, self.settings.floor));
            }
        }
    }

    /// Maximum number of tasks per batch.
    fn batch_size(&self) -> usize {
        let limit = self.settings.task_limit;
        if limit < HALVES { limit } else { BATCH.min(limit / 2) }
    }

    /// Whether to send a batch: immediately when none is in flight, and only a full one while another is.
    fn batch_is_ready(&self) -> bool {
        match self.finishing.len() {
            0 => !self.ended.is_empty(),
            1 => self.settings.task_limit >= HALVES && self.ended.len() >= self.batch_size(),
            _ => false,
        }
    }

    /// Sends a batch of finished tasks. Unless `coming` is `None`, it also requests new entries for the free slots;
    /// `coming` is the number of entries that are about to start and occupy slots.
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
        // Futures are lazy, and the connection writes in its own task: poll once and yield, so that Redis processes the
        // batch while handlers run.
        if let Poll::Ready(known) = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await {
            answer = Box::pin(ready(known));
        }
        self.finishing.push(Sent { beyond, answer });
        tokio::task::yield_now().await;
    }

    /// Handles the reply to a batch. Tasks that Redis refused temporarily are sent again. The next batch is sent before
    /// the new entries start.
    async fn finished(&mut self, link: Link, (batch, answer): FinishedBatch) {
        self.spare.push(std::mem::replace(&mut self.link, link));
        self.spare.iter_mut().for_each(Link::close_if_outdated);
        let Finished { verdicts, entries } = match answer {
            Ok(finished) => finished,
            Err(e) => {
                // They lead to the same server, which may be silent: each would cost another response timeout.
                self.spare.clear();
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
                    tracing::warn!(%stream, %entry, "a finished task was claimed by another worker; nothing was \
                     changed");
                }
                Verdict::Gone => tracing::info!(%stream, %entry, "a task had already been finished"),
                Verdict::Refused(e) if e.may_pass() => {
                    self.retry.failed("finishing", &e);
                    refused.push(task);
                    continue;
                }
                Verdict::Refused(e) => {
                    tracing::error!(%stream, %entry, error = %e, "cannot forward a task; it stays pending");
                    let _ = self.stream.note_error(&mut self.link, &task.id, &e.to_string()).await;
                }
            }
            self.let_go(&task.id, task.deliveries);
        }
        if refused.is_empty() {
            self.retry.succeeded();
        }
        self.again(refused);
        self.more = match &entries {
            Ok(entries) if batch.then_read > 0 => !entries.is_empty(),
            Ok(_) => self.more,
            // The next separate read gets the same error and handles it.
            Err(_) => true,
        };
        let mut entries = entries.unwrap_or_default();
        // Releases entries that have no slot because tasks were refused, and all entries during shutdown.
        let room = if self.vitals.draining() { 0 } else { self.free() };
        let excess = entries.split_off(room.min(entries.len()));
        self.released.extend(excess.into_iter().map(|entry| (entry.id, 1, self.settings.floor)));
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

    /// Releases entries. If no other worker claims them, this worker reclaims them with the next sweep.
    async fn release(&mut self) {
        match self.stream.release(&mut self.link, &self.released).await {
            Ok(_) => self.sweep.soon(),
            Err(e) if e.may_pass() => return self.retry.failed("releasing tasks", &e),
            Err(e) => tracing::error!(error = %e, "cannot release tasks; they stay pending until they are \
             reclaimed"),
        }
        for (id, deliveries, _) in std::mem::take(&mut self.released) {
            self.let_go(&id, deliveries);
        }
        self.note_held();
    }

    /// Records in Redis which tasks wait for a retry.
    async fn keep_for_retry(&mut self) {
        while let Some(ScheduledRetry { id, deliveries, at, counts, reason }) = self.retries.pop() {
            match self.stream.retry(&mut self.link, (&id, deliveries), counts, &reason).await {
                Ok(Ok(now)) => {
                    if let Some(held) = self.held.get_mut(&id).filter(|held| held.deliveries == deliveries) {
                        (held.deliveries, held.recorded, held.run) = (now, true, None);
                        let cancelled = self.leases.enter(id.clone(), now);
                        self.waiting.insert((at, id), cancelled);
                    }
                }
                Ok(Err(Verdict::Refused(e))) | Err(e) if !e.may_pass() => {
                    tracing::error!(entry = %id, error = %e, "cannot schedule a retry of a task; it stays pending");
                    self.let_go(&id, deliveries);
                }
                Ok(Err(Verdict::Refused(e))) | Err(e) => {
                    self.retry.failed("scheduling a retry", &e);
                    self.retries.push(ScheduledRetry { id, deliveries, at, counts, reason });
                    break;
                }
                Ok(Err(verdict)) => {
                    tracing::info!(entry = %id, ?verdict, "a task to be retried was claimed by another worker");
                    self.let_go(&id, deliveries);
                }
            }
        }
        self.note_held();
    }

    /// Forgets a delivery, unless a later delivery of the same entry has replaced it.
    fn let_go(&mut self, id: &EntryId, deliveries: u64) {
        if self.held.get(id).is_some_and(|held| held.deliveries == deliveries) {
            self.held.remove(id);
            self.leases.remove(id);
        }
    }

    /// Graceful shutdown: stops reading and waits for running tasks up to the drain timeout.
    async fn drain(mut self, signum: Option<i32>) -> Left {
        self.vitals.drain();
        self.give_waiting_back();
        self.presence.beat_now();
        let deadline = Instant::now() + self.settings.drain_timeout;
        let _ = timeout_at(deadline, self.wind_down()).await;
        self.leave(signum).await
    }

    /// Releases waiting tasks with an idle time at which other workers reclaim them at about the time of the retry.
    fn give_waiting_back(&mut self) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting).into_keys();
        let scheduled = std::mem::take(&mut self.retries).into_iter().map(|retry| (retry.at, retry.id));
        for (at, id) in waiting.chain(scheduled) {
            if let Some(held) = self.held.get(&id) {
                let idle = self.settings.floor.saturating_sub(at.saturating_duration_since(now));
                self.released.push((id, held.deliveries, idle));
            }
        }
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

    /// Ends the blocking read. Entries that it still returns are released without being started.
    async fn stop_reading(&mut self) {
        self.more = false;
        let Some(mut reading) = self.reading.take() else { return };
        let id = self.reader_id.load(Ordering::Relaxed);
        let ended = timeout(LAST_READ, async {
            self.link.unblock(id).await;
            reading.as_mut().await
        });
        if let Ok((_, Ok(entries))) = ended.await {
            self.released.extend(entries.into_iter().map(|entry| (entry.id, 1, self.settings.floor)));
        }
    }

    async fn leave(mut self, signum: Option<i32>) -> Left {
        let in_flight = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        // Cancel before aborting, so that handlers can clean up.
        self.leases.cancel_all();
        let _ = timeout(CANCELLED, self.handlers_end()).await;
        self.running.abort_all();
        let _ = timeout(CANCELLED, self.handlers_end()).await;
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        self.give_unfinished_back().await;
        if !self.presence.leave(signum, in_flight).await {
            tracing::warn!("cannot write the shutdown marker");
        }
        tracing::info!(in_flight, "left");
        Left { in_flight, running }
    }

    async fn handlers_end(&mut self) {
        while let Some(joined) = self.running.join_next_with_id().await {
            let run = joined.map_or_else(|e| e.id(), |(run, _)| run);
            self.running_ids.remove(&run);
        }
    }

    /// Releases tasks without a running handler, so that other workers can reclaim them before the reclaim threshold.
    /// Tasks that still run, or whose completion has no reply yet, stay pending.
    async fn give_unfinished_back(&mut self) {
        if !self.finishing.is_empty() {
            return;
        }
        let still: HashSet<&EntryId> = self.running_ids.values().map(|(id, _)| id).collect();
        let floor = self.settings.floor;
        let unfinished = self.held.iter().filter(|(id, _)| !still.contains(id));
        let unfinished: Vec<_> = unfinished.map(|(id, held)| (id.clone(), held.deliveries, floor)).collect();
        if !unfinished.is_empty() {
            let released = timeout(LAST_READ, self.stream.release(&mut self.link, &unfinished)).await;
            if !matches!(released, Ok(Ok(_))) {
                tracing::warn!(
                    tasks = unfinished.len(),
                    "cannot release unfinished tasks; other workers reclaim them after the minimum idle time"
                );
            }
        }
    }

    /// Next number of a SplitMix64 generator with a random seed.
    pub(super) fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Destinations {
    fn add(&mut self, stream: &Name) {
        if !self.streams.contains(stream) {
            self.streams.truncate(DESTINATIONS - 1);
            self.streams.insert(0, stream.clone());
        }
    }
}

impl Held {
    fn abort(&self) {
        if let Some(run) = &self.run {
            run.abort();
        }
    }
}

/// Runs the handler with the configured timeout and deadline.
async fn limited(task: Task, handler: Handler, most: Option<Duration>, deadline: Option<Duration>) -> HandlerResult {
    let left = deadline.map(|deadline| deadline.saturating_sub(task.age()));
    let late = |deadline: Duration| TaskError::new(format!("its query is older than its deadline of {deadline:?}"));
    let answer = match (most, left, deadline) {
        (_, Some(Duration::ZERO), Some(deadline)) => Err(late(deadline)),
        (None, None, _) => handler(task).await,
        (most, left, deadline) => {
            let limit = most.into_iter().chain(left).min().unwrap_or(Duration::MAX);
            match (timeout(limit, handler(task)).await, most, deadline) {
                (Ok(answer), ..) => answer,
                (Err(_), Some(most), _) if most == limit => Err(TaskError::new(format!("timed out after {most:?}"))),
                (Err(_), _, deadline) => Err(late(deadline.unwrap_or(limit))),
            }
        }
    };
    if let Err(TaskError(answer)) = &answer
        && let How::Error(reason) | How::Fail(reason) | How::DeadLetter(reason) | How::Malformed(reason) = &answer.how
    {
        traces::failed(&tracing::Span::current(), reason);
    }
    answer
}

/// Never completes while nothing is in flight.
async fn wait<T>(under_way: &mut Option<UnderWay<T>>) -> (Link, T) {
    match under_way {
        Some(under_way) => under_way.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Completes with the first reply to a batch; never while none is in flight.
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
        _ => "with a value that is not a string",
    }
}
