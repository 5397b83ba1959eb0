//! Deletes history that is older than its retention, once a day per fleet.

use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use super::io::{Io, POSTGRES_LATE};
use super::kernel_timer;
use super::messages::{Fail, Report, Role};
use crate::history::Keep;
use crate::postgres::history::retention;
use crate::redis_streams::retention_schedule;

/// Interval of checks whether a sweep is due.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Delay of the first check, so that the database is ready.
const LOOK_FIRST: Duration = Duration::from_secs(15);
/// Interval of sweeps, seconds.
const SWEEP_EVERY_SEC: f64 = 86_400.0;
/// Time limit for a sweep.
const SWEEP_WITHIN: Duration = Duration::from_secs(300);

/// Deletes old history; see the module documentation.
pub struct RetentionSweeper {
    io: Io,
    supervisor: Recipient<Report>,
    keep: Keep,
}

impl RetentionSweeper {
    /// Returns the actor; `keep` is the retention.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, keep: Keep) -> Self {
        Self { io, supervisor, keep }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if !self.io.archive_is_ready() {
            kernel_timer::later(ctx, LOOK_FIRST, Self::look);
            return;
        }
        let (io, keep, now) = (self.io.clone(), self.keep, self.io.wall());
        let sweeping = self.io.run(SWEEP_WITHIN, POSTGRES_LATE, async move {
            if io.observe_only {
                // An observer has its own schema, so it does not claim the sweep for the fleet.
                return retention::sweep(&io.postgres, keep).await.map(|_| None);
            }
            if !retention_schedule::claim(&io.redis, now, SWEEP_EVERY_SEC).await? {
                return Ok(None);
            }
            match retention::sweep(&io.postgres, keep).await {
                Ok(deleted) => Ok(Some(deleted)),
                Err(trouble) => {
                    retention_schedule::give_back(&io.redis).await?;
                    Err(trouble)
                }
            }
        });
        ctx.spawn(sweeping.into_actor(self).map(|swept, _, ctx| {
            match swept {
                Ok(Some(deleted)) => tracing::info!(?deleted, "deleted expired history"),
                Ok(None) => {}
                Err(trouble) => tracing::warn!(error = trouble.detail, "cannot delete expired history; retrying later"),
            }
            kernel_timer::later(ctx, LOOK_EVERY, Self::look);
        }));
    }
}

impl Actor for RetentionSweeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::RetentionSweeper));
    }
}

impl Handler<Fail> for RetentionSweeper {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the retention sweeper failed on request");
    }
}
