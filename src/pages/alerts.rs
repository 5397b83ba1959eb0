//! The alerts page: active, silenced and resolved alerts, rules, and notifications with their delivery results.

use std::collections::BTreeMap;

use serde::Serialize;

use super::chart::{Drawn, LimitChart};
use super::figures::counted;
use super::link::{self, About};
use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Label, MomentStyle, Sentence, capitalised};
use crate::alerting::alert_manager::Shown;
use crate::alerting::channels::no_channel;
use crate::alerting::chart_series::Charted;
use crate::alerting::condition::{Sight, present_value};
use crate::alerting::lifecycle::{Alert, Phase};
use crate::alerting::message::span;
use crate::alerting::rule::{Rule, Severity, figure};
use crate::contract::Name;
use crate::fleet::snapshot::Snapshot;

/// Reload interval without JavaScript, seconds.
const REFRESH: u32 = 10;
/// Maximum number of resolved alerts shown.
const RESOLVED: usize = 50;
/// Maximum number of state changes shown per alert.
const TURNS: usize = 12;
/// Length of the charts, seconds.
pub const CHARTED: f64 = 3.0 * 3600.0;

/// A notification as shown on the page.
#[derive(Debug)]
pub struct Sent {
    /// Title.
    pub title: String,
    /// Start of its key.
    pub reference: String,
    /// Channel.
    pub channel: String,
    /// State.
    pub state: &'static str,
    /// Number of attempts.
    pub attempts: u32,
    /// Last response of the channel.
    pub answer: String,
    /// Time of creation, Unix seconds.
    pub created: f64,
    /// Time of the next attempt.
    pub next_attempt: Option<f64>,
    /// Time when it was sent or given up.
    pub ended: Option<f64>,
}

/// Archived data of the alerts.
#[derive(Debug, Default)]
pub struct Past {
    /// Samples of their series, oldest first, over the last [`CHARTED`] seconds.
    pub samples: BTreeMap<String, Vec<(f64, f64)>>,
    /// Times when each fired (`true`) and resolved (`false`), by key, newest first.
    pub stories: BTreeMap<String, Vec<(f64, bool)>>,
}

/// Data of the page.
#[derive(Debug)]
pub struct AlertsPage<'a> {
    /// Alerts.
    pub shown: &'a Shown,
    /// Latest snapshot, for the current values of the rules.
    pub snapshot: Option<&'a Snapshot>,
    /// Archived data; empty while Postgres is unreachable.
    pub past: Past,
    /// Latest notifications, unsent ones first.
    pub messages: Vec<Sent>,
    /// Whether the list comes from Postgres; otherwise it contains only the spooled notifications.
    pub from_postgres: bool,
}

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    headline: String,
    level: &'static str,
    notes: Vec<String>,
    groups: Vec<Group>,
    rules: Vec<RuleRow>,
    rules_file: Label,
    messages: Vec<MessageRow>,
    silences: Vec<SilenceRow>,
    channels: Vec<Label>,
    answers: Vec<AnswerRow>,
}

#[derive(Serialize)]
struct Group {
    id: &'static str,
    name: &'static str,
    empty: &'static str,
    rows: Vec<AlertRow>,
}

#[derive(Serialize)]
struct AlertRow {
    key: String,
    name: Label,
    href: Option<String>,
    severity: Severity,
    message: String,
    when: Sentence,
    value: String,
    told: Sentence,
    note: String,
    can_acknowledge: bool,
    chart: Option<LimitChart>,
    /// Series and time span, shown above the chart.
    series: Label,
    reaches: String,
    /// Link to the history around the alert's start.
    around: Option<String>,
    /// Number of firings, if more than one, and the state changes, newest first.
    fired: String,
    story: Vec<Sentence>,
}

#[derive(Serialize)]
struct RuleRow {
    name: Label,
    watches: String,
    value: String,
    severity: Severity,
    state: &'static str,
}

