//! Calls an outside check every minute while alerting works; the check notifies when this monitor itself stops.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, WrapFuture};

use super::io::Io;
use super::messages::{AlertingWorks, Fail, Report, Role};
use crate::delivery::outside_check::OutsideCheck;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::time::Mono;

/// Interval of calls. The outside check should allow for several: a new leader calls after the lease of the previous one.
const CALL_EVERY: Duration = Duration::from_secs(60);
/// Pause after a failed call.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Time limit for a call.
const CALL_WITHIN: Duration = Duration::from_secs(15);

/// Calls the outside check; see the module documentation.
pub struct DeadMansSwitch {
    io: Io,
    supervisor: Recipient<Report>,
    check: Option<Arc<OutsideCheck>>,
    calling: bool,
    /// Earliest time of the next call.
    due: Mono,
    /// The failure was logged.
    failing: bool,
}

impl DeadMansSwitch {
    /// Returns the actor; without a `check`, it does nothing.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, check: Option<Arc<OutsideCheck>>) -> Self {
        Self { io, supervisor, check, calling: false, due: Mono::default(), failing: false }
    }

    fn called(&mut self, answer: Result<(), SourceTrouble>) {
        self.calling = false;
        let failed = answer.is_err();
        if failed {
            self.due = self.io.now().plus(RETRY_AFTER);
        }
        match answer {
            Err(trouble) if !self.failing => {
                tracing::warn!(error = trouble.detail, "cannot reach the outside check (HEARTBEAT_URL); retrying");
            }
            Ok(()) if self.failing => tracing::info!("the outside check (HEARTBEAT_URL) is reachable again"),
            Ok(()) | Err(_) => {}
        }
        self.failing = failed;
    }
}

impl Actor for DeadMansSwitch {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::DeadMansSwitch));
    }
}

impl Handler<AlertingWorks> for DeadMansSwitch {
    type Result = ();

    fn handle(&mut self, _: AlertingWorks, ctx: &mut Self::Context) {
        let now = self.io.now();
        let Some(check) = self.check.clone().filter(|_| !self.calling && now >= self.due) else { return };
        self.calling = true;
        self.due = now.plus(CALL_EVERY);
        let calling = self.io.run(CALL_WITHIN, "the outside check timed out", async move {
            check.call().await.map_err(|why| SourceTrouble::new(TroubleKind::Failed, why))
        });
        ctx.spawn(calling.into_actor(self).map(|answer, this, _| this.called(answer)));
    }
}

impl Handler<Fail> for DeadMansSwitch {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the dead man's switch failed on request");
    }
}
