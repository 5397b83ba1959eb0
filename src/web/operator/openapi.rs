//! How the API tells what people do to messages: what it answers, and each route.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::dead_consumers::{LONGEST_IDLE, MIN_IDLE};
use super::{messages, recycle_bin};
use crate::contract::Name;
use crate::fleet::message::{Action, BinState, LEFT_ALONE, MessageState};
use crate::web::openapi::operation::{Group, Operation};

/// A part of a stream's messages.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Messages")]
pub(super) struct Messages {
    /// The stream.
    pub(super) stream: Name,
    /// How these messages stand.
    pub(super) state: MessageState,
    /// As which group sees them; `null` for dead letters, which belong to the stream as a whole.
    pub(super) group: Option<Name>,
    /// The groups that read the stream.
    pub(super) groups: Vec<GroupTold>,
    /// Dead letters of the stream; `null` where that is not known.
    pub(super) dead: Option<u64>,
    /// Those that match, the oldest first.
    pub(super) messages: Vec<MessageTold>,
    /// Entries looked at for it.
    pub(super) looked_at: u64,
    /// The `cursor` of what follows; `null` at the end.
    pub(super) next: Option<String>,
}

/// A group of a stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageGroup")]
pub(super) struct GroupTold {
    /// Its name.
    pub(super) name: Name,
    /// Entries pending in it.
    pub(super) pending: u64,
    /// Entries not delivered to it; `null` where Redis does not know.
    pub(super) unread: Option<u64>,
}

/// A message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Message")]
pub(super) struct MessageTold {
    /// Its entry's id.
    pub(super) id: String,
    /// When it was added, Unix milliseconds, going by its id.
    pub(super) added_ms: Option<u64>,
    /// Who has it; `null` unless it is pending, as are the next two.
    pub(super) owner: Option<Name>,
    /// How often it was delivered.
    pub(super) deliveries: Option<u64>,
    /// Milliseconds since it was delivered or renewed last.
    pub(super) idle_ms: Option<u64>,
    /// Bytes of all names and values.
    pub(super) bytes: u64,
    /// How many fields it has; 0 when the entry itself was deleted.
    pub(super) field_count: u64,
    /// The first of its fields, long values cut.
    pub(super) fields: Vec<FieldTold>,
}

/// A field of a message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageField")]
pub(super) struct FieldTold {
    /// Its name.
    pub(super) name: Name,
    /// Its value, or the beginning of it.
    pub(super) value: Name,
    /// Bytes of the whole value.
    pub(super) bytes: u64,
    /// Not all of it is here.
    pub(super) cut: bool,
    /// It is text; otherwise what is no text in it is shown as `\xNN`.
    pub(super) utf8: bool,
}

/// What would be done.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Preview")]
pub(super) struct PreviewTold {
    /// What to apply it with, once.
    pub(super) token: String,
    /// For how long the token holds, seconds.
    pub(super) expires_in_seconds: i32,
    /// What would be done.
    pub(super) action: Action,
    /// On which stream.
    pub(super) stream: Name,
    /// To messages that stand so.
    pub(super) state: MessageState,
    /// As this group sees them.
    pub(super) group: Name,
    /// To how many; at most 10,000.
    pub(super) messages: usize,
    /// There is no more that matches.
    pub(super) complete: bool,
    /// Entries looked at for it.
    pub(super) looked_at: u64,
    /// Groups that read the stream.
    pub(super) groups: usize,
    /// Whose they are.
    pub(super) owners: Vec<OwnerTold>,
    /// The first of them.
    pub(super) first: Vec<MessageTold>,
}

/// Whose messages.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageOwner")]
pub(super) struct OwnerTold {
    /// The consumer.
    pub(super) consumer: Name,
    /// It has a heartbeat: it may be at work on them.
    pub(super) heartbeat: bool,
    /// How many it has of them.
    pub(super) messages: u64,
}

/// What was done.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Applied")]
pub(super) struct AppliedTold {
    /// What was to be done.
    pub(super) action: Action,
    /// To how many messages it was done.
    pub(super) done: u64,
    /// How many were left alone, by reason.
    #[schemars(transform = name_reasons)]
    pub(super) left_alone: BTreeMap<String, u64>,
    /// How many had been deleted before: their places in the pending list were cleared.
    pub(super) deleted_before: u64,
    /// What Redis refused; `null` when it refused nothing.
    pub(super) refused: Option<RefusedTold>,
    /// Consumers removed.
    pub(super) consumers_removed: u64,
    /// The batch in the recycle bin; `null` when nothing was dropped.
    pub(super) batch: Option<String>,
    /// Why it ended before the last message; `null` when it did not.
    pub(super) ended_early: Option<String>,
}

