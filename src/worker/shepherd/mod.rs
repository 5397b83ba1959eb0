//! What workers of Shepherd share beside their streams: the lock, the body and the logs of a response
//! (feature `worker-shepherd`).
//!
//! Key names, databases, encodings and lifetimes are upstream's, so that Python workers and these take the
//! same locks and read one another's bodies. `lock` holds a lock and keeps it, `bodies` encodes bodies,
//! `logs` says what a log entry is. The callbacks of queries are in
//! [`queries`](super::queries) (feature `worker-database`).

mod bodies;
mod lock;
mod logs;

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use lock::{LockOptions, ResponseLock};
pub use logs::LogEntry;

use super::producer::Environment;
use super::retry::persist;
use crate::environment::BadSetting;
use crate::redis_streams::tasks::shepherd::{self as redis, BODIES, LOCKS, LOGS};
use crate::redis_streams::tasks::{Address, Failure, LinkError, SharedLink};

/// How long bodies and logs are kept, as upstream does: two weeks.
const LIFE: Duration = Duration::from_secs(1_210_000);
/// The largest body, as JSON. Redis takes no value above 512 MiB.
const LARGEST: u64 = 512 << 20;
/// Bodies may be large.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// A lock must be renewed soon or not at all.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why something of Shepherd's could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShepherdError {
    /// A setting cannot be used: which one, its value, what was expected.
    #[error("{0}")]
    Setting(String),
    /// Redis refused or could not be reached.
    #[error("cannot {doing}: {reason}")]
    Redis {
        /// What failed, on which response.
        doing: String,
        /// What Redis or the connection said.
        reason: LinkError,
    },
    /// A body is larger than [`max_body_bytes`](ShepherdBuilder::max_body_bytes).
    #[error("the body {id} is too large: more than {limit} bytes of JSON")]
    TooLarge {
        /// Its id.
        id: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// What is stored, or was to be stored, is not what it should be.
    #[error("cannot {doing}: {reason}")]
    Malformed {
        /// What failed, on which response.
        doing: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another worker held the lock all the time.
    #[error("the lock of response {response_id} was held by others for {waited:?}")]
    LockHeld {
        /// The response.
        response_id: String,
        /// How long this worker waited.
        waited: Duration,
    },
    /// The lock expired or was taken away: another worker may hold it. Nothing was written.
    #[error("the lock of response {response_id} is lost; another worker may hold it")]
    LockLost {
        /// The response.
        response_id: String,
    },
    /// The process ends.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

impl From<BadSetting> for ShepherdError {
    fn from(bad: BadSetting) -> Self {
        Self::Setting(bad.to_string())
    }
}

impl ShepherdError {
    /// Whether trying again later can help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Redis { reason, .. } => reason.may_pass(),
            Self::LockHeld { .. } | Self::LockLost { .. } => true,
            Self::Setting(_) | Self::TooLarge { .. } | Self::Malformed { .. } | Self::ShuttingDown => false,
        }
    }

    fn redis(doing: &str, id: &str, failure: Failure) -> Self {
        Self::Redis { doing: format!("{doing} {id}"), reason: failure.error }
    }
}

/// The locks, bodies and logs of responses. Cheap to clone; clones share three connections, one for each
/// database, which are opened again when they break.
///
/// ```no_run
/// use serde_json::{Value, json};
/// use shepherd_monitor::worker::shepherd::Shepherd;
/// use shepherd_monitor::worker::{Done, Task, TaskFailed};
///
/// /// Merges the answer of one callback into the response.
/// async fn merge(shepherd: Shepherd, task: Task) -> Result<Done, Box<dyn std::error::Error + Send + Sync>> {
///     let response_id = task.response_id().ok_or("no response_id")?;
///     let callback_id = task.field("callback_id").and_then(|id| std::str::from_utf8(id).ok()).ok_or("no callback_id")?;
///     let lock = shepherd.lock(response_id, task.fence().consumer.clone()).await?;
///     let mut response: Value = shepherd.body(response_id).await?.ok_or("no response")?;
///     let answer: Value = shepherd.body(callback_id).await?.ok_or("no answer")?;
///     if let (Some(results), Some(new)) = (
///         response.pointer_mut("/message/results").and_then(Value::as_array_mut),
///         answer.pointer("/message/results").and_then(Value::as_array),
///     ) {
///         results.extend(new.iter().cloned());
///     }
///     // Written only while the lock is held, so that no other worker's merge is overwritten.
///     lock.put_body(&response).await?;
///     lock.release().await?;
///     Ok(Done::new())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Shepherd {
    locks: SharedLink,
    bodies: SharedLink,
    logs: SharedLink,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    life: Duration,
    largest: u64,
    retry_for: Duration,
    lock: LockOptions,
}

