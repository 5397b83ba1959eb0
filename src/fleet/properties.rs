//! Property tests of the tracker over simulated worlds with known true state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::consumer::ConsumerState;
use super::event::Event;
use super::fixtures::{TICK_SEC, tracker};
use super::reading::{Beat, BeatReading, GroupConsumer, MarkerReading, SourceTrouble, TroubleKind};
use super::simulated::{Fate, Fleet, Keys, Process, Reader, latest};
use super::time::Mono;
use super::tracker::{TickReadings, Tracker};
use super::worker_type::{TypeState, WorkerStateRecord};
use crate::contract::{Heartbeat, Name, ShutdownMarker};

const STREAM: &str = "s";
/// Maximum number of processes. Those of the first two slots always use the same consumer name.
const SLOTS: usize = 4;

/// An event within one tick.
#[derive(Debug, Clone)]
enum Act {
    Wait,
    Start(usize),
    Kill(usize),
    /// Writes its marker with pending entries, and one heartbeat some seconds later.
    Leave(usize, u64, Option<u64>),
    /// Stops for some seconds. If it is asked to shut down meanwhile, it does so when it continues.
    Stall(usize, u64),
    /// Redis is unreachable for some ticks.
    Outage(u8),
    /// Redis restarts empty, with a new run ID.
    RestartEmpty,
    /// The monitor is stopped for some ticks.
    Gap(u8),
    /// Steps Redis' clock by some seconds, and with it the expiry of every key.
    RedisClock(i32),
    /// Steps the monitor's clock.
    MonitorClock(i32),
    /// The monitor ends, and another one starts after some ticks.
    MonitorRestart(u8),
}

fn slot() -> std::ops::Range<usize> {
    0..SLOTS
}

/// Events of the fleet, without those that limit what the monitor observes.
fn fleet_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Wait),
        4 => slot().prop_map(Act::Start),
        2 => slot().prop_map(Act::Kill),
        3 => (slot(), 0..3_u64, prop::option::of(0..4_u64)).prop_map(|(c, left, late)| Act::Leave(c, left, late)),
        2 => (slot(), 5..60_u64).prop_map(|(c, seconds)| Act::Stall(c, seconds)),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        14 => fleet_act(),
        1 => (slot(), 60..200_u64).prop_map(|(c, seconds)| Act::Stall(c, seconds)),
        1 => (1..12_u8).prop_map(Act::Outage),
        1 => (30..60_u8).prop_map(Act::Outage),
        1 => Just(Act::RestartEmpty),
        1 => (1..60_u8).prop_map(Act::Gap),
        1 => (-100..100_i32).prop_map(Act::RedisClock),
        1 => (-100_000..100_000_i32).prop_map(Act::MonitorClock),
        1 => (0..60_u8).prop_map(Act::MonitorRestart),
    ]
}

/// A reading of a monitor, or its restart.
#[derive(Debug, Clone)]
enum Step {
    Read(Box<TickReadings>),
    /// The monitor ends; the next reading is the first of another one.
    Restart,
}

#[derive(Debug)]
struct World {
    second: u64,
    tick: u64,
    redis_clock: i64,
    monitor_clock: i64,
    run: u64,
    outage_until: u64,
    monitor_down_until: u64,
    monitor_started: u64,
    fleet: Fleet,
    keys: Keys,
    /// Readings of the first monitor, with the true state after each.
    steps: Vec<(Step, Vec<Process>)>,
    /// Readings of a second monitor, one second later and without restarts.
    beside: Vec<TickReadings>,
}

impl World {
    fn at(second: u64) -> Self {
        Self {
            second,
            tick: second,
            redis_clock: 1_000_000,
            monitor_clock: 1_000_000,
            run: 0,
            outage_until: 0,
            monitor_down_until: 0,
            monitor_started: 0,
            fleet: Fleet::of(vec![STREAM.into()]),
            keys: Keys::default(),
            steps: Vec::new(),
            beside: Vec::new(),
        }
    }

    fn play(acts: &[Act]) -> Self {
        let mut world = Self::at(0);
        for act in acts {
            world.act(act);
            world.tick();
        }
        // Longer than every stall, outage and recovery.
        for _ in 0..120 {
            world.tick();
        }
        world
    }

    fn redis_now(&self) -> f64 {
        (self.redis_clock + self.second as i64) as f64
    }

    fn act(&mut self, act: &Act) {
        let (second, redis_now) = (self.second, self.redis_now());
        match *act {
            Act::Wait => {}
            Act::Start(slot) => self.fleet.start(slot, second, redis_now, &mut self.keys),
            Act::Kill(slot) => self.fleet.kill(slot, second),
            Act::Leave(slot, left, late) => self.fleet.leave(slot, (left, late), second, redis_now, &mut self.keys),
            Act::Stall(slot, seconds) => self.fleet.stall(slot, seconds, second),
            Act::Outage(ticks) => self.outage_until = self.outage_until.max(second + u64::from(ticks) * TICK_SEC),
            Act::RestartEmpty => {
                self.run += 1;
                self.keys = Keys::default();
                self.fleet.evidence_is_lost();
            }
            Act::Gap(ticks) => {
                for _ in 0..u64::from(ticks) * TICK_SEC {
                    self.pass_a_second();
                }
            }
            Act::RedisClock(by) => {
                self.redis_clock += i64::from(by);
                self.fleet.redis_clock_steps(f64::from(by));
            }
            Act::MonitorClock(by) => self.monitor_clock += i64::from(by),
            Act::MonitorRestart(ticks) => {
                self.steps.push((Step::Restart, Vec::new()));
                self.monitor_down_until = second + u64::from(ticks) * TICK_SEC;
                self.monitor_started = self.monitor_down_until;
            }
        }
    }

