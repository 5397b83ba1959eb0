//! The fields of a stream entry: pairs of bytes, in order, duplicates and all.

use std::collections::HashSet;

/// An entry's fields exactly as Redis holds them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields(Vec<(Vec<u8>, Vec<u8>)>);

impl Fields {
    /// The value of `field`; the last one where it appears twice, as a dictionary would have it.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(name, _)| name == field.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Replaces the value of `field` where it stands first, or appends it. Afterwards it is there once.
    pub fn set(&mut self, field: Vec<u8>, value: Vec<u8>) {
        let Some(at) = self.0.iter().position(|(name, _)| *name == field) else {
            self.0.push((field, value));
            return;
        };
        let mut place = 0..;
        self.0.retain(|(name, _)| place.next() == Some(at) || *name != field);
        if let Some((_, old)) = self.0.get_mut(at) {
            *old = value;
        }
    }

    /// All pairs, in the entry's order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// The names that are text, each once, in the entry's order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let text = self.0.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok());
        text.filter(|name| seen.insert(*name)).collect()
    }

    /// How many pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none: the entry itself was deleted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<Vec<u8>>, V: Into<Vec<u8>>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}
