//! A worker type's state, rolled up from its consumers.
//!
//! The decision falls at the moment the last consumer goes and is final: `crashed` if any
//! consumer vanished in that decline, else `scaled_down`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::consumer::{Consumer, ConsumerState};
use super::event::EventKind;
use super::time::Mono;
use crate::contract::{Name, marker};

/// What is known of a worker type as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "WorkerTypeState")]
pub enum TypeState {
    /// At least one consumer has a live heartbeat.
    Alive,
    /// The last consumer left in good order.
    ScaledDown,
    /// It went to zero and at least one consumer vanished on the way.
    Crashed,
    /// Never seen alive.
    Unknown,
}

/// Departures no further apart than this are one decline: a marker lives as long.
const DECLINE: Duration = marker::TTL;
/// How long a loss is shown on its type.
const LOSS_SHOWN: Duration = Duration::from_secs(3600);

/// One worker type as the tracker keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerType {
    /// The decided state.
    pub state: TypeState,
    /// When it took that state, Unix seconds.
    pub changed_at: Option<f64>,
    /// When a consumer was last present, Unix seconds.
    pub last_seen_alive: Option<f64>,
    /// How many were present when that was last more than none.
    pub last_alive_count: u32,
    /// Its consumers.
    pub consumers: BTreeMap<Name, Consumer>,
    /// Consumers counted as present.
    present: u32,
    /// Consumers the record names only by number (written by the older monitor): they count as
    /// present until the fleet had time to be seen.
    unnamed: u32,
    /// When consumers were lost, newest last.
    losses: VecDeque<(Mono, f64)>,
}

/// What changed among a type's consumers in one reading.
#[derive(Debug, Default)]
pub struct Departures {
    /// Vanished without a goodbye.
    pub lost: Vec<Name>,
    /// Entries left pending on those.
    pub lost_pending: u64,
    /// Goodbyes of consumers that were never seen alive here (they went while no monitor ran).
    pub goodbyes: u32,
}

/// `monitor:worker_state:{type}`: what outlives the monitor. The first four fields are the
/// predecessor's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStateRecord {
    /// The decided state.
    pub state: TypeState,
    /// How many were present when that was last more than none.
    #[serde(default)]
    pub last_alive: Option<f64>,
    /// When it took that state, Unix seconds.
    #[serde(default)]
    pub state_changed_at: Option<f64>,
    /// When a consumer was last present, Unix seconds.
    #[serde(default)]
    pub last_seen_alive: Option<f64>,
    /// Present consumers, and since when (Unix seconds).
    #[serde(default)]
    pub consumers: BTreeMap<String, f64>,
    /// When consumers were lost in the last hour, Unix seconds.
    #[serde(default)]
    pub losses: Vec<f64>,
}

impl WorkerType {
    /// A type nothing is known of.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            state: TypeState::Unknown,
            changed_at: None,
            last_seen_alive: None,
            last_alive_count: 0,
            consumers: BTreeMap::new(),
            present: 0,
            unnamed: 0,
            losses: VecDeque::new(),
        }
    }

    /// A type as it was when the monitor last wrote it down.
    #[must_use]
    pub fn restored(record: &WorkerStateRecord, now: Mono) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of consumers, clamped")]
        let count = record.last_alive.unwrap_or(0.0).clamp(0.0, 1e6) as u32;
        let consumers: BTreeMap<Name, Consumer> = record
            .consumers
            .iter()
            .map(|(name, since)| (Name::from(name.as_str()), Consumer::restored(now, *since)))
            .collect();
        let named = u32::try_from(consumers.len()).unwrap_or(u32::MAX);
        let unnamed = if record.state == TypeState::Alive && consumers.is_empty() { count.max(1) } else { 0 };
        Self {
            state: record.state,
            changed_at: record.state_changed_at,
            last_seen_alive: record.last_seen_alive,
            last_alive_count: count,
            consumers,
            present: named.max(unnamed),
            unnamed,
            losses: record.losses.iter().map(|at| (now, *at)).collect(),
        }
    }

    /// What to write down.
    #[must_use]
    pub fn record(&self) -> WorkerStateRecord {
        let present = self.consumers.iter().filter(|(_, c)| c.is_present());
        WorkerStateRecord {
            state: self.state,
            last_alive: Some(f64::from(self.last_alive_count)),
            state_changed_at: self.changed_at,
            last_seen_alive: self.last_seen_alive,
            consumers: present.map(|(name, c)| (name.to_text(), c.present_since)).collect(),
            losses: self.losses.iter().map(|(_, at)| *at).collect(),
        }
    }

    /// Draws the conclusion from its consumers' new states: what to tell, in order.
    ///
    /// `settled` is false while absence means nothing yet.
    pub fn roll_up(&mut self, departures: Departures, now: Mono, now_unix: f64, settled: bool) -> Vec<EventKind> {
        let named = u32::try_from(self.consumers.values().filter(|c| c.is_present()).count()).unwrap_or(u32::MAX);
        let vanished_unseen = settled && named == 0 && self.unnamed > departures.goodbyes;
        if settled || named >= self.unnamed {
            self.unnamed = 0;
        }
        let before = std::mem::replace(&mut self.present, named.max(self.unnamed));
        let present = self.present;

        while self.losses.front().is_some_and(|(at, _)| now.since(*at) > LOSS_SHOWN) {
            self.losses.pop_front();
        }
        let lost = if vanished_unseen { before as usize } else { departures.lost.len() };
        self.losses.extend(std::iter::repeat_n((now, now_unix), lost));

        let state_before = self.state;
        if present > 0 {
            self.state = TypeState::Alive;
            self.last_seen_alive = Some(now_unix);
            self.last_alive_count = present;
        } else if before > 0 {
            let crashed = self.losses.back().is_some_and(|(at, _)| now.since(*at) <= DECLINE);
            self.state = if crashed { TypeState::Crashed } else { TypeState::ScaledDown };
        }
        if self.state != state_before {
            self.changed_at = Some(now_unix);
        }

        let mut told = Vec::new();
        if !departures.lost.is_empty() {
            told.push(EventKind::ConsumersLost {
                consumers: departures.lost,
                remaining: present,
                pending: departures.lost_pending,
            });
        }
        if present > before {
            let recovered_from = Some(state_before).filter(|state| *state != TypeState::Alive);
            told.push(EventKind::ScaleUp { from: before, to: present, recovered_from });
        } else if present < before {
            told.push(EventKind::ScaleDown { from: before, to: present, kind: self.state });
        }
        told
    }

    /// How many were lost in the last hour, and when the last was.
    #[must_use]
    pub fn losses(&self) -> (u32, Option<f64>) {
        (u32::try_from(self.losses.len()).unwrap_or(u32::MAX), self.losses.back().map(|(_, at)| *at))
    }

    /// Forgets consumers that nothing holds any more: not in a group, not present, and either
    /// never alive or gone for longer than a loss is shown.
    pub fn forget_gone(&mut self, now: Mono) {
        self.consumers.retain(|_, consumer| {
            consumer.is_present()
                || consumer.work.is_some()
                || consumer.state == ConsumerState::Unreadable
                || (consumer.state.is_gone() && now.since(consumer.since) <= LOSS_SHOWN)
        });
    }
}
