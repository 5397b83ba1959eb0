//! OpenAPI descriptions of the message routes and their responses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::dead_consumers::{LONGEST_IDLE, MIN_IDLE};
use super::{messages, recycle_bin};
use crate::contract::Name;
use crate::fleet::message::{Action, BinState, LEFT_ALONE, MessageState};
use crate::web::openapi::operation::{Group, Operation};

/// A page of messages of a stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Messages")]
pub(super) struct Messages {
    /// The stream.
    pub(super) stream: Name,
    /// State of these messages.
    pub(super) state: MessageState,
    /// Consumer group; `null` for dead letters, which belong to the stream.
    pub(super) group: Option<Name>,
    /// Consumer groups of the stream.
    pub(super) groups: Vec<GroupResponse>,
    /// Dead letters of the stream; `null` if unknown.
    pub(super) dead: Option<u64>,
    /// Matching messages, oldest first.
    pub(super) messages: Vec<MessageResponse>,
    /// Entries scanned.
    pub(super) looked_at: u64,
    /// Value of `cursor` for the next page; `null` on the last page.
    pub(super) next: Option<String>,
}

/// A group of a stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageGroup")]
pub(super) struct GroupResponse {
    /// Its name.
    pub(super) name: Name,
    /// Pending messages.
    pub(super) pending: u64,
    /// Undelivered messages; `null` if Redis does not report the lag.
    pub(super) unread: Option<u64>,
}

/// A message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Message")]
pub(super) struct MessageResponse {
    /// Entry ID.
    pub(super) id: String,
    /// Time it was added, Unix milliseconds, from its ID.
    pub(super) added_ms: Option<u64>,
    /// Consumer; this and the next two are `null` unless the message is pending.
    pub(super) owner: Option<Name>,
    /// Number of deliveries.
    pub(super) deliveries: Option<u64>,
    /// Milliseconds since the last delivery or lease renewal.
    pub(super) idle_ms: Option<u64>,
    /// Size of all field names and values, bytes.
    pub(super) bytes: u64,
    /// Number of fields; 0 if the entry was deleted.
    pub(super) field_count: u64,
    /// First fields, with long values truncated.
    pub(super) fields: Vec<FieldResponse>,
}

/// A field of a message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageField")]
pub(super) struct FieldResponse {
    /// Its name.
    pub(super) name: Name,
    /// Value, possibly truncated.
    pub(super) value: Name,
    /// Size of the full value, bytes.
    pub(super) bytes: u64,
    /// Whether the value is truncated.
    pub(super) cut: bool,
    /// Whether the value is UTF-8; other bytes are shown as `\xNN`.
    pub(super) utf8: bool,
}

/// What would be done.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Preview")]
pub(super) struct PreviewResponse {
    /// Token to apply the preview, once.
    pub(super) token: String,
    /// Lifetime of the token, seconds.
    pub(super) expires_in_seconds: i32,
    /// What would be done.
    pub(super) action: Action,
    /// The stream.
    pub(super) stream: Name,
    /// State of the messages.
    pub(super) state: MessageState,
    /// As this group sees them.
    pub(super) group: Name,
    /// Number of messages; at most 10,000.
    pub(super) messages: usize,
    /// Whether all matching messages are included.
    pub(super) complete: bool,
    /// Entries scanned.
    pub(super) looked_at: u64,
    /// Number of consumer groups of the stream.
    pub(super) groups: usize,
    /// Consumers that own the messages.
    pub(super) owners: Vec<OwnerResponse>,
    /// First messages.
    pub(super) first: Vec<MessageResponse>,
}

/// Consumer that owns messages.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageOwner")]
pub(super) struct OwnerResponse {
    /// The consumer.
    pub(super) consumer: Name,
    /// Whether it has a heartbeat and may be processing them.
    pub(super) heartbeat: bool,
    /// Number of messages it owns.
    pub(super) messages: u64,
}

