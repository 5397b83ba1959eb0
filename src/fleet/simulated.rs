//! The workers of a simulated world: what they write in Redis, what a monitor reads of it, and the truth about them. The
//! tracker's properties and the simulation run on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::reading::{
    Beat, BeatReading, GroupConsumer, GroupReading, HeartbeatsReading, Lag, MarkerReading, RedisServer, StreamFacts,
    StreamReading, StreamsReading,
};
use crate::contract::{Heartbeat, Name, ShutdownMarker};

/// Monitors that read.
pub(crate) const MONITORS: usize = 2;
/// The true time when a world begins, Unix seconds.
pub(crate) const BEGINS: f64 = 1_795_000_000.0;

/// A marker that was written since the last good reading is surely read if that is no longer ago, seconds.
const SURELY_SEEN: f64 = 100.0;

/// How a process ended, or not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Runs,
    Killed { at: u64 },
    Left { at: u64, with_work: bool },
}

/// The keys of workers in Redis, each with the time by Redis' clock at which it expires.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    heartbeats: BTreeMap<Name, (f64, Arc<Heartbeat>)>,
    markers: BTreeMap<Name, (f64, ShutdownMarker)>,
}

impl Keys {
    /// It is `time` by Redis' clock.
    pub(crate) fn expire(&mut self, time: f64) {
        self.heartbeats.retain(|_, (expires, _)| *expires > time);
        self.markers.retain(|_, (expires, _)| *expires > time);
    }
}

/// A worker process. Times are seconds of true time since the world began.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) stream: Name,
    pub(crate) name: Name,
    pub(crate) slot: usize,
    pub(crate) started: u64,
    pub(crate) fate: Fate,
    stalled_until: u64,
    hung_until: u64,
    /// When it stood still or was killed: it may be called lost from then on.
    pub(crate) silences: Vec<(u64, u64)>,
    /// Asked to leave while it stood still.
    leaves: Option<(u64, Option<u64>)>,
    late_beat: Option<u64>,
    pending: u64,
    /// Redis' clock when it last asked for anything.
    active: f64,
    last_beat: Option<Arc<Heartbeat>>,
    /// When it last wrote a heartbeat.
    pub(crate) beat_at: u64,
    /// By monitor: a good reading held its heartbeat.
    pub(crate) seen: [bool; MONITORS],
    /// By monitor: its evidence was lost, or expired while that monitor could not read it.
    pub(crate) unclear: [bool; MONITORS],
    /// Redis lost the evidence of how it ended.
    pub(crate) evidence_lost: bool,
    /// By monitor: it watched for long enough after the end to conclude how that was, and to write it down.
    pub(crate) settled: [bool; MONITORS],
}

impl Process {
    pub(crate) fn runs(&self) -> bool {
        self.fate == Fate::Runs
    }

    fn ended(&self) -> Option<u64> {
        match self.fate {
            Fate::Runs => None,
            Fate::Killed { at } | Fate::Left { at, .. } => Some(at),
        }
    }

    pub(crate) fn is_well(&self, second: u64) -> bool {
        self.runs() && self.stalled_until <= second
    }

    /// The library's workers say which process they are, and what they leave behind; Python's do not.
    fn incarnation(&self) -> Option<String> {
        (self.slot % 2 == 1).then(|| format!("{}-{}", self.name, self.started))
    }
}

/// A monitor that reads.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    /// Which.
    pub(crate) machine: usize,
    /// Seconds between two ticks.
    pub(crate) interval: u64,
    /// The worker type that it does not watch.
    pub(crate) excludes: Option<Name>,
}

/// The fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The streams that workers serve.
    pub(crate) streams: Vec<Name>,
    pub(crate) processes: Vec<Process>,
    /// By monitor: true time and Redis' time of its last good reading.
    last_good: [Option<(u64, f64)>; MONITORS],
    /// By monitor: how far Redis' clock was stepped forward since then, seconds. Steps back may hide it.
    stepped_forward: [f64; MONITORS],
    /// By monitor: since when it reads every tick and Redis takes what it writes, true time.
    watches_since: [Option<u64>; MONITORS],
    pub(crate) lengths: BTreeMap<Name, u64>,
}

/// The last process of each consumer name.
pub(crate) fn latest(processes: &[Process]) -> BTreeMap<Name, &Process> {
    processes.iter().map(|p| (p.name.clone(), p)).collect()
}

impl Fleet {
    /// Without workers yet; they will serve these streams.
    pub(crate) fn of(streams: Vec<Name>) -> Self {
        Self {
            streams,
            processes: Vec::new(),
            last_good: Default::default(),
            stepped_forward: Default::default(),
            watches_since: Default::default(),
            lengths: BTreeMap::new(),
        }
    }

