//! The heartbeat and the leases, on a thread with a runtime and connections of its own: a handler
//! that blocks every other thread of the process does not make it look dead.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::builder::Settings;
use super::leases::Leases;
use super::vitals::Vitals;
use crate::contract::{Heartbeat, ShutdownMarker, heartbeat};
use crate::redis_streams::tasks::{Link, TaskStream};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// How long a leaving worker tries to say so.
const FAREWELL: Duration = Duration::from_secs(5);

/// The thread that says "I am here". Dropping it ends the thread without a word, as a crash would.
pub(super) struct Presence {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    SayNow,
    Leave { signum: Option<i32>, in_flight: u32, left: oneshot::Sender<bool> },
}

impl Presence {
    /// Starts the thread; the receiver hears when the first heartbeat is written.
    pub(super) fn start(
        settings: &Settings,
        stream: TaskStream,
        vitals: Arc<Vitals>,
        leases: Arc<Leases>,
    ) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (seen, first) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keeper = stream.clone();
        let mut keeper_link = Link::new(settings.address.clone(), RESPONSE_TIMEOUT);
        let speaker = Speaker {
            link: Link::new(settings.address.clone(), RESPONSE_TIMEOUT),
            beat: Heartbeat {
                stream: stream.stream().clone(),
                consumer: stream.consumer().clone(),
                started_at: unix_now(),
                last_seen: 0.0,
                task_limit: u32::try_from(settings.task_limit).unwrap_or(u32::MAX),
                incarnation: Some(uuid::Uuid::now_v7().simple().to_string()),
                in_flight: None,
                progress: None,
                draining: false,
            },
            stream,
            vitals,
        };
        thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            runtime.spawn(async move { leases.keep(&keeper, &mut keeper_link).await });
            runtime.block_on(speaker.speak(inbox, seen));
        })?;
        Ok((Self { commands }, first))
    }

    /// Writes a heartbeat now, because it says something new.
    pub(super) fn say_now(&self) {
        let _ = self.commands.send(Command::SayNow);
    }

    /// Leaves the marker, takes the heartbeat away and ends the thread; false when Redis did not
    /// hear it.
    pub(super) async fn leave(self, signum: Option<i32>, in_flight: u32) -> bool {
        let (left, heard) = oneshot::channel();
        let _ = self.commands.send(Command::Leave { signum, in_flight, left });
        heard.await.unwrap_or(false)
    }
}

struct Speaker {
    link: Link,
    beat: Heartbeat,
    stream: TaskStream,
    vitals: Arc<Vitals>,
}

impl Speaker {
    async fn speak(mut self, mut inbox: mpsc::UnboundedReceiver<Command>, seen: oneshot::Sender<()>) {
        let mut seen = Some(seen);
        let mut heard = true;
        loop {
            let started = Instant::now();
            self.beat.last_seen = unix_now();
            self.beat.in_flight = Some(self.vitals.in_flight());
            self.beat.progress = Some(self.vitals.progress());
            self.beat.draining = self.vitals.draining();
            let said = self.stream.beat(&mut self.link, &self.beat).await;
            let again = match &said {
                Ok(()) => {
                    if let Some(seen) = seen.take() {
                        let _ = seen.send(());
                    }
                    started + heartbeat::INTERVAL
                }
                Err(e) => {
                    if heard {
                        tracing::warn!(error = %e, "cannot write the heartbeat; trying every second");
                    }
                    started + RETRY
                }
            };
            heard = said.is_ok();
            let command = tokio::select! {
                command = inbox.recv() => command,
                () = sleep_until(again) => continue,
            };
            match command {
                None => return,
                Some(Command::SayNow) => {}
                Some(Command::Leave { signum, in_flight, left }) => {
                    let _ = left.send(self.leave(signum, in_flight).await);
                    return;
                }
            }
        }
    }

    async fn leave(&mut self, signum: Option<i32>, in_flight: u32) -> bool {
        let marker = ShutdownMarker {
            stream: self.beat.stream.clone(),
            consumer: self.beat.consumer.clone(),
            signum,
            ts: unix_now(),
            incarnation: self.beat.incarnation.clone(),
            in_flight: Some(in_flight),
        };
        let said = timeout(FAREWELL, async {
            loop {
                match self.stream.leave(&mut self.link, &marker).await {
                    Ok(()) => return,
                    Err(_) => tokio::time::sleep(RETRY / 4).await,
                }
            }
        });
        said.await.is_ok()
    }
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
