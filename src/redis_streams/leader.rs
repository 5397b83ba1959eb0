//! Which monitor leads, as one says in Redis for the time in which Postgres cannot say it.

use std::time::{Duration, Instant};

use redis::{Cmd, Value, cmd};
use tokio::sync::Mutex;

use super::connection::{Kept, Pool, checkout, send, trouble};
use super::reply::Reply;
use crate::contract::keys;
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Takes the place of the leader for so long if it is free or one's own.
const HOLD: &str = "local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

/// Leaves the place if it is one's own.
const LEAVE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0";

/// Pause before it is asked again whether there is a leader.
const PAUSE: Duration = Duration::from_millis(500);

/// The leader's place in Redis, as the monitor `holder` sees it. It is asked with every tick, so over a connection of
/// its own. A monitor that only observes has none: it neither leads the others nor follows them.
pub struct LeadersPlace {
    holder: String,
    connection: Option<Mutex<Kept>>,
}

impl LeadersPlace {
    /// The place, for the monitor that calls itself `holder`.
    #[must_use]
    pub fn new(holder: String, connection: Kept) -> Self {
        Self { holder, connection: Some(Mutex::new(connection)) }
    }

    /// No place: nobody else leads, as far as Redis says.
    #[must_use]
    pub fn none(holder: String) -> Self {
        Self { holder, connection: None }
    }

    /// Whether another monitor said that it leads, and that still holds.
    ///
    /// # Errors
    /// When Redis does not say.
    pub async fn is_anothers(&self) -> Result<bool, SourceTrouble> {
        if self.connection.is_none() {
            return Ok(false);
        }
        let leader = self.ask(cmd("GET").arg(keys::ALERTS_LEADER)).await?;
        Ok(Reply::of(&leader).text().is_some_and(|leader| leader != self.holder))
    }

    /// This monitor leads for so long, whoever else believed it.
    ///
    /// # Errors
    /// When Redis did not take it.
    pub async fn take(&self, lease: Duration) -> Result<(), SourceTrouble> {
        let taking = &mut cmd("SET");
        self.ask(taking.arg(keys::ALERTS_LEADER).arg(&self.holder).arg("PX").arg(millis(lease))).await.map(drop)
    }

    /// The same if no other leads; whether it does.
    ///
    /// # Errors
    /// When Redis does not say.
    pub async fn take_if_free(&self, lease: Duration) -> Result<bool, SourceTrouble> {
        if self.connection.is_none() {
            return Ok(true);
        }
        let taking = &mut cmd("EVAL");
        taking.arg(HOLD).arg(1).arg(keys::ALERTS_LEADER).arg(&self.holder).arg(millis(lease));
        Ok(self.ask(taking).await? == Value::Int(1))
    }

    /// This monitor leads no more.
    ///
    /// # Errors
    /// When Redis did not take it.
    pub async fn leave(&self) -> Result<(), SourceTrouble> {
        self.ask(cmd("EVAL").arg(LEAVE).arg(1).arg(keys::ALERTS_LEADER).arg(&self.holder)).await.map(drop)
    }

    /// Asks, and once more if the connection turns out to be gone: Redis may have started again since the last time,
    /// and each of these may be asked twice.
    async fn ask(&self, command: &Cmd) -> Result<Value, SourceTrouble> {
        let Some(connection) = &self.connection else { return Ok(Value::Nil) };
        let mut kept = connection.lock().await;
        match ask(&mut kept, command).await {
            Err(trouble) if trouble.kind == TroubleKind::Unreachable => ask(&mut kept, command).await,
            answer => answer,
        }
    }
}

/// Waits for so long until no monitor says that it leads; whether none does.
///
/// # Errors
/// When Redis does not say.
pub async fn none_within(pool: &Pool, limit: Duration) -> Result<bool, SourceTrouble> {
    let until = Instant::now() + limit;
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

async fn ask(kept: &mut Kept, command: &Cmd) -> Result<Value, SourceTrouble> {
    let mut connection = kept.take().await?;
    let answer = send(&mut connection, redis::pipe().add_command(command.clone())).await?.into_iter().next();
    kept.keep(connection);
    answer.unwrap_or(Ok(Value::Nil)).map_err(|error| trouble(&error))
}

fn millis(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}
