//! All messages between actors: sender, receiver, and the effect of a loss.
//!
//! Child actors know only the supervisor ([`Report`] to it, the others from it); so do sessions and handlers of the web front end.

use std::sync::Arc;
use std::time::Duration;

use actix::{Message, Recipient};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::alerting::alert_manager::FiringAlert;
use crate::alerting::silences::Silence;
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
    /// Calls an outside check while alerting works.
    DeadMansSwitch,
    /// Serves Prometheus metrics.
    Exporter,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 14] = [
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
        Self::DeadMansSwitch,
        Self::Exporter,
    ];
}

/// Supervisor → StreamPoller, HeartbeatWatcher, DatabaseProbe, StateTracker, AlertEvaluator: a tick starts. If lost: the next one
/// follows.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Tick {
    /// Number of the tick, increasing.
    pub n: u64,
    /// Start of the tick.
    pub at: Mono,
    /// Time limit for reading a data source, which leaves time to complete the tick.
    pub deadline: Duration,
    /// Time limit for one reply.
    pub answer_within: Duration,
}

/// StreamPoller → supervisor → HeartbeatWatcher, StateTracker: the streams were read. If lost: the tick closes without them.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct StreamsRead {
    /// Tick of the reading.
    pub tick: u64,
    /// The reading, or the error.
    pub reading: Result<Arc<StreamsReading>, SourceTrouble>,
    /// Heartbeat keys that discovery found.
    pub heartbeat_keys: Vec<Vec<u8>>,
    /// Time left in the tick for reading heartbeats.
    pub deadline: Duration,
}

/// Supervisor → HeartbeatWatcher: heartbeat keys that a walk of the keyspace found. If lost: the next walk finds them again.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct FoundHeartbeats(pub Vec<Vec<u8>>);

/// HeartbeatWatcher → supervisor → StateTracker: heartbeats were read. If lost: as [`StreamsRead`].
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct HeartbeatsRead {
    /// Tick of the reading.
    pub tick: u64,
    /// The reading, or the error.
    pub reading: Result<Arc<HeartbeatsReading>, SourceTrouble>,
}

/// DatabaseProbe → supervisor → StateTracker: the database was measured. If lost: the previous figures remain, with their age.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct DatabaseRead {
    /// Tick of the reading.
    pub tick: u64,
    /// The reading, or the error.
    pub reading: Result<Arc<DatabaseReading>, SourceTrouble>,
}

/// StateTracker → supervisor → LiveFeed, HistoryRecorder, LatencyBucketer, Janitor, AlertEvaluator, StreamPoller, and readers of the
/// newest snapshot. If lost: the next one is complete, and durations wait in Redis.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SnapshotTaken(pub Arc<Snapshot>);

/// StateTracker → supervisor → AlertEvaluator, Exporter: events that are written. If lost: they are still in `monitor_events`, and
/// alerts depend on the states in the snapshot; only counters for Prometheus miss them.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct FleetChanged(pub Arc<[Arc<Event>]>);

/// Child → supervisor: all messages of a child.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Report {
    /// See [`StreamsRead`].
    Streams(StreamsRead),
    /// A walk of the keyspace ended; see [`FoundHeartbeats`].
    Walked {
        /// It found new streams, so the next tick should start immediately.
        news: bool,
        /// Heartbeat keys that it found.
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
    /// See [`AlertingWorks`].
    AlertingWorks(AlertingWorks),
    /// See [`ChannelState`].
    Channel(ChannelState),
    /// See [`Attempted`].
    Attempted(Attempted),
    /// See [`TasksFinished`].
    Finished(TasksFinished),
    /// See [`PassEnded`].
    Passed(PassEnded),
    /// The dispatcher started with an empty queue; see [`ReadBack`].
    DispatcherStarted,
    /// The actor ended, possibly by a panic; it is restarted.
    Ended(Role),
}

/// AlertEvaluator → supervisor → AlertDispatcher: written notifications. If lost: they are reloaded when the evaluator or the
/// dispatcher restarts.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Deliver {
    /// The notifications, in order.
    pub rows: Vec<OutboxRow>,
    /// Previously queued notifications no longer belong to this instance.
    pub instead_of_all: bool,
    /// Term in which they are sent; see [`super::alert_ledger`].
    pub term: u64,
}

/// AlertEvaluator → supervisor → LiveFeed, with every tick. If lost: the next one is complete.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct AlertsNow {
    /// Firing alerts.
    pub firing: Vec<FiringAlert>,
    /// Alert events, newest first.
    pub recent: Vec<Arc<Event>>,
    /// Alerts that fired since the previous message, as in `/api/alerts`: JSON.
    pub fired: Vec<String>,
}

