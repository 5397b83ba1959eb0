//! Reads the streams once per tick, and has the keyspace walked in the background when there may
//! be new ones, and now and then without a reason.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use tokio::sync::Mutex;

use super::io::{Io, REDIS_LATE};
use super::messages::{Fail, Report, Role, StreamsRead, Tick};
use crate::fleet::reading::{SourceTrouble, StreamsReading, TroubleKind};
use crate::fleet::time::Mono;
use crate::redis_streams::connection::{Kept, checkout};
use crate::redis_streams::discovery;
use crate::redis_streams::streams_reader::StreamsReader;
use crate::redis_streams::worker_type_records;

/// Every so many ticks Redis is asked whether groups were created.
const ASK_ABOUT_GROUPS_EVERY: u64 = 20;
/// After a walk the keyspace is left alone for so long at least, and for as long as the walk took.
const WALK_RESTS_AT_LEAST: Duration = Duration::from_secs(60);
/// Without a reason it is left alone for so many times as long as the walk took,
const IDLE_WALK_RESTS: u32 = 3000;
/// and so long at least.
const IDLE_WALK_RESTS_AT_LEAST: Duration = Duration::from_secs(600);
/// A walk that takes longer is given up.
const WALK_AT_MOST: Duration = Duration::from_secs(3600);

/// What the poller knows; it outlives a restart of the actor.
pub struct Polled {
    reader: StreamsReader,
    /// Streams of types that an earlier run knew are read from the first pass on.
    restored: bool,
    connection: Kept,
}

impl Polled {
    /// Polls with `reader` over `connection`.
    #[must_use]
    pub fn new(reader: StreamsReader, connection: Kept) -> Self {
        Self { reader, restored: false, connection }
    }
}

/// The actor.
pub struct StreamPoller {
    io: Io,
    supervisor: Recipient<Report>,
    reader: Arc<Mutex<Polled>>,
    reading: bool,
    walk: Walk,
}

#[derive(Default)]
struct Walk {
    running: bool,
    /// When the last one ended, and how long it took.
    last: Option<(Mono, Duration)>,
    /// The server that was walked.
    run_id: String,
    groups_created: Option<u64>,
    wanted: bool,
}

impl StreamPoller {
    /// Polls what `reader` watches and whatever discovery finds.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, reader: Arc<Mutex<Polled>>) -> Self {
        Self { io, supervisor, reader, reading: false, walk: Walk::default() }
    }

    fn report(
        &mut self,
        tick: Tick,
        result: Result<(StreamsReading, Vec<Vec<u8>>), SourceTrouble>,
        ctx: &mut Context<Self>,
    ) {
        self.reading = false;
        let (reading, heartbeat_keys) = match result {
            Ok((reading, found)) => {
                if self.walk.run_id != reading.server.run_id {
                    self.walk = Walk {
                        run_id: reading.server.run_id.clone(),
                        wanted: true,
                        running: self.walk.running,
                        ..Walk::default()
                    };
                }
                (Ok(Arc::new(reading)), found)
            }
            Err(trouble) => (Err(trouble), Vec::new()),
        };
        let left = tick.deadline.saturating_sub(self.io.now().since(tick.at));
        self.supervisor.do_send(Report::Streams(StreamsRead { tick: tick.n, reading, heartbeat_keys, deadline: left }));
        if self.walk.is_due(self.io.now()) {
            self.start_walk(ctx);
        }
    }

    fn start_walk(&mut self, ctx: &mut Context<Self>) {
        self.walk.running = true;
        self.walk.wanted = false;
        let began = self.io.now();
        let (pool, reader) = (self.io.redis.clone(), Arc::clone(&self.reader));
        let walking = self.io.run(WALK_AT_MOST, "the walk through Redis took too long", async move {
            let capabilities = reader.lock().await.reader.known_capabilities();
            let Some(capabilities) = capabilities else { return Ok((false, Vec::new())) };
            let found = discovery::walk(&pool, capabilities).await?;
            let news = reader.lock().await.reader.watch(found.streams);
            Ok((news, found.heartbeat_keys))
        });
        ctx.spawn(walking.into_actor(self).map(move |walked, this, _| {
            let now = this.io.now();
            this.walk.running = false;
            this.walk.last = Some((now, now.since(began)));
            match walked {
                Ok((news, heartbeat_keys)) => {
                    tracing::info!(news, heartbeats = heartbeat_keys.len(), "walked through Redis");
                    this.supervisor.do_send(Report::Walked { news, heartbeat_keys });
                }
                Err(trouble) => {
                    tracing::warn!(error = trouble.detail, "the walk through Redis failed; it is made again");
                    this.walk.wanted = true;
                }
            }
        }));
    }

    fn ask_about_groups(&self, ctx: &mut Context<Self>) {
        let pool = self.io.redis.clone();
        let asking = self.io.run(Duration::from_secs(2), REDIS_LATE, async move {
            discovery::groups_created(&mut checkout(&pool).await?).await
        });
        ctx.spawn(asking.into_actor(self).map(|created, this, _| {
            let Ok(Some(created)) = created else { return };
            let before = this.walk.groups_created.replace(created);
            this.walk.wanted |= before.is_some_and(|before| created > before);
        }));
    }
}

