//! Connections to Redis, and what its errors mean for the fleet.

use std::time::Duration;

use deadpool_redis::{Manager, Pool, PoolConfig, Runtime, Timeouts};
use redis::{AsyncConnectionConfig, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind, Value};

use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Builds the monitor's pool. Nothing is connected yet: a Redis that is not there is found out
/// with the first reading.
///
/// `answer_within` bounds every answer, so that a stopped server costs one tick, not all.
///
/// # Errors
/// When the address cannot be used.
pub fn pool(url: &str, answer_within: Duration) -> Result<Pool, SourceTrouble> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(answer_within))
        .set_response_timeout(Some(answer_within));
    let info = url.into_connection_info().map_err(|e| trouble(&e))?;
    let manager = Manager::new_with_config(info, config).map_err(|e| trouble(&e))?;
    Pool::builder(manager)
        .config(PoolConfig {
            max_size: 4,
            timeouts: Timeouts { wait: Some(answer_within), create: Some(answer_within), recycle: Some(answer_within) },
            ..PoolConfig::default()
        })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|e| SourceTrouble::new(TroubleKind::Failed, e.to_string()))
}

/// A connection for one pass.
///
/// # Errors
/// Why there is none.
pub async fn checkout(pool: &Pool) -> Result<deadpool_redis::Connection, SourceTrouble> {
    use deadpool_redis::PoolError;
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => trouble(&error),
        PoolError::Timeout(_) => SourceTrouble::new(TroubleKind::TimedOut, "Redis does not answer"),
        other => SourceTrouble::new(TroubleKind::Failed, other.to_string()),
    })
}

/// A connection kept from pass to pass, so that none begins with asking whether it still works;
/// given back to the pool, which asks, when a pass fails.
#[derive(Default)]
pub struct Kept(Option<deadpool_redis::Connection>);

impl Kept {
    /// The connection, for one pass. Lost unless [`Self::keep`] is called after it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn take(&mut self, pool: &Pool) -> Result<deadpool_redis::Connection, SourceTrouble> {
        match self.0.take() {
            Some(connection) => Ok(connection),
            None => checkout(pool).await,
        }
    }

    /// Keeps it for the next pass: this one went well.
    pub fn keep(&mut self, connection: deadpool_redis::Connection) {
        self.0 = Some(connection);
    }
}

/// Sends a pipeline whose commands fail each for itself.
///
/// # Errors
/// When there was no answer at all. A command's own error is in its place in the result.
pub async fn send(
    connection: &mut deadpool_redis::Connection,
    pipe: &mut redis::Pipeline,
) -> Result<Vec<Result<Value, RedisError>>, SourceTrouble> {
    if pipe.is_empty() {
        return Ok(Vec::new());
    }
    pipe.ignore_errors().query_async(connection).await.map_err(|e| trouble(&e))
}

/// What an error says about Redis as a source, in words and without secrets.
#[must_use]
pub fn trouble(error: &RedisError) -> SourceTrouble {
    let server_said = error.detail().unwrap_or_default();
    match error.kind() {
        _ if error.is_timeout() => SourceTrouble::new(TroubleKind::TimedOut, "Redis does not answer"),
        ErrorKind::AuthenticationFailed => SourceTrouble::new(TroubleKind::Refused, "Redis refuses the password"),
        ErrorKind::Server(ServerErrorKind::BusyLoading) => {
            SourceTrouble::new(TroubleKind::Loading, "Redis is loading its data")
        }
        ErrorKind::Server(ServerErrorKind::MasterDown) => {
            SourceTrouble::new(TroubleKind::Replica, "Redis is a replica without its primary")
        }
        ErrorKind::Io => SourceTrouble::new(TroubleKind::Unreachable, format!("no connection to Redis ({error})")),
        _ => match error.code() {
            Some("NOAUTH" | "WRONGPASS") => SourceTrouble::new(TroubleKind::Refused, "Redis refuses the password"),
            Some("NOPERM") => {
                SourceTrouble::new(TroubleKind::Refused, format!("Redis permits too little: {server_said}"))
            }
            Some("LOADING") => SourceTrouble::new(TroubleKind::Loading, "Redis is loading its data"),
            _ => SourceTrouble::new(TroubleKind::Failed, format!("Redis answers with an error: {error}")),
        },
    }
}
