//! Heartbeat, lease renewal and signal handling on a separate thread.
//!
//! The thread has its own runtime and connections, so a handler that blocks all other threads neither makes the worker
//! look dead nor prevents its shutdown.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::builder::Settings;
use super::leases::Leases;
use super::signals::Signals;
use super::vitals::Vitals;
use crate::contract::{Heartbeat, ShutdownMarker, heartbeat};
use crate::redis_streams::tasks::{Link, TaskStream};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// How long shutdown retries writing the marker.
const MARKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after the drain timeout this thread exits the process if the engine has not shut down.
const GRACE: Duration = Duration::from_secs(2);

/// Handle of the heartbeat thread. Dropping it stops the thread without a shutdown marker, like a crash.
pub(super) struct Presence {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    /// Start writing heartbeats; notify the sender after the first one.
    Appear(oneshot::Sender<()>),
    BeatNow,
    Leave {
        signum: Option<i32>,
        in_flight: u32,
        left: oneshot::Sender<bool>,
    },
}

/// State shared between the heartbeat thread and the engine.
pub(super) struct Shared {
    pub(super) vitals: Arc<Vitals>,
    pub(super) leases: Arc<Leases>,
}

impl Presence {
    /// Starts the thread. With `owned`, it also handles the signals of the process: it passes the first one to the
    /// sender. The counter is the number of workers in the process that still run.
    pub(super) fn start(
        settings: &Settings,
        stream: TaskStream,
        shared: &Shared,
        owned: Option<(oneshot::Sender<Option<i32>>, Arc<AtomicUsize>)>,
    ) -> io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let owned = match owned {
            None => None,
            Some((stop, remaining)) => {
                let _inside = runtime.enter();
                Some(ProcessSignals { signals: Signals::install()?, stop: Some(stop), first: None, remaining })
            }
        };
        let heartbeats = HeartbeatThread {
            link: Link::new(settings.address.clone(), RESPONSE_TIMEOUT),
            beat: Heartbeat {
                stream: stream.stream().clone(),
                consumer: stream.consumer().clone(),
                started_at: unix_now(),
                last_seen: 0.0,
                task_limit: u32::try_from(settings.task_limit).unwrap_or(u32::MAX),
                incarnation: Some(uuid::Uuid::now_v7().simple().to_string().into()),
                in_flight: None,
                waiting: None,
                progress: None,
                draining: false,
            },
            stream: stream.clone(),
            vitals: Arc::clone(&shared.vitals),
            drain_limit: settings.drain_timeout + GRACE,
            next_beat: None,
            last_ok: true,
            owned,
        };
        let leases = Arc::clone(&shared.leases);
        let mut lease_link = Link::new(settings.address.clone(), RESPONSE_TIMEOUT);
        thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            runtime.spawn(async move { leases.keep(&stream, &mut lease_link).await });
            runtime.block_on(heartbeats.run(inbox));
        })?;
        Ok(Self { commands })
    }

    /// Starts the heartbeat and waits until the first one is written.
    pub(super) async fn appear(&self) {
        let (written, first) = oneshot::channel();
        let _ = self.commands.send(Command::Appear(written));
        let _ = first.await;
    }

    /// Writes a heartbeat immediately, because its content has changed.
    pub(super) fn beat_now(&self) {
        let _ = self.commands.send(Command::BeatNow);
    }

    /// Writes the shutdown marker and deletes the heartbeat. Returns `false` if Redis could not be reached.
    pub(super) async fn leave(self, signum: Option<i32>, in_flight: u32) -> bool {
        let (left, written) = oneshot::channel();
        let _ = self.commands.send(Command::Leave { signum, in_flight, left });
        written.await.unwrap_or(false)
    }
}

/// Signal handling of a process that runs this worker and possibly others.
struct ProcessSignals {
    signals: Signals,
    stop: Option<oneshot::Sender<Option<i32>>>,
    /// First signal, and the deadline at which the process exits even if it makes no progress.
    first: Option<(i32, Instant)>,
    /// Number of workers in this process that have not shut down.
    remaining: Arc<AtomicUsize>,
}

struct HeartbeatThread {
    link: Link,
    beat: Heartbeat,
    stream: TaskStream,
    vitals: Arc<Vitals>,
    drain_limit: Duration,
    /// When the next heartbeat is due; `None` before the first [`Command::Appear`].
    next_beat: Option<Instant>,
    last_ok: bool,
    owned: Option<ProcessSignals>,
}

