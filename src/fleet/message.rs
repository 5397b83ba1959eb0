//! Messages on a stream as an operator sees and chooses them: what is shown, what a preview fixed,
//! and what became of each when it was applied.

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

/// A word that stands for none of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Unknown(pub &'static str);

impl MessageState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Unread, Self::Dead];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Unread => "unread",
            Self::Dead => "dead",
        }
    }

    /// Its name for people.
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Retry, Self::Bury, Self::Drop];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Bury => "bury",
            Self::Drop => "drop",
        }
    }

    /// Whether it takes messages out of their stream for good: an administrator's to decide.
    #[must_use]
    pub fn takes_away(self) -> bool {
        self != Self::Retry
    }

    /// Whether messages in this state can be treated so.
    #[must_use]
    pub fn fits(self, state: MessageState) -> bool {
        match (self, state) {
            // What is unread will be read; what is dead is dead.
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

/// Which messages of a stream are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// In which state.
    pub state: MessageState,
    /// As this group sees them; dead letters belong to the stream as a whole.
    pub group: Name,
    /// Pending at this consumer only.
    pub owner: Option<Name>,
    /// Pending and idle for at least so many milliseconds.
    pub min_idle_ms: u64,
    /// That have this field.
    pub field: Option<Vec<u8>>,
    /// With this text in that field, or in any.
    pub contains: Vec<u8>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its entry's id.
    pub id: String,
    /// Who has it; pending ones only, as are the next two.
    pub owner: Option<Name>,
    /// How often it was delivered.
    pub deliveries: u64,
    /// Milliseconds since it was delivered or renewed last.
    pub idle_ms: u64,
    /// How many fields it has; 0 when the entry itself was deleted.
    pub field_count: u64,
    /// Bytes of all names and values.
    pub bytes: u64,
    /// The first of its fields, long values cut.
    pub fields: Vec<Field>,
}

impl Message {
    /// It is pending and its entry is no longer in the stream: nobody can run it or keep its payload.
    #[must_use]
    pub fn is_phantom(&self) -> bool {
        self.owner.is_some() && self.field_count == 0
    }

    /// When it was added, Unix milliseconds: the clock in its id, as far as its producer let Redis make it.
    #[must_use]
    pub fn added_ms(&self) -> Option<u64> {
        self.id.split('-').next()?.parse().ok()
    }
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, maybe cut.
    pub name: Vec<u8>,
    /// The beginning of its value.
    pub value: Vec<u8>,
    /// Bytes of the whole value.
    pub bytes: u64,
}

impl Field {
    /// Not all of the value is here.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        usize::try_from(self.bytes).is_ok_and(|bytes| bytes > self.value.len())
    }
}

/// A part of the messages, in the stream's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Those that match.
    pub messages: Vec<Message>,
    /// After which to go on; `None` at the end.
    pub next: Option<String>,
    /// Entries looked at.
    pub looked: u64,
}

/// What a preview fixed: these entries as they were then, and what is to be done with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// What is to be done.
    pub action: Action,
    /// For the bin: why.
    pub why: String,
    /// Entries must still be idle for so long.
    pub min_idle_ms: u64,
    /// Owners must have no heartbeat, and those with nothing left are removed.
    pub of_the_dead: bool,
    /// The entries.
    pub parts: Vec<Part>,
}

/// Entries of one stream and group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The stream, as bytes.
    pub stream: Vec<u8>,
    /// The group, as bytes.
    pub group: Vec<u8>,
    /// How they stood.
    pub state: MessageState,
    /// Their owners; also those with nothing left to settle.
    pub owners: Vec<Vec<u8>>,
    /// Place of the owner, id, and how often it had been delivered.
    pub entries: Vec<(usize, String, u64)>,
}

impl Part {
    /// Adds a message; its owner by its place.
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
    /// How many entries it is about.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.entries.len()).sum()
    }

    /// Whether there is no entry in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A group of a stream, as far as messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Name,
    /// Entries pending in it.
    pub pending: u64,
    /// Entries not delivered to it; `None` where Redis does not know.
    pub unread: Option<u64>,
}

/// Messages that were found and fixed.
#[derive(Debug, Clone)]
pub struct Found {
    /// What is to be done with which.
    pub chosen: Chosen,
    /// The first of them, with their payloads.
    pub first: Vec<Message>,
    /// Entries looked at.
    pub looked: u64,
    /// Nothing was left out: there is no more that matches.
    pub complete: bool,
    /// The owners, whether each has a heartbeat, and how many of the messages it has.
    pub owners: Vec<(Name, bool, u64)>,
    /// Groups that read the stream.
    pub groups: usize,
}

