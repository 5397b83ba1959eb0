//! The workers of a simulated world: what they write in Redis, what a monitor reads of it, and the truth about them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::scenario::MONITORS;
use super::servers::Redis;
use super::world::BEGINS;
use crate::contract::{Heartbeat, Name, ShutdownMarker};
use crate::fleet::reading::{
    Beat, BeatReading, GroupConsumer, GroupReading, HeartbeatsReading, Lag, MarkerReading, RedisServer, StreamFacts,
    StreamReading, StreamsReading,
};

/// A marker that was written since the last good reading is surely read if that is no longer ago, seconds.
const SURELY_SEEN: f64 = 100.0;

/// How a process ended, or not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Runs,
    Killed { at: u64 },
    Left { at: u64, with_work: bool },
}

/// A worker process. Times are seconds of true time since the world began.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) stream: Name,
    pub(super) name: Name,
    pub(super) slot: usize,
    pub(super) started: u64,
    pub(super) fate: Fate,
    stalled_until: u64,
    hung_until: u64,
    /// When it stood still or was killed: it may be called lost from then on.
    pub(super) silences: Vec<(u64, u64)>,
    /// Asked to leave while it stood still.
    leaves: Option<(u64, Option<u64>)>,
    late_beat: Option<u64>,
    pending: u64,
    /// Redis' clock when it last asked for anything.
    active: f64,
    last_beat: Option<Arc<Heartbeat>>,
    beat_at: u64,
    /// By monitor: a good reading held its heartbeat.
    pub(super) seen: [bool; MONITORS],
    /// By monitor: its evidence was lost, or expired while that monitor could not read it.
    pub(super) unclear: [bool; MONITORS],
}

impl Process {
    pub(super) fn runs(&self) -> bool {
        self.fate == Fate::Runs
    }

    fn is_well(&self, second: u64) -> bool {
        self.runs() && self.stalled_until <= second
    }

    /// The library's workers say which process they are, and what they leave behind; Python's do not.
    fn incarnation(&self) -> Option<String> {
        (self.slot % 2 == 1).then(|| format!("{}-{}", self.name, self.started))
    }
}

/// The fleet.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub(super) processes: Vec<Process>,
    /// By monitor: true time and Redis' time of its last good reading.
    last_good: [Option<(u64, f64)>; MONITORS],
    pub(super) lengths: BTreeMap<Name, u64>,
}

/// The streams that workers serve. One has a name that no index takes.
pub(super) fn streams() -> [Name; 2] {
    ["arax".into(), format!("long-{}", "x".repeat(3000)).as_str().into()]
}

impl Fleet {
    fn running(&self, slot: usize) -> Option<usize> {
        self.processes.iter().rposition(|p| p.slot == slot && p.runs())
    }

    pub(super) fn start(&mut self, slot: usize, second: u64, redis: &mut Redis) {
        if self.running(slot).is_some() {
            return;
        }
        let generation = self.processes.iter().filter(|p| p.slot == slot).count();
        // The first two always have the same consumer name.
        let name = if slot < 2 { format!("c{slot}") } else { format!("c{slot}-{generation}") };
        self.processes.push(Process {
            stream: streams()[(slot / 2) % 2].clone(),
            name: name.as_str().into(),
            slot,
            started: second,
            fate: Fate::Runs,
            stalled_until: 0,
            hung_until: 0,
            silences: Vec::new(),
            leaves: None,
            late_beat: None,
            pending: 0,
            active: redis.time(second * 1000),
            last_beat: None,
            beat_at: second,
            seen: [false; MONITORS],
            unclear: [false; MONITORS],
        });
        self.beat(self.processes.len() - 1, second, redis);
    }

    pub(super) fn kill(&mut self, slot: usize, second: u64) {
        if let Some(n) = self.running(slot) {
            let p = &mut self.processes[n];
            p.fate = Fate::Killed { at: second };
            p.silences.push((p.beat_at, u64::MAX));
        }
    }

    pub(super) fn leave(&mut self, slot: usize, left: u64, late: Option<u64>, second: u64, redis: &mut Redis) {
        let Some(n) = self.running(slot) else { return };
        if self.processes[n].is_well(second) {
            self.leaves(n, left, late, second, redis);
        } else {
            self.processes[n].leaves = Some((left, late));
        }
    }

    pub(super) fn stall(&mut self, slot: usize, seconds: u64, second: u64) {
        if let Some(n) = self.running(slot).filter(|n| self.processes[*n].is_well(second)) {
            let p = &mut self.processes[n];
            p.stalled_until = second + seconds;
            p.silences.push((p.beat_at, p.stalled_until));
        }
    }

    pub(super) fn hang(&mut self, slot: usize, seconds: u64, second: u64) {
        if let Some(n) = self.running(slot).filter(|n| self.processes[*n].is_well(second)) {
            (self.processes[n].hung_until, self.processes[n].pending) = (second + seconds, 1);
        }
    }

    /// Redis lost its data: how who is gone went cannot be known any more.
    pub(super) fn evidence_is_lost(&mut self) {
        for p in self.processes.iter_mut().filter(|p| !p.runs() || p.late_beat.is_some()) {
            p.unclear = [true; MONITORS];
        }
    }

    fn leaves(&mut self, n: usize, left: u64, late: Option<u64>, second: u64, redis: &mut Redis) {
        let p = &mut self.processes[n];
        (p.fate, p.pending) = (Fate::Left { at: second, with_work: left > 0 }, left);
        p.late_beat = late.map(|after| second + after);
        let marker = ShutdownMarker {
            stream: p.stream.clone(),
            consumer: p.name.clone(),
            signum: Some(15),
            ts: BEGINS + second as f64 + 0.75,
            incarnation: p.incarnation(),
            in_flight: p.incarnation().map(|_| left as u32),
        };
        redis.beats.remove(&p.name);
        redis.markers.insert(p.name.clone(), (redis.time(second * 1000) + 120.0, marker));
    }

