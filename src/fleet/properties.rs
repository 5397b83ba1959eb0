//! What must hold of the tracker whatever the fleet and Redis do: properties over invented
//! worlds, with the truth known.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::consumer::ConsumerState;
use super::event::EventKind;
use super::invented::{TICK_SEC, tracker};
use super::reading::{
    Beat, BeatReading, GroupConsumer, GroupReading, HeartbeatsReading, Lag, MarkerReading, RedisServer, SourceTrouble,
    StreamFacts, StreamReading, StreamsReading, TroubleKind,
};
use super::time::Mono;
use super::tracker::TickReadings;
use super::worker_type::TypeState;
use crate::contract::{Heartbeat, Name, ShutdownMarker};

const STREAM: &str = "s";

/// What happens in one tick's time.
#[derive(Debug, Clone)]
enum Act {
    Wait,
    Start(usize),
    Kill(usize),
    Leave(usize, u64),
    /// Redis cannot be read for so many ticks.
    Outage(u8),
    /// Redis comes back empty, under a new run id.
    RestartEmpty,
    /// The monitor stands still for so many ticks.
    Gap(u8),
    /// Redis' clock and the monitor's jump by so many seconds.
    ClockJump(i32),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Wait),
        4 => (0..4_usize).prop_map(Act::Start),
        3 => (0..4_usize).prop_map(Act::Kill),
        3 => (0..4_usize, 0..3_u64).prop_map(|(c, left)| Act::Leave(c, left)),
        1 => (1..12_u8).prop_map(Act::Outage),
        1 => Just(Act::RestartEmpty),
        1 => (1..12_u8).prop_map(Act::Gap),
        1 => (-100_000..100_000_i32).prop_map(Act::ClockJump),
    ]
}

#[derive(Debug, Clone, Default)]
struct Process {
    running: bool,
    started: u64,
    incarnation: u64,
    pending: u64,
    in_group: bool,
    beat_expires: u64,
    last_beat: Option<Arc<Heartbeat>>,
    marker: Option<(u64, ShutdownMarker)>,
    /// How its last disappearance has to be judged.
    went: Option<ConsumerState>,
    /// Redis lost the evidence.
    unclear: bool,
    /// A good reading held its heartbeat since it started.
    seen: bool,
    kills: usize,
}

#[derive(Debug, Default)]
struct World {
    second: u64,
    tick: u64,
    clock: i64,
    run: u64,
    outage_until: u64,
    processes: Vec<Process>,
    readings: Vec<TickReadings>,
}

fn name(n: usize) -> Name {
    Name::from(format!("c{n}"))
}

impl World {
    fn play(acts: &[Act]) -> Self {
        let mut world = Self { processes: vec![Process::default(); 4], clock: 1_000_000, ..Self::default() };
        for act in acts {
            world.act(act);
            world.tick();
        }
        for _ in 0..20 {
            world.tick();
        }
        world
    }

    fn act(&mut self, act: &Act) {
        let second = self.second;
        match *act {
            Act::Wait => {}
            Act::Start(n) => {
                let process = &mut self.processes[n];
                if !process.running {
                    process.running = true;
                    process.incarnation += 1;
                    process.started = second;
                    process.pending = 0;
                    process.in_group = true;
                    process.went = None;
                    process.unclear = false;
                    process.seen = false;
                    self.beat(n);
                }
            }
            Act::Kill(n) => {
                let process = &mut self.processes[n];
                if std::mem::take(&mut process.running) {
                    process.went = Some(ConsumerState::Lost);
                    process.kills += 1;
                }
            }
            Act::Leave(n, left) => {
                let process = &mut self.processes[n];
                if std::mem::take(&mut process.running) {
                    process.went = Some(if left > 0 { ConsumerState::LeftWithWork } else { ConsumerState::Left });
                    process.pending = left;
                    process.beat_expires = 0;
                    let marker = ShutdownMarker {
                        stream: STREAM.into(),
                        consumer: name(n),
                        signum: Some(15),
                        ts: second as f64,
                        incarnation: None,
                        in_flight: None,
                    };
                    process.marker = Some((second + 120, marker));
                }
            }
            Act::Outage(ticks) => self.outage_until = self.outage_until.max(second + u64::from(ticks) * TICK_SEC),
            Act::RestartEmpty => {
                self.run += 1;
                for process in &mut self.processes {
                    process.unclear |= process.marker.take().is_some();
                    process.beat_expires = 0;
                }
            }
            Act::Gap(ticks) => {
                for _ in 0..u64::from(ticks) * TICK_SEC {
                    self.pass_a_second();
                }
            }
            Act::ClockJump(by) => self.clock += i64::from(by),
        }
    }

