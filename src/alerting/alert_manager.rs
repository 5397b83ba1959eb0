//! The alert manager: holds all alerts, takes snapshots and silences, and returns notifications and changed alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::abandoned;
use super::chart_series::Charted;
use super::condition::{self, Memory, Sight};
use super::grouping::{Due, PER_MINUTE, Pacing, Standing};
use super::lifecycle::{Alert, Identity, Kind, Phase, Policy, Seen, Step};
use super::message::About;
use super::names::Names;
use super::rule::{Per, Rule, RuleSet, Subjects};
use super::silences::{Acknowledged, Silence, Silences};
use super::source_down;
use super::worker_down::{self, Losses, News, WorkerTypeView};
use crate::fleet::cleanup::Finding;
use crate::fleet::event::{Event, Severity};
use crate::fleet::snapshot::Snapshot;

/// Maximum number of resolved alerts retained.
const RESOLVED_KEPT: usize = 200;

/// Settings of the manager.
#[derive(Debug, Clone)]
pub struct AlertManagerSettings {
    /// Worker-down alerts do not fire before this time (Unix seconds).
    pub grace_until: f64,
    /// Debounce window of worker-down alerts, seconds.
    pub debounce: f64,
    /// Names of the configured channels.
    pub channels: Vec<String>,
}

/// A change of an alert.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The alert after the change.
    pub alert: Alert,
    /// Kind of the change.
    pub step: Step,
}

/// State of the alerts for display.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// Alerts, each with whether it is muted (silenced, acknowledged or in a maintenance window).
    pub alerts: Vec<(Alert, bool)>,
    /// Active rules.
    pub rules: Arc<RuleSet>,
    /// Silences and acknowledgements.
    pub silences: Vec<Silence>,
    /// Errors in the rules file; the last valid rules stay active.
    pub mistakes: Vec<String>,
    /// Path of the rules file.
    pub file: String,
    /// Whether this instance is the leader; otherwise the data comes from Postgres.
    pub leads: bool,
    /// Names of the configured channels.
    pub channels: Vec<String>,
    /// Time of this state, Unix seconds.
    pub at: f64,
}

/// A firing alert for the live page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiringAlert {
    /// Rule name.
    pub rule: String,
    /// Stream or worker type.
    pub subject: Option<String>,
    /// Severity.
    pub severity: Severity,
    /// Whether it is silenced, acknowledged or in a maintenance window.
    pub silenced: bool,
}

/// All alerts and their timers.
pub struct AlertManager {
    settings: AlertManagerSettings,
    rules: Arc<RuleSet>,
    names: Names,
    memories: Vec<Memory>,
    alerts: BTreeMap<String, Alert>,
    silences: Silences,
    /// Keys of alerts whose condition holds in the latest snapshot, except those that were sent again since.
    holding: BTreeSet<String>,
    losses: Losses,
    broken: BTreeMap<String, Option<String>>,
    findings: Vec<Finding>,
    pacing: Pacing,
    /// End of the cooldown (Unix seconds) of alerts that an older monitor sent, by key.
    cooldowns: BTreeMap<String, f64>,
}

impl AlertManager {
    /// Returns a manager without alerts.
    #[must_use]
    pub fn new(settings: AlertManagerSettings, rules: Arc<RuleSet>) -> Self {
        let pacing = Pacing::new(settings.debounce, PER_MINUTE);
        let mut manager = Self {
            settings,
            rules: Arc::default(),
            names: Names::default(),
            memories: Vec::new(),
            alerts: BTreeMap::new(),
            silences: Silences::default(),
            holding: BTreeSet::new(),
            losses: Losses::default(),
            broken: BTreeMap::new(),
            findings: Vec::new(),
            pacing,
            cooldowns: BTreeMap::new(),
        };
        manager.set_rules(rules);
        manager
    }

    /// Replaces the rules. Alerts of removed rules resolve, unless no valid rules are known.
    pub fn set_rules(&mut self, rules: Arc<RuleSet>) {
        self.memories = rules.rules.iter().map(|_| Memory::default()).collect();
        self.rules = rules;
    }

    /// Active rules.
    #[must_use]
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Restores stored alerts; alerts already in memory win.
    pub fn restore(&mut self, alerts: impl IntoIterator<Item = Alert>) {
        for alert in alerts {
            self.alerts.entry(alert.key.clone()).or_insert(alert);
        }
    }