    fn pass_a_second(&mut self) {
        self.second += 1;
        let redis_now = self.redis_now();
        self.fleet.pass_a_second(self.second, redis_now, true, &mut self.keys);
        self.keys.expire(redis_now);
    }

    fn tick(&mut self) {
        for _ in 0..TICK_SEC {
            self.pass_a_second();
        }
        self.tick += 1;
        if self.second >= self.monitor_down_until {
            if self.second >= self.outage_until {
                let reader = Reader { machine: 0, interval: TICK_SEC, excludes: None };
                self.fleet.is_read_by(&reader, self.second, self.redis_now(), &self.keys);
            }
            let reading = Box::new(self.reading(self.monitor_started));
            self.steps.push((Step::Read(reading), self.fleet.processes.clone()));
        }
        self.second += 1;
        self.beside.push(self.reading(0));
        self.second -= 1;
    }

    fn reading(&self, started: u64) -> TickReadings {
        let bad = || SourceTrouble::new(TroubleKind::Unreachable, "away");
        let away = self.second < self.outage_until;
        TickReadings {
            tick: self.tick,
            now: Mono((self.second - started) * 1000),
            wall: (self.monitor_clock + self.second as i64) as f64,
            streams: if away {
                Err(bad())
            } else {
                Ok(Arc::new(self.fleet.read_streams(None, self.redis_now(), self.run)))
            },
            heartbeats: if away { Err(bad()) } else { Ok(Arc::new(self.fleet.read_heartbeats(None, &self.keys))) },
            database: None,
        }
    }
}

/// Results of a monitor.
#[derive(Debug, PartialEq)]
struct Reported {
    /// Events per step.
    events: Vec<Vec<Arc<Event>>>,
    /// State of the type per step.
    of_type: Vec<Option<TypeState>>,
    states: BTreeMap<Name, ConsumerState>,
}

/// Tracks a world like the monitor: saves the record with every change and every ten ticks, and restores it when the next monitor
/// first reads Redis.
fn track<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Reported {
    let mut tracker = tracker();
    let mut record: Option<WorkerStateRecord> = None;
    let mut restored = true;
    let mut reported = Reported { events: Vec::new(), of_type: Vec::new(), states: BTreeMap::new() };
    for step in steps {
        let Step::Read(reading) = step else {
            tracker = self::tracker();
            restored = false;
            reported.events.push(Vec::new());
            reported.of_type.push(None);
            continue;
        };
        if let (false, Some(record), Ok(streams)) = (restored, &record, &reading.streams) {
            restore(&mut tracker, record, reading.now, streams.redis_time);
            restored = true;
        }
        let Some(advance) = tracker.advance((**reading).clone()) else { continue };
        if !advance.changed_types.is_empty() || (reading.tick.is_multiple_of(10) && reading.heartbeats.is_ok()) {
            record = saved(&tracker).or(record);
        }
        let of_type = advance.snapshot.workers.get(STREAM.as_bytes());
        reported.of_type.push(of_type.map(|status| status.state));
        if let Some(status) = of_type {
            reported.states = status.consumers.iter().map(|c| (c.consumer.clone(), c.state)).collect();
        }
        reported.events.push(advance.events);
    }
    reported
}

fn saved(tracker: &Tracker) -> Option<WorkerStateRecord> {
    let record = tracker.record(&STREAM.into())?;
    Some(serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap())
}

fn restore(tracker: &mut Tracker, record: &WorkerStateRecord, now: Mono, now_unix: f64) {
    tracker.restore(&BTreeMap::from([(Name::from(STREAM), record.clone())]), now, now_unix);
}

fn of_world(world: &World) -> Reported {
    track(world.steps.iter().map(|(step, _)| step))
}

/// Returns the consumer of a lost or recovered event, and whether it was lost.
fn lost_or_recovered(event: &Event) -> Vec<(Name, bool)> {
    let payload = event.payload();
    match event.type_name() {
        "consumers_lost" => {
            let consumers = payload["consumers"].as_array().unwrap();
            consumers.iter().map(|name| (Name::from(name.as_str().unwrap()), true)).collect()
        }
        "consumer_recovered" if payload["recovered_from"] == "lost" => {
            vec![(Name::from(payload["consumer"].as_str().unwrap()), false)]
        }
        _ => Vec::new(),
    }
}

fn lost(events: &[Arc<Event>]) -> Vec<Name> {
    let all = events.iter().flat_map(|event| lost_or_recovered(event));
    all.filter(|(_, lost)| *lost).map(|(name, _)| name).collect()
}

fn is_crash(event: &Event) -> bool {
    event.type_name() == "scale_down" && event.payload()["kind"] == "crashed"
}

fn is_killed(p: &Process) -> bool {
    matches!(p.fate, Fate::Killed { .. })
}

