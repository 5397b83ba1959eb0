//! How the API tells the janitor: what it answers, and each route.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::PassesQuery;
use crate::fleet::cleanup::{Outcome, PassRecord};
use crate::web::openapi::operation::{Group, Operation};

/// What a pass came to.
#[derive(Serialize, JsonSchema)]
pub(super) struct CleanedUp {
    /// Entries removed, by stream.
    pub(super) streams: BTreeMap<String, u64>,
    /// Callbacks deleted.
    pub(super) callbacks_deleted: u64,
    /// Queries called abandoned.
    pub(super) abandoned_queries: u64,
    /// Consumers deleted.
    pub(super) stale_consumers: u64,
    /// Always `null`: history is swept once a day by itself.
    pub(super) history_retention: Option<u64>,
    /// Final queries deleted because of their age; `null` when that was not due.
    pub(super) query_retention: Option<u64>,
    /// Everything that is known of it.
    pub(super) details: Outcome,
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
        "A pass of the janitor, as it makes one every five minutes: finished entries, consumers that are long gone, \
         callbacks and queries that nothing will finish. Nothing that somebody still needs is touched.",
    )
    .answers::<CleanedUp>("What the pass came to.")
    .unavailable("There is no pass now: Redis is not believed, or another monitor makes one.")
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
