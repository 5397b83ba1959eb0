//! The tasks that failed, by stream: one hash that workers write and the monitor reads.
//!
//! Fields are `{kind}:{stream}`: counters, raised once per task and kind, and `last:{stream}`, the
//! newest failure as JSON. A stream's name may hold colons, a kind does not. Values may come from
//! other writers: what cannot be read is ignored.

use serde::{Deserialize, Serialize};

use super::Name;

/// Longest reason that is kept, in bytes.
pub const MOST_REASON: usize = 500;
/// The field of a stream's newest failure is this and its name.
const LAST: &str = "last";

/// How a task failed. One task may count under several kinds: a malformed task that became a dead
/// letter is both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Its handler failed, timed out or panicked.
    Failed,
    /// It, or a part that its handler needs, could not be read.
    Malformed,
    /// It went to the dead letters of its stream.
    DeadLettered,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Malformed, Self::DeadLettered];

    /// The kind as it stands in field names, JSON and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::DeadLettered => "dead_lettered",
        }
    }
}

/// The newest failure of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// The most specific kind: `malformed` and `failed` come before `dead_lettered`.
    pub kind: FailureKind,
    /// Why, in words; cut to [`MOST_REASON`] bytes.
    pub reason: String,
    /// The entry's id in the stream.
    pub entry: String,
    /// Unix milliseconds by the worker's clock, or Redis' for tasks delivered too often.
    pub ts_ms: u64,
}

/// The failure of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    kinds: Vec<FailureKind>,
    reason: String,
    ts_ms: u64,
}

/// The field that counts failures of this kind in `stream`.
#[must_use]
pub fn counter(kind: FailureKind, stream: &Name) -> Vec<u8> {
    field(kind.as_str(), stream)
}

/// The field of the newest failure in `stream`.
#[must_use]
pub fn last(stream: &Name) -> Vec<u8> {
    field(LAST, stream)
}

fn field(kind: &str, stream: &Name) -> Vec<u8> {
    [kind.as_bytes(), b":", stream.as_bytes()].concat()
}

impl TaskFailure {
    /// A failure of these kinds, the most specific first, at `ts_ms` (Unix milliseconds).
    #[must_use]
    pub fn new(kinds: &[FailureKind], reason: String, ts_ms: u64) -> Self {
        Self { kinds: kinds.to_vec(), reason, ts_ms }
    }

    /// Why, in full.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Its kinds.
    #[must_use]
    pub fn kinds(&self) -> &[FailureKind] {
        &self.kinds
    }

    /// What the script that completes the task writes: the field of the newest failure, its value,
    /// then each counter to raise.
    #[must_use]
    pub fn strings(&self, stream: &Name, entry: &str) -> Vec<Vec<u8>> {
        let Some(kind) = self.kinds.first() else { return Vec::new() };
        let newest = LastFailure {
            kind: *kind,
            reason: cut(&self.reason).to_owned(),
            entry: entry.to_owned(),
            ts_ms: self.ts_ms,
        };
        let newest = serde_json::to_vec(&newest).unwrap_or_default();
        let counters = self.kinds.iter().map(|kind| counter(*kind, stream));
        [last(stream), newest].into_iter().chain(counters).collect()
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=MOST_REASON.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_written_as_its_newest_and_a_counter_for_each_kind() {
        let kinds = [FailureKind::Malformed, FailureKind::DeadLettered];
        let strings = TaskFailure::new(&kinds, "é".repeat(300), 5).strings(&"a:b".into(), "1-0");
        let text: Vec<&str> = strings.iter().map(|bytes| std::str::from_utf8(bytes).unwrap()).collect();
        assert_eq!((text[0], &text[2..]), ("last:a:b", &["malformed:a:b", "dead_lettered:a:b"][..]));
        let newest: LastFailure = serde_json::from_str(text[1]).unwrap();
        assert_eq!((newest.kind, newest.reason.len(), newest.ts_ms), (FailureKind::Malformed, 500, 5));
    }
}
