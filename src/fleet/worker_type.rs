//! State of a worker type, derived from its consumers.
//!
//! The state at zero is decided when the last consumer stops and is final: `crashed` if a consumer was lost in that
//! decline and neither returned nor was replaced, `unknown` if an exit was not observed, else `scaled_down`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::consumer::{Consumer, ConsumerState, Recorded};
use super::event::EventKind;
use super::time::Mono;
use crate::contract::{Name, heartbeat, marker};

/// State of a worker type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "WorkerTypeState")]
pub enum TypeState {
    /// At least one consumer has a live heartbeat.
    Alive,
    /// Scaled to zero: every consumer shut down gracefully or was replaced.
    ScaledDown,
    /// It went to zero and at least one consumer was lost on the way.
    Crashed,
    /// Never seen alive, or it went to zero while no monitor could see how.
    Unknown,
}

/// Maximum gap between departures of one decline: the TTL of a marker.
const DECLINE: Duration = marker::TTL;
/// Maximum number of recorded losses; the newest are retained. Bounds the size of the record.
const LOSSES_RECORDED: usize = 1000;
/// Time for which a loss is displayed on its type.
const LOSS_SHOWN: Duration = Duration::from_secs(3600);

/// A worker type as tracked between readings.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerType {
    /// Decided state.
    pub state: TypeState,
    /// Time of the last state change, Unix seconds.
    pub changed_at: Option<f64>,
    /// Last time a consumer was running, Unix seconds.
    pub last_seen_alive: Option<f64>,
    /// Last number of running consumers above zero.
    pub last_alive_count: u32,
    /// Consumers by name.
    pub consumers: BTreeMap<Name, Consumer>,
    /// Number of running consumers.
    present: u32,
    /// Running consumers that the older monitor recorded only as a number. They count until the fleet had time to be
    /// polled.
    unnamed: u32,
    /// The record was so old when it was read that the markers of the unnamed consumers may have expired unread.
    unnamed_overlooked: bool,
    /// Consumers that stopped without a marker, newest last.
    losses: VecDeque<Loss>,
    /// Recent arrivals that have not replaced a loss. A replacement often starts before the loss is decided.
    spare_arrivals: VecDeque<Arrival>,
    /// Newest presence since the type was last at zero, and its start by its own clock. With the set of running
    /// consumers it identifies a change of the type for every observer.
    newest: Option<(f64, String)>,
}

/// Arrival of a consumer.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Arrival {
    /// Time of the first reading.
    at: Mono,
    /// Start by its own clock, or first reading by Redis' clock if that was before this monitor started; Unix seconds.
    began: f64,
    /// It was before this monitor started.
    restored: bool,
}

/// A consumer that stopped without its own marker.
#[derive(Debug, Clone, PartialEq)]
struct Loss {
    record: RecordedLoss,
    /// Last time the consumer was alive, `None` if that was before this monitor started. A consumer that arrives later may replace
    /// it.
    alive_at: Option<Mono>,
    /// Its last heartbeat by its own clock, Unix seconds; `None` if it had just started. Decides if a consumer arrived in the
    /// same reading, which is frequent with long poll intervals, or also before this monitor started.
    last_beat: Option<f64>,
    /// Arrival of the replacement, unless that has the same name.
    replaced_by: Option<Arrival>,
    /// Time until which it is displayed.
    shown_until: Mono,
    /// Time until which it belongs to the same decline.
    decline_until: Mono,
}

/// Kind of an exit without a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// The heartbeat expired while markers were readable: a crash.
    #[default]
    Lost,
    /// No monitor could have read a marker.
    Unobserved,
}

/// A loss as stored in the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "LossOrTime")]
pub struct RecordedLoss {
    /// Time of the decision, Unix seconds.
    pub at: f64,
    /// Consumer that may return; `None` when only the number is known or a new process has the name.
    pub consumer: Option<String>,
    /// [`Recorded::process`] of the consumer.
    pub process: Option<Box<str>>,
    /// [`Recorded::last_seen`] of the consumer.
    pub last_seen: Option<f64>,
    /// Kind of the exit.
    pub kind: LossKind,
    /// Whether the consumer neither returned nor was replaced, and the type has not been at zero since.
    pub open: bool,
}