/// What was done.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Applied")]
pub(super) struct AppliedResponse {
    /// The action.
    pub(super) action: Action,
    /// Number of messages changed.
    pub(super) done: u64,
    /// Number of messages skipped, by reason.
    #[schemars(transform = name_reasons)]
    pub(super) left_alone: BTreeMap<String, u64>,
    /// Number of messages already deleted, removed from the pending list.
    pub(super) deleted_before: u64,
    /// Messages rejected by Redis; `null` if none.
    pub(super) refused: Option<RefusedResponse>,
    /// Consumers removed.
    pub(super) consumers_removed: u64,
    /// Batch ID in the recycle bin; `null` if nothing was moved there.
    pub(super) batch: Option<String>,
    /// Why it stopped early; `null` if it completed.
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

/// Messages rejected by Redis.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Refused")]
pub(super) struct RefusedResponse {
    /// Number of messages.
    pub(super) messages: u64,
    /// Error of the last one.
    pub(super) error: String,
}

/// Messages stuck on consumers without heartbeat.
#[derive(Serialize, JsonSchema)]
pub(super) struct DeadConsumers {
    /// Minimum idle time, seconds.
    pub(super) min_idle_seconds: u64,
    /// Total number of messages.
    pub(super) messages: usize,
    /// Whether the list is complete.
    pub(super) complete: bool,
    /// The consumers.
    pub(super) consumers: Vec<DeadConsumerResponse>,
}

/// A consumer without heartbeat that has pending messages.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadConsumer")]
pub(super) struct DeadConsumerResponse {
    /// Its stream.
    pub(super) stream: Name,
    /// Its group.
    pub(super) group: Name,
    /// Its name.
    pub(super) consumer: Name,
    /// Pending messages.
    pub(super) pending: u64,
    /// Pending messages above the minimum idle time, as far as scanned.
    pub(super) stuck: u64,
    /// Stuck messages whose entry is no longer in the stream; they are acknowledged only.
    pub(super) phantom_pending: u64,
    /// Milliseconds since its last command.
    pub(super) idle_ms: u64,
    /// Idle time of the oldest stuck message, milliseconds.
    pub(super) oldest_idle_ms: u64,
    /// First stuck message.
    pub(super) first: Option<MessageResponse>,
}

/// Preview of an action on consumers without heartbeat.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadConsumersPreview")]
pub(super) struct DeadPreview {
    #[serde(flatten)]
    pub(super) found: DeadConsumers,
    /// Token to apply the preview, once.
    pub(super) token: String,
    /// What would be done.
    pub(super) action: Action,
    /// Lifetime of the token, seconds.
    pub(super) expires_in_seconds: i32,
}

/// Result of reclaiming dead consumers.
#[derive(Serialize, JsonSchema)]
pub(super) struct Reclaimed {
    /// Dry run: nothing was changed; the numbers show what would be.
    pub(super) dry_run: bool,
    /// Minimum idle time, seconds.
    pub(super) min_idle_seconds: u64,
    /// Messages moved to the recycle bin.
    pub(super) dropped_messages: u64,
    /// Acknowledged pending IDs without an entry in the stream.
    pub(super) phantom_pending: u64,
    /// Consumers removed.
    pub(super) consumers_removed: u64,
    /// Result by stream.
    pub(super) by_stream: BTreeMap<Name, InStream>,
    /// Messages skipped, by reason.
    #[schemars(transform = name_reasons)]
    pub(super) not_dropped: BTreeMap<String, u64>,
    /// Messages rejected by Redis.
    pub(super) refused: Option<RefusedResponse>,
    /// Consumers not removed, by reason: `alive` (has a heartbeat again), `busy` (still has pending messages),
    /// `gone` (already removed).
    pub(super) consumers_kept: BTreeMap<String, u64>,
    /// Whether everything was processed; `false` if there is more than one request handles.
    pub(super) complete: bool,
    /// Batch IDs in the recycle bin.
    pub(super) batches: Vec<String>,
}

/// Result for one stream.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "ReclaimedInStream")]
pub(super) struct InStream {
    /// Messages moved to the recycle bin.
    pub(super) messages: u64,
    /// Acknowledged pending IDs without an entry in the stream.
    pub(super) phantom_pending: u64,
    /// Consumers removed.
    pub(super) consumers: u64,
}

/// Entries of the recycle bin.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RecycleBin")]
pub(super) struct Bin {
    /// Newest first.
    pub(super) entries: Vec<RecycledMessageResponse>,
    /// Value of `before` for the next page; `null` on the last page.
    pub(super) next: Option<i64>,
}

/// A message in the recycle bin.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RecycleBinEntry")]
pub(super) struct RecycledMessageResponse {
    /// Entry ID in the recycle bin.
    pub(super) id: i64,
    /// Batch ID; messages moved together share it.
    pub(super) batch: String,
    /// The stream.
    pub(super) stream: Name,
    /// Consumer group it was pending or undelivered in; `null` for dead letters.
    pub(super) group: Option<Name>,
    /// State before it was moved.
    pub(super) was: MessageState,
    /// Entry ID in the stream.
    pub(super) entry: String,
    /// Consumer that owned it.
    pub(super) owner: Option<Name>,
    /// Number of deliveries.
    pub(super) deliveries: u64,
    /// Payload size, bytes.
    pub(super) bytes: u64,
    /// Fields; `null` if larger than 64 kB in total.
    pub(super) fields: Option<Vec<FieldResponse>>,
    /// State in the recycle bin.
    pub(super) state: BinState,
    /// User who moved it.
    pub(super) who: String,
    /// Why.
    pub(super) why: String,
    /// Time it was moved, Unix seconds.
    pub(super) at: f64,
    /// Entry ID after it was restored.
    pub(super) restored_as: Option<String>,
    /// User who restored it.
    pub(super) restored_by: Option<String>,
    /// Time it was restored, Unix seconds.
    pub(super) restored_at: Option<f64>,
}

/// Result of a restore.
#[derive(Serialize, JsonSchema)]
pub(super) struct Restored {
    /// Messages restored.
    pub(super) restored: u64,
    /// Messages that had never been removed from their stream.
    pub(super) never_left: u64,
    /// Messages rejected by Redis; `null` if none.
    pub(super) refused: Option<RefusedResponse>,
}

/// Selects messages of a stream.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct MessagesQuery {
    /// Message state; default `pending`.
    #[schemars(extend("default" = "pending"), example = MessageState::Pending)]
    state: Option<MessageState>,
    /// Consumer group; default `consumer`, or the first group.
    group: Option<String>,
    /// Only messages pending on this consumer.
    owner: Option<String>,
    /// Only messages with this field.
    field: Option<String>,
    /// Only messages with this text in the field (or any field); scans 5000 per page.
    contains: Option<String>,
    /// Only messages after this ID; `next` of the previous page.
    cursor: Option<String>,
    /// Maximum number of messages.
    #[schemars(
        range(min = 1, max = messages::MOST_SHOWN),
        extend("default" = messages::SHOWN),
        example = 5
    )]
    limit: Option<u64>,
    /// Only this message, with values of up to 256 kB.
    id: Option<String>,
}

