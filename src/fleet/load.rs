//! Load of a stream: lag where Redis reports null, backlog, utilization, and rates.

use std::collections::VecDeque;
use std::time::Duration;

use super::reading::{GroupReading, Lag, StreamFacts};
use super::time::Mono;

/// Limit for counting entries on either side of a group's position when Redis reports no lag.
pub const COUNT_BOUND: u64 = 100;

/// Facts about a group's undelivered entries when Redis reports no `lag`. Counts stop at [`COUNT_BOUND`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LagClues {
    /// XLEN of the stream.
    pub length: u64,
    /// Entries up to the group's position that still exist. Workers that delete finished entries leave few of them, so
    /// `length` minus this is exact.
    pub delivered: Option<u64>,
    /// Entries after the group's position.
    pub undelivered: Option<u64>,
}

/// Returns the lag of a group: the reported value, capped at the stream length (Redis before 7.2 counts trimmed entries
/// too); otherwise a value derived from the length; otherwise a bounded count.
#[must_use]
pub fn lag(reported: Option<u64>, clues: LagClues) -> Lag {
    match (reported, clues.delivered, clues.undelivered) {
        (Some(lag), ..) if lag <= clues.length => Lag::Reported(lag),
        (Some(_), ..) => Lag::Derived(clues.length),
        (None, ..) if clues.length == 0 => Lag::Derived(0),
        (None, Some(delivered), _) if delivered < COUNT_BOUND => Lag::Derived(clues.length.saturating_sub(delivered)),
        (None, _, Some(undelivered)) if undelivered < COUNT_BOUND => Lag::Counted(undelivered.min(clues.length)),
        (None, _, Some(undelivered)) => Lag::AtLeast(undelivered.min(clues.length)),
        (None, _, None) => Lag::Unknown,
    }
}

/// Backlog of a stream: undelivered plus pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Undelivered entries of the group that is furthest behind; without groups, the length of the stream.
    pub undelivered: Option<u64>,
    /// `undelivered` is a lower bound.
    pub at_least: bool,
    /// Delivered and not acknowledged, in all groups.
    pub pending: u64,
    /// Pending IDs whose entry no longer exists, so no worker can process them.
    pub phantom_pending: u64,
    /// `phantom_pending` is a lower bound.
    pub phantom_at_least: bool,
}

impl Backlog {
    /// Computes the backlog of a stream.
    #[must_use]
    pub fn of(facts: &StreamFacts) -> Self {
        let pending = facts.groups.iter().map(|g| g.pending).sum();
        let phantom_pending = facts.groups.iter().map(|g| g.phantom_pending).sum();
        let phantom_at_least = facts.groups.iter().any(|g| g.phantom_at_least);
        let furthest = facts.groups.iter().max_by_key(|g| g.lag.value());
        let Some(furthest) = furthest else {
            return Self {
                undelivered: Some(facts.length),
                at_least: false,
                pending,
                phantom_pending,
                phantom_at_least,
            };
        };
        let all_known = facts.groups.iter().all(|g| g.lag.value().is_some());
        Self {
            undelivered: furthest.lag.value().filter(|_| all_known),
            at_least: facts.groups.iter().any(|g| g.lag.is_lower_bound()),
            pending,
            phantom_pending,
            phantom_at_least,
        }
    }

    /// Undelivered plus pending, without phantom IDs; `None` when the undelivered number is unknown.
    #[must_use]
    pub fn total(self) -> Option<u64> {
        self.undelivered.map(|n| n + self.pending.saturating_sub(self.phantom_pending))
    }
}

/// Returns backlog / capacity; 1 when there is a backlog without capacity; `None` when the backlog is unknown.
#[must_use]
pub fn utilization(backlog: Option<u64>, capacity: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    backlog.map(|backlog| match (backlog, capacity) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (backlog, capacity) => backlog as f64 / capacity as f64,
    })
}

/// Window of the rates.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Counters of a stream over the last minute, for its arrival and read rates.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    samples: VecDeque<(Mono, Counters)>,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    added: u64,
    read: u64,
}

/// Entries per second over the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Rate of added entries.
    pub added: Option<f64>,
    /// Rate of entries read by the group.
    pub read: Option<f64>,
}

