//! What happens in a simulated world and when: generated from a seed, read from a file, shrunk.

use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::fleet::simulated::MONITORS;

/// Worker processes that may run at once; the type of each is its number modulo the number of types.
pub(super) const SLOTS: usize = 6;

/// Something that happens. Durations in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Act {
    /// A worker starts.
    Start(usize),
    /// A worker is killed.
    Kill(usize),
    /// A worker shuts down gracefully: with so many pending entries, and one more heartbeat so many seconds later.
    Leave(usize, u64, Option<u64>),
    /// A worker stands still.
    Stall(usize, u64),
    /// The task of a worker makes no progress, while it goes on sending heartbeats.
    Hang(usize, u64),
    /// A monitor is killed, and starts again after that.
    MonitorKill(usize, u64),
    /// A monitor stands still (SIGSTOP, a suspended machine).
    MonitorPause(usize, u64),
    /// The wall clock of a monitor's machine is stepped.
    MonitorClock(usize, i64),
    /// Redis' clock is stepped.
    RedisClock(i64),
    /// Redis refuses connections.
    RedisOutage(u64),
    /// Redis starts again without its data.
    RedisRestartEmpty,
    /// Redis takes no writes (`maxmemory`).
    RedisFull(u64),
    /// Redis comes and goes every few seconds.
    RedisFlaps(u64),
    /// Postgres refuses connections.
    PostgresOutage(u64),
    /// Postgres takes no writes (disk full).
    PostgresFull(u64),
    /// Replies of both servers get lost.
    Flaky(u64),
    /// A monitor alone does not reach Redis.
    CutFromRedis(usize, u64),
    /// A monitor alone does not reach Postgres.
    CutFromPostgres(usize, u64),
    /// The disk of a monitor takes nothing.
    DiskFull(usize, u64),
    /// What the notification channel answers from now on.
    Channel(ChannelMode),
    /// The length of a stream crosses the limit of a rule, or falls below it.
    Length(usize, bool),
    /// So many streams that had no alert before cross the limit of a critical rule for some seconds.
    Storm(usize, u64),
    /// Somebody silences the length rule.
    Silence(u64),
    /// The rules file is changed to one of the variants.
    Rules(usize),
    /// A monitor is restarted with a setting by which it does not watch the second worker type any more.
    Exclude(usize),
    /// The query for a figure of the database fails, while Postgres answers others.
    ProbeFails(u64),
}

impl Act {
    /// Whether one monitor sees less than another because of it.
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

    /// For how long because of it a monitor may conclude later than usual, or not write down what it concluded, seconds.
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

    /// Whether another monitor may lead because of it.
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

/// What a notification channel answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ChannelMode {
    /// It takes everything.
    Takes,
    /// 500: try again.
    Fails,
    /// It takes the message, and the answer is lost.
    LosesAnswers,
    /// It takes the message after twenty seconds.
    Slow,
    /// 404: the channel is gone.
    Broken,
}

/// A simulated world: everything that follows is computed from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Scenario {
    /// Latencies, lost replies and the order of tasks.
    pub(super) seed: u64,
    /// So far the clock of the second monitor's machine is ahead when it starts, seconds.
    pub(super) ahead: i64,
    /// Seconds between two ticks of a monitor.
    pub(super) interval: u64,
    /// Each with the seconds that pass before it.
    pub(super) acts: Vec<(u64, Act)>,
}

impl Scenario {
    /// The scenario of a seed.
    pub(super) fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let ahead = if random.one_in(6) { random.between(0, 14_400) as i64 - 7_200 } else { 0 };
        let interval = if random.one_in(8) { [1, 10, 30, 125][random.below(4)] } else { 3 };
        // Most worlds are troubled by a few kinds of acts only: what needs several of one kind is met more often.
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

    /// Smaller scenarios that may fail in the same way: without a run of acts, or without a wait.
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

/// Kinds of acts and of episodes; the first ones happen in every world.
const KINDS: usize = 34;
const FLEET_KINDS: usize = 6;

/// Acts in an order that chance alone would seldom give; most kinds are a single act. Those of workers are about the second
/// worker type, which has two of them.
fn episode(kind: usize, random: &mut Random) -> Vec<(u64, Act)> {
    let monitor = random.below(MONITORS);
    let (one, other) = (2, 3);
    let leave = |slot: usize| Act::Leave(slot, 0, None);
    let mut within = |from: u64, to: u64| random.between(from, to);
    let work = [(0, Act::Start(one)), (0, Act::Start(other))];
    let then = match kind {
        // More than there is room for in a minute, and some of it over before there is.
        25 => {
            return vec![
                (0, Act::Storm(within(20, 31) as usize, within(15, 50))),
                (within(3, 25), Act::Storm(within(1, 10) as usize, within(5, 20))),
            ];
        }
        // Whoever found the channel broken does not lead when it is mended.
        26 => {
            return vec![
                (0, Act::Channel(ChannelMode::Broken)),
                (within(1, 5), Act::Storm(within(1, 4) as usize, within(20, 60))),
                (within(10, 30), Act::MonitorKill(monitor, within(15, 40))),
                (within(0, 20), Act::MonitorKill(1 - monitor, within(5, 30))),
            ];
        }
        // A loss that is replaced, then an orderly end.
        27 => vec![
            (within(20, 30), Act::Kill(one)),
            (within(20, 45), Act::Start(one)),
            (within(12, 40), leave(one)),
            (within(0, 10), leave(other)),
        ],
        // A loss, a restart long after it, then an orderly end.
        28 => vec![
            (within(20, 30), Act::Kill(one)),
            (within(150, 200), Act::MonitorKill(monitor, within(1, 10))),
            (within(30, 60), leave(other)),
        ],
        // An orderly end that Redis does not let the monitors write down at once, and a restart long after it.
        29 => vec![
            (within(20, 30), leave(one)),
            (within(1, 4), leave(other)),
            (within(0, 6), Act::RedisFull(within(5, 30))),
            (within(100, 150), Act::MonitorKill(monitor, within(1, 10))),
        ],
        // An orderly end while no monitor runs.
        30 => vec![
            (within(20, 30), Act::MonitorKill(0, within(140, 220))),
            (0, Act::MonitorKill(1, within(140, 220))),
            (within(3, 60), leave(one)),
            (within(0, 5), leave(other)),
        ],
        // A type that one of the monitors does not watch any more, and its end.
        31 => {
            vec![(within(20, 30), Act::Exclude(monitor)), (within(10, 40), leave(one)), (within(0, 10), leave(other))]
        }
        // Events that wait for Postgres.
        32 => vec![
            (within(0, 20), Act::PostgresOutage(within(20, 60))),
            (within(3, 6), leave(one)),
            (within(3, 6), Act::Start(one)),
            (within(3, 6), leave(other)),
            (within(3, 6), Act::Start(other)),
        ],
        33 => return vec![(0, Act::ProbeFails(within(10, 150)))],
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