/// Older records contain only the time.
#[derive(Deserialize)]
#[serde(untagged)]
enum LossOrTime {
    Time(f64),
    Loss {
        at: f64,
        #[serde(default)]
        consumer: Option<String>,
        #[serde(default)]
        process: Option<Box<str>>,
        #[serde(default)]
        last_seen: Option<f64>,
        #[serde(default)]
        kind: LossKind,
        #[serde(default)]
        open: bool,
    },
}

impl From<LossOrTime> for RecordedLoss {
    fn from(loss: LossOrTime) -> Self {
        match loss {
            LossOrTime::Time(at) => {
                Self { at, consumer: None, process: None, last_seen: None, kind: LossKind::Lost, open: true }
            }
            LossOrTime::Loss { at, consumer, process, last_seen, kind, open } => {
                Self { at, consumer, process, last_seen, kind, open }
            }
        }
    }
}

/// A running consumer as stored in the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "ConsumerOrTime")]
pub struct RecordedConsumer {
    /// Start of its presence, Unix seconds.
    pub since: f64,
    /// Last time its heartbeat existed, by Redis' clock, Unix seconds.
    pub seen: Option<f64>,
    /// [`Recorded::process`].
    pub process: Option<Box<str>>,
    /// [`Recorded::last_seen`].
    pub last_seen: Option<f64>,
    /// Last heartbeat before it returned, by its own clock.
    pub returned_after: Option<f64>,
}

/// Older records contain only the start.
#[derive(Deserialize)]
#[serde(untagged)]
enum ConsumerOrTime {
    Since(f64),
    Consumer {
        since: f64,
        #[serde(default)]
        seen: Option<f64>,
        #[serde(default)]
        process: Option<Box<str>>,
        #[serde(default)]
        last_seen: Option<f64>,
        #[serde(default)]
        returned_after: Option<f64>,
    },
}

impl From<ConsumerOrTime> for RecordedConsumer {
    fn from(consumer: ConsumerOrTime) -> Self {
        match consumer {
            ConsumerOrTime::Since(since) => {
                Self { since, seen: None, process: None, last_seen: None, returned_after: None }
            }
            ConsumerOrTime::Consumer { since, seen, process, last_seen, returned_after } => {
                Self { since, seen, process, last_seen, returned_after }
            }
        }
    }
}

/// Changes among the consumers of a type in one reading.
#[derive(Debug, Default)]
pub struct Departures {
    /// Consumers that stopped without their own marker.
    pub lost: Vec<Lost>,
    /// Consumers that started.
    pub arrived: Vec<Name>,
    /// Lost consumers whose process resumed or left its marker late.
    pub recovered: Vec<Name>,
    /// Number of new markers of consumers that were never observed alive (they stopped while no monitor was running).
    pub goodbyes: u32,
}

/// A consumer that stopped without its own marker.
#[derive(Debug)]
pub struct Lost {
    /// Consumer name.
    pub consumer: Name,
    /// [`Consumer::presence`] that ended.
    pub presence: String,
    /// Entries still pending on it.
    pub pending: u64,
    /// Kind of the exit.
    pub kind: LossKind,
}

/// Event of a type with its identity, equal for every observer.
pub type Occurrence = (EventKind, String);

/// Stored record of a worker type, which survives restarts of the monitor. The first four fields are the older
/// monitor's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStateRecord {
    /// Decided state.
    pub state: TypeState,
    /// Last number of running consumers above zero.
    #[serde(default)]
    pub last_alive: Option<f64>,
    /// Time of the last state change, Unix seconds.
    #[serde(default)]
    pub state_changed_at: Option<f64>,
    /// Last time a consumer was running, Unix seconds.
    #[serde(default)]
    pub last_seen_alive: Option<f64>,
    /// Running consumers.
    #[serde(default)]
    pub consumers: BTreeMap<String, RecordedConsumer>,
    /// Consumers that stopped without a marker in the last hour.
    #[serde(default)]
    pub losses: Vec<RecordedLoss>,
    /// Newest presence since the type was last at zero, and its start.
    #[serde(default)]
    pub newest: Option<(f64, String)>,
}

impl WorkerStateRecord {
    /// Consumers whose keys must be read to continue from the record.
    pub fn watched(&self) -> impl Iterator<Item = Name> {
        let lost = self.losses.iter().filter_map(|loss| loss.consumer.as_ref());
        self.consumers.keys().chain(lost).map(|name| Name::from(name.as_str()))
    }
}

