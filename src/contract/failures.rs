//! Failed tasks by stream: a hash that workers write and the monitor reads.
//!
//! Fields are `{kind}:{stream}`, counters that increase once per task and kind, and `last:{stream}`, the newest failure
//! as JSON. Stream names may contain colons, kinds do not. Other programs may write to the hash: invalid values are
//! ignored.

use serde::{Deserialize, Serialize};

use super::Name;

/// Maximum size of a value in bytes. Longer values are ignored.
pub const MAX_VALUE_BYTES: usize = 4 * 1024;
/// Maximum length of a stored reason in bytes.
pub const MOST_REASON: usize = 500;
/// Maximum length of an entry ID; real ones have at most 41 characters.
const MOST_ENTRY: usize = 64;
const LAST: &str = "last";

/// Kind of a failure. A task may count under several kinds: a malformed task that was dead-lettered counts as both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "monitor", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The handler failed, timed out or panicked.
    Failed,
    /// The fields could not be parsed.
    Malformed,
    /// The task was dead-lettered.
    DeadLettered,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Malformed, Self::DeadLettered];

    /// Name of the kind in field names, JSON and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::DeadLettered => "dead_lettered",
        }
    }
}

/// Newest failure of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// Most specific kind: `malformed` and `failed` take precedence over `dead_lettered`.
    pub kind: FailureKind,
    /// Reason, truncated to [`MOST_REASON`] bytes.
    pub reason: String,
    /// ID of the entry.
    pub entry: String,
    /// Unix milliseconds by the clock of the worker, or of Redis for tasks that exceeded the delivery limit.
    pub ts_ms: u64,
}

/// Failure of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    kinds: Vec<FailureKind>,
    reason: String,
    ts_ms: u64,
}

/// Field that counts failures of this kind in `stream`.
#[must_use]
pub fn counter(kind: FailureKind, stream: &Name) -> Vec<u8> {
    field(kind.as_str(), stream)
}

/// Field of the newest failure in `stream`.
#[must_use]
pub fn last(stream: &Name) -> Vec<u8> {
    field(LAST, stream)
}

/// All fields of a stream: the counters in the order of [`FailureKind::ALL`], then the newest failure.
#[must_use]
pub fn fields(stream: &Name) -> [Vec<u8>; 4] {
    let [failed, malformed, dead_lettered] = FailureKind::ALL.map(|kind| counter(kind, stream));
    [failed, malformed, dead_lettered, last(stream)]
}

fn field(kind: &str, stream: &Name) -> Vec<u8> {
    [kind.as_bytes(), b":", stream.as_bytes()].concat()
}

impl LastFailure {
    /// Parses the value of the field; `None` if it is invalid. Long texts are truncated.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Wire {
            kind: FailureKind,
            reason: Option<String>,
            entry: Option<String>,
            ts_ms: f64,
        }
        if value.len() > MAX_VALUE_BYTES {
            return None;
        }
        // A writer that truncates a reason by bytes may leave an incomplete character at its end.
        let wire: Wire = serde_json::from_str(&String::from_utf8_lossy(value)).ok()?;
        let (reason, entry) = (wire.reason.unwrap_or_default(), wire.entry.unwrap_or_default());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a date's milliseconds")]
        let ts_ms = Some(wire.ts_ms).filter(|ms| (1.0..1e14).contains(ms))? as u64;
        Some(Self {
            kind: wire.kind,
            reason: cut(&reason, MOST_REASON).to_owned(),
            entry: cut(&entry, MOST_ENTRY).to_owned(),
            ts_ms,
        })
    }

    /// Time in Unix seconds.
    #[must_use]
    pub fn ts(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a date's milliseconds fit a double")]
        let ts = self.ts_ms as f64 / 1000.0;
        ts
    }
}

/// Number of failed tasks of a stream, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "monitor", derive(schemars::JsonSchema))]
pub struct FailureCounts {
    /// Tasks whose handler failed, timed out or panicked.
    pub failed: u64,
    /// Tasks whose fields could not be parsed.
    pub malformed: u64,
    /// Tasks that were dead-lettered.
    pub dead_lettered: u64,
}

impl FailureCounts {
    /// Count of one kind.
    #[must_use]
    pub fn of(self, kind: FailureKind) -> u64 {
        match kind {
            FailureKind::Failed => self.failed,
            FailureKind::Malformed => self.malformed,
            FailureKind::DeadLettered => self.dead_lettered,
        }
    }

    /// Whether all counts are 0.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Lower bound of the number of failed tasks: a dead-lettered task may also count as failed or malformed.
    #[must_use]
    pub fn tasks(self) -> u64 {
        self.failed.saturating_add(self.malformed).max(self.dead_lettered)
    }

    /// Increase since `earlier`; `None` if a counter decreased, which means that it was reset.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<Self> {
        Some(Self {
            failed: self.failed.checked_sub(earlier.failed)?,
            malformed: self.malformed.checked_sub(earlier.malformed)?,
            dead_lettered: self.dead_lettered.checked_sub(earlier.dead_lettered)?,
        })
    }
}

