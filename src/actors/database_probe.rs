//! Measures Postgres and the fleet's queries: with every tick while the fleet's tables are small, otherwise each group of figures
//! as often as fits in 1/3000 of the time. Migrates the monitor's tables when Postgres is first reachable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use super::io::{Io, POSTGRES_LATE};
use super::messages::{DatabaseRead, Fail, Report, Role, Tick};
use crate::fleet::reading::{DatabaseReading, Probed, SourceTrouble};
use crate::fleet::time::Mono;
use crate::postgres::{migrate, probe};
use crate::settings::OBSERVER_SCHEMA;

/// Wait between two probes as a multiple of the probe's duration.
const REST: u32 = 3000;
/// Time limit for a slow probe.
const PROBE_AT_MOST: Duration = Duration::from_secs(30);
/// Time that a tick waits for slow figures, so that the first one includes them.
const GRACE: Duration = Duration::from_millis(150);

/// Cap for the first measured duration: it may include connecting, or a busy moment.
const ONE_SLOW_ANSWER: Duration = Duration::from_millis(20);
/// Minimum wait after a probe of large tables or a failed probe.
const REST_AT_LEAST: Duration = Duration::from_secs(10);
/// Tables with up to this many rows are measured with every tick.
const SMALL_TABLE: i64 = 100_000;

/// The figures of the server take the place of the check that Postgres answers if they are expected to take this part of the
/// time for one reply.
const QUICK: u32 = 20;

/// Measures the database. Every tick checks that Postgres answers; figures follow when due.
pub struct DatabaseProbe {
    io: Io,
    supervisor: Recipient<Report>,
    database_url: crate::settings::Secret,
    reading: DatabaseReading,
    migrated: Migrated,
    asking: bool,
    server: Turn,
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

/// Schedule of a probe.
#[derive(Default)]
struct Turn {
    running: bool,
    /// End of the last run.
    ended: Option<Mono>,
    failed: bool,
    /// Expected duration; a slower run raises it to at most twice its value.
    takes: Duration,
}

impl Turn {
    fn ran(&mut self, now: Mono, took: Duration, failed: bool) {
        self.takes = took.min((self.takes * 2).max(ONE_SLOW_ANSWER));
        self.ended = Some(now);
        self.failed = failed;
        self.running = false;
    }

    /// Returns the earliest time of the next run.
    fn not_before(&self, small: bool) -> Mono {
        let rest = match (small, self.failed) {
            (true, false) => Duration::ZERO,
            (true, true) => REST_AT_LEAST,
            (false, _) => (self.takes * REST).max(REST_AT_LEAST),
        };
        self.ended.map_or(Mono::default(), |ended| ended.plus(rest))
    }

    /// Returns the time at which the next result is due.
    fn expected_by(&self, small: bool) -> Mono {
        self.not_before(small).plus(self.takes * 2)
    }
}

impl DatabaseProbe {
    /// Returns the actor. `database_url` is for migrations, which use a connection of their own.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, database_url: crate::settings::Secret) -> Self {
        Self {
            io,
            supervisor,
            database_url,
            reading: DatabaseReading::default(),
            migrated: Migrated::No,
            asking: false,
            server: Turn::default(),
            counts: Turn::default(),
            volume: Turn::default(),
            callbacks: Turn::default(),
        }
    }

    fn report(&self, tick: u64, reading: Result<Arc<DatabaseReading>, SourceTrouble>) {
        self.supervisor.do_send(Report::Database(DatabaseRead { tick, reading }));
    }

    /// Whether the figures of the server are due and quick, so that their answer is also the sign that Postgres answers.
    fn server_is_quick(&self, answer_within: Duration) -> bool {
        let turn = &self.server;
        let due = !turn.running && !turn.failed && self.io.now() >= turn.not_before(self.is_small());
        due && turn.ended.is_some() && turn.takes * QUICK <= answer_within
    }

    fn sees_wal(&self) -> bool {
        self.reading.server.latest().is_some_and(|server| matches!(server.wal_size_bytes, Ok(Some(_))))
    }

    fn answered(&mut self, tick: Tick, answer: Result<(), SourceTrouble>, ctx: &mut Context<Self>) {
        self.asking = false;
        if let Err(trouble) = answer {
            return self.report(tick.n, Err(trouble));
        }
        self.migrate(ctx);
        self.start_due(ctx);
        let report = move |this: &mut Self| this.report(tick.n, Ok(Arc::new(this.newest())));
        if self.reading.server.value.is_none() {
            ctx.run_later(GRACE, move |this, _| report(this));
        } else {
            report(self);
        }
    }

    /// Returns the current reading.
    fn newest(&self) -> DatabaseReading {
        let small = self.is_small();
        let mut reading = self.reading.clone();
        reading.server.expected_by = self.server.expected_by(small);
        reading.query_counts.expected_by = self.counts.expected_by(small);
        reading.query_volume.expected_by = self.volume.expected_by(small);
        reading.callbacks.expected_by = self.callbacks.expected_by(small);
        reading.write_trouble = self.io.refused_write();
        reading
    }

    /// Returns whether measuring the fleet's tables is cheap; `false` until they were counted.
    fn is_small(&self) -> bool {
        if self.reading.server.latest().is_some_and(|server| !server.has_queries) {
            return true;
        }
        let queries = self.reading.query_counts.latest().map(|counts| counts.by_state.values().sum::<i64>());
        let callbacks = self.reading.callbacks.latest().map(|callbacks| callbacks.pending);
        queries.is_some_and(|queries| queries <= SMALL_TABLE) && callbacks.is_none_or(|rows| rows <= SMALL_TABLE)
    }

