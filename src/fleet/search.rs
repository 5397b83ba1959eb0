//! When to look for workers that no consumer group lists.
//!
//! Before Redis 7.2, a worker joins its group with its first message: one that waits on an empty stream is known by its
//! heartbeat only, which a scan of the keyspace finds. It matters when a worker may have replaced another one, since its
//! type would be shown with too few workers, or with none.

use super::consumer::ConsumerState;
use super::snapshot::{ConsumerStatus, Snapshot};
use super::worker_type::TypeState;

/// Time after the exit of a worker in which a replacement is expected, seconds.
const REPLACED_WITHIN_SEC: f64 = 120.0;

/// How urgently unlisted workers are searched for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Search {
    /// No unlisted worker is expected.
    #[default]
    Idle,
    /// A known type has no workers.
    TypeAtZero,
    /// A worker has just exited, or its heartbeat is late.
    Replacement,
}

impl Search {
    /// Returns the search that `snapshot` calls for.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut types = snapshot.workers.values();
        let may_be_replaced = |consumer: &ConsumerStatus| {
            let exited = consumer.state.is_gone() && snapshot.ts - consumer.state_since < REPLACED_WITHIN_SEC;
            exited || consumer.state == ConsumerState::Suspect
        };
        if types.clone().any(|status| status.consumers.iter().any(may_be_replaced)) {
            Self::Replacement
        } else if types.any(|status| matches!(status.state, TypeState::ScaledDown | TypeState::Crashed)) {
            Self::TypeAtZero
        } else {
            Self::Idle
        }
    }
}