    /// Takes over the cooldowns of an older monitor: alerts with these keys are not sent before the given times (Unix
    /// seconds).
    pub fn take_over_cooldowns(&mut self, cooldowns: BTreeMap<String, f64>) {
        self.cooldowns = cooldowns;
    }

    /// Replaces silences and acknowledgements; returns the alerts that changed.
    pub fn set_silences(&mut self, silences: Vec<Silence>) -> Vec<Alert> {
        let mut changed = Vec::new();
        for given in silences.iter().filter(|silence| silence.acknowledges) {
            let Some(alert) = self.alerts.get_mut(&given.rule) else { continue };
            if alert.is_active() && alert.acknowledged.is_none() && given.starts >= alert.since {
                alert.acknowledged =
                    Some(Acknowledged { by: given.owner.clone(), reason: given.reason.clone(), at: given.starts });
                changed.push(alert.clone());
            }
        }
        if self.silences.list() != silences {
            self.silences = Silences::new(silences);
        }
        changed
    }

    /// Replaces all alerts with the stored ones.
    pub fn replace(&mut self, alerts: Vec<Alert>) {
        self.holding.clear();
        self.broken.clear();
        self.alerts = alerts.into_iter().map(|alert| (alert.key.clone(), alert)).collect();
    }

    /// The silences.
    #[must_use]
    pub fn silences(&self) -> &[Silence] {
        self.silences.list()
    }

    /// All alerts, by key.
    #[must_use]
    pub fn alerts(&self) -> &BTreeMap<String, Alert> {
        &self.alerts
    }

    /// Whether `alert` is silenced, acknowledged or in a maintenance window at `now`.
    #[must_use]
    pub fn is_quiet(&self, alert: &Alert, now: f64) -> bool {
        is_quiet(&self.silences, &self.rules, alert, now)
    }

    /// Applies fleet events.
    pub fn take_events(&mut self, events: &[Arc<Event>]) {
        self.losses.take(events);
    }

    /// Records that a channel rejects all notifications (with the reason), or accepts them again.
    pub fn channel(&mut self, name: &str, broken: Option<&str>) {
        self.broken.insert(name.to_owned(), broken.map(str::to_owned));
    }

    /// Applies stored findings of cleanup runs. Returns the findings that already have an alert, since those alerts are
    /// stored by now.
    pub fn take_findings(&mut self, findings: Vec<Finding>) -> Vec<Finding> {
        let (known, new) = findings.into_iter().partition(|found| self.alerts.contains_key(&abandoned::key(found)));
        self.findings = new;
        known
    }

    /// Shifts all timers by a step of the wall clock, in seconds.
    pub fn shift_timers(&mut self, by: f64) {
        self.settings.grace_until += by;
        self.pacing.shift_timers(by);
        for memory in &mut self.memories {
            memory.shift_timers(by);
        }
        for alert in self.alerts.values_mut() {
            alert.shift_timers(by);
        }
        for until in self.cooldowns.values_mut() {
            *until += by;
        }
    }

    fn bound_timers(&mut self, now: f64) {
        let rules = &self.rules.rules;
        for alert in self.alerts.values_mut() {
            let rule = || rules.iter().find(|rule| rule.name == alert.rule);
            let cooldown = if alert.quiet_until > now { cooldown(rule()) } else { 0.0 };
            alert.bound_timers(now, cooldown);
        }
    }

