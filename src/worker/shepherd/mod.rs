//! Locks, bodies and logs of responses, shared with the Python workers of Shepherd (feature `worker-shepherd`).
//!
//! Key names, databases, encodings and lifetimes are those of the platform. `lock` holds and renews a lock, `bodies`
//! encodes bodies, `logs` defines log entries. The callbacks of queries are in [`queries`](super::queries) (feature
//! `worker-database`).

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

/// Lifetime of bodies and logs on the platform: two weeks.
const LIFE: Duration = Duration::from_secs(1_210_000);
/// Maximum size of a body as JSON. Redis limits values to 512 MiB.
const LARGEST: u64 = 512 << 20;
/// Bodies may be large.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Short, because a renewal must succeed before the lock expires.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Error of a lock, body or log operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShepherdError {
    /// A setting is invalid; the text has the setting, its value and the expected value.
    #[error("{0}")]
    Setting(String),
    /// Redis is unreachable or refused the command.
    #[error("cannot {doing}: {reason}")]
    Redis {
        /// The operation that failed, and on which response.
        doing: String,
        /// Error of Redis or of the connection.
        reason: LinkError,
    },
    /// A body is larger than [`max_body_bytes`](ShepherdBuilder::max_body_bytes).
    #[error("the body {id} is too large: more than {limit} bytes of JSON")]
    TooLarge {
        /// ID of the body.
        id: String,
        /// Limit in bytes.
        limit: u64,
    },
    /// A body or log, stored or to be stored, has the wrong format.
    #[error("cannot {doing}: {reason}")]
    Malformed {
        /// The operation that failed, and on which response.
        doing: String,
        /// What is wrong with the data.
        reason: String,
    },
    /// Another worker held the lock for the whole wait.
    #[error("the lock of response {response_id} was held by others for {waited:?}")]
    LockHeld {
        /// ID of the response.
        response_id: String,
        /// How long this worker waited.
        waited: Duration,
    },
    /// The lock expired or was taken, so another worker may hold it. Nothing was written.
    #[error("the lock of response {response_id} is lost; another worker may hold it")]
    LockLost {
        /// ID of the response.
        response_id: String,
    },
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

impl From<BadSetting> for ShepherdError {
    fn from(bad: BadSetting) -> Self {
        Self::Setting(bad.to_string())
    }
}

impl ShepherdError {
    /// Whether the error is temporary, so that a retry can succeed.
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

/// Access to locks, bodies and logs of responses. Cheap to clone; clones share three connections, one per database,
/// which reconnect automatically.
///
/// ```no_run
/// use serde_json::{Value, json};
/// use shepherd_monitor::worker::shepherd::Shepherd;
/// use shepherd_monitor::worker::{Done, Task, TaskFailed};
///
/// /// Merges the results of a callback into the response.
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
///     // Fails if the lock was lost, so that the merge of another worker is not overwritten.
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
    /// Sets the Redis URL. It overrides the environment variables `REDIS_URL`, `REDIS_HOST`, `REDIS_PORT` and
    /// `REDIS_PASSWORD`. Its database number is ignored, because the databases are fixed.
    #[must_use]
    pub fn redis_url(mut self, url: impl Into<String>) -> Self {
        self.redis_url = Some(url.into());
        self
    }

    /// Sets the lifetime of bodies and logs (default 1,210,000 s, as on the platform).
    #[must_use]
    pub fn life(mut self, life: Duration) -> Self {
        self.limits.life = life;
        self
    }

