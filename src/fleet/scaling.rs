//! Required number of workers of a type: enough for the arrival rate and to drain the backlog in time.
//!
//! By Little's law, tasks that arrive at λ per second and run for S seconds each keep λ·S slots busy. Draining a
//! backlog of B within T keeps another B·S/T slots busy. A worker has several slots.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::snapshot::{Snapshot, WorkerTypeStatus};
use crate::contract::Name;

/// Demand of a worker type; `null` if unknown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Demand {
    /// Undelivered plus pending messages.
    pub backlog: u64,
    /// Tasks added per second.
    pub arrival_per_sec: Option<f64>,
    /// Mean run time of a task, seconds.
    pub service_sec: Option<f64>,
    /// Mean concurrency of a worker.
    pub task_limit: Option<f64>,
}

/// Reason why the backlog is not known exactly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBacklog {
    /// Redis, or this stream, is unreadable.
    #[error("the backlog of {0} is unknown: {1}")]
    NotRead(Name, String),
    /// Redis reports no number of undelivered entries.
    #[error("the backlog of {0} is unknown: Redis does not report the lag of its group")]
    Unknown(Name),
    /// Only a lower bound is known.
    #[error("the exact backlog of {0} is unknown: ≥ {1}")]
    AtLeast(Name, u64),
}

impl Demand {
    /// Returns the demand of `name` from `snapshot`: of a worker type, or of a stream that no worker has used yet, whose
    /// messages are all backlog. `None` if the snapshot has neither. The run time of tasks is not part of a snapshot.
    ///
    /// # Errors
    /// When the backlog is not known exactly.
    pub fn of(snapshot: &Snapshot, name: &Name) -> Option<Result<Self, NoBacklog>> {
        let (status, stream) = (snapshot.workers.get(name), snapshot.streams.get(name));
        let (backlog, at_least) = match (status, stream) {
            (Some(status), _) => (status.backlog, status.backlog_at_least),
            (None, Some(stream)) => {
                let pending = stream.pending.map(|pending| pending.saturating_sub(stream.phantom_pending.unwrap_or(0)));
                (stream.undelivered.zip(pending).map(|(a, b)| a + b), stream.undelivered_at_least)
            }
            (None, None) => return None,
        };
        Some(Self::of_backlog(snapshot, name, (backlog, at_least)).map(|backlog| Self {
            backlog,
            arrival_per_sec: stream.and_then(|stream| stream.added_per_sec),
            service_sec: None,
            task_limit: status.and_then(task_limit),
        }))
    }

    fn of_backlog(
        snapshot: &Snapshot,
        name: &Name,
        (backlog, at_least): (Option<u64>, bool),
    ) -> Result<u64, NoBacklog> {
        if !snapshot.redis.source.is_current() {
            let why = snapshot.redis.error.clone().unwrap_or_else(|| "waiting for the first poll of Redis".to_owned());
            return Err(NoBacklog::NotRead(name.clone(), why));
        }
        if let Some(error) = snapshot.streams.get(name).and_then(|stream| stream.error.clone()) {
            return Err(NoBacklog::NotRead(name.clone(), error));
        }
        match (backlog, at_least) {
            (Some(backlog), false) => Ok(backlog),
            (Some(least), true) => Err(NoBacklog::AtLeast(name.clone(), least)),
            (None, _) => Err(NoBacklog::Unknown(name.clone())),
        }
    }

    /// Returns the number of workers that drain the current backlog within `drain` (not zero) while new tasks arrive.
    ///
    /// # Errors
    /// The names of the inputs that are needed and unknown.
    pub fn workers(&self, drain: Duration) -> Result<u64, Vec<&'static str>> {
        // Without a backlog and arrivals, the run time does not matter.
        if self.backlog == 0 && self.arrival_per_sec == Some(0.0) {
            return Ok(0);
        }
        let (Some(arrival), Some(service), Some(limit)) = (self.arrival_per_sec, self.service_sec, self.task_limit)
        else {
            let inputs = [
                ("arrival_per_sec", self.arrival_per_sec),
                ("service_sec", self.service_sec),
                ("task_limit", self.task_limit),
            ];
            return Err(inputs.into_iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect());
        };
        #[expect(clippy::cast_precision_loss, reason = "a count far below 2^53")]
        let at_once = arrival * service + self.backlog as f64 * service / drain.as_secs_f64();
        // Rounding errors must not add a worker.
        let workers = (at_once / limit - 1e-9).ceil().max(0.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        Ok(workers as u64)
    }
}

/// Mean concurrency of the alive workers; with none alive, of the remembered ones.
fn task_limit(status: &WorkerTypeStatus) -> Option<f64> {
    let mean = |alive: bool| {
        let those = status.consumers.iter().filter(|consumer| consumer.state.is_alive() == alive);
        let limits: Vec<f64> = those.filter_map(|consumer| consumer.task_limit).map(f64::from).collect();
        #[expect(clippy::cast_precision_loss, reason = "a count of workers")]
        let mean = limits.iter().sum::<f64>() / limits.len() as f64;
        (mean > 0.0).then_some(mean)
    };
    mean(true).or_else(|| mean(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(backlog: u64, arrival: f64, service: f64, limit: f64) -> Demand {
        Demand { backlog, arrival_per_sec: Some(arrival), service_sec: Some(service), task_limit: Some(limit) }
    }

    #[test]
    fn fewest_workers_for_arrivals_and_backlog() {
        let within = |seconds: u64, demand: Demand| demand.workers(Duration::from_secs(seconds)).unwrap();
        // 2/s of 3 s keep 6 slots busy; 300 of 3 s within 60 s keep 15 busy: 21 slots, ten per worker.
        assert_eq!(within(60, demand(300, 2.0, 3.0, 10.0)), 3);
        // With a very long drain time only the 6 slots for arrivals remain.
        assert_eq!(within(1_000_000, demand(300, 2.0, 3.0, 10.0)), 1);
        // 10/s of 0.5 s keep 5 slots busy: exactly one worker of five.
        assert_eq!(within(60, demand(0, 10.0, 0.5, 5.0)), 1);
        assert_eq!(within(60, demand(1, 10.0, 0.5, 5.0)), 2);
        // No arrivals: 1000 of 0.3 s within 100 s keep 3 slots busy, regardless of rounding.
        assert_eq!(within(100, demand(1000, 0.0, 0.3, 1.0)), 3);
        // Any work needs at least one worker.
        assert_eq!(within(300, demand(1, 0.0, 0.001, 100.0)), 1);
        assert_eq!(within(300, demand(0, 0.01, 0.001, 100.0)), 1);
        assert_eq!(within(300, demand(0, 0.0, 9.0, 10.0)), 0);
    }

    #[test]
    fn unknown_inputs_are_named() {
        let within = |demand: &Demand| demand.workers(Duration::from_secs(60));
        let mut some = Demand { service_sec: None, ..demand(5, 1.0, 0.0, 10.0) };
        assert_eq!(within(&some), Err(vec!["service_sec"]));
        some.task_limit = None;
        some.arrival_per_sec = None;
        assert_eq!(within(&some), Err(vec!["arrival_per_sec", "service_sec", "task_limit"]));
        // Without a backlog, only the arrival rate matters.
        some.backlog = 0;
        assert!(within(&some).is_err());
        some.arrival_per_sec = Some(0.0);
        assert_eq!(within(&some), Ok(0));
    }
}
