//! Compacts the archive: takes over rows of an older monitor, then moves the rows of each closed hour into the rows of their days.

use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use super::io::{Io, POSTGRES_LATE};
use super::kernel_timer;
use super::messages::{Fail, Report, Role};
use crate::fleet::reading::SourceTrouble;
use crate::history::{HOUR, Micros, SECOND};
use crate::postgres::history::{compaction, queries_started, takeover};

/// Interval of checks when there is nothing to do or Postgres is unreachable.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Time limit for a step.
const STEP_WITHIN: Duration = Duration::from_secs(600);
/// Time after its end at which an hour is closed; later rows are moved with the next one.
const CLOSED_AFTER: Micros = 120 * SECOND;

/// Compacts the archive; see the module documentation.
pub struct Compactor {
    io: Io,
    supervisor: Recipient<Report>,
    /// Hours before this are moved. Only compared for equality, since the clock may be set back.
    done_before: Micros,
}

impl Compactor {
    /// Returns the actor.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>) -> Self {
        Self { io, supervisor, done_before: 0 }
    }

    /// Runs a step and schedules the next one: immediately if there is more to do, but for at most half of the time.
    fn work(&mut self, ctx: &mut Context<Self>) {
        #[expect(clippy::cast_possible_truncation, reason = "Unix microseconds")]
        let now = (self.io.wall() * 1e6) as Micros - CLOSED_AFTER;
        let closed_before = now - now.rem_euclid(HOUR);
        if !self.io.archive_is_ready() || closed_before == self.done_before {
            kernel_timer::later(
                ctx,
                LOOK_EVERY.min(Duration::from_secs(if self.done_before == 0 { 5 } else { 60 })),
                Self::work,
            );
            return;
        }
        let (pool, began) = (self.io.postgres.clone(), Instant::now());
        let step = self.io.run(STEP_WITHIN, POSTGRES_LATE, async move {
            if takeover::step(&pool).await? == takeover::Step::Moved {
                return Ok(More::Yes);
            }
            queries_started::count_closed(&pool, closed_before).await?;
            let moved = compaction::step(&pool, closed_before).await?;
            Ok::<More, SourceTrouble>(if moved > 0 { More::Yes } else { More::No })
        });
        ctx.spawn(step.into_actor(self).map(move |more, this, ctx| {
            let rest = match more {
                Ok(More::Yes) => began.elapsed(),
                Ok(More::No) => {
                    this.done_before = closed_before;
                    LOOK_EVERY
                }
                Err(trouble) => {
                    tracing::warn!(error = trouble.detail, "compaction of the history failed; retrying later");
                    LOOK_EVERY
                }
            };
            kernel_timer::later(ctx, rest, Self::work);
        }));
    }
}

enum More {
    Yes,
    No,
}

impl Actor for Compactor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.work(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::Compactor));
    }
}

impl Handler<Fail> for Compactor {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the compactor failed on request");
    }
}