    fn running(&self, slot: usize) -> Option<usize> {
        self.processes.iter().rposition(|p| p.slot == slot && p.runs())
    }

    pub(crate) fn start(&mut self, slot: usize, second: u64, time: f64, keys: &mut Keys) {
        if self.running(slot).is_some() {
            return;
        }
        let generation = self.processes.iter().filter(|p| p.slot == slot).count();
        // The first two always have the same consumer name.
        let name = if slot < 2 { format!("c{slot}") } else { format!("c{slot}-{generation}") };
        self.processes.push(Process {
            stream: self.streams[(slot / 2) % self.streams.len()].clone(),
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
            active: time,
            last_beat: None,
            beat_at: second,
            seen: [false; MONITORS],
            unclear: [false; MONITORS],
            evidence_lost: false,
            settled: [false; MONITORS],
        });
        self.beat(self.processes.len() - 1, second, time, keys);
    }

    pub(crate) fn kill(&mut self, slot: usize, second: u64) {
        if let Some(n) = self.running(slot) {
            let p = &mut self.processes[n];
            p.fate = Fate::Killed { at: second };
            p.silences.push((p.beat_at, u64::MAX));
        }
    }

    /// Shuts down gracefully, at once or as soon as it goes on: with so many pending entries, and one more heartbeat so many
    /// seconds later.
    pub(crate) fn leave(&mut self, slot: usize, how: (u64, Option<u64>), second: u64, time: f64, keys: &mut Keys) {
        let Some(n) = self.running(slot) else { return };
        if self.processes[n].is_well(second) {
            self.leaves(n, how, second, time, keys);
        } else {
            self.processes[n].leaves = Some(how);
        }
    }

    pub(crate) fn stall(&mut self, slot: usize, seconds: u64, second: u64) {
        if let Some(n) = self.running(slot).filter(|n| self.processes[*n].is_well(second)) {
            let p = &mut self.processes[n];
            p.stalled_until = second + seconds;
            p.silences.push((p.beat_at, p.stalled_until));
        }
    }

    pub(crate) fn hang(&mut self, slot: usize, seconds: u64, second: u64) {
        if let Some(n) = self.running(slot).filter(|n| self.processes[*n].is_well(second)) {
            (self.processes[n].hung_until, self.processes[n].pending) = (second + seconds, 1);
        }
    }

    /// Redis lost its data: how who is gone went cannot be known any more.
    pub(crate) fn evidence_is_lost(&mut self) {
        for p in self.processes.iter_mut().filter(|p| !p.runs() || p.late_beat.is_some()) {
            (p.unclear, p.evidence_lost) = ([true; MONITORS], true);
        }
        // So it lost what was concluded.
        self.processes.iter_mut().for_each(|p| p.settled = [false; MONITORS]);
    }

    /// Redis' clock is stepped by so many seconds.
    pub(crate) fn redis_clock_steps(&mut self, by: f64) {
        self.stepped_forward.iter_mut().for_each(|forward| *forward += by.max(0.0));
    }

    /// Redis' clock is stepped: how those went whose markers are there cannot be known any more by who was not looking.
    pub(crate) fn markers_may_expire_early(&mut self, second: u64) {
        for p in self.processes.iter_mut().filter(|p| p.ended().is_some_and(|at| second < at + 120)) {
            p.evidence_lost = true;
        }
    }

    /// A monitor does not see or write for a moment.
    pub(crate) fn is_interrupted(&mut self, monitor: usize) {
        self.watches_since[monitor] = None;
    }

    fn leaves(&mut self, n: usize, (left, late): (u64, Option<u64>), second: u64, time: f64, keys: &mut Keys) {
        let p = &mut self.processes[n];
        (p.fate, p.pending) = (Fate::Left { at: second, with_work: left > 0 }, left);
        p.late_beat = late.map(|after| second + after);
        let marker = ShutdownMarker {
            stream: p.stream.clone(),
            consumer: p.name.clone(),
            signum: Some(15),
            // Not before its start, if that was in this second.
            ts: BEGINS + (second as f64 + 0.75).max(p.started as f64 + 0.92),
            incarnation: p.incarnation(),
            in_flight: p.incarnation().map(|_| left as u32),
        };
        keys.heartbeats.remove(&p.name);
        keys.markers.insert(p.name.clone(), (time + 120.0, marker));
    }

    fn beat(&mut self, n: usize, second: u64, time: f64, keys: &mut Keys) {
        let p = &mut self.processes[n];
        let beat = Arc::new(Heartbeat {
            stream: p.stream.clone(),
            consumer: p.name.clone(),
            started_at: BEGINS + p.started as f64 + 0.9,
            last_seen: BEGINS + second as f64 + 0.95,
            task_limit: 1,
            incarnation: p.incarnation().map(Into::into),
            in_flight: None,
            waiting: None,
            progress: None,
            draining: false,
        });
        (p.last_beat, p.beat_at) = (Some(Arc::clone(&beat)), second);
        keys.heartbeats.insert(p.name.clone(), (time + 15.0, beat));
    }