impl Rates {
    /// Records a reading. Counters that decreased (a recreated stream) start over.
    pub fn record(&mut self, now: Mono, facts: &StreamFacts) {
        let counters = match facts.groups.as_slice() {
            [GroupReading { lag: Lag::Reported(lag), entries_read: Some(read), .. }] => {
                Some(Counters { added: read + lag, read: *read })
            }
            _ => None,
        };
        let Some(counters) = counters else {
            self.samples.clear();
            return;
        };
        if self.samples.back().is_some_and(|(_, last)| counters.added < last.added || counters.read < last.read) {
            self.samples.clear();
        }
        self.samples.push_back((now, counters));
        while self.samples.get(1).is_some_and(|(at, _)| now.since(*at) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Returns the rates, once at least two readings are recorded.
    #[must_use]
    pub fn per_second(&self) -> Rate {
        let (Some((first_at, first)), Some((last_at, last))) = (self.samples.front(), self.samples.back()) else {
            return Rate::default();
        };
        let seconds = last_at.since(*first_at).as_secs_f64();
        if seconds < 1.0 {
            return Rate::default();
        }
        #[expect(clippy::cast_precision_loss, reason = "differences far below 2^53")]
        let rate = |from: u64, to: u64| Some(((to - from) as f64 / seconds * 100.0).round() / 100.0);
        Rate { added: rate(first.added, last.added), read: rate(first.read, last.read) }
    }
}

impl Rate {
    /// Time to drain `backlog` at these rates, seconds; `None` when it is not shrinking.
    #[must_use]
    pub fn drain_sec(self, backlog: Option<u64>) -> Option<f64> {
        let net = self.read? - self.added?;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        match backlog? {
            0 => Some(0.0),
            backlog if net > 0.0 => Some((backlog as f64 / net).round()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lag_is_capped_at_length_and_marks_lower_bounds(
            entries in proptest::collection::vec(any::<bool>(), 0..400), reported in proptest::option::of(0..1000_u64),
            asked in any::<(bool, bool)>(),
        ) {
            let length = entries.len() as u64;
            let undelivered = entries.iter().filter(|new| **new).count() as u64;
            let clues = LagClues {
                length,
                delivered: asked.0.then_some((length - undelivered).min(COUNT_BOUND)),
                undelivered: asked.1.then_some(undelivered.min(COUNT_BOUND)),
            };
            let lag = lag(reported, clues);
            prop_assert!(lag.value().is_none_or(|n| n <= length));
            if reported.is_none() {
                match lag {
                    Lag::AtLeast(n) => prop_assert!(n <= undelivered),
                    Lag::Unknown => prop_assert_eq!(clues.undelivered, None),
                    exact => prop_assert_eq!(exact.value(), Some(undelivered)),
                }
            }
        }
    }

    #[test]
    fn backlog_excludes_phantom_pending() {
        let group = |pending, phantom_pending, lag| GroupReading {
            name: "g".into(),
            pending,
            phantom_pending,
            phantom_at_least: false,
            lag,
            entries_read: None,
            last_delivered_id: String::new(),
            oldest_undelivered_ms: None,
            consumers: None,
        };
        let backlog = |groups: Vec<GroupReading>| Backlog::of(&StreamFacts { exists: true, length: 9, groups }).total();
        assert_eq!(backlog(vec![group(5, 5, Lag::Reported(0))]), Some(0));
        assert_eq!(backlog(vec![group(5, 3, Lag::Reported(4))]), Some(6));
        assert_eq!(backlog(vec![group(5, 5, Lag::Reported(0)), group(2, 0, Lag::Counted(1))]), Some(3));
        assert_eq!(backlog(vec![group(5, 5, Lag::Unknown)]), None);
    }

    #[test]
    fn utilization_without_capacity_or_backlog() {
        assert_eq!(utilization(Some(3), 0), Some(1.0));
        assert_eq!(utilization(Some(0), 0), Some(0.0));
        assert_eq!(utilization(Some(25), 50), Some(0.5));
        assert_eq!(utilization(None, 50), None);
    }
}
