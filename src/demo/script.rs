//! Scenario of the demonstration: the actions on the fleet and their times. No clock, no I/O.
//!
//! A round of two minutes repeats; at the end of each round the fleet is in its initial state.

use std::time::Duration;

/// An action on the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Starts more processes of a type.
    Start {
        /// Worker type.
        stream: &'static str,
        /// Number of processes.
        count: usize,
    },
    /// Shuts processes of a type down gracefully (SIGTERM): they drain and write a marker.
    Leave {
        /// Worker type.
        stream: &'static str,
        /// Number of processes.
        count: usize,
    },
    /// Kills a process of a type (SIGKILL): no marker.
    Kill {
        /// Worker type.
        stream: &'static str,
    },
    /// Changes the run time of a type's tasks.
    Pace {
        /// Worker type.
        stream: &'static str,
        /// Multiple of the normal run time.
        factor: u32,
    },
}

/// A step of the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Seconds after the start of each round.
    pub at: u32,
    /// Action.
    pub action: Action,
    /// Line to print.
    pub line: &'static str,
}

/// Duration of a round.
pub const ROUND: Duration = Duration::from_secs(120);

const fn beat(at: u32, action: Action, line: &'static str) -> Beat {
    Beat { at, action, line }
}

/// Steps of a round, in order.
pub const BEATS: [Beat; 11] = [
    beat(10, Action::Start { stream: "sipr", count: 2 }, "sipr scales up from 2 to 4 workers"),
    beat(
        18,
        Action::Pace { stream: "aragorn.lookup", factor: 10 },
        "aragorn.lookup slows down tenfold: its backlog grows",
    ),
    beat(48, Action::Start { stream: "aragorn.lookup", count: 3 }, "aragorn.lookup scales up by 3 workers"),
    beat(
        54,
        Action::Pace { stream: "aragorn.lookup", factor: 1 },
        "aragorn.lookup is back to normal speed: the backlog drains",
    ),
    beat(
        62,
        Action::Leave { stream: "example.score", count: 1 },
        "the only example.score worker shuts down gracefully (SIGTERM): scaled to zero",
    ),
    beat(
        68,
        Action::Kill { stream: "arax" },
        "one of two arax workers is killed (kill -9): lost when its heartbeat expires, in 15 s",
    ),
    beat(84, Action::Leave { stream: "aragorn.lookup", count: 3 }, "aragorn.lookup scales down by 3 workers"),
    beat(92, Action::Start { stream: "example.score", count: 1 }, "an example.score worker starts again"),
    beat(100, Action::Start { stream: "arax", count: 1 }, "a new arax worker replaces the crashed one"),
    beat(108, Action::Leave { stream: "sipr", count: 1 }, "sipr scales down from 4 to 3 workers"),
    beat(112, Action::Leave { stream: "sipr", count: 1 }, "sipr scales down from 3 to 2 workers"),
];

/// Returns the step after `beats` earlier ones, and its time since the start of the scenario.
#[must_use]
pub fn beat_after(beats: usize) -> (Duration, &'static Beat) {
    let [first, ..] = &BEATS;
    let rounds = u32::try_from(beats / BEATS.len()).unwrap_or(u32::MAX);
    let beat = BEATS.get(beats % BEATS.len()).unwrap_or(first);
    (ROUND.saturating_mul(rounds) + Duration::from_secs(beat.at.into()), beat)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::demo::shepherd::{FLEET, type_of};

    /// Returns the number of processes and the pace of each type after the first `beats` steps.
    fn fleet_after(beats: usize) -> BTreeMap<&'static str, (usize, u32)> {
        let mut fleet: BTreeMap<_, _> = FLEET.iter().map(|t| (t.stream, (t.processes, 1))).collect();
        for beat in &BEATS[..beats] {
            let (processes, pace) = match beat.action {
                Action::Start { stream, .. }
                | Action::Leave { stream, .. }
                | Action::Kill { stream }
                | Action::Pace { stream, .. } => fleet.get_mut(stream).expect("a type of the fleet"),
            };
            match beat.action {
                Action::Start { count, .. } => *processes += count,
                Action::Leave { count, .. } => *processes = processes.checked_sub(count).expect("enough to leave"),
                Action::Kill { .. } => *processes = processes.checked_sub(1).expect("one to kill"),
                Action::Pace { factor, .. } => *pace = factor,
            }
        }
        fleet
    }

    #[test]
    fn each_round_restores_the_fleet() {
        assert_eq!(fleet_after(BEATS.len()), fleet_after(0));
    }

    #[test]
    fn each_round_contains_every_kind_of_action() {
        let any = |wanted: fn(&Action) -> bool| BEATS.iter().any(|beat| wanted(&beat.action));
        assert!(any(|a| matches!(a, Action::Start { .. })));
        assert!(any(|a| matches!(a, Action::Leave { .. })));
        assert!(any(|a| matches!(a, Action::Kill { .. })));
        assert!(any(|a| matches!(a, Action::Pace { factor, .. } if *factor > 1)));
        let emptied = (0..BEATS.len()).any(|beats| fleet_after(beats).values().any(|(processes, _)| *processes == 0));
        assert!(emptied, "no type is ever scaled down to none");
    }

    #[test]
    fn killed_worker_is_lost_before_it_is_replaced() {
        let killed = BEATS.iter().find(|beat| matches!(beat.action, Action::Kill { .. })).unwrap();
        let Action::Kill { stream } = killed.action else { panic!() };
        assert!(type_of(stream).unwrap().processes > 1, "the others stay alive");
        let replaced = BEATS.iter().find(|b| b.at > killed.at && b.action == Action::Start { stream, count: 1 });
        let gap = replaced.unwrap().at - killed.at;
        let heartbeat = u32::try_from(crate::contract::heartbeat::TTL.as_secs()).unwrap();
        assert!(gap > heartbeat + 10, "replaced after {gap} s");
    }

    #[test]
    fn slow_aragorn_lookup_falls_behind_and_catches_up() {
        let t = type_of("aragorn.lookup").unwrap();
        let at = |factor| {
            let pace = Action::Pace { stream: t.stream, factor };
            BEATS.iter().find(|beat| beat.action == pace).unwrap().at
        };
        let arriving = crate::demo::shepherd::QUERIES_PER_SECOND * 8.0 / 20.0;
        let done = |factor: f64| (t.processes * t.task_limit) as f64 / (t.work.as_secs_f64() * factor);
        let backlog = f64::from(at(1) - at(10)) * (arriving - done(10.0));
        assert!(backlog > 30.0, "only {backlog:.0} tasks pile up");
        let caught_up = f64::from(at(1)) + backlog / (done(1.0) - arriving);
        assert!(caught_up < ROUND.as_secs_f64(), "caught up only after {caught_up:.0} s");
    }

    #[test]
    fn beats_repeat_every_round() {
        let times: Vec<Duration> = (0..3 * BEATS.len()).map(|beats| beat_after(beats).0).collect();
        assert!(times.is_sorted());
        assert!(times[BEATS.len() - 1] < ROUND && times[BEATS.len()] > ROUND);
        assert_eq!(beat_after(BEATS.len()).1, &BEATS[0]);
    }
}