#[derive(Serialize)]
struct MessageRow {
    title: Label,
    reference: String,
    channel: Label,
    state: &'static str,
    level: &'static str,
    attempts: u32,
    answer: Label,
    made: Sentence,
    next: Sentence,
}

#[derive(Serialize)]
struct SilenceRow {
    id: String,
    what: Label,
    owner: Label,
    reason: Label,
    until: Sentence,
}

#[derive(Serialize)]
struct AnswerRow {
    channel: Label,
    answer: Label,
    level: &'static str,
}

impl AlertsPage<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let firing = self.shown.alerts.iter().filter(|(alert, _)| alert.phase == Phase::Firing).count();
        let pending = self.shown.alerts.iter().filter(|(alert, _)| alert.phase == Phase::Pending).count();
        let mut words = match firing {
            0 => "No firing alerts".to_owned(),
            n => format!("{} firing", counted(n as u64, "alert", "alerts")),
        };
        if pending > 0 {
            words.push_str(&format!(", {pending} pending"));
        }
        let title = match firing {
            0 => site.title("Alerts"),
            n => format!("⚠ {n} · {}", site.title("Alerts")),
        };
        let mut view = empty(site, &title, Some(REFRESH));
        let critical =
            |(alert, _): &&(Alert, bool)| alert.phase == Phase::Firing && alert.severity == Severity::Critical;
        view.level = match self.shown.alerts.iter().filter(critical).count() {
            0 if firing == 0 => "fine",
            0 => "warning",
            _ => "critical",
        };
        view.headline = words;
        view.notes = self.notes();
        view.groups = self.groups();
        view.rules = self.rules();
        view.rules_file = Label::from_text(&self.shown.file);
        view.messages = self.messages.iter().map(message_row).collect();
        view.silences = self
            .shown
            .silences
            .iter()
            .filter(|silence| !silence.acknowledges && silence.until > self.shown.at)
            .map(|silence| SilenceRow {
                id: silence.id.clone(),
                what: Label::from_text(&if silence.subject == "*" {
                    silence.rule.clone()
                } else {
                    format!("{} on {}", silence.rule, silence.subject)
                }),
                owner: Label::from_text(&silence.owner),
                reason: Label::from_text(&silence.reason),
                until: Sentence::default().at("", Some(silence.until), MomentStyle::Clock),
            })
            .collect();
        view.channels = self.shown.channels.iter().map(|name| Label::from_text(name)).collect();
        site.pages.render("pages/alerts", &view)
    }

    /// Renders the responses of the channels to a test notification, each with whether it was accepted.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn answers(site: &Site, answers: Vec<(&str, bool, &str)>) -> Result<String, PagesError> {
        let title = site.title("Alerts");
        let mut view = empty(site, &title, None);
        let failed = answers.iter().filter(|(_, ok, _)| !ok).count();
        (view.headline, view.level) = match (answers.len(), failed) {
            (0, _) => ("Not sent: no channel configured".to_owned(), "warning"),
            (_, 0) => ("Test notification sent via every channel".to_owned(), "fine"),
            (all, failed) => (format!("Test notification failed on {failed} of {all} channels"), "critical"),
        };
        view.answers = answers
            .into_iter()
            .map(|(channel, ok, answer)| AnswerRow {
                channel: Label::from_text(channel),
                answer: Label::from_text(answer),
                level: if ok { "fine" } else { "critical" },
            })
            .collect();
        site.pages.render("pages/alerts_test", &view)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.shown.channels.is_empty() {
            notes.push(format!("{}.", capitalised(&no_channel())));
        }
        if !self.shown.mistakes.is_empty() {
            notes.push("The rules file is invalid; the last valid rules are in use.".to_owned());
            notes.extend(self.shown.mistakes.iter().map(|m| Label::from_text(m).title.unwrap_or_else(|| m.clone())));
        }
        if !self.shown.leads {
            notes.push("Another instance is the leader; this page shows its data from Postgres.".to_owned());
        }
        if !self.from_postgres {
            notes.push(
                "Postgres is unavailable. Notifications are still sent; the list below shows those not stored yet."
                    .to_owned(),
            );
        }
        notes
    }

    fn groups(&self) -> Vec<Group> {
        let mut alerts: Vec<&(Alert, bool)> = self.shown.alerts.iter().collect();
        alerts.sort_by(|(a, _), (b, _)| {
            let newest = |alert: &Alert| alert.resolved_at.unwrap_or(alert.since);
            b.severity.cmp(&a.severity).then(newest(b).total_cmp(&newest(a)))
        });
        let rows = |wanted: &dyn Fn(&Alert, bool) -> bool| -> Vec<AlertRow> {
            let fits = alerts.iter().filter(|(alert, quiet)| wanted(alert, *quiet));
            fits.map(|(alert, _)| self.row(alert)).collect()
        };
        let hushed = |alert: &Alert, quiet: bool| quiet || alert.acknowledged.is_some();
        let mut over: Vec<&Alert> = alerts.iter().map(|(alert, _)| alert).filter(|a| a.resolved_at.is_some()).collect();
        over.sort_by(|a, b| b.resolved_at.unwrap_or(0.0).total_cmp(&a.resolved_at.unwrap_or(0.0)));
        vec![
            Group {
                id: "firing",
                name: "Firing",
                empty: "No firing alerts.",
                rows: rows(&|alert, quiet| alert.phase == Phase::Firing && !hushed(alert, quiet)),
            },
            Group {
                id: "pending",
                name: "Pending",
                empty: "No pending alerts.",
                rows: rows(&|alert, _| alert.phase == Phase::Pending),
            },
            Group {
                id: "silenced",
                name: "Silenced and acknowledged",
                empty: "No silenced or acknowledged alerts.",
                rows: rows(&|alert, quiet| alert.phase == Phase::Firing && hushed(alert, quiet)),
            },
            Group {
                id: "resolved",
                name: "Resolved",
                empty: "No recently resolved alerts.",
                rows: over.into_iter().take(RESOLVED).map(|alert| self.row(alert)).collect(),
            },
        ]
    }

    fn row(&self, alert: &Alert) -> AlertRow {
        let name = alert.subject.as_deref().map(Name::from);
        let here = |name: &Name| self.snapshot.is_some_and(|snapshot| snapshot.workers.contains_key(name));
        let when = match (alert.phase, alert.resolved_at) {
            (Phase::Resolved, Some(over)) => Sentence::default()
                .at("resolved ", Some(over), MomentStyle::Ago)
                .then(format!(", after {}", span(alert.lasted(over)))),
            _ => Sentence::default().at("since ", Some(alert.since), MomentStyle::Clock),
        };
        let told = match &alert.told {
            Some(told) if told.channels.is_empty() => Sentence::words("not sent: no channel configured"),
            Some(told) => Sentence::words(format!("sent via {} at ", told.channels.join(", "))).at(
                "",
                Some(told.at),
                MomentStyle::Clock,
            ),
            None if alert.phase == Phase::Firing && alert.quiet_until > self.shown.at => {
                Sentence::default().at("cooldown until ", Some(alert.quiet_until), MomentStyle::Clock)
            }
            None => Sentence::words("not sent"),
        };
        let note = match &alert.acknowledged {
            Some(ack) => match ack.reason.as_str() {
                "" => format!("acknowledged by {}", Label::from_text(&ack.by)),
                reason => format!("acknowledged by {}: {reason}", Label::from_text(&ack.by)),
            },
            None if alert.flaps > 0 => format!("flapped {}", counted(u64::from(alert.flaps), "time", "times")),
            None => String::new(),
        };
        let charted = Charted::of(alert, &self.shown.rules);
        let chart = charted.as_ref().and_then(|charted| {
            LimitChart::new(&Drawn {
                series: &charted.series,
                samples: self.past.samples.get(&charted.series)?,
                limit: charted.limit,
                unit: &charted.unit,
                during: alert.fired_at.map(|fired| (fired, alert.resolved_at.unwrap_or(self.shown.at))),
                window: (self.shown.at - CHARTED, self.shown.at),
            })
        });
        let chart = chart.filter(|_| alert.resolved_at.is_none_or(|over| over > self.shown.at - CHARTED));
        let turns = self.past.stories.get(&alert.key).map(Vec::as_slice).unwrap_or_default();
        let fired = turns.iter().filter(|(_, fired)| *fired).count();
        AlertRow {
            chart,
            series: Label::from_text(charted.as_ref().map_or("", |charted| charted.series.as_str())),
            reaches: span(CHARTED),
            around: link::history_around(alert.since),
            fired: if fired > 0 {
                format!("Fired {}", counted(fired as u64, "time in 30 days", "times in 30 days"))
            } else {
                String::new()
            },
            story: turns
                .iter()
                .take(TURNS)
                .map(|(at, fired)| {
                    Sentence::default().at(if *fired { "fired " } else { "resolved " }, Some(*at), MomentStyle::Clock)
                })
                .collect(),
            key: alert.key.clone(),
            name: Label::from_text(&alert.key),
            href: name.filter(here).map(|name| About::WorkerType.of(&name)),
            severity: alert.severity,
            message: super::wording::visible(&alert.message).into_owned(),
            when,
            value: alert.value.map_or_else(|| "—".to_owned(), figure),
            told,
            note,
            can_acknowledge: alert.is_active() && alert.acknowledged.is_none(),
        }
    }

    fn rules(&self) -> Vec<RuleRow> {
        let sight = self.snapshot.map(Sight::of);
        let state = |rule: &Rule| {
            let is = |phase| self.shown.alerts.iter().any(|(alert, _)| alert.rule == rule.name && alert.phase == phase);
            match (is(Phase::Firing), is(Phase::Pending)) {
                (true, _) => "firing",
                (_, true) => "pending",
                _ => "inactive",
            }
        };
        let row = |rule: &Rule| {
            let metric = rule.watch.metric;
            let value = sight.as_ref().and_then(|sight| present_value(rule, sight));
            RuleRow {
                name: Label::from_text(&rule.name),
                watches: rule.watches(),
                value: value.map_or_else(|| "—".to_owned(), |value| figure(value) + metric.unit()),
                severity: rule.severity,
                state: state(rule),
            }
        };
        self.shown.rules.rules.iter().map(row).collect()
    }
}

