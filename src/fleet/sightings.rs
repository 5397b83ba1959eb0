//! What one reading says of one type's consumers: each is seen, and what changed is collected.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::consumer::{Consumer, ConsumerState, Sighting, Work};
use super::event::EventKind;
use super::reading::{Beat, BeatReading, MarkerReading};
use super::time::Mono;
use super::worker_type::Departures;
use crate::contract::Name;

/// What one reading says of one type's consumers.
pub(super) struct Sightings {
    pub(super) now: Mono,
    pub(super) ts: f64,
    pub(super) absence_counts_from: Mono,
    pub(super) floor: Duration,
    /// Consumers that came or went, each with a moment that was written down before: the same for
    /// the same occurrence found again after a restart, another for the next occurrence.
    pub(super) who: BTreeSet<String>,
    pub(super) departures: Departures,
    pub(super) told: Vec<EventKind>,
}

impl Sightings {
    /// Looks at every consumer that is known, listed by a group (`work`) or watched (`beats`).
    /// Both are sorted by name, as `consumers` is: all three are walked side by side.
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
        let was_present = consumer.is_present();
        let (since, present_since) = (consumer.since_unix, consumer.present_since);
        let before = consumer.see(&Sighting {
            keys,
            work,
            now: self.now,
            now_unix: self.ts,
            absence_counts_from: self.absence_counts_from,
            floor: self.floor,
        });
        let after = consumer.state;
        if was_present && !consumer.is_present() {
            self.who.insert(format!("{name}@{present_since}"));
        } else if !was_present && consumer.is_present() {
            let started = consumer.heartbeat.as_ref().map_or(since, |beat| beat.started_at);
            self.who.insert(format!("{name}@{}", if before.is_gone() { since } else { started }));
        }
        if after == ConsumerState::NoHeartbeat && matches!(keys.marker, MarkerReading::Present(_)) {
            self.departures.goodbyes += 1;
        }
        if before == after {
            return;
        }
        let pending = work.map_or(0, |work| work.pending);
        match (before, after) {
            (_, ConsumerState::Lost) => {
                self.departures.lost.push(name.clone());
                self.departures.lost_pending += pending;
            }
            (_, ConsumerState::LeftWithWork) => {
                let pending = match &keys.marker {
                    MarkerReading::Present(marker) => marker.in_flight.map_or(pending, u64::from),
                    _ => pending,
                };
                self.told.push(EventKind::LeftWithWork { consumer: name.clone(), pending });
            }
            (_, ConsumerState::Hung) => {
                let for_sec = consumer.still_for(self.now).as_secs();
                self.who.insert(format!("{name}@{}", consumer.since_unix));
                self.told.push(EventKind::Hung { consumer: name.clone(), pending, for_sec });
            }
            (ConsumerState::Hung, ConsumerState::Alive | ConsumerState::Draining) => {
                self.who.insert(format!("{name}@{since}"));
                self.told.push(EventKind::Unhung { consumer: name.clone() });
            }
            _ => {}
        }
    }
}

/// Those of a sorted list that the map does not hold.
fn not_among<'a, T>(known: &BTreeMap<Name, Consumer>, sorted: &'a [(Name, T)]) -> impl Iterator<Item = &'a Name> {
    let mut known = known.keys().peekable();
    sorted.iter().map(|(name, _)| name).filter(move |name| {
        // Mostly all of them: a name that is shared is the same without being read.
        while known.next_if(|other| other != name && other < name).is_some() {}
        known.peek() != Some(name)
    })
}

/// A sorted list that is walked beside another, each entry once.
struct Beside<'a, T>(&'a [(Name, T)]);

impl<'a, T> Beside<'a, T> {
    /// The entry of `name`; names are asked for in order.
    fn at(&mut self, name: &Name) -> Option<&'a T> {
        while let [(first, value), rest @ ..] = self.0 {
            // Sameness first: of a name that is shared it is known without reading it.
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
