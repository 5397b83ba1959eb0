//! Backtest of rules against recorded series: when each rule would have fired, for how long, and whether a notification
//! would have been sent. Rules read series instead of snapshots; everything else is the live code.

use std::collections::{BTreeMap, BTreeSet};

use super::condition::{Memory, judge};
use super::lifecycle::{Alert, Identity, Kind, Phase, Policy, Seen, Step};
use super::rule::{Bound, Metric, Rule, RuleSet, Subjects};

/// A firing in the past. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Firing {
    /// Stream or worker type.
    pub subject: Option<String>,
    /// Time when the condition began to hold.
    pub since: f64,
    /// Time when the alert fired.
    pub fired: f64,
    /// End; `None` if it still fires at the end of the data.
    pub until: Option<f64>,
    /// Value furthest beyond the threshold.
    pub worst: Option<f64>,
    /// Time of the notification; `None` in a maintenance window or during the cooldown.
    pub told: Option<f64>,
    /// Number of repeated notifications.
    pub repeats: u32,
}

/// Result of one rule.
#[derive(Debug)]
pub struct Track<'a> {
    /// Rule.
    pub rule: &'a Rule,
    /// In firing order.
    pub firings: Vec<Firing>,
    /// Recorded series that the rule was evaluated on.
    pub series: BTreeSet<String>,
    memory: Memory,
    alerts: BTreeMap<Option<String>, Alert>,
    /// Whether its glob matches, by name.
    matches: BTreeMap<String, bool>,
}

/// State of the backtest of all rules.
#[derive(Debug)]
pub struct Replay<'a> {
    rules: &'a RuleSet,
    tracks: Vec<Track<'a>>,
}

/// Series to read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Exact names.
    pub names: BTreeSet<String>,
    /// Name prefixes.
    pub prefixes: BTreeSet<String>,
}

impl<'a> Replay<'a> {
    /// Starts a backtest.
    #[must_use]
    pub fn new(rules: &'a RuleSet) -> Self {
        let track = |rule| Track {
            rule,
            firings: Vec::new(),
            series: BTreeSet::new(),
            memory: Memory::default(),
            alerts: BTreeMap::new(),
            matches: BTreeMap::new(),
        };
        Self { rules, tracks: rules.rules.iter().map(track).collect() }
    }

    /// Returns the series that the rules need.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for track in &self.tracks {
            let Some(series) = track.rule.watch.metric.series() else { continue };
            match &track.rule.watch.of {
                None => wanted.names.insert(series.to_owned()),
                Some(Subjects::One(subject)) => wanted.names.insert(format!("{series}:{subject}")),
                Some(Subjects::Glob(..)) => wanted.prefixes.insert(format!("{series}:")),
            };
        }
        wanted
    }

    /// Evaluates the values recorded at `now`, by series.
    pub fn observe(&mut self, recorded: &BTreeMap<String, f64>, now: f64) {
        for track in &mut self.tracks {
            track.observe(recorded, now, self.rules);
        }
    }

    /// Results, in file order.
    #[must_use]
    pub fn tracks(&self) -> &[Track<'a>] {
        &self.tracks
    }
}

