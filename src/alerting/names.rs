//! Incremental glob matching: only names that are new in a snapshot are matched.

use super::glob::Glob;
use crate::contract::Name;
use crate::fleet::snapshot::Snapshot;

/// Names in the latest snapshot.
#[derive(Debug, Default)]
pub struct Names {
    /// Stream names.
    pub streams: Listing,
    /// Worker type names.
    pub workers: Listing,
}

impl Names {
    /// Updates the names from `snapshot`.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        self.streams.follow(snapshot.streams.keys());
        self.workers.follow(snapshot.workers.keys());
    }
}

/// Sorted names, and their differences from the previous version.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<Name>,
    /// Number of changes.
    version: u64,
    /// Current index of each name of the previous version.
    moved: Vec<Option<usize>>,
    /// Indexes of the new names.
    came: Vec<usize>,
}

impl Listing {
    fn follow<'a>(&mut self, names: impl Iterator<Item = &'a Name> + Clone) {
        if names.clone().eq(&self.names) {
            return;
        }
        let before = std::mem::replace(&mut self.names, names.cloned().collect());
        self.version += 1;
        self.moved = before.iter().map(|name| self.names.binary_search(name).ok()).collect();
        let stayed: std::collections::BTreeSet<usize> = self.moved.iter().flatten().copied().collect();
        self.came = (0..self.names.len()).filter(|place| !stayed.contains(place)).collect();
    }
}

/// Indexes in a listing that a glob matches.
#[derive(Debug, Default)]
pub struct Matched {
    places: Vec<usize>,
    version: Option<u64>,
}

impl Matched {
    /// Updates the indexes and returns them in order. Every call must pass the same glob.
    pub fn follow(&mut self, listing: &Listing, glob: &Glob) -> &[usize] {
        let matches = |place: &usize| listing.names.get(*place).is_some_and(|name| glob.is_match(&name.to_text()));
        match self.version {
            Some(version) if version == listing.version => {}
            Some(version) if version + 1 == listing.version => {
                let stayed = self.places.iter().filter_map(|place| listing.moved.get(*place).copied().flatten());
                let mut places: Vec<usize> = stayed.collect();
                places.extend(listing.came.iter().filter(|place| matches(place)));
                places.sort_unstable();
                self.places = places;
            }
            _ => self.places = (0..listing.names.len()).filter(matches).collect(),
        }
        self.version = Some(listing.version);
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn incremental_matching_equals_full_matching(
            snapshots in prop::collection::vec(prop::collection::btree_set("[ab][a-c]", 0..6), 1..8),
            skipped in prop::collection::vec(any::<bool>(), 8),
        ) {
            let glob = Glob::new("a*").unwrap();
            let (mut listing, mut matched) = (Listing::default(), Matched::default());
            for (names, skip) in snapshots.iter().zip(skipped) {
                let names: BTreeSet<Name> = names.iter().map(|name| Name::from(name.as_str())).collect();
                listing.follow(names.iter());
                // After a skipped version the difference does not apply.
                if skip {
                    continue;
                }
                let found: Vec<&Name> = matched.follow(&listing, &glob).iter().map(|at| &listing.names[*at]).collect();
                let anew: Vec<&Name> = names.iter().filter(|name| glob.is_match(&name.to_text())).collect();
                prop_assert_eq!(found, anew);
            }
        }
    }
}
