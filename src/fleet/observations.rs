//! Applies one reading to the consumers of a type and collects the changes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::consumer::{Consumer, ConsumerState, Observation, Work};
use super::event::{EventKind, Return};
use super::reading::{Beat, BeatReading, MarkerReading};
use super::time::Mono;
use super::worker_type::{Departures, LossKind, Lost, Occurrence};
use crate::contract::Name;

/// One reading of the consumers of a type.
pub(super) struct Observations {
    pub(super) now: Mono,
    pub(super) ts: f64,
    pub(super) absence_counts_from: Mono,
    pub(super) floor: Duration,
    pub(super) marker_gap: Duration,
    pub(super) departures: Departures,
    pub(super) told: Vec<Occurrence>,
    /// The set of running consumers changed, or the process of one.
    pub(super) present_changed: bool,
}

impl Observations {
    /// Updates every consumer that is known, listed by a group (`work`) or has watched keys (`beats`). Both lists are
    /// sorted by name, like `consumers`, so all three are merged in one pass.
    pub(super) fn look_at(
        &mut self,
        consumers: &mut BTreeMap<Name, Consumer>,
        work: &[(Name, Work)],
        beats: &[(Name, BeatReading)],
    ) {
        let new: Vec<Name> = not_among(consumers, work).chain(not_among(consumers, beats)).cloned().collect();
        for name in new {
            consumers.entry(name).or_insert_with(|| Consumer::new(self.now, self.ts));
        }
        let unseen = BeatReading { beat: Beat::Absent, marker: MarkerReading::NotRead };
        let (mut work, mut beats) = (Beside(work), Beside(beats));
        for (name, consumer) in consumers {
            let keys = beats.at(name).unwrap_or(&unseen);
            self.look_at_one(name, consumer, keys, work.at(name).copied());
        }
    }

    fn look_at_one(&mut self, name: &Name, consumer: &mut Consumer, keys: &BeatReading, work: Option<Work>) {
        let (was_present, started_before) = (consumer.is_present(), consumer.started_at());
        let is_lost = matches!(consumer.state, ConsumerState::Lost | ConsumerState::Unobserved);
        let lost_process = is_lost.then(|| consumer.recorded().0.process);
        let before = consumer.see(&Observation {
            keys,
            work,
            now: self.now,
            now_unix: self.ts,
            absence_counts_from: self.absence_counts_from,
            floor: self.floor,
            marker_gap: self.marker_gap,
        });
        let after = consumer.state;
        self.present_changed |= started_before != consumer.started_at();
        if was_present != consumer.is_present() {
            self.present_changed = true;
            if !was_present {
                self.departures.arrived.push(name.clone());
            }
        }
        if after == ConsumerState::NoHeartbeat && matches!(keys.marker, MarkerReading::Present(_)) {
            self.departures.goodbyes += 1;
        }
        self.follow_hang(name, consumer, work);
        if before == after {
            return;
        }
        let pending = work.map_or(0, |work| work.pending);
        let occurrence = || format!("{name}@{}", consumer.presence());
        if let Some(lost_process) = lost_process {
            let how = match after {
                ConsumerState::Left | ConsumerState::LeftWithWork => Return::ShutDown,
                _ if lost_process.is_none() || lost_process == consumer.recorded().0.process => Return::Resumed,
                _ => Return::Restarted,
            };
            if how != Return::Restarted {
                self.departures.recovered.push(name.clone());
            }
            if before == ConsumerState::Lost {
                self.told.push((EventKind::ConsumerReturned { consumer: name.clone(), how }, occurrence()));
            }
        }
        let lost = |kind| Lost { consumer: name.clone(), presence: consumer.presence(), pending, kind };
        match after {
            ConsumerState::Lost => self.departures.lost.push(lost(LossKind::Lost)),
            ConsumerState::Unobserved => self.departures.lost.push(lost(LossKind::Unobserved)),
            ConsumerState::LeftWithWork => {
                let pending = match &keys.marker {
                    MarkerReading::Present(marker) => marker.in_flight.map_or(pending, u64::from),
                    _ => pending,
                };
                self.told.push((EventKind::LeftWithWork { consumer: name.clone(), pending }, occurrence()));
            }
            _ => {}
        }
    }

    /// Reports the start and the end of a hang; late heartbeats in between are neither.
    fn follow_hang(&mut self, name: &Name, consumer: &mut Consumer, work: Option<Work>) {
        let occurrence = |consumer: &Consumer, hang: &str| format!("{name}@{} {hang}", consumer.presence());
        match consumer.state {
            ConsumerState::Hung => {
                if consumer.hang().is_some() {
                    return;
                }
                let still = consumer.still_for(self.now);
                let hang = self.hang_of(consumer, still);
                let pending = work.map_or(0, |work| work.pending);
                let kind = EventKind::Hung { consumer: name.clone(), pending, for_sec: still.as_secs() };
                self.told.push((kind, occurrence(consumer, &hang)));
                consumer.set_hang(Some(hang));
            }
            ConsumerState::Alive | ConsumerState::Draining => {
                if let Some(hang) = consumer.hang() {
                    self.told.push((EventKind::Unhung { consumer: name.clone() }, occurrence(consumer, hang)));
                    consumer.set_hang(None);
                }
            }
            state if state.is_gone() => consumer.set_hang(None),
            _ => {}
        }
    }

    /// Distinguishes a hang from others of the same consumer: by the value of its progress counter, or by the
    /// approximate start of its idle time. Each hang lasts longer than the hung threshold, so two hangs cannot start
    /// within the same interval of that length.
    fn hang_of(&self, consumer: &Consumer, still: Duration) -> Box<str> {
        match consumer.heartbeat.as_ref().and_then(|beat| beat.progress) {
            Some(progress) => format!("at {progress}").into(),
            None => {
                let stretch = self.floor.as_secs_f64().max(1.0);
                format!("in {:.0}", ((self.ts - still.as_secs_f64()) / stretch).floor()).into()
            }
        }
    }
}

/// Entries of a sorted list that are missing from the map.
fn not_among<'a, T>(known: &BTreeMap<Name, Consumer>, sorted: &'a [(Name, T)]) -> impl Iterator<Item = &'a Name> {
    let mut known = known.keys().peekable();
    sorted.iter().map(|(name, _)| name).filter(move |name| {
        // Usually all names are known, and a shared name compares equal by its pointer.
        while known.next_if(|other| other != name && other < name).is_some() {}
        known.peek() != Some(name)
    })
}

/// A sorted list that is merged with another sorted list; each entry is returned once.
struct Beside<'a, T>(&'a [(Name, T)]);

impl<'a, T> Beside<'a, T> {
    /// Returns the entry of `name`; names must be requested in order.
    fn at(&mut self, name: &Name) -> Option<&'a T> {
        while let [(first, value), rest @ ..] = self.0 {
            // Compare for equality first: shared names compare by pointer.
            if first == name {
                self.0 = rest;
                return Some(value);
            }
            if first > name {
                return None;
            }
            self.0 = rest;
        }
        None
    }
}
