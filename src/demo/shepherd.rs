//! What the simulated Shepherd consists of: its twenty worker types, how many processes of each,
//! how long their tasks take, and the ways of a query through them. No clock, no I/O.

use std::time::Duration;

/// One worker type as the demonstration runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerType {
    /// Its stream, after which it is named.
    pub stream: &'static str,
    /// How many processes there are when nothing happens.
    pub processes: usize,
    /// How many tasks each process runs at once.
    pub task_limit: usize,
    /// How long a task takes on average.
    pub work: Duration,
}

const fn worker_type(stream: &'static str, processes: usize, task_limit: usize, work_ms: u64) -> WorkerType {
    WorkerType { stream, processes, task_limit, work: Duration::from_millis(work_ms) }
}

/// All types, in the contract's order.
pub const FLEET: [WorkerType; 20] = [
    worker_type("aragorn", 1, 4, 40),
    worker_type("aragorn.lookup", 3, 2, 1500),
    worker_type("aragorn.pathfinder", 1, 2, 1800),
    worker_type("aragorn.omnicorp", 2, 2, 300),
    worker_type("aragorn.score", 2, 2, 350),
    worker_type("arax", 2, 2, 1600),
    worker_type("arax.rank", 1, 2, 250),
    worker_type("bte", 1, 4, 40),
    worker_type("bte.lookup", 2, 2, 1200),
    worker_type("sipr", 2, 2, 1100),
    worker_type("example", 1, 2, 30),
    worker_type("example.lookup", 1, 2, 500),
    worker_type("example.score", 1, 1, 200),
    worker_type("merge_message", 4, 1, 150),
    worker_type("sort_results_score", 2, 2, 50),
    worker_type("filter_results_top_n", 2, 2, 50),
    worker_type("filter_kgraph_orphans", 2, 2, 70),
    worker_type("filter_analyses_top_n", 1, 2, 60),
    worker_type("score_paths", 1, 2, 250),
    worker_type("finish_query", 2, 4, 60),
];

/// How many queries arrive in a second.
pub const QUERIES_PER_SECOND: f64 = 4.0;

/// One way of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The product that was asked.
    pub ara: &'static str,
    /// How many of all queries go this way, compared with the other routes.
    pub weight: u32,
    /// The streams it passes, in order; `finish_query` follows by itself.
    pub streams: &'static [&'static str],
}

/// All ways.
pub const ROUTES: [Route; 6] = [
    Route {
        ara: "aragorn",
        weight: 8,
        streams: &[
            "aragorn",
            "aragorn.lookup",
            "merge_message",
            "aragorn.omnicorp",
            "aragorn.score",
            "sort_results_score",
            "filter_results_top_n",
            "filter_kgraph_orphans",
        ],
    },
    Route {
        ara: "aragorn",
        weight: 1,
        streams: &["aragorn", "aragorn.pathfinder", "aragorn.score", "filter_analyses_top_n", "filter_kgraph_orphans"],
    },
    Route {
        ara: "arax",
        weight: 3,
        streams: &["arax", "arax.rank", "sort_results_score", "filter_results_top_n", "filter_kgraph_orphans"],
    },
    Route {
        ara: "bte",
        weight: 3,
        streams: &[
            "bte",
            "bte.lookup",
            "merge_message",
            "score_paths",
            "sort_results_score",
            "filter_results_top_n",
            "filter_kgraph_orphans",
        ],
    },
    Route { ara: "sipr", weight: 3, streams: &["sipr", "sort_results_score", "filter_results_top_n"] },
    Route {
        ara: "example",
        weight: 2,
        streams: &["example", "example.lookup", "merge_message", "example.score", "sort_results_score"],
    },
];

/// The route of the query that drew `lot`, any number.
#[must_use]
pub fn route(lot: u32) -> &'static Route {
    let [first, ..] = &ROUTES;
    let mut left = lot % ROUTES.iter().map(|route| route.weight).sum::<u32>();
    for route in &ROUTES {
        match left.checked_sub(route.weight) {
            Some(rest) => left = rest,
            None => return route,
        }
    }
    first
}

/// Whether tasks of this stream ask somebody outside and wait for answers.
#[must_use]
pub fn waits_for_callbacks(stream: &str) -> bool {
    stream.ends_with(".lookup")
}

/// The type that reads `stream`.
#[must_use]
pub fn type_of(stream: &str) -> Option<&'static WorkerType> {
    FLEET.iter().find(|t| t.stream == stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_leads_through_streams_that_somebody_reads() {
        for stream in ROUTES.iter().flat_map(|route| route.streams) {
            assert!(type_of(stream).is_some(), "nobody reads {stream}");
        }
    }

    #[test]
    fn every_type_has_work_to_do() {
        let routed = |stream| ROUTES.iter().any(|route| route.streams.contains(&stream));
        for WorkerType { stream, .. } in FLEET {
            assert!(routed(stream) || stream == "finish_query", "no route leads through {stream}");
        }
    }

    #[test]
    fn no_type_is_too_small_for_what_arrives() {
        let weights: u32 = ROUTES.iter().map(|route| route.weight).sum();
        for t in FLEET {
            let here = |route: &&Route| t.stream == "finish_query" || route.streams.contains(&t.stream);
            let share = ROUTES.iter().filter(here).map(|route| route.weight).sum::<u32>();
            let busy = QUERIES_PER_SECOND * f64::from(share) / f64::from(weights) * t.work.as_secs_f64();
            assert!(busy < 0.75 * (t.processes * t.task_limit) as f64, "{} is busy {busy:.2}", t.stream);
        }
    }

    #[test]
    fn routes_are_drawn_by_their_weight() {
        let weights: u32 = ROUTES.iter().map(|route| route.weight).sum();
        for wanted in &ROUTES {
            let drawn = (0..weights).filter(|lot| route(*lot) == wanted).count();
            assert_eq!(drawn, wanted.weight as usize, "{wanted:?}");
        }
    }
}