/// Each reason why a message is left alone.
fn name_reasons(schema: &mut schemars::Schema) {
    let counts = schema.remove("additionalProperties").unwrap_or_default();
    let reason = |(word, meaning): &(&str, &str)| {
        let mut counts = counts.clone();
        if let Some(counts) = counts.as_object_mut() {
            counts.insert("description".to_owned(), (*meaning).into());
        }
        ((*word).to_owned(), counts)
    };
    schema.insert("properties".to_owned(), LEFT_ALONE.iter().map(reason).collect());
}

/// What Redis refused.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Refused")]
pub(super) struct RefusedTold {
    /// How many messages.
    pub(super) messages: u64,
    /// What it said of the last.
    pub(super) error: String,
}

/// What is stuck on consumers without heartbeat.
#[derive(Serialize, JsonSchema)]
pub(super) struct DeadConsumers {
    /// Idle for at least so long, seconds.
    pub(super) min_idle_seconds: u64,
    /// Messages in all.
    pub(super) messages: usize,
    /// Nothing was left out.
    pub(super) complete: bool,
    /// The consumers.
    pub(super) consumers: Vec<DeadConsumerTold>,
}

/// A consumer without heartbeat that holds messages.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadConsumer")]
pub(super) struct DeadConsumerTold {
    /// Its stream.
    pub(super) stream: Name,
    /// Its group.
    pub(super) group: Name,
    /// Its name.
    pub(super) consumer: Name,
    /// Messages pending at it.
    pub(super) pending: u64,
    /// Those of them that are idle for long enough, as far as was looked.
    pub(super) stuck: u64,
    /// Those of the stuck whose entry is no longer in the stream: they are acknowledged, there is nothing to drop.
    pub(super) phantom_pending: u64,
    /// Milliseconds since it asked for anything.
    pub(super) idle_ms: u64,
    /// Milliseconds since the longest idle of the stuck was delivered.
    pub(super) oldest_idle_ms: u64,
    /// The first of the stuck.
    pub(super) first: Option<MessageTold>,
}

/// What would be done about consumers without heartbeat.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadConsumersPreview")]
pub(super) struct DeadPreview {
    #[serde(flatten)]
    pub(super) found: DeadConsumers,
    /// What to apply it with, once.
    pub(super) token: String,
    /// What would be done.
    pub(super) action: Action,
    /// For how long the token holds, seconds.
    pub(super) expires_in_seconds: i32,
}

/// What was dropped and removed.
#[derive(Serialize, JsonSchema)]
pub(super) struct Reclaimed {
    /// Nothing was done: these are the numbers of what would be.
    pub(super) dry_run: bool,
    /// Idle for at least so long, seconds.
    pub(super) min_idle_seconds: u64,
    /// Messages dropped.
    pub(super) dropped_messages: u64,
    /// Pending IDs acknowledged whose entry was no longer in the stream: there was nothing to drop.
    pub(super) phantom_pending: u64,
    /// Consumers removed.
    pub(super) consumers_removed: u64,
    /// The same by stream.
    pub(super) by_stream: BTreeMap<Name, InStream>,
    /// Messages that were found and not dropped, by reason.
    #[schemars(transform = name_reasons)]
    pub(super) not_dropped: BTreeMap<String, u64>,
    /// Messages that Redis refused to drop.
    pub(super) refused: Option<RefusedTold>,
    /// Consumers that were found and not removed, by reason: `alive` (a heartbeat again), `busy` (it has pending
    /// messages left), `gone` (somebody else removed it).
    pub(super) consumers_kept: BTreeMap<String, u64>,
    /// Nothing was left out; `false`: there is more than one request looks at.
    pub(super) complete: bool,
    /// The batches in the recycle bin.
    pub(super) batches: Vec<String>,
}

/// What was dropped and removed of one stream.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "ReclaimedInStream")]
pub(super) struct InStream {
    /// Messages dropped.
    pub(super) messages: u64,
    /// Pending IDs acknowledged whose entry was no longer in the stream.
    pub(super) phantom_pending: u64,
    /// Consumers removed.
    pub(super) consumers: u64,
}

/// What lies in the recycle bin.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RecycleBin")]
pub(super) struct Bin {
    /// Newest first.
    pub(super) entries: Vec<BinnedTold>,
    /// The `before` of what follows; `null` at the end.
    pub(super) next: Option<i64>,
}

