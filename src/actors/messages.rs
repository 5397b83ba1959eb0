//! Every message between actors: who sends it, who takes it, whether it may be lost.
//!
//! Children know the supervisor only ([`Report`] up, the rest down); sessions and handlers of the
//! web front end know it too.

use std::sync::Arc;
use std::time::Duration;

use actix::{Message, Recipient};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::alerting::board::FiringAlert;
use crate::alerting::quiet::Silence;
use crate::contract::Name;
use crate::exposition::counters::Attempt;
use crate::exposition::text::Format;
use crate::fleet::cleanup::Outcome;
use crate::fleet::event::Event;
use crate::fleet::reading::{DatabaseReading, HeartbeatsReading, SourceTrouble, StreamsReading};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::pages::Visitor;
use crate::postgres::alerts::OutboxRow;

/// The actors under supervision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ActorName")]
pub enum Role {
    /// Reads the streams.
    StreamPoller,
    /// Reads heartbeats and markers.
    HeartbeatWatcher,
    /// Measures Postgres.
    DatabaseProbe,
    /// Tracks worker and source states.
    StateTracker,
    /// Feeds the pages.
    LiveFeed,
    /// Records series.
    HistoryRecorder,
    /// Stores task run times.
    LatencyBucketer,
    /// Compacts the history.
    Compactor,
    /// Deletes expired history.
    RetentionSweeper,
    /// Runs the cleanup.
    Janitor,
    /// Evaluates alert rules.
    AlertEvaluator,
    /// Sends notifications.
    AlertDispatcher,
    /// Serves Prometheus metrics.
    Exporter,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::StreamPoller,
        Self::HeartbeatWatcher,
        Self::DatabaseProbe,
        Self::StateTracker,
        Self::LiveFeed,
        Self::HistoryRecorder,
        Self::LatencyBucketer,
        Self::Compactor,
        Self::RetentionSweeper,
        Self::Janitor,
        Self::AlertEvaluator,
        Self::AlertDispatcher,
        Self::Exporter,
    ];
}

/// Supervisor → StreamPoller, HeartbeatWatcher, DatabaseProbe, StateTracker, AlertEvaluator: a tick begins. May be
/// lost: the next one comes.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Tick {
    /// Counts up.
    pub n: u64,
    /// When it began.
    pub at: Mono,
    /// How long a source may take.
    pub deadline: Duration,
}

/// StreamPoller → supervisor → HeartbeatWatcher, StateTracker. May be lost: the tick then closes
/// without it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct StreamsRead {
    /// The tick it belongs to.
    pub tick: u64,
    /// The reading, or why there is none.
    pub reading: Result<Arc<StreamsReading>, SourceTrouble>,
    /// Heartbeat keys that discovery came across.
    pub heartbeat_keys: Vec<Vec<u8>>,
    /// What is left of the tick for reading the heartbeats.
    pub deadline: Duration,
}

/// Supervisor → HeartbeatWatcher: heartbeat keys that a walk of the keyspace came
/// across. May be lost: the next walk finds them too.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct FoundHeartbeats(pub Vec<Vec<u8>>);

/// HeartbeatWatcher → supervisor → StateTracker. May be lost, as [`StreamsRead`].
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct HeartbeatsRead {
    /// The tick it belongs to.
    pub tick: u64,
    /// The reading, or why there is none.
    pub reading: Result<Arc<HeartbeatsReading>, SourceTrouble>,
}

/// DatabaseProbe → supervisor → StateTracker. May be lost: the last figures stay, with their age.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct DatabaseRead {
    /// The tick it belongs to.
    pub tick: u64,
    /// The reading, or why there is none.
    pub reading: Result<Arc<DatabaseReading>, SourceTrouble>,
}

/// StateTracker → supervisor → LiveFeed, HistoryRecorder, LatencyBucketer, Janitor, AlertEvaluator, and
/// everyone who asks for the newest snapshot. May be lost: the next one holds everything, and durations wait in
/// Redis.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SnapshotTaken(pub Arc<Snapshot>);

