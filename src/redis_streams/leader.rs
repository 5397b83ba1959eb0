//! The lease of the leader in Redis, used while Postgres is unreachable.

use std::time::{Duration, Instant};

use redis::{Cmd, Value, cmd};
use tokio::sync::Mutex;

use super::connection::{PersistentConnection, Pool, checkout, send, trouble};
use super::resp_reader::Reply;
use crate::contract::keys;
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Takes or renews the lease if it is free or already held.
const HOLD: &str = "local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

/// Releases the lease if it is held.
const LEAVE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0";

/// Duration of the leader's lease, in Redis and in Postgres: a leader that has not renewed it for this long is no longer the leader.
pub const LEASE: Duration = Duration::from_secs(10);
/// Interval of checks for a leader.
const PAUSE: Duration = Duration::from_millis(500);

/// The leader's lease in Redis for the instance `holder`. It is used with every tick, so it has its own connection. An observer has
/// no lease: it neither leads other instances nor follows them.
pub struct LeaderLease {
    holder: String,
    connection: Option<Mutex<PersistentConnection>>,
}

impl LeaderLease {
    /// Returns the lease for the instance `holder`.
    #[must_use]
    pub fn new(holder: String, connection: PersistentConnection) -> Self {
        Self { holder, connection: Some(Mutex::new(connection)) }
    }

    /// Returns no lease, for an observer: Redis never reports another leader.
    #[must_use]
    pub fn none(holder: String) -> Self {
        Self { holder, connection: None }
    }

    /// Returns whether another instance holds the lease.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn is_anothers(&self) -> Result<bool, SourceTrouble> {
        if self.connection.is_none() {
            return Ok(false);
        }
        let leader = self.ask(cmd("GET").arg(keys::ALERTS_LEADER)).await?;
        Ok(Reply::of(&leader).text().is_some_and(|leader| leader != self.holder))
    }

    /// Takes the lease, even if another instance holds it.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn take(&self, lease: Duration) -> Result<(), SourceTrouble> {
        let taking = &mut cmd("SET");
        self.ask(taking.arg(keys::ALERTS_LEADER).arg(&self.holder).arg("PX").arg(millis(lease))).await.map(drop)
    }

    /// Takes the lease unless another instance holds it. Returns whether this instance holds it.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn take_if_free(&self, lease: Duration) -> Result<bool, SourceTrouble> {
        if self.connection.is_none() {
            return Ok(true);
        }
        let taking = &mut cmd("EVAL");
        taking.arg(HOLD).arg(1).arg(keys::ALERTS_LEADER).arg(&self.holder).arg(millis(lease));
        Ok(self.ask(taking).await? == Value::Int(1))
    }

    /// Releases the lease.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn leave(&self) -> Result<(), SourceTrouble> {
        self.ask(cmd("EVAL").arg(LEAVE).arg(1).arg(keys::ALERTS_LEADER).arg(&self.holder)).await.map(drop)
    }

    /// Sends a command, and repeats it once if the connection was lost: Redis may have restarted since the last command, and these
    /// commands are safe to repeat.
    async fn ask(&self, command: &Cmd) -> Result<Value, SourceTrouble> {
        let Some(connection) = &self.connection else { return Ok(Value::Nil) };
        let mut kept = connection.lock().await;
        match ask(&mut kept, command).await {
            Err(trouble) if trouble.kind == TroubleKind::Unreachable => ask(&mut kept, command).await,
            answer => answer,
        }
    }
}

/// Waits until no instance holds the lease, at most until that of a killed leader has expired. Returns whether none does.
///
/// # Errors
/// If Redis fails.
pub async fn is_none(pool: &Pool) -> Result<bool, SourceTrouble> {
    let until = Instant::now() + LEASE + PAUSE * 2;
    loop {
        let mut redis = checkout(pool).await?;
        let leader: Option<String> =
            cmd("GET").arg(keys::ALERTS_LEADER).query_async(&mut redis).await.map_err(|e| trouble(&e))?;
        if leader.is_none() || Instant::now() >= until {
            return Ok(leader.is_none());
        }
        drop(redis);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(kept: &mut PersistentConnection, command: &Cmd) -> Result<Value, SourceTrouble> {
    let mut connection = kept.take().await?;
    let answer = send(&mut connection, redis::pipe().add_command(command.clone())).await?.into_iter().next();
    kept.keep(connection);
    answer.unwrap_or(Ok(Value::Nil)).map_err(|error| trouble(&error))
}

fn millis(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}
