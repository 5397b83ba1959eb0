//! OpenAPI descriptions of the janitor's routes and their responses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::PassesQuery;
use crate::fleet::cleanup::{AbandonedQuery, Outcome, PassRecord};
use crate::web::openapi::operation::{Group, Operation};

/// Result of a cleanup run.
#[derive(Serialize, JsonSchema)]
pub(super) struct CleanedUp {
    /// Messages removed from each stream, by name.
    pub(super) streams: Vec<Trimmed>,
    /// Callbacks deleted.
    pub(super) callbacks_deleted: u64,
    /// Queries marked as abandoned (first 500); `details.queries.abandoned` counts all.
    pub(super) abandoned_queries: Vec<AbandonedQuery>,
    /// Consumers deleted.
    pub(super) stale_consumers: StaleConsumers,
    /// Phantom pending IDs that were acknowledged.
    pub(super) phantom_pending: PhantomsAcknowledged,
    /// History retention; runs daily, never as part of a cleanup run.
    pub(super) history_retention: Retention,
    /// Query retention; runs as part of a cleanup run, once a day.
    pub(super) query_retention: Retention,
    /// Full details of the run.
    pub(super) details: Outcome,
}

/// Messages removed from a stream.
#[derive(Serialize, JsonSchema)]
pub(super) struct Trimmed {
    /// The stream.
    pub(super) stream: String,
    /// Entries removed.
    pub(super) trimmed: u64,
    /// Stream length before.
    pub(super) before: u64,
    /// Stream length afterwards.
    pub(super) after: u64,
}

/// Deleted consumers that had no heartbeat and no pending messages.
#[derive(Serialize, JsonSchema)]
pub(super) struct StaleConsumers {
    /// Number of consumers.
    pub(super) deleted: u64,
    /// By stream; streams without any are omitted.
    pub(super) by_stream: BTreeMap<String, u64>,
}

/// Pending IDs whose entry is no longer in the stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PhantomPendingAcknowledged")]
pub(super) struct PhantomsAcknowledged {
    /// Number acknowledged.
    pub(super) acknowledged: u64,
    /// Number kept because a worker may still be processing them.
    pub(super) kept: u64,
    /// Acknowledged, by stream; streams without any are omitted.
    pub(super) by_stream: BTreeMap<String, u64>,
}

/// Result of a daily retention job.
#[derive(Serialize, JsonSchema)]
pub(super) struct Retention {
    /// Not due in this run.
    pub(super) skipped: bool,
    /// Last run, Unix seconds; `null` if unknown.
    pub(super) last_run: Option<f64>,
    /// Rows deleted in this run; `null` if skipped.
    pub(super) deleted: Option<u64>,
}

/// Recent cleanup runs.
#[derive(Serialize, JsonSchema)]
pub(super) struct Passes {
    /// Newest first.
    pub(super) passes: Vec<PassRecord>,
}

/// A removed worker type.
#[derive(Serialize, JsonSchema)]
pub(super) struct Forgot {
    /// Its name.
    pub(super) forgot: String,
}

/// The worker type to remove.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct ForgetQuery {
    /// The worker type.
    #[schemars(example = &"example.score")]
    name: String,
}

/// `POST /api/admin/cleanup`.
pub fn cleanup() -> Operation {
    Operation::new(
        Group::Admin,
        "Run cleanup",
        "Runs the cleanup that is otherwise scheduled every 5 minutes: acknowledges phantom pending IDs, removes \
         finished messages, deletes stale consumers and callbacks of finished queries, and marks timed-out queries \
         as abandoned. Pending and undelivered messages are never removed. For some seconds after startup, steps \
         that depend on missing heartbeats or on Postgres are skipped: `details.left_out` lists them with the \
         reason, and `Retry-After` says when to retry.",
    )
    .answers::<CleanedUp>("Result of the cleanup run.")
    .unavailable(
        "Cleanup is not possible now: Redis or Postgres is unreachable, or another instance is running \
     it. `Retry-After` says when to retry.",
    )
}

/// `GET /api/admin/passes`.
pub fn passes() -> Operation {
    Operation::new(Group::Admin, "List cleanup runs", "The last 500 cleanup runs are kept.")
        .query::<PassesQuery>()
        .answers::<Passes>("Cleanup runs, newest first.")
        .unavailable("Postgres is unreachable.")
}

/// `POST /api/admin/forget_worker`.
pub fn forget_worker() -> Operation {
    Operation::new(
        Group::Admin,
        "Forget a worker type",
        "Deletes the state of a worker type and resolves its alerts. It is added again if it reappears.",
    )
    .query::<ForgetQuery>()
    .answers::<Forgot>("The worker type was removed.")
    .unavailable("The audit log cannot be written, or Redis is unreachable; nothing was changed.")
}
