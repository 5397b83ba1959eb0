//! Groups alerts into notifications and decides when they are sent.
//!
//! Worker-down alerts within the debounce window form one notification. Alerts that fire at the same time are grouped
//! by the rules file's `group_by` (default: rule and severity). Everything else is sent at once and separately. The
//! rate limit merges the rest into "and 340 more". While the condition of a repeating rule holds, its notification is
//! sent again after each cooldown.

use std::collections::{BTreeMap, VecDeque};

use super::lifecycle::{Alert, Notified, Phase};
use super::message::{About, Message, about};
use super::rule::{GroupBy, Severity};

/// Notifications per minute, for critical and for other ones separately.
pub const PER_MINUTE: usize = 20;
/// Maximum length of a debounce window that new alerts extend, in multiples of the debounce time.
const WINDOW_AT_MOST: f64 = 3.0;

/// Schedules notifications and enforces the rate limit.
#[derive(Debug, Clone)]
pub struct Pacing {
    debounce: f64,
    per_minute: usize,
    critical: VecDeque<f64>,
    others: VecDeque<f64>,
}

/// A notification and its channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Notification to send.
    pub message: Message,
    /// Channels that receive it.
    pub channels: Vec<String>,
}

/// Notifications that are due.
#[derive(Debug, Default)]
pub struct Due {
    /// In sending order.
    pub messages: Vec<Outgoing>,
    /// Latest time for the next planning, if an alert waits for one.
    pub next: Option<f64>,
}

/// Properties of alerts that planning needs beyond the alert itself.
pub struct Standing<'a> {
    /// Whether it is silenced, acknowledged or in a maintenance window.
    pub quiet: &'a dyn Fn(&Alert) -> bool,
    /// Channels of the alert.
    pub channels: &'a dyn Fn(&Alert) -> Vec<String>,
    /// Grouping of the rules file.
    pub group_by: GroupBy,
    /// Cooldown of its rule after a notification, seconds.
    pub cooldown: &'a dyn Fn(&Alert) -> f64,
    /// Whether it is about a worker type without workers.
    pub down: &'a dyn Fn(&Alert) -> bool,
    /// Whether to send it again after the cooldown: its rule repeats, and its condition holds in the latest snapshot.
    pub repeats: &'a dyn Fn(&Alert) -> bool,
}

/// Group key of the alerts in one notification.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    /// Worker types at zero.
    down: bool,
    rule: Option<&'a str>,
    severity: Option<Severity>,
    stream: Option<&'a str>,
    channels: Vec<String>,
}

impl<'a> Group<'a> {
    fn of(alert: &'a Alert, down: bool, standing: &Standing<'_>) -> Self {
        let by = standing.group_by;
        let channels = (standing.channels)(alert);
        if down {
            return Self { down, rule: None, severity: None, stream: None, channels };
        }
        Self {
            down,
            rule: by.rule.then_some(alert.rule.as_str()),
            severity: by.severity.then_some(alert.severity),
            // An alert without a stream is not grouped by stream.
            stream: by.stream.then_some(alert.subject.as_deref().unwrap_or(&alert.key)),
            channels,
        }
    }

    fn batch(self, about: About, alerts: &[&Alert], thread: Option<String>) -> Batch {
        Batch {
            keys: alerts.iter().map(|alert| alert.key.clone()).collect(),
            channels: self.channels,
            about,
            down: self.down,
            severity: alerts.iter().map(|alert| alert.severity).max().unwrap_or(Severity::Info),
            thread,
        }
    }
}

struct Batch {
    keys: Vec<String>,
    channels: Vec<String>,
    about: About,
    down: bool,
    severity: Severity,
    thread: Option<String>,
}

/// Priority under the rate limit; repeated notifications are the least urgent.
fn urgency(about: About) -> u8 {
    match about {
        About::Firing | About::Test => 0,
        About::Resolved => 1,
        About::StillFiring => 2,
    }
}

