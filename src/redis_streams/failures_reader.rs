//! Reads how many tasks failed: one command per pass, however many streams and however large the hash.
//!
//! Until the hash exists a pass asks only for its length. From then on it asks for the fields of the streams it reads
//! by their exact names, so that fields of other streams, and others' garbage, cost nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisError, Value};

use super::connection::{self, send};
use super::reply::Reply;
use crate::contract::failures::{LastFailure, MAX_VALUE_BYTES, fields, parse_count};
use crate::contract::{Name, keys};
use crate::fleet::reading::{SourceTrouble, StreamFailures};

/// A value that was too long is left out for so many passes.
const SKIP_FOR_PASSES: u32 = 200;

/// What the next pass can ask because the last one saw it.
#[derive(Debug, Default)]
pub(super) struct FailuresReader {
    /// The hash exists: its fields are asked for.
    exists: bool,
    /// The newest failure of each stream, and the value it was parsed from.
    last: BTreeMap<Name, (Vec<u8>, Option<Arc<LastFailure>>)>,
    /// Fields whose value was too long.
    skipped: BTreeSet<Vec<u8>>,
    passes: u32,
    /// Why the hash could not be read; logged once.
    trouble: Option<String>,
}

impl FailuresReader {
    /// The command of this pass.
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

    /// What the answer to [`Self::command`] says of `streams`; when it shows that the hash exists now, its fields are
    /// asked for. `None` when the hash cannot be read.
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

    /// The newest failure; mostly its value is the one that was parsed before.
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

    /// The answer, unless it is an error: then failed tasks are not known in this pass, and all else is.
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
    /// Too long to be a worker's.
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
