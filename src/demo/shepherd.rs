//! Definition of the simulated fleet: twenty worker types with their processes and run times, and the routes of
//! queries. No clock, no I/O.

use std::time::Duration;

/// A worker type of the demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerType {
    /// Stream; also the name of the type.
    pub stream: &'static str,
    /// Normal number of processes.
    pub processes: usize,
    /// Concurrency of each process.
    pub task_limit: usize,
    /// Mean run time of a task.
    pub work: Duration,
}

const fn worker_type(stream: &'static str, processes: usize, task_limit: usize, work_ms: u64) -> WorkerType {
    WorkerType { stream, processes, task_limit, work: Duration::from_millis(work_ms) }
}

/// All types, in the order of the wire contract.
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

/// Arrival rate of queries per second.
pub const QUERIES_PER_SECOND: f64 = 4.0;

/// A route of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// ARA of the queries.
    pub ara: &'static str,
    /// Relative share of queries on this route.
    pub weight: u32,
    /// Streams on the route, in order; `finish_query` follows implicitly.
    pub streams: &'static [&'static str],
}

/// All routes.
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

/// Returns the route for the random number `lot`.
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

/// Whether tasks of this stream call external services and wait for callbacks.
#[must_use]
pub fn waits_for_callbacks(stream: &str) -> bool {
    stream.ends_with(".lookup")
}

/// Returns the type that reads `stream`.
#[must_use]
pub fn type_of(stream: &str) -> Option<&'static WorkerType> {
    FLEET.iter().find(|t| t.stream == stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_of_a_route_has_workers() {
        for stream in ROUTES.iter().flat_map(|route| route.streams) {
            assert!(type_of(stream).is_some(), "nobody reads {stream}");
        }
    }

    #[test]
    fn every_type_is_on_a_route() {
        let routed = |stream| ROUTES.iter().any(|route| route.streams.contains(&stream));
        for WorkerType { stream, .. } in FLEET {
            assert!(routed(stream) || stream == "finish_query", "no route leads through {stream}");
        }
    }

    #[test]
    fn every_type_has_enough_capacity() {
        let weights: u32 = ROUTES.iter().map(|route| route.weight).sum();
        for t in FLEET {
            let here = |route: &&Route| t.stream == "finish_query" || route.streams.contains(&t.stream);
            let share = ROUTES.iter().filter(here).map(|route| route.weight).sum::<u32>();
            let busy = QUERIES_PER_SECOND * f64::from(share) / f64::from(weights) * t.work.as_secs_f64();
            assert!(busy < 0.75 * (t.processes * t.task_limit) as f64, "{} is busy {busy:.2}", t.stream);
        }
    }

    #[test]
    fn routes_are_selected_by_weight() {
        let weights: u32 = ROUTES.iter().map(|route| route.weight).sum();
        for wanted in &ROUTES {
            let drawn = (0..weights).filter(|lot| route(*lot) == wanted).count();
            assert_eq!(drawn, wanted.weight as usize, "{wanted:?}");
        }
    }
}
