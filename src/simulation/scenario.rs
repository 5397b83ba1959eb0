//! The events of a simulated world: generated from a seed, read from a file, or shrunk.

use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::fleet::simulated::MONITORS;

/// Maximum number of workers; the type of each is its number modulo the number of types.
pub(super) const SLOTS: usize = 6;

/// An event. Durations in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Act {
    /// Starts a worker.
    Start(usize),
    /// Kills a worker.
    Kill(usize),
    /// Shuts a worker down gracefully: number of pending entries, and seconds until one more heartbeat.
    Leave(usize, u64, Option<u64>),
    /// Stops a worker temporarily.
    Stall(usize, u64),
    /// A worker's task makes no progress, while its heartbeats continue.
    Hang(usize, u64),
    /// Kills a monitor, which restarts after this time.
    MonitorKill(usize, u64),
    /// Pauses a monitor (SIGSTOP, suspended machine).
    MonitorPause(usize, u64),
    /// Steps the wall clock of a monitor's machine.
    MonitorClock(usize, i64),
    /// Steps Redis' clock.
    RedisClock(i64),
    /// Redis refuses connections.
    RedisOutage(u64),
    /// Redis restarts without its data.
    RedisRestartEmpty,
    /// Redis rejects writes (`maxmemory`).
    RedisFull(u64),
    /// Redis is intermittently unreachable.
    RedisFlaps(u64),
    /// Postgres refuses connections.
    PostgresOutage(u64),
    /// Postgres rejects writes (disk full).
    PostgresFull(u64),
    /// Replies of both servers are lost.
    Flaky(u64),
    /// One monitor cannot reach Redis.
    CutFromRedis(usize, u64),
    /// One monitor cannot reach Postgres.
    CutFromPostgres(usize, u64),
    /// The disk of a monitor is full.
    DiskFull(usize, u64),
    /// Sets the answers of the notification channel.
    Channel(ChannelMode),
    /// The length of a stream crosses the limit of a rule, upwards or downwards.
    Length(usize, bool),
    /// Several new streams exceed the limit of a critical rule for some seconds.
    Storm(usize, u64),
    /// Silences the length rule.
    Silence(u64),
    /// Replaces the rules file by a variant.
    Rules(usize),
    /// Restarts a monitor with a setting that excludes the second worker type.
    Exclude(usize),
    /// The query for a figure of the database fails; others succeed.
    ProbeFails(u64),
}

impl Act {
    /// Returns whether one monitor observes less than another because of it.
    pub(super) fn blinds_a_monitor(&self) -> bool {
        matches!(
            self,
            Self::MonitorKill(..)
                | Self::MonitorPause(..)
                | Self::CutFromRedis(..)
                | Self::Flaky(_)
                | Self::RedisFlaps(_)
                | Self::RedisOutage(_)
                | Self::RedisClock(_)
                | Self::Exclude(_)
        )
    }

    /// Returns for how many seconds a monitor may detect changes late, or fail to record them.
    pub(super) fn delays_conclusions_for(&self) -> Option<u64> {
        match self {
            Self::MonitorKill(_, seconds)
            | Self::MonitorPause(_, seconds)
            | Self::CutFromRedis(_, seconds)
            | Self::Flaky(seconds)
            | Self::RedisFlaps(seconds)
            | Self::RedisOutage(seconds)
            | Self::RedisFull(seconds) => Some(*seconds),
            Self::RedisClock(_) | Self::RedisRestartEmpty | Self::Exclude(_) => Some(1),
            _ => None,
        }
    }

    /// Returns whether it may cause a change of leader.
    pub(super) fn may_change_leader(&self) -> bool {
        !matches!(
            self,
            Self::Start(_)
                | Self::Kill(_)
                | Self::Leave(..)
                | Self::Stall(..)
                | Self::Hang(..)
                | Self::Length(..)
                | Self::Storm(..)
                | Self::Silence(_)
                | Self::Rules(_)
                | Self::Channel(_)
                | Self::ProbeFails(_)
                | Self::DiskFull(..)
                | Self::PostgresOutage(_)
                | Self::PostgresFull(_)
        )
    }
}