    fn beat(&mut self, n: usize) {
        let process = &mut self.processes[n];
        process.beat_expires = self.second + 15;
        process.last_beat = Some(Arc::new(Heartbeat {
            stream: STREAM.into(),
            consumer: name(n),
            started_at: process.incarnation as f64,
            last_seen: self.second as f64,
            task_limit: 1,
            incarnation: None,
            in_flight: None,
            waiting: None,
            progress: None,
            draining: false,
        }));
    }

    fn pass_a_second(&mut self) {
        self.second += 1;
        for n in 0..self.processes.len() {
            if self.processes[n].running && (self.second - self.processes[n].started).is_multiple_of(5) {
                self.beat(n);
            }
        }
    }

    fn tick(&mut self) {
        for _ in 0..TICK_SEC {
            self.pass_a_second();
        }
        self.tick += 1;
        let wall = (self.clock + self.second as i64) as f64;
        let bad = || SourceTrouble::new(TroubleKind::Unreachable, "away");
        let away = self.second < self.outage_until;
        for process in &mut self.processes {
            process.seen |= !away && process.beat_expires > self.second;
        }
        self.readings.push(TickReadings {
            tick: self.tick,
            now: Mono(self.second * 1000),
            wall,
            streams: if away { Err(bad()) } else { Ok(Arc::new(self.streams(wall))) },
            heartbeats: if away { Err(bad()) } else { Ok(Arc::new(self.heartbeats())) },
            database: None,
        });
    }

    fn streams(&self, wall: f64) -> StreamsReading {
        let consumers = self.processes.iter().enumerate().filter(|(_, p)| p.in_group).map(|(n, p)| GroupConsumer {
            name: name(n),
            pending: p.pending,
            idle_ms: 0,
            inactive_ms: None,
        });
        let group = GroupReading {
            name: "consumer".into(),
            pending: 0,
            lag: Lag::Reported(0),
            entries_read: Some(0),
            last_delivered_id: "0-0".to_owned(),
            oldest_undelivered_ms: None,
            consumers: Some(consumers.collect()),
        };
        let facts = StreamFacts { exists: true, length: 0, groups: vec![group] };
        StreamsReading {
            redis_time: wall,
            server: RedisServer { run_id: self.run.to_string(), ..RedisServer::default() },
            streams: [(STREAM.into(), StreamReading { facts: Ok(facts) })].into(),
        }
    }

    fn heartbeats(&self) -> HeartbeatsReading {
        let consumers: Vec<(Name, BeatReading)> = self
            .processes
            .iter()
            .enumerate()
            .map(|(n, process)| {
                let beat = match &process.last_beat {
                    Some(beat) if process.beat_expires > self.second => Beat::Present(Arc::clone(beat)),
                    _ => Beat::Absent,
                };
                let marker = match &process.marker {
                    Some((expires, marker)) if *expires > self.second => {
                        MarkerReading::Present(Box::new(marker.clone()))
                    }
                    _ => MarkerReading::Absent,
                };
                (name(n), BeatReading { beat, marker })
            })
            .collect();
        HeartbeatsReading { consumers: [(STREAM.into(), consumers)].into(), unreadable: Vec::new() }
    }
}

/// What the tracker made of a world.
#[derive(Debug, PartialEq)]
struct Told {
    /// Per tick: what happened.
    events: Vec<Vec<EventKind>>,
    states: BTreeMap<Name, ConsumerState>,
    of_type: Option<TypeState>,
}

fn track<'a>(readings: impl IntoIterator<Item = &'a TickReadings>) -> Told {
    let mut tracker = tracker();
    let mut told = Told { events: Vec::new(), states: BTreeMap::new(), of_type: None };
    for reading in readings {
        let Some(advance) = tracker.advance(reading.clone()) else { continue };
        told.events.push(advance.events.iter().map(|event| event.kind.clone()).collect());
        if let Some(of_type) = advance.snapshot.workers.get(STREAM.as_bytes()) {
            told.of_type = Some(of_type.state);
            told.states = of_type.consumers.iter().map(|c| (c.consumer.clone(), c.state)).collect();
        }
    }
    told
}

