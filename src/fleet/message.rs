//! Messages of a stream for operators: listing, previews, and results of actions.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::Name;

/// State of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// Delivered to a consumer and not acknowledged.
    Pending,
    /// Not delivered to the group yet.
    Unread,
    /// In the dead-letter stream.
    Dead,
}

/// An action on messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MessageAction")]
pub enum Action {
    /// Add a copy to the end of the stream and acknowledge the old entry.
    Retry,
    /// Move to the dead-letter stream.
    Bury,
    /// Move to the recycle bin.
    Drop,
}

/// A word that matches none of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Unknown(pub &'static str);

impl MessageState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Unread, Self::Dead];

    /// Word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Unread => "unread",
            Self::Dead => "dead",
        }
    }

    /// Display name.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Unread => "undelivered",
            Self::Dead => "dead-lettered",
        }
    }
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 3] = [Self::Retry, Self::Bury, Self::Drop];

    /// Word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Bury => "bury",
            Self::Drop => "drop",
        }
    }

    /// Whether the action permanently removes messages from their stream, which requires the admin role.
    #[must_use]
    pub fn takes_away(self) -> bool {
        self != Self::Retry
    }

    /// Whether the action applies to messages in `state`.
    #[must_use]
    pub fn fits(self, state: MessageState) -> bool {
        match (self, state) {
            // An unread message will be delivered anyway; a dead-lettered one cannot be dead-lettered again.
            (Self::Retry, MessageState::Unread) | (Self::Bury, MessageState::Dead) => false,
            (Self::Retry | Self::Bury | Self::Drop, _) => true,
        }
    }
}

impl FromStr for MessageState {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(Unknown("pending, unread or dead"))
    }
}

impl FromStr for Action {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        Self::ALL.into_iter().find(|action| action.as_str() == text).ok_or(Unknown("retry, bury or drop"))
    }
}

impl fmt::Display for MessageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Filter for messages of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// State of the messages.
    pub state: MessageState,
    /// Group whose view counts. Dead letters belong to the stream as a whole.
    pub group: Name,
    /// Only messages pending on this consumer.
    pub owner: Option<Name>,
    /// Only messages pending and idle for at least this many milliseconds.
    pub min_idle_ms: u64,
    /// Only messages with this field.
    pub field: Option<Vec<u8>>,
    /// Only messages with this text in that field, or in any field.
    pub contains: Vec<u8>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Entry ID.
    pub id: String,
    /// Consumer that it is pending on. This and the next two fields are set for pending messages only.
    pub owner: Option<Name>,
    /// Delivery count.
    pub deliveries: u64,
    /// Milliseconds since the last delivery or renewal.
    pub idle_ms: u64,
    /// Number of fields; 0 when the entry was deleted.
    pub field_count: u64,
    /// Total size of all names and values, bytes.
    pub bytes: u64,
    /// First fields, with long values truncated.
    pub fields: Vec<Field>,
}

impl Message {
    /// Whether it is pending and its entry no longer exists, so it can neither run nor be stored.
    #[must_use]
    pub fn is_phantom(&self) -> bool {
        self.owner.is_some() && self.field_count == 0
    }

    /// Time when it was added, Unix milliseconds, from its ID (unless the producer chose the ID).
    #[must_use]
    pub fn added_ms(&self) -> Option<u64> {
        self.id.split('-').next()?.parse().ok()
    }
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Name, possibly truncated.
    pub name: Vec<u8>,
    /// Start of the value.
    pub value: Vec<u8>,
    /// Size of the whole value, bytes.
    pub bytes: u64,
}

impl Field {
    /// Whether the value is truncated.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        usize::try_from(self.bytes).is_ok_and(|bytes| bytes > self.value.len())
    }
}

/// A page of messages, in stream order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Matching messages.
    pub messages: Vec<Message>,
    /// Cursor of the next page; `None` at the end.
    pub next: Option<String>,
    /// Number of entries scanned.
    pub looked: u64,
}

/// Entries fixed by a preview, as they were then, and the action to apply to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Action to apply.
    pub action: Action,
    /// Reason, stored with dropped messages.
    pub why: String,
    /// Entries are skipped unless they are still idle for this many milliseconds.
    pub min_idle_ms: u64,
    /// Owners must have no heartbeat; owners without remaining entries are deleted.
    pub of_the_dead: bool,
    /// Entries by stream and group.
    pub parts: Vec<Part>,
}

/// Entries of one stream and group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The stream, as bytes.
    pub stream: Vec<u8>,
    /// The group, as bytes.
    pub group: Vec<u8>,
    /// State at the time of the preview.
    pub state: MessageState,
    /// Owners, including those without remaining entries.
    pub owners: Vec<Vec<u8>>,
    /// Index into `owners`, entry ID, and delivery count.
    pub entries: Vec<(usize, String, u64)>,
}

