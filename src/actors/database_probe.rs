//! Measures Postgres and the fleet's queries, each group of figures as often as it can be had for
//! a thousandth of the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use super::io::{Io, POSTGRES_LATE};
use super::messages::{DatabaseRead, Fail, Report, Role, Tick};
use crate::fleet::reading::{DatabaseReading, DatabaseServer, Probed, SourceTrouble};
use crate::fleet::time::Mono;
use crate::postgres::{migrate, probe};

/// A probe that took this long rests a thousand times as long.
const REST: u32 = 1000;
/// A slow probe is given up after this.
const PROBE_AT_MOST: Duration = Duration::from_secs(30);
/// The tick's answer waits this long for the slower figures, so that the first one has them.
const GRACE: Duration = Duration::from_millis(150);

/// The actor. The server's own figures are asked for in every tick and tell whether Postgres is
/// there; the rest follows when due.
pub struct DatabaseProbe {
    io: Io,
    supervisor: Recipient<Report>,
    database_url: crate::settings::Secret,
    reading: DatabaseReading,
    migrated: Migrated,
    asking: bool,
    counts: Turn,
    volume: Turn,
    callbacks: Turn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Migrated {
    No,
    Running,
    Yes,
}

/// When a probe may run again.
#[derive(Default)]
struct Turn {
    running: bool,
    not_before: Mono,
}

impl Turn {
    fn is_due(&self, now: Mono) -> bool {
        !self.running && now >= self.not_before
    }
}

impl DatabaseProbe {
    /// Probes through `io`; `database_url` is for the migrations, which need a connection of
    /// their own.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, database_url: crate::settings::Secret) -> Self {
        Self {
            io,
            supervisor,
            database_url,
            reading: DatabaseReading::default(),
            migrated: Migrated::No,
            asking: false,
            counts: Turn::default(),
            volume: Turn::default(),
            callbacks: Turn::default(),
        }
    }

    fn report(&self, tick: u64, reading: Result<Arc<DatabaseReading>, SourceTrouble>) {
        self.supervisor.do_send(Report::Database(DatabaseRead { tick, reading }));
    }

    fn server_answered(&mut self, tick: Tick, answer: Result<DatabaseServer, SourceTrouble>, ctx: &mut Context<Self>) {
        self.asking = false;
        let now = self.io.now();
        match answer {
            Err(trouble) => self.report(tick.n, Err(trouble)),
            Ok(server) => {
                let has_queries = server.has_queries;
                self.reading.server = Probed { value: Some((now, server)), error: None };
                self.migrate(ctx);
                if has_queries {
                    self.start_due(ctx);
                }
                let waits = has_queries && self.reading.query_volume.value.is_none();
                let grace = if waits { GRACE.saturating_sub(now.since(tick.at)) } else { Duration::ZERO };
                ctx.run_later(grace, move |this, _| this.report(tick.n, Ok(Arc::new(this.reading.clone()))));
            }
        }
    }

    fn start_due(&mut self, ctx: &mut Context<Self>) {
        let now = self.io.now();
        let pool = || self.io.postgres.clone();
        if self.volume.is_due(now) {
            self.volume.running = true;
            let pool = pool();
            let asking = timed(&self.io, async move { probe::query_volume(&pool).await });
            ctx.spawn(asking.into_actor(self).map(|answer, this, _| {
                take(&this.io, &mut this.volume, &mut this.reading.query_volume, answer);
            }));
        }
        if self.callbacks.is_due(now) {
            self.callbacks.running = true;
            let pool = pool();
            let asking = timed(&self.io, async move { probe::callbacks(&pool).await });
            ctx.spawn(asking.into_actor(self).map(|answer, this, _| {
                take(&this.io, &mut this.callbacks, &mut this.reading.callbacks, answer);
            }));
        }
        if self.counts.is_due(now) {
            self.counts.running = true;
            let pool = pool();
            let asking = timed(&self.io, async move { probe::query_counts(&pool).await });
            ctx.spawn(asking.into_actor(self).map(|answer, this, _| {
                take(&this.io, &mut this.counts, &mut this.reading.query_counts, answer);
            }));
        }
    }

    /// Once per start, as soon as Postgres is there.
    fn migrate(&mut self, ctx: &mut Context<Self>) {
        if self.migrated != Migrated::No {
            return;
        }
        self.migrated = Migrated::Running;
        let (url, pool) = (self.database_url.reveal().to_owned(), self.io.postgres.clone());
        let migrating = self.io.run(Duration::from_secs(3600), POSTGRES_LATE, async move {
            migrate::run(&url, Duration::from_secs(5)).await?;
            migrate::add_fleet_indexes(&pool).await
        });
        ctx.spawn(migrating.into_actor(self).map(|result, this, ctx| match result {
            Ok(()) => this.migrated = Migrated::Yes,
            Err(trouble) => {
                tracing::error!(
                    error = trouble.detail,
                    "the database's tables are not up to date; trying again in a minute"
                );
                ctx.run_later(Duration::from_secs(60), |this, _| this.migrated = Migrated::No);
            }
        }));
    }
}

type Timed<T> = (Result<T, SourceTrouble>, Duration);

fn timed<T: Send + 'static, W: Future<Output = Result<T, SourceTrouble>> + Send + 'static>(
    io: &Io,
    work: W,
) -> impl Future<Output = Timed<T>> + use<T, W> {
    let began = Instant::now();
    let work = io.run(PROBE_AT_MOST, POSTGRES_LATE, work);
    async move { (work.await, began.elapsed()) }
}

fn take<T>(io: &Io, turn: &mut Turn, probed: &mut Probed<T>, (answer, took): Timed<T>) {
    let now = io.now();
    *turn = Turn { running: false, not_before: now.plus(took * REST) };
    match answer {
        Ok(value) => *probed = Probed { value: Some((now, value)), error: None },
        Err(trouble) => probed.error = Some(trouble.detail),
    }
}

impl Actor for DatabaseProbe {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::DatabaseProbe));
    }
}

impl Handler<Tick> for DatabaseProbe {
    type Result = ();

    fn handle(&mut self, tick: Tick, ctx: &mut Self::Context) {
        if self.asking {
            return;
        }
        self.asking = true;
        let pool = self.io.postgres.clone();
        let asking = self.io.run(tick.deadline, POSTGRES_LATE, async move { probe::server(&pool).await });
        ctx.spawn(asking.into_actor(self).map(move |answer, this, ctx| this.server_answered(tick, answer, ctx)));
    }
}

impl Handler<Fail> for DatabaseProbe {
    type Result = ();

    #[expect(clippy::panic, reason = "a test asked for it")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the database probe was told to fail");
    }
}
