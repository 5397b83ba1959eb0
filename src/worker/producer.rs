//! Producer: adds tasks to streams.
//!
//! One script call adds up to 128 tasks. After a lost reply, a call is repeated only if every task in it has an
//! idempotency key.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::retry::Retry;
use crate::contract::Name;
use crate::contract::task::NewTask;
use crate::environment::BadSetting;
use crate::redis_streams::tasks::additions::{self, Added, Limits, MOST_FIELDS, Stopped};
use crate::redis_streams::tasks::{Address, EntryId, Failure, LinkError, SharedLink};

/// Looks up an environment variable.
pub(super) type Environment = Box<dyn Fn(&str) -> Option<String> + Send>;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of tasks per script call, and of bytes of their fields unless a single task has more.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1 << 20;
/// First and longest pause before a full stream is tried again.
const FULL_FIRST: Duration = Duration::from_millis(10);
const FULL_LAST: Duration = Duration::from_millis(500);

/// Reason why a task was not added, or why the outcome is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// A setting is invalid; the text has the setting, its value and the expected value.
    #[error("{0}")]
    Setting(String),
    /// No connection could be opened.
    #[error("cannot connect: {0}")]
    Connect(LinkError),
    /// The task or the stream name is invalid.
    #[error("cannot add a task to {stream}: {reason}")]
    InvalidTask {
        /// Stream name.
        stream: Name,
        /// What is wrong with the task or the stream name.
        reason: String,
    },
    /// The stream has [`max_length`](ProducerBuilder::max_length) entries. Nothing was added.
    #[error("stream {stream} is full: {length} entries")]
    Full {
        /// Stream name.
        stream: Name,
        /// Length of the stream.
        length: u64,
    },
    /// Redis was unreachable or refused the command for longer than [`retry_for`](ProducerBuilder::retry_for), or
    /// refused it permanently. Nothing was added.
    #[error("cannot add tasks to {stream}: {reason}")]
    NotAdded {
        /// Stream name.
        stream: Name,
        /// Error of Redis or of the connection.
        reason: LinkError,
    },
    /// The reply was lost. The task may have been added; adding it again may add it twice unless it has an [idempotency
    /// key](NewTask::idempotency_key).
    #[error("the reply to adding tasks to {stream} was lost, so they may have been added: {reason}")]
    Unknown {
        /// Stream name.
        stream: Name,
        /// Error of the connection.
        reason: LinkError,
    },
}

impl From<BadSetting> for ProducerError {
    fn from(bad: BadSetting) -> Self {
        Self::Setting(bad.to_string())
    }
}

impl ProducerError {
    /// Whether adding the task again later can succeed: the stream was full, or Redis was unreachable. Also true for
    /// [`Unknown`](Self::Unknown), where a repeated task may be added twice.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Unknown { .. } => true,
            Self::NotAdded { reason, .. } | Self::Connect(reason) => reason.may_pass(),
            Self::Setting(_) | Self::InvalidTask { .. } => false,
        }
    }
}

/// Error of [`Producer::add_all`] and [`Producer::try_add_all`], with the tasks that were added before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} tasks were added, then: {error}", added.len())]
pub struct AddAllError {
    /// IDs of the added tasks, in order. After [`ProducerError::Unknown`], up to 128 further tasks may have been added.
    pub added: Vec<EntryId>,
    /// Why the next task was not added.
    #[source]
    pub error: ProducerError,
}

/// Adds tasks to streams. Cheap to clone; clones share one connection, which reconnects automatically.
///
/// ```no_run
/// use shepherd_monitor::worker::{NewTask, Producer, Workflow};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let producer = Producer::connect().await?;
/// let task = NewTask::query("3f2a9c41", "8b01d7e2").workflow(Workflow::through(["aragorn.score", "sort_results_score"]));
/// // With a key, the library and the caller can safely repeat the call: the task is added once.
/// let id = producer.add("aragorn.score", task.idempotency_key("query 3f2a9c41")).await?;
/// println!("added {id}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Producer {
    link: SharedLink,
    limits: Limits,
    retry_for: Duration,
}

/// Settings of a [`Producer`].
pub struct ProducerBuilder {
    redis_url: Option<String>,
    max_length: Option<u64>,
    idempotency_ttl: Duration,
    retry_for: Duration,
    environment: Environment,
}

impl fmt::Debug for ProducerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerBuilder").field("max_length", &self.max_length).finish_non_exhaustive()
    }
}

impl ProducerBuilder {
    /// Sets the Redis URL. It overrides the environment variables `REDIS_URL`, `REDIS_HOST`, `REDIS_PORT` and
    /// `REDIS_PASSWORD`.
    #[must_use]
    pub fn redis_url(mut self, url: impl Into<String>) -> Self {
        self.redis_url = Some(url.into());
        self
    }

