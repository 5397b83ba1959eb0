//! OpenAPI descriptions of the alert routes and their responses.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{AcknowledgeOrder, ListQuery, SilenceOrder};
use crate::actors::messages::TestAnswer;
use crate::web::openapi::operation::{Group, Operation};

/// Fired alerts.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FiredAlerts")]
pub(super) struct Fired {
    /// Newest first.
    #[schemars(with = "Vec<FiredAlert>")]
    pub(super) alerts: Vec<Value>,
}

/// A fired alert.
#[derive(Serialize, JsonSchema)]
pub(in crate::web) struct FiredAlert {
    /// Time it fired, Unix seconds.
    pub(super) ts: f64,
    /// Alert key: the rule name, plus the stream or worker type if the rule covers several.
    pub(super) rule: String,
    /// `info`, `warning` or `critical`.
    pub(super) severity: String,
    /// One-line description.
    pub(super) detail: String,
    /// Message of the rule.
    pub(super) message: String,
}

/// A created silence.
#[derive(Serialize, JsonSchema)]
pub(super) struct Silenced {
    /// Silence ID, used to expire it.
    pub(super) silenced: String,
    /// End of the silence, Unix seconds.
    pub(super) until: f64,
}

/// An acknowledged alert.
#[derive(Serialize, JsonSchema)]
pub(super) struct Acknowledged {
    /// Alert key.
    pub(super) acknowledged: String,
}

/// Result.
#[derive(Serialize, JsonSchema)]
pub(super) struct Said {
    /// Result as text.
    pub(super) said: String,
}

/// Response of each channel.
#[derive(Serialize, JsonSchema)]
pub(super) struct Tested {
    /// All configured channels.
    pub(super) channels: Vec<TestAnswer>,
}

/// `GET /api/alerts`.
pub fn list() -> Operation {
    Operation::new(
        Group::Alerts,
        "List fired alerts",
        "The newest 200 alerts of all monitor instances, from Redis, or from Postgres while Redis is unreachable. \
         Older alerts are available as events of type `alert`.",
    )
    .query::<ListQuery>()
    .answers::<Fired>("Alerts, newest first.")
    .unavailable("Redis and Postgres are unreachable.")
}

/// `POST /api/silences`.
pub fn silence() -> Operation {
    Operation::new(
        Group::Alerts,
        "Create a silence",
        "Alerts that match both globs are still evaluated and shown, but no notifications are sent until the \
         silence expires. Alerts that still fire are then sent.",
    )
    .body::<SilenceOrder>()
    .answers::<Silenced>("The silence is active.")
    .unavailable("Postgres is unavailable; nothing was changed.")
}

/// `POST /api/silences/{id}/end`.
pub fn end_silence() -> Operation {
    Operation::new(Group::Alerts, "Expire a silence", "Notifications for the silenced alerts are sent again.")
        .path("id", "The silence ID.", "0b6dbe30-45c4-4f2e-9a3b-6d7f0c1e2a3b")
        .answers::<Said>("The silence expired, or there was none; see `said`.")
        .unavailable("Postgres is unavailable; nothing was changed.")
}

/// `POST /api/alerts/acknowledge`.
pub fn acknowledge() -> Operation {
    Operation::new(
        Group::Alerts,
        "Acknowledge an alert",
        "Suppresses further notifications of this alert until it resolves.",
    )
    .body::<AcknowledgeOrder>()
    .answers::<Acknowledged>("The alert is acknowledged.")
    .unavailable("Postgres is unavailable; nothing was changed.")
}

/// `POST /api/alerts/test`.
pub fn test() -> Operation {
    Operation::new(
        Group::Alerts,
        "Send a test notification",
        "Sends a test notification via each configured \
     channel.",
    )
    .answers::<Tested>("The response of each channel.")
    .unavailable("The audit log cannot be written; nothing was changed.")
}

/// `POST /-/reload`.
pub fn reload() -> Operation {
    Operation::new(
        Group::Alerts,
        "Reload rules",
        "Reloads the rules file. If the file is invalid, the current rules stay active and the 400 response lists \
         the errors.",
    )
    .answers::<Said>("The rules were loaded.")
    .refuses("The file is invalid.")
    .unavailable("The audit log cannot be written; nothing was changed.")
}