/// Answers of a notification channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ChannelMode {
    /// Accepts everything.
    Takes,
    /// 500: retry.
    Fails,
    /// Accepts the notification, but the answer is lost.
    LosesAnswers,
    /// Accepts the notification after twenty seconds.
    Slow,
    /// 404: the channel does not exist.
    Broken,
}

/// A simulated world; determines the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Scenario {
    /// Seed of latencies, lost replies and the order of tasks.
    pub(super) seed: u64,
    /// Initial offset of the clock of the second monitor's machine, seconds.
    pub(super) ahead: i64,
    /// Poll interval of the monitors, seconds.
    pub(super) interval: u64,
    /// Events, each with the seconds before it.
    pub(super) acts: Vec<(u64, Act)>,
}

impl Scenario {
    /// Returns the scenario of a seed.
    pub(super) fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let ahead = if random.one_in(6) { random.between(0, 14_400) as i64 - 7_200 } else { 0 };
        let interval = if random.one_in(8) { [1, 10, 30, 125][random.below(4)] } else { 3 };
        // Most worlds use few kinds of events, so that combinations of one kind are frequent.
        let kinds: Vec<bool> = (0..KINDS).map(|_| random.one_in(3)).collect();
        let mut acts = Vec::new();
        for slot in 0..random.between(2, SLOTS as u64 + 1) as usize {
            acts.push((random.between(0, 3), Act::Start(slot)));
        }
        acts.push((20, Act::Start(0)));
        for _ in 0..random.between(4, 40) {
            let wait = if random.one_in(5) { random.between(0, 150) } else { random.between(0, 12) };
            let mut episode = loop {
                let kind = random.below(KINDS);
                if kind < FLEET_KINDS || kinds[kind] {
                    break episode(kind, &mut random);
                }
            };
            episode[0].0 = wait;
            acts.extend(episode);
        }
        Self { seed, ahead, interval, acts }
    }

    /// Returns smaller scenarios that may fail in the same way: without some events, or without a wait.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        let mut run = self.acts.len() / 2;
        while run > 0 {
            for from in (0..self.acts.len()).step_by(run) {
                let mut acts = self.acts.clone();
                let to = (from + run).min(acts.len());
                acts.drain(from..to);
                smaller.push(Self { acts, ..self.clone() });
            }
            run /= 2;
        }
        for n in 0..self.acts.len() {
            if self.acts[n].0 > 3 {
                let mut acts = self.acts.clone();
                acts[n].0 /= 2;
                smaller.push(Self { acts, ..self.clone() });
            }
        }
        if self.ahead != 0 {
            smaller.push(Self { ahead: 0, ..self.clone() });
        }
        smaller
    }
}

/// Number of kinds of events and episodes; the first ones occur in every world.
const KINDS: usize = 35;
const FLEET_KINDS: usize = 6;