impl WorkerType {
    /// Returns a type without any history.
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
            unnamed_overlooked: false,
            losses: VecDeque::new(),
            spare_arrivals: VecDeque::new(),
            newest: None,
        }
    }

    /// Restores a type from its record at `now`, when Redis' clock is `now_unix`.
    #[must_use]
    pub fn restored(record: &WorkerStateRecord, now: Mono, now_unix: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of consumers, clamped")]
        let count = record.last_alive.unwrap_or(0.0).clamp(0.0, 1e6) as u32;
        let losses: VecDeque<Loss> =
            record.losses.iter().filter_map(|loss| Loss::restored(loss, now, now_unix)).collect();
        let mut consumers: BTreeMap<Name, Consumer> = losses.iter().filter_map(|loss| loss.consumer(now)).collect();
        let named = u32::try_from(record.consumers.len()).unwrap_or(u32::MAX);
        consumers.extend(record.consumers.iter().map(|(name, consumer)| {
            let seen = consumer.seen.or(record.last_seen_alive).unwrap_or(consumer.since);
            let recorded = Recorded { process: consumer.process.clone(), last_seen: consumer.last_seen };
            let restored = Consumer::restored(ConsumerState::Alive, now, consumer.since, seen);
            (Name::from(name.as_str()), restored.recognized_by(recorded, consumer.returned_after))
        }));
        let unnamed = if record.state == TypeState::Alive && named == 0 { count.max(1) } else { 0 };
        // Of these, the one that replaces a consumer may have arrived before the restart and the loss be decided after it.
        let is_recent = |since: f64| (0.0..=DECLINE.as_secs_f64()).contains(&(now_unix - since));
        let recent = record.consumers.values().filter(|consumer| is_recent(consumer.since));
        let spare_arrivals =
            recent.map(|consumer| Arrival { at: now, began: consumer.since, restored: true }).collect();
        let unread_for = record.last_seen_alive.map_or(0.0, |seen| now_unix - seen);
        Self {
            state: record.state,
            changed_at: record.state_changed_at,
            last_seen_alive: record.last_seen_alive,
            last_alive_count: count,
            consumers,
            present: named.max(unnamed),
            unnamed,
            unnamed_overlooked: !(-1.0..=marker::TTL.as_secs_f64()).contains(&unread_for),
            losses,
            spare_arrivals,
            newest: record.newest.clone().or_else(|| Some((0.0, format!("recorded {:?}", record.state_changed_at)))),
        }
    }

    /// Returns the record to store.
    #[must_use]
    pub fn record(&self) -> WorkerStateRecord {
        let present = self.consumers.iter().filter(|(_, c)| c.is_present());
        let recorded = |consumer: &Consumer| {
            let (Recorded { process, last_seen }, returned_after) = consumer.recorded();
            let seen = Some(consumer.seen_unix());
            RecordedConsumer { since: consumer.present_since, seen, process, last_seen, returned_after }
        };
        WorkerStateRecord {
            state: self.state,
            last_alive: Some(f64::from(self.last_alive_count)),
            state_changed_at: self.changed_at,
            last_seen_alive: self.last_seen_alive,
            consumers: present.map(|(name, c)| (name.to_text(), recorded(c))).collect(),
            losses: self
                .losses
                .range(self.losses.len().saturating_sub(LOSSES_RECORDED)..)
                .map(|l| l.record.clone())
                .collect(),
            newest: self.newest.clone(),
        }
    }

    /// Derives the state from the consumers' new states and returns the events, in order.
    ///
    /// `settled` is false while absence does not count yet.
    pub fn roll_up(&mut self, departures: Departures, now: Mono, now_unix: f64, settled: bool) -> Vec<Occurrence> {
        let (named, seen) = self.named_present();
        let went_unseen = settled && named == 0 && self.unnamed > departures.goodbyes;
        if settled || named >= self.unnamed {
            self.unnamed = 0;
        }
        let before = std::mem::replace(&mut self.present, named.max(self.unnamed));
        let present = self.present;

        self.losses.retain(|loss| now < loss.shown_until);
        for name in &departures.recovered {
            if let Some(place) = self.losses.iter().rposition(|loss| loss.is_of(name)) {
                // The replacement is free to replace the next loss.
                let replaced_by = self.losses.remove(place).and_then(|loss| loss.replaced_by);
                self.spare_arrivals.extend(replaced_by);
            }
        }
        if went_unseen {
            let kind = if self.unnamed_overlooked { LossKind::Unobserved } else { LossKind::Lost };
            self.losses.extend((0..before).map(|_| Loss::new(None, kind, now, now_unix)));
        }
        for lost in &departures.lost {
            let loss = Loss::new(Some((lost, self.consumers.get(&lost.consumer))), lost.kind, now, now_unix);
            self.losses.push_back(loss);
        }
        self.replace_losses(&departures, now);
        self.note_newest(&departures.arrived, before == 0);

        let (state_before, was_decided) = (self.state, self.changed_at.is_some());
        self.last_seen_alive = seen.or(self.last_seen_alive);
        if present > 0 {
            self.state = TypeState::Alive;
            self.last_alive_count = present;
        } else if before > 0 {
            self.state = self.how_it_went(now);
            // The decline has ended.
            self.losses.iter_mut().for_each(|loss| loss.record.open = false);
            self.spare_arrivals.clear();
        }
        if self.state != state_before {
            self.changed_at = Some(now_unix);
        }

        let mut happened: Vec<Occurrence> = departures
            .lost
            .into_iter()
            .filter(|lost| lost.kind == LossKind::Lost)
            .map(|Lost { consumer, presence, pending, .. }| {
                let key = format!("{consumer}@{presence}");
                (EventKind::ConsumerLost { consumer, remaining: present, pending }, key)
            })
            .collect();
        if present > before {
            let recovered_from = Some(state_before).filter(|state| match state {
                TypeState::Alive => false,
                // Only for a type that was never observed.
                TypeState::Unknown => !was_decided,
                TypeState::Crashed | TypeState::ScaledDown => true,
            });
            happened.push((EventKind::ScaleUp { from: before, to: present, recovered_from }, self.composition()));
        } else if present < before {
            happened.push((EventKind::ScaleDown { from: before, to: present, kind: self.state }, self.composition()));
        }
        happened
    }

    /// Number of running consumers, and the last time one of their heartbeats existed.
    fn named_present(&self) -> (u32, Option<f64>) {
        let present = || self.consumers.values().filter(|consumer| consumer.is_present());
        let seen = present().map(Consumer::seen_unix).reduce(f64::max);
        (u32::try_from(present().count()).unwrap_or(u32::MAX), seen)
    }

    /// Closes one loss for each consumer that arrived after the lost one was last alive, preferring the loss of the
    /// same name.
    fn replace_losses(&mut self, departures: &Departures, now: Mono) {
        self.spare_arrivals.retain(|arrival| now.since(arrival.at) <= DECLINE);
        for name in departures.arrived.iter().filter(|name| !departures.recovered.contains(name)) {
            let own = self.losses.iter_mut().rev().find(|loss| loss.is_of(name));
            let replaces_own = own.is_some_and(|loss| {
                // Another process has the name now.
                loss.record.consumer = None;
                std::mem::take(&mut loss.record.open)
            });
            if !replaces_own {
                let began = self.consumers.get(name).map_or(0.0, Consumer::began);
                self.spare_arrivals.push_back(Arrival { at: now, began, restored: false });
            }
        }
        for loss in self.losses.iter_mut().filter(|loss| loss.record.open) {
            if let Some(place) = self.spare_arrivals.iter().position(|arrival| loss.is_replaced_by(*arrival)) {
                loss.replaced_by = self.spare_arrivals.remove(place);
                loss.record.open = false;
            }
        }
    }

    fn note_newest(&mut self, arrived: &[Name], from_zero: bool) {
        if from_zero && !arrived.is_empty() {
            self.newest = None;
        }
        let arrived = arrived.iter().filter_map(|name| {
            let consumer = self.consumers.get(name)?;
            Some((consumer.began(), format!("{name}@{}", consumer.presence())))
        });
        let newest = arrived.chain(self.newest.take());
        self.newest = newest.max_by(|(a, a_name), (b, b_name)| a.total_cmp(b).then_with(|| a_name.cmp(b_name)));
    }

    /// Identifies the set of running consumers and their newest arrival. Two observers of the same changes report each
    /// set once, however they group the changes into readings.
    fn composition(&self) -> String {
        let newest = self.newest.as_ref().map_or("", |(_, newest)| newest);
        let present = self.consumers.iter().filter(|(_, consumer)| consumer.is_present());
        let present: Vec<String> = present.map(|(name, consumer)| format!("{name}@{}", consumer.presence())).collect();
        format!("{newest}|{}|{}", self.unnamed, present.join(" "))
    }

    /// State of a type whose last consumer just stopped.
    fn how_it_went(&self, now: Mono) -> TypeState {
        let counts = |kind| self.losses.iter().any(|l| l.record.open && l.record.kind == kind && now < l.decline_until);
        if counts(LossKind::Lost) {
            TypeState::Crashed
        } else if counts(LossKind::Unobserved) {
            TypeState::Unknown
        } else {
            TypeState::ScaledDown
        }
    }

    /// Number of running consumers.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.present
    }

    /// Number of consumers lost in the last hour that did not return, number of these that were not replaced, and time
    /// of the last loss.
    #[must_use]
    pub fn losses(&self) -> (u32, u32, Option<f64>) {
        let lost = || self.losses.iter().map(|loss| &loss.record).filter(|loss| loss.kind == LossKind::Lost);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (count(lost().count()), count(lost().filter(|loss| loss.open).count()), lost().next_back().map(|loss| loss.at))
    }

    /// Drops consumers that are no longer needed: not in a group, not running, and either never alive or stopped for
    /// longer than a loss is displayed.
    pub fn forget_gone(&mut self, now: Mono) {
        self.consumers.retain(|_, consumer| {
            consumer.is_present()
                || consumer.work.is_some()
                || consumer.state == ConsumerState::Unreadable
                || (consumer.state.is_gone() && now.since(consumer.since) <= LOSS_SHOWN)
        });
    }
}

