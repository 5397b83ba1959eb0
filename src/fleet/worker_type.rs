//! A worker type's state, rolled up from its consumers.
//!
//! The decision falls at the moment the last consumer goes and is final: `crashed` if a consumer was lost in that
//! decline and neither came back nor was replaced, `unknown` if one went unobserved, else `scaled_down`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::consumer::{Consumer, ConsumerState, Recorded};
use super::event::EventKind;
use super::time::Mono;
use crate::contract::{Name, marker};

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

/// Departures no further apart than this are one decline: a marker lives as long.
const DECLINE: Duration = marker::TTL;
/// The record keeps so many losses, the newest: bounds its size.
const LOSSES_RECORDED: usize = 1000;
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
    /// The record was too old when it was read: markers of the unnamed ones may have expired unread.
    unnamed_overlooked: bool,
    /// Consumers that went without a marker, newest last.
    losses: VecDeque<Loss>,
    /// Recent arrivals that replaced no loss yet: a replacement often starts before the loss is decided.
    spare_arrivals: VecDeque<Mono>,
    /// The newest presence since the type was last at zero, and when it began by its own clock: with the consumers
    /// that are present it tells the type's changes apart, for every observer alike.
    newest: Option<(f64, String)>,
}

/// A consumer that went without its own marker.
#[derive(Debug, Clone, PartialEq)]
struct Loss {
    record: RecordedLoss,
    /// When its consumer was last seen to be alive: whoever comes after that may replace it.
    alive_at: Mono,
    /// When the consumer arrived that replaced it, unless that took its name.
    replaced_at: Option<Mono>,
    /// Until when it is shown.
    shown_until: Mono,
    /// Until when it counts as part of the same decline.
    decline_until: Mono,
}

/// How a consumer went, where no marker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Its heartbeat expired while markers were read: a crash.
    #[default]
    Lost,
    /// Nobody could see whether it left a marker.
    Unobserved,
}

/// A loss as the record keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "LossOrTime")]
pub struct RecordedLoss {
    /// When it was decided, Unix seconds.
    pub at: f64,
    /// Which consumer may come back from it; `None` when only the number is known, or a new process has its name.
    pub consumer: Option<String>,
    /// [`Recorded::process`] of the consumer.
    pub process: Option<Box<str>>,
    /// [`Recorded::last_seen`] of the consumer.
    pub last_seen: Option<f64>,
    /// How it went.
    pub kind: LossKind,
    /// It neither came back nor was replaced, and the type was not at zero since.
    pub open: bool,
}

/// Earlier records keep only the time.
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

/// A present consumer as the record keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "ConsumerOrTime")]
pub struct RecordedConsumer {
    /// Since when it is present, Unix seconds.
    pub since: f64,
    /// When its heartbeat was last there by Redis' clock, Unix seconds.
    pub seen: Option<f64>,
    /// [`Recorded::process`].
    pub process: Option<Box<str>>,
    /// [`Recorded::last_seen`].
    pub last_seen: Option<f64>,
    /// Its last heartbeat before it returned, by its own clock.
    pub returned_after: Option<f64>,
}

/// Earlier records keep only since when it is present.
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

/// What changed among a type's consumers in one reading.
#[derive(Debug, Default)]
pub struct Departures {
    /// Went without their own marker.
    pub lost: Vec<Lost>,
    /// Consumers that became present.
    pub arrived: Vec<Name>,
    /// Of those that had been lost, the ones whose process is still the same or left a marker after all.
    pub recovered: Vec<Name>,
    /// Markers of consumers that were never seen alive here (they went while no monitor ran).
    pub goodbyes: u32,
}

/// A consumer that went without its own marker.
#[derive(Debug)]
pub struct Lost {
    /// Which.
    pub consumer: Name,
    /// [`Consumer::presence`]: which of its presences ended.
    pub presence: String,
    /// Entries left pending on it.
    pub pending: u64,
    /// How it went.
    pub kind: LossKind,
}

/// What happened to a type, and what tells the occurrence apart from others, the same for every observer.
pub type Occurrence = (EventKind, String);

/// A worker type as it is written down: what outlives the monitor. The first four fields are the
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
    /// Present consumers.
    #[serde(default)]
    pub consumers: BTreeMap<String, RecordedConsumer>,
    /// Consumers that went without a marker in the last hour.
    #[serde(default)]
    pub losses: Vec<RecordedLoss>,
    /// The newest presence since the type was last at zero, and when it began.
    #[serde(default)]
    pub newest: Option<(f64, String)>,
}

