//! The alerts page: what is pending, firing, silenced and over; the rules; what was sent, and what
//! was answered.

use std::collections::BTreeMap;

use serde::Serialize;

use super::chart::{Drawn, LimitChart};
use super::figures::counted;
use super::link::{self, About};
use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Label, MomentStyle, Sentence, capitalised};
use crate::alerting::board::Shown;
use crate::alerting::charted::Charted;
use crate::alerting::condition::{Sight, present_value};
use crate::alerting::lifecycle::{Alert, Phase};
use crate::alerting::message::span;
use crate::alerting::rule::{Rule, Severity, figure, no_channel};
use crate::contract::Name;
use crate::fleet::snapshot::Snapshot;

/// Without script the page is loaded again after so many seconds.
const REFRESH: u32 = 10;
/// Resolved alerts shown.
const RESOLVED: usize = 50;
/// Turns of an alert's story shown.
const TURNS: usize = 12;
/// How much of a series is drawn, seconds.
pub const CHARTED: f64 = 3.0 * 3600.0;

/// A message as the page shows it.
#[derive(Debug)]
pub struct Sent {
    /// What it says.
    pub title: String,
    /// The beginning of its key.
    pub reference: String,
    /// Where it goes.
    pub channel: String,
    /// How it stands.
    pub state: &'static str,
    /// Attempts begun.
    pub attempts: u32,
    /// What the channel answered last.
    pub answer: String,
    /// When it was made, Unix seconds.
    pub created: f64,
    /// When it is tried again.
    pub next_attempt: Option<f64>,
    /// When it was sent or given up.
    pub ended: Option<f64>,
}

/// What the archive knows of the alerts.
#[derive(Debug, Default)]
pub struct Past {
    /// Samples of the series they are about, oldest first, over the last [`CHARTED`] seconds.
    pub samples: BTreeMap<String, Vec<(f64, f64)>>,
    /// When each fired and was over (`false`), by its key, newest first.
    pub stories: BTreeMap<String, Vec<(f64, bool)>>,
}

/// Everything the page shows.
#[derive(Debug)]
pub struct AlertsPage<'a> {
    /// The alerts.
    pub shown: &'a Shown,
    /// The newest snapshot, for the rules' present values.
    pub snapshot: Option<&'a Snapshot>,
    /// What the archive knows of them; empty when Postgres does not answer.
    pub past: Past,
    /// The newest messages, those on their way first.
    pub messages: Vec<Sent>,
    /// Postgres answered; else these are only the messages it has not taken.
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
    /// Below which the chart stands, and for how long it reaches back.
    series: Label,
    reaches: String,
    /// The history around its beginning.
    around: Option<String>,
    /// How often it fired, if more than once, and its turns, newest first.
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
    /// The page as HTML.
    ///
    /// # Errors
    /// When the template does not fit.
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

    /// What the channels answered to a test message, each with whether it took it.
    ///
    /// # Errors
    /// When the template does not fit.
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
                "Postgres is unreachable. Notifications are still sent; the list below shows those not stored yet."
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

/// What `alerts.js` imports, so that the browser fetches all at once.
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