impl Track<'_> {
    fn observe(&mut self, recorded: &BTreeMap<String, f64>, now: f64, rules: &RuleSet) {
        let rule = self.rule;
        let Some(series) = rule.watch.metric.series() else { return };
        let glob = match &rule.watch.of {
            None => return self.see(None, series, recorded, now, rules),
            Some(Subjects::One(subject)) => {
                return self.see(Some(subject.clone()), &format!("{series}:{subject}"), recorded, now, rules);
            }
            Some(Subjects::Glob(glob)) => glob,
        };
        let prefix = format!("{series}:");
        let mut seen = BTreeSet::new();
        for name in recorded.range(prefix.clone()..).map(|(name, _)| name).take_while(|n| n.starts_with(&prefix)) {
            let subject = name.get(prefix.len()..).unwrap_or_default();
            let matches = match self.matches.get(subject) {
                Some(matches) => *matches,
                None => *self.matches.entry(subject.to_owned()).or_insert_with(|| glob.is_match(subject)),
            };
            if matches {
                seen.insert(subject.to_owned());
                self.see(Some(subject.to_owned()), name, recorded, now, rules);
            }
        }
        // As in live evaluation, alerts of removed streams end.
        let ended: Vec<Option<String>> = self
            .alerts
            .iter()
            .filter(|(subject, alert)| alert.is_active() && !subject.as_ref().is_some_and(|s| seen.contains(s)))
            .map(|(subject, _)| subject.clone())
            .collect();
        for subject in ended {
            self.step(subject, Seen::Clear(None), now, rules);
        }
    }

    fn see(
        &mut self,
        subject: Option<String>,
        series: &str,
        recorded: &BTreeMap<String, f64>,
        now: f64,
        rules: &RuleSet,
    ) {
        let value = recorded.get(series).copied();
        if value.is_some() && !self.series.contains(series) {
            self.series.insert(series.to_owned());
        }
        let seen = judge(self.rule, subject.as_deref(), value, &mut self.memory, now);
        self.step(subject, seen, now, rules);
    }

    fn step(&mut self, subject: Option<String>, seen: Seen, now: f64, rules: &RuleSet) {
        let rule = self.rule;
        let last = self.alerts.get(&subject);
        if last.is_none_or(Alert::is_done) {
            let Seen::Holds(value) = seen else { return };
            let identity = Identity {
                key: rule.key(subject.as_deref()),
                rule: rule.name.clone(),
                subject: subject.clone(),
                kind: Kind::Rule,
                severity: rule.severity,
            };
            let alert = Alert::begin(identity, value, now, last);
            self.alerts.insert(subject.clone(), alert);
        }
        let Some(alert) = self.alerts.get_mut(&subject) else { return };
        let policy = Policy { duration: rule.duration, resolve_after: rule.resolve_after, not_before: 0.0 };
        match alert.step(seen, policy, now) {
            Step::Fired => self.firings.push(Firing {
                subject: subject.clone(),
                since: alert.since,
                fired: now,
                until: None,
                worst: None,
                told: None,
                repeats: 0,
            }),
            Step::Dropped => (alert.phase, alert.over_told) = (Phase::Resolved, true),
            _ => {}
        }
        let Some(firing) = self.firings.iter_mut().rev().find(|firing| firing.subject == subject) else { return };
        if firing.until.is_some() || alert.phase == Phase::Pending {
            return;
        }
        if alert.phase == Phase::Resolved {
            firing.until = Some(now);
            return;
        }
        if let Seen::Holds(Some(value)) = seen {
            let worse = if matches!(rule.bound, Bound::Below(_)) { f64::min } else { f64::max };
            firing.worst = Some(firing.worst.map_or(value, |worst| worse(worst, value)));
        }
        let quiet = rules.maintenance.iter().any(|window| window.covers(&rule.name, subject.as_deref(), now));
        if !quiet && now >= alert.quiet_until {
            match firing.told {
                None => firing.told = Some(now),
                Some(_) if rule.repeats && matches!(seen, Seen::Holds(_)) => firing.repeats += 1,
                Some(_) => return,
            }
            alert.quiet_until = now + rule.cooldown.as_secs_f64();
        }
    }
}

impl Firing {
    /// Duration, seconds; `end` is the end of the recorded data.
    #[must_use]
    pub fn lasted(&self, end: f64) -> f64 {
        (self.until.unwrap_or(end) - self.fired).max(0.0)
    }
}