impl Loss {
    fn new(lost: Option<(&Lost, Option<&Consumer>)>, kind: LossKind, now: Mono, now_unix: f64) -> Self {
        let consumer = lost.and_then(|(_, consumer)| consumer);
        let recorded = consumer.map(|consumer| consumer.recorded().0).unwrap_or_default();
        Self {
            record: RecordedLoss {
                at: now_unix,
                consumer: lost.map(|(lost, _)| lost.consumer.to_text()),
                process: recorded.process,
                last_seen: recorded.last_seen,
                kind,
                open: true,
            },
            alive_at: match consumer {
                None => Some(now),
                Some(consumer) => consumer.heartbeat.is_some().then(|| consumer.rewritten_at()),
            },
            last_beat: consumer.zip(recorded.last_seen).and_then(|(consumer, last_seen)| {
                let began = consumer.started_at().unwrap_or(consumer.present_since);
                (last_seen - began >= heartbeat::INTERVAL.as_secs_f64()).then_some(last_seen)
            }),
            replaced_by: None,
            shown_until: now.plus(LOSS_SHOWN),
            decline_until: now.plus(DECLINE),
        }
    }

    /// Restores a loss with its recorded age; `None` when it is no longer displayed.
    fn restored(record: &RecordedLoss, now: Mono, now_unix: f64) -> Option<Self> {
        let age = now_unix - record.at;
        // A clock that was set back makes the age unknown; such a loss does not count as new.
        let age = if age < -1.0 { DECLINE } else { Duration::try_from_secs_f64(age.max(0.0)).ok()? };
        Some(Self {
            record: record.clone(),
            alive_at: None,
            last_beat: None,
            replaced_by: None,
            shown_until: now.plus(LOSS_SHOWN.checked_sub(age)?),
            decline_until: now.plus(DECLINE.saturating_sub(age)),
        })
    }

    fn is_replaced_by(&self, arrival: Arrival) -> bool {
        let began_later = || self.last_beat.is_some_and(|last_beat| arrival.began > last_beat);
        match self.alive_at {
            None => !arrival.restored || began_later(),
            Some(alive_at) if arrival.restored || arrival.at < alive_at => false,
            Some(alive_at) => arrival.at > alive_at || began_later(),
        }
    }

    fn is_of(&self, consumer: &Name) -> bool {
        self.record.consumer.as_deref().is_some_and(|name| Name::from(name) == *consumer)
    }

    /// Returns the lost consumer, which may return.
    fn consumer(&self, now: Mono) -> Option<(Name, Consumer)> {
        let RecordedLoss { at, consumer, process, last_seen, kind, .. } = &self.record;
        let state = match kind {
            LossKind::Lost => ConsumerState::Lost,
            LossKind::Unobserved => ConsumerState::Unobserved,
        };
        let recorded = Recorded { process: process.clone(), last_seen: *last_seen };
        let restored = Consumer::restored(state, now, *at, *at).recognized_by(recorded, None);
        Some((Name::from(consumer.as_deref()?), restored))
    }
}
