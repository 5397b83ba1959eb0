//! Whether an older monitor is active on the same Redis, decided from the keys that only it writes.
//!
//! Times in those keys may come from a clock that is wrong, and a monitor that has just stopped leaves recent ones:
//! what counts is that they change between two looks.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::time::Mono;
use crate::contract::Name;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Time between two looks while the answer is not known.
const LOOK_SOON: Duration = Duration::from_secs(2);
/// Traces that are younger than this may be of a monitor that is active: it writes states with every tick, series
/// every 30 s.
const RECENT_SEC: f64 = 60.0;
/// Recent traces that do not change for so long are of a monitor that has stopped.
const STOPPED_AFTER: Duration = Duration::from_secs(45);
/// A monitor that was active and writes nothing for so long has stopped.
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
    /// It is active, or that is not known yet: what it depends on is left to it.
    #[must_use]
    pub fn may_be_active(self) -> bool {
        self != Self::Absent
    }
}

/// What the older monitor wrote last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traces {
    /// The state of a worker type that is alive, which it rewrites with every tick.
    pub worker_state: Option<(Name, Vec<u8>)>,
    /// The newest sample of a series that it always records.
    pub sample: Option<Vec<u8>>,
    /// The newest time in any of them, Unix seconds.
    pub newest: Option<f64>,
}

/// Follows the traces.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// When the first look was, and the last one with what it found.
    looks: Option<(Mono, Mono, Traces)>,
    changed: Option<Mono>,
    verdict: Option<OlderMonitor>,
}

impl Watch {
    /// Whether it is time for a look.
    #[must_use]
    pub fn is_due(&self, now: Mono) -> bool {
        let rest = if self.verdict() == OlderMonitor::Unknown { LOOK_SOON } else { LOOK_EVERY };
        self.looks.as_ref().is_none_or(|(_, last, _)| now.since(*last) >= rest)
    }

    /// Takes in what a look found, at `wall` by Redis' clock (Unix seconds).
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

    /// The answer as of the last look.
    #[must_use]
    pub fn verdict(&self) -> OlderMonitor {
        self.verdict.unwrap_or(OlderMonitor::Unknown)
    }
}

/// Whether something was written between the two looks. A key that is gone was deleted or evicted.
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
    fn a_redis_without_traces_or_with_old_ones_has_no_active_older_monitor() {
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
    fn one_that_keeps_writing_is_active_and_one_that_stops_is_gone() {
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
    fn one_that_stopped_just_before_is_called_absent_and_never_active() {
        let mut watch = Watch::default();
        for seconds in (0..60).step_by(2) {
            watch.looked(at(seconds), 1000.0 + seconds as f64, state(998.0));
            assert_eq!(watch.verdict() == OlderMonitor::Unknown, seconds < 45, "{seconds}");
            assert_ne!(watch.verdict(), OlderMonitor::Active);
        }
    }

    #[test]
    fn a_wrong_clock_does_not_hide_it() {
        let mut watch = Watch::default();
        watch.looked(at(0), 1_000_000.0, state(10.0));
        watch.looked(at(15), 1_000_015.0, state(25.0));
        assert_eq!(watch.verdict(), OlderMonitor::Active);
    }

    #[test]
    fn what_is_evicted_or_another_type_looked_at_is_no_sign() {
        let mut watch = Watch::default();
        watch.looked(at(0), 1000.0, state(999.0));
        watch.looked(at(2), 1002.0, Traces::default());
        let other = Traces { worker_state: Some((Name::from("sipr"), b"{}".to_vec())), ..Traces::default() };
        watch.looked(at(4), 1004.0, other);
        assert_eq!(watch.verdict(), OlderMonitor::Unknown);
    }

    #[test]
    fn without_living_workers_its_series_are_the_sign() {
        let sample = |at: &str| Traces { sample: Some(at.into()), newest: Some(1000.0), ..Traces::default() };
        let mut watch = Watch::default();
        watch.looked(at(0), 1000.0, sample("970:0"));
        watch.looked(at(30), 1030.0, sample("1000:0"));
        assert_eq!(watch.verdict(), OlderMonitor::Active);
    }
}