    /// Workers do what they do every second. What Redis does not take is not written.
    pub(crate) fn pass_a_second(&mut self, second: u64, time: f64, takes: bool, keys: &mut Keys) {
        for n in 0..self.processes.len() {
            let p = &mut self.processes[n];
            if p.late_beat.take_if(|at| *at <= second).is_some() {
                // Not after a new process of that name wrote its own.
                if takes && !keys.heartbeats.contains_key(&self.processes[n].name) {
                    self.beat(n, second, time, keys);
                }
                continue;
            }
            if !p.is_well(second) {
                continue;
            }
            if takes && let Some(how) = self.processes[n].leaves.take() {
                self.leaves(n, how, second, time, keys);
                continue;
            }
            let p = &mut self.processes[n];
            if p.hung_until <= second {
                (p.active, p.pending) = (time, 0);
            }
            if second - p.beat_at >= 5 {
                if takes {
                    self.beat(n, second, time, keys);
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
    pub(crate) fn is_read_by(&mut self, monitor: &Reader, second: u64, time: f64, keys: &Keys) {
        let Reader { machine: monitor, interval, excludes } = monitor.clone();
        let (last, last_by_redis) = self.last_good[monitor].replace((second, time)).unwrap_or((second, time));
        let by_redis = time - last_by_redis;
        let forward = (second - last) as f64 + std::mem::take(&mut self.stepped_forward[monitor]);
        let blind = forward > SURELY_SEEN || !(0.0..=SURELY_SEEN).contains(&by_redis);
        if second - last > 2 * interval + 2 {
            self.is_interrupted(monitor);
        }
        let since = *self.watches_since[monitor].get_or_insert(second);
        for p in self.processes.iter_mut().filter(|p| excludes.as_ref() != Some(&p.stream)) {
            // Until its marker expires, with time to settle and for some ticks.
            if let Some(ended) = p.ended() {
                let concluded = since.max(ended) + 30 + 3 * interval;
                p.settled[monitor] |= (concluded..ended + 105).contains(&second);
            }
            let is_there = p.last_beat.as_ref().is_some_and(|beat| {
                keys.heartbeats.get(&p.name).is_some_and(|(_, found)| found.same_incarnation(beat))
            });
            p.seen[monitor] |= is_there;
            p.unclear[monitor] |= blind && !p.is_well(second);
        }
    }

    /// The last process of each consumer name.
    pub(crate) fn latest(&self) -> BTreeMap<Name, &Process> {
        latest(&self.processes)
    }

    /// What a monitor reads of the streams but `excludes`, of the server `run`.
    pub(crate) fn read_streams(&self, excludes: Option<&Name>, time: f64, run: u64) -> StreamsReading {
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
        let watched = self.streams.iter().filter(|stream| Some(*stream) != excludes);
        let of_workers = watched.map(|stream| (stream.clone(), read(stream)));
        let others = self.lengths.iter().filter(|(name, _)| !self.streams.contains(name)).map(|(name, length)| {
            (
                name.clone(),
                StreamReading { facts: Ok(StreamFacts { exists: true, length: *length, groups: Vec::new() }) },
            )
        });
        StreamsReading {
            redis_time: time,
            server: RedisServer { run_id: run.to_string(), ..RedisServer::default() },
            streams: of_workers.chain(others).collect(),
            failures: None,
        }
    }

    /// What a monitor reads of the workers' keys, but of those of `excludes`.
    pub(crate) fn read_heartbeats(&self, excludes: Option<&Name>, keys: &Keys) -> HeartbeatsReading {
        let mut consumers: BTreeMap<Name, Vec<(Name, BeatReading)>> = BTreeMap::new();
        let watched = self.processes.iter().filter(|p| Some(&p.stream) != excludes);
        let names: BTreeSet<(&Name, &Name)> = watched.map(|p| (&p.stream, &p.name)).collect();
        for (stream, name) in names {
            let beat = keys.heartbeats.get(name).map_or(Beat::Absent, |(_, beat)| Beat::Present(Arc::clone(beat)));
            let marker = keys.markers.get(name);
            let marker =
                marker.map_or(MarkerReading::Absent, |(_, marker)| MarkerReading::Present(Box::new(marker.clone())));
            consumers.entry(stream.clone()).or_default().push((name.clone(), BeatReading { beat, marker }));
        }
        HeartbeatsReading { consumers: consumers.into_iter().collect(), unreadable: Vec::new() }
    }
}
