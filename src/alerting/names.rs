//! Which names a rule's glob matches, from snapshot to snapshot: only names that came are matched anew.

use super::glob::Glob;
use crate::contract::Name;
use crate::fleet::snapshot::Snapshot;

/// The names in the newest snapshot.
#[derive(Debug, Default)]
pub struct Names {
    /// Of its streams.
    pub streams: Listing,
    /// Of its worker types.
    pub workers: Listing,
}

impl Names {
    /// Takes in the names of `snapshot`.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        self.streams.follow(snapshot.streams.keys());
        self.workers.follow(snapshot.workers.keys());
    }
}

/// Names in order, and how they differ from those before.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<Name>,
    /// Counts the changes.
    version: u64,
    /// Where each name of the version before stands now.
    moved: Vec<Option<usize>>,
    /// Where the names stand that came.
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

/// The places in a listing that a glob matches.
#[derive(Debug, Default)]
pub struct Matched {
    places: Vec<usize>,
    version: Option<u64>,
}

impl Matched {
    /// Brings the places up to date, and tells them in order. It is always the same glob.
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
        fn following_finds_what_matching_all_anew_finds(
            snapshots in prop::collection::vec(prop::collection::btree_set("[ab][a-c]", 0..6), 1..8),
            skipped in prop::collection::vec(any::<bool>(), 8),
        ) {
            let glob = Glob::new("a*").unwrap();
            let (mut listing, mut matched) = (Listing::default(), Matched::default());
            for (names, skip) in snapshots.iter().zip(skipped) {
                let names: BTreeSet<Name> = names.iter().map(|name| Name::from(name.as_str())).collect();
                listing.follow(names.iter());
                // A rule that was not asked for a while must not go by an old difference.
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