impl HeartbeatThread {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut first_written: Option<oneshot::Sender<()>> = None;
        loop {
            let due = self.next_beat;
            let too_late = self.owned.as_ref().and_then(|owned| owned.first);
            tokio::select! {
                command = inbox.recv() => match command {
                    None => return,
                    Some(Command::Appear(first)) => {
                        first_written = Some(first);
                        self.write_beat().await;
                    }
                    Some(Command::BeatNow) => self.write_beat().await,
                    Some(Command::Leave { signum, in_flight, left }) => {
                        let _ = left.send(self.leave(signum, in_flight).await);
                        return self.outlive().await;
                    }
                },
                () = until(due) => self.write_beat().await,
                signal = next_signal(&mut self.owned) => self.signalled(signal).await,
                () = until(too_late.map(|(_, deadline)| deadline)) => {
                    let in_flight = self.vitals.in_flight();
                    tracing::warn!(in_flight, "the process makes no progress; exiting");
                    self.leave(too_late.map(|(signum, _)| signum), in_flight).await;
                    self.others_left().await;
                    std::process::exit(0);
                }
            }
            if self.last_ok
                && self.next_beat.is_some()
                && let Some(written) = first_written.take()
            {
                let _ = written.send(());
            }
        }
    }

    async fn write_beat(&mut self) {
        let started = Instant::now();
        self.beat.last_seen = unix_now();
        self.beat.in_flight = Some(self.vitals.in_flight());
        self.beat.waiting = Some(self.vitals.waiting()).filter(|waiting| *waiting > 0);
        self.beat.progress = Some(self.vitals.progress());
        self.beat.draining = self.vitals.draining();
        let written = self.stream.beat(&mut self.link, &self.beat).await;
        if let (Err(e), true) = (&written, self.last_ok) {
            tracing::warn!(error = %e, "cannot write the heartbeat; trying every second");
        }
        self.last_ok = written.is_ok();
        self.next_beat = Some(started + if self.last_ok { heartbeat::INTERVAL } else { RETRY });
    }

    /// The first signal starts a graceful shutdown, the second exits the process.
    async fn signalled(&mut self, signal: i32) {
        let Some(owned) = &mut self.owned else { return };
        if owned.first.is_some() {
            tracing::warn!(signal, "received a second signal; shutting down immediately");
            std::process::exit(128 + signal);
        }
        tracing::info!(signal, "shutting down: taking no new tasks, waiting for running tasks");
        owned.first = Some((signal, Instant::now() + self.drain_limit));
        if let Some(stop) = owned.stop.take() {
            let _ = stop.send(Some(signal));
        }
        self.vitals.drain();
        if self.next_beat.is_some() {
            self.write_beat().await;
        }
    }

    /// After the worker has shut down, a second signal still exits the process.
    async fn outlive(mut self) {
        if self.owned.as_ref().is_some_and(|owned| owned.first.is_some()) {
            let signal = next_signal(&mut self.owned).await;
            std::process::exit(128 + signal);
        }
    }

    async fn leave(&mut self, signum: Option<i32>, in_flight: u32) -> bool {
        let marker = ShutdownMarker {
            stream: self.beat.stream.clone(),
            consumer: self.beat.consumer.clone(),
            signum,
            ts: unix_now(),
            incarnation: self.beat.incarnation.as_deref().map(str::to_owned),
            in_flight: Some(in_flight),
        };
        let attempts = timeout(MARKER_TIMEOUT, async {
            while self.stream.leave(&mut self.link, &marker).await.is_err() {
                tokio::time::sleep(RETRY / 4).await;
            }
        });
        let written = attempts.await.is_ok();
        if let Some(owned) = &self.owned {
            owned.remaining.fetch_sub(1, Ordering::Relaxed);
        }
        written
    }

    /// Waits for the other workers of the process, which write their markers at the same time.
    async fn others_left(&self) {
        let remaining = || self.owned.as_ref().is_some_and(|owned| owned.remaining.load(Ordering::Relaxed) > 0);
        let left = async {
            while remaining() {
                tokio::time::sleep(RETRY / 50).await;
            }
        };
        let _ = timeout(GRACE, left).await;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn next_signal(owned: &mut Option<ProcessSignals>) -> i32 {
    match owned {
        Some(owned) => owned.signals.next().await,
        None => std::future::pending().await,
    }
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
