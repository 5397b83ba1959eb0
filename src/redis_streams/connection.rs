//! Connections to Redis, and what its errors mean for the fleet.

use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_redis::{Manager, Pool, PoolConfig, QueueMode, Runtime, Timeouts};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind, Value,
};
use tokio::net::TcpStream;

use super::address;
use super::unparsed::{Switch, Unparsed};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::tls;

/// Builds the monitor's pool. Nothing is connected yet: a Redis that is not there is found out
/// with the first reading.
///
/// `answer_within` bounds every answer, so that a stopped server costs one tick, not all.
///
/// # Errors
/// When the address cannot be used.
pub fn pool(url: &str, answer_within: Duration) -> Result<Pool, SourceTrouble> {
    let manager = Manager::new_with_config(info(url)?, async_config(answer_within)).map_err(|e| trouble(&e))?;
    Pool::builder(manager)
        .config(PoolConfig {
            max_size: 4,
            // The one used last is warm at both ends; and it is asked whether it works before each use.
            queue_mode: QueueMode::Lifo,
            timeouts: Timeouts { wait: Some(answer_within), create: Some(answer_within), recycle: Some(answer_within) },
        })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|e| SourceTrouble::new(TroubleKind::Failed, e.to_string()))
}

fn info(url: &str) -> Result<ConnectionInfo, SourceTrouble> {
    address::connection_info("REDIS_URL", url).map_err(|bad| SourceTrouble::new(TroubleKind::Failed, bad.to_string()))
}

/// Which database of the server `url` means.
#[must_use]
pub fn database_number(url: &str) -> i64 {
    info(url).map_or(0, |info| info.redis_settings().db())
}

/// The user by whom `url` logs in, where it names one.
#[must_use]
pub(super) fn user(url: &str) -> Option<String> {
    info(url).ok()?.redis_settings().username().map(str::to_owned)
}

/// A connection for one pass.
///
/// # Errors
/// Why there is none.
pub async fn checkout(pool: &Pool) -> Result<deadpool_redis::Connection, SourceTrouble> {
    use deadpool_redis::PoolError;
    // In a box, as below: what connects is large, and would be part of every query's future.
    Box::pin(pool.get()).await.map_err(|error| match error {
        PoolError::Backend(error) => trouble(&error),
        PoolError::Timeout(_) => SourceTrouble::new(TroubleKind::TimedOut, "Redis timed out"),
        other => SourceTrouble::new(TroubleKind::Failed, other.to_string()),
    })
}

/// A connection kept from pass to pass, so that none begins with asking whether it still works;
/// made anew when a pass fails. Answers that are lists may come unparsed: read them with
/// [`super::reply::Reply`].
pub struct Kept {
    client: Client,
    answer_within: Duration,
    connection: Option<MultiplexedConnection>,
}

impl Kept {
    /// A connection to `url`, once it is wanted. `answer_within` bounds every answer.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn to(url: &str, answer_within: Duration) -> Result<Self, SourceTrouble> {
        let client = Client::open(info(url)?).map_err(|e| trouble(&e))?;
        Ok(Self { client, answer_within, connection: None })
    }

    /// The connection, for one pass. Lost unless [`Self::keep`] is called after it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn take(&mut self) -> Result<MultiplexedConnection, SourceTrouble> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => match tokio::time::timeout(self.answer_within, Box::pin(self.connect())).await {
                Ok(connected) => connected.map_err(|e| trouble(&e)),
                Err(_) => Err(SourceTrouble::new(TroubleKind::TimedOut, "Redis timed out")),
            },
        }
    }

    /// Keeps it for the next pass: this one went well.
    pub fn keep(&mut self, connection: MultiplexedConnection) {
        self.connection = Some(connection);
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = async_config(self.answer_within);
        let info = self.client.get_connection_info();
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            return self.client.get_multiplexed_async_connection_with_config(&config).await;
        };
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let unparsed = Switch::default();
        let stream = Unparsed::new(stream, Switch::clone(&unparsed));
        let (connection, driver) =
            MultiplexedConnection::new_with_config(info.redis_settings(), stream, config).await?;
        tokio::spawn(driver);
        unparsed.store(true, Ordering::Release);
        Ok(connection)
    }
}

fn async_config(answer_within: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(answer_within)).set_response_timeout(Some(answer_within))
}

/// Sends a pipeline whose commands fail each for itself.
///
/// # Errors
/// When there was no answer at all. A command's own error is in its place in the result.
pub async fn send(
    connection: &mut impl ConnectionLike,
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
        _ if error.is_timeout() => SourceTrouble::new(TroubleKind::TimedOut, "Redis timed out"),
        ErrorKind::AuthenticationFailed => SourceTrouble::new(TroubleKind::Refused, "Redis rejected the password"),
        ErrorKind::Server(ServerErrorKind::BusyLoading) => {
            SourceTrouble::new(TroubleKind::Loading, "Redis is loading its data")
        }
        ErrorKind::Server(ServerErrorKind::MasterDown) => {
            SourceTrouble::new(TroubleKind::Replica, "Redis is a replica that has lost its primary")
        }
        ErrorKind::Io => {
            let said = format!("cannot connect to Redis ({error})");
            let failure = tls::explain(&said, &tls::REDIS);
            let said = failure.map(|failure| failure.append_to(&said)).unwrap_or(said);
            SourceTrouble::new(TroubleKind::Unreachable, said)
        }
        _ => match error.code() {
            Some("NOAUTH" | "WRONGPASS") => SourceTrouble::new(TroubleKind::Refused, "Redis rejected the password"),
            Some("NOPERM") => {
                SourceTrouble::new(TroubleKind::Refused, format!("Redis denied a command: {server_said}"))
            }
            Some("LOADING") => SourceTrouble::new(TroubleKind::Loading, "Redis is loading its data"),
            _ => SourceTrouble::new(TroubleKind::Failed, format!("Redis returned an error: {error}")),
        },
    }
}
