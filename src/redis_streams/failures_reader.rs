//! Reads the numbers of failed tasks with one command per pass, independent of the number of streams and the size of the hash.
//!
//! Until the hash exists, a pass only reads its length. Afterwards it reads the fields of the watched streams by name, so that
//! other fields in the hash cost nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisError, Value};

use super::connection::{self, send};
use super::resp_reader::Reply;
use crate::contract::failures::{LastFailure, MAX_VALUE_BYTES, fields, parse_count};
use crate::contract::{Name, keys};
use crate::fleet::reading::{SourceTrouble, StreamFailures};

/// Number of passes in which a field with an oversized value is skipped.
const SKIP_FOR_PASSES: u32 = 200;

/// State between two passes.
#[derive(Debug, Default)]
pub(super) struct FailuresReader {
    /// The hash exists, so its fields are read.
    exists: bool,
    /// Newest failure of each stream, and the value from which it was parsed.
    last: BTreeMap<Name, (Vec<u8>, Option<Arc<LastFailure>>)>,
    /// Fields with an oversized value.
    skipped: BTreeSet<Vec<u8>>,
    passes: u32,
    /// Why the hash could not be read; logged once.
    trouble: Option<String>,
}

impl FailuresReader {
    /// Returns the command of this pass.
    pub(super) fn command(&mut self, streams: &[Name]) -> Cmd {
        self.passes = self.passes.wrapping_add(1);
        if self.passes.is_multiple_of(SKIP_FOR_PASSES) || self.skipped.len() >= 4 * streams.len() {
            self.skipped.clear();
        }
        if !self.exists || streams.is_empty() {
            let mut length = redis::cmd("HLEN");
            length.arg(keys::TASK_FAILURES);
            return length;
        }
        self.fields_command(streams)
    }

    fn fields_command(&self, streams: &[Name]) -> Cmd {
        let mut get = redis::cmd("HMGET");
        get.arg(keys::TASK_FAILURES);
        for field in streams.iter().flat_map(fields).filter(|field| !self.skipped.contains(field)) {
            get.arg(field);
        }
        get
    }

    /// Reads the answer to [`Self::command`]; if it shows that the hash exists, reads its fields. Returns `None` if the hash cannot
    /// be read.
    ///
    /// # Errors
    /// Why Redis cannot be read.
    pub(super) async fn take(
        &mut self,
        redis: &mut (impl ConnectionLike + Send),
        streams: &[Name],
        answer: Option<Result<Value, RedisError>>,
    ) -> Result<Option<BTreeMap<Name, StreamFailures>>, SourceTrouble> {
        let asked_for_fields = self.exists && !streams.is_empty();
        let Some(mut answer) = self.good(answer) else { return Ok(None) };
        if !asked_for_fields {
            if Reply::of(&answer).number() == Some(0) || streams.is_empty() {
                let none = StreamFailures { counts: [Some(0); 3], last: None };
                return Ok(Some(streams.iter().map(|name| (name.clone(), none.clone())).collect()));
            }
            self.exists = true;
            let mut pipe = redis::pipe();
            pipe.add_command(self.fields_command(streams));
            match self.good(send(redis, &mut pipe).await?.into_iter().next()) {
                Some(fields) => answer = fields,
                None => return Ok(None),
            }
        }
        Ok(Some(self.read(streams, &answer)))
    }

    fn read(&mut self, streams: &[Name], answer: &Value) -> BTreeMap<Name, StreamFailures> {
        let mut values = Reply::of(answer).items();
        let mut too_long = Vec::new();
        let mut of_streams = BTreeMap::new();
        for name in streams {
            let [failed, malformed, dead_lettered, last] = fields(name).map(|field| {
                if self.skipped.contains(&field) {
                    return Field::Unreadable;
                }
                match values.next().and_then(Reply::bytes) {
                    None => Field::Absent,
                    Some(value) if value.len() > MAX_VALUE_BYTES => {
                        too_long.push(field);
                        Field::Unreadable
                    }
                    Some(value) => Field::Value(value),
                }
            });
            let counts = [failed, malformed, dead_lettered].map(Field::count);
            of_streams.insert(name.clone(), StreamFailures { counts, last: self.last(name, last) });
        }
        self.skipped.extend(too_long);
        if self.last.len() > streams.len() {
            self.last.retain(|name, _| of_streams.contains_key(name));
        }
        of_streams
    }

    /// Returns the newest failure; the parsed one is reused if its value is unchanged.
    fn last(&mut self, stream: &Name, field: Field<'_>) -> Option<Arc<LastFailure>> {
        let Field::Value(value) = field else {
            self.last.remove(stream);
            return None;
        };
        match self.last.get(stream) {
            Some((parsed, last)) if parsed == value => last.clone(),
            _ => {
                let last = LastFailure::parse(value).map(Arc::new);
                self.last.insert(stream.clone(), (value.to_vec(), last.clone()));
                last
            }
        }
    }

    /// Returns the answer unless it is an error: failures are then unknown in this pass, but everything else is valid.
    fn good(&mut self, answer: Option<Result<Value, RedisError>>) -> Option<Value> {
        let trouble = match answer {
            Some(Ok(value)) => {
                self.trouble = None;
                return Some(value);
            }
            Some(Err(error)) => connection::trouble(&error).detail,
            None => "Redis returned too few replies".to_owned(),
        };
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::warn!(key = keys::TASK_FAILURES, error = trouble, "cannot read the task failure counters");
            self.trouble = Some(trouble);
        }
        None
    }
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Absent,
    /// Longer than any value that a worker writes.
    Unreadable,
    Value(&'a [u8]),
}

impl Field<'_> {
    fn count(self) -> Option<u64> {
        match self {
            Self::Absent => parse_count(None),
            Self::Unreadable => None,
            Self::Value(value) => parse_count(Some(value)),
        }
    }
}