/// Invariants of losses, exits and crashes, checked against the true state; `sees_all`: the monitor read every tick.
fn check(world: &World, sees_all: bool) -> Result<(), TestCaseError> {
    let reported = of_world(world);
    let mut open: BTreeMap<Name, bool> = BTreeMap::new();
    for ((step, truth), events) in world.steps.iter().zip(&reported.events) {
        let Step::Read(reading) = step else { continue };
        let at = reading.now.0 / 1000;
        let by_name = latest(truth);
        for (name, is_lost) in events.iter().flat_map(|event| lost_or_recovered(event)) {
            // Lost and recovered events alternate.
            let was = open.insert(name.clone(), is_lost).unwrap_or(false);
            prop_assert!(was != is_lost, "{name} is called lost or recovered twice in a row at {at}");
            if is_lost {
                prop_assert!(reading.heartbeats.is_ok());
                let p = by_name[&name];
                let is_silent = is_killed(p) || !p.is_well(truth_second(world, reading).saturating_sub(8));
                prop_assert!(is_silent || p.unclear[0], "{name} is called lost at {at} and is not: {p:?}");
                // Of a process that started and left unseen, the loss is that of the process before it.
                let left = matches!(p.fate, Fate::Left { .. }) && p.seen[0];
                prop_assert!(!left || p.unclear[0], "{name} left its marker and is called lost at {at}");
            }
        }
        if events.iter().any(|event| is_crash(event)) {
            prop_assert!(open.values().any(|lost| *lost), "crashed at {at} without a loss that still stands");
        }
    }
    for (name, p) in latest(&world.fleet.processes).into_iter().filter(|(_, p)| p.seen[0]) {
        let state = reported.states.get(&name).copied();
        prop_assert!(state != Some(ConsumerState::Suspect), "{name} is suspect for ever");
        if p.unclear[0] && p.fate == Fate::Runs {
            prop_assert_eq!(state, Some(ConsumerState::Alive));
            continue;
        }
        if p.unclear[0] {
            let is_gone = state.is_none_or(|state| state.is_gone() || state == ConsumerState::NoHeartbeat);
            prop_assert!(is_gone, "{name} is {state:?}");
            continue;
        }
        // A restart of the monitor around that time, or before it had settled the exit, may make this unknown.
        if state == Some(ConsumerState::Unobserved) && (is_killed(p) || !p.settled[0]) && restarts(world) {
            continue;
        }
        let expected = match p.fate {
            Fate::Runs => ConsumerState::Alive,
            Fate::Killed { .. } => ConsumerState::Lost,
            Fate::Left { with_work: false, .. } => ConsumerState::Left,
            Fate::Left { with_work: true, .. } => ConsumerState::LeftWithWork,
        };
        // Losses expire after an hour, and exits are not restored after a restart.
        prop_assert!(
            state == Some(expected)
                || (state == Some(ConsumerState::NoHeartbeat) && p.fate != Fate::Runs && restarts(world)),
            "{name} is {state:?}: {p:?}"
        );
        let stands = open.get(&name).copied().unwrap_or(false);
        prop_assert_eq!(stands, is_killed(p), "the loss of {} that stands", name);
    }
    let runs = world.fleet.processes.iter().any(|p| p.fate == Fate::Runs);
    let of_type = reported.of_type.last().copied().flatten();
    prop_assert_eq!(runs, of_type == Some(TypeState::Alive), "{:?}", of_type);
    if sees_all
        && !runs
        && world.fleet.processes.iter().all(|p| p.seen[0] && !p.unclear[0])
        && !world.fleet.processes.is_empty()
    {
        let all_left = world.fleet.processes.iter().all(|p| !is_killed(p) && p.silences.is_empty());
        if all_left {
            prop_assert_eq!(of_type, Some(TypeState::ScaledDown));
        }
        let last = world.fleet.processes.iter().max_by_key(|p| p.beat_at).unwrap();
        // No later process could have replaced it.
        let first_killed = world.fleet.processes.iter().filter(|p| is_killed(p)).map(|p| p.beat_at).min();
        if is_killed(last) && world.fleet.processes.iter().all(|p| Some(p.started) <= first_killed) {
            prop_assert_eq!(of_type, Some(TypeState::Crashed));
        }
    }
    Ok(())
}

fn restarts(world: &World) -> bool {
    world.steps.iter().any(|(step, _)| matches!(step, Step::Restart))
}

