//! Builder and settings of a worker.
//!
//! The program sets them with the builder; environment variables override most of them, so that operators can change
//! them without a new build.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::answer::{Answer, FailurePolicy, TaskError};
use super::engine::{self, Left, Stop};
use super::handler;
use super::task::Task;
use super::workers::Workers;
use crate::contract::{Name, hung_thresholds, task::GROUP};
use crate::environment::{self, BadSetting};
use crate::redis_streams::address;
use crate::redis_streams::tasks::{Address, LinkError};

const LEASE: Duration = Duration::from_secs(30);
const RECLAIM_MAX_BATCH: usize = 50;
const SHORTEST: Duration = Duration::from_millis(10);

/// Environment variables that a worker reads, apart from the Redis address: name, default, description.
const OWN: [(&str, &str, &str); 5] = [
    ("TASK_LIMIT", "set by the program, else 1", "Maximum number of concurrent tasks"),
    (
        "RECLAIM_MIN_IDLE_SEC",
        "30",
        "Minimum idle time before a task of a lost worker is reclaimed, on streams without a threshold of their \
         own",
    ),
    ("RECLAIM_INTERVAL_SEC", "10", "Interval between reclaim runs"),
    ("RECLAIM_MAX_BATCH", "50", "Maximum number of tasks reclaimed per run"),
    ("WORKER_DRAIN_TIMEOUT_SEC", "30", "Time to wait for running tasks at shutdown"),
];

/// What a worker reads from its environment: variable, what holds without it, what it is.
pub const SETTINGS: &[(&str, &str, &str)] = &{
    let mut all = [("", "", ""); address::SETTINGS.len() + OWN.len()];
    let (of_redis, own) = all.split_at_mut(address::SETTINGS.len());
    of_redis.copy_from_slice(address::SETTINGS);
    own.copy_from_slice(&OWN);
    all
};

/// A non-empty stream name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamName(Name);

impl StreamName {
    /// Returns a stream name.
    ///
    /// # Errors
    /// [`WorkerError::Setting`] if `name` is empty.
    pub fn new(name: &str) -> Result<Self, WorkerError> {
        if name.is_empty() {
            return Err(WorkerError::Setting(
                "the stream name is empty; expected the stream to read, such as aragorn.lookup".to_owned(),
            ));
        }
        Ok(Self(Name::from(name)))
    }
}

/// Reason why a worker could not start. `Display` describes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// A setting is invalid; the text has the setting, its value and the expected value.
    #[error("{0}")]
    Setting(String),
    /// Redis is reachable but cannot be used, for example because the key is not a stream or scripts are not allowed.
    #[error("the Redis at {address} cannot serve a worker of {stream}: {reason}")]
    Redis {
        /// Host and port of Redis.
        address: String,
        /// Stream of the worker.
        stream: Name,
        /// Reason, in words.
        reason: String,
    },
    /// A thread, a signal handler or the main loop failed.
    #[error("cannot start: {0}")]
    System(String),
}

impl From<BadSetting> for WorkerError {
    fn from(bad: BadSetting) -> Self {
        Self::Setting(bad.to_string())
    }
}

impl WorkerError {
    pub(super) fn redis(address: &Address, stream: &Name, error: &LinkError) -> Self {
        let reason = match error.code() {
            "WRONGTYPE" => "the key with that name is not a stream".to_owned(),
            _ => error.to_string(),
        };
        Self::Redis { address: address.to_string(), stream: stream.clone(), reason }
    }
}

/// Entry point to the worker library: [`Worker::builder`].
pub struct Worker;

impl Worker {
    /// Returns a builder for a worker of `stream`.
    ///
    /// # Errors
    /// [`WorkerError::Setting`] if `stream` is empty.
    pub fn builder(stream: &str) -> Result<WorkerBuilder, WorkerError> {
        Ok(WorkerBuilder {
            stream: StreamName::new(stream)?,
            group: Name::from(GROUP),
            redis_url: None,
            task_limit: 1,
            lease: None,
            reclaim_min_idle: None,
            reclaim_interval: Duration::from_secs(10),
            reclaim_max_batch: RECLAIM_MAX_BATCH,
            delivery_limit: 5,
            drain_timeout: Duration::from_secs(30),
            back_off_above: None,
            timeout: None,
            deadline: None,
            on_error: FailurePolicy::default(),
            on_malformed: FailurePolicy::default(),
            environment: Box::new(|name| std::env::var(name).ok()),
            is_process_environment: true,
        })
    }
}

type Environment = Box<dyn Fn(&str) -> Option<String> + Send>;