fn message_row(sent: &Sent) -> MessageRow {
    MessageRow {
        title: Label::from_text(&sent.title),
        reference: sent.reference.clone(),
        channel: Label::from_text(&sent.channel),
        state: sent.state,
        level: match sent.state {
            "sent" => "fine",
            "waiting" => "warning",
            _ => "critical",
        },
        attempts: sent.attempts,
        answer: Label::from_text(if sent.answer.is_empty() { "—" } else { &sent.answer }),
        made: Sentence::default().at("", Some(sent.created), MomentStyle::Clock),
        next: match (sent.ended, sent.next_attempt) {
            (Some(ended), _) => Sentence::default().at("", Some(ended), MomentStyle::Clock),
            (None, Some(next)) => Sentence::default().at("retry at ", Some(next), MomentStyle::Clock),
            (None, None) => Sentence::words("—"),
        },
    }
}

/// Imports of `alerts.js`, preloaded to avoid a request chain.
const MODULES: &[&str] = &["shell.js", "clock.js"];

fn empty<'a>(site: &'a Site, title: &'a str, refresh: Option<u32>) -> View<'a> {
    View {
        head: Head::of(&site.environment, (&site.pages, "/alerts"), title, MODULES, refresh),
        headline: String::new(),
        level: "fine",
        notes: Vec::new(),
        groups: Vec::new(),
        rules: Vec::new(),
        rules_file: Label::from_text("alerts.yaml"),
        messages: Vec::new(),
        silences: Vec::new(),
        channels: Vec::new(),
        answers: Vec::new(),
    }
}
