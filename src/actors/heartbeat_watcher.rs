//! Reads heartbeats and shutdown markers: those of known consumers while the streams are read, the others afterwards.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};
use tokio::sync::Mutex;

use super::io::{Io, REDIS_LATE};
use super::messages::{Fail, FoundHeartbeats, HeartbeatsRead, Report, Role, StreamsRead, Tick};
use crate::contract::Name;
use crate::fleet::reading::{HeartbeatsReading, SourceTrouble, TroubleKind};
use crate::fleet::watched::WatchedStreams;
use crate::redis_streams::connection::PersistentConnection;
use crate::redis_streams::heartbeats_reader::HeartbeatsReader;
use crate::redis_streams::worker_type_records;

/// State of the watcher; it survives restarts of the actor.
pub struct Watch {
    reader: HeartbeatsReader,
    connection: PersistentConnection,
    /// Consumers of the previous run are loaded.
    restored: bool,
}

impl Watch {
    /// Returns the state for reading over `connection`.
    #[must_use]
    pub fn new(connection: PersistentConnection) -> Self {
        Self { reader: HeartbeatsReader::default(), connection, restored: false }
    }
}

/// Reads heartbeats; see the module documentation.
pub struct HeartbeatWatcher {
    io: Io,
    supervisor: Recipient<Report>,
    watched: Arc<WatchedStreams>,
    watch: Arc<Mutex<Watch>>,
    reading: bool,
    found: Vec<Vec<u8>>,
}

impl HeartbeatWatcher {
    /// Returns the actor; it reads heartbeats of consumers of `watched` streams.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, watched: Arc<WatchedStreams>, watch: Arc<Mutex<Watch>>) -> Self {
        Self { io, supervisor, watched, watch, reading: false, found: Vec::new() }
    }

    fn report(&self, tick: u64, reading: Result<HeartbeatsReading, SourceTrouble>) {
        self.supervisor.do_send(Report::Heartbeats(HeartbeatsRead { tick, reading: reading.map(Arc::new) }));
    }
}

impl Actor for HeartbeatWatcher {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::HeartbeatWatcher));
    }
}

impl Handler<Tick> for HeartbeatWatcher {
    type Result = ();

    /// Redis answers this together with the streams, so that the waiting thread wakes once for both.
    fn handle(&mut self, tick: Tick, ctx: &mut Self::Context) {
        if self.reading {
            return;
        }
        let (io, watch) = (self.io.clone(), Arc::clone(&self.watch));
        // Half of the deadline, so that everything can be read again over another connection if this one hangs.
        let reading = self.io.run(tick.deadline / 2, REDIS_LATE, async move {
            let mut watch = watch.lock().await;
            let mut redis = watch.connection.take().await?;
            watch.reader.read_ahead(&mut redis, tick.n, io.now()).await?;
            watch.connection.keep(redis);
            Ok(())
        });
        // Missing answers are requested again after the streams.
        ctx.spawn(reading.into_actor(self).map(|_, _, _| ()));
    }
}

impl Handler<StreamsRead> for HeartbeatWatcher {
    type Result = ();

    fn handle(&mut self, message: StreamsRead, ctx: &mut Self::Context) {
        self.found.extend(message.heartbeat_keys);
        let Ok(streams) = message.reading else { return };
        let tick = message.tick;
        if self.reading {
            return self.report(tick, Err(SourceTrouble::new(TroubleKind::TimedOut, REDIS_LATE)));
        }
        self.reading = true;
        let found = std::mem::take(&mut self.found);
        let (io, watch, watched) = (self.io.clone(), Arc::clone(&self.watch), Arc::clone(&self.watched));
        let deadline = message.deadline.max(Duration::from_millis(100));
        let reading = self.io.run(deadline, REDIS_LATE, async move {
            let mut watch = watch.lock().await;
            // Before the consumers of the previous run, so that their names are not stored twice.
            watch.reader.follow(&streams);
            if !watch.restored {
                let records = worker_type_records::load(&io.redis).await?;
                watch.reader.restore(records.into_iter().flat_map(|(stream, record)| {
                    let watched: Vec<Name> = record.watched().collect();
                    watched.into_iter().map(move |consumer| (stream.clone(), consumer))
                }));
                watch.restored = true;
            }
            watch.reader.found(found);
            let mut redis = watch.connection.take().await?;
            let mut reading = watch.reader.read(&mut redis, tick, io.now()).await?;
            watch.connection.keep(redis);
            reading.consumers.retain(|stream, _| watched.contains(stream));
            Ok(reading)
        });
        ctx.spawn(reading.into_actor(self).map(move |result, this, _| {
            this.reading = false;
            this.report(tick, result);
        }));
    }
}

impl Handler<FoundHeartbeats> for HeartbeatWatcher {
    type Result = ();

    fn handle(&mut self, FoundHeartbeats(keys): FoundHeartbeats, _: &mut Self::Context) {
        self.found.extend(keys);
    }
}

impl Handler<Fail> for HeartbeatWatcher {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the heartbeat watcher failed on request");
    }
}
