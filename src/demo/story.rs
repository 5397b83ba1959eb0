//! The story that the demonstration tells: what happens when. No clock, no I/O.
//!
//! Two minutes, over and over; at the end of each the fleet is again as it was.

use std::time::Duration;

/// Something done to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// More processes of a type start.
    Start {
        /// The type.
        stream: &'static str,
        /// How many.
        count: usize,
    },
    /// Processes of a type leave as asked (SIGTERM): they drain and leave a marker.
    Leave {
        /// The type.
        stream: &'static str,
        /// How many.
        count: usize,
    },
    /// One process of a type is killed (SIGKILL): no marker.
    Kill {
        /// The type.
        stream: &'static str,
    },
    /// Tasks of a type take this many times as long as usual.
    Pace {
        /// The type.
        stream: &'static str,
        /// 1 is as usual.
        factor: u32,
    },
}

/// One moment of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Seconds after the start of each round.
    pub at: u32,
    /// What is done.
    pub action: Action,
    /// How it is told.
    pub line: &'static str,
}

/// How long a round takes.
pub const ROUND: Duration = Duration::from_secs(120);

const fn beat(at: u32, action: Action, line: &'static str) -> Beat {
    Beat { at, action, line }
}

/// The beats of a round, in order.
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

/// The first beat that comes after `beats` others, and when: since the start of the story.
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

    /// How many processes and what pace each type has after the first `beats` beats.
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
    fn each_round_ends_with_the_fleet_as_it_was() {
        assert_eq!(fleet_after(BEATS.len()), fleet_after(0));
    }

    #[test]
    fn each_round_shows_all_that_was_promised() {
        let any = |wanted: fn(&Action) -> bool| BEATS.iter().any(|beat| wanted(&beat.action));
        assert!(any(|a| matches!(a, Action::Start { .. })));
        assert!(any(|a| matches!(a, Action::Leave { .. })));
        assert!(any(|a| matches!(a, Action::Kill { .. })));
        assert!(any(|a| matches!(a, Action::Pace { factor, .. } if *factor > 1)));
        let emptied = (0..BEATS.len()).any(|beats| fleet_after(beats).values().any(|(processes, _)| *processes == 0));
        assert!(emptied, "no type is ever scaled down to none");
    }

    #[test]
    fn a_killed_worker_is_mourned_before_it_is_replaced() {
        let killed = BEATS.iter().find(|beat| matches!(beat.action, Action::Kill { .. })).unwrap();
        let Action::Kill { stream } = killed.action else { panic!() };
        assert!(type_of(stream).unwrap().processes > 1, "the others stay alive");
        let replaced = BEATS.iter().find(|b| b.at > killed.at && b.action == Action::Start { stream, count: 1 });
        let gap = replaced.unwrap().at - killed.at;
        let heartbeat = u32::try_from(crate::contract::heartbeat::TTL.as_secs()).unwrap();
        assert!(gap > heartbeat + 10, "replaced after {gap} s");
    }

    #[test]
    fn slow_aragorn_lookup_falls_behind_and_catches_up_within_the_round() {
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
    fn beats_follow_one_another_for_ever() {
        let times: Vec<Duration> = (0..3 * BEATS.len()).map(|beats| beat_after(beats).0).collect();
        assert!(times.is_sorted());
        assert!(times[BEATS.len() - 1] < ROUND && times[BEATS.len()] > ROUND);
        assert_eq!(beat_after(BEATS.len()).1, &BEATS[0]);
    }
}