/// AlertEvaluator → supervisor → DeadMansSwitch: the leader evaluated a snapshot, and a channel accepts notifications. If lost: the
/// next tick sends it again.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct AlertingWorks;

/// AlertDispatcher → supervisor → AlertEvaluator: a channel refuses notifications, or accepts them again. Sent for the first answer
/// of a term and when the state changes. If lost: the alert remains until the next one.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ChannelState {
    /// Name of the channel.
    pub name: String,
    /// Reason of the refusal; `None` if it accepts notifications.
    pub broken: Option<String>,
}

/// AlertDispatcher → supervisor → Exporter: an attempt to send ended. If lost: a counter misses it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Attempted {
    /// Name of the channel.
    pub channel: String,
    /// Result of the attempt.
    pub result: Attempt,
}

/// LatencyBucketer → supervisor → Exporter: run times of finished tasks by stream, milliseconds; each task once. If lost: a counter
/// misses them; the archive has them.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct TasksFinished(pub Vec<(Name, Vec<u64>)>);

/// Janitor → supervisor → Exporter: result of a cleanup run; `None` if it was interrupted. If lost: a counter misses it.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct PassEnded(pub Option<Box<Outcome>>);

/// Supervisor → Exporter: duration of a completed tick. If lost: a counter misses it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct TickTook(pub Duration);

/// Web → supervisor: render the metrics. Not lost: the client waits for the reply.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<String, String>")]
pub struct GetMetrics(pub Format);

/// Supervisor → Exporter: render the metrics, with the internal state of the monitor.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<String, String>")]
pub struct RenderMetrics {
    /// Format of the metrics.
    pub format: Format,
    /// Internal state of the monitor.
    pub health: Health,
}

/// Supervisor → AlertEvaluator: reload the waiting notifications and pass them to the dispatcher. If lost: they wait for the next
/// start.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ReadBack;

/// Web → supervisor → AlertEvaluator: a command of a user. Not lost: the client waits for the result.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<String, String>")]
pub enum AlertOrder {
    /// Add a silence or an acknowledgement.
    Silence(Silence),
    /// End a silence.
    EndSilence(Uuid),
    /// Reload the rules file.
    Reload,
}

/// Web → supervisor → Janitor: start a cleanup run. Not lost: the client waits for the result.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Outcome, String>")]
pub struct CleanUp {
    /// Name of the user.
    pub asked_by: String,
}

/// Web → supervisor → StateTracker: forget a worker type; replies whether it was known. Not lost: the client waits for the reply.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<bool, String>")]
pub struct ForgetWorker(pub Name);

/// Web → supervisor → AlertDispatcher: send a test notification to each channel. Not lost: the client waits for the result.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Vec<TestAnswer>")]
pub struct SendTest {
    /// Identifies this test.
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

/// Test → supervisor → child: panic. Lets tests check that every actor is restarted.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Fail(pub Role);

/// Application → supervisor: shut down. Replied to when the children have stopped.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Web → supervisor: return the internal state. Not lost: the client waits for the reply.
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

/// The kind of updates for a websocket session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// Complete snapshots, for the `/ws` API.
    Snapshots,
    /// Changes of the live page since the tick at which it was rendered.
    Changes {
        /// Run of the monitor that rendered the page.
        epoch: u64,
        /// Tick of the page.
        tick: u64,
    },
}

/// LiveSession → supervisor → LiveFeed: subscribe. If lost: the session receives nothing and closes; the client reconnects.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Join {
    /// Requested updates.
    pub feed: Feed,
    /// Receiver of the updates.
    pub session: Recipient<Push>,
}

/// LiveFeed → LiveSession: one message for the client. A session that does not accept it is dropped.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Push {
    /// A text frame.
    Text(bytestring::ByteString),
    /// The monitor shuts down: close.
    Close,
}

/// Web → supervisor → LiveFeed: render the live page as HTML. Not lost: the client waits for the reply.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<String, String>")]
pub struct RenderPage {
    /// The user for whom it is rendered.
    pub visitor: Visitor,
}

/// Web → supervisor → LiveFeed: return the changes since a tick, for clients without websockets. Not lost: the client waits for the
/// reply.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<Option<String>, String>")]
pub struct GetChanges {
    /// Run of the monitor that the client knows.
    pub epoch: u64,
    /// Last tick of the client.
    pub tick: u64,
}

/// Supervisor → LiveFeed: return the number of sessions, and of those dropped because they did not read.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "(usize, u64)")]
pub struct SessionCount;

/// Supervisor → LiveFeed: the monitor shuts down, close all sessions.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopFeed;