    /// Evaluates a snapshot at `now` (Unix seconds); returns the changes in order.
    pub fn advance(&mut self, snapshot: &Snapshot, now: f64) -> Vec<Change> {
        self.bound_timers(now);
        self.holding.clear();
        let mut changes = Vec::new();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let sight = Sight::of(snapshot);
        self.names.follow(snapshot);
        let rules = Arc::clone(&self.rules);
        let mut live: BTreeMap<&str, usize> = BTreeMap::new();
        let keys_of_rules: Vec<String> =
            self.alerts.values().filter(|a| a.is_active() || !a.is_done()).map(|a| a.rule.clone()).collect();
        for rule in &keys_of_rules {
            *live.entry(rule).or_default() += 1;
        }
        let (names, mut memories) = (std::mem::take(&mut self.names), std::mem::take(&mut self.memories));
        for (rule, memory) in rules.rules.iter().zip(&mut memories) {
            let policy = Policy { duration: rule.duration, resolve_after: rule.resolve_after, not_before: 0.0 };
            let has_alerts = live.contains_key(rule.name.as_str());
            condition::observe(rule, (&sight, &names), memory, now, has_alerts, |subject, is| {
                if !has_alerts && !matches!(is, Seen::Holds(_)) {
                    return;
                }
                let key = rule.key(subject);
                seen.insert(key.clone());
                let identity = || Identity {
                    key: key.clone(),
                    rule: rule.name.clone(),
                    subject: subject.map(str::to_owned),
                    kind: Kind::Rule,
                    severity: rule.severity,
                };
                let text = |value| {
                    let detail = rule.detail(subject, value);
                    let message =
                        rule.message.as_ref().map_or_else(|| detail.clone(), |m| rule.filled(m, subject, value));
                    (detail, message)
                };
                self.step(&key, identity, is, policy, text, now, &mut changes);
            });
        }
        (self.names, self.memories) = (names, memories);
        self.always_on(snapshot, now, &mut seen, &mut changes);
        self.resolve_removed(snapshot, &seen, now, &mut changes);
        changes
    }

    fn always_on(&mut self, snapshot: &Snapshot, now: f64, seen: &mut BTreeSet<String>, changes: &mut Vec<Change>) {
        let mut sightings = Vec::new();
        let filter = News::of(self.alerts.values().map(|alert| alert.rule.as_str()));
        self.losses.look(snapshot, &filter, |sighting| sightings.push(sighting));
        source_down::look(snapshot, &filter, |sighting| sightings.push(sighting));
        for (channel, broken) in &self.broken {
            sightings.push(source_down::channel(channel, broken.as_deref()));
        }
        sightings.extend(self.findings.drain(..).map(|finding| abandoned::sighting(&finding)));
        for sighting in sightings {
            let WorkerTypeView { identity, seen: is, detail, message } = sighting;
            seen.insert(identity.key.clone());
            if !matches!(is, Seen::Holds(_)) && !self.alerts.contains_key(&identity.key) {
                continue;
            }
            let policy = match identity.kind {
                Kind::WorkerDown | Kind::PartialLoss => {
                    Policy { not_before: self.settings.grace_until, ..Policy::AT_ONCE }
                }
                Kind::Source if ["source_down", source_down::WRITES_REFUSED].contains(&identity.rule.as_str()) => {
                    Policy { duration: source_down::AWAY_FOR, ..Policy::AT_ONCE }
                }
                _ => Policy::AT_ONCE,
            };
            let key = identity.key.clone();
            self.step(&key, || identity, is, policy, |_| (detail, message), now, changes);
        }
    }