/// Settings of a worker. They are validated when it starts.
pub struct WorkerBuilder {
    stream: StreamName,
    group: Name,
    redis_url: Option<String>,
    task_limit: usize,
    lease: Option<Duration>,
    reclaim_min_idle: Option<Duration>,
    reclaim_interval: Duration,
    reclaim_max_batch: usize,
    delivery_limit: u64,
    drain_timeout: Duration,
    back_off_above: Option<u64>,
    timeout: Option<Duration>,
    deadline: Option<Duration>,
    on_error: FailurePolicy,
    on_malformed: FailurePolicy,
    environment: Environment,
    is_process_environment: bool,
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Validated settings.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) stream: Name,
    pub(super) group: Name,
    pub(super) address: Address,
    pub(super) task_limit: usize,
    pub(super) lease: Duration,
    pub(super) floor: Duration,
    pub(super) reclaim_interval: Duration,
    pub(super) reclaim_max_batch: usize,
    pub(super) delivery_limit: u64,
    pub(super) drain_timeout: Duration,
    pub(super) back_off_above: Option<u64>,
    pub(super) timeout: Option<Duration>,
    pub(super) deadline: Option<Duration>,
    pub(super) on_error: FailurePolicy,
    pub(super) on_malformed: FailurePolicy,
}

impl WorkerBuilder {
    /// Sets the maximum number of concurrent tasks (default 1). `TASK_LIMIT` overrides it.
    #[must_use]
    pub fn task_limit(mut self, tasks: usize) -> Self {
        self.task_limit = tasks;
        self
    }

    /// Sets the Redis URL. It overrides the environment variables `REDIS_URL`, `REDIS_HOST`, `REDIS_PORT` and
    /// `REDIS_PASSWORD`.
    #[must_use]
    pub fn redis_url(mut self, url: impl Into<String>) -> Self {
        self.redis_url = Some(url.into());
        self
    }

