//! Reclaim thresholds: the minimum idle time before an entry may be claimed from its owner.
//!
//! The monitor uses the same thresholds to distinguish hung workers from busy ones.

use std::time::Duration;

use super::Name;

/// Threshold of streams without one of their own (`RECLAIM_MIN_IDLE_SEC`).
pub const DEFAULT: Duration = Duration::from_secs(30);

/// Returns the reclaim threshold of `stream`, or `default` if it has none of its own.
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
