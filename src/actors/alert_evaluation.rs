//! What the alert evaluator decides, without its I/O: judges snapshots while this monitor leads, and says what to write
//! down and to send. [`super::alert_evaluator`] does what it says; the simulation runs it on models.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::alert_ledger::{Change, News};
use super::messages::Deliver;
use crate::alerting::abandoned;
use crate::alerting::board::{self, Board};
use crate::alerting::lifecycle::{Alert, Kind, Step};
use crate::alerting::message::span;
use crate::alerting::quiet::Silence;
use crate::alerting::rule::Severity;
use crate::fleet::cleanup::Finding;
use crate::fleet::event::{Event, EventKind};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::postgres::alerts::OutboxRow;
use crate::postgres::events::NewRow;

/// A step of the wall clock, seconds; less is taken for the slow correction of a clock that runs fast or slow.
const STEP: f64 = 2.0;

/// The state of the evaluation.
pub struct Evaluation {
    /// Rules and alerts.
    pub board: Board,
    /// This monitor leads.
    acting: bool,
    /// The term in which the board goes on; see [`super::alert_ledger`].
    term: u64,
    /// The dispatcher may have messages of this term.
    has_delivered: bool,
    /// By how many seconds the wall clock is ahead of the one that never jumps.
    ahead: f64,
    /// What the janitor found, as it was read last: the events about it say which queries.
    findings: Vec<Finding>,
}

/// What became known beside the tables once a change is written there: by the feed, and by Redis, where alerts that
/// fired are listed.
#[derive(Debug, Default)]
pub struct Announced {
    /// Alerts that fired or resolved.
    pub events: Vec<Arc<Event>>,
    /// Alerts that fired, as Redis lists them.
    pub fired: Vec<String>,
}

/// What a decision comes to.
#[derive(Debug, Default)]
pub struct Decision {
    /// To write down before anything else is judged; may be empty.
    pub change: Change,
    /// What becomes known then.
    pub announced: Announced,
    /// So many seconds later something is due even if nothing happens until then.
    pub next_in: Option<f64>,
}

/// What a renewal of the lease comes to.
#[derive(Debug, Default)]
pub struct Renewed {
    /// For the dispatcher.
    pub deliver: Option<Deliver>,
    /// Leads from now on.
    pub begins: bool,
    /// Alerts that were acknowledged, to write down.
    pub acknowledged: Change,
    /// Runs of the janitor that have their alert by now.
    pub alerted: Vec<String>,
}

impl Evaluation {
    /// An evaluation without alerts; it does not act before [`Self::renewed`] says that this monitor leads.
    #[must_use]
    pub fn new(board: Board, wall: f64, now: Mono) -> Self {
        Self { board, acting: false, term: 0, has_delivered: false, ahead: wall - now.seconds(), findings: Vec::new() }
    }

    /// Whether this monitor leads.
    #[must_use]
    pub fn acting(&self) -> bool {
        self.acting
    }

    /// If the wall clock was stepped (corrected, or the machine was suspended), the timers of the alerts are moved with
    /// it.
    fn follow_clock(&mut self, wall: f64, now: Mono) {
        let ahead = wall - now.seconds();
        let step = ahead - self.ahead;
        if step.abs() >= STEP {
            tracing::warn!("the clock was stepped by {step:.0} s; alert timers are adjusted");
            self.board.shift_timers(step);
        }
        self.ahead = ahead;
    }

    /// Takes in what a renewal of the lease found. `may_act`: whether this monitor leads now.
    pub fn renewed(&mut self, news: News, silences: Vec<Silence>, may_act: bool, findings: Vec<Finding>) -> Renewed {
        let mut renewed = Renewed::default();
        match news {
            News::None => {}
            News::Leads { term, alerts, waiting } => {
                self.term = term;
                self.board.replace(alerts);
                renewed.deliver = Some(self.to_deliver(waiting, true));
                renewed.begins = true;
            }
            News::Follows(alerts) => {
                if std::mem::take(&mut self.has_delivered) {
                    renewed.deliver = Some(self.to_deliver(Vec::new(), true));
                }
                self.board.replace(alerts);
            }
        }
        self.acting = may_act;
        renewed.acknowledged = self.silenced(silences);
        if self.acting {
            // What the janitor found becomes an alert with the next snapshot.
            self.findings.clone_from(&findings);
            let known = self.board.take_findings(findings);
            renewed.alerted = known.into_iter().map(|finding| finding.pass).collect();
        }
        renewed
    }

    /// Takes in the silences and acknowledgements in force; the alerts that were acknowledged by that, to write down.
    pub fn silenced(&mut self, silences: Vec<Silence>) -> Change {
        let acknowledged = self.board.set_silences(silences);
        Change { alerts: if self.acting { acknowledged } else { Vec::new() }, ..Change::default() }
    }

    /// Goes on from what the ledger knows, after this part of the monitor fell; what is to be delivered.
    pub fn read_back(&mut self, (term, alerts, waiting): (u64, Vec<Alert>, Vec<OutboxRow>)) -> Option<Deliver> {
        if !self.acting {
            self.term = term;
            self.board.replace(alerts);
            self.acting = true;
        }
        (self.term == term).then(|| self.to_deliver(waiting, false))
    }

    /// The alerts as they are after `snapshot`, at `wall` (Unix seconds).
    pub fn judge(&mut self, snapshot: &Snapshot, wall: f64, now: Mono) -> Decision {
        self.follow_clock(wall, now);
        let changes = self.board.advance(snapshot, wall);
        self.settle(changes, wall)
    }

    /// What is due at `wall` without a snapshot.
    pub fn wake(&mut self, wall: f64, now: Mono) -> Decision {
        self.follow_clock(wall, now);
        self.settle(Vec::new(), wall)
    }

    /// An older monitor sent these alerts; no notification of them for so many seconds.
    pub fn take_over_cooldowns(&mut self, cooldowns: Vec<(String, f64)>, wall: f64, now: Mono) {
        self.follow_clock(wall, now);
        self.board.take_over_cooldowns(cooldowns.into_iter().map(|(key, left)| (key, wall + left)).collect());
    }

    fn settle(&mut self, changes: Vec<board::Change>, wall: f64) -> Decision {
        let (due, notified) = self.board.due(wall);
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
        self.board.prune();
        Decision {
            change: Change { alerts: changed.into_values().collect(), outbox, events: rows },
            announced,
            next_in: due.next.map(|next| next - wall),
        }
    }

    /// The term in which a decision is made.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A decision was refused: another monitor leads. The board goes on from what is written down before it is asked
    /// again.
    pub fn refused(&mut self) {
        self.acting = false;
    }

    /// What was written down, to be sent.
    #[must_use]
    pub fn to_deliver(&mut self, rows: Vec<OutboxRow>, instead_of_all: bool) -> Deliver {
        self.has_delivered |= !rows.is_empty();
        Deliver { rows, instead_of_all, term: self.term }
    }
}

/// An alert that fired, as Redis lists it.
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

/// What the archive and the feed say of a change; nothing of one that nobody has to know.
fn event(change: &board::Change, now: f64) -> Option<Arc<Event>> {
    let alert = &change.alert;
    let (type_name, severity, ts, detail) = match change.step {
        Step::Fired => ("alert", alert.severity, alert.fired_at.unwrap_or(now), alert.detail.clone()),
        // Its end is recorded, although nobody was notified of that.
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
