//! How long an entry must lie idle before anyone may take it from its owner.
//!
//! The monitor uses the same floor to tell a hung worker from a busy one.

use std::time::Duration;

use super::Name;

/// The floor of streams that the contract does not name (`RECLAIM_MIN_IDLE_SEC`).
pub const DEFAULT: Duration = Duration::from_secs(30);

/// The reclaim floor of `stream`; `default` applies to streams the contract does not list.
#[must_use]
pub fn reclaim_floor(stream: &Name, default: Duration) -> Duration {
    match stream.as_bytes() {
        b"aragorn.lookup"
        | b"aragorn.pathfinder"
        | b"aragorn.omnicorp"
        | b"aragorn.score"
        | b"bte.lookup"
        | b"example.lookup"
        | b"finish_query" => Duration::from_secs(240),
        b"arax.rank" | b"merge_message" | b"score_paths" => Duration::from_secs(60),
        b"example.score" => Duration::from_secs(30),
        _ => default,
    }
}
