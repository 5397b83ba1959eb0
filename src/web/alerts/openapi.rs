//! How the API tells alerts: what it answers, and each route.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{AcknowledgeOrder, ListQuery, SilenceOrder};
use crate::actors::messages::TestAnswer;
use crate::web::openapi::operation::{Group, Operation};

/// Alerts that fired.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FiredAlerts")]
pub(super) struct Fired {
    /// Newest first.
    #[schemars(with = "Vec<FiredAlert>")]
    pub(super) alerts: Vec<Value>,
}

/// An alert that fired.
#[derive(Serialize, JsonSchema)]
pub(in crate::web) struct FiredAlert {
    /// When it fired, Unix seconds.
    pub(super) ts: f64,
    /// The alert's key: the rule, with the stream or worker type where there are many.
    pub(super) rule: String,
    /// `info`, `warning` or `critical`.
    pub(super) severity: String,
    /// What is wrong, in one line.
    pub(super) detail: String,
    /// The text for people.
    pub(super) message: String,
}

/// A silence was made.
#[derive(Serialize, JsonSchema)]
pub(super) struct Silenced {
    /// Its id, by which it can be ended.
    pub(super) silenced: String,
    /// Until when, Unix seconds.
    pub(super) until: f64,
}

/// An alert is acknowledged.
#[derive(Serialize, JsonSchema)]
pub(super) struct Acknowledged {
    /// Its key.
    pub(super) acknowledged: String,
}

/// What came of it.
#[derive(Serialize, JsonSchema)]
pub(super) struct Said {
    /// In words.
    pub(super) said: String,
}

/// What the channels answered.
#[derive(Serialize, JsonSchema)]
pub(super) struct Tested {
    /// Each channel that is set up.
    pub(super) channels: Vec<TestAnswer>,
}

/// `GET /api/alerts`.
pub fn list() -> Operation {
    Operation::new(
        Group::Alerts,
        "What fired",
        "The newest 200 alerts, as any monitor of this fleet wrote them down; from Redis, or while that is away from \
         Postgres. Older ones are among the events of the type `alert`.",
    )
    .query::<ListQuery>()
    .answers::<Fired>("Alerts, newest first.")
    .unavailable("Neither Redis nor Postgres can be read.")
}

/// `POST /api/silences`.
pub fn silence() -> Operation {
    Operation::new(
        Group::Alerts,
        "Silence alerts",
        "Alerts that match both globs are judged and shown, and nobody is told of them, until the silence is over. An \
         alert that still fires then is told.",
    )
    .body::<SilenceOrder>()
    .answers::<Silenced>("The silence holds.")
    .unavailable("Postgres did not take it: nothing was done.")
}

/// `POST /api/silences/{id}/end`.
pub fn end_silence() -> Operation {
    Operation::new(Group::Alerts, "End a silence", "From now on what it silenced is told again.")
        .path("id", "The silence's id, as making it answered.", "0b6dbe30-45c4-4f2e-9a3b-6d7f0c1e2a3b")
        .answers::<Said>("It is over, or there was none: `said` says which.")
        .unavailable("Postgres did not take it: nothing was done.")
}

/// `POST /api/alerts/acknowledge`.
pub fn acknowledge() -> Operation {
    Operation::new(
        Group::Alerts,
        "Acknowledge an alert",
        "Somebody takes care: until it is over, nobody is told of it again.",
    )
    .body::<AcknowledgeOrder>()
    .answers::<Acknowledged>("It is acknowledged.")
    .unavailable("Postgres did not take it: nothing was done.")
}

/// `POST /api/alerts/test`.
pub fn test() -> Operation {
    Operation::new(Group::Alerts, "Send a test message", "Through each channel that is set up, at once.")
        .answers::<Tested>("What each channel answered.")
        .unavailable("It cannot be written into the audit: nothing was done.")
}

/// `POST /-/reload`.
pub fn reload() -> Operation {
    Operation::new(
        Group::Alerts,
        "Read the rules again",
        "A file with mistakes leaves the last good rules in force; the detail of the 400 names them.",
    )
    .answers::<Said>("The rules are in force.")
    .refuses("The file has mistakes.")
    .unavailable("It cannot be written into the audit: nothing was done.")
}
