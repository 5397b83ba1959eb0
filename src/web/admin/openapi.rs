//! How the API tells the janitor: what it answers, and each route.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::PassesQuery;
use crate::fleet::cleanup::{AbandonedQuery, Outcome, PassRecord};
use crate::web::openapi::operation::{Group, Operation};

/// What a pass came to.
#[derive(Serialize, JsonSchema)]
pub(super) struct CleanedUp {
    /// What was removed from each stream, by name.
    pub(super) streams: Vec<Trimmed>,
    /// Callbacks deleted.
    pub(super) callbacks_deleted: u64,
    /// The queries that were marked as abandoned, the first 500 of them; `details.queries.abandoned` counts all.
    pub(super) abandoned_queries: Vec<AbandonedQuery>,
    /// Consumers deleted.
    pub(super) stale_consumers: StaleConsumers,
    /// Phantom pending IDs that were acknowledged.
    pub(super) phantom_pending: PhantomsAcknowledged,
    /// Old history: it is swept once a day by itself, never by a pass.
    pub(super) history_retention: Retention,
    /// Final queries that are old: deleted by a pass, once a day.
    pub(super) query_retention: Retention,
    /// Everything that is known of it.
    pub(super) details: Outcome,
}

/// What was removed from a stream.
#[derive(Serialize, JsonSchema)]
pub(super) struct Trimmed {
    /// The stream.
    pub(super) stream: String,
    /// Entries removed.
    pub(super) trimmed: u64,
    /// Entries before.
    pub(super) before: u64,
    /// Entries afterwards.
    pub(super) after: u64,
}

/// Consumers without heartbeat and without work that were deleted.
#[derive(Serialize, JsonSchema)]
pub(super) struct StaleConsumers {
    /// How many.
    pub(super) deleted: u64,
    /// The same by stream; streams without any are not in it.
    pub(super) by_stream: BTreeMap<String, u64>,
}

/// Pending IDs whose entry is no longer in the stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PhantomPendingAcknowledged")]
pub(super) struct PhantomsAcknowledged {
    /// How many were acknowledged.
    pub(super) acknowledged: u64,
    /// How many were kept, since a worker may be at work on them.
    pub(super) kept: u64,
    /// The acknowledged ones by stream; streams without any are not in it.
    pub(super) by_stream: BTreeMap<String, u64>,
}

/// What is deleted once a day because of its age.
#[derive(Serialize, JsonSchema)]
pub(super) struct Retention {
    /// It was not due in this pass.
    pub(super) skipped: bool,
    /// When it was done last, Unix seconds; `null` when that is not known.
    pub(super) last_run: Option<f64>,
    /// How many were deleted in this pass; `null` when it was skipped.
    pub(super) deleted: Option<u64>,
}

/// What the last passes came to.
#[derive(Serialize, JsonSchema)]
pub(super) struct Passes {
    /// Newest first.
    pub(super) passes: Vec<PassRecord>,
}

/// A worker type is forgotten.
#[derive(Serialize, JsonSchema)]
pub(super) struct Forgot {
    /// Its name.
    pub(super) forgot: String,
}

/// Which worker type.
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
        "Clean up now",
        "A pass of the janitor, as it makes one every five minutes: phantom pending IDs, finished entries, consumers that \
         are long gone, callbacks and queries that nothing will finish. Nothing that somebody still needs is touched. \
         During the first seconds after a start, parts that depend on absent heartbeats or on Postgres are skipped: \
         `details.left_out` says which and why, and the header `Retry-After` when to ask again.",
    )
    .answers::<CleanedUp>("What the pass came to.")
    .unavailable("There is no pass now: Redis or Postgres cannot be read, or another monitor makes one. `Retry-After` says when to ask again.")
}

/// `GET /api/admin/passes`.
pub fn passes() -> Operation {
    Operation::new(Group::Admin, "What passes came to", "The last five hundred passes of the janitor are kept.")
        .query::<PassesQuery>()
        .answers::<Passes>("Passes, newest first.")
        .unavailable("Postgres cannot be read.")
}

/// `POST /api/admin/forget_worker`.
pub fn forget_worker() -> Operation {
    Operation::new(
        Group::Admin,
        "Forget a worker type",
        "As if it had never been seen: its record goes, its alerts end. It is learned again if it reappears.",
    )
    .query::<ForgetQuery>()
    .answers::<Forgot>("It is forgotten.")
    .unavailable("It cannot be written into the audit, or Redis is away: nothing was done.")
}