/// StateTracker → supervisor → AlertEvaluator, Exporter: events that are written down. What is lost here is a
/// delay, never a loss: they can be read back from `monitor_events`, and alerts hang on the
/// snapshot's states. Only a count for Prometheus then lacks them.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct FleetChanged(pub Arc<[Arc<Event>]>);

/// Child → supervisor: everything a child has to say.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Report {
    /// See [`StreamsRead`].
    Streams(StreamsRead),
    /// A walk of the keyspace is done; see [`FoundHeartbeats`].
    Walked {
        /// It found streams that are not read yet: a tick is worth beginning at once.
        news: bool,
        /// Heartbeat keys it came across.
        heartbeat_keys: Vec<Vec<u8>>,
    },
    /// See [`HeartbeatsRead`].
    Heartbeats(HeartbeatsRead),
    /// See [`DatabaseRead`].
    Database(DatabaseRead),
    /// See [`SnapshotTaken`].
    Snapshot(SnapshotTaken),
    /// See [`FleetChanged`].
    Changed(FleetChanged),
    /// See [`Deliver`].
    Deliver(Deliver),
    /// See [`AlertsNow`].
    Alerts(AlertsNow),
    /// See [`ChannelState`].
    Channel(ChannelState),
    /// See [`Attempted`].
    Attempted(Attempted),
    /// See [`TasksFinished`].
    Finished(TasksFinished),
    /// See [`PassEnded`].
    Passed(PassEnded),
    /// The dispatcher begins with an empty queue; see [`ReadBack`].
    DispatcherStarted,
    /// The actor ended, by a panic too; it is started again.
    Ended(Role),
}

/// AlertEvaluator → supervisor → AlertDispatcher: messages that are written down. If lost, they
/// are read back when the evaluator or the dispatcher starts again.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Deliver {
    /// The messages, in order.
    pub rows: Vec<OutboxRow>,
    /// Whatever was queued before is not this monitor's to send.
    pub instead_of_all: bool,
    /// The term in which they are sent; see [`super::alert_ledger`].
    pub term: u64,
}

/// AlertEvaluator → supervisor → LiveFeed, with every tick. May be lost: the next one holds everything.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct AlertsNow {
    /// Alerts firing.
    pub firing: Vec<FiringAlert>,
    /// What fired and was over lately, newest first.
    pub recent: Vec<Arc<Event>>,
    /// Alerts that fired since, as `/api/alerts` lists them: JSON.
    pub fired: Vec<String>,
}

/// AlertDispatcher → supervisor → AlertEvaluator: a channel refuses messages, or takes them again.
/// Sent for the first answer of a term and for each that differs. May be lost: then the alert stays until the next
/// one.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ChannelState {
    /// The channel.
    pub name: String,
    /// Why it refuses; `None` when it takes messages.
    pub broken: Option<String>,
}

/// AlertDispatcher → supervisor → Exporter: an attempt to tell somebody ended. May be lost: a count then lacks it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Attempted {
    /// The channel.
    pub channel: String,
    /// How.
    pub result: Attempt,
}

/// LatencyBucketer → supervisor → Exporter: how long tasks took, milliseconds each, by stream; each task once. May be
/// lost: a count then lacks them, the archive does not.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct TasksFinished(pub Vec<(Name, Vec<u64>)>);

/// Janitor → supervisor → Exporter: what a pass came to; `None` when it was cut off. May be lost: a count then lacks
/// it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct PassEnded(pub Option<Box<Outcome>>);

/// Supervisor → Exporter: a tick is done, and how long it took. May be lost: a count then lacks it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct TickTook(pub Duration);

/// Web → supervisor: the answer for Prometheus. Not lost: the asker waits.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<String, String>")]
pub struct GetMetrics(pub Format);

/// Supervisor → Exporter: the same, with how everyone is.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<String, String>")]
pub struct RenderMetrics {
    /// In which format.
    pub format: Format,
    /// Internal state of the monitor.
    pub health: Health,
}

