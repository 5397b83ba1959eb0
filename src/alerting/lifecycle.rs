//! State machine of one alert: inactive → pending → firing → resolved. `now` is an argument.
//!
//! The notification state is part of the alert, so that a notification is still sent after a restart between firing and
//! sending.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rule::Severity;
use super::silences::Acknowledged;

/// Observation of an alert's condition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen {
    /// No data: neither fires nor resolves.
    Missing,
    /// The condition does not hold; with the value.
    Clear(Option<f64>),
    /// The condition holds; with the value.
    Holds(Option<f64>),
}

/// State of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The condition holds, but not for long enough yet.
    Pending,
    /// The condition held for the required time.
    Firing,
    /// It was firing and has ended.
    Resolved,
}

/// Kind of an alert, where the handling differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Alert of a rule.
    Rule,
    /// A worker type is at zero.
    WorkerDown,
    /// Some workers of a type were lost.
    PartialLoss,
    /// A data source is unreachable, or a channel is broken.
    Source,
    /// An event: notified once, without a resolved notification.
    Happening,
}

/// One occurrence of an alert. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Unique key: the rule, with the subject where a rule has several.
    pub key: String,
    /// Rule name, or a built-in alert (`worker_crashed`, ...).
    pub rule: String,
    /// Stream or worker type.
    pub subject: Option<String>,
    /// Kind.
    pub kind: Kind,
    /// Severity.
    pub severity: Severity,
    /// State.
    pub phase: Phase,
    /// Time when the condition began to hold.
    pub since: f64,
    /// Time when it fired.
    pub fired_at: Option<f64>,
    /// Time when it resolved.
    pub resolved_at: Option<f64>,
    /// Time since which the condition does not hold, while the alert is still firing.
    pub clear_since: Option<f64>,
    /// Last value.
    pub value: Option<f64>,
    /// One-line description of the problem.
    pub detail: String,
    /// Message text.
    pub message: String,
    /// Last firing notification.
    pub told: Option<Notified>,
    /// Whether the resolved notification was sent, or none is needed because no firing one was.
    pub over_told: bool,
    /// No new notification before this time.
    pub quiet_until: f64,
    /// Acknowledgement.
    pub acknowledged: Option<Acknowledged>,
    /// Number of times it fired again soon after it resolved.
    pub flaps: u32,
}

/// Record of sent firing notifications.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notified {
    /// Time of the last one.
    pub at: f64,
    /// ID of the first one; later notifications are replies to it.
    pub message: String,
    /// Channels of all of them.
    pub channels: Vec<String>,
}

/// Timing of an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Time for which the condition must hold before the alert fires.
    pub duration: Duration,
    /// Time for which the condition must not hold before the alert resolves.
    pub resolve_after: Duration,
    /// Time before which the alert never fires (Unix seconds).
    pub not_before: f64,
}

impl Policy {
    /// Fires and resolves immediately.
    pub const AT_ONCE: Self = Self { duration: Duration::ZERO, resolve_after: Duration::ZERO, not_before: 0.0 };
}

/// Change made by a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// None.
    Same,
    /// The alert became pending.
    Pending,
    /// The alert fired.
    Fired,
    /// The alert fired again before a resolved notification was sent.
    FiredAgain,
    /// The alert resolved.
    Resolved,
    /// The alert was pending and never fired; remove it.
    Dropped,
}

/// An alert that fires again within this many seconds after it resolved is flapping.
const FLAP_WITHIN: f64 = 600.0;
/// Number of flaps from which resolving takes longer.
const FLAPS: u32 = 2;

impl Alert {
    /// Starts a new occurrence after the `last` one of the same key.
    #[must_use]
    pub fn begin(identity: Identity, value: Option<f64>, now: f64, last: Option<&Self>) -> Self {
        let flaps = match last.and_then(|last| last.resolved_at.map(|at| (at, last.flaps))) {
            Some((at, flaps)) if now - at < FLAP_WITHIN => flaps + 1,
            _ => 0,
        };
        Self {
            key: identity.key,
            rule: identity.rule,
            subject: identity.subject,
            kind: identity.kind,
            severity: identity.severity,
            phase: Phase::Pending,
            since: now,
            fired_at: None,
            resolved_at: None,
            clear_since: None,
            value,
            detail: String::new(),
            message: String::new(),
            told: None,
            over_told: false,
            quiet_until: last.map_or(0.0, |last| last.quiet_until),
            acknowledged: None,
            flaps,
        }
    }

