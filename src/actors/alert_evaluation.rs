//! The decisions of the alert evaluator, without I/O: evaluates snapshots while this instance is the leader, and returns what to
//! write and send. [`super::alert_evaluator`] executes the decisions; the simulation runs them against models.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::alert_ledger::{Change, LeaseChange};
use super::messages::Deliver;
use crate::alerting::abandoned;
use crate::alerting::alert_manager::{self, AlertManager};
use crate::alerting::lifecycle::{Alert, Kind, Step};
use crate::alerting::message::span;
use crate::alerting::rule::Severity;
use crate::alerting::silences::Silence;
use crate::fleet::cleanup::Finding;
use crate::fleet::event::{Event, EventKind};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::postgres::alerts::OutboxRow;
use crate::postgres::events::NewRow;

/// A difference of at least this many seconds is a step of the wall clock; smaller ones are gradual corrections (slewing).
const STEP: f64 = 2.0;

/// State of the evaluation.
pub struct Evaluation {
    /// Rules and alerts.
    pub manager: AlertManager,
    /// This instance is the leader.
    acting: bool,
    /// Term of the decisions; see [`super::alert_ledger`].
    term: u64,
    /// The dispatcher may hold messages of this term.
    has_delivered: bool,
    /// Wall clock minus monotonic clock, seconds.
    ahead: f64,
    /// Findings of the janitor as last read; events about them list the queries.
    findings: Vec<Finding>,
}

/// What to publish after a change was written: events for the feed, and the list of fired alerts in Redis.
#[derive(Debug, Default)]
pub struct Announced {
    /// Alerts that fired or resolved.
    pub events: Vec<Arc<Event>>,
    /// Fired alerts, as JSON for the list in Redis.
    pub fired: Vec<String>,
}

/// Result of an evaluation.
#[derive(Debug, Default)]
pub struct Decision {
    /// Rows to write before the next evaluation; may be empty.
    pub change: Change,
    /// What to publish after they are written.
    pub announced: Announced,
    /// Seconds until the next evaluation if no snapshot arrives before.
    pub next_in: Option<f64>,
}

/// Result of a renewal of the lease.
#[derive(Debug, Default)]
pub struct Renewed {
    /// Messages for the dispatcher.
    pub deliver: Option<Deliver>,
    /// This instance became the leader.
    pub begins: bool,
    /// Acknowledged alerts, to write.
    pub acknowledged: Change,
    /// Cleanup runs whose alert exists.
    pub alerted: Vec<String>,
}

impl Evaluation {
    /// Returns an evaluation without alerts. It does not act before [`Self::renewed`] reports that this instance is the leader.
    #[must_use]
    pub fn new(manager: AlertManager, wall: f64, now: Mono) -> Self {
        Self {
            manager,
            acting: false,
            term: 0,
            has_delivered: false,
            ahead: wall - now.seconds(),
            findings: Vec::new(),
        }
    }

    /// Returns whether this instance is the leader.
    #[must_use]
    pub fn acting(&self) -> bool {
        self.acting
    }

    /// Shifts the timers of the alerts if the wall clock was stepped (corrected, or after a suspend).
    fn follow_clock(&mut self, wall: f64, now: Mono) {
        let ahead = wall - now.seconds();
        let step = ahead - self.ahead;
        if step.abs() >= STEP {
            tracing::warn!("the clock was stepped by {step:.0} s; alert timers are adjusted");
            self.manager.shift_timers(step);
        }
        self.ahead = ahead;
    }

    /// Applies the result of a renewal. `may_act`: whether this instance is the leader now.
    pub fn renewed(
        &mut self,
        news: LeaseChange,
        silences: Vec<Silence>,
        may_act: bool,
        findings: Vec<Finding>,
    ) -> Renewed {
        let mut renewed = Renewed::default();
        match news {
            LeaseChange::None => {}
            LeaseChange::Leads { term, alerts, waiting } => {
                self.term = term;
                self.manager.replace(alerts);
                renewed.deliver = Some(self.to_deliver(waiting, true));
                renewed.begins = true;
            }
            LeaseChange::Follows(alerts) => {
                if std::mem::take(&mut self.has_delivered) {
                    renewed.deliver = Some(self.to_deliver(Vec::new(), true));
                }
                self.manager.replace(alerts);
            }
        }
        self.acting = may_act;
        renewed.acknowledged = self.silenced(silences);
        if self.acting {
            // Findings become alerts with the next snapshot.
            self.findings.clone_from(&findings);
            let known = self.manager.take_findings(findings);
            renewed.alerted = known.into_iter().map(|finding| finding.pass).collect();
        }
        renewed
    }

    /// Applies the active silences and acknowledgements. Returns the alerts that became acknowledged, to write.
    pub fn silenced(&mut self, silences: Vec<Silence>) -> Change {
        let acknowledged = self.manager.set_silences(silences);
        Change { alerts: if self.acting { acknowledged } else { Vec::new() }, ..Change::default() }
    }

