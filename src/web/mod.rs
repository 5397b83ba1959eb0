//! HTTP front end: routes, pages, API and websocket sessions.
//!
//! [`routes`] is the route table, [`access`] authorizes requests. Handlers are stateless: they read the newest
//! snapshot, the supervisor or Postgres through [`AppState`]. [`problem`] defines errors, [`openapi`] documents the API,
//! [`request_id`] connects responses with the log.

pub mod access;
pub mod admin;
pub mod alerts;
pub mod api;
pub mod assets;
pub mod autoscale;
mod body;
pub mod deadlines;
pub mod detail_page;
mod error_normalizer;
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
pub mod timer_slack;

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

/// Shared state of all handlers.
#[derive(Clone)]
pub struct AppState {
    /// The newest snapshot.
    pub newest: Newest,
    /// Access to Redis and Postgres, for reads.
    pub io: Io,
    /// Health of the actors.
    pub health: Recipient<GetHealth>,
    /// Renders the live page.
    pub page: Recipient<RenderPage>,
    /// Changes of the live page since a tick.
    pub changes: Recipient<GetChanges>,
    /// Renders the metrics for Prometheus.
    pub metrics: Recipient<GetMetrics>,
    /// Subscribes to the live feed.
    pub join: Recipient<Join>,
    /// Authentication state.
    pub lock: access::AuthGate,
    /// Renders the other pages.
    pub site: Arc<Site>,
    /// Poll interval.
    pub interval: std::time::Duration,
    /// Current alerts.
    pub alerts: ShownAlerts,
    /// Stored notifications, for reads.
    pub ledger: Arc<Ledger>,
    /// Silences, acknowledges or reloads.
    pub order: Recipient<AlertOrder>,
    /// Sends test notifications.
    pub test: Recipient<SendTest>,
    /// Starts a cleanup run.
    pub clean_up: Recipient<CleanUp>,
    /// Forgets a worker type.
    pub forget: Recipient<ForgetWorker>,
    /// Watched streams; all others are off limits.
    pub watched: Arc<WatchedStreams>,
    /// Streams that cleanup runs may change.
    pub may_clean: Arc<WatchedStreams>,
    /// Queries without an end are marked as abandoned at this age.
    pub abandoned_after: std::time::Duration,
    /// Retention of series in Redis.
    pub recent_window: std::time::Duration,
    /// Limits of concurrent reads per client.
    pub read_limits: Arc<read_limits::ReadLimits>,
    /// Maximum number of websockets per client, behind a proxy too.
    pub websockets_per_client: usize,
}

impl AppState {
    /// Checks that this monitor watches the stream.
    ///
    /// # Errors
    /// [`problem::Problem::Forbidden`] if it does not.
    pub fn within_scope(&self, stream: &crate::contract::Name) -> Result<(), problem::Problem> {
        if self.watched.contains(stream) {
            return Ok(());
        }
        let name: String = stream.to_text().chars().take(100).collect();
        Err(problem::Problem::Forbidden(format!(
            "stream {name:?} is not one that this monitor watches: see MONITOR_STREAMS and MONITOR_STREAMS_EXCLUDE"
        )))
    }

    /// The pages, rendered for this caller.
    #[must_use]
    pub fn site_for(&self, caller: &access::Caller) -> Site {
        self.site.seen_by(caller.visitor())
    }
}