    /// Whether it is pending or firing.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.phase != Phase::Resolved
    }

    /// Whether no notification and no timer is outstanding.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Resolved && self.over_told
    }

    /// Reverts the alert to firing, because its end was decided and then discarded.
    #[must_use]
    pub fn before_its_end(mut self) -> Self {
        (self.phase, self.resolved_at, self.clear_since, self.over_told) = (Phase::Firing, None, None, false);
        self
    }

    /// Shifts its timers by a step of the clock, in seconds.
    pub fn shift_timers(&mut self, by: f64) {
        if self.phase == Phase::Pending {
            self.since += by;
        }
        self.clear_since = self.clear_since.map(|since| since + by);
        if let Some(at) = self.waits_since() {
            *at += by;
        }
        if self.quiet_until > 0.0 {
            self.quiet_until += by;
        }
    }

    /// Time from which the debounce window runs, while the alert waits for its notification.
    fn waits_since(&mut self) -> Option<&mut f64> {
        match self.phase {
            Phase::Firing if self.told.is_none() => self.fired_at.as_mut(),
            Phase::Resolved if !self.over_told => self.resolved_at.as_mut(),
            _ => None,
        }
    }

    /// Limits timers that started in the future, by another monitor's clock or by one that was set back since, to
    /// `now`, so that no timer runs longer than configured. `cooldown` is in seconds.
    pub fn bound_timers(&mut self, now: f64, cooldown: f64) {
        if self.phase == Phase::Pending {
            self.since = self.since.min(now);
        }
        self.clear_since = self.clear_since.map(|since| since.min(now));
        if let Some(at) = self.waits_since() {
            *at = at.min(now);
        }
        self.quiet_until = self.quiet_until.min(now + cooldown);
    }

    /// Applies an observation made at `now`.
    pub fn step(&mut self, seen: Seen, policy: Policy, now: f64) -> Step {
        match seen {
            Seen::Missing => Step::Same,
            Seen::Holds(value) => {
                self.value = value.or(self.value);
                self.clear_since = None;
                match self.phase {
                    Phase::Pending if now - self.since >= policy.duration.as_secs_f64() && now >= policy.not_before => {
                        self.phase = Phase::Firing;
                        self.fired_at = Some(now);
                        Step::Fired
                    }
                    // The firing notification was sent and the resolved one was not, so for recipients the alert never
                    // ended.
                    Phase::Resolved if self.told.is_some() && !self.over_told => {
                        self.phase = Phase::Firing;
                        self.resolved_at = None;
                        self.flaps += 1;
                        Step::FiredAgain
                    }
                    _ => Step::Same,
                }
            }
            Seen::Clear(value) => {
                self.value = value.or(self.value);
                match self.phase {
                    Phase::Pending => Step::Dropped,
                    Phase::Firing => {
                        let since = *self.clear_since.get_or_insert(now);
                        if now - since < self.has_to_last(policy).as_secs_f64() {
                            return Step::Same;
                        }
                        self.phase = Phase::Resolved;
                        self.resolved_at = Some(now);
                        self.over_told = self.told.is_none() || self.kind == Kind::Happening;
                        Step::Resolved
                    }
                    Phase::Resolved => Step::Same,
                }
            }
        }
    }

    /// Time for which the condition must not hold before the alert resolves; longer the more it flaps.
    fn has_to_last(&self, policy: Policy) -> Duration {
        let damped = if self.flaps < FLAPS { 0 } else { u64::from(30 * self.flaps.min(10)) };
        policy.resolve_after.max(Duration::from_secs(damped))
    }

    /// Duration until it resolved, or until `now`, seconds.
    #[must_use]
    pub fn lasted(&self, now: f64) -> f64 {
        (self.resolved_at.unwrap_or(now) - self.since).max(0.0)
    }
}

/// Identity and severity of an alert.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// See [`Alert::key`].
    pub key: String,
    /// See [`Alert::rule`].
    pub rule: String,
    /// See [`Alert::subject`].
    pub subject: Option<String>,
    /// See [`Alert::kind`].
    pub kind: Kind,
    /// See [`Alert::severity`].
    pub severity: Severity,
}