    /// Sets the maximum length of a stream in entries (default: no limit). At the limit, [`Producer::add`] waits and
    /// [`Producer::try_add`] fails. The limit is exact with any number of producers.
    #[must_use]
    pub fn max_length(mut self, entries: u64) -> Self {
        self.max_length = Some(entries);
        self
    }

    /// Sets how long idempotency keys are stored (default 24 h).
    #[must_use]
    pub fn idempotency_ttl(mut self, ttl: Duration) -> Self {
        self.idempotency_ttl = ttl;
        self
    }

    /// Sets how long to retry while Redis is unreachable or refuses commands temporarily (default 10 s). Only requests
    /// that are safe to repeat are retried.
    #[must_use]
    pub fn retry_for(mut self, patience: Duration) -> Self {
        self.retry_for = patience;
        self
    }

    /// Reads environment variables from `lookup` instead of the environment of the process.
    #[must_use]
    pub fn environment(mut self, lookup: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        self.environment = Box::new(lookup);
        self
    }

    /// Connects to Redis.
    ///
    /// # Errors
    /// [`ProducerError::Setting`] if a setting is invalid; [`ProducerError::Connect`] if Redis is unreachable for
    /// [`retry_for`](Self::retry_for).
    pub async fn connect(self) -> Result<Producer, ProducerError> {
        if self.max_length == Some(0) {
            return Err(ProducerError::Setting("the maximum length is 0; expected at least 1".to_owned()));
        }
        if self.idempotency_ttl < Duration::from_millis(1) {
            return Err(ProducerError::Setting(
                "the lifetime of idempotency keys is zero; expected at least 1 ms".to_owned(),
            ));
        }
        let address = match &self.redis_url {
            Some(url) => Address::from_url("redis_url", url)?,
            None => Address::from_env(&self.environment)?,
        };
        let producer = Producer {
            link: SharedLink::new(address, RESPONSE_TIMEOUT),
            limits: Limits { max_length: self.max_length, record_life: self.idempotency_ttl },
            retry_for: self.retry_for,
        };
        let reached = super::retry::persist(self.retry_for, "connecting", true, || producer.link.ping()).await;
        match reached {
            Ok(()) => Ok(producer),
            Err(failure) => Err(ProducerError::Connect(failure.error)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    Wait,
    Fail,
}

impl Producer {
    /// Connects to the Redis that the environment variables name.
    ///
    /// # Errors
    /// See [`ProducerBuilder::connect`].
    pub async fn connect() -> Result<Self, ProducerError> {
        Self::builder().connect().await
    }

    /// Returns a builder with the default settings.
    #[must_use]
    pub fn builder() -> ProducerBuilder {
        ProducerBuilder {
            redis_url: None,
            max_length: None,
            idempotency_ttl: Duration::from_hours(24),
            retry_for: Duration::from_secs(10),
            environment: Box::new(|name| std::env::var(name).ok()),
        }
    }

    /// Adds a task to the end of `stream` and returns its ID. Waits while the stream is full.
    ///
    /// Dropping the future before it completes leaves open whether the task was added.
    ///
    /// # Errors
    /// See [`ProducerError`]. With an [idempotency key](NewTask::idempotency_key), a lost reply is retried for
    /// [`retry_for`](ProducerBuilder::retry_for) before [`ProducerError::Unknown`] is returned.
    pub async fn add(&self, stream: impl Into<Name>, task: NewTask) -> Result<EntryId, ProducerError> {
        self.add_one(&stream.into(), task, WhenFull::Wait).await
    }

    /// Like [`add`](Self::add), but fails if the stream is full.
    ///
    /// # Errors
    /// [`ProducerError::Full`], and those of `add`.
    pub async fn try_add(&self, stream: impl Into<Name>, task: NewTask) -> Result<EntryId, ProducerError> {
        self.add_one(&stream.into(), task, WhenFull::Fail).await
    }

    /// Adds tasks in order, up to 128 per call, and returns their IDs. Waits while the stream is full.
    ///
    /// ```no_run
    /// # async fn example(producer: shepherd_monitor::worker::Producer) -> Result<(), Box<dyn std::error::Error>> {
    /// use shepherd_monitor::worker::NewTask;
    ///
    /// let tasks = (0..10_000).map(|n| NewTask::new().set("order_id", n.to_string()));
    /// let ids = producer.add_all("orders", tasks).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`add`](Self::add), with the IDs of the tasks that were added before.
    pub async fn add_all(
        &self,
        stream: impl Into<Name>,
        tasks: impl IntoIterator<Item = NewTask, IntoIter: Send>,
    ) -> Result<Vec<EntryId>, AddAllError> {
        self.add_many(&stream.into(), tasks.into_iter(), WhenFull::Wait).await
    }

    /// Like [`add_all`](Self::add_all), but fails as soon as the stream is full.
    ///
    /// # Errors
    /// [`ProducerError::Full`], and those of `add_all`.
    pub async fn try_add_all(
        &self,
        stream: impl Into<Name>,
        tasks: impl IntoIterator<Item = NewTask, IntoIter: Send>,
    ) -> Result<Vec<EntryId>, AddAllError> {
        self.add_many(&stream.into(), tasks.into_iter(), WhenFull::Fail).await
    }

    async fn add_one(&self, stream: &Name, task: NewTask, when_full: WhenFull) -> Result<EntryId, ProducerError> {
        check(stream, &task)?;
        let mut ids = Vec::with_capacity(1);
        self.add_batch(stream, &[task], when_full, &mut ids).await?;
        ids.pop().ok_or_else(|| ProducerError::NotAdded {
            stream: stream.clone(),
            reason: LinkError::Unusable("Redis returned no ID".to_owned()),
        })
    }

    async fn add_many(
        &self,
        stream: &Name,
        tasks: impl Iterator<Item = NewTask> + Send,
        when_full: WhenFull,
    ) -> Result<Vec<EntryId>, AddAllError> {
        let (mut added, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
        for task in tasks {
            // The tasks before an invalid one are added, as with any other error.
            let invalid = check(stream, &task).err();
            let size: usize = task.fields().iter().map(|(field, value)| field.len() + value.len()).sum();
            if batch.len() >= BATCH || invalid.is_some() || (bytes + size > BATCH_BYTES && !batch.is_empty()) {
                if let Err(error) = self.add_batch(stream, &batch, when_full, &mut added).await {
                    return Err(AddAllError { added, error });
                }
                batch.clear();
                bytes = 0;
            }
            if let Some(error) = invalid {
                return Err(AddAllError { added, error });
            }
            bytes += size;
            batch.push(task);
        }
        match self.add_batch(stream, &batch, when_full, &mut added).await {
            Ok(()) => Ok(added),
            Err(error) => Err(AddAllError { added, error }),
        }
    }

    /// Adds `tasks` and pushes their IDs to `ids`, also when a later task fails.
    async fn add_batch(
        &self,
        stream: &Name,
        mut tasks: &[NewTask],
        when_full: WhenFull,
        ids: &mut Vec<EntryId>,
    ) -> Result<(), ProducerError> {
        let (mut retry, mut give_up, mut pause) = (Retry::default(), None, FULL_FIRST);
        while !tasks.is_empty() {
            let repeatable = tasks.iter().all(|task| task.key().is_some());
            let failure = match additions::add(&self.link, stream, tasks, self.limits).await {
                Ok(Added { ids: new, stopped }) => {
                    if !new.is_empty() {
                        (retry, give_up, pause) = (Retry::default(), None, FULL_FIRST);
                    }
                    tasks = tasks.get(new.len()..).unwrap_or_default();
                    ids.extend(new);
                    match stopped {
                        None => return Ok(()),
                        Some(Stopped::Full { length }) if when_full == WhenFull::Fail => {
                            return Err(ProducerError::Full { stream: stream.clone(), length });
                        }
                        Some(Stopped::Full { .. }) => {
                            sleep(pause).await;
                            pause = FULL_LAST.min(pause * 2);
                            continue;
                        }
                        Some(Stopped::Refused(error)) => Failure { error, unanswered: false },
                    }
                }
                Err(failure) => failure,
            };
            let now = Instant::now();
            if !failure.may_retry(repeatable) || now >= *give_up.get_or_insert(now + self.retry_for) {
                return Err(lost_or_not(stream, failure));
            }
            retry.failed("adding tasks", &failure.error);
            sleep_until(retry.until()).await;
            retry.expire();
        }
        Ok(())
    }
}

fn lost_or_not(stream: &Name, failure: Failure) -> ProducerError {
    let (stream, reason) = (stream.clone(), failure.error);
    match failure.unanswered {
        true => ProducerError::Unknown { stream, reason },
        false => ProducerError::NotAdded { stream, reason },
    }
}

/// Rejects tasks that Redis would refuse or whose fields Lua cannot unpack.
fn check(stream: &Name, task: &NewTask) -> Result<(), ProducerError> {
    let reason = match task.fields().len() {
        _ if stream.as_bytes().is_empty() => "the stream name is empty".to_owned(),
        0 => "the task has no fields".to_owned(),
        fields if fields > MOST_FIELDS => format!("the task has {fields} fields; expected at most {MOST_FIELDS}"),
        _ => return Ok(()),
    };
    Err(ProducerError::InvalidTask { stream: stream.clone(), reason })
}
