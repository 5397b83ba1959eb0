//! Lock, body and logs of a response, each in a separate Redis database.

use std::time::Duration;

use futures_util::StreamExt;
use redis::Value;
use redis::aio::PubSub;
use tokio::time::timeout;

use super::link::CONNECT_TIMEOUT;
use super::script::{Call, Script};
use super::shared_link::{Failure, SharedLink};
use super::{Address, LinkError};
use crate::contract::Name;

/// Database of bodies.
pub const BODIES: i64 = 1;
/// Database of locks.
pub const LOCKS: i64 = 2;
/// Database of logs.
pub const LOGS: i64 = 3;

static ACQUIRE: Script = Script::new(include_str!("../scripts/lock_acquire.lua"));
static RENEW: Script = Script::new(include_str!("../scripts/lock_renew.lua"));
static RELEASE: Script = Script::new(include_str!("../scripts/lock_release.lua"));
static LOCKED_PUT: Script = Script::new(include_str!("../scripts/locked_put.lua"));
static APPEND_LOGS: Script = Script::new(include_str!("../scripts/append_logs.lua"));

/// An attempt to acquire the lock of a response.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Response ID: the key and channel of the lock.
    pub response_id: String,
    /// Consumer name: the value of the lock.
    pub consumer: Name,
    /// Token that is unique to this attempt.
    pub token: String,
}

impl Claim {
    fn call(&self) -> Call {
        let mut call = Call::default();
        call.key(self.response_id.as_bytes()).key(format!("{}:token", self.response_id).as_bytes());
        call.arg(self.consumer.as_bytes()).arg(self.token.as_bytes());
        call
    }

    /// Acquires the lock for `ttl`; `false` if it is taken. Idempotent.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn acquire(&self, locks: &SharedLink, ttl: Duration) -> Result<bool, Failure> {
        let mut call = self.call();
        call.number(ttl.as_millis());
        locks.run(&ACQUIRE, &call).await.and_then(yes)
    }

    /// Extends the lock to `ttl` from now; `false` if this attempt does not hold it. Idempotent.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn renew(&self, locks: &SharedLink, ttl: Duration) -> Result<bool, Failure> {
        let mut call = self.call();
        call.number(ttl.as_millis());
        locks.run(&RENEW, &call).await.and_then(yes)
    }

    /// Releases the lock; `false` if this attempt does not hold it.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn release(&self, locks: &SharedLink) -> Result<bool, Failure> {
        locks.run(&RELEASE, &self.call()).await.and_then(yes)
    }

    /// Stores `body` as the body of the response for `life`; `false` if this attempt does not hold the lock.
    /// Idempotent.
    ///
    /// # Errors
    /// If the connection or the script fails.
    pub async fn put(&self, locks: &SharedLink, body: &[u8], life: Duration) -> Result<bool, Failure> {
        let mut call = self.call();
        call.key(self.response_id.as_bytes());
        call.arg(body).number(life.as_secs().max(1)).number(BODIES);
        locks.run(&LOCKED_PUT, &call).await.and_then(yes)
    }
}

fn yes(reply: Value) -> Result<bool, Failure> {
    match reply {
        Value::Int(1) => Ok(true),
        Value::Int(0) => Ok(false),
        other => Err(Failure { error: LinkError::unexpected("EVALSHA", &other), unanswered: false }),
    }
}

/// Returns the value of a key; `None` if it does not exist.
///
/// # Errors
/// If the connection or the command fails.
pub async fn get(link: &SharedLink, key: &str) -> Result<Option<Vec<u8>>, Failure> {
    let mut pipe = redis::pipe();
    pipe.cmd("GET").arg(key);
    match link.one(&mut pipe).await? {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        other => Err(Failure { error: LinkError::unexpected("GET", &other), unanswered: false }),
    }
}

/// Stores `value` for `life`.
///
/// # Errors
/// If the connection or the command fails.
pub async fn put(link: &SharedLink, key: &str, value: &[u8], life: Duration) -> Result<(), Failure> {
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(key).arg(value).arg("EX").arg(life.as_secs().max(1));
    link.one(&mut pipe).await.map(drop)
}

/// Appends `entries`, comma-separated JSON objects, to the logs of a response; `false` if the stored value is not a
/// JSON list.
///
/// # Errors
/// If the connection or the script fails.
pub async fn append_logs(link: &SharedLink, response_id: &str, entries: &str, life: Duration) -> Result<bool, Failure> {
    let mut call = Call::default();
    call.key(response_id.as_bytes()).arg(entries.as_bytes()).number(life.as_secs().max(1));
    link.run(&APPEND_LOGS, &call).await.and_then(yes)
}

/// Subscription to the releases of a lock.
pub struct Releases(PubSub);

impl Releases {
    /// Subscribes on a separate connection; `None` if Redis is unreachable.
    pub async fn of(locks: &SharedLink, response_id: &str) -> Option<Self> {
        let address: &Address = locks.address();
        let client = address.client().ok()?;
        let subscribed = async {
            let mut pubsub = client.get_async_pubsub().await.ok()?;
            pubsub.subscribe(response_id).await.ok()?;
            Some(Self(pubsub))
        };
        timeout(CONNECT_TIMEOUT, subscribed).await.ok().flatten()
    }

    /// Waits for the next release; `false` if the connection failed.
    pub async fn next(&mut self) -> bool {
        self.0.on_message().next().await.is_some()
    }
}