impl Pacing {
    /// Gathers worker-down alerts for `debounce` seconds; allows at most `per_minute` notifications per minute.
    #[must_use]
    pub fn new(debounce: f64, per_minute: usize) -> Self {
        Self { debounce, per_minute, critical: VecDeque::new(), others: VecDeque::new() }
    }

    /// Shifts all timers by a step of the wall clock, in seconds.
    pub fn shift_timers(&mut self, by: f64) {
        for at in self.critical.iter_mut().chain(&mut self.others) {
            *at += by;
        }
    }

    /// Returns the notifications due at `now` and marks their alerts as sent.
    pub fn plan(&mut self, alerts: &mut BTreeMap<String, Alert>, now: f64, standing: &Standing<'_>) -> Due {
        let mut next = f64::INFINITY;
        let mut batches = self.firing(alerts, now, standing, &mut next);
        batches.extend(self.over(alerts, now, standing, &mut next));
        batches.extend(repeated(alerts, now, standing));
        batches.sort_by_key(|batch| (urgency(batch.about), std::cmp::Reverse(batch.severity)));
        let (critical, others): (Vec<_>, Vec<_>) = batches.into_iter().partition(|b| b.severity == Severity::Critical);
        let mut due = Due::default();
        for (batches, sent) in [(critical, &mut self.critical), (others, &mut self.others)] {
            while sent.front().is_some_and(|at| now - at >= 60.0) {
                sent.pop_front();
            }
            let room = self.per_minute.saturating_sub(sent.len());
            let apart = if batches.len() <= room { batches.len() } else { room.saturating_sub(1) };
            let mut batches = batches.into_iter();
            let mut out: Vec<Batch> = batches.by_ref().take(apart).collect();
            if room > 0 {
                out.extend(merged(batches));
            } else if batches.next().is_some() {
                next = next.min(sent.front().map_or(now, |at| at + 60.0));
            }
            for batch in out {
                sent.push_back(now);
                due.messages.push(tell(alerts, batch, now, standing));
            }
        }
        due.next = next.is_finite().then_some(next);
        due
    }

    fn firing(
        &self,
        alerts: &BTreeMap<String, Alert>,
        now: f64,
        standing: &Standing<'_>,
        next: &mut f64,
    ) -> Vec<Batch> {
        let mut down: Vec<&Alert> = Vec::new();
        let mut groups: BTreeMap<Group<'_>, Vec<&Alert>> = BTreeMap::new();
        for alert in alerts.values().filter(|alert| alert.phase == Phase::Firing && alert.told.is_none()) {
            if alert.acknowledged.is_some() || (standing.quiet)(alert) {
                continue;
            }
            if now < alert.quiet_until {
                *next = next.min(alert.quiet_until);
                continue;
            }
            if (standing.down)(alert) {
                down.push(alert);
            } else {
                groups.entry(Group::of(alert, false, standing)).or_default().push(alert);
            }
        }
        if self.window_closes(down.iter().filter_map(|a| a.fired_at.map(|at| at.max(a.quiet_until))), now, next) {
            for alert in down {
                groups.entry(Group::of(alert, true, standing)).or_default().push(alert);
            }
        }
        groups.into_iter().map(|(group, alerts)| group.batch(About::Firing, &alerts, None)).collect()
    }

    /// Resolved notifications go to the channels that received the firing one.
    fn over(&self, alerts: &BTreeMap<String, Alert>, now: f64, standing: &Standing<'_>, next: &mut f64) -> Vec<Batch> {
        let mut threads: BTreeMap<(&str, &[String], bool), Vec<&Alert>> = BTreeMap::new();
        for alert in alerts.values().filter(|alert| alert.phase == Phase::Resolved && !alert.over_told) {
            if let Some(told) = &alert.told {
                let down = (standing.down)(alert);
                threads.entry((&told.message, &told.channels, down)).or_default().push(alert);
            }
        }
        let mut batches = Vec::new();
        for ((thread, channels, down), alerts) in threads {
            if down && !self.window_closes(alerts.iter().filter_map(|a| a.resolved_at), now, next) {
                continue;
            }
            let group = Group { down, rule: None, severity: None, stream: None, channels: channels.to_vec() };
            batches.push(group.batch(About::Resolved, &alerts, Some(thread.to_owned())));
        }
        batches
    }