impl WorkerStateRecord {
    /// Consumers whose keys have to be read to go on from the record.
    pub fn watched(&self) -> impl Iterator<Item = Name> {
        let lost = self.losses.iter().filter_map(|loss| loss.consumer.as_ref());
        self.consumers.keys().chain(lost).map(|name| Name::from(name.as_str()))
    }
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
            unnamed_overlooked: false,
            losses: VecDeque::new(),
            spare_arrivals: VecDeque::new(),
            newest: None,
        }
    }

    /// A type as it was when the monitor last wrote it down, read at `now`, when Redis' clock said `now_unix`.
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
            spare_arrivals: VecDeque::new(),
            newest: record.newest.clone().or_else(|| Some((0.0, format!("recorded {:?}", record.state_changed_at)))),
        }
    }

    /// What to write down.
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

    /// Draws the conclusion from its consumers' new states: what happened, in order.
    ///
    /// `settled` is false while absence means nothing yet.
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
                // Whoever replaced it replaces the next one.
                let replaced_at = self.losses.remove(place).and_then(|loss| loss.replaced_at);
                self.spare_arrivals.extend(replaced_at);
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
            // Its decline is over.
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
                // Only of a type that was never seen.
                TypeState::Unknown => !was_decided,
                TypeState::Crashed | TypeState::ScaledDown => true,
            });
            happened.push((EventKind::ScaleUp { from: before, to: present, recovered_from }, self.composition()));
        } else if present < before {
            happened.push((EventKind::ScaleDown { from: before, to: present, kind: self.state }, self.composition()));
        }
        happened
    }

    /// How many are present, and when a heartbeat of theirs was last there.
    fn named_present(&self) -> (u32, Option<f64>) {
        let present = || self.consumers.values().filter(|consumer| consumer.is_present());
        let seen = present().map(Consumer::seen_unix).reduce(f64::max);
        (u32::try_from(present().count()).unwrap_or(u32::MAX), seen)
    }

    /// Closes one loss for each consumer that came after the lost one was last alive: first that of its own name.
    fn replace_losses(&mut self, departures: &Departures, now: Mono) {
        self.spare_arrivals.retain(|at| now.since(*at) <= DECLINE);
        for name in departures.arrived.iter().filter(|name| !departures.recovered.contains(name)) {
            let own = self.losses.iter_mut().rev().find(|loss| loss.is_of(name));
            let replaces_own = own.is_some_and(|loss| {
                // The name is another process's now.
                loss.record.consumer = None;
                std::mem::take(&mut loss.record.open)
            });
            if !replaces_own {
                self.spare_arrivals.push_back(now);
            }
        }
        for loss in self.losses.iter_mut().filter(|loss| loss.record.open) {
            if let Some(place) = self.spare_arrivals.iter().position(|at| *at > loss.alive_at) {
                loss.replaced_at = self.spare_arrivals.remove(place);
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

    /// Which consumers are present, and since which arrival: two observers that see the same consumers come and go
    /// report each composition once, however they group the changes into readings.
    fn composition(&self) -> String {
        let newest = self.newest.as_ref().map_or("", |(_, newest)| newest);
        let present = self.consumers.iter().filter(|(_, consumer)| consumer.is_present());
        let present: Vec<String> = present.map(|(name, consumer)| format!("{name}@{}", consumer.presence())).collect();
        format!("{newest}|{}|{}", self.unnamed, present.join(" "))
    }

    /// The state of a type whose last consumer just went.
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

    /// How many are running.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.present
    }

    /// How many were lost in the last hour and did not come back, how many of these were not replaced either, and
    /// when the last was lost.
    #[must_use]
    pub fn losses(&self) -> (u32, u32, Option<f64>) {
        let lost = || self.losses.iter().map(|loss| &loss.record).filter(|loss| loss.kind == LossKind::Lost);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (count(lost().count()), count(lost().filter(|loss| loss.open).count()), lost().next_back().map(|loss| loss.at))
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
            alive_at: consumer.map_or(now, Consumer::rewritten_at),
            replaced_at: None,
            shown_until: now.plus(LOSS_SHOWN),
            decline_until: now.plus(DECLINE),
        }
    }

    /// A loss from the record, as old as it is; `None` when it is not shown any more.
    fn restored(record: &RecordedLoss, now: Mono, now_unix: f64) -> Option<Self> {
        let age = now_unix - record.at;
        // A clock that was set back in between says nothing of its age: it is not taken for a new one.
        let age = if age < -1.0 { DECLINE } else { Duration::try_from_secs_f64(age.max(0.0)).ok()? };
        Some(Self {
            record: record.clone(),
            // Whoever is new to this monitor came later.
            alive_at: Mono::default(),
            replaced_at: None,
            shown_until: now.plus(LOSS_SHOWN.checked_sub(age)?),
            decline_until: now.plus(DECLINE.saturating_sub(age)),
        })
    }

    fn is_of(&self, consumer: &Name) -> bool {
        self.record.consumer.as_deref().is_some_and(|name| Name::from(name) == *consumer)
    }

    /// The consumer as the loss left it: it may come back.
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
