//! Detects an older monitor on the same Redis from the keys that only it writes.
//!
//! Timestamps in those keys may come from a wrong clock, and a monitor that has just stopped leaves recent ones, so
//! detection relies on changes between two checks.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::time::Mono;
use crate::contract::Name;

/// Interval between checks.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Interval between checks while the result is undecided.
const LOOK_SOON: Duration = Duration::from_secs(2);
/// Keys younger than this, in seconds, may come from an active monitor: it writes states with every poll and series
/// every 30 s.
const RECENT_SEC: f64 = 60.0;
/// Recent keys that do not change for this long come from a stopped monitor.
const STOPPED_AFTER: Duration = Duration::from_secs(45);
/// An active monitor that writes nothing for this long has stopped.
const GONE_AFTER: Duration = Duration::from_secs(90);

/// Whether an older monitor is active on the same Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OlderMonitor {
    /// Not active.
    #[default]
    Absent,
    /// Unknown: it wrote less than a minute ago and may have stopped since.
    Unknown,
    /// Active: it keeps writing its state.
    Active,
}

impl OlderMonitor {
    /// Whether it is active or undecided. Work that it depends on is left to it.
    #[must_use]
    pub fn may_be_active(self) -> bool {
        self != Self::Absent
    }
}

/// Newest values that the older monitor wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traces {
    /// State of an alive worker type, which it rewrites with every poll.
    pub worker_state: Option<(Name, Vec<u8>)>,
    /// Newest sample of a series that it always records.
    pub sample: Option<Vec<u8>>,
    /// Newest timestamp in these values, Unix seconds.
    pub newest: Option<f64>,
}

/// Compares these values over time.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Times of the first and the latest check, and the values of the latest.
    looks: Option<(Mono, Mono, Traces)>,
    changed: Option<Mono>,
    verdict: Option<OlderMonitor>,
}

impl Watch {
    /// Whether a check is due.
    #[must_use]
    pub fn is_due(&self, now: Mono) -> bool {
        let rest = if self.verdict() == OlderMonitor::Unknown { LOOK_SOON } else { LOOK_EVERY };
        self.looks.as_ref().is_none_or(|(_, last, _)| now.since(*last) >= rest)
    }

    /// Applies the result of a check made at `wall` by Redis' clock (Unix seconds).
    pub fn looked(&mut self, now: Mono, wall: f64, found: Traces) {
        let Some((first, _, before)) = self.looks.take() else {
            let recent = found.newest.is_some_and(|newest| (wall - newest).abs() < RECENT_SEC);
            self.verdict = Some(if recent { OlderMonitor::Unknown } else { OlderMonitor::Absent });
            self.looks = Some((now, now, found));
            return;
        };
        if has_written(&before, &found) {
            self.changed = Some(now);
        }
        self.verdict = Some(match self.changed {
            Some(changed) if now.since(changed) < GONE_AFTER => OlderMonitor::Active,
            Some(_) => OlderMonitor::Absent,
            None if self.verdict() == OlderMonitor::Unknown && now.since(first) < STOPPED_AFTER => {
                OlderMonitor::Unknown
            }
            None => OlderMonitor::Absent,
        });
        self.looks = Some((first, now, found));
    }

    /// Result as of the latest check.
    #[must_use]
    pub fn verdict(&self) -> OlderMonitor {
        self.verdict.unwrap_or(OlderMonitor::Unknown)
    }
}

/// Whether a value changed between two checks. A missing key was deleted or evicted and proves nothing.
fn has_written(before: &Traces, found: &Traces) -> bool {
    let state = match (&before.worker_state, &found.worker_state) {
        (Some((name, before)), Some((same, found))) => name == same && before != found,
        _ => false,
    };
    state || (found.sample.is_some() && before.sample != found.sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1000)
    }

    fn state(seen: f64) -> Traces {
        let json = format!("{{\"last_seen_alive\": {seen}}}").into_bytes();
        Traces { worker_state: Some((Name::from("arax"), json)), sample: None, newest: Some(seen) }
    }

    #[test]
    fn missing_or_old_keys_mean_no_older_monitor() {
        for found in [Traces::default(), state(1000.0 - 3600.0)] {
            let mut watch = Watch::default();
            assert!(watch.is_due(at(0)) && watch.verdict() == OlderMonitor::Unknown);
            watch.looked(at(0), 1000.0, found.clone());
            assert_eq!(watch.verdict(), OlderMonitor::Absent);
            watch.looked(at(15), 1015.0, found);
            assert_eq!(watch.verdict(), OlderMonitor::Absent);
        }
    }

    #[test]
    fn changing_keys_mean_active_until_they_stop_changing() {
        let mut watch = Watch::default();
        watch.looked(at(0), 1000.0, state(999.0));
        assert_eq!(watch.verdict(), OlderMonitor::Unknown);
        assert!(!watch.is_due(at(1)) && watch.is_due(at(2)));
        watch.looked(at(2), 1002.0, state(1001.0));
        assert_eq!(watch.verdict(), OlderMonitor::Active);
        assert!(!watch.is_due(at(10)), "a look costs Redis something");
        for seconds in (17..90).step_by(15) {
            watch.looked(at(seconds), 1000.0, state(1001.0));
            assert_eq!(watch.verdict(), OlderMonitor::Active, "{seconds}");
        }
        watch.looked(at(92), 1092.0, state(1001.0));
        assert_eq!(watch.verdict(), OlderMonitor::Absent);
        watch.looked(at(107), 1107.0, state(1106.0));
        assert_eq!(watch.verdict(), OlderMonitor::Active, "it came back");
    }

    #[test]
    fn recently_stopped_monitor_is_never_active() {
        let mut watch = Watch::default();
        for seconds in (0..60).step_by(2) {
            watch.looked(at(seconds), 1000.0 + seconds as f64, state(998.0));
            assert_eq!(watch.verdict() == OlderMonitor::Unknown, seconds < 45, "{seconds}");
            assert_ne!(watch.verdict(), OlderMonitor::Active);
        }
    }

    #[test]
    fn wrong_clock_does_not_prevent_detection() {
        let mut watch = Watch::default();
        watch.looked(at(0), 1_000_000.0, state(10.0));
        watch.looked(at(15), 1_000_015.0, state(25.0));
        assert_eq!(watch.verdict(), OlderMonitor::Active);
    }

    #[test]
    fn eviction_or_a_different_sampled_type_is_not_a_change() {
        let mut watch = Watch::default();
        watch.looked(at(0), 1000.0, state(999.0));
        watch.looked(at(2), 1002.0, Traces::default());
        let other = Traces { worker_state: Some((Name::from("sipr"), b"{}".to_vec())), ..Traces::default() };
        watch.looked(at(4), 1004.0, other);
        assert_eq!(watch.verdict(), OlderMonitor::Unknown);
    }

    #[test]
    fn series_are_used_without_alive_workers() {
        let sample = |at: &str| Traces { sample: Some(at.into()), newest: Some(1000.0), ..Traces::default() };
        let mut watch = Watch::default();
        watch.looked(at(0), 1000.0, sample("970:0"));
        watch.looked(at(30), 1030.0, sample("1000:0"));
        assert_eq!(watch.verdict(), OlderMonitor::Active);
    }
}