impl Part {
    /// Adds a message and its owner.
    pub fn add(&mut self, message: &Message) {
        let owner = message.owner.as_ref().map_or(&b""[..], Name::as_bytes);
        let known = self.owners.iter().rposition(|known| known == owner);
        let place = known.unwrap_or_else(|| {
            self.owners.push(owner.to_vec());
            self.owners.len() - 1
        });
        self.entries.push((place, message.id.clone(), message.deliveries));
    }
}

impl Chosen {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.entries.len()).sum()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A consumer group with its message counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Group name.
    pub name: Name,
    /// Pending entries.
    pub pending: u64,
    /// Undelivered entries; `None` where Redis does not report them.
    pub unread: Option<u64>,
}

/// Result of a preview.
#[derive(Debug, Clone)]
pub struct Found {
    /// Entries and the action to apply.
    pub chosen: Chosen,
    /// First messages, with payloads.
    pub first: Vec<Message>,
    /// Number of entries scanned.
    pub looked: u64,
    /// Whether all matching messages are included.
    pub complete: bool,
    /// Owners, whether each has a heartbeat, and their numbers of messages.
    pub owners: Vec<(Name, bool, u64)>,
    /// Number of groups that read the stream.
    pub groups: usize,
}

/// A consumer without a heartbeat that has pending entries.
#[derive(Debug, Clone)]
pub struct DeadConsumer {
    /// Its stream.
    pub stream: Name,
    /// Its group.
    pub group: Name,
    /// Consumer name.
    pub name: Name,
    /// Entries pending on it.
    pub pending: u64,
    /// Entries that are idle for long enough, among those scanned.
    pub stuck: u64,
    /// Stuck entries that no longer exist in the stream.
    pub phantoms: u64,
    /// Milliseconds since its last command.
    pub idle_ms: u64,
    /// Longest idle time of a stuck entry, milliseconds.
    pub oldest_ms: u64,
    /// First stuck entry, with its payload.
    pub first: Option<Message>,
}

/// Consumers without heartbeats and their entries.
#[derive(Debug, Clone)]
pub struct DeadFound {
    /// Entries and the action to apply.
    pub chosen: Chosen,
    /// Consumers found.
    pub consumers: Vec<DeadConsumer>,
    /// Whether all of them are included.
    pub complete: bool,
}

/// Result for one selected entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The action was applied.
    Done,
    /// The entry had already been deleted; only its pending ID was removed.
    Vanished,
    /// Skipped, because it had changed or another group needs it. Carries a word of [`LEFT_ALONE`].
    LeftAlone(&'static str),
    /// Redis returned an error and nothing changed.
    Refused(String),
}

/// Reasons for skipping entries: the word in the API and its description.
pub const LEFT_ALONE: [(&str, &str); 9] = [
    ("acknowledged", "finished in the meantime"),
    ("claimed", "claimed by another consumer in the meantime"),
    ("delivered_again", "delivered again in the meantime"),
    ("active", "its consumer became active again"),
    ("alive", "its consumer has a heartbeat again"),
    ("delivered", "delivered to a consumer in the meantime"),
    ("gone", "the message, its stream or its group was deleted"),
    ("needed_elsewhere", "still needed by another consumer group"),
    ("decided", "already decided by crash recovery"),
];

impl Verdict {
    /// Parses the word returned by a script.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "vanished" => Self::Vanished,
            word => match LEFT_ALONE.iter().find(|(known, _)| *known == word) {
                Some((known, _)) => Self::LeftAlone(known),
                None => Self::Refused(word.to_owned()),
            },
        }
    }
}

/// Reasons for not deleting consumers: the word in the API and its description.
pub const CONSUMER_KEPT: [(&str, &str); 3] = [
    ("alive", "it has a heartbeat again"),
    ("busy", "it still has pending messages, for example below the minimum idle time"),
    ("gone", "it or its group was already removed"),
];

/// Result of an action in one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppliedToStream {
    /// Entries that were retried, dead-lettered or dropped.
    pub done: u64,
    /// Phantom pending IDs that were acknowledged.
    pub phantoms: u64,
    /// Consumers deleted.
    pub consumers: u64,
}