/// An action on messages.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct PreviewOrder {
    /// `retry` (pending, dead), `bury` (dead-letter; pending, unread) or `drop` (move to the recycle bin; any
    /// state).
    #[schemars(example = Action::Retry)]
    action: Action,
    /// Message state; default `pending`.
    #[schemars(example = MessageState::Pending)]
    state: Option<MessageState>,
    /// Consumer group; default `consumer`, or the first group.
    group: Option<String>,
    /// Only messages pending on this consumer.
    owner: Option<String>,
    /// Only messages with this field.
    field: Option<String>,
    /// Only messages with this text in the field (or any field).
    #[schemars(example = &"q-17")]
    contains: Option<String>,
    /// Only these messages.
    #[schemars(length(max = messages::MOST_IDS))]
    id: Option<Vec<String>>,
    /// Comment, stored in the recycle bin.
    why: Option<String>,
}

/// The preview to apply.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct ApplyOrder {
    /// The token of the preview.
    #[schemars(example = &"1f0c6b1e-7f0e-4b7e-9d55-0c8f6a0d7e21")]
    token: String,
    /// Comment, stored in the recycle bin.
    #[schemars(example = &"processed manually")]
    why: Option<String>,
}

/// Minimum idle time.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct IdleQuery {
    /// Minimum idle time of consumers and messages, seconds.
    #[schemars(range(max = LONGEST_IDLE), extend("default" = MIN_IDLE), example = 3600)]
    min_idle_seconds: Option<u64>,
}

/// An action on consumers without heartbeat.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct DeadOrder {
    /// Action on their messages.
    #[schemars(example = Action::Retry)]
    action: Action,
    /// Consumers and messages idle for less are left alone, seconds; 3600 when left out.
    #[schemars(range(max = LONGEST_IDLE), example = 3600)]
    min_idle_seconds: Option<u64>,
    /// Comment, stored in the recycle bin.
    why: Option<String>,
}

/// Options of the reclaim.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct ReclaimQuery {
    /// Minimum idle time of consumers and messages, seconds.
    #[schemars(range(max = LONGEST_IDLE), extend("default" = MIN_IDLE), example = 3600)]
    min_idle_seconds: Option<u64>,
    /// Change nothing; return what would be done.
    #[schemars(extend("default" = false), example = true)]
    dry_run: Option<bool>,
}

