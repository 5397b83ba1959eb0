//! Adds tasks to streams.
//!
//! One script call adds up to 128 tasks. Whether a call may be repeated after its reply was lost is
//! decided here: only when every task in it has an idempotency key.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::retry::Retry;
use crate::contract::Name;
use crate::contract::task::NewTask;
use crate::environment::BadSetting;
use crate::redis_streams::tasks::additions::{self, Added, Limits, MOST_FIELDS, Stopped};
use crate::redis_streams::tasks::{Address, EntryId, Failure, LinkError, SharedLink};

/// Gives the value of an environment variable.
pub(super) type Environment = Box<dyn Fn(&str) -> Option<String> + Send>;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most tasks of one script call, and most bytes of their fields unless a single task has more.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1 << 20;
/// Pause before a full stream is tried again: the first one, and the longest.
const FULL_FIRST: Duration = Duration::from_millis(10);
const FULL_LAST: Duration = Duration::from_millis(500);

/// Adding a task failed, or its outcome is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// A setting cannot be used: which one, its value, what was expected.
    #[error("{0}")]
    Setting(String),
    /// No connection could be opened.
    #[error("cannot connect: {0}")]
    Connect(LinkError),
    /// The task cannot be added to any stream.
    #[error("cannot add a task to {stream}: {reason}")]
    InvalidTask {
        /// The stream.
        stream: Name,
        /// What is wrong with the task or the stream's name.
        reason: String,
    },
    /// The stream is as long as [`max_length`](ProducerBuilder::max_length) allows. Nothing was added.
    #[error("stream {stream} is full: {length} entries")]
    Full {
        /// The stream.
        stream: Name,
        /// Its length.
        length: u64,
    },
    /// Redis could not be reached, or refused, for longer than
    /// [`retry_for`](ProducerBuilder::retry_for) or for good. Nothing was added.
    #[error("cannot add tasks to {stream}: {reason}")]
    NotAdded {
        /// The stream.
        stream: Name,
        /// What Redis or the connection said.
        reason: LinkError,
    },
    /// The reply was lost. The task may have been added; adding it again may add it twice, unless it has
    /// an [idempotency key](NewTask::idempotency_key).
    #[error("the reply to adding tasks to {stream} was lost, so they may have been added: {reason}")]
    Unknown {
        /// The stream.
        stream: Name,
        /// What happened to the connection.
        reason: LinkError,
    },
}

impl From<BadSetting> for ProducerError {
    fn from(bad: BadSetting) -> Self {
        Self::Setting(bad.to_string())
    }
}

impl ProducerError {
    /// Whether adding the same task later can work: the stream was full, or Redis was unreachable. After
    /// [`Unknown`](Self::Unknown) this is so too, but the task may be added twice.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Unknown { .. } => true,
            Self::NotAdded { reason, .. } | Self::Connect(reason) => reason.may_pass(),
            Self::Setting(_) | Self::InvalidTask { .. } => false,
        }
    }
}

/// Adding many tasks failed part way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} tasks were added, then: {error}", added.len())]
pub struct AddAllError {
    /// The ids of the first tasks, in order. With [`ProducerError::Unknown`], up to 128 tasks after them
    /// may have been added too.
    pub added: Vec<EntryId>,
    /// Why the next task was not added.
    #[source]
    pub error: ProducerError,
}

/// Adds tasks to streams. Cheap to clone; clones share one connection, which is opened again when it
/// breaks.
///
/// ```no_run
/// use shepherd_monitor::worker::{NewTask, Producer, Workflow};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let producer = Producer::connect().await?;
/// let task = NewTask::query("3f2a9c41", "8b01d7e2").workflow(Workflow::through(["aragorn.score", "sort_results_score"]));
/// // The key makes it safe to repeat, by the library and by you: after a lost reply nothing is added twice.
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
    /// The URL of Redis, instead of what the environment says (`REDIS_URL`, or `REDIS_HOST`,
    /// `REDIS_PORT` and `REDIS_PASSWORD`).
    #[must_use]
    pub fn redis_url(mut self, url: impl Into<String>) -> Self {
        self.redis_url = Some(url.into());
        self
    }

    /// Adds nothing to a stream that has so many entries (no limit). [`Producer::add`] then waits,
    /// [`Producer::try_add`] fails. The limit is exact, however many producers there are.
    #[must_use]
    pub fn max_length(mut self, entries: u64) -> Self {
        self.max_length = Some(entries);
        self
    }

    /// How long an idempotency key is remembered (24 h).
    #[must_use]
    pub fn idempotency_ttl(mut self, ttl: Duration) -> Self {
        self.idempotency_ttl = ttl;
        self
    }

    /// How long a Redis that is unreachable or refuses is tried again, where that is safe (10 s).
    #[must_use]
    pub fn retry_for(mut self, patience: Duration) -> Self {
        self.retry_for = patience;
        self
    }

    /// Reads settings from `lookup` instead of the process's environment.
    #[must_use]
    pub fn environment(mut self, lookup: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        self.environment = Box::new(lookup);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// When a setting cannot be used, or Redis cannot be reached within
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
    /// A producer for the Redis that the environment names.
    ///
    /// # Errors
    /// As [`ProducerBuilder::connect`].
    pub async fn connect() -> Result<Self, ProducerError> {
        Self::builder().connect().await
    }

    /// A producer with settings of its own.
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

    /// Adds a task to the end of `stream`, and waits as long as the stream is full.
    ///
    /// When the future is dropped before it is ready, the task may have been added.
    ///
    /// # Errors
    /// See [`ProducerError`]. With an [idempotency key](NewTask::idempotency_key), a lost reply is
    /// tried again and never [`ProducerError::Unknown`] before
    /// [`retry_for`](ProducerBuilder::retry_for) is over.
    pub async fn add(&self, stream: impl Into<Name>, task: NewTask) -> Result<EntryId, ProducerError> {
        self.add_one(&stream.into(), task, WhenFull::Wait).await
    }

    /// Like [`add`](Self::add), but fails at once when the stream is full.
    ///
    /// # Errors
    /// [`ProducerError::Full`], and as `add`.
    pub async fn try_add(&self, stream: impl Into<Name>, task: NewTask) -> Result<EntryId, ProducerError> {
        self.add_one(&stream.into(), task, WhenFull::Fail).await
    }

    /// Adds many tasks in order, up to 128 in one call, and waits as long as the stream is full. Gives
    /// their ids.
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
    /// As [`add`](Self::add), with the ids of what was added before.
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
    /// [`ProducerError::Full`], and as `add_all`.
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
            // The tasks before an invalid one are added, as before any other failure.
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

    /// Adds `tasks`, whose ids go to `ids` even if a later one fails.
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

/// Rejects tasks that Redis would refuse, or whose fields Lua cannot unpack.
fn check(stream: &Name, task: &NewTask) -> Result<(), ProducerError> {
    let reason = match task.fields().len() {
        _ if stream.as_bytes().is_empty() => "the stream name is empty".to_owned(),
        0 => "the task has no fields".to_owned(),
        fields if fields > MOST_FIELDS => format!("the task has {fields} fields; expected at most {MOST_FIELDS}"),
        _ => return Ok(()),
    };
    Err(ProducerError::InvalidTask { stream: stream.clone(), reason })
}