fn lost(events: &[EventKind]) -> Vec<Name> {
    let lost = events.iter().filter_map(|kind| match kind {
        EventKind::ConsumersLost { consumers, .. } => Some(consumers.clone()),
        _ => None,
    });
    lost.flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_disappearance_ends_as_what_it_was_and_nobody_alive_is_called_gone(acts in prop::collection::vec(act(), 1..40)) {
        let world = World::play(&acts);
        let told = track(&world.readings);
        for (n, process) in world.processes.iter().enumerate().filter(|(_, p)| p.seen && !p.unclear) {
            let state = told.states.get(&name(n)).copied();
            prop_assert_eq!(state, Some(process.went.unwrap_or(ConsumerState::Alive)));
        }
        if world.processes.iter().any(|p| p.running) {
            prop_assert_eq!(told.of_type, Some(TypeState::Alive));
        }
    }

    #[test]
    fn nobody_is_lost_more_often_than_killed_nor_while_redis_is_away(acts in prop::collection::vec(act(), 1..40)) {
        let world = World::play(&acts);
        let told = track(&world.readings);
        let mut losses: BTreeMap<Name, usize> = BTreeMap::new();
        for (reading, events) in world.readings.iter().zip(&told.events) {
            let lost = lost(events);
            prop_assert!(reading.heartbeats.is_ok() || lost.is_empty());
            for who in lost {
                *losses.entry(who).or_default() += 1;
            }
        }
        for (n, process) in world.processes.iter().enumerate().filter(|(_, p)| !p.unclear) {
            let unclear_before = acts.iter().any(|act| matches!(act, Act::RestartEmpty));
            let losses = losses.get(&name(n)).copied().unwrap_or(0);
            prop_assert!(losses <= process.kills || unclear_before, "{losses} losses after {} kills", process.kills);
        }
    }

    #[test]
    fn the_same_readings_give_the_same_states_whatever_comes_twice_or_late(
        acts in prop::collection::vec(act(), 1..30), again in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let world = World::play(&acts);
        let told = track(&world.readings);
        prop_assert_eq!(&told, &track(&world.readings));
        let mut shuffled: Vec<&TickReadings> = world.readings.iter().collect();
        for index in again {
            let late = index.index(world.readings.len());
            // An old reading arrives again after a newer one.
            let at = shuffled.iter().position(|r| r.tick == world.readings[late].tick).unwrap_or(0);
            shuffled.insert((at + 1 + late % 5).min(shuffled.len()), &world.readings[late]);
        }
        prop_assert_eq!(&told, &track(shuffled));
    }

    #[test]
    fn a_clock_that_jumps_changes_nothing(acts in prop::collection::vec(act(), 1..40)) {
        let steady: Vec<Act> =
            acts.iter().map(|act| if matches!(act, Act::ClockJump(_)) { Act::Wait } else { act.clone() }).collect();
        prop_assert_eq!(track(&World::play(&acts).readings), track(&World::play(&steady).readings));
    }

    #[test]
    fn anothers_goodbye_changes_nothing_for_one_that_was_killed(at in 0..20_usize, killed_at in 0..20_usize) {
        let mut acts = vec![Act::Wait; 25];
        acts[0] = Act::Start(0);
        let mut both = acts.clone();
        both[1] = Act::Start(1);
        acts[2 + killed_at] = Act::Kill(0);
        both[2 + killed_at] = Act::Kill(0);
        if at != killed_at {
            both[2 + at] = Act::Leave(1, 0);
        }
        let alone = track(&World::play(&acts).readings);
        let beside = track(&World::play(&both).readings);
        let when = |told: &Told| told.events.iter().position(|events| lost(events).contains(&name(0)));
        prop_assert!(when(&alone).is_some());
        prop_assert_eq!(when(&alone), when(&beside));
    }
}

