//! Fields of a stream entry: ordered pairs of bytes, including duplicates.

use std::collections::HashSet;

/// Fields of an entry, exactly as in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields(Vec<(Vec<u8>, Vec<u8>)>);

impl Fields {
    /// Value of `field`. If the name occurs more than once, the last one counts, as in a Python dictionary.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(name, _)| name == field.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Sets a field, replacing all existing ones in the position of the first.
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

    /// All pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// Field names that are valid UTF-8, each once, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let text = self.0.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok());
        text.filter(|name| seen.insert(*name)).collect()
    }

    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no pairs, which means that the entry was deleted.
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