/// Selects entries of the recycle bin.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct BinQuery {
    /// Only this stream.
    #[schemars(example = &"aragorn.lookup")]
    stream: Option<String>,
    /// Only this batch.
    batch: Option<String>,
    /// Only entries in this state.
    state: Option<BinState>,
    /// Only entries before this ID; `next` of the previous page.
    before: Option<i64>,
    /// Maximum number of entries.
    #[schemars(
        range(min = 1, max = recycle_bin::MOST_SHOWN),
        extend("default" = recycle_bin::SHOWN),
        example = 5
    )]
    limit: Option<u64>,
}

/// Selects entries to restore: a batch, or IDs.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is taken")]
struct RestoreOrder {
    /// The batch.
    #[schemars(example = &"6f8f3c0e-52a5-4f63-8f7b-0d6d7c1b9a10")]
    batch: Option<String>,
    /// Entry IDs in the recycle bin.
    #[schemars(length(max = recycle_bin::MOST_IDS))]
    id: Option<Vec<i64>>,
}

const STREAM: &str = "Stream name. For a stream named `..`, use `/api/streams//messages?name=%2E%2E`.";
const LOOKING: &str = "Redis is unreachable or did not respond within 20 s.";
const KEEPING: &str = "Redis or Postgres is unreachable; nothing was changed.";
const DOING: &str = "The audit log cannot be written, or the operation took longer than 5 minutes.";

/// `GET /api/streams/{name}/messages`.
pub fn messages() -> Operation {
    Operation::new(
        Group::Messages,
        "List messages of a stream",
        "Oldest first. The cost for Redis does not depend on the length of the stream.",
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
        "Changes nothing. The token expires after 15 minutes and covers exactly these messages in their current \
         state.",
    )
    .path("name", STREAM, "aragorn.lookup")
    .body::<PreviewOrder>()
    .answers::<PreviewResponse>("The preview.")
    .unavailable(KEEPING)
}

/// `POST /api/streams/{name}/messages/apply`.
pub fn apply() -> Operation {
    Operation::new(
        Group::Messages,
        "Apply a message preview",
        "Performs the previewed change once; messages that changed since are skipped. `bury` and `drop` require \
         the role admin.",
    )
    .path("name", STREAM, "aragorn.lookup")
    .body::<ApplyOrder>()
    .answers::<AppliedResponse>("The result.")
    .unavailable(DOING)
}

/// `GET /api/admin/dead_consumers`.
pub fn dead_consumers() -> Operation {
    Operation::new(
        Group::Messages,
        "List messages on dead consumers",
        "Consumers without heartbeat that have been idle for at least `min_idle_seconds`, with their pending \
         messages.",
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
        "Changes nothing. Applying it also removes the consumers that have no pending messages left.",
    )
    .body::<DeadOrder>()
    .answers::<DeadPreview>("The preview.")
    .unavailable(KEEPING)
}

/// `POST /api/admin/dead_consumers/apply`.
pub fn dead_consumers_apply() -> Operation {
    Operation::new(
        Group::Messages,
        "Apply a dead consumer preview",
        "Performs the previewed change once; messages that changed since are skipped. `bury` and `drop` require \
         the role admin.",
    )
    .body::<ApplyOrder>()
    .answers::<AppliedResponse>("The result.")
    .unavailable(DOING)
}

/// `POST /api/admin/reclaim_dead_consumers`.
pub fn reclaim() -> Operation {
    Operation::new(
        Group::Messages,
        "Reclaim dead consumers",
        "Moves their messages to the recycle bin and removes the consumers, in one step.",
    )
    .query::<ReclaimQuery>()
    .answers::<Reclaimed>("The result.")
    .unavailable(DOING)
}

/// `GET /api/admin/recycle_bin`.
pub fn recycle_bin() -> Operation {
    Operation::new(Group::Messages, "List the recycle bin", "Messages are kept for 30 days.")
        .query::<BinQuery>()
        .answers::<Bin>("Entries, newest first.")
        .unavailable("Postgres is unreachable.")
}

/// `POST /api/admin/recycle_bin/restore`.
pub fn restore() -> Operation {
    Operation::new(
        Group::Messages,
        "Restore messages",
        "Adds messages to the end of their stream; repeated requests restore each message once. Takes either a \
         batch or IDs.",
    )
    .body::<RestoreOrder>()
    .answers::<Restored>("Result of a restore.")
    .unavailable(DOING)
}
