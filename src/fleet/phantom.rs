//! Phantom pending: IDs in a group's pending list whose entry no longer exists in the stream.
//!
//! They appear when a client deletes or trims entries that are still pending. No worker can run them, so they are not
//! part of the backlog. Redis does not count them; finding them requires comparing the pending list with the stream. A
//! [`Survey`] does that in bounded steps, and only when the figures of a poll suggest phantom IDs or when it is the
//! group's turn.

use std::collections::BTreeMap;

use crate::contract::Name;

/// Figures that every poll reads of a group and that show whether its pending list changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Entries in the stream.
    pub length: u64,
    /// Undelivered entries, where Redis reports a lag.
    pub lag: Option<u64>,
    /// IDs in the pending list.
    pub pending: u64,
    /// Entries that the group has read.
    pub entries_read: Option<u64>,
    /// Last delivered ID.
    pub last_delivered_id: String,
}

impl Figures {
    /// Minimum number of phantom IDs if the lag is right, because at most the delivered entries that still exist can be
    /// pending. Only a reason to run a survey: Redis may report a lag that is too high.
    #[must_use]
    pub fn suspected(&self) -> u64 {
        (self.pending + self.lag.unwrap_or(0)).saturating_sub(self.length).min(self.pending)
    }

    /// Whether equal figures prove an unchanged pending list. Without the lag, an addition and a deletion cancel out.
    fn tell_changes(&self) -> bool {
        self.lag.is_some()
    }
}

/// Result of one step of a survey.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// ID after which the next step starts; `None` at the end of the pending list.
    pub next: Option<String>,
    /// Minimum number of phantom IDs in the whole group, read atomically with the step.
    pub lower_bound: u64,
    /// Phantom IDs found by this step, by consumer.
    pub found: BTreeMap<Name, u64>,
}

/// Number of phantom IDs of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phantoms {
    /// Number, or its lower bound.
    pub total: u64,
    /// `total` is a lower bound.
    pub at_least: bool,
    /// Number by consumer, as far as known.
    pub by_consumer: BTreeMap<Name, u64>,
}

/// Search for a group's phantom IDs across polls.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Cursor and intermediate result of an unfinished scan of the pending list.
    walk: Option<(String, BTreeMap<Name, u64>)>,
    /// Result of the last complete scan, and the figures it belongs to.
    last: Option<(Figures, BTreeMap<Name, u64>)>,
    /// Lower bound read with the last step, and the figures it belongs to.
    bound: Option<(Figures, u64)>,
}

impl Survey {
    /// Whether the result of the last complete scan is valid for these figures.
    fn is_current(&self, figures: &Figures) -> bool {
        figures.tell_changes() && self.last.as_ref().is_some_and(|(then, _)| then == figures)
    }

    /// Whether to run a step out of turn: the figures suggest phantom IDs that the last scan did not count, or the
    /// counted ones may have changed.
    #[must_use]
    pub fn suspects(&self, figures: &Figures) -> bool {
        let known = self.last.as_ref().is_some_and(|(_, found)| !found.is_empty())
            || self.walk.as_ref().is_some_and(|(_, found)| !found.is_empty());
        self.may_find(figures) && (known || figures.suspected() > 0)
    }

    /// Whether a step could find anything new.
    #[must_use]
    pub fn may_find(&self, figures: &Figures) -> bool {
        figures.pending > 0 && !self.is_current(figures)
    }

    /// ID after which the next step starts; `None` for the start of the pending list.
    #[must_use]
    pub fn next(&self) -> Option<&str> {
        self.walk.as_ref().map(|(next, _)| next.as_str())
    }

    /// Applies a step that ran right after the figures were read.
    pub fn take(&mut self, figures: &Figures, step: Step) {
        let (_, mut found) = self.walk.take().unwrap_or_default();
        for (consumer, count) in step.found {
            *found.entry(consumer).or_default() += count;
        }
        self.bound = Some((figures.clone(), step.lower_bound));
        match step.next {
            Some(next) => self.walk = Some((next, found)),
            None => self.last = Some((figures.clone(), found)),
        }
    }