/// Returns a sequence of events that would rarely occur by chance; most kinds are a single event. Those of workers concern the
/// second worker type, which has two workers.
fn episode(kind: usize, random: &mut Random) -> Vec<(u64, Act)> {
    let monitor = random.below(MONITORS);
    let (one, other) = (2, 3);
    let leave = |slot: usize| Act::Leave(slot, 0, None);
    let mut within = |from: u64, to: u64| random.between(from, to);
    let work = [(0, Act::Start(one)), (0, Act::Start(other))];
    let then = match kind {
        // More notifications than the rate limit permits in a minute; some alerts resolve before.
        25 => {
            return vec![
                (0, Act::Storm(within(20, 31) as usize, within(15, 50))),
                (within(3, 25), Act::Storm(within(1, 10) as usize, within(5, 20))),
            ];
        }
        // The instance that found the channel broken is not the leader when it works again.
        26 => {
            return vec![
                (0, Act::Channel(ChannelMode::Broken)),
                (within(1, 5), Act::Storm(within(1, 4) as usize, within(20, 60))),
                (within(10, 30), Act::MonitorKill(monitor, within(15, 40))),
                (within(0, 20), Act::MonitorKill(1 - monitor, within(5, 30))),
            ];
        }
        // A loss that is replaced, then a graceful shutdown.
        27 => vec![
            (within(20, 30), Act::Kill(one)),
            (within(20, 45), Act::Start(one)),
            (within(12, 40), leave(one)),
            (within(0, 10), leave(other)),
        ],
        // A loss, a restart long after it, then a graceful shutdown.
        28 => vec![
            (within(20, 30), Act::Kill(one)),
            (within(150, 200), Act::MonitorKill(monitor, within(1, 10))),
            (within(30, 60), leave(other)),
        ],
        // A graceful shutdown that the monitors cannot record at once, and a restart long after it.
        29 => vec![
            (within(20, 30), leave(one)),
            (within(1, 4), leave(other)),
            (within(0, 6), Act::RedisFull(within(5, 30))),
            (within(100, 150), Act::MonitorKill(monitor, within(1, 10))),
        ],
        // A graceful shutdown while no monitor runs.
        30 => vec![
            (within(20, 30), Act::MonitorKill(0, within(140, 220))),
            (0, Act::MonitorKill(1, within(140, 220))),
            (within(3, 60), leave(one)),
            (within(0, 5), leave(other)),
        ],
        // A type that one monitor stops watching, and its shutdown.
        31 => {
            vec![(within(20, 30), Act::Exclude(monitor)), (within(10, 40), leave(one)), (within(0, 10), leave(other))]
        }
        // Events that are spooled for Postgres.
        32 => vec![
            (within(0, 20), Act::PostgresOutage(within(20, 60))),
            (within(3, 6), leave(one)),
            (within(3, 6), Act::Start(one)),
            (within(3, 6), leave(other)),
            (within(3, 6), Act::Start(other)),
        ],
        33 => return vec![(0, Act::ProbeFails(within(10, 150)))],
        // An alert fires or ends about when the leader dies and Postgres with it.
        34 => {
            let begins = if random.one_in(2) {
                Act::Length(0, true)
            } else {
                Act::Storm(random.between(1, 8) as usize, random.between(4, 20))
            };
            let mut within = |from: u64, to: u64| random.between(from, to);
            return vec![
                (0, begins),
                (within(0, 14), Act::MonitorKill(monitor, within(30, 90))),
                (within(0, 3), Act::PostgresOutage(within(20, 60))),
                (within(0, 30), Act::Length(0, false)),
            ];
        }
        _ => return vec![(0, act(kind, random))],
    };
    work.into_iter().chain(then).collect()
}

fn act(kind: usize, random: &mut Random) -> Act {
    let slot = random.below(SLOTS);
    let monitor = random.below(MONITORS);
    match kind {
        0 | 1 => Act::Start(slot),
        2 => Act::Kill(slot),
        3 => Act::Leave(slot, random.between(0, 3), random.one_in(2).then(|| random.between(0, 4))),
        4 => Act::Length(random.below(2), random.one_in(2)),
        5 => Act::Stall(slot, random.between(5, 100)),
        6 => Act::Hang(slot, random.between(20, 200)),
        7 => Act::MonitorKill(monitor, random.between(0, 30)),
        8 => Act::MonitorKill(monitor, random.between(30, 250)),
        9 => Act::MonitorPause(monitor, random.between(1, 90)),
        10 => Act::MonitorClock(monitor, random.between(0, 16_000) as i64 - 8_000),
        11 => Act::RedisClock(random.between(0, 200) as i64 - 100),
        12 => Act::RedisOutage(random.between(1, 60)),
        13 => Act::RedisRestartEmpty,
        14 => Act::RedisFull(random.between(3, 90)),
        15 => Act::RedisFlaps(random.between(20, 250)),
        16 => Act::PostgresOutage(random.between(1, 90)),
        17 => Act::PostgresFull(random.between(3, 90)),
        18 => Act::Flaky(random.between(3, 60)),
        19 => Act::CutFromRedis(monitor, random.between(3, 60)),
        20 => Act::CutFromPostgres(monitor, random.between(3, 60)),
        21 => Act::DiskFull(monitor, random.between(3, 90)),
        22 => Act::Channel(match random.below(6) {
            0 => ChannelMode::Fails,
            1 => ChannelMode::LosesAnswers,
            2 => ChannelMode::Slow,
            3 => ChannelMode::Broken,
            _ => ChannelMode::Takes,
        }),
        23 => match random.below(2) {
            0 => Act::Silence(random.between(10, 300)),
            _ => Act::Storm(random.between(5, 30) as usize, random.between(10, 60)),
        },
        _ => Act::Rules(random.below(3)),
    }
}