impl Metric {
    /// Name of the recorded series; for a stream or worker type, the part before `:`. `None` if it is not recorded.
    #[must_use]
    pub fn series(self) -> Option<&'static str> {
        Some(match self {
            Self::Xlen => "xlen",
            Self::Pending => "pending",
            Self::PhantomPending => "phantom_pending",
            Self::Lag => "lag",
            Self::LagSeconds => "oldest_waiting_sec",
            Self::Consumers => "consumers",
            Self::Failures => "failures",
            Self::WorkersAlive => "workers_alive",
            Self::Backlog => "backlog",
            Self::Capacity => "capacity",
            Self::QueriesInState => "pg:state",
            Self::CallbacksPending => "pg:callbacks_pending",
            Self::OldestCallbackAge => "pg:oldest_callback_age_sec",
            Self::QueriesLastHour => "pg:queries_last_1h",
            Self::PgConnections => "pg:connection_count",
            Self::DbSize => "pg:db_size_bytes",
            Self::WalSize => "pg:wal_size_bytes",
            Self::DiskUsed => "pg:disk_used_bytes",
            Self::DiskUsedPct => "pg:disk_used_pct",
            Self::DiskCapacity => "pg:disk_capacity_bytes",
            Self::RedisMemory => "redis:used_memory_bytes",
            Self::RedisClients => "redis:connected_clients",
            Self::RedisOps => "redis:ops_per_sec",
            Self::DrainSeconds
            | Self::AddedPerSec
            | Self::LostWorkers
            | Self::HungWorkers
            | Self::Utilization
            | Self::DiskFullIn
            | Self::RedisMemoryPct
            | Self::RedisEvicted
            | Self::RedisDown
            | Self::PostgresDown
            | Self::LoginRefused => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerting::file;

    /// Subject, start, end, and time of the notification of a firing.
    type Fired = (Option<String>, f64, Option<f64>, Option<f64>);

    /// Replays `rules` over these values, one every 30 s; `None` means that nothing was recorded.
    fn replayed(rules: &str, series: &[(&str, &[Option<f64>])]) -> Vec<Vec<Fired>> {
        let rules = file::read(rules).unwrap();
        let mut replay = Replay::new(&rules);
        for i in 0..series.iter().map(|(_, values)| values.len()).max().unwrap() {
            let at = |(name, values): &(&str, &[Option<f64>])| Some(((*name).to_owned(), values.get(i).copied()??));
            replay.observe(&series.iter().filter_map(at).collect(), i as f64 * 30.0);
        }
        let summary = |firing: &Firing| (firing.subject.clone(), firing.fired, firing.until, firing.told);
        replay.tracks().iter().map(|track| track.firings.iter().map(summary).collect()).collect()
    }

    #[test]
    fn rule_fires_after_its_duration_and_notifies_once_per_cooldown() {
        let high = |pattern: &str| pattern.chars().map(|c| Some(if c == '#' { 9.0 } else { 1.0 })).collect::<Vec<_>>();
        let values = high("..####..##......###.###########");
        let fired = replayed(
            "rules: [{name: r, type: threshold, metric: xlen, stream: s, threshold: 5, duration: 60s, cooldown: 8m}]",
            &[("xlen:s", &values)],
        );
        // The condition holds from 60 s on; the second time too briefly; the third time within the cooldown, which ends
        // at 600 s; the fourth returns soon and still fires at the end.
        let of_s = |(fired, until, told)| (Some("s".to_owned()), fired, until, told);
        let expected = [(120.0, Some(180.0), Some(120.0)), (540.0, Some(570.0), None), (660.0, None, Some(660.0))];
        assert_eq!(fired, [expected.map(of_s)]);
    }

    #[test]
    fn glob_has_one_alert_per_stream_and_removed_streams_resolve() {
        let (there, gone) = ([Some(9.0); 4], [Some(9.0), Some(9.0), None, None]);
        let fired = replayed(
            "rules: [{name: r, type: threshold, metric: backlog, worker: 'a*', threshold: 5}]",
            &[("backlog:a1", &there), ("backlog:a2", &gone), ("backlog:b", &there), ("backlogs:a", &there)],
        );
        let told = Some(0.0);
        assert_eq!(fired, [[(Some("a1".to_owned()), 0.0, None, told), (Some("a2".to_owned()), 0.0, Some(60.0), told)]]);
    }

    #[test]
    fn failed_tasks_are_replayed_per_stream() {
        let (some, many) = ([Some(0.0), Some(2.0), Some(2.0)], [Some(0.0), Some(12.0), Some(0.0)]);
        let fired = replayed(
            "rules: [{name: r, type: threshold, metric: failures, stream: 'a*', threshold: 10}]",
            &[("failures:a1", &some), ("failures:a:2", &many)],
        );
        assert_eq!(fired, [[(Some("a:2".to_owned()), 30.0, Some(60.0), Some(30.0))]]);
    }

    #[test]
    fn missing_values_and_maintenance_windows() {
        let values = [Some(9.0), None, None, Some(9.0), Some(1.0)];
        let fired = replayed(
            "
rules:
  - {name: keeps, type: threshold, metric: pg_connection_count, threshold: 5}
  - {name: resolves, type: threshold, metric: pg_connection_count, threshold: 5, missing: resolves, cooldown: 0}
  - {name: none, type: no_data, metric: pg_connection_count}
  - {name: unrecorded, type: drain_time, stream: s, threshold: 1}
maintenance: [{from: 1970-01-01T00:00:00Z, until: 1970-01-01T00:01:10Z, rule: resolves}]
",
            &[("pg:connection_count", &values)],
        );
        assert_eq!(
            fired,
            [
                vec![(None, 0.0, Some(120.0), Some(0.0))],
                vec![(None, 0.0, Some(30.0), None), (None, 90.0, Some(120.0), Some(90.0))],
                vec![(None, 30.0, Some(90.0), Some(30.0))],
                vec![],
            ]
        );
    }
}