#[test]
fn a_consumer_that_is_lost_returns_and_is_lost_again_is_told_twice() {
    let outage = |mut acts: Vec<Act>| {
        acts.push(Act::Kill(0));
        acts.extend(vec![Act::Wait; 8]);
        acts
    };
    let mut acts = outage([vec![Act::Start(0)], vec![Act::Wait; 10]].concat());
    let first = World::play(&acts);
    acts.push(Act::Start(0));
    let acts = outage([acts, vec![Act::Wait; 10]].concat());
    let mut world = World::play(&acts);
    // The same process: only its network was away.
    for reading in &mut world.readings {
        for (_, found) in Arc::make_mut(reading.heartbeats.as_mut().unwrap()).consumers.values_mut().flatten() {
            if let Beat::Present(beat) = &mut found.beat {
                Arc::make_mut(beat).started_at = 1.0;
            }
        }
    }
    let keys = |world: &World| -> Vec<String> {
        let mut tracker = tracker();
        let advances: Vec<_> = world.readings.iter().filter_map(|reading| tracker.advance(reading.clone())).collect();
        advances
            .iter()
            .flat_map(|a| &a.events)
            .filter(|e| e.type_name() == "consumers_lost")
            .map(|e| e.key.clone())
            .collect()
    };
    assert_eq!(keys(&first).len(), 1);
    let twice = keys(&world);
    assert_eq!(twice.len(), 2);
    assert_ne!(twice[0], twice[1]);
}

/// The worst case in time: killed right after it wrote its heartbeat.
#[test]
fn a_crash_is_seen_within_twenty_seconds() {
    for phase in 0..30 {
        let mut acts = vec![Act::Wait; 12];
        acts[0] = Act::Start(0);
        acts.extend(vec![Act::Wait; phase]);
        acts.push(Act::Kill(0));
        let kill_second = (acts.len() as u64 - 1) * TICK_SEC;
        let world = World::play(&acts);
        let told = track(&world.readings);
        let seen = told.events.iter().position(|events| !lost(events).is_empty()).expect("the crash is seen");
        let took = world.readings[seen].now.0 / 1000 - kill_second;
        assert!(took <= 20, "seen after {took} s");
    }
}

#[test]
fn a_type_that_goes_to_zero_is_crashed_only_if_somebody_vanished_on_the_way() {
    let of_type = |last: [Act; 2]| {
        let [a, b] = last;
        let mut acts = vec![Act::Start(0), Act::Start(1)];
        acts.extend(vec![Act::Wait; 10]);
        acts.extend([a, Act::Wait, b]);
        track(&World::play(&acts).readings).of_type
    };
    assert_eq!(of_type([Act::Leave(0, 0), Act::Leave(1, 0)]), Some(TypeState::ScaledDown));
    assert_eq!(of_type([Act::Kill(0), Act::Leave(1, 0)]), Some(TypeState::Crashed));
    assert_eq!(of_type([Act::Leave(0, 0), Act::Kill(1)]), Some(TypeState::Crashed));
    assert_eq!(of_type([Act::Leave(0, 0), Act::Wait]), Some(TypeState::Alive));
}

#[test]
fn what_was_written_down_is_gone_on_from_without_telling_it_again() {
    let mut acts = vec![Act::Start(0), Act::Start(1)];
    acts.extend(vec![Act::Wait; 10]);
    let world = World::play(&acts);
    let (first, second) = world.readings.split_at(12);
    let mut tracker = tracker();
    for reading in first {
        tracker.advance(reading.clone());
    }
    let record = tracker.record(&STREAM.into()).unwrap();
    let record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    let mut again = self::tracker();
    again.restore(&BTreeMap::from([(Name::from(STREAM), record)]), second[0].now);
    let told: Vec<_> =
        second.iter().filter_map(|reading| again.advance(reading.clone())).flat_map(|a| a.events).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn the_older_monitors_record_of_a_type_that_is_gone_becomes_a_crash_once() {
    let record =
        serde_json::from_str(r#"{"state":"alive","last_alive":3,"state_changed_at":1.5,"last_seen_alive":2.5}"#)
            .unwrap();
    let world = World::play(&vec![Act::Wait; 10]);
    let mut tracker = tracker();
    tracker.restore(&BTreeMap::from([(Name::from("old"), record)]), Mono(0));
    let events: Vec<_> = world
        .readings
        .iter()
        .filter_map(|r| tracker.advance(r.clone()))
        .flat_map(|a| a.events)
        .map(|e| e.kind.clone())
        .collect();
    assert_eq!(events, [EventKind::ScaleDown { from: 3, to: 0, kind: TypeState::Crashed }]);
}
