//! OpenAPI description of the audit log.

use schemars::JsonSchema;
use serde::Serialize;

use super::AuditQuery;
use crate::access::AuditedChange;
use crate::web::openapi::operation::{Group, Operation};

/// Audited changes.
#[derive(Serialize, JsonSchema)]
pub(super) struct Changes {
    /// Newest first.
    pub(super) changes: Vec<AuditedChange>,
    /// Value of `before` for the next page; `null` on the last page.
    pub(super) next: Option<i64>,
}

/// `GET /api/admin/audit`.
pub fn list() -> Operation {
    Operation::new(
        Group::Admin,
        "List audited changes",
        "Each change is recorded before it starts and updated when it ends. Logins and denied requests are recorded too: \
         see `show`. Kept as long as events.",
    )
    .query::<AuditQuery>()
    .answers::<Changes>("Changes, newest first.")
    .unavailable("Postgres is unreachable.")
}