    fn beat(&mut self, n: usize, second: u64, redis: &mut Redis) {
        let p = &mut self.processes[n];
        let beat = Arc::new(Heartbeat {
            stream: p.stream.clone(),
            consumer: p.name.clone(),
            started_at: BEGINS + p.started as f64 + 0.5,
            last_seen: BEGINS + second as f64 + 0.8,
            task_limit: 1,
            incarnation: p.incarnation().map(Into::into),
            in_flight: None,
            waiting: None,
            progress: None,
            draining: false,
        });
        (p.last_beat, p.beat_at) = (Some(Arc::clone(&beat)), second);
        redis.beats.insert(p.name.clone(), (redis.time(second * 1000) + 15.0, beat));
    }

    /// Workers do what they do every second. What Redis does not take is not written.
    pub(super) fn pass_a_second(&mut self, second: u64, redis: &mut Redis) {
        let takes = redis.is_up(second * 1000) && redis.takes(second * 1000).is_ok();
        for n in 0..self.processes.len() {
            let p = &mut self.processes[n];
            if p.late_beat.take_if(|at| *at <= second).is_some() {
                // Not after a new process of that name wrote its own.
                if takes && !redis.beats.contains_key(&self.processes[n].name) {
                    self.beat(n, second, redis);
                }
                continue;
            }
            if !p.is_well(second) {
                continue;
            }
            if takes && let Some((left, late)) = self.processes[n].leaves.take() {
                self.leaves(n, left, late, second, redis);
                continue;
            }
            let p = &mut self.processes[n];
            if p.hung_until <= second {
                (p.active, p.pending) = (redis.time(second * 1000), 0);
            }
            if second - p.beat_at >= 5 {
                if takes {
                    self.beat(n, second, redis);
                } else {
                    // Nothing shows that it lives.
                    match p.silences.last_mut() {
                        Some((_, to)) if *to == second => *to = second + 1,
                        _ => p.silences.push((p.beat_at, second + 1)),
                    }
                }
            }
        }
    }

    /// Notes what a good reading of a monitor shows, and what it cannot show any more.
    pub(super) fn is_read_by(&mut self, monitor: usize, second: u64, redis: &Redis) {
        let time = redis.time(second * 1000);
        let (last, last_by_redis) = self.last_good[monitor].replace((second, time)).unwrap_or((second, time));
        let by_redis = time - last_by_redis;
        let blind = (second - last) as f64 > SURELY_SEEN || !(0.0..=SURELY_SEEN).contains(&by_redis);
        for p in &mut self.processes {
            let is_there = p
                .last_beat
                .as_ref()
                .is_some_and(|beat| redis.beats.get(&p.name).is_some_and(|(_, found)| found.same_incarnation(beat)));
            p.seen[monitor] |= is_there;
            p.unclear[monitor] |= blind && !p.is_well(second);
        }
    }

    /// The last process of each consumer name.
    pub(super) fn latest(&self) -> BTreeMap<Name, &Process> {
        self.processes.iter().map(|p| (p.name.clone(), p)).collect()
    }

    pub(super) fn streams(&self, now: u64, redis: &Redis) -> StreamsReading {
        let time = redis.time(now);
        let latest = self.latest();
        let read = |stream: &Name| {
            let consumers = latest.values().filter(|p| p.stream == *stream).map(|p| GroupConsumer {
                name: p.name.clone(),
                pending: p.pending,
                phantom_pending: 0,
                idle_ms: ((time - p.active) * 1000.0).max(0.0) as u64,
                inactive_ms: None,
            });
            let group = GroupReading {
                name: "consumer".into(),
                pending: 0,
                phantom_pending: 0,
                phantom_at_least: false,
                lag: Lag::Reported(0),
                entries_read: Some(0),
                last_delivered_id: "0-0".to_owned(),
                oldest_undelivered_ms: None,
                consumers: Some(consumers.collect()),
            };
            let length = self.lengths.get(stream).copied().unwrap_or(0);
            StreamReading { facts: Ok(StreamFacts { exists: true, length, groups: vec![group] }) }
        };
        let of_workers = streams().into_iter().map(|stream| (stream.clone(), read(&stream)));
        let others = self.lengths.iter().filter(|(name, _)| !streams().contains(name)).map(|(name, length)| {
            (
                name.clone(),
                StreamReading { facts: Ok(StreamFacts { exists: true, length: *length, groups: Vec::new() }) },
            )
        });
        StreamsReading {
            redis_time: time,
            server: RedisServer { run_id: redis.run.to_string(), ..RedisServer::default() },
            streams: of_workers.chain(others).collect(),
            failures: None,
        }
    }

    pub(super) fn heartbeats(&self, redis: &Redis) -> HeartbeatsReading {
        let mut consumers: BTreeMap<Name, Vec<(Name, BeatReading)>> = BTreeMap::new();
        let names: BTreeSet<(&Name, &Name)> = self.processes.iter().map(|p| (&p.stream, &p.name)).collect();
        for (stream, name) in names {
            let beat = redis.beats.get(name).map_or(Beat::Absent, |(_, beat)| Beat::Present(Arc::clone(beat)));
            let marker = redis.markers.get(name);
            let marker =
                marker.map_or(MarkerReading::Absent, |(_, marker)| MarkerReading::Present(Box::new(marker.clone())));
            consumers.entry(stream.clone()).or_default().push((name.clone(), BeatReading { beat, marker }));
        }
        HeartbeatsReading { consumers: consumers.into_iter().collect(), unreadable: Vec::new() }
    }
}