    /// Returns the group's known phantom IDs for these figures.
    #[must_use]
    pub fn phantoms(&self, figures: &Figures) -> Phantoms {
        let pending = figures.pending;
        if pending == 0 {
            return Phantoms::default();
        }
        let empty = BTreeMap::new();
        let (same, found) = self.last.as_ref().map_or((false, &empty), |(then, found)| (then == figures, found));
        if same {
            let total = sum(found).min(pending);
            return Phantoms { total, at_least: false, by_consumer: found.clone() };
        }
        let bound = self.bound.as_ref().filter(|(then, _)| then == figures).map_or(0, |(_, bound)| *bound);
        // An ID stays a phantom until it is acknowledged, so earlier findings are valid until the next scan.
        let mut by_consumer = found.clone();
        for (consumer, count) in self.walk.iter().flat_map(|(_, so_far)| so_far) {
            let known = by_consumer.entry(consumer.clone()).or_default();
            *known = (*known).max(*count);
        }
        let total = sum(&by_consumer).max(bound).min(pending);
        Phantoms { total, at_least: 0 < total && total < pending, by_consumer }
    }
}

fn sum(found: &BTreeMap<Name, u64>) -> u64 {
    found.values().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn figures(length: u64, lag: Option<u64>, pending: u64) -> Figures {
        Figures { length, lag, pending, entries_read: Some(pending), last_delivered_id: "1-1".to_owned() }
    }

    fn found(count: u64) -> BTreeMap<Name, u64> {
        if count == 0 { BTreeMap::new() } else { BTreeMap::from([(Name::from("c"), count)]) }
    }

    proptest! {
        #[test]
        fn suspected_never_exceeds_a_full_scan(
            // Per entry: delivered, pending, deleted.
            entries in proptest::collection::vec(any::<(bool, bool, bool)>(), 0..60), knows_lag in any::<bool>(),
        ) {
            let count = |holds: fn(&(bool, bool, bool)) -> bool| entries.iter().filter(|e| holds(e)).count() as u64;
            let figures = Figures {
                length: count(|(_, _, deleted)| !deleted),
                lag: knows_lag.then_some(count(|(delivered, _, deleted)| !delivered && !deleted)),
                pending: count(|(delivered, pending, _)| *delivered && *pending),
                entries_read: None,
                last_delivered_id: String::new(),
            };
            prop_assert!(figures.suspected() <= count(|(delivered, pending, deleted)| *delivered && *pending && *deleted));
        }
    }

    #[test]
    fn group_is_suspected_once_per_figures() {
        let mut survey = Survey::default();
        assert!(!survey.suspects(&figures(10, Some(3), 7)), "each pending ID can have its entry");
        assert!(!survey.suspects(&figures(0, Some(0), 0)));
        let phantoms = figures(0, Some(0), 5);
        assert!(survey.suspects(&phantoms));
        survey.take(&phantoms, Step { next: None, lower_bound: 5, found: found(5) });
        assert!(!survey.suspects(&phantoms), "nothing changed");
        assert_eq!(survey.phantoms(&phantoms), Phantoms { total: 5, at_least: false, by_consumer: found(5) });
        assert!(survey.suspects(&figures(3, Some(0), 8)), "known ones may have changed");
        assert!(survey.may_find(&figures(9, Some(0), 8)));
    }

    #[test]
    fn unfinished_scan_is_a_lower_bound() {
        let mut survey = Survey::default();
        let now = figures(100, Some(0), 4100);
        survey.take(&now, Step { next: Some("5-0".to_owned()), lower_bound: 4000, found: found(500) });
        assert_eq!(survey.next(), Some("5-0"));
        let known = survey.phantoms(&now);
        assert_eq!((known.total, known.at_least), (4000, true));
        // The bound belongs to other figures; the result of the scan remains.
        let later = figures(100, Some(0), 4101);
        assert_eq!(survey.phantoms(&later).total, 500);
        survey.take(&now, Step { next: None, lower_bound: 4000, found: found(3550) });
        assert_eq!(survey.phantoms(&now), Phantoms { total: 4050, at_least: false, by_consumer: found(4050) });
        assert_eq!(survey.next(), None);
        // Acknowledged meanwhile: the number never exceeds the pending count.
        assert_eq!(survey.phantoms(&figures(100, Some(0), 10)).total, 10);
        assert_eq!(survey.phantoms(&figures(100, Some(0), 0)), Phantoms::default());
    }

    #[test]
    fn equal_figures_without_lag_prove_nothing() {
        let mut survey = Survey::default();
        let now = figures(3, None, 3);
        survey.take(&now, Step { next: None, lower_bound: 0, found: found(1) });
        assert!(survey.suspects(&now));
        assert_eq!(survey.phantoms(&now).total, 1);
    }
}