    /// Sets the consumer group (default `consumer`, which all workers of the platform use).
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = Name::from(group);
        self
    }

    /// Sets the minimum idle time before an entry of a lost worker is reclaimed. The default is the reclaim threshold
    /// of the stream.
    #[must_use]
    pub fn reclaim_min_idle(mut self, floor: Duration) -> Self {
        self.reclaim_min_idle = Some(floor);
        self
    }

    /// Sets the interval between reclaim runs (default 10 s). `RECLAIM_INTERVAL_SEC` overrides it.
    #[must_use]
    pub fn reclaim_interval(mut self, interval: Duration) -> Self {
        self.reclaim_interval = interval;
        self
    }

    /// Sets the maximum number of tasks that one reclaim run takes (default 50). `RECLAIM_MAX_BATCH` overrides it.
    #[must_use]
    pub fn reclaim_max_batch(mut self, tasks: usize) -> Self {
        self.reclaim_max_batch = tasks.max(1);
        self
    }

    /// Sets the lease: the maximum idle time of a running task (default 30 s, or the reclaim threshold if that is
    /// shorter). The idle time is reset every third of the lease. A lease longer than the threshold is rejected.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Sets the delivery limit (default 5). An entry that was delivered more often is dead-lettered.
    #[must_use]
    pub fn delivery_limit(mut self, deliveries: u64) -> Self {
        self.delivery_limit = deliveries;
        self
    }

    /// Sets how long shutdown waits for running tasks (default 30 s). `WORKER_DRAIN_TIMEOUT_SEC` overrides it.
    #[must_use]
    pub fn drain_timeout(mut self, wait: Duration) -> Self {
        self.drain_timeout = wait;
        self
    }

    /// Enables back-pressure: no new tasks are read while a stream that this worker forwards to has more than `length`
    /// entries (default: no limit).
    #[must_use]
    pub fn back_off_above(mut self, length: u64) -> Self {
        self.back_off_above = Some(length);
        self
    }

    /// Sets the maximum run time of a handler (default: no limit). Longer runs are dropped, and the task fails.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Sets the maximum age of a query by [`Task::age`] (default: no limit). Tasks of older queries fail before or
    /// during their run.
    #[must_use]
    pub fn deadline(mut self, age: Duration) -> Self {
        self.deadline = Some(age);
        self
    }

    /// Sets what happens to a task whose handler returns an error, panics or times out (default
    /// [`FailurePolicy::ByWorkflow`]).
    #[must_use]
    pub fn on_error(mut self, policy: FailurePolicy) -> Self {
        self.on_error = policy;
        self
    }

    /// Sets what happens to a malformed task (default [`FailurePolicy::ByWorkflow`]).
    #[must_use]
    pub fn on_malformed(mut self, policy: FailurePolicy) -> Self {
        self.on_malformed = policy;
        self
    }

    /// Reads environment variables from `lookup` instead of the environment of the process.
    #[must_use]
    pub fn environment(mut self, lookup: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        self.environment = Box::new(lookup);
        self.is_process_environment = false;
        self
    }

    /// Runs until SIGTERM or SIGINT, then shuts down gracefully: reads no new tasks, waits for running tasks up to the
    /// drain timeout, and writes the shutdown marker. A second signal exits the process immediately.
    ///
    /// Use [`run_until`](Self::run_until) in programs with their own signal handling, and [`Workers`] for several
    /// streams in one process.
    ///
    /// # Errors
    /// [`WorkerError`] if a setting is invalid, or if Redis is reachable but cannot be used. If Redis is unreachable,
    /// the worker waits for it.
    pub async fn run<H, F>(self, handler: H) -> Result<Left, WorkerError>
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer, TaskError>> + Send + 'static,
    {
        Workers::new().add(self, handler).run().await
    }

    /// Like [`run`](Self::run), with a tower service as the handler: [`service(handler)`](super::service) wrapped in
    /// tower layers (timeout, rate limit, concurrency limit). While a task waits for the service to become ready, its
    /// lease is renewed.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use shepherd_monitor::worker::{Answer, Task, Worker, WorkerError, service};
    /// # async fn example() -> Result<(), WorkerError> {
    /// let rank = service(|_task: Task| async { Ok(Answer::forward()) });
    /// let limited = tower::ServiceBuilder::new().concurrency_limit(2).timeout(Duration::from_secs(30)).service(rank);
    /// Worker::builder("arax.rank")?.task_limit(10).run_service(limited).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub async fn run_service<S>(self, service: S) -> Result<Left, WorkerError>
    where
        S: tower_service::Service<Task, Response = Answer> + Clone + Send + Sync + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        S::Future: Send,
    {
        Workers::new().add_handler(self, handler::of_service(service)).run().await
    }

    /// Runs until `stop` completes, then shuts down gracefully. The output of `stop` is the received signal, if any.
    /// Dropping the returned future is like a crash: the heartbeat expires, and other workers reclaim the tasks.
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub async fn run_until<H, F, S>(self, stop: S, handler: H) -> Result<Left, WorkerError>
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer, TaskError>> + Send + 'static,
        S: Future<Output = Option<i32>> + Send,
    {
        engine::run(self.checked()?, Stop::Future(stop), handler::boxed(handler)).await
    }

    /// Like [`run_until`](Self::run_until), with a tower service as in [`run_service`](Self::run_service).
    ///
    /// # Errors
    /// See [`run`](Self::run).
    pub async fn run_service_until<T, S>(self, stop: S, service: T) -> Result<Left, WorkerError>
    where
        T: tower_service::Service<Task, Response = Answer> + Clone + Send + Sync + 'static,
        T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        T::Future: Send,
        S: Future<Output = Option<i32>> + Send,
    {
        engine::run(self.checked()?, Stop::Future(stop), handler::of_service(service)).await
    }

    pub(super) fn checked(self) -> Result<Settings, WorkerError> {
        if self.is_process_environment {
            warn_of_unknown_variables();
        }
        let set = |name: &str| (self.environment)(name).filter(|value| !value.is_empty());
        // Like the Python workers: an invalid `TASK_LIMIT` must not prevent the start.
        let task_limit = match set("TASK_LIMIT").map(|text| count("TASK_LIMIT", &text)) {
            Some(Ok(limit)) => limit,
            Some(Err(e)) => {
                tracing::warn!("{e}; using the program's limit of {}", self.task_limit);
                self.task_limit
            }
            None => self.task_limit,
        };
        if task_limit == 0 {
            return Err(WorkerError::Setting("the task limit is 0; expected at least 1".to_owned()));
        }
        let address = match &self.redis_url {
            Some(url) => Address::from_url("redis_url", url)?,
            None => Address::from_env(&self.environment)?,
        };
        let default = seconds(set, "RECLAIM_MIN_IDLE_SEC")?.unwrap_or(hung_thresholds::DEFAULT);
        let floor = self.reclaim_min_idle.unwrap_or_else(|| hung_thresholds::reclaim_floor(&self.stream.0, default));
        let lease = self.lease.unwrap_or(LEASE.min(floor));
        if lease > floor {
            return Err(WorkerError::Setting(format!(
                "the lease of {lease:?} is longer than the reclaim threshold of {floor:?}; expected at most the \
                 threshold, or slow tasks would be reclaimed"
            )));
        }
        let too_short = |what: &str| WorkerError::Setting(format!("the {what} is zero; expected at least 1 ms"));
        if lease < SHORTEST {
            return Err(too_short("lease"));
        }
        let reclaim_interval = seconds(set, "RECLAIM_INTERVAL_SEC")?.unwrap_or(self.reclaim_interval);
        if reclaim_interval < SHORTEST {
            return Err(too_short("reclaim interval"));
        }
        let reclaim_max_batch = match set("RECLAIM_MAX_BATCH") {
            Some(text) => count("RECLAIM_MAX_BATCH", &text)?,
            None => self.reclaim_max_batch,
        };
        if self.delivery_limit == 0 {
            return Err(WorkerError::Setting("the delivery limit is 0; expected at least 1".to_owned()));
        }
        Ok(Settings {
            drain_timeout: seconds(set, "WORKER_DRAIN_TIMEOUT_SEC")?.unwrap_or(self.drain_timeout),
            reclaim_interval,
            reclaim_max_batch,
            delivery_limit: self.delivery_limit,
            back_off_above: self.back_off_above,
            timeout: self.timeout,
            deadline: self.deadline,
            on_error: self.on_error,
            on_malformed: self.on_malformed,
            stream: self.stream.0,
            group: self.group,
            address,
            task_limit,
            lease,
            floor,
        })
    }
}

