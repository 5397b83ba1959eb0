//! How the API tells the audit.

use schemars::JsonSchema;
use serde::Serialize;

use super::AuditQuery;
use crate::access::AuditedChange;
use crate::web::openapi::operation::{Group, Operation};

/// Changes that somebody asked for.
#[derive(Serialize, JsonSchema)]
pub(super) struct Changes {
    /// Newest first.
    pub(super) changes: Vec<AuditedChange>,
    /// The `before` of what follows; `null` at the end.
    pub(super) next: Option<i64>,
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
