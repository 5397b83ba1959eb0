//! Reads the streams once per tick, and walks the keyspace in the background: when new streams are likely, and periodically.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use tokio::sync::Mutex;

use super::io::{Io, REDIS_LATE};
use super::messages::{Fail, Report, Role, SnapshotTaken, StreamsRead, Tick};
use crate::fleet::reading::{SourceTrouble, StreamsReading, TroubleKind};
use crate::fleet::search::Search;
use crate::fleet::time::Mono;
use crate::redis_streams::connection::{PersistentConnection, checkout};
use crate::redis_streams::discovery;
use crate::redis_streams::streams_reader::StreamsReader;
use crate::redis_streams::worker_type_records;

/// Number of ticks between checks for new consumer groups.
const ASK_ABOUT_GROUPS_EVERY: u64 = 20;
/// Minimum time between two walks; also at least the duration of the previous walk.
const WALK_RESTS_AT_LEAST: Duration = Duration::from_secs(60);
/// Wait between two walks in search of workers that no group lists: a multiple of the duration of the previous walk, and a minimum.
const REPLACEMENT_WALK_RESTS: (u32, Duration) = (20, Duration::from_secs(2));
const ZERO_WALK_RESTS: (u32, Duration) = (100, Duration::from_secs(30));
/// Without a reason, the wait is this multiple of the duration of the previous walk,
const IDLE_WALK_RESTS: u32 = 10_000;
/// and at least this long.
const IDLE_WALK_RESTS_AT_LEAST: Duration = Duration::from_secs(600);
/// Time limit for a walk.
const WALK_AT_MOST: Duration = Duration::from_secs(3600);

/// State of the poller; it survives restarts of the actor.
pub struct Polled {
    reader: StreamsReader,
    /// Streams of types that an earlier run recorded are read from the first pass on.
    restored: bool,
    connection: PersistentConnection,
    /// The server that was read last.
    run_id: Option<String>,
}

impl Polled {
    /// Returns the state for polling with `reader` over `connection`.
    #[must_use]
    pub fn new(reader: StreamsReader, connection: PersistentConnection) -> Self {
        Self { reader, restored: false, connection, run_id: None }
    }
}

/// Reads the streams; see the module documentation.
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
    /// End and duration of the last walk.
    last: Option<(Mono, Duration)>,
    /// Run ID of the server; empty if the server does not report one.
    server: Option<String>,
    groups_created: Option<u64>,
    wanted: bool,
    search: Search,
}

impl StreamPoller {
    /// Returns the actor. It polls the streams of `reader` and those that discovery finds.
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
                self.walk.is_answered_by(&reading.server.run_id);
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
        let (began, server) = (self.io.now(), self.walk.server.clone());
        let (pool, reader) = (self.io.redis.clone(), Arc::clone(&self.reader));
        let walking = self.io.run(WALK_AT_MOST, "scanning the keyspace timed out", async move {
            let capabilities = reader.lock().await.reader.known_capabilities();
            let Some(capabilities) = capabilities else { return Ok((None, false, Vec::new())) };
            // The walk may miss streams of groups that are created from here on.
            let groups_before = discovery::groups_created(&mut checkout(&pool).await?).await?;
            let found = discovery::walk(&pool, capabilities).await?;
            let news = reader.lock().await.reader.walked(found.streams);
            Ok((groups_before, news, found.heartbeat_keys))
        });
        ctx.spawn(walking.into_actor(self).map(move |walked, this, _| {
            let now = this.io.now();
            this.walk.running = false;
            if this.walk.server == server {
                this.walk.last = Some((now, now.since(began)));
                if let Ok((groups_before, ..)) = walked {
                    this.walk.groups_created = groups_before;
                }
            }
            match walked {
                Ok((_, news, heartbeat_keys)) => {
                    let heartbeats = heartbeat_keys.len();
                    if news {
                        tracing::info!(heartbeats, "keyspace scan found new streams");
                    } else {
                        tracing::debug!(heartbeats, "keyspace scan finished");
                    }
                    this.supervisor.do_send(Report::Walked { news, heartbeat_keys });
                }
                Err(trouble) => {
                    tracing::warn!(error = trouble.detail, "the keyspace scan failed; retrying");
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
            if let Ok(Some(created)) = created {
                this.walk.counts_groups(created);
            }
        }));
    }
}

impl Walk {
    /// Requests a walk if this is a different server.
    fn is_answered_by(&mut self, run_id: &str) {
        if self.server.as_deref() != Some(run_id) {
            let (running, search) = (self.running, self.search);
            *self = Self { server: Some(run_id.to_owned()), wanted: true, running, search, ..Self::default() };
        }
    }

