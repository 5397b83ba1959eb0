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
    /// A type has no workers.
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
        } else if types.any(|status| status.state != TypeState::Alive) {
            Self::TypeAtZero
        } else {
            Self::Idle
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::Name;
    use crate::fleet::fixtures::{first_snapshot, no_connection};
    use crate::fleet::snapshot::WorkerTypeStatus;
    use crate::fleet::worker_type::WorkerType;

    fn consumer(state: ConsumerState, state_since: f64) -> ConsumerStatus {
        ConsumerStatus {
            consumer: "c".into(),
            state,
            state_since,
            started_at: None,
            last_seen: None,
            task_limit: None,
            stale: false,
            pending: None,
            phantom_pending: None,
            idle_ms: None,
            in_flight: None,
            unreadable: None,
        }
    }

    #[test]
    fn searches_while_a_worker_may_be_replaced_or_a_type_has_none() {
        let search = |state: TypeState, consumers: Vec<ConsumerStatus>| {
            let mut snapshot = first_snapshot(Err(no_connection()));
            snapshot.ts = 1000.0;
            let unknown = WorkerTypeStatus::of(&WorkerType::unknown(), None, Duration::ZERO, 0.0);
            let status = WorkerTypeStatus { state, consumers, ..unknown };
            snapshot.workers = [(Name::from("a"), status)].into();
            Search::of(&snapshot)
        };
        use ConsumerState::{Alive, Left, Lost, Suspect};
        assert_eq!(search(TypeState::Alive, vec![consumer(Alive, 999.0), consumer(Left, 800.0)]), Search::Idle);
        assert_eq!(search(TypeState::Alive, vec![consumer(Alive, 0.0), consumer(Left, 881.0)]), Search::Replacement);
        assert_eq!(search(TypeState::Crashed, vec![consumer(Lost, 990.0)]), Search::Replacement);
        assert_eq!(search(TypeState::Alive, vec![consumer(Suspect, 0.0)]), Search::Replacement);
        assert_eq!(search(TypeState::Crashed, vec![consumer(Lost, 0.0)]), Search::TypeAtZero);
        assert_eq!(search(TypeState::Unknown, Vec::new()), Search::TypeAtZero);
    }
}