    /// Resolves alerts whose rule or subject no longer exists.
    fn resolve_removed(&mut self, snapshot: &Snapshot, seen: &BTreeSet<String>, now: f64, changes: &mut Vec<Change>) {
        let known: BTreeMap<&str, &Rule> = self.rules.rules.iter().map(|rule| (rule.name.as_str(), rule)).collect();
        let redis_is_read = snapshot.redis.source.is_current();
        let ended: Vec<String> = self
            .alerts
            .values()
            .filter(|alert| alert.is_active() && !seen.contains(&alert.key))
            .filter(|alert| !self.is_owed(alert, now))
            .filter(|alert| match (alert.kind, known.get(alert.rule.as_str())) {
                (Kind::Rule, None) => self.rules.known,
                (Kind::Rule, Some(rule)) if !rule.can_have(&alert.key, alert.subject.as_deref()) => true,
                (Kind::Rule, Some(rule)) => {
                    let many = matches!(rule.watch.of, Some(Subjects::Glob(..)));
                    redis_is_read && many && rule.watch.metric.per() != Per::Whole
                }
                (Kind::WorkerDown | Kind::PartialLoss, _) => redis_is_read,
                (Kind::Source, _) if alert.rule == source_down::CHANNEL_BROKEN => {
                    // A channel that is no longer configured cannot be broken.
                    !alert.subject.as_ref().is_some_and(|channel| self.settings.channels.contains(channel))
                }
                (Kind::Source, _) => false,
                (Kind::Happening, _) => {
                    let handled = alert.told.is_some() || alert.acknowledged.is_some() || self.is_quiet(alert, now);
                    handled && now - alert.since >= abandoned::SHOWN_FOR
                }
            })
            .map(|alert| alert.key.clone())
            .collect();
        for key in ended {
            let Some(alert) = self.alerts.get_mut(&key) else { continue };
            let step = alert.step(Seen::Clear(None), Policy::AT_ONCE, now);
            note(alert, step, changes);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one place for all that moves an alert")]
    fn step(
        &mut self,
        key: &str,
        identity: impl FnOnce() -> Identity,
        is: Seen,
        policy: Policy,
        text: impl FnOnce(Option<f64>) -> (String, String),
        now: f64,
        changes: &mut Vec<Change>,
    ) {
        let holds = matches!(is, Seen::Holds(_));
        let mut begun = false;
        let stands = self.alerts.get(key).filter(|alert| !alert.is_done());
        if stands.is_none() && !holds {
            return;
        }
        let identity = identity();
        // The rule now has another stream or worker type: the old alert ends before a new one starts.
        let is_of_before = stands.is_some_and(|alert| alert.subject != identity.subject);
        // An alert may end before its firing notification is sent, during the debounce window or the rate limit. Keep
        // it firing until then.
        if stands.is_some_and(|alert| self.is_owed(alert, now)) && (!holds || is_of_before) {
            return;
        }
        if stands.is_none() {
            let Seen::Holds(value) = is else { return };
            let mut alert = Alert::begin(identity, value, now, self.alerts.get(key));
            alert.quiet_until = alert.quiet_until.max(self.cooldowns.get(key).copied().unwrap_or(0.0));
            self.alerts.insert(key.to_owned(), alert);
            begun = true;
        }
        let Some(alert) = self.alerts.get_mut(key) else { return };
        if is_of_before {
            let step = if alert.is_active() { alert.step(Seen::Clear(None), Policy::AT_ONCE, now) } else { Step::Same };
            note(alert, step, changes);
            return;
        }
        if holds && alert.kind == Kind::Rule {
            self.holding.insert(key.to_owned());
        }
        let mut step = alert.step(is, policy, now);
        if begun && step == Step::Same {
            step = Step::Pending;
        }
        if holds {
            (alert.detail, alert.message) = text(alert.value);
        }
        note(alert, step, changes);
    }

    /// Returns the notifications due at `now`, and the alerts they changed.
    pub fn due(&mut self, now: f64) -> (Due, Vec<Alert>) {
        self.bound_timers(now);
        let refuses: BTreeSet<String> =
            self.settings.channels.iter().filter(|channel| self.refuses(channel)).cloned().collect();
        let Self { alerts, pacing, silences, rules, settings, holding, .. } = self;
        let known: BTreeMap<&str, &Rule> = rules.rules.iter().map(|rule| (rule.name.as_str(), rule)).collect();
        let channels = |alert: &Alert| {
            let mut channels = route(rules, known.get(alert.rule.as_str()).copied(), alert, &settings.channels);
            if alert.rule == source_down::CHANNEL_BROKEN {
                channels.retain(|channel| !refuses.contains(channel) && alert.subject.as_ref() != Some(channel));
            }
            channels
        };
        let standing = Standing {
            // That a channel is broken waits until another one works.
            quiet: &|alert| {
                is_quiet(silences, rules, alert, now)
                    || (alert.rule == source_down::CHANNEL_BROKEN && channels(alert).is_empty())
            },
            channels: &channels,
            group_by: rules.group_by,
            cooldown: &|alert| cooldown(known.get(alert.rule.as_str()).copied()),
            down: &|alert| {
                alert.kind == Kind::WorkerDown
                    || known.get(alert.rule.as_str()).is_some_and(|rule| rule.is_worker_down())
            },
            repeats: &|alert| {
                holding.contains(&alert.key) && known.get(alert.rule.as_str()).is_some_and(|rule| rule.repeats)
            },
        };
        let mut due = pacing.plan(alerts, now, &standing);
        for outgoing in due.messages.iter().filter(|outgoing| outgoing.message.about == About::StillFiring) {
            for key in &outgoing.message.keys {
                holding.remove(key);
            }
        }
        for outgoing in &mut due.messages {
            for line in &mut outgoing.message.alerts {
                line.chart = alerts.get(&line.key).and_then(|alert| Charted::of(alert, rules));
                if let Some(rule) = known.get(line.rule.as_str()) {
                    line.labels.clone_from(&rule.labels);
                    let fill = |text: &String| rule.filled(text, line.subject.as_deref(), line.value);
                    line.annotations = rule.annotations.iter().map(|(key, text)| (key.clone(), fill(text))).collect();
                }
            }
        }
        let keys: BTreeSet<&String> = due.messages.iter().flat_map(|outgoing| &outgoing.message.keys).collect();
        let changed = keys.into_iter().filter_map(|key| alerts.get(key).cloned()).collect();
        (due, changed)
    }

    /// Whether the firing notification of `alert` must be sent before the alert may end.
    fn is_owed(&self, alert: &Alert, now: f64) -> bool {
        alert.phase == Phase::Firing
            && alert.kind != Kind::Happening
            && alert.rule != source_down::CHANNEL_BROKEN
            && alert.told.is_none()
            && alert.acknowledged.is_none()
            && now >= alert.quiet_until
            && !is_quiet(&self.silences, &self.rules, alert, now)
    }

    /// Whether `channel` last rejected everything, as observed by this monitor or else as stored.
    fn refuses(&self, channel: &str) -> bool {
        match self.broken.get(channel) {
            Some(broken) => broken.is_some(),
            None => self.alerts.values().any(|alert| {
                alert.rule == source_down::CHANNEL_BROKEN
                    && alert.is_active()
                    && alert.subject.as_deref() == Some(channel)
            }),
        }
    }

    /// Returns whether notifications can be delivered: a channel does not refuse everything, or none is configured.
    #[must_use]
    pub fn can_notify(&self) -> bool {
        let channels = &self.settings.channels;
        channels.is_empty() || channels.iter().any(|channel| !self.refuses(channel))
    }

    /// Removes the oldest resolved alerts.
    pub fn prune(&mut self) {
        let mut done: Vec<(f64, String)> = self
            .alerts
            .values()
            .filter(|alert| alert.is_done())
            .map(|alert| (alert.resolved_at.unwrap_or(alert.since), alert.key.clone()))
            .collect();
        let over = done.len().saturating_sub(RESOLVED_KEPT);
        done.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, key) in done.into_iter().take(over) {
            self.alerts.remove(&key);
        }
    }
}

fn note(alert: &mut Alert, step: Step, changes: &mut Vec<Change>) {
    if step == Step::Dropped {
        alert.phase = Phase::Resolved;
        alert.over_told = true;
    }
    if step != Step::Same {
        changes.push(Change { alert: alert.clone(), step });
    }
}

/// Cooldown after a notification, seconds; without a rule, that of worker types.
fn cooldown(rule: Option<&Rule>) -> f64 {
    rule.map_or(worker_down::COOLDOWN, |rule| rule.cooldown.as_secs_f64())
}

fn is_quiet(silences: &Silences, rules: &RuleSet, alert: &Alert, now: f64) -> bool {
    let subject = alert.subject.as_deref();
    silences.cover(&alert.rule, &alert.key, subject, now)
        || rules.maintenance.iter().any(|window| window.covers(&alert.rule, subject, now))
}

/// Channels of an alert: those of its rule, else of the first matching route, else all. A kind such as `email` stands
/// for every channel of that kind.
fn route(rules: &RuleSet, rule: Option<&Rule>, alert: &Alert, all: &[String]) -> Vec<String> {
    let named = |names: &[String]| {
        let is_one_of = |channel: &&String| {
            names.iter().any(|name| *channel == name || channel.split(':').next() == Some(name.as_str()))
        };
        all.iter().filter(is_one_of).cloned().collect()
    };
    if let Some(channels) = rule.and_then(|rule| rule.channels.as_ref()) {
        return named(channels);
    }
    let matches = |route: &&super::rule::Route| {
        (route.severities.is_empty() || route.severities.contains(&alert.severity))
            && route.rule.as_ref().is_none_or(|glob| glob.is_match(&alert.rule))
            && route.stream.as_ref().is_none_or(|glob| alert.subject.as_ref().is_some_and(|s| glob.is_match(s)))
    };
    rules.routes.iter().find(matches).map_or_else(|| all.to_vec(), |route| named(&route.channels))
}