/// Parses a counter: 0 if the field is missing, `None` if the value is invalid.
#[must_use]
pub fn parse_count(value: Option<&[u8]>) -> Option<u64> {
    let Some(value) = value else { return Some(0) };
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl TaskFailure {
    /// Returns a failure of these kinds, the most specific first, at `ts_ms` (Unix milliseconds).
    #[must_use]
    pub fn new(kinds: &[FailureKind], reason: String, ts_ms: u64) -> Self {
        Self { kinds: kinds.to_vec(), reason, ts_ms }
    }

    /// Reason, not truncated.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Kinds of the failure.
    #[must_use]
    pub fn kinds(&self) -> &[FailureKind] {
        &self.kinds
    }

    /// Arguments for the script that completes the task: the field of the newest failure, its value, then the counters
    /// to increase.
    #[must_use]
    pub fn strings(&self, stream: &Name, entry: &str) -> Vec<Vec<u8>> {
        let Some(kind) = self.kinds.first() else { return Vec::new() };
        let newest = LastFailure {
            kind: *kind,
            reason: cut(&self.reason, MOST_REASON).to_owned(),
            entry: entry.to_owned(),
            ts_ms: self.ts_ms,
        };
        let newest = serde_json::to_vec(&newest).unwrap_or_default();
        let counters = self.kinds.iter().map(|kind| counter(*kind, stream));
        [last(stream), newest].into_iter().chain(counters).collect()
    }
}

/// Returns the longest prefix of `text` with at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_failure_sets_the_newest_and_increases_a_counter_per_kind() {
        let kinds = [FailureKind::Malformed, FailureKind::DeadLettered];
        let strings = TaskFailure::new(&kinds, "é".repeat(300), 5).strings(&"a:b".into(), "1-0");
        let text: Vec<&str> = strings.iter().map(|bytes| std::str::from_utf8(bytes).unwrap()).collect();
        assert_eq!((text[0], &text[2..]), ("last:a:b", &["malformed:a:b", "dead_lettered:a:b"][..]));
        let newest: LastFailure = serde_json::from_str(text[1]).unwrap();
        assert_eq!((newest.kind, newest.reason.len(), newest.ts_ms), (FailureKind::Malformed, 500, 5));
    }

    #[test]
    fn field_names_follow_the_protocol_for_any_stream_name() {
        let texts =
            |stream: &[u8]| fields(&Name::from(stream)).map(|field| String::from_utf8_lossy(&field).into_owned());
        assert_eq!(texts(b"a:b"), ["failed:a:b", "malformed:a:b", "dead_lettered:a:b", "last:a:b"]);
        assert_eq!(last(&Name::from(&b"\xff\0:"[..])), b"last:\xff\0:");
    }

    #[test]
    fn invalid_values_are_ignored() {
        let good = r#"{"kind":"failed","reason":"r","entry":"1-0","ts_ms":5000}"#;
        assert_eq!(LastFailure::parse(good.as_bytes()).map(|failure| failure.ts()), Some(5.0));
        let odd = [("failed", "odd"), ("5000", "-1"), ("5000", "1e300"), ("5000", "\"x\""), ("{", ""), ("\"r\"", "[]")];
        for (from, to) in odd {
            assert_eq!(LastFailure::parse(good.replace(from, to).as_bytes()), None, "{from} as {to}");
        }
        assert_eq!(LastFailure::parse(&vec![b' '; MAX_VALUE_BYTES + 1]), None);
        assert_eq!(LastFailure::parse(b""), None);
        let values =
            [Some(&b"7"[..]), Some(b"-7"), Some(b"7.5"), Some(b""), Some(b"\xff"), Some(b"99999999999999999999")];
        assert_eq!(values.map(parse_count), [Some(7), None, None, None, None, None]);
        assert_eq!(parse_count(None), Some(0));
    }

    #[test]
    fn a_reason_truncated_within_a_character_is_accepted() {
        let mut value = br#"{"kind":"failed","reason":"caf"#.to_vec();
        value.extend_from_slice(b"\xc3\",\"entry\":null,\"ts_ms\":5000.7}");
        let failure = LastFailure::parse(&value).unwrap();
        assert_eq!((&*failure.reason, &*failure.entry, failure.ts_ms), ("caf\u{fffd}", "", 5000));
    }

    #[test]
    fn a_failed_and_dead_lettered_task_counts_once() {
        let counts = |failed, malformed, dead_lettered| FailureCounts { failed, malformed, dead_lettered }.tasks();
        assert_eq!([counts(2, 3, 3), counts(0, 0, 4), counts(1, 0, 0)], [5, 4, 1]);
    }

    proptest! {
        #[test]
        fn failures_round_trip(reason in ".{0,600}", entry in "[0-9]{1,20}-[0-9]{1,20}", ts_ms in 1..99_999_999_999_999_u64) {
            let strings = TaskFailure::new(&[FailureKind::Malformed], reason.clone(), ts_ms).strings(&"s".into(), &entry);
            let read = LastFailure::parse(&strings[1]).unwrap();
            prop_assert!(strings[1].len() <= MAX_VALUE_BYTES);
            prop_assert!(reason.starts_with(&read.reason) && read.reason.len() + 4 > reason.len().min(MOST_REASON));
            prop_assert_eq!((read.kind, read.entry, read.ts_ms), (FailureKind::Malformed, entry, ts_ms));
        }

        #[test]
        fn parsing_any_bytes_does_not_panic(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (LastFailure::parse(&value), parse_count(Some(&value)));
        }

        #[test]
        fn streams_never_share_a_field(a in prop::collection::vec(any::<u8>(), 0..12), b in prop::collection::vec(any::<u8>(), 0..12)) {
            prop_assume!(a != b);
            let (a, b) = (fields(&Name::from(a)), fields(&Name::from(b)));
            prop_assert!(a.iter().all(|field| !b.contains(field)));
        }
    }
}