/// Settings of [`Shepherd`].
pub struct ShepherdBuilder {
    redis_url: Option<String>,
    limits: Limits,
    environment: Environment,
}

impl fmt::Debug for ShepherdBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShepherdBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ShepherdBuilder {
    /// The URL of Redis, instead of what the environment says (`REDIS_URL`, or `REDIS_HOST`,
    /// `REDIS_PORT` and `REDIS_PASSWORD`). Its database number is ignored: Shepherd's are fixed.
    #[must_use]
    pub fn redis_url(mut self, url: impl Into<String>) -> Self {
        self.redis_url = Some(url.into());
        self
    }

    /// How long bodies and logs are kept (1,210,000 s, as upstream).
    #[must_use]
    pub fn life(mut self, life: Duration) -> Self {
        self.limits.life = life;
        self
    }

    /// The largest body that is read or written, in bytes of JSON (512 MiB, also the most).
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: u64) -> Self {
        self.limits.largest = bytes;
        self
    }

    /// How long a Redis that is unreachable or refuses is tried again, where that is safe (10 s).
    #[must_use]
    pub fn retry_for(mut self, patience: Duration) -> Self {
        self.limits.retry_for = patience;
        self
    }

    /// How locks are acquired and kept (as upstream does).
    #[must_use]
    pub fn lock_options(mut self, options: LockOptions) -> Self {
        self.limits.lock = options;
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
    /// When a setting cannot be used, or Redis cannot be reached within [`retry_for`](Self::retry_for).
    pub async fn connect(self) -> Result<Shepherd, ShepherdError> {
        let limits = self.limits;
        if limits.life < Duration::from_secs(1) {
            return Err(ShepherdError::Setting("the TTL of bodies is below one second".to_owned()));
        }
        if !(1..=LARGEST).contains(&limits.largest) {
            let largest = limits.largest;
            return Err(ShepherdError::Setting(format!(
                "the largest body is {largest} bytes; expected 1 to {LARGEST} (512 MiB)"
            )));
        }
        limits.lock.check()?;
        let address = match &self.redis_url {
            Some(url) => Address::from_url("redis_url", url)?,
            None => Address::from_env(&self.environment)?,
        };
        let link = |database, timeout| SharedLink::new(address.database(database), timeout);
        let shepherd = Shepherd {
            locks: link(LOCKS, LOCK_TIMEOUT),
            bodies: link(BODIES, RESPONSE_TIMEOUT),
            logs: link(LOGS, RESPONSE_TIMEOUT),
            limits,
        };
        for link in [&shepherd.locks, &shepherd.bodies, &shepherd.logs] {
            let reached = persist(limits.retry_for, "connecting", true, || link.ping()).await;
            reached.map_err(|failure| ShepherdError::Redis { doing: "connect".to_owned(), reason: failure.error })?;
        }
        Ok(shepherd)
    }
}

impl Shepherd {
    /// Connects to the Redis that the environment names.
    ///
    /// # Errors
    /// As [`ShepherdBuilder::connect`].
    pub async fn connect() -> Result<Self, ShepherdError> {
        Self::builder().connect().await
    }

    /// With settings of its own.
    #[must_use]
    pub fn builder() -> ShepherdBuilder {
        ShepherdBuilder {
            redis_url: None,
            limits: Limits {
                life: LIFE,
                largest: LARGEST,
                retry_for: Duration::from_secs(10),
                lock: LockOptions::default(),
            },
            environment: Box::new(|name| std::env::var(name).ok()),
        }
    }