/// Supervisor → AlertEvaluator: read back what waits to be sent, and hand it on. If lost, messages
/// wait for the next start.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ReadBack;

/// Web → supervisor → AlertEvaluator: what somebody wants done. Not lost: the asker waits for what
/// is said, or why it was not done.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<String, String>")]
pub enum AlertOrder {
    /// Keep quiet about something, or acknowledge it.
    Silence(Silence),
    /// No longer.
    EndSilence(Uuid),
    /// Read the rules' file again.
    Reload,
}

/// Web → supervisor → Janitor: clean up now. Not lost: the asker waits for what came of it, or why
/// nothing was done.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Outcome, String>")]
pub struct CleanUp {
    /// Who asks.
    pub asked_by: String,
}

/// Web → supervisor → StateTracker: forget a worker type; whether it was known. Not lost: the asker
/// waits.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<bool, String>")]
pub struct ForgetWorker(pub Name);

/// Web → supervisor → AlertDispatcher: try each channel. Not lost: the asker waits.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Vec<TestAnswer>")]
pub struct SendTest {
    /// Tells this test from others.
    pub nonce: String,
}

/// Result of a test notification.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ChannelAnswer")]
pub struct TestAnswer {
    /// The channel.
    pub channel: String,
    /// Whether the channel accepted the notification.
    pub ok: bool,
    /// Response of the channel.
    pub answer: String,
}

/// Test → supervisor → child: panic now. Lets a test prove that every actor comes back.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Fail(pub Role);

/// Application → supervisor: stop in order. Answered when the children are stopped.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Web → supervisor: how is everyone? Not lost: the asker waits.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Health")]
pub struct GetHealth;

/// Internal state of the monitor.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "MonitorHealth")]
pub struct Health {
    /// All actors.
    pub actors: Vec<ActorHealth>,
    /// Polls finished since startup.
    pub ticks: u64,
    /// Seconds since the last poll finished; `null` before the first.
    pub last_tick_age_sec: Option<f64>,
    /// Duration of the last poll, milliseconds.
    pub last_tick_took_ms: Option<u64>,
    /// Configured poll interval, seconds.
    pub interval_sec: f64,
    /// Connected websocket clients.
    pub sessions: usize,
    /// Websocket clients disconnected because they did not read.
    pub sessions_jammed: u64,
    /// Whether it is shutting down.
    pub stopping: bool,
}

/// State of an actor.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ActorHealth {
    /// Which.
    pub actor: Role,
    /// Whether it is running.
    pub up: bool,
    /// Number of restarts after a panic.
    pub restarts: u32,
}

/// What a websocket session wants to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// Whole snapshots, as the contract's `/ws` says.
    Snapshots,
    /// The live page's changes after the tick that the page was rendered at.
    Changes {
        /// Which run of the monitor rendered it.
        epoch: u64,
        /// At which tick.
        tick: u64,
    },
}

/// LiveSession → supervisor → LiveFeed: send me this from now on. If lost, the session hears
/// nothing and ends itself; the client comes back.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Join {
    /// What it wants.
    pub feed: Feed,
    /// Where to send it.
    pub session: Recipient<Push>,
}

/// LiveFeed → LiveSession: one message for the client. May be lost: a session that does not take
/// it is dropped.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Push {
    /// A text frame.
    Text(bytestring::ByteString),
    /// The monitor is going down: close.
    Close,
}

/// Web → supervisor → LiveFeed: the live page as HTML. Not lost: the asker waits.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<String, String>")]
pub struct RenderPage {
    /// Who looks.
    pub visitor: Visitor,
}

/// Web → supervisor → LiveFeed: what changed after this tick, for clients without websocket.
/// Not lost: the asker waits.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Option<String>, String>")]
pub struct GetChanges {
    /// Which run of the monitor the client knows.
    pub epoch: u64,
    /// The last tick it has.
    pub tick: u64,
}

/// Supervisor → LiveFeed: how many sessions there are, and how many were dropped for not reading.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "(usize, u64)")]
pub struct SessionCount;

/// Supervisor → LiveFeed: the monitor is going down, close every session.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopFeed;