/// Returns the true second of a reading, whose `now` starts at 0 with each monitor.
fn truth_second(world: &World, reading: &TickReadings) -> u64 {
    let beside = world.beside.iter().find(|beside| beside.tick == reading.tick);
    beside.map_or(0, |beside| beside.now.0 / 1000 - 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Stalls, returns, markers and kills in every order.
    #[test]
    fn losses_are_reported_once_and_end_and_crashes_require_one(acts in prop::collection::vec(fleet_act(), 1..60)) {
        check(&World::play(&acts), true)?;
    }

    #[test]
    fn outages_clocks_and_restarts_neither_fake_nor_hide_losses(acts in prop::collection::vec(act(), 1..60)) {
        check(&World::play(&acts), false)?;
    }

    #[test]
    fn repeated_and_late_readings_have_no_effect(
        acts in prop::collection::vec(act(), 1..30), again in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let world = World::play(&acts);
        let readings: Vec<Step> = world.beside.iter().cloned().map(Box::new).map(Step::Read).collect();
        let reported = track(&readings);
        prop_assert_eq!(&reported, &track(&readings));
        let mut shuffled: Vec<&Step> = readings.iter().collect();
        for index in again {
            // An old reading arrives again after a newer one.
            let late = index.index(readings.len());
            let at = shuffled.iter().position(|step| std::ptr::eq(*step, &readings[late])).unwrap_or(0);
            shuffled.insert((at + 1 + late % 5).min(shuffled.len()), &readings[late]);
        }
        prop_assert_eq!(&reported, &track(shuffled));
    }

    #[test]
    fn steps_of_the_monitors_clock_have_no_effect(acts in prop::collection::vec(act(), 1..40)) {
        let steady: Vec<Act> =
            acts.iter().map(|act| if matches!(act, Act::MonitorClock(_)) { Act::Wait } else { act.clone() }).collect();
        let (jumping, steady) = (of_world(&World::play(&acts)), of_world(&World::play(&steady)));
        prop_assert_eq!(&jumping.states, &steady.states);
        let of_fleet = |reported: &Reported| -> Vec<String> {
            reported.events.iter().flatten().filter(|e| e.subject == STREAM).map(|e| e.key.clone()).collect()
        };
        prop_assert_eq!(of_fleet(&jumping), of_fleet(&steady));
    }

    /// Two monitors that read a second apart give each exit the same key, and different exits different keys.
    #[test]
    fn two_monitors_record_each_exit_once(acts in prop::collection::vec(fleet_act(), 1..60)) {
        let world = World::play(&acts);
        let beside: Vec<Step> = world.beside.iter().cloned().map(Box::new).map(Step::Read).collect();
        let (one, other) = (of_world(&world), track(&beside));
        let keys = |reported: &Reported, what: fn(&Event) -> bool| -> Vec<String> {
            reported.events.iter().flatten().filter(|e| what(e)).map(|e| e.key.clone()).collect()
        };
        let of_one = |event: &Event| ["consumers_lost", "left_with_work"].contains(&event.type_name());
        let to_zero = |event: &Event| event.type_name() == "scale_down" && event.payload()["to"] == 0;
        for what in [of_one, to_zero] {
            let (mut one, mut other) = (keys(&one, what), keys(&other, what));
            let count = one.len();
            one.sort();
            one.dedup();
            prop_assert_eq!(count, one.len(), "each has a key of its own");
            other.sort();
            if one.len() == other.len() {
                prop_assert_eq!(one, other);
            } else {
                // One of them saw a short stall that the other did not.
                prop_assert!(world.fleet.processes.iter().any(|p| !p.silences.is_empty()));
            }
        }
    }
}

/// Runs until every exit is decided. Returns the events of the type by name and payload, and its last state.
fn story(acts: &[Act]) -> (Vec<Arc<Event>>, Option<TypeState>) {
    let reported = of_world(&World::play(acts));
    let of_fleet = reported.events.into_iter().flatten().filter(|event| event.subject == STREAM).collect();
    (of_fleet, reported.of_type.last().copied().flatten())
}

fn names(events: &[Arc<Event>]) -> Vec<&str> {
    events.iter().map(|event| event.type_name()).collect()
}

fn wait(ticks: usize) -> Vec<Act> {
    vec![Act::Wait; ticks]
}

#[test]
fn consumer_can_shut_down_gracefully_after_a_stall() {
    let acts = [
        vec![Act::Start(0), Act::Start(1)],
        wait(10),
        vec![Act::Stall(0, 24)],
        wait(12),
        vec![Act::Leave(0, 0, None), Act::Wait, Act::Leave(1, 0, None)],
    ]
    .concat();
    let (events, of_type) = story(&acts);
    assert_eq!(of_type, Some(TypeState::ScaledDown), "{:?}", names(&events));
    let recovered: Vec<_> = events.iter().filter(|event| event.type_name() == "consumer_recovered").collect();
    assert_eq!(recovered.len(), 1);
    assert_eq!(recovered[0].payload()["consumer"], "c0");
    assert_eq!(lost(&events), [Name::from("c0")]);
}

#[test]
fn consumer_can_shut_down_gracefully_right_after_a_stall() {
    for stalled in [24, 200] {
        let acts = [
            vec![Act::Start(0), Act::Start(1)],
            wait(10),
            vec![Act::Stall(0, stalled), Act::Leave(0, 0, None)],
            wait(usize::try_from(stalled / TICK_SEC).unwrap() + 4),
            vec![Act::Leave(1, 0, None)],
        ]
        .concat();
        let (events, of_type) = story(&acts);
        assert_eq!(of_type, Some(TypeState::ScaledDown), "{:?}", names(&events));
        let ended: Vec<bool> = events.iter().flat_map(|event| lost_or_recovered(event)).map(|(_, lost)| lost).collect();
        assert_eq!(ended, [true, false]);
    }
}

#[test]
fn marker_of_an_earlier_process_does_not_excuse_a_kill_after_a_restart() {
    // With incarnations and without, and with a heartbeat after the marker.
    for (slot, late) in [(1, None), (0, None), (0, Some(0))] {
        let acts =
            [Act::Start(slot), Act::Leave(slot, 0, late), Act::Start(slot), Act::MonitorRestart(6), Act::Kill(slot)];
        let (events, of_type) = story(&acts);
        assert_eq!(lost(&events).len(), 1, "{:?}", names(&events));
        assert_eq!(of_type, Some(TypeState::Crashed));
    }
}

#[test]
fn marker_that_expires_after_one_reading_decides_the_exit() {
    let acts = [Act::Start(2), Act::Leave(2, 1, Some(0)), Act::Gap(26), Act::Gap(11)];
    let reported = of_world(&World::play(&acts));
    assert_eq!(reported.states.values().collect::<Vec<_>>(), [&ConsumerState::LeftWithWork]);
}

#[test]
fn replaced_loss_does_not_make_a_later_exit_a_crash() {
    // The replacement starts before or after the loss is decided.
    for replaced_after in [1, 10] {
        let acts = [
            vec![Act::Start(0), Act::Start(1)],
            wait(10),
            vec![Act::Kill(0)],
            wait(replaced_after),
            vec![Act::Start(2)],
            wait(10),
            vec![Act::Leave(1, 0, None), Act::Leave(2, 0, None)],
        ]
        .concat();
        let (events, of_type) = story(&acts);
        assert_eq!(lost(&events).len(), 1, "the loss itself is reported");
        assert_eq!(of_type, Some(TypeState::ScaledDown), "{:?}", names(&events));
    }
}

#[test]
fn replacement_counts_for_the_next_loss_if_the_first_consumer_returns() {
    // One stalls, another is killed, a third replaces it; the stalled one recovers.
    for (stalled, killed) in [(0, 1), (1, 0)] {
        let acts = [
            vec![Act::Start(0), Act::Start(1)],
            wait(10),
            vec![Act::Stall(stalled, 24), Act::Kill(killed)],
            wait(1),
            vec![Act::Start(2)],
            wait(12),
            vec![Act::Leave(stalled, 0, None), Act::Leave(2, 0, None)],
        ]
        .concat();
        let (events, of_type) = story(&acts);
        assert_eq!(lost(&events).len(), 2, "{:?}", names(&events));
        assert_eq!(of_type, Some(TypeState::ScaledDown), "{:?}", names(&events));
    }
}

#[test]
fn type_can_shut_down_gracefully_after_a_crash() {
    let acts = [
        vec![Act::Start(0), Act::Start(1)],
        wait(10),
        vec![Act::Kill(0), Act::Kill(1)],
        wait(10),
        vec![Act::Start(2)],
        wait(5),
        vec![Act::Leave(2, 0, None)],
    ]
    .concat();
    let (events, of_type) = story(&acts);
    assert_eq!(events.iter().filter(|event| is_crash(event)).count(), 1);
    assert_eq!(of_type, Some(TypeState::ScaledDown));
}

#[test]
fn late_heartbeat_after_the_marker_is_not_a_new_process() {
    for slot in [0, 1] {
        for late in 0..6 {
            let acts = [vec![Act::Start(slot)], wait(10), vec![Act::Leave(slot, 0, Some(late))]].concat();
            let (events, of_type) = story(&acts);
            assert_eq!(names(&events), ["scale_up", "scale_down"], "late by {late} s");
            assert_eq!(of_type, Some(TypeState::ScaledDown));
            // The same if only the next monitor sees it.
            let acts =
                [vec![Act::Start(slot)], wait(10), vec![Act::MonitorRestart(1), Act::Leave(slot, 0, Some(late))]];
            let (events, of_type) = story(&acts.concat());
            assert_eq!(names(&events), ["scale_up", "scale_down"], "late by {late} s");
            assert_eq!(of_type, Some(TypeState::ScaledDown));
        }
    }
}

#[test]
fn steps_of_redis_clock_do_not_lose_live_consumers() {
    for before in 0..10 {
        for by in [8, 40, 60, 3600, -40, -3600] {
            let mut acts = vec![Act::Start(0), Act::Start(1), Act::Start(2), Act::Start(3)];
            acts.extend(wait(10 + before));
            acts.push(Act::RedisClock(by));
            let (events, of_type) = story(&acts);
            assert_eq!(lost(&events), [], "a step by {by} s");
            assert_eq!(of_type, Some(TypeState::Alive));
        }
    }
}

#[test]
fn consumer_killed_while_redis_clock_steps_back_is_lost() {
    let acts = [vec![Act::Start(0)], wait(10), vec![Act::Kill(0), Act::RedisClock(-3600)]].concat();
    let (events, of_type) = story(&acts);
    assert_eq!(lost(&events), [Name::from("c0")]);
    assert_eq!(of_type, Some(TypeState::Crashed));
}

#[test]
fn unobserved_graceful_shutdown_is_not_a_crash() {
    let left = vec![Act::Leave(0, 0, None), Act::Leave(1, 0, None)];
    for blindness in [Act::MonitorRestart(80), Act::Gap(80)] {
        let blind_first = matches!(blindness, Act::MonitorRestart(_));
        let acts = vec![vec![Act::Start(0), Act::Start(1)], wait(15)];
        let then =
            if blind_first { vec![vec![blindness], left.clone()] } else { vec![vec![Act::Outage(90)], left.clone()] };
        let (events, of_type) = story(&[acts, then].concat().concat());
        assert_eq!(lost(&events), []);
        assert!(!events.iter().any(|event| is_crash(event)));
        assert_eq!(of_type, Some(TypeState::Unknown));
        let down = events.iter().find(|event| event.type_name() == "scale_down").unwrap();
        assert_eq!((&down.payload()["to"], &down.payload()["kind"]), (&0.into(), &"unknown".into()));
    }
}

#[test]
fn graceful_shutdown_with_a_just_expired_marker_is_not_a_crash() {
    for late in [None, Some(3)] {
        // Down for one tick longer than a marker lives: it expires at the time of the first reading.
        let acts = [vec![Act::Start(0)], wait(10), vec![Act::MonitorRestart(41), Act::Leave(0, 0, late)], wait(50)];
        let (events, of_type) = story(&acts.concat());
        assert_eq!(lost(&events), []);
        assert_eq!(of_type, Some(TypeState::Unknown));
    }
}

/// Returns a reading of given consumers.
fn by_hand(second: u64, consumers: &[(&str, Beat, MarkerReading, u64, u64)]) -> TickReadings {
    let world = World::at(second);
    let mut reading = world.reading(0);
    let streams = Arc::make_mut(reading.streams.as_mut().unwrap());
    let listed = consumers.iter().map(|(name, _, _, pending, idle_sec)| GroupConsumer {
        name: (*name).into(),
        pending: *pending,
        phantom_pending: 0,
        idle_ms: idle_sec * 1000,
        inactive_ms: None,
    });
    streams.streams.get_mut(&Name::from(STREAM)).unwrap().facts.as_mut().unwrap().groups[0].consumers =
        Some(listed.collect());
    let found = consumers.iter().map(|(name, beat, marker, ..)| {
        (Name::from(*name), BeatReading { beat: beat.clone(), marker: marker.clone() })
    });
    Arc::make_mut(reading.heartbeats.as_mut().unwrap()).consumers = [(STREAM.into(), found.collect())].into();
    reading
}

fn heartbeat(name: &str, second: u64, waiting: Option<u32>, progress: Option<u64>) -> Beat {
    Beat::Present(Arc::new(Heartbeat {
        stream: STREAM.into(),
        consumer: name.into(),
        started_at: 0.5,
        last_seen: second as f64,
        task_limit: 10,
        incarnation: None,
        in_flight: None,
        waiting,
        progress,
        draining: false,
    }))
}

#[test]
fn replacement_can_be_read_first_together_with_the_last_heartbeat() {
    // `a` writes its last heartbeat at 145; `b` is first read with it.
    let losses = |b_started: f64| {
        let mut tracker = super::fixtures::tracker_with_interval(30);
        let mut losses = (0, 0);
        for second in (30..400).step_by(30) {
            let a = if second > 150 { Beat::Absent } else { heartbeat("a", second.min(145), None, None) };
            let mut consumers = vec![("a", a, MarkerReading::Absent, 0, 0)];
            if second >= 150 {
                let Beat::Present(mut b) = heartbeat("b", second - 1, None, None) else { unreachable!() };
                Arc::make_mut(&mut b).started_at = b_started;
                consumers.push(("b", Beat::Present(b), MarkerReading::Absent, 0, 0));
            }
            let snapshot = tracker.advance(by_hand(second, &consumers)).unwrap().snapshot;
            let status = &snapshot.workers[STREAM.as_bytes()];
            losses = (status.lost, status.lost_open);
        }
        losses
    };
    assert_eq!(losses(147.0), (1, 0), "it replaces `a`");
    assert_eq!(losses(143.0), (1, 1), "it ran beside `a`");
}

#[test]
fn replacement_counts_if_the_monitor_restarts_before_the_loss_is_decided() {
    // `a` writes its last heartbeat at 100, the monitor restarts at 108.
    let losses = |b_started: u64| {
        let beat = |name: &str, started: u64, second: u64| {
            let Beat::Present(mut beat) = heartbeat(name, second, None, None) else { unreachable!() };
            let beat_mut = Arc::make_mut(&mut beat);
            (beat_mut.started_at, beat_mut.last_seen) = (1e6 + started as f64, 1e6 + second as f64);
            Beat::Present(beat)
        };
        let reading = |second: u64| {
            let a = if second > 114 { Beat::Absent } else { beat("a", 0, second.min(100)) };
            let mut consumers = vec![("a", a, MarkerReading::Absent, 0, 0)];
            if second >= b_started {
                consumers.push(("b", beat("b", b_started, second), MarkerReading::Absent, 0, 0));
            }
            by_hand(second, &consumers)
        };
        let mut first = tracker();
        for second in (3..=108).step_by(3) {
            first.advance(reading(second)).unwrap();
        }
        let record = saved(&first).unwrap();
        let (mut second_monitor, mut losses) = (tracker(), (0, 0));
        let begin = reading(117);
        restore(&mut second_monitor, &record, begin.now, begin.streams.as_ref().unwrap().redis_time);
        for second in (117..200).step_by(3) {
            let snapshot = second_monitor.advance(reading(second)).unwrap().snapshot;
            let status = &snapshot.workers[STREAM.as_bytes()];
            losses = (status.lost, status.lost_open);
        }
        losses
    };
    assert_eq!(losses(102), (1, 0), "it replaces `a`");
    assert_eq!(losses(60), (1, 1), "it ran beside `a`");
}

#[test]
fn suspect_state_ends_even_if_markers_are_never_read() {
    let last_state = |interval: u64, marker: fn(u64) -> MarkerReading, reads: fn(u64) -> bool| {
        let mut tracker = super::fixtures::tracker_with_interval(interval);
        let mut states = Vec::new();
        for second in (0..2000).filter(|second| second % interval == 0) {
            let beat = if second <= 250 { heartbeat("c", second, None, None) } else { Beat::Absent };
            let mut reading = by_hand(second, &[("c", beat, marker(second), 0, second.saturating_sub(260))]);
            if !reads(second) {
                reading.heartbeats = Err(SourceTrouble::new(TroubleKind::TimedOut, "late"));
            }
            let Some(advance) = tracker.advance(reading) else { continue };
            let status = &advance.snapshot.workers[STREAM.as_bytes()];
            states.push((status.consumers[0].state, status.state));
        }
        *states.last().unwrap()
    };
    let lost = (ConsumerState::Lost, TypeState::Crashed);
    let always = |_| true;
    // A poll interval longer than a marker lives; markers are read only for that long.
    assert_eq!(
        last_state(125, |at| if at < 500 { MarkerReading::Absent } else { MarkerReading::NotRead }, always),
        lost
    );
    // Redis is intermittently unreachable for longer than that, or twice.
    let flapping = |at: u64| !(252..600).contains(&at) || at.is_multiple_of(9);
    assert_eq!(last_state(3, |_| MarkerReading::Absent, flapping), lost);
    let twice = |at: u64| !((252..300).contains(&at) || (306..400).contains(&at));
    assert_eq!(last_state(3, |_| MarkerReading::Absent, twice), lost);
    // Markers are never read.
    let never = last_state(3, |_| MarkerReading::NotRead, always);
    assert_eq!(never, (ConsumerState::Unobserved, TypeState::Unknown));
}

#[test]
fn age_of_a_loss_survives_a_restart() {
    let acts = [vec![Act::Start(0), Act::Start(1)], wait(10), vec![Act::Kill(0)], wait(60)].concat();
    let world = World::play(&acts);
    let mut tracker = tracker();
    for (step, _) in &world.steps[..60] {
        if let Step::Read(reading) = step {
            tracker.advance((**reading).clone());
        }
    }
    let record = saved(&tracker).unwrap();
    let acts = [acts, vec![Act::MonitorRestart(2)], wait(10), vec![Act::Leave(1, 0, None)]].concat();
    let (events, of_type) = story(&acts);
    assert_eq!(lost(&events).len(), 1);
    assert_eq!(of_type, Some(TypeState::ScaledDown), "{record:?}");
}

#[test]
fn consumer_lost_before_a_restart_can_recover_after_it() {
    let acts = [
        vec![Act::Start(0), Act::Start(1)],
        wait(10),
        vec![Act::Stall(0, 60)],
        wait(10),
        vec![Act::MonitorRestart(2)],
        wait(20),
        vec![Act::Leave(0, 0, None), Act::Leave(1, 0, None)],
    ]
    .concat();
    let (events, of_type) = story(&acts);
    let ended: Vec<bool> = events.iter().flat_map(|event| lost_or_recovered(event)).map(|(_, lost)| lost).collect();
    assert_eq!(ended, [true, false]);
    assert_eq!(of_type, Some(TypeState::ScaledDown));
}

#[test]
fn unwatched_type_is_not_restored() {
    let mut first = tracker();
    first.advance(by_hand(3, &[("c", heartbeat("c", 3, None, None), MarkerReading::Absent, 0, 0)]));
    let record = saved(&first).unwrap();
    let mut excluding = super::fixtures::tracker_without(STREAM);
    restore(&mut excluding, &record, Mono(0), 1_000_003.0);
    assert_eq!(excluding.alive_types().count(), 0, "so that nothing is written down of it");
    assert!(excluding.record(&STREAM.into()).is_none());
}

#[test]
fn simultaneous_changes_have_one_event_each() {
    let mut tracker = tracker();
    let mut events = Vec::new();
    for second in (3..400).step_by(3) {
        let hangs = (60..120).contains(&second);
        let leaves = second > 200;
        let consumers = ["a", "b"].map(|name| {
            let marker = ShutdownMarker {
                stream: STREAM.into(),
                consumer: name.into(),
                signum: None,
                ts: 200.0,
                incarnation: None,
                in_flight: Some(2),
            };
            let marker = if leaves { MarkerReading::Present(Box::new(marker)) } else { MarkerReading::Absent };
            let beat = if leaves { Beat::Absent } else { heartbeat(name, second, None, None) };
            (name, beat, marker, 2, if hangs { second - 20 } else { 0 })
        });
        events.extend(tracker.advance(by_hand(second, &consumers)).unwrap().events);
    }
    for kind in ["consumer_hung", "consumer_recovered", "left_with_work"] {
        let of_kind: Vec<&Arc<Event>> = events.iter().filter(|event| event.type_name() == kind).collect();
        let keys: BTreeSet<&str> = of_kind.iter().map(|event| event.key.as_str()).collect();
        assert_eq!((of_kind.len(), keys.len()), (2, 2), "{kind}");
    }
}

#[test]
fn tasks_waiting_for_a_retry_are_not_hung() {
    let hangs = |waiting: Option<u32>, progress: Option<u64>| {
        let mut tracker = tracker();
        (3..200).step_by(3).any(|second| {
            let beat = heartbeat("c", second, waiting, progress);
            let reading = by_hand(second, &[("c", beat, MarkerReading::Absent, 3, second)]);
            let advance = tracker.advance(reading).unwrap();
            advance.events.iter().any(|event| event.type_name() == "consumer_hung")
        })
    };
    for progress in [None, Some(7)] {
        assert!(!hangs(Some(3), progress), "all that is pending waits");
        assert!(hangs(Some(2), progress), "one does not");
        assert!(hangs(None, progress));
    }
}

#[test]
fn late_heartbeat_does_not_interrupt_a_hang() {
    let mut tracker = tracker();
    let mut events = Vec::new();
    for second in (3..300).step_by(3) {
        // It also stalls with its heartbeat for a while.
        let beaten = if (90..105).contains(&second) { 90 } else { second };
        let idle = if second < 200 { second } else { 0 };
        let beat = heartbeat("c", beaten, None, None);
        events.extend(tracker.advance(by_hand(second, &[("c", beat, MarkerReading::Absent, 1, idle)])).unwrap().events);
    }
    assert_eq!(names(&events), ["scale_up", "consumer_hung", "consumer_recovered"]);
}

/// The worst case: killed right after it wrote its heartbeat.
#[test]
fn crash_is_detected_within_20_s() {
    for phase in 0..30 {
        let acts = [vec![Act::Start(0)], wait(11 + phase), vec![Act::Kill(0)]].concat();
        let killed = (acts.len() as u64 - 1) * TICK_SEC;
        let reported = of_world(&World::play(&acts));
        let seen = reported.events.iter().position(|events| !lost(events).is_empty()).expect("the crash is seen");
        let took = (seen as u64 + 1) * TICK_SEC - killed;
        assert!(took <= 20, "seen after {took} s");
    }
}

#[test]
fn type_at_zero_is_crashed_only_if_a_consumer_was_lost() {
    let of_type = |last: [Act; 2]| {
        let [a, b] = last;
        let acts = [vec![Act::Start(0), Act::Start(1)], wait(10), vec![a, Act::Wait, b]].concat();
        story(&acts).1
    };
    let leave = |slot| Act::Leave(slot, 0, None);
    assert_eq!(of_type([leave(0), leave(1)]), Some(TypeState::ScaledDown));
    assert_eq!(of_type([Act::Kill(0), leave(1)]), Some(TypeState::Crashed));
    assert_eq!(of_type([leave(0), Act::Kill(1)]), Some(TypeState::Crashed));
    assert_eq!(of_type([leave(0), Act::Wait]), Some(TypeState::Alive));
}

#[test]
fn marker_of_another_consumer_does_not_excuse_a_kill() {
    for (at, killed_at) in [(0, 5), (5, 0), (3, 3), (10, 12), (12, 10)] {
        let mut alone = [vec![Act::Start(0), Act::Wait], wait(20)].concat();
        alone[2 + killed_at] = Act::Kill(0);
        let mut both = alone.clone();
        both[1] = Act::Start(1);
        if at != killed_at {
            both[2 + at] = Act::Leave(1, 0, None);
        }
        let when =
            |acts: &[Act]| of_world(&World::play(acts)).events.iter().position(|e| lost(e) == [Name::from("c0")]);
        assert!(when(&alone).is_some());
        assert_eq!(when(&alone), when(&both));
    }
}

#[test]
fn restored_state_is_not_reported_again() {
    let acts = [vec![Act::Start(0), Act::Start(1)], wait(10), vec![Act::MonitorRestart(1)], wait(10)].concat();
    let (events, _) = story(&acts);
    assert_eq!(names(&events), ["scale_up", "scale_up"]);
}

#[test]
fn recent_record_of_the_older_monitor_becomes_one_crash() {
    let record =
        r#"{"state":"alive","last_alive":3,"state_changed_at":1.5,"last_seen_alive":2.5,"consumers":{},"losses":[]}"#;
    for (restored_at, how) in [(12.5, "crashed"), (1000.0, "unknown")] {
        let mut tracker = tracker();
        restore(&mut tracker, &serde_json::from_str(record).unwrap(), Mono(0), restored_at);
        let steps = World::play(&wait(10)).steps;
        let mut events = Vec::new();
        for (step, _) in steps {
            if let Step::Read(reading) = step {
                events.extend(tracker.advance(*reading).unwrap().events);
            }
        }
        assert_eq!(names(&events), ["scale_down"]);
        let payload = events[0].payload();
        assert_eq!((&payload["from"], &payload["to"], &payload["kind"]), (&3.into(), &0.into(), &how.into()));
    }
}

#[test]
fn records_of_earlier_versions_are_readable() {
    let record: WorkerStateRecord =
        serde_json::from_str(r#"{"state":"alive","last_alive":2,"consumers":{"a":1.5},"losses":[2.5]}"#).unwrap();
    assert_eq!((record.consumers["a"].since, record.losses[0].at), (1.5, 2.5));
    assert_eq!(serde_json::from_value::<WorkerStateRecord>(serde_json::to_value(&record).unwrap()).unwrap(), record);
}