/// A consumer without heartbeat that holds entries.
#[derive(Debug, Clone)]
pub struct DeadConsumer {
    /// Its stream.
    pub stream: Name,
    /// Its group.
    pub group: Name,
    /// Its name.
    pub name: Name,
    /// Entries pending at it.
    pub pending: u64,
    /// Those of them that are idle for long enough, as far as was looked.
    pub stuck: u64,
    /// Those of the stuck whose entry is no longer in the stream.
    pub phantoms: u64,
    /// Milliseconds since it asked for anything.
    pub idle_ms: u64,
    /// Since the longest idle of the stuck was delivered, in milliseconds.
    pub oldest_ms: u64,
    /// The first of the stuck, with its payload.
    pub first: Option<Message>,
}

/// What was found on consumers without heartbeat.
#[derive(Debug, Clone)]
pub struct DeadFound {
    /// What is to be done with which.
    pub chosen: Chosen,
    /// The consumers.
    pub consumers: Vec<DeadConsumer>,
    /// Nothing was left out.
    pub complete: bool,
}

/// What became of one entry that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was done.
    Done,
    /// The entry had been deleted before; only its place in the pending list was cleared.
    Vanished,
    /// It had changed since, or another group needs it: nothing was done. A word of [`LEFT_ALONE`].
    LeftAlone(&'static str),
    /// Redis refused: nothing was done.
    Refused(String),
}

/// Why entries are left alone: the word in the API, and what it means.
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
    /// Reads a script's word.
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

/// Why consumers are not removed: the word in the API, and what it means.
pub const CONSUMER_KEPT: [(&str, &str); 3] = [
    ("alive", "it has a heartbeat again"),
    ("busy", "it still has pending messages, for example below the minimum idle time"),
    ("gone", "it or its group was already removed"),
];

/// What applying came to in one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppliedToStream {
    /// Entries that were retried, buried or dropped.
    pub done: u64,
    /// Phantom pending IDs that were acknowledged.
    pub phantoms: u64,
    /// Consumers removed.
    pub consumers: u64,
}

/// What applying came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The batch of the recycle bin, when something was dropped.
    pub batch: Option<String>,
    /// Entries that were retried, buried or dropped.
    pub done: u64,
    /// Entries of which only a place in the pending list was left, which is cleared.
    pub vanished: u64,
    /// Entries left alone, by the words of [`LEFT_ALONE`].
    pub left_alone: BTreeMap<&'static str, u64>,
    /// Entries that Redis refused to treat, and what it said of the last.
    pub refused: Option<(u64, String)>,
    /// Consumers removed.
    pub consumers_removed: u64,
    /// Consumers without heartbeat that were not removed, by the words of [`CONSUMER_KEPT`].
    pub consumers_kept: BTreeMap<&'static str, u64>,
    /// The same by stream.
    pub by_stream: BTreeMap<Name, AppliedToStream>,
    /// Why it ended before the last entry, if it did.
    pub ended_early: Option<String>,
}

impl Applied {
    /// Counts what became of an entry of `stream`.
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

    /// Entries left alone, whatever the reason.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left_alone.values().sum()
    }
}

/// Fields as one row of bytes, exactly: for each string its length (four bytes, the highest first),
/// then the string.
#[must_use]
pub fn packed<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in fields.into_iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend_from_slice(&u32::try_from(string.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(string);
    }
    bytes
}

/// What [`packed`] made into one; `None` when it is something else.
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
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Binned => "binned",
            Self::Void => "void",
            Self::Restored => "restored",
        }
    }

    /// Reads the word.
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
    /// Its place in the bin.
    pub id: i64,
    /// What was dropped together has one batch, a UUID.
    pub batch: String,
    /// The stream.
    pub stream: Name,
    /// The key it lay under: the stream, or its dead letters.
    pub home: Name,
    /// The group it was pending or unread in; dead letters are in none.
    pub group: Option<Name>,
    /// How it stood.
    pub was: MessageState,
    /// Its id in the stream.
    pub entry: String,
    /// Who had it.
    pub owner: Option<Name>,
    /// How often it had been delivered.
    pub deliveries: u64,
    /// Its fields.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the whole payload, of which `fields` may be left out.
    pub bytes: u64,
    /// How it stands.
    pub state: BinState,
    /// Who dropped it.
    pub who: String,
    /// Why.
    pub why: String,
    /// When.
    pub at: f64,
    /// Its id since it was put back.
    pub restored_as: Option<String>,
    /// Who put it back.
    pub restored_by: Option<String>,
    /// When it was put back.
    pub restored_at: Option<f64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_payload_comes_out_of_its_row_as_it_went_in(
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
    fn what_a_script_says_is_a_reason_or_an_error_of_redis() {
        assert_eq!(Verdict::from_word("claimed"), Verdict::LeftAlone("claimed"));
        assert_eq!(Verdict::from_word("OOM no"), Verdict::Refused("OOM no".to_owned()));
    }

    #[test]
    fn what_is_unread_is_not_retried_and_what_is_dead_not_buried() {
        assert!(!Action::Retry.fits(MessageState::Unread) && !Action::Bury.fits(MessageState::Dead));
        assert!(Action::ALL.into_iter().all(|action| action.fits(MessageState::Pending)));
    }
}
