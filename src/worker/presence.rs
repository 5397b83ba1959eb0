//! The heartbeat, the leases and the signals, on a thread with a runtime and connections of its
//! own: a handler that blocks every other thread of the process neither makes it look dead nor
//! keeps it from leaving.

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
/// How long a leaving worker tries to say so.
const FAREWELL: Duration = Duration::from_secs(5);
/// How much later than its deadline a drain may end before this thread ends the process.
const GRACE: Duration = Duration::from_secs(2);

/// The thread that says "I am here". Dropping it ends the thread without a word, as a crash would.
pub(super) struct Presence {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    /// Begin to write heartbeats; tell when the first is written.
    Appear(oneshot::Sender<()>),
    SayNow,
    Leave {
        signum: Option<i32>,
        in_flight: u32,
        left: oneshot::Sender<bool>,
    },
}

/// What the thread shares with the engine.
pub(super) struct Shared {
    pub(super) vitals: Arc<Vitals>,
    pub(super) leases: Arc<Leases>,
}

impl Presence {
    /// Starts the thread. With `owned`, the process is the worker's own, or shared with as many other
    /// workers as still run: the thread listens to its signals and passes the first one on.
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
            Some((asked, present)) => {
                let _inside = runtime.enter();
                Some(Owned { signals: Signals::install()?, asked: Some(asked), first: None, present })
            }
        };
        let speaker = Speaker {
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
            said: None,
            heard: true,
            owned,
        };
        let leases = Arc::clone(&shared.leases);
        let mut keeper = Link::new(settings.address.clone(), RESPONSE_TIMEOUT);
        thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            runtime.spawn(async move { leases.keep(&stream, &mut keeper).await });
            runtime.block_on(speaker.speak(inbox));
        })?;
        Ok(Self { commands })
    }

    /// Begins to write heartbeats; ready when the first is written.
    pub(super) async fn appear(&self) {
        let (seen, first) = oneshot::channel();
        let _ = self.commands.send(Command::Appear(seen));
        let _ = first.await;
    }

    /// Writes a heartbeat now, because it says something new.
    pub(super) fn say_now(&self) {
        let _ = self.commands.send(Command::SayNow);
    }

    /// Leaves the marker and takes the heartbeat away; false when Redis did not hear it.
    pub(super) async fn leave(self, signum: Option<i32>, in_flight: u32) -> bool {
        let (left, heard) = oneshot::channel();
        let _ = self.commands.send(Command::Leave { signum, in_flight, left });
        heard.await.unwrap_or(false)
    }
}

/// The signals of a process that consists of this worker and perhaps others.
struct Owned {
    signals: Signals,
    asked: Option<oneshot::Sender<Option<i32>>>,
    /// The first signal, and when the process ends even if nobody in it can move.
    first: Option<(i32, Instant)>,
    /// The workers of this process that have not left yet.
    present: Arc<AtomicUsize>,
}

struct Speaker {
    link: Link,
    beat: Heartbeat,
    stream: TaskStream,
    vitals: Arc<Vitals>,
    drain_limit: Duration,
    /// When the heartbeat is due again; `None` before the worker appears.
    said: Option<Instant>,
    heard: bool,
    owned: Option<Owned>,
}

impl Speaker {
    async fn speak(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut seen: Option<oneshot::Sender<()>> = None;
        loop {
            let due = self.said;
            let too_late = self.owned.as_ref().and_then(|owned| owned.first);
            tokio::select! {
                command = inbox.recv() => match command {
                    None => return,
                    Some(Command::Appear(first)) => {
                        seen = Some(first);
                        self.say().await;
                    }
                    Some(Command::SayNow) => self.say().await,
                    Some(Command::Leave { signum, in_flight, left }) => {
                        let _ = left.send(self.leave(signum, in_flight).await);
                        return self.outlive().await;
                    }
                },
                () = until(due) => self.say().await,
                signal = next_signal(&mut self.owned) => self.signalled(signal).await,
                () = until(too_late.map(|(_, deadline)| deadline)) => {
                    let in_flight = self.vitals.in_flight();
                    tracing::warn!(in_flight, "the process makes no progress; exiting");
                    self.leave(too_late.map(|(signum, _)| signum), in_flight).await;
                    self.others_left().await;
                    std::process::exit(0);
                }
            }
            if self.heard
                && self.said.is_some()
                && let Some(seen) = seen.take()
            {
                let _ = seen.send(());
            }
        }
    }

    async fn say(&mut self) {
        let started = Instant::now();
        self.beat.last_seen = unix_now();
        self.beat.in_flight = Some(self.vitals.in_flight());
        self.beat.waiting = Some(self.vitals.waiting()).filter(|waiting| *waiting > 0);
        self.beat.progress = Some(self.vitals.progress());
        self.beat.draining = self.vitals.draining();
        let said = self.stream.beat(&mut self.link, &self.beat).await;
        if let (Err(e), true) = (&said, self.heard) {
            tracing::warn!(error = %e, "cannot write the heartbeat; trying every second");
        }
        self.heard = said.is_ok();
        self.said = Some(started + if self.heard { heartbeat::INTERVAL } else { RETRY });
    }

    /// The first signal asks the engine to drain, the second ends the process.
    async fn signalled(&mut self, signal: i32) {
        let Some(owned) = &mut self.owned else { return };
        if owned.first.is_some() {
            tracing::warn!(signal, "received a second signal; shutting down immediately");
            std::process::exit(128 + signal);
        }
        tracing::info!(signal, "shutting down: taking no new tasks, waiting for running tasks");
        owned.first = Some((signal, Instant::now() + self.drain_limit));
        if let Some(asked) = owned.asked.take() {
            let _ = asked.send(Some(signal));
        }
        self.vitals.drain();
        if self.said.is_some() {
            self.say().await;
        }
    }

    /// After the worker has left, a further signal still ends the process.
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
        let said = timeout(FAREWELL, async {
            while self.stream.leave(&mut self.link, &marker).await.is_err() {
                tokio::time::sleep(RETRY / 4).await;
            }
        });
        let written = said.await.is_ok();
        if let Some(owned) = &self.owned {
            owned.present.fetch_sub(1, Ordering::Relaxed);
        }
        written
    }

    /// The other workers of the process write their markers at the same time as this one.
    async fn others_left(&self) {
        let present = || self.owned.as_ref().is_some_and(|owned| owned.present.load(Ordering::Relaxed) > 0);
        let left = async {
            while present() {
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

async fn next_signal(owned: &mut Option<Owned>) -> i32 {
    match owned {
        Some(owned) => owned.signals.next().await,
        None => std::future::pending().await,
    }
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
