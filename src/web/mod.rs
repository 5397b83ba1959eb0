//! The front end: routes, pages, API and websocket sessions.
//!
//! [`routes`] is the map, [`access`] the door. Handlers hold no state: they ask the newest snapshot, the supervisor or
//! Postgres through [`Front`]. [`problem`] is what an error looks like from outside, [`openapi`] tells the API,
//! [`request_id`] is how a request is found again in the log.

pub mod access;
pub mod admin;
pub mod alerts;
mod alike;
pub mod api;
pub mod assets;
pub mod autoscale;
mod body;
pub mod deadlines;
pub mod detail_page;
pub mod health;
pub mod history;
pub mod history_page;
mod html;
pub mod live_page;
pub mod live_session;
pub mod metrics;
pub(crate) mod open_files;
pub mod openapi;
pub mod operator;
pub mod problem;
pub mod read_limits;
pub mod request_id;
pub mod routes;
pub mod text_limits;
pub mod timers;

use std::sync::Arc;

use actix::Recipient;

use crate::actors::alert_evaluator::ShownAlerts;
use crate::actors::alert_ledger::Ledger;
use crate::actors::io::Io;
use crate::actors::messages::{
    AlertOrder, CleanUp, ForgetWorker, GetChanges, GetHealth, GetMetrics, Join, RenderPage, SendTest,
};
use crate::actors::supervisor::Newest;
use crate::fleet::watched::WatchedStreams;
use crate::pages::Site;

/// Everything a handler may ask.
#[derive(Clone)]
pub struct Front {
    /// The newest snapshot.
    pub newest: Newest,
    /// Way to the databases, for reads.
    pub io: Io,
    /// How is everyone?
    pub health: Recipient<GetHealth>,
    /// The live page.
    pub page: Recipient<RenderPage>,
    /// What changed since.
    pub changes: Recipient<GetChanges>,
    /// What Prometheus is answered.
    pub metrics: Recipient<GetMetrics>,
    /// Send me news.
    pub join: Recipient<Join>,
    /// How it is found out who asks.
    pub lock: access::Lock,
    /// The pages that are rendered when asked for.
    pub site: Arc<Site>,
    /// How often news come.
    pub interval: std::time::Duration,
    /// The alerts as they are.
    pub alerts: ShownAlerts,
    /// What was told of them, for reads.
    pub ledger: Arc<Ledger>,
    /// Do something about alerts.
    pub order: Recipient<AlertOrder>,
    /// Try the channels.
    pub test: Recipient<SendTest>,
    /// Clean up now.
    pub clean_up: Recipient<CleanUp>,
    /// Forget a worker type.
    pub forget: Recipient<ForgetWorker>,
    /// The streams that are watched: what nobody may touch otherwise.
    pub watched: Arc<WatchedStreams>,
    /// The streams that may be cleaned up.
    pub may_clean: Arc<WatchedStreams>,
    /// Queries older than this that never reached an end are abandoned.
    pub abandoned_after: std::time::Duration,
    /// How long series are kept in Redis.
    pub recent_window: std::time::Duration,
    /// How much clients may read at once.
    pub read_limits: Arc<read_limits::ReadLimits>,
}

impl Front {
    /// Refuses what is outside the streams that this monitor watches.
    ///
    /// # Errors
    /// [`problem::Problem::Forbidden`] for any other stream.
    pub fn within_scope(&self, stream: &crate::contract::Name) -> Result<(), problem::Problem> {
        if self.watched.contains(stream) {
            return Ok(());
        }
        let name: String = stream.to_text().chars().take(100).collect();
        Err(problem::Problem::Forbidden(format!(
            "stream {name:?} is not one that this monitor watches: see MONITOR_STREAMS and MONITOR_STREAMS_EXCLUDE"
        )))
    }

    /// The pages, as who asks sees them.
    #[must_use]
    pub fn site_for(&self, caller: &access::Caller) -> Site {
        self.site.seen_by(caller.visitor())
    }
}