/// A message that was dropped.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RecycleBinEntry")]
pub(super) struct BinnedTold {
    /// Its place in the bin.
    pub(super) id: i64,
    /// What was dropped together has one batch.
    pub(super) batch: String,
    /// The stream.
    pub(super) stream: Name,
    /// The group it was pending or unread in; `null` for dead letters.
    pub(super) group: Option<Name>,
    /// How it stood.
    pub(super) was: MessageState,
    /// Its id in the stream.
    pub(super) entry: String,
    /// Who had it.
    pub(super) owner: Option<Name>,
    /// How often it had been delivered.
    pub(super) deliveries: u64,
    /// Bytes of its payload.
    pub(super) bytes: u64,
    /// Its fields; `null` when they are longer than 64 kB together.
    pub(super) fields: Option<Vec<FieldTold>>,
    /// How it stands.
    pub(super) state: BinState,
    /// Who dropped it.
    pub(super) who: String,
    /// Why.
    pub(super) why: String,
    /// When, Unix seconds.
    pub(super) at: f64,
    /// Its id since it was put back.
    pub(super) restored_as: Option<String>,
    /// Who put it back.
    pub(super) restored_by: Option<String>,
    /// When it was put back, Unix seconds.
    pub(super) restored_at: Option<f64>,
}

/// What was put back.
#[derive(Serialize, JsonSchema)]
pub(super) struct Restored {
    /// Messages put back.
    pub(super) restored: u64,
    /// Messages that had never left their stream.
    pub(super) never_left: u64,
    /// What Redis refused; `null` when it refused nothing.
    pub(super) refused: Option<RefusedTold>,
}

/// Which messages of a stream.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct MessagesQuery {
    /// How they stand; `pending` when left out.
    #[schemars(extend("default" = "pending"), example = MessageState::Pending)]
    state: Option<MessageState>,
    /// As this group sees them; `consumer` when left out, or else the first.
    group: Option<String>,
    /// Only those pending at this consumer.
    owner: Option<String>,
    /// Only those that have this field.
    field: Option<String>,
    /// Only those with this text in that field, or in any; 5000 are looked at for one answer.
    contains: Option<String>,
    /// Only those after this id: the `next` of an earlier answer.
    cursor: Option<String>,
    /// Messages in the answer at most.
    #[schemars(
        range(min = 1, max = messages::MOST_SHOWN),
        extend("default" = messages::SHOWN),
        example = 5
    )]
    limit: Option<u64>,
    /// This one alone, with values of up to 256 kB.
    id: Option<String>,
}

/// What to do with which messages.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct PreviewOrder {
    /// What is to be done: `retry` with pending and dead ones, `bury` (to the dead letters) with pending and unread
    /// ones, `drop` (to the recycle bin) with all.
    #[schemars(example = Action::Retry)]
    action: Action,
    /// How they stand; `pending` when left out.
    #[schemars(example = MessageState::Pending)]
    state: Option<MessageState>,
    /// As this group sees them; `consumer` when left out, or else the first.
    group: Option<String>,
    /// Only those pending at this consumer.
    owner: Option<String>,
    /// Only those that have this field.
    field: Option<String>,
    /// Only those with this text in that field, or in any.
    #[schemars(example = &"q-17")]
    contains: Option<String>,
    /// These alone.
    #[schemars(length(max = messages::MOST_IDS))]
    id: Option<Vec<String>>,
    /// Why, for the recycle bin.
    why: Option<String>,
}

/// Which preview to apply.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct ApplyOrder {
    /// The token of the preview.
    #[schemars(example = &"1f0c6b1e-7f0e-4b7e-9d55-0c8f6a0d7e21")]
    token: String,
    /// Why, for the recycle bin.
    #[schemars(example = &"worked off by hand")]
    why: Option<String>,
}

/// How long a consumer has been idle.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct IdleQuery {
    /// Consumers and messages idle for less are left alone, seconds.
    #[schemars(range(max = LONGEST_IDLE), extend("default" = MIN_IDLE), example = 3600)]
    min_idle_seconds: Option<u64>,
}

/// What to do about consumers without heartbeat.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct DeadOrder {
    /// What is to be done with their messages.
    #[schemars(example = Action::Retry)]
    action: Action,
    /// Consumers and messages idle for less are left alone, seconds; 3600 when left out.
    #[schemars(range(max = LONGEST_IDLE), example = 3600)]
    min_idle_seconds: Option<u64>,
    /// Why, for the recycle bin.
    why: Option<String>,
}

/// What to reclaim.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct ReclaimQuery {
    /// Consumers and messages idle for less are left alone, seconds.
    #[schemars(range(max = LONGEST_IDLE), extend("default" = MIN_IDLE), example = 3600)]
    min_idle_seconds: Option<u64>,
    /// Do nothing, and answer what would be done.
    #[schemars(extend("default" = false), example = true)]
    dry_run: Option<bool>,
}