    /// The body with this id, of a query, a response or a callback; `None` when there is none, or no longer.
    ///
    /// # Errors
    /// Of Redis; when the body is too large, no zstd, no JSON, or not a `T`.
    pub async fn body<T: DeserializeOwned + Send + 'static>(&self, id: &str) -> Result<Option<T>, ShepherdError> {
        let Some(blob) = self.blob(id).await? else { return Ok(None) };
        bodies::decode(id, blob, self.limits.largest).await.map(Some)
    }

    /// Like [`body`](Self::body), as the JSON text itself, which is not parsed.
    ///
    /// # Errors
    /// Of Redis; when the body is too large or no zstd.
    pub async fn body_json(&self, id: &str) -> Result<Option<Vec<u8>>, ShepherdError> {
        let Some(blob) = self.blob(id).await? else { return Ok(None) };
        bodies::decode_json(id, blob, self.limits.largest).await.map(Some)
    }

    async fn blob(&self, id: &str) -> Result<Option<Vec<u8>>, ShepherdError> {
        let got = persist(self.limits.retry_for, "reading a body", true, || redis::get(&self.bodies, id)).await;
        got.map_err(|failure| ShepherdError::redis("read the body", id, failure))
    }

    /// Stores a body under this id, and replaces an earlier one. The body of a response that several workers
    /// change is stored by [`ResponseLock::put_body`].
    ///
    /// # Errors
    /// Of Redis; when the body is too large, or `body` cannot be written as JSON.
    pub async fn put_body(&self, id: &str, body: &(impl Serialize + Sync + ?Sized)) -> Result<(), ShepherdError> {
        self.put_blob(id, &bodies::encode(id, body, self.limits.largest).await?).await
    }

    /// Stores a body that is JSON text already.
    ///
    /// # Errors
    /// Of Redis; when the body is too large or no JSON.
    pub async fn put_body_json(&self, id: &str, json: Vec<u8>) -> Result<(), ShepherdError> {
        self.put_blob(id, &bodies::encode_json(id, json, self.limits.largest).await?).await
    }

    async fn put_blob(&self, id: &str, blob: &[u8]) -> Result<(), ShepherdError> {
        let Limits { retry_for, life, .. } = self.limits;
        let put = persist(retry_for, "storing a body", true, || redis::put(&self.bodies, id, blob, life)).await;
        put.map_err(|failure| ShepherdError::redis("store the body", id, failure))
    }

    /// The logs of a response, oldest first; empty when there are none.
    ///
    /// # Errors
    /// Of Redis; when what is there is no list of log entries.
    pub async fn logs(&self, response_id: &str) -> Result<Vec<LogEntry>, ShepherdError> {
        let got = persist(self.limits.retry_for, "reading logs", true, || redis::get(&self.logs, response_id)).await;
        let got = got.map_err(|failure| ShepherdError::redis("read the logs of response", response_id, failure))?;
        let Some(json) = got else { return Ok(Vec::new()) };
        serde_json::from_slice(&json).map_err(|e| ShepherdError::Malformed {
            doing: format!("read the logs of response {response_id}"),
            reason: format!("the stored value is not a JSON array of log entries: {e}"),
        })
    }

    /// Appends entries, oldest first, to the logs of a response. After an error they may have been appended.
    ///
    /// # Errors
    /// Of Redis; when what is there is no JSON list.
    pub async fn append_logs(&self, response_id: &str, entries: &[LogEntry]) -> Result<(), ShepherdError> {
        if entries.is_empty() {
            return Ok(());
        }
        let doing = || format!("append to the logs of response {response_id}");
        let malformed = |reason: String| ShepherdError::Malformed { doing: doing(), reason };
        let json: Result<Vec<String>, _> = entries.iter().map(serde_json::to_string).collect();
        let json = json.map_err(|e| malformed(e.to_string()))?.join(",");
        let Limits { retry_for, life, .. } = self.limits;
        // Not repeatable: entries would stand there twice.
        let append = || redis::append_logs(&self.logs, response_id, &json, life);
        match persist(retry_for, "appending logs", false, append).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(malformed("the stored value is not a JSON array".to_owned())),
            Err(failure) => Err(ShepherdError::redis("append to the logs of response", response_id, failure)),
        }
    }
}
