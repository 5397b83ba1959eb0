//! Notifications independent of the channel: plain text in parts, and a deduplication key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::chart_series::Charted;
use super::lifecycle::{Alert, Kind};
use super::rule::Severity;
use super::worker_down::UNOBSERVED;

/// Maximum number of alerts listed in one notification; the rest are counted.
pub const NAMED: usize = 50;

/// Age at which an undelivered notification is given up, hours.
pub const GIVEN_UP_AFTER_HOURS: f64 = 24.0;

/// Kind of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// Its alerts fire.
    Firing,
    /// Its alerts still fire and were sent before.
    StillFiring,
    /// Its alerts resolved.
    Resolved,
    /// Test of a channel.
    Test,
}

impl About {
    /// Whether it reports firing alerts.
    #[must_use]
    pub fn is_firing(self) -> bool {
        matches!(self, Self::Firing | Self::StillFiring)
    }
}

/// A notification. Texts are plain; each channel escapes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Deduplication key, equal each time the notification is built or sent.
    pub id: String,
    /// ID of the notification that it replies to, or its own.
    pub thread: String,
    /// Kind.
    pub about: About,
    /// Highest severity of its alerts.
    pub severity: Severity,
    /// Title, one line.
    pub title: String,
    /// Time of creation, Unix seconds.
    pub at: f64,
    /// Alerts, most severe first, at most [`NAMED`].
    pub alerts: Vec<Line>,
    /// Number of alerts that are not listed.
    pub more: usize,
    /// Keys of all its alerts; notifications about the same alert are sent in order.
    pub keys: Vec<String>,
}

/// One alert in a notification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Alert key.
    pub key: String,
    /// Rule name.
    pub rule: String,
    /// Stream, worker type, data source or channel.
    pub subject: Option<String>,
    /// Whether the subject is a data source or a channel, not a stream.
    #[serde(default)]
    pub of_source: bool,
    /// Severity.
    pub severity: Severity,
    /// Message text.
    pub message: String,
    /// Description of the problem.
    pub detail: String,
    /// Start, Unix seconds.
    pub since: f64,
    /// End, Unix seconds.
    pub ended: Option<f64>,
    /// Last value.
    pub value: Option<f64>,
    /// Labels of the rule.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the rule, expanded.
    pub annotations: BTreeMap<String, String>,
    /// Series for its chart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chart: Option<Charted>,
}

impl Line {
    /// Returns the line for `alert`.
    #[must_use]
    pub fn of(alert: &Alert) -> Self {
        Self {
            key: alert.key.clone(),
            rule: alert.rule.clone(),
            subject: alert.subject.clone(),
            of_source: alert.kind == Kind::Source,
            severity: alert.severity,
            message: alert.message.clone(),
            detail: alert.detail.clone(),
            since: alert.since,
            ended: alert.resolved_at,
            value: alert.value.filter(|value| value.is_finite()),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            chart: None,
        }
    }
}

/// Builds a notification about `alerts` (at least one) at `now`; `thread` is the ID it replies to. With `down`, the
/// alerts are about worker types without workers, and a type with several alerts is listed once.
#[must_use]
pub fn about(about: About, alerts: &[&Alert], down: bool, thread: Option<&str>, now: f64) -> Message {
    let mut alerts: Vec<&Alert> = alerts.to_vec();
    alerts.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.key.cmp(&b.key)));
    let keys: Vec<String> = alerts.iter().map(|alert| alert.key.clone()).collect();
    let mut occurrences: Vec<String> = alerts
        .iter()
        .map(|alert| match (about, &alert.told) {
            (About::Resolved, _) => format!("{}@{}", alert.key, alert.resolved_at.unwrap_or(0.0)),
            // Derived from the previous notification, so that every monitor builds the same ID from the stored alert.
            (About::StillFiring, Some(told)) => format!("{}@{}", alert.key, told.at),
            _ => format!("{}@{}", alert.key, alert.fired_at.unwrap_or(0.0)),
        })
        .collect();
    occurrences.sort();
    let id = stable_id(&[word(about), &occurrences.join("\n")]);
    if down {
        alerts = one_for_each_worker(&alerts);
    }
    let title = match about {
        About::Resolved => resolved_title(&alerts, down),
        About::StillFiring => {
            let since = alerts.iter().filter_map(|alert| alert.fired_at).fold(now, f64::min);
            format!("Still firing for {}: {}", span(now - since), firing_title(&alerts, down))
        }
        _ => firing_title(&alerts, down),
    };
    Message {
        thread: thread.map_or_else(|| id.clone(), str::to_owned),
        id,
        about,
        severity: alerts.first().map_or(Severity::Info, |alert| alert.severity),
        title,
        at: now,
        alerts: alerts.iter().take(NAMED).map(|alert| Line::of(alert)).collect(),
        more: alerts.len().saturating_sub(NAMED),
        keys,
    }
}