    fn start_due(&mut self, ctx: &mut Context<Self>) {
        let (pool, sees_wal) = (self.io.postgres.clone(), self.sees_wal());
        let server = async move { probe::server(&pool, sees_wal).await };
        self.ask(ctx, |this| (&mut this.server, &mut this.reading.server), server);
        self.start_due_of_fleet(ctx);
    }

    /// Measures the fleet's tables, if they exist.
    fn start_due_of_fleet(&mut self, ctx: &mut Context<Self>) {
        if !self.reading.server.latest().is_some_and(|server| server.has_queries) {
            return;
        }
        let pool = self.io.postgres.clone();
        let volume = async move { probe::query_volume(&pool).await };
        self.ask(ctx, |this| (&mut this.volume, &mut this.reading.query_volume), volume);
        let pool = self.io.postgres.clone();
        let callbacks = async move { probe::callbacks(&pool).await };
        self.ask(ctx, |this| (&mut this.callbacks, &mut this.reading.callbacks), callbacks);
        let pool = self.io.postgres.clone();
        let counts = async move { probe::query_counts(&pool).await };
        self.ask(ctx, |this| (&mut this.counts, &mut this.reading.query_counts), counts);
    }

    /// Runs the query for a group of figures if it is due; `place` selects its schedule and result.
    fn ask<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        place: fn(&mut Self) -> (&mut Turn, &mut Probed<T>),
        work: impl Future<Output = Result<T, SourceTrouble>> + Send + 'static,
    ) {
        let (now, small) = (self.io.now(), self.is_small());
        let (turn, _) = place(self);
        if turn.running || now < turn.not_before(small) {
            return;
        }
        turn.running = true;
        let (asked, began) = (now, Instant::now());
        let asking = self.io.run(PROBE_AT_MOST, POSTGRES_LATE, work);
        ctx.spawn(asking.into_actor(self).map(move |answer, this, ctx| {
            let first = place(this).1.value.is_none();
            if this.measured(place, (asked, began), answer).is_ok() && first {
                this.start_due(ctx);
            }
        }));
    }

    /// Takes the answer to a query that was sent at `asked` and `began`.
    fn measured<T>(
        &mut self,
        place: fn(&mut Self) -> (&mut Turn, &mut Probed<T>),
        (asked, began): (Mono, Instant),
        answer: Result<T, SourceTrouble>,
    ) -> Result<(), SourceTrouble> {
        let now = self.io.now();
        let (turn, probed) = place(self);
        turn.ran(now, began.elapsed(), answer.is_err());
        match answer {
            Ok(value) => {
                *probed = Probed { value: Some((asked, value)), ..Probed::default() };
                Ok(())
            }
            Err(trouble) => {
                probed.error = Some(trouble.detail.clone());
                if trouble.kind.means_unreadable() {
                    self.io.note_unreadable();
                }
                Err(trouble)
            }
        }
    }

    /// Runs the migrations once per start, when Postgres is reachable.
    fn migrate(&mut self, ctx: &mut Context<Self>) {
        if self.migrated != Migrated::No {
            return;
        }
        self.migrated = Migrated::Running;
        let (url, pool) = (self.database_url.reveal().to_owned(), self.io.postgres.clone());
        let observe_only = self.io.observe_only;
        let migrating = self.io.run(Duration::from_secs(3600), POSTGRES_LATE, async move {
            if observe_only {
                // An observer does not add indexes, since they would change the fleet's tables; its probes run less often.
                return migrate::run_in(OBSERVER_SCHEMA, &url, Duration::from_secs(5)).await;
            }
            migrate::run(&url, Duration::from_secs(5)).await?;
            migrate::add_fleet_indexes(&pool).await
        });
        ctx.spawn(migrating.into_actor(self).map(|result, this, ctx| match result {
            Ok(()) => {
                this.migrated = Migrated::Yes;
                this.io.set_archive_ready();
                // The fleet's tables may exist now.
                this.server.ended = None;
            }
            Err(trouble) => {
                tracing::error!(error = trouble.detail, "cannot migrate the database schema; retrying in 1 minute");
                this.io.note_failed_migration(&trouble);
                ctx.run_later(Duration::from_secs(60), |this, _| this.migrated = Migrated::No);
            }
        }));
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
        if !self.server_is_quick(tick.answer_within) {
            let asking = self.io.run(tick.answer_within, POSTGRES_LATE, async move { probe::alive(&pool).await });
            ctx.spawn(asking.into_actor(self).map(move |answer, this, ctx| this.answered(tick, answer, ctx)));
            return;
        }
        // All at once: a thread that sleeps until each answer finds its caches cold (docs/performance.md).
        self.start_due_of_fleet(ctx);
        self.server.running = true;
        let (asked, began, sees_wal) = (self.io.now(), Instant::now(), self.sees_wal());
        let asking =
            self.io.run(tick.answer_within, POSTGRES_LATE, async move { probe::server(&pool, sees_wal).await });
        ctx.spawn(asking.into_actor(self).map(move |answer, this, ctx| {
            let answer = this.measured(|this| (&mut this.server, &mut this.reading.server), (asked, began), answer);
            this.answered(tick, answer, ctx);
        }));
    }
}

impl Handler<Fail> for DatabaseProbe {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the database probe failed on request");
    }
}