impl Walk {
    fn is_due(&self, now: Mono) -> bool {
        let Some((ended, took)) = self.last else { return self.wanted && !self.running };
        let rest = if self.wanted {
            took.max(WALK_RESTS_AT_LEAST)
        } else {
            (took * IDLE_WALK_RESTS).max(IDLE_WALK_RESTS_AT_LEAST)
        };
        !self.running && now.since(ended) >= rest
    }
}

impl Actor for StreamPoller {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::StreamPoller));
    }
}

impl Handler<Tick> for StreamPoller {
    type Result = ();

    fn handle(&mut self, tick: Tick, ctx: &mut Self::Context) {
        if self.reading {
            let trouble = SourceTrouble::new(TroubleKind::TimedOut, REDIS_LATE);
            let missed = StreamsRead {
                tick: tick.n,
                reading: Err(trouble),
                heartbeat_keys: Vec::new(),
                deadline: Duration::ZERO,
            };
            self.supervisor.do_send(Report::Streams(missed));
            return;
        }
        self.reading = true;
        let (pool, reader) = (self.io.redis.clone(), Arc::clone(&self.reader));
        let reading = self.io.run(tick.deadline, REDIS_LATE, async move {
            let mut polled = reader.lock().await;
            let is_first = !polled.restored;
            if is_first {
                let known = worker_type_records::load(&pool).await?;
                polled.reader.watch(known.into_keys());
                polled.restored = true;
            }
            let mut redis = polled.connection.take().await?;
            let read = polled.reader.read(&mut redis).await?;
            // The first pass looks far around: no later one needs the room that its answers took.
            if !is_first {
                polled.connection.keep(redis);
            }
            Ok(read)
        });
        ctx.spawn(reading.into_actor(self).map(move |result, this, ctx| this.report(tick, result, ctx)));
        if tick.n % ASK_ABOUT_GROUPS_EVERY == 2 {
            self.ask_about_groups(ctx);
        }
    }
}

impl Handler<Fail> for StreamPoller {
    type Result = ();

    #[expect(clippy::panic, reason = "a test asked for it")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the stream poller was told to fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(n: u64) -> Mono {
        Mono(n * 60_000)
    }

    #[test]
    fn a_walk_is_made_for_a_reason_once_a_minute_and_without_one_ever_more_rarely_the_longer_it_takes() {
        let mut walk = Walk::default();
        assert!(!walk.is_due(minutes(99)), "no server is known yet");
        walk.wanted = true;
        assert!(walk.is_due(minutes(0)));
        walk = Walk { last: Some((minutes(0), Duration::from_secs(1))), ..Walk::default() };
        assert!(!walk.is_due(minutes(49)));
        assert!(walk.is_due(minutes(50)));
        walk.last = Some((minutes(0), Duration::from_millis(1)));
        assert!(!walk.is_due(minutes(9)));
        assert!(walk.is_due(minutes(10)));
        walk.wanted = true;
        assert!(walk.is_due(minutes(1)));
        assert!(!walk.is_due(Mono(59_999)));
        walk.last = Some((minutes(0), Duration::from_secs(300)));
        assert!(!walk.is_due(minutes(4)), "half of the time at most");
        assert!(walk.is_due(minutes(5)));
        walk.running = true;
        assert!(!walk.is_due(minutes(99)));
    }
}