    /// Requests a walk if groups were created: `created` is the count since the server started or its statistics were reset.
    fn counts_groups(&mut self, created: u64) {
        let before = self.groups_created.replace(created);
        self.wanted |= before.is_some_and(|before| created != before && created > 0);
    }

    fn is_due(&self, now: Mono) -> bool {
        let Some((ended, took)) = self.last else { return self.wanted && !self.running };
        let multiple = |(times, at_least): (u32, Duration)| (took * times).max(at_least);
        let for_streams = if self.wanted {
            took.max(WALK_RESTS_AT_LEAST)
        } else {
            multiple((IDLE_WALK_RESTS, IDLE_WALK_RESTS_AT_LEAST))
        };
        let rest = match self.search {
            Search::Idle => for_streams,
            Search::TypeAtZero => for_streams.min(multiple(ZERO_WALK_RESTS)),
            Search::Replacement => for_streams.min(multiple(REPLACEMENT_WALK_RESTS)),
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
            if redis.is_new() {
                polled.reader.reconnected();
            }
            let mut read = polled.reader.read(&mut redis).await?;
            let server = &mut read.0.server;
            if polled.run_id.replace(server.run_id.clone()).is_some_and(|before| before != server.run_id) {
                redis.leads_to_another_server();
            }
            if server.write_trouble.is_none() {
                server.write_trouble = pool.manager().refused_write();
            }
            if server.denied.is_none() {
                server.denied = pool.manager().denied_command();
            }
            // The answers of the first pass are large; later ones do not need that memory.
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

impl Handler<SnapshotTaken> for StreamPoller {
    type Result = ();

    fn handle(&mut self, SnapshotTaken(snapshot): SnapshotTaken, _: &mut Self::Context) {
        self.walk.search = Search::of(&snapshot);
    }
}

impl Handler<Fail> for StreamPoller {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the stream poller failed on request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(n: u64) -> Mono {
        Mono(n * 60_000)
    }

    #[test]
    fn walks_at_most_once_a_minute_and_backs_off_without_a_reason() {
        let mut walk = Walk::default();
        assert!(!walk.is_due(minutes(99)), "no server has answered yet");
        walk = Walk { last: Some((minutes(0), Duration::from_secs(1))), ..Walk::default() };
        assert!(!walk.is_due(minutes(166)));
        assert!(walk.is_due(minutes(167)));
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

    #[test]
    fn walks_more_often_in_search_of_unlisted_workers_but_at_most_a_twentieth_of_the_time() {
        let due = |search, took: u64, after: u64| {
            let last = Some((Mono(0), Duration::from_millis(took)));
            Walk { last, search, ..Walk::default() }.is_due(Mono(after))
        };
        assert!(due(Search::Replacement, 10, 2000) && !due(Search::Replacement, 10, 1999));
        assert!(due(Search::Replacement, 1000, 20_000) && !due(Search::Replacement, 1000, 19_999));
        assert!(due(Search::TypeAtZero, 10, 30_000) && !due(Search::TypeAtZero, 10, 29_999));
        assert!(!due(Search::Idle, 10, 599_999));
    }

    #[test]
    fn walks_every_server_even_without_run_id() {
        let mut walk = Walk::default();
        walk.is_answered_by("");
        assert!(walk.is_due(minutes(0)));
        walk = Walk { wanted: false, last: Some((minutes(0), Duration::ZERO)), ..walk };
        walk.is_answered_by("");
        assert!(!walk.is_due(minutes(1)));
        walk.is_answered_by("another");
        assert!(walk.is_due(minutes(1)));
    }

    #[test]
    fn new_groups_trigger_a_walk_even_the_first_one_and_after_a_statistics_reset() {
        let reason = |counts: &[u64]| {
            let mut walk = Walk::default();
            counts.iter().for_each(|count| walk.counts_groups(*count));
            walk.wanted
        };
        assert!(!reason(&[20]), "created before anybody asked");
        assert!(!reason(&[20, 20]));
        assert!(reason(&[0, 1]));
        assert!(!reason(&[20, 0]), "counted anew, nothing created");
        assert!(reason(&[20, 0, 3]));
        assert!(reason(&[20, 3]));
    }
}
