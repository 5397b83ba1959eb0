//! Worker types at zero and workers lost: alerts that need no rule.
//!
//! They hang on the snapshot's states, which outlive a restart. What the tracker tells of each
//! change adds only how many a type had; if that message is lost, the alert is the same.

use std::collections::BTreeMap;

use super::lifecycle::{Identity, Kind, Seen};
use super::rule::Severity;
use crate::contract::Name;
use crate::fleet::event::{Event, EventKind};
use crate::fleet::snapshot::{Snapshot, WorkerTypeStatus};
use crate::fleet::worker_type::TypeState;

/// Quiet time after a notification about a worker type.
pub const COOLDOWN: f64 = 600.0;
/// A loss is over when the type has as many as before, or after this long without another.
const LOSS_IS_NEWS: f64 = 600.0;

/// What is said of one alert: which, what is seen, its detail and its message.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// Which alert.
    pub identity: Identity,
    /// What is seen of it.
    pub seen: Seen,
    /// One line.
    pub detail: String,
    /// The text for people.
    pub message: String,
}

/// How many workers each type had before it lost some.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    before: BTreeMap<String, u32>,
}

impl Losses {
    /// Takes in what happened.
    pub fn take(&mut self, events: &[std::sync::Arc<Event>]) {
        for event in events {
            if let EventKind::ConsumersLost { consumers, remaining, .. } = &event.kind {
                let lost = u32::try_from(consumers.len()).unwrap_or(u32::MAX);
                let before = self.before.entry(event.subject.clone()).or_insert(0);
                *before = (*before).max(remaining.saturating_add(lost));
            }
        }
    }

    /// What is seen of every worker type. Nothing is said while Redis cannot be read.
    pub fn look(&mut self, snapshot: &Snapshot, mut tell: impl FnMut(Sighting)) {
        if !snapshot.redis.source.is_current() {
            return;
        }
        for (name, status) in &snapshot.workers {
            self.look_at(name, status, snapshot.ts, &mut tell);
        }
    }

    fn look_at(&mut self, name: &Name, status: &WorkerTypeStatus, ts: f64, tell: &mut impl FnMut(Sighting)) {
        let worker = name.to_text();
        let was = status.last_alive_count;
        let identity = |rule: &str, kind, severity| Identity {
            key: format!("{rule}:{worker}"),
            rule: rule.to_owned(),
            subject: Some(worker.clone()),
            kind,
            severity,
        };
        for (rule, state, detail, message) in [
            (
                "worker_crashed",
                TypeState::Crashed,
                format!("{worker} dropped from {was} to 0 with no shutdown marker"),
                format!("Worker {worker} crashed: was {was}, now 0, and not all of them said goodbye."),
            ),
            (
                "worker_zero",
                TypeState::ScaledDown,
                format!("{worker} cleanly scaled down to 0 (was {was})"),
                format!("Worker {worker} scaled down to 0 in good order (was {was}). Nobody serves its stream."),
            ),
        ] {
            let seen = match status.state {
                TypeState::Unknown => Seen::Missing,
                is if is == state => Seen::Holds(Some(0.0)),
                _ => Seen::Clear(Some(f64::from(status.alive))),
            };
            tell(Sighting { identity: identity(rule, Kind::WorkerDown, Severity::Critical), seen, detail, message });
        }
        // A loss from before the type was last at zero was told as that.
        let since_it_lives = |at: f64| status.state_changed_at.is_none_or(|alive| alive < at);
        let recent = status.lost > 0 && status.lost_at.is_some_and(|at| ts - at < LOSS_IS_NEWS && since_it_lives(at));
        let present = status.alive + status.stale;
        let missing = self.before.get(&worker).is_none_or(|before| present < *before);
        let holds = recent && missing && status.state == TypeState::Alive;
        if status.state != TypeState::Alive || !recent {
            self.before.remove(&worker);
        }
        let lost = status.lost;
        tell(Sighting {
            identity: identity("workers_lost", Kind::PartialLoss, Severity::Warning),
            seen: if holds { Seen::Holds(Some(f64::from(lost))) } else { Seen::Clear(Some(f64::from(present))) },
            detail: format!("{worker} lost {lost} without a goodbye, {present} left"),
            message: format!("Worker {worker} lost {lost} of its processes without a goodbye; {present} are left."),
        });
    }
}
