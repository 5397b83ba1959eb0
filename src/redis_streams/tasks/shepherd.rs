//! What Shepherd keeps of a response in Redis, in databases of their own: its lock, its body, its logs.

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

/// The database of bodies.
pub const BODIES: i64 = 1;
/// The database of locks.
pub const LOCKS: i64 = 2;
/// The database of logs.
pub const LOGS: i64 = 3;

static ACQUIRE: Script = Script::new(include_str!("../scripts/lock_acquire.lua"));
static RENEW: Script = Script::new(include_str!("../scripts/lock_renew.lua"));
static RELEASE: Script = Script::new(include_str!("../scripts/lock_release.lua"));
static LOCKED_PUT: Script = Script::new(include_str!("../scripts/locked_put.lua"));
static APPEND_LOGS: Script = Script::new(include_str!("../scripts/append_logs.lua"));

/// One attempt to hold the lock of a response.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The response, after which the lock and its channel are named.
    pub response_id: String,
    /// The consumer, the lock's value.
    pub consumer: Name,
    /// What no other attempt has.
    pub token: String,
}

impl Claim {
    fn call(&self) -> Call {
        let mut call = Call::default();
        call.key(self.response_id.as_bytes()).key(format!("{}:token", self.response_id).as_bytes());
        call.arg(self.consumer.as_bytes()).arg(self.token.as_bytes());
        call
    }

    /// Acquires the lock for `ttl`; false when it is held. Safe to repeat.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn acquire(&self, locks: &SharedLink, ttl: Duration) -> Result<bool, Failure> {
        let mut call = self.call();
        call.number(ttl.as_millis());
        locks.run(&ACQUIRE, &call).await.and_then(yes)
    }

    /// Prolongs it to `ttl` from now; false when it is not this attempt's any more. Safe to repeat.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn renew(&self, locks: &SharedLink, ttl: Duration) -> Result<bool, Failure> {
        let mut call = self.call();
        call.number(ttl.as_millis());
        locks.run(&RENEW, &call).await.and_then(yes)
    }

    /// Releases it; false when it was not this attempt's any more.
    ///
    /// # Errors
    /// Of the connection or the server.
    pub async fn release(&self, locks: &SharedLink) -> Result<bool, Failure> {
        locks.run(&RELEASE, &self.call()).await.and_then(yes)
    }

    /// Stores `body` as the response's own, for `life`; false when the lock is not this attempt's any more.
    /// Safe to repeat.
    ///
    /// # Errors
    /// Of the connection or the server.
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

/// What a key holds; `None` when there is no such key.
///
/// # Errors
/// Of the connection or the server.
pub async fn get(link: &SharedLink, key: &str) -> Result<Option<Vec<u8>>, Failure> {
    let mut pipe = redis::pipe();
    pipe.cmd("GET").arg(key);
    match link.one(&mut pipe).await? {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        other => Err(Failure { error: LinkError::unexpected("GET", &other), unanswered: false }),
    }
}

/// Stores `value` under a key for `life`.
///
/// # Errors
/// Of the connection or the server.
pub async fn put(link: &SharedLink, key: &str, value: &[u8], life: Duration) -> Result<(), Failure> {
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(key).arg(value).arg("EX").arg(life.as_secs().max(1));
    link.one(&mut pipe).await.map(drop)
}

/// Appends `entries`, JSON objects with commas between them, to the logs of a response; false when what
/// is there is no JSON list.
///
/// # Errors
/// Of the connection or the server.
pub async fn append_logs(link: &SharedLink, response_id: &str, entries: &str, life: Duration) -> Result<bool, Failure> {
    let mut call = Call::default();
    call.key(response_id.as_bytes()).arg(entries.as_bytes()).number(life.as_secs().max(1));
    link.run(&APPEND_LOGS, &call).await.and_then(yes)
}

/// The releases of one lock, as they are published.
pub struct Releases(PubSub);

impl Releases {
    /// Listens on a connection of its own; `None` when Redis cannot be reached.
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

    /// Waits for the next one; false when the connection broke.
    pub async fn next(&mut self) -> bool {
        self.0.on_message().next().await.is_some()
    }
}
