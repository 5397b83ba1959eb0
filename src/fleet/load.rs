//! How much work there is: lag where Redis says null, backlog, utilization, rates.

use std::collections::VecDeque;
use std::time::Duration;

use super::reading::{GroupReading, Lag, StreamFacts};
use super::time::Mono;

/// How far the entries on either side of a group's position are counted when Redis says null.
pub const COUNT_BOUND: u64 = 100;

/// What is known about a group's undelivered entries when Redis' own `lag` is null. Counts stop
/// at [`COUNT_BOUND`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LagClues {
    /// XLEN of the stream.
    pub length: u64,
    /// Entries up to the group's position that are still in the stream: with workers that delete
    /// what they finish these are few, so that the length minus these is exact.
    pub delivered: Option<u64>,
    /// Entries behind the group's position.
    pub undelivered: Option<u64>,
}

/// The lag of a group: what Redis reports, never more than the stream holds (before 7.2 trimmed
/// entries are counted on), else what follows from the length, else a bounded count.
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

/// Work that waits on a stream: not delivered, plus delivered and not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Not delivered to the group that is furthest behind; with no group, the whole stream.
    pub undelivered: Option<u64>,
    /// `undelivered` is a lower bound.
    pub at_least: bool,
    /// Delivered and not acknowledged, all groups.
    pub pending: u64,
    /// Those of them whose entry is no longer in the stream: nobody can work on them.
    pub phantom_pending: u64,
    /// `phantom_pending` is a lower bound.
    pub phantom_at_least: bool,
}

impl Backlog {
    /// The backlog of a stream that was read.
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

    /// Undelivered plus pending, without phantom pending; `None` when the former is unknown.
    #[must_use]
    pub fn total(self) -> Option<u64> {
        self.undelivered.map(|n| n + self.pending.saturating_sub(self.phantom_pending))
    }
}

/// backlog / capacity; 1 when there is backlog and no capacity; unknown when the backlog is.
#[must_use]
pub fn utilization(backlog: Option<u64>, capacity: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    backlog.map(|backlog| match (backlog, capacity) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (backlog, capacity) => backlog as f64 / capacity as f64,
    })
}

/// Over how long rates are taken.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// A stream's counters over the last minute: how fast it fills and how fast it is read.
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
    /// Added to the stream.
    pub added: Option<f64>,
    /// Read by the group.
    pub read: Option<f64>,
}

impl Rates {
    /// Takes note of a reading. Counters that went back (a stream made anew) start over.
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

    /// The rates over what was recorded, once it spans at least two readings.
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
    /// Seconds until `backlog` is gone at these rates; `None` when it is not shrinking.
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
        fn a_lag_is_never_above_the_stream_and_is_exact_unless_it_says_so(
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
    fn phantom_pending_is_no_backlog_whatever_the_lag() {
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
    fn no_capacity_with_backlog_is_full_and_unknown_stays_unknown() {
        assert_eq!(utilization(Some(3), 0), Some(1.0));
        assert_eq!(utilization(Some(0), 0), Some(0.0));
        assert_eq!(utilization(Some(25), 50), Some(0.5));
        assert_eq!(utilization(None, 50), None);
    }
}