    /// Whether the debounce window of alerts that arrived at `moments` has closed.
    fn window_closes(&self, moments: impl Iterator<Item = f64>, now: f64, next: &mut f64) -> bool {
        // A time in the future stems from a clock that was set back since.
        let moments = moments.map(|at| at.min(now));
        let (first, last) = moments.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), at| (a.min(at), b.max(at)));
        if first.is_infinite() {
            return false;
        }
        let closes = (last + self.debounce).min(first + self.debounce * WINDOW_AT_MOST);
        // The tolerance avoids another round because of the clock's resolution.
        if now + 0.001 >= closes {
            return true;
        }
        *next = next.min(closes);
        false
    }
}

/// Alerts whose cooldown has elapsed and whose condition still holds.
fn repeated(alerts: &BTreeMap<String, Alert>, now: f64, standing: &Standing<'_>) -> Vec<Batch> {
    let mut groups: BTreeMap<Group<'_>, Vec<&Alert>> = BTreeMap::new();
    for alert in alerts.values().filter(|alert| alert.phase == Phase::Firing && alert.told.is_some()) {
        let is_due = now >= alert.quiet_until && (standing.repeats)(alert);
        if is_due && alert.acknowledged.is_none() && !(standing.quiet)(alert) {
            groups.entry(Group::of(alert, (standing.down)(alert), standing)).or_default().push(alert);
        }
    }
    let batch = |(group, alerts): (Group<'_>, Vec<&Alert>)| {
        let mut threads = alerts.iter().filter_map(|alert| alert.told.as_ref()).map(|told| &told.message);
        let first = threads.next();
        let thread = first.filter(|first| threads.all(|other| other == *first)).cloned();
        group.batch(About::StillFiring, &alerts, thread)
    };
    groups.into_iter().map(batch).collect()
}

/// Merges the notifications above the rate limit into as few as their channels allow.
fn merged(batches: impl Iterator<Item = Batch>) -> Vec<Batch> {
    let mut merged: BTreeMap<(u8, Vec<String>), Batch> = BTreeMap::new();
    for batch in batches {
        match merged.entry((urgency(batch.about), batch.channels.clone())) {
            std::collections::btree_map::Entry::Vacant(vacant) => drop(vacant.insert(batch)),
            std::collections::btree_map::Entry::Occupied(mut occupied) => {
                let existing = occupied.get_mut();
                existing.keys.extend(batch.keys);
                existing.severity = existing.severity.max(batch.severity);
                existing.down &= batch.down;
            }
        }
    }
    merged.into_values().collect()
}

fn tell(alerts: &mut BTreeMap<String, Alert>, batch: Batch, now: f64, standing: &Standing<'_>) -> Outgoing {
    let named: Vec<&Alert> = batch.keys.iter().filter_map(|key| alerts.get(key)).collect();
    let message = about(batch.about, &named, batch.down, batch.thread.as_deref(), now);
    for key in &batch.keys {
        let Some(alert) = alerts.get_mut(key) else { continue };
        if batch.about == About::Resolved {
            alert.over_told = true;
            continue;
        }
        alert.quiet_until = now + (standing.cooldown)(alert);
        match &mut alert.told {
            Some(told) => {
                told.at = now;
                let new = batch.channels.iter().filter(|channel| !told.channels.contains(channel));
                let new: Vec<String> = new.cloned().collect();
                told.channels.extend(new);
            }
            None => {
                alert.told = Some(Notified { at: now, message: message.id.clone(), channels: batch.channels.clone() })
            }
        }
    }
    Outgoing { message, channels: batch.channels }
}