/// Selects one alert per worker type, preferring the one that states how the type went to zero.
fn one_for_each_worker<'a>(alerts: &[&'a Alert]) -> Vec<&'a Alert> {
    let says_how = |alert: &Alert| alert.kind == Kind::WorkerDown;
    let is_shown = |alert: &Alert| {
        let same = alerts.iter().filter(|other| other.subject == alert.subject);
        let best = same.clone().find(|other| says_how(other)).or_else(|| same.clone().next());
        best.is_some_and(|best| best.key == alert.key)
    };
    alerts.iter().copied().filter(|alert| is_shown(alert)).collect()
}

/// Builds a test notification.
#[must_use]
pub fn test(now: f64, nonce: &str) -> Message {
    let id = stable_id(&["test", nonce]);
    Message {
        thread: id.clone(),
        id,
        about: About::Test,
        severity: Severity::Info,
        title: "Test notification: this channel works".to_owned(),
        at: now,
        alerts: Vec::new(),
        more: 0,
        keys: Vec::new(),
    }
}

fn word(about: About) -> &'static str {
    match about {
        About::Firing => "firing",
        About::StillFiring => "still_firing",
        About::Resolved => "resolved",
        About::Test => "test",
    }
}

fn stable_id(parts: &[&str]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\n").as_bytes()).to_string()
}

fn firing_title(alerts: &[&Alert], down: bool) -> String {
    match alerts {
        [only] => match (only.kind, only.rule.as_str(), &only.subject) {
            (Kind::WorkerDown, "worker_crashed", Some(worker)) => format!("Worker {worker} crashed"),
            (Kind::WorkerDown, ..) if only.detail.contains(UNOBSERVED) => only.detail.clone(),
            (Kind::WorkerDown, _, Some(worker)) => format!("Worker {worker} scaled to zero"),
            (Kind::PartialLoss, ..) => only.detail.clone(),
            (Kind::Source | Kind::Happening, ..) => only.detail.clone(),
            _ => format!("{}: {}", only.rule, only.detail),
        },
        many if down => format!("{} workers down", many.len()),
        many if same_rule(many) => format!("{}: {} alerts", rule_of(many), many.len()),
        many => {
            let first = many.first().map(|alert| alert.key.as_str()).unwrap_or_default();
            format!("{} alerts: {first} and {} more", many.len(), many.len() - 1)
        }
    }
}

fn resolved_title(alerts: &[&Alert], down: bool) -> String {
    match alerts {
        [only] => {
            let lasted = span(only.lasted(only.resolved_at.unwrap_or(only.since)));
            match (only.kind, &only.subject) {
                (Kind::WorkerDown, Some(worker)) => {
                    format!("Resolved after {lasted}: worker {worker} is running again")
                }
                _ => format!("Resolved after {lasted}: {}", only.key),
            }
        }
        many if down => format!("Resolved: {} workers running again", many.len()),
        many if same_rule(many) => format!("Resolved: {}: {} alerts", rule_of(many), many.len()),
        many => format!("Resolved: {} alerts", many.len()),
    }
}

fn same_rule(alerts: &[&Alert]) -> bool {
    alerts.windows(2).all(|pair| matches!(pair, [a, b] if a.rule == b.rule))
}

fn rule_of<'a>(alerts: &[&'a Alert]) -> &'a str {
    alerts.first().map(|alert| alert.rule.as_str()).unwrap_or_default()
}

/// Formats a duration: `45 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`.
#[must_use]
pub fn span(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a span, clamped")]
    let seconds = seconds.clamp(0.0, 1e11).round() as u64;
    let two = |big: u64, a: &str, small: u64, b: &str| {
        if small == 0 { format!("{big} {a}") } else { format!("{big} {a} {small} {b}") }
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}
