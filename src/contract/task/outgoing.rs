//! A message to add to another stream: received fields with some of them changed.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Fields, Name};

/// A message to add to a stream. The received fields are shared, not copied.
#[derive(Debug, Clone)]
pub struct Outgoing {
    destination: Name,
    fields: Arc<Fields>,
    changed: Vec<(Cow<'static, str>, Vec<u8>)>,
}

impl Outgoing {
    /// Returns a message with `fields` for `destination`.
    #[must_use]
    pub fn new(destination: Name, fields: Arc<Fields>) -> Self {
        Self { destination, fields, changed: Vec::new() }
    }

    /// Sets a field, replacing an existing one.
    pub fn set(&mut self, field: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) {
        let field = field.into();
        self.changed.retain(|(name, _)| *name != field);
        self.changed.push((field, value.into()));
    }

    /// Destination stream.
    #[must_use]
    pub fn destination(&self) -> &Name {
        &self.destination
    }

    /// All fields: changed ones in their original position, new ones at the end.
    pub fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let existing = self.fields.iter().map(|(name, value)| {
            let change = self.changed.iter().find(|(changed, _)| changed.as_bytes() == name);
            (name, change.map_or(value, |(_, new)| new.as_slice()))
        });
        let added = self
            .changed
            .iter()
            .filter(|(name, _)| self.fields.get(name).is_none())
            .map(|(name, value)| (name.as_bytes(), value.as_slice()));
        existing.chain(added)
    }
}