/// Once in the life of the process, however many workers it runs.
fn warn_of_unknown_variables() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let known: Vec<&str> = SETTINGS.iter().map(|(name, ..)| *name).collect();
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        for warning in environment::unknown_variables(variables, &["REDIS_", "RECLAIM_", "WORKER_"], &known) {
            tracing::warn!("{warning}");
        }
    });
}

fn count(name: &str, text: &str) -> Result<usize, WorkerError> {
    text.trim()
        .parse()
        .ok()
        .filter(|n| (1..=100_000).contains(n))
        .ok_or_else(|| WorkerError::Setting(format!("{name} is {text:?}; expected a whole number from 1 to 100000")))
}

fn seconds(set: impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<Duration>, WorkerError> {
    let Some(text) = set(name) else { return Ok(None) };
    let seconds = text.trim().parse::<f64>().ok().filter(|s| (0.0..=1e6).contains(s));
    let bad = || WorkerError::Setting(format!("{name} is {text:?}; expected a number of seconds, such as 30"));
    seconds.map(|s| Some(Duration::from_secs_f64(s))).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(pairs: &'static [(&'static str, &'static str)], change: fn(WorkerBuilder) -> WorkerBuilder) -> String {
        let builder = Worker::builder("s").unwrap().environment(move |name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        match change(builder).checked() {
            Ok(settings) => settings.task_limit.to_string(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn task_limit_variable_overrides_the_builder() {
        assert_eq!(checked(&[], |b| b.task_limit(3)), "3");
        assert_eq!(checked(&[("TASK_LIMIT", "7")], |b| b.task_limit(3)), "7");
        for unusable in ["0", "-1", "ten", "1.5", "9999999999"] {
            let pairs = Box::leak(Box::new([("TASK_LIMIT", unusable)]));
            assert_eq!(checked(pairs, |b| b.task_limit(3)), "3");
        }
    }

    #[test]
    fn documented_settings_match_those_read() {
        let read = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
        let noted = std::sync::Arc::clone(&read);
        let builder = Worker::builder("s").unwrap().environment(move |name| {
            noted.lock().unwrap().insert(name.to_owned());
            None
        });
        builder.checked().unwrap();
        let documented: std::collections::BTreeSet<String> =
            SETTINGS.iter().map(|(name, ..)| (*name).to_owned()).collect();
        assert_eq!(*read.lock().unwrap(), documented);
    }

    #[test]
    fn invalid_settings_return_a_descriptive_error() {
        assert!(Worker::builder("").unwrap_err().to_string().contains("the stream name is empty"));
        assert!(checked(&[], |b| b.task_limit(0)).contains("limit is 0"));
        assert!(checked(&[("REDIS_PORT", "99999")], |b| b).contains("REDIS_PORT is \"99999\""));
        assert!(checked(&[("WORKER_DRAIN_TIMEOUT_SEC", "soon")], |b| b).contains("expected a number of seconds"));
        assert!(checked(&[], |b| b.redis_url("nonsense")).contains("redis_url"));
        assert!(checked(&[], |b| b.lease(Duration::from_secs(31))).contains("longer than the reclaim threshold"));
    }
}
