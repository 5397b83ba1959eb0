//! Phantom pending: IDs in a group's pending list whose entry is no longer in the stream.
//!
//! They appear when somebody deletes or trims entries that are still pending. No worker can run them, so they are
//! not work. Redis does not count them: each is found by comparing the pending list with the stream. A [`Survey`]
//! does that in bounded steps, and only when figures that every tick reads anyway suggest phantoms, or when it is
//! the group's turn.

use std::collections::BTreeMap;

use crate::contract::Name;

/// What every tick knows of a group, as far as it tells whether the pending list changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Entries in the stream.
    pub length: u64,
    /// Undelivered entries, where Redis reports them.
    pub lag: Option<u64>,
    /// IDs in the pending list.
    pub pending: u64,
    /// Entries that the group has read.
    pub entries_read: Option<u64>,
    /// The last ID delivered.
    pub last_delivered_id: String,
}

impl Figures {
    /// How many of the pending IDs have no entry, at least, if the lag is right: no more of them can have one than there
    /// are entries that were delivered. A reason to look, no more: Redis may report a lag that is too high.
    #[must_use]
    pub fn suspected(&self) -> u64 {
        (self.pending + self.lag.unwrap_or(0)).saturating_sub(self.length).min(self.pending)
    }

    /// Whether the same figures mean the same pending list and entries. Without the lag, an addition and a deletion
    /// cancel out.
    fn tell_changes(&self) -> bool {
        self.lag.is_some()
    }
}

/// What one step of a survey found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// The ID behind which the next step begins; `None` at the end of the pending list.
    pub next: Option<String>,
    /// How many phantom IDs the whole group has at least, read in the same moment.
    pub lower_bound: u64,
    /// The phantom IDs of this step, by consumer.
    pub found: BTreeMap<Name, u64>,
}

/// How many phantom IDs a group has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phantoms {
    /// So many.
    pub total: u64,
    /// `total` is a lower bound.
    pub at_least: bool,
    /// As far as it is known which consumers hold them.
    pub by_consumer: BTreeMap<Name, u64>,
}

/// The search for a group's phantom IDs, from one tick to the next.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Where an unfinished walk through the pending list goes on, and what it found so far.
    walk: Option<(String, BTreeMap<Name, u64>)>,
    /// What the last whole walk found, and the figures it was for.
    last: Option<(Figures, BTreeMap<Name, u64>)>,
    /// The lower bound that was read with the last step, and the figures it was for.
    bound: Option<(Figures, u64)>,
}

impl Survey {
    /// Whether the result of the last whole walk holds for these figures.
    fn is_current(&self, figures: &Figures) -> bool {
        figures.tell_changes() && self.last.as_ref().is_some_and(|(then, _)| then == figures)
    }

    /// Whether a step is worth taking out of turn: the figures suggest phantoms that the last walk did not count, or
    /// those that it counted may have changed.
    #[must_use]
    pub fn suspects(&self, figures: &Figures) -> bool {
        let known = self.last.as_ref().is_some_and(|(_, found)| !found.is_empty())
            || self.walk.as_ref().is_some_and(|(_, found)| !found.is_empty());
        self.may_find(figures) && (known || figures.suspected() > 0)
    }

    /// Whether a step can find anything that is not known.
    #[must_use]
    pub fn may_find(&self, figures: &Figures) -> bool {
        figures.pending > 0 && !self.is_current(figures)
    }

    /// The ID behind which the next step begins; `None` is the beginning of the pending list.
    #[must_use]
    pub fn next(&self) -> Option<&str> {
        self.walk.as_ref().map(|(next, _)| next.as_str())
    }

    /// Takes in a step that was taken right after the figures were read.
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

    /// What is known of the group's phantom IDs, going by these figures.
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
        // An ID stays a phantom until it is acknowledged, so earlier findings hold until the next walk.
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
        fn no_more_are_suspected_than_a_walk_finds(
            // Each entry: delivered, pending, deleted.
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
    fn a_healthy_group_is_never_suspected_and_one_with_phantoms_once_for_the_same_figures() {
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
    fn an_unfinished_walk_gives_a_lower_bound_and_a_finished_one_the_number() {
        let mut survey = Survey::default();
        let now = figures(100, Some(0), 4100);
        survey.take(&now, Step { next: Some("5-0".to_owned()), lower_bound: 4000, found: found(500) });
        assert_eq!(survey.next(), Some("5-0"));
        let known = survey.phantoms(&now);
        assert_eq!((known.total, known.at_least), (4000, true));
        // The bound was read for other figures: what was found by looking stays.
        let later = figures(100, Some(0), 4101);
        assert_eq!(survey.phantoms(&later).total, 500);
        survey.take(&now, Step { next: None, lower_bound: 4000, found: found(3550) });
        assert_eq!(survey.phantoms(&now), Phantoms { total: 4050, at_least: false, by_consumer: found(4050) });
        assert_eq!(survey.next(), None);
        // Acknowledged meanwhile: never more than there are pending IDs.
        assert_eq!(survey.phantoms(&figures(100, Some(0), 10)).total, 10);
        assert_eq!(survey.phantoms(&figures(100, Some(0), 0)), Phantoms::default());
    }

    #[test]
    fn without_a_lag_the_same_figures_do_not_say_that_nothing_changed() {
        let mut survey = Survey::default();
        let now = figures(3, None, 3);
        survey.take(&now, Step { next: None, lower_bound: 0, found: found(1) });
        assert!(survey.suspects(&now));
        assert_eq!(survey.phantoms(&now).total, 1);
    }
}
