//! How the API tells the audit.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::AuditQuery;
use crate::access::Role;
use crate::web::openapi::operation::{Group, Operation};

/// Changes that somebody asked for.
#[derive(Serialize, JsonSchema)]
pub(super) struct Changes {
    /// Newest first.
    pub(super) changes: Vec<ChangeTold>,
    /// The `before` of what follows; `null` at the end.
    pub(super) next: Option<i64>,
}

/// A change that somebody asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AuditedChange")]
pub(super) struct ChangeTold {
    /// Counts up.
    pub(super) id: i64,
    /// When it was asked for, Unix seconds.
    pub(super) ts: f64,
    /// By whom.
    pub(super) who: String,
    /// As what.
    #[schemars(extend("enum" = Role::ALL))]
    pub(super) role: String,
    /// From which address.
    pub(super) address: String,
    /// What was asked for.
    pub(super) action: String,
    /// With which parameters.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub(super) parameters: Value,
    /// How it ended; `begun` until that is known.
    #[schemars(extend("enum" = ["begun", "done", "refused", "failed"]))]
    pub(super) outcome: String,
    /// What was answered; `null` until that is known.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub(super) result: Option<Value>,
    /// When it ended, Unix seconds.
    pub(super) ended: Option<f64>,
}

/// `GET /api/admin/audit`.
pub fn list() -> Operation {
    Operation::new(
        Group::Admin,
        "Who changed what",
        "A change is written down before it begins, and completed after it; kept as long as events are.",
    )
    .query::<AuditQuery>()
    .answers::<Changes>("Changes, newest first.")
    .unavailable("Postgres cannot be read.")
}
