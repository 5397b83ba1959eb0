//! The life of one alert: inactive → pending → firing → resolved. `now` is an argument.
//!
//! Whether somebody was told is part of that life: a message that is due follows from the alert
//! alone, so that a restart between firing and telling tells.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quiet::Acknowledged;
use super::rule::Severity;

/// What was seen of an alert's condition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen {
    /// Nothing can be said: neither fires nor resolves.
    Missing,
    /// The condition does not hold.
    Clear(Option<f64>),
    /// It holds.
    Holds(Option<f64>),
}

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The condition holds, not for long enough yet.
    Pending,
    /// It held for long enough.
    Firing,
    /// It was firing and is over.
    Resolved,
}

/// What kind of alert, where that makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Of a rule.
    Rule,
    /// A worker type is at zero.
    WorkerDown,
    /// Some workers of a type were lost.
    PartialLoss,
    /// A source cannot be read, or a channel cannot be told.
    Source,
    /// Something happened: it is told once, and its end is no news.
    Happening,
}

/// One occurrence of something wrong. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Unique among alerts: the rule, with the subject where there are many.
    pub key: String,
    /// The rule, or what is always on (`worker_crashed`, ...).
    pub rule: String,
    /// The stream or worker type.
    pub subject: Option<String>,
    /// What kind.
    pub kind: Kind,
    /// How serious.
    pub severity: Severity,
    /// Where it stands.
    pub phase: Phase,
    /// When its condition began to hold.
    pub since: f64,
    /// When it fired.
    pub fired_at: Option<f64>,
    /// When it was over.
    pub resolved_at: Option<f64>,
    /// Since when the condition does not hold, while it is still firing.
    pub clear_since: Option<f64>,
    /// The value seen last.
    pub value: Option<f64>,
    /// What is wrong, in one line.
    pub detail: String,
    /// The text for people.
    pub message: String,
    /// The last notification that it fires.
    pub told: Option<Told>,
    /// That it is over was told, or nobody had been told that it fires.
    pub over_told: bool,
    /// No new notification before this moment.
    pub quiet_until: f64,
    /// Somebody takes care of it.
    pub acknowledged: Option<Acknowledged>,
    /// How often it fired again soon after it was over.
    pub flaps: u32,
}

/// Who was told, when, in which message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// When, last.
    pub at: f64,
    /// The id of the first message; what follows is a reply to it.
    pub message: String,
    /// The channels of all of them.
    pub channels: Vec<String>,
}

/// How an alert's condition is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// How long it must hold.
    pub duration: Duration,
    /// How long it must be over.
    pub resolve_after: Duration,
    /// It does not fire before this moment (Unix seconds), whatever is seen.
    pub not_before: f64,
}

impl Policy {
    /// Fires and resolves at once.
    pub const AT_ONCE: Self = Self { duration: Duration::ZERO, resolve_after: Duration::ZERO, not_before: 0.0 };
}

/// What a step changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Same,
    /// It became pending.
    Pending,
    /// It fired.
    Fired,
    /// It fires again before anyone heard that it was over.
    FiredAgain,
    /// It is over.
    Resolved,
    /// It was pending and never fired: forget it.
    Dropped,
}

/// An alert that fires again this soon after its last end flaps.
const FLAP_WITHIN: f64 = 600.0;
/// From this many flaps on, its end has to last.
const FLAPS: u32 = 2;

impl Alert {
    /// A new occurrence, after the `last` one of the same key.
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

    /// Whether there is nothing left to tell or to wait for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Resolved && self.over_told
    }

    /// The same while it fired: its end was decided and is void.
    #[must_use]
    pub fn before_its_end(mut self) -> Self {
        (self.phase, self.resolved_at, self.clear_since, self.over_told) = (Phase::Firing, None, None, false);
        self
    }

    /// Moves the moments that its timers run from by a step of the clock, in seconds.
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

    /// When it fired or was over, while that still waits for its notification: the window in which alerts are gathered
    /// runs from then.
    fn waits_since(&mut self) -> Option<&mut f64> {
        match self.phase {
            Phase::Firing if self.told.is_none() => self.fired_at.as_mut(),
            Phase::Resolved if !self.over_told => self.resolved_at.as_mut(),
            _ => None,
        }
    }

    /// Brings timers that began in the future, by the clock of another monitor or by one that was set back since, to
    /// `now`: no timer runs for longer than it is set to. `cooldown` in seconds.
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

    /// Takes in what was seen at `now`.
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
                    // Told that it fires and not yet that it is over: for those told it never ended.
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

    /// How long its end must last to be believed: longer the more it flaps.
    fn has_to_last(&self, policy: Policy) -> Duration {
        let damped = if self.flaps < FLAPS { 0 } else { u64::from(30 * self.flaps.min(10)) };
        policy.resolve_after.max(Duration::from_secs(damped))
    }

    /// How long it lasted, or lasts at `now`, seconds.
    #[must_use]
    pub fn lasted(&self, now: f64) -> f64 {
        (self.resolved_at.unwrap_or(now) - self.since).max(0.0)
    }
}

/// Which alert, and how serious.
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