    /// Sets the maximum size of a body in bytes of JSON (default and maximum 512 MiB).
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: u64) -> Self {
        self.limits.largest = bytes;
        self
    }

    /// Sets how long to retry while Redis is unreachable or refuses commands temporarily (default 10 s). Only requests
    /// that are safe to repeat are retried.
    #[must_use]
    pub fn retry_for(mut self, patience: Duration) -> Self {
        self.limits.retry_for = patience;
        self
    }

    /// Sets the timing of locks (default: that of the Python workers).
    #[must_use]
    pub fn lock_options(mut self, options: LockOptions) -> Self {
        self.limits.lock = options;
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
    /// If a setting is invalid, or if Redis is unreachable for [`retry_for`](Self::retry_for).
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
    /// Connects to the Redis that the environment variables name.
    ///
    /// # Errors
    /// See [`ShepherdBuilder::connect`].
    pub async fn connect() -> Result<Self, ShepherdError> {
        Self::builder().connect().await
    }

    /// Returns a builder with the default settings.
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

    /// Returns the body of a query, response or callback; `None` if it does not exist or has expired.
    ///
    /// # Errors
    /// If Redis fails; if the body is too large, not zstd, not JSON, or not a `T`.
    pub async fn body<T: DeserializeOwned + Send + 'static>(&self, id: &str) -> Result<Option<T>, ShepherdError> {
        let Some(blob) = self.blob(id).await? else { return Ok(None) };
        bodies::decode(id, blob, self.limits.largest).await.map(Some)
    }

    /// Like [`body`](Self::body), but returns the JSON text without parsing it.
    ///
    /// # Errors
    /// If Redis fails; if the body is too large or not zstd.
    pub async fn body_json(&self, id: &str) -> Result<Option<Vec<u8>>, ShepherdError> {
        let Some(blob) = self.blob(id).await? else { return Ok(None) };
        bodies::decode_json(id, blob, self.limits.largest).await.map(Some)
    }

    async fn blob(&self, id: &str) -> Result<Option<Vec<u8>>, ShepherdError> {
        let got = persist(self.limits.retry_for, "reading a body", true, || redis::get(&self.bodies, id)).await;
        got.map_err(|failure| ShepherdError::redis("read the body", id, failure))
    }

    /// Stores a body and replaces an existing one. For the body of a response that several workers change, use
    /// [`ResponseLock::put_body`].
    ///
    /// # Errors
    /// If Redis fails; if the body is too large or cannot be serialized.
    pub async fn put_body(&self, id: &str, body: &(impl Serialize + Sync + ?Sized)) -> Result<(), ShepherdError> {
        self.put_blob(id, &bodies::encode(id, body, self.limits.largest).await?).await
    }

    /// Stores a body that is JSON text.
    ///
    /// # Errors
    /// If Redis fails; if the body is too large or not JSON.
    pub async fn put_body_json(&self, id: &str, json: Vec<u8>) -> Result<(), ShepherdError> {
        self.put_blob(id, &bodies::encode_json(id, json, self.limits.largest).await?).await
    }

    async fn put_blob(&self, id: &str, blob: &[u8]) -> Result<(), ShepherdError> {
        let Limits { retry_for, life, .. } = self.limits;
        let put = persist(retry_for, "storing a body", true, || redis::put(&self.bodies, id, blob, life)).await;
        put.map_err(|failure| ShepherdError::redis("store the body", id, failure))
    }

    /// Returns the log entries of a response, oldest first; empty if there are none.
    ///
    /// # Errors
    /// If Redis fails; if the stored value is not a list of log entries.
    pub async fn logs(&self, response_id: &str) -> Result<Vec<LogEntry>, ShepherdError> {
        let got = persist(self.limits.retry_for, "reading logs", true, || redis::get(&self.logs, response_id)).await;
        let got = got.map_err(|failure| ShepherdError::redis("read the logs of response", response_id, failure))?;
        let Some(json) = got else { return Ok(Vec::new()) };
        serde_json::from_slice(&json).map_err(|e| ShepherdError::Malformed {
            doing: format!("read the logs of response {response_id}"),
            reason: format!("the stored value is not a JSON array of log entries: {e}"),
        })
    }

    /// Appends log entries, oldest first. After an error they may have been appended.
    ///
    /// # Errors
    /// If Redis fails; if the stored value is not a JSON list.
    pub async fn append_logs(&self, response_id: &str, entries: &[LogEntry]) -> Result<(), ShepherdError> {
        if entries.is_empty() {
            return Ok(());
        }
        let doing = || format!("append to the logs of response {response_id}");
        let malformed = |reason: String| ShepherdError::Malformed { doing: doing(), reason };
        let json: Result<Vec<String>, _> = entries.iter().map(serde_json::to_string).collect();
        let json = json.map_err(|e| malformed(e.to_string()))?.join(",");
        let Limits { retry_for, life, .. } = self.limits;
        // Not repeatable: a second attempt could duplicate the entries.
        let append = || redis::append_logs(&self.logs, response_id, &json, life);
        match persist(retry_for, "appending logs", false, append).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(malformed("the stored value is not a JSON array".to_owned())),
            Err(failure) => Err(ShepherdError::redis("append to the logs of response", response_id, failure)),
        }
    }
}