    /// Restores the state from the ledger after a restart of the actor. Returns the messages to deliver.
    pub fn read_back(&mut self, (term, alerts, waiting): (u64, Vec<Alert>, Vec<OutboxRow>)) -> Option<Deliver> {
        if !self.acting {
            self.term = term;
            self.manager.replace(alerts);
            self.acting = true;
        }
        (self.term == term).then(|| self.to_deliver(waiting, false))
    }

    /// Evaluates `snapshot` at `wall` (Unix seconds).
    pub fn judge(&mut self, snapshot: &Snapshot, wall: f64, now: Mono) -> Decision {
        self.follow_clock(wall, now);
        let changes = self.manager.advance(snapshot, wall);
        self.settle(changes, wall)
    }

    /// Evaluates what is due at `wall` (Unix seconds) without a snapshot.
    pub fn wake(&mut self, wall: f64, now: Mono) -> Decision {
        self.follow_clock(wall, now);
        self.settle(Vec::new(), wall)
    }

    /// Applies the cooldowns of an older monitor: alert keys, each with the seconds in which no notification is sent.
    pub fn take_over_cooldowns(&mut self, cooldowns: Vec<(String, f64)>, wall: f64, now: Mono) {
        self.follow_clock(wall, now);
        self.manager.take_over_cooldowns(cooldowns.into_iter().map(|(key, left)| (key, wall + left)).collect());
    }

    fn settle(&mut self, changes: Vec<alert_manager::Change>, wall: f64) -> Decision {
        let (due, notified) = self.manager.due(wall);
        let mut announced = Announced::default();
        let mut rows = Vec::new();
        for change in &changes {
            if change.step == Step::Fired {
                announced.fired.push(listed(&change.alert));
            }
            if let Some(event) = event(change, wall) {
                let mut row = NewRow::from(&*event).of_alert(&change.alert.key);
                if let Some(finding) = self.findings.iter().find(|found| abandoned::key(found) == change.alert.key) {
                    row = row.with("queries", json!(finding.queries));
                }
                rows.push(row);
                announced.events.push(event);
            }
        }
        let mut changed: BTreeMap<String, Alert> =
            changes.into_iter().map(|change| (change.alert.key.clone(), change.alert)).collect();
        changed.extend(notified.into_iter().map(|alert| (alert.key.clone(), alert)));
        let outbox: Vec<OutboxRow> = due
            .messages
            .iter()
            .flat_map(|outgoing| outgoing.channels.iter().map(|channel| OutboxRow::new(&outgoing.message, channel)))
            .collect();
        self.manager.prune();
        Decision {
            change: Change { alerts: changed.into_values().collect(), outbox, events: rows },
            announced,
            next_in: due.next.map(|next| next - wall),
        }
    }

    /// Returns the term of the decisions.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Another instance is the leader, so the decision was not written. The alerts are reloaded from the ledger before the next
    /// evaluation.
    pub fn refused(&mut self) {
        self.acting = false;
    }

    /// Returns written messages for the dispatcher.
    #[must_use]
    pub fn to_deliver(&mut self, rows: Vec<OutboxRow>, instead_of_all: bool) -> Deliver {
        self.has_delivered |= !rows.is_empty();
        Deliver { rows, instead_of_all, term: self.term }
    }
}

/// Formats a fired alert for the list in Redis.
fn listed(alert: &Alert) -> String {
    json!({
        "ts": alert.fired_at,
        "rule": alert.key,
        "severity": alert.severity,
        "detail": alert.detail,
        "message": alert.message,
    })
    .to_string()
}

/// Returns the event of a change for the archive and the feed; `None` for changes without an event.
fn event(change: &alert_manager::Change, now: f64) -> Option<Arc<Event>> {
    let alert = &change.alert;
    let (type_name, severity, ts, detail) = match change.step {
        Step::Fired => ("alert", alert.severity, alert.fired_at.unwrap_or(now), alert.detail.clone()),
        // The resolution is recorded although no notification of it was sent.
        Step::FiredAgain => ("alert", alert.severity, now, alert.detail.clone()),
        Step::Resolved if alert.kind != Kind::Happening => {
            let lasted = span(alert.lasted(now));
            let over = alert.resolved_at.unwrap_or(now);
            ("alert_resolved", Severity::Info, over, format!("{} resolved after {lasted}", alert.key))
        }
        _ => return None,
    };
    let detail = match alert.kind {
        Kind::Rule if type_name == "alert" => format!("{}: {detail}", alert.rule),
        _ => detail,
    };
    let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{type_name}\n{}\n{ts}", alert.key).as_bytes()).to_string();
    let subject = alert.subject.clone().unwrap_or_else(|| alert.rule.clone());
    let kind = EventKind::Recorded { type_name: type_name.to_owned(), severity, detail };
    Some(Arc::new(Event { ts, subject, kind, key, running: (0, 0) }))
}