/// Result of an action.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Recycle bin batch, if entries were dropped.
    pub batch: Option<String>,
    /// Entries that were retried, dead-lettered or dropped.
    pub done: u64,
    /// Entries that no longer existed; only their pending IDs were removed.
    pub vanished: u64,
    /// Skipped entries by reason, in the words of [`LEFT_ALONE`].
    pub left_alone: BTreeMap<&'static str, u64>,
    /// Number of entries for which Redis returned an error, and the last error.
    pub refused: Option<(u64, String)>,
    /// Consumers deleted.
    pub consumers_removed: u64,
    /// Consumers without a heartbeat that were not deleted, by reason, in the words of [`CONSUMER_KEPT`].
    pub consumers_kept: BTreeMap<&'static str, u64>,
    /// Results by stream.
    pub by_stream: BTreeMap<Name, AppliedToStream>,
    /// Reason why the action stopped before the last entry.
    pub ended_early: Option<String>,
}

impl Applied {
    /// Counts the result for an entry of `stream`.
    pub fn count(&mut self, stream: &Name, verdict: Verdict) {
        match verdict {
            Verdict::Done => {
                self.done += 1;
                self.by_stream.entry(stream.clone()).or_default().done += 1;
            }
            Verdict::Vanished => {
                self.vanished += 1;
                self.by_stream.entry(stream.clone()).or_default().phantoms += 1;
            }
            Verdict::LeftAlone(why) => *self.left_alone.entry(why).or_default() += 1,
            Verdict::Refused(error) => {
                let so_far = self.refused.take().map_or(0, |(count, _)| count);
                self.refused = Some((so_far + 1, error));
            }
        }
    }

    /// Number of skipped entries.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left_alone.values().sum()
    }
}

/// Encodes fields losslessly: each string is prefixed with its length (four bytes, big-endian).
#[must_use]
pub fn packed<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in fields.into_iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend_from_slice(&u32::try_from(string.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(string);
    }
    bytes
}

/// Decodes [`packed`] fields; `None` when `bytes` is not such an encoding.
#[must_use]
pub fn unpacked(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (string, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        *rest = after;
        Some(string)
    }
    let (mut rest, mut fields) = (bytes, Vec::new());
    while !rest.is_empty() {
        fields.push((string(&mut rest)?.to_vec(), string(&mut rest)?.to_vec()));
    }
    Some(fields)
}

/// State of an entry of the recycle bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "RecycleBinState")]
pub enum BinState {
    /// Stored; removal from the stream is not confirmed yet.
    Pending,
    /// Removed from its stream; can be restored.
    Binned,
    /// Changed in the meantime and was not removed from its stream.
    Void,
    /// Restored.
    Restored,
}

impl BinState {
    /// Word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Binned => "binned",
            Self::Void => "void",
            Self::Restored => "restored",
        }
    }

    /// Parses the word.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "pending" => Self::Pending,
            "void" => Self::Void,
            "restored" => Self::Restored,
            _ => Self::Binned,
        }
    }
}

/// An entry of the recycle bin. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Binned {
    /// ID in the bin.
    pub id: i64,
    /// Batch (UUID) of the entries that were dropped together.
    pub batch: String,
    /// Stream.
    pub stream: Name,
    /// Key that contained it: the stream, or its dead-letter stream.
    pub home: Name,
    /// Group in which it was pending or unread; `None` for dead letters.
    pub group: Option<Name>,
    /// State before the drop.
    pub was: MessageState,
    /// Entry ID in the stream.
    pub entry: String,
    /// Consumer that it was pending on.
    pub owner: Option<Name>,
    /// Delivery count.
    pub deliveries: u64,
    /// Fields.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the whole payload, bytes; `fields` may be omitted.
    pub bytes: u64,
    /// State in the bin.
    pub state: BinState,
    /// User who dropped it.
    pub who: String,
    /// Reason.
    pub why: String,
    /// Time of the drop.
    pub at: f64,
    /// New entry ID after a restore.
    pub restored_as: Option<String>,
    /// User who restored it.
    pub restored_by: Option<String>,
    /// Time of the restore.
    pub restored_at: Option<f64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_fields_round_trip(
            fields in proptest::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..6),
            cut in 1_usize..9,
        ) {
            let bytes = packed(fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())));
            prop_assert_eq!(unpacked(&bytes), Some(fields));
            if bytes.len() >= cut {
                prop_assert_ne!(unpacked(&bytes[..bytes.len() - cut]).map(|f| f.len()), unpacked(&bytes).map(|f| f.len()));
            }
        }
    }

    #[test]
    fn script_words_parse_into_verdicts() {
        assert_eq!(Verdict::from_word("claimed"), Verdict::LeftAlone("claimed"));
        assert_eq!(Verdict::from_word("OOM no"), Verdict::Refused("OOM no".to_owned()));
    }

    #[test]
    fn unread_is_not_retried_and_dead_is_not_dead_lettered() {
        assert!(!Action::Retry.fits(MessageState::Unread) && !Action::Bury.fits(MessageState::Dead));
        assert!(Action::ALL.into_iter().all(|action| action.fits(MessageState::Pending)));
    }
}