/// What of the recycle bin.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct BinQuery {
    /// Only of this stream.
    #[schemars(example = &"aragorn.lookup")]
    stream: Option<String>,
    /// Only of this batch.
    batch: Option<String>,
    /// Only those that stand so.
    state: Option<BinState>,
    /// Only those before this place: the `next` of an earlier answer.
    before: Option<i64>,
    /// Entries in the answer at most.
    #[schemars(
        range(min = 1, max = recycle_bin::MOST_SHOWN),
        extend("default" = recycle_bin::SHOWN),
        example = 5
    )]
    limit: Option<u64>,
}

/// What to put back: a batch, or places.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct RestoreOrder {
    /// The batch.
    #[schemars(example = &"6f8f3c0e-52a5-4f63-8f7b-0d6d7c1b9a10")]
    batch: Option<String>,
    /// Or places in the bin.
    #[schemars(length(max = recycle_bin::MOST_IDS))]
    id: Option<Vec<i64>>,
}

const STREAM: &str = "The stream. One called `..` is asked for as `/api/streams//messages?name=%2E%2E`.";
const LOOKING: &str = "Redis cannot be read, or does not answer within 20 s.";
const KEEPING: &str = "Redis or Postgres cannot be asked: nothing was done.";
const DOING: &str = "It cannot be written into the audit, or it took longer than five minutes.";

/// `GET /api/streams/{name}/messages`.
pub fn messages() -> Operation {
    Operation::new(
        Group::Messages,
        "Messages of a stream",
        "From the oldest on. However long the stream is, an answer costs Redis about the same.",
    )
    .path("name", STREAM, "aragorn.lookup")
    .query::<MessagesQuery>()
    .answers::<Messages>("Messages, oldest first.")
    .unavailable(LOOKING)
}

/// `POST /api/streams/{name}/messages/preview`.
pub fn preview() -> Operation {
    Operation::new(
        Group::Messages,
        "Preview a change to messages",
        "Changes nothing. The token holds for a quarter of an hour, for exactly these messages as they are now.",
    )
    .path("name", STREAM, "aragorn.lookup")
    .body::<PreviewOrder>()
    .answers::<PreviewTold>("What would be done.")
    .unavailable(KEEPING)
}

/// `POST /api/streams/{name}/messages/apply`.
pub fn apply() -> Operation {
    Operation::new(
        Group::Messages,
        "Apply a preview of messages",
        "Exactly that, once; what changed since is left alone. To bury and to drop needs the role admin.",
    )
    .path("name", STREAM, "aragorn.lookup")
    .body::<ApplyOrder>()
    .answers::<AppliedTold>("What was done.")
    .unavailable(DOING)
}

/// `GET /api/admin/dead_consumers`.
pub fn dead_consumers() -> Operation {
    Operation::new(
        Group::Messages,
        "What is stuck on dead consumers",
        "Consumers without heartbeat that asked for nothing for so long, and the messages that they hold.",
    )
    .query::<IdleQuery>()
    .answers::<DeadConsumers>("The consumers.")
    .unavailable(LOOKING)
}

/// `POST /api/admin/dead_consumers/preview`.
pub fn dead_consumers_preview() -> Operation {
    Operation::new(
        Group::Messages,
        "Preview a change to dead consumers",
        "Changes nothing. Applying it also removes the consumers that hold nothing then.",
    )
    .body::<DeadOrder>()
    .answers::<DeadPreview>("What would be done.")
    .unavailable(KEEPING)
}

/// `POST /api/admin/dead_consumers/apply`.
pub fn dead_consumers_apply() -> Operation {
    Operation::new(
        Group::Messages,
        "Apply a preview about dead consumers",
        "Exactly that, once; what changed since is left alone. To bury and to drop needs the role admin.",
    )
    .body::<ApplyOrder>()
    .answers::<AppliedTold>("What was done.")
    .unavailable(DOING)
}

/// `POST /api/admin/reclaim_dead_consumers`.
pub fn reclaim() -> Operation {
    Operation::new(
        Group::Messages,
        "Drop what is stuck on dead consumers",
        "In one step, by way of the recycle bin; and removes those consumers.",
    )
    .query::<ReclaimQuery>()
    .answers::<Reclaimed>("What was done.")
    .unavailable(DOING)
}

/// `GET /api/admin/recycle_bin`.
pub fn recycle_bin() -> Operation {
    Operation::new(Group::Messages, "The recycle bin", "What was dropped is kept for thirty days.")
        .query::<BinQuery>()
        .answers::<Bin>("Entries, newest first.")
        .unavailable("Postgres cannot be read.")
}

/// `POST /api/admin/recycle_bin/restore`.
pub fn restore() -> Operation {
    Operation::new(
        Group::Messages,
        "Put back what was dropped",
        "To the end of its stream, each message once however often it is asked. Either a batch or places.",
    )
    .body::<RestoreOrder>()
    .answers::<Restored>("What was put back.")
    .unavailable(DOING)
}
