//! Built-in alerts about worker types at zero and lost workers.
//!
//! They depend on the states in the snapshot, which survive a restart. The tracker's events add only the previous
//! number of workers; the alert is the same without them.

use std::collections::{BTreeMap, BTreeSet};

use super::lifecycle::{Identity, Kind, Seen};
use super::rule::Severity;
use crate::contract::Name;
use crate::fleet::event::{Event, EventKind};
use crate::fleet::snapshot::{Snapshot, WorkerTypeStatus};
use crate::fleet::worker_type::TypeState;

/// Cooldown after a notification about a worker type, seconds.
pub const COOLDOWN: f64 = 600.0;
/// Time without another loss after which a loss alert ends, seconds; it ends earlier when the type has its previous
/// number of workers.
const LOSS_IS_NEWS: f64 = 600.0;

/// Observation of one alert.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerTypeView {
    /// Identity of the alert.
    pub identity: Identity,
    /// Observation.
    pub seen: Seen,
    /// One-line description.
    pub detail: String,
    /// Message text.
    pub message: String,
}

/// Filter for relevant observations: those whose condition holds, and any observation of existing alerts. For a healthy
/// fleet it passes nothing, so no text is formatted.
pub struct News<'a>(BTreeSet<&'a str>);

impl<'a> News<'a> {
    /// Returns the filter for the rules of existing alerts.
    pub fn of(rules: impl Iterator<Item = &'a str>) -> Self {
        Self(rules.collect())
    }

    /// Whether the observation `seen` of an alert by `rule` is relevant.
    #[must_use]
    pub fn has(&self, rule: &str, seen: Seen) -> bool {
        matches!(seen, Seen::Holds(_)) || self.0.contains(rule)
    }
}

/// Number of workers of each type before its losses.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    before: BTreeMap<String, u32>,
}

impl Losses {
    /// Applies events.
    pub fn take(&mut self, events: &[std::sync::Arc<Event>]) {
        for event in events {
            if let EventKind::ConsumerLost { remaining, .. } = &event.kind {
                let lost = events.iter().filter(|other| {
                    other.subject == event.subject && matches!(other.kind, EventKind::ConsumerLost { .. })
                });
                let lost = u32::try_from(lost.count()).unwrap_or(u32::MAX);
                let before = self.before.entry(event.subject.clone()).or_insert(0);
                *before = (*before).max(remaining.saturating_add(lost));
            }
        }
    }

    /// Reports the observations of all worker types that are relevant according to `news`; none while Redis is
    /// unreachable.
    pub fn look(&mut self, snapshot: &Snapshot, news: &News, mut tell: impl FnMut(WorkerTypeView)) {
        if !snapshot.redis.source.is_current() {
            return;
        }
        for (name, status) in &snapshot.workers {
            for (rule, state) in [("worker_crashed", TypeState::Crashed), ("worker_zero", TypeState::ScaledDown)] {
                let seen = match status.state {
                    TypeState::Unknown if status.last_alive_count == 0 => Seen::Missing,
                    TypeState::Unknown if state == TypeState::ScaledDown => Seen::Holds(Some(0.0)),
                    is if is == state => Seen::Holds(Some(0.0)),
                    _ => Seen::Clear(Some(f64::from(status.alive))),
                };
                if news.has(rule, seen) {
                    tell(at_zero(rule, seen, &name.to_text(), status));
                }
            }
            let seen = self.lost(name, status, snapshot.ts);
            if news.has("workers_lost", seen) {
                tell(some_lost(seen, &name.to_text(), status));
            }
        }
    }

    fn lost(&mut self, name: &Name, status: &WorkerTypeStatus, ts: f64) -> Seen {
        // A loss from before the type was last at zero was part of that alert.
        let since_it_lives = |at: f64| status.state_changed_at.is_none_or(|alive| alive < at);
        let recent =
            status.lost_open > 0 && status.lost_at.is_some_and(|at| ts - at < LOSS_IS_NEWS && since_it_lives(at));
        let may_hold = recent && status.state == TypeState::Alive;
        let present = present(status);
        if may_hold && self.before.get(&name.to_text()).is_none_or(|before| present < *before) {
            return Seen::Holds(Some(f64::from(status.lost)));
        }
        if !may_hold && !self.before.is_empty() {
            self.before.remove(&name.to_text());
        }
        Seen::Clear(Some(f64::from(present)))
    }
}

/// Keys of the alerts about a worker type at zero.
pub fn keys_at_zero(worker_type: &Name) -> impl Iterator<Item = String> + use<> {
    let name = worker_type.to_text();
    ["worker_crashed", "worker_zero"].into_iter().map(move |rule| format!("{rule}:{name}"))
}

fn present(status: &WorkerTypeStatus) -> u32 {
    status.alive + status.stale
}

fn identity(rule: &str, worker: &str, kind: Kind, severity: Severity) -> Identity {
    Identity {
        key: format!("{rule}:{worker}"),
        rule: rule.to_owned(),
        subject: Some(worker.to_owned()),
        kind,
        severity,
    }
}

/// Text in the detail of an alert about a type that went to zero unobserved.
pub(super) const UNOBSERVED: &str = "went to 0 while no monitor was running";

fn at_zero(rule: &str, seen: Seen, worker: &str, status: &WorkerTypeStatus) -> WorkerTypeView {
    let was = status.last_alive_count;
    let (detail, message) = if rule == "worker_crashed" {
        (
            format!("{worker} dropped from {was} to 0 with no shutdown marker"),
            format!("Worker {worker} crashed: was {was}, now 0; at least one did not shut down gracefully."),
        )
    } else if status.state == TypeState::Unknown {
        (
            format!("{worker} {UNOBSERVED} (was {was})"),
            format!("Worker {worker}: was {was}, now 0. No monitor was running, so the cause is unknown."),
        )
    } else {
        (
            format!("{worker} cleanly scaled down to 0 (was {was})"),
            format!("Worker {worker} scaled to zero: graceful shutdown (was {was}). The stream has no workers."),
        )
    };
    WorkerTypeView { identity: identity(rule, worker, Kind::WorkerDown, Severity::Critical), seen, detail, message }
}

fn some_lost(seen: Seen, worker: &str, status: &WorkerTypeStatus) -> WorkerTypeView {
    let (lost, present) = (status.lost, present(status));
    WorkerTypeView {
        identity: identity("workers_lost", worker, Kind::PartialLoss, Severity::Warning),
        seen,
        detail: format!("{worker}: {lost} lost (heartbeat expired), {present} running"),
        message: format!(
            "Worker {worker}: {lost} lost (heartbeat expired without a graceful shutdown); {present} running."
        ),
    }
}
