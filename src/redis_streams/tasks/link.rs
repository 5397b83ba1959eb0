//! A connection to Redis that reconnects automatically.
//!
//! A link has one caller at a time, so a blocking read delays no other command. After a timeout the connection is
//! closed, so that a late reply is not taken for the reply to the next command. After an error that says that another
//! server should be behind the address, all links to it reconnect (`generation.rs`).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisError, Value};

use super::Address;
use crate::redis_streams::greeting;
use crate::redis_streams::refusal::{self, ends_connection};
use crate::{tcp, tls};

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Error of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The connection failed or the reply timed out. The command may have been executed.
    #[error("cannot connect to Redis at {address}: {reason}")]
    Lost {
        /// Host and port.
        address: String,
        /// Error of the connection.
        reason: String,
    },
    /// Redis returned an error.
    #[error("Redis returned an error: {code} {detail}")]
    Refused {
        /// First word of the error, such as `WRONGTYPE`.
        code: String,
        /// Rest of the error.
        detail: String,
    },
    /// The request or the reply is invalid.
    #[error("{0}")]
    Unusable(String),
}

impl LinkError {
    /// Code of the Redis error; empty for other errors.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            _ => "",
        }
    }

    /// Whether the error is temporary, so that a retry can succeed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { code, .. } => matches!(
                code.as_str(),
                "LOADING"
                    | "OOM"
                    | "BUSY"
                    | "READONLY"
                    | "MASTERDOWN"
                    | "CLUSTERDOWN"
                    | "TRYAGAIN"
                    | "MISCONF"
                    | "NOREPLICAS"
                    | "NOSCRIPT"
                    | "UNBLOCKED"
                    | "NOGROUP"
            ),
            Self::Unusable(_) => false,
        }
    }

    pub(super) fn unexpected(command: &str, reply: &Value) -> Self {
        let mut shown = format!("{reply:?}");
        shown.truncate(shown.char_indices().nth(200).map_or(shown.len(), |(at, _)| at));
        Self::Unusable(format!("unexpected reply to {command}: {shown}"))
    }

    /// Parses an error that a script returned as text: code, space, detail.
    pub(super) fn from_text(text: &str) -> Self {
        let (code, detail) = text.split_once(' ').unwrap_or((text, ""));
        Self::Refused { code: code.trim_start_matches('-').to_owned(), detail: detail.to_owned() }
    }
}

/// A connection that can send commands.
pub(super) trait Sender {
    /// Sends all commands in one pipeline; see [`Link::send`].
    fn send_all(
        &mut self,
        pipe: &mut Pipeline,
    ) -> impl Future<Output = Result<Vec<Result<Value, LinkError>>, LinkError>> + Send;
}

impl Sender for Link {
    async fn send_all(&mut self, pipe: &mut Pipeline) -> Result<Vec<Result<Value, LinkError>>, LinkError> {
        self.send(pipe).await
    }
}

/// A connection that is opened when first needed and after each failure.
pub struct Link {
    address: Address,
    response_timeout: Duration,
    connection: Option<MultiplexedConnection>,
    /// Generation in which the connection was opened.
    opened_in: u64,
    /// Receives the client ID of the connection, if requested; 0 while it is closed.
    identity: Option<Arc<AtomicI64>>,
}

impl Link {
    /// Returns a link with the given response timeout. Does not connect yet.
    #[must_use]
    pub fn new(address: Address, response_timeout: Duration) -> Self {
        Self { address, response_timeout, connection: None, opened_in: 0, identity: None }
    }

    /// Returns another link to the same address, not connected.
    #[must_use]
    pub fn unopened(&self) -> Self {
        Self::new(self.address.clone(), self.response_timeout)
    }

    /// Requests the client ID of each new connection, so that [`unblock`](Self::unblock) on another link can end a
    /// blocking read on this one.
    #[must_use]
    pub fn identified(mut self) -> Self {
        self.identity = Some(Arc::default());
        self
    }

    /// Client ID of the connection; 0 while it is closed.
    #[must_use]
    pub fn identity(&self) -> Arc<AtomicI64> {
        self.identity.clone().unwrap_or_default()
    }

    /// Ends the blocking read of another connection as if it had timed out. Has no effect if the connection no longer
    /// exists or the user may not run the command.
    pub async fn unblock(&mut self, identity: i64) {
        if identity > 0 {
            let mut pipe = redis::pipe();
            pipe.cmd("CLIENT").arg("UNBLOCK").arg(identity).arg("TIMEOUT");
            let _ = self.one(&mut pipe).await;
        }
    }

    /// Sends all commands in one pipeline and returns one result per command, in order.
    ///
    /// # Errors
    /// Only if the connection fails; it is then closed.
    pub async fn send(&mut self, pipe: &mut Pipeline) -> Result<Vec<Result<Value, LinkError>>, LinkError> {
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        self.close_if_outdated();
        // Taken, so that a caller that is cancelled drops the connection along with the pending reply.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.opened_in = self.address.generation().number();
                self.connect().await?
            }
        };
        let replies: Result<Vec<Result<Value, RedisError>>, _> =
            pipe.ignore_errors().query_async(&mut connection).await;
        let replies = replies.map_err(|e| self.lost(&e))?;
        self.connection = Some(connection);
        let replies: Vec<Result<Value, LinkError>> =
            replies.into_iter().map(|reply| reply.map_err(|e| self.refused(&e))).collect();
        for error in replies.iter().filter_map(|reply| reply.as_ref().err()) {
            self.close_if_useless(error);
        }
        Ok(replies)
    }

    /// Closes the connection after an error that says that another server should be behind it, such as that of a replica:
    /// the next connection may reach that one.
    pub(super) fn close_if_useless(&mut self, error: &LinkError) {
        if ends_connection(error.code()) {
            self.address.generation().end(self.opened_in);
            self.connection = None;
        }
    }

    /// Closes the connection if another link has found that another server should be behind it.
    pub fn close_if_outdated(&mut self) {
        if self.opened_in != self.address.generation().number() {
            self.connection = None;
        }
    }

    /// Sends a pipeline with one command.
    ///
    /// # Errors
    /// If the connection or the command fails.
    pub async fn one(&mut self, pipe: &mut Pipeline) -> Result<Value, LinkError> {
        self.send(pipe).await?.pop().unwrap_or_else(|| Err(LinkError::Unusable("no reply".to_owned())))
    }

    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, LinkError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout))
            .set_dns_resolver(tcp::Resolver);
        let client = self.address.client().map_err(|e| self.lost(&e))?;
        let mut connection = match client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => connection,
            // A rejected password is an error of Redis, not a lost connection.
            Err(e) if e.code().is_some() || matches!(e.kind(), redis::ErrorKind::AuthenticationFailed) => {
                return Err(self.refused(&e));
            }
            Err(e) => {
                let reason = greeting::reason(client.get_connection_info(), &e).await;
                return Err(match reason {
                    Some(reason) => LinkError::Lost { address: self.address.to_string(), reason },
                    None => self.lost(&e),
                });
            }
        };
        if let Some(identity) = &self.identity {
            let known: Result<i64, _> = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await;
            identity.store(known.unwrap_or(0), Ordering::Relaxed);
        }
        Ok(connection)
    }

    pub(super) fn lost(&self, error: &RedisError) -> LinkError {
        let said = error.to_string();
        let reason = match tls::explain(&said, &tls::REDIS) {
            Some(failure) => failure.append_to(&said),
            // A Redis without TLS takes the client's first message for a command that has not ended.
            None if error.is_timeout() && self.address.is_tls() => {
                format!("{said} (if the server does not speak TLS on this port: redis:// instead of rediss://)")
            }
            None => said,
        };
        LinkError::Lost { address: self.address.to_string(), reason }
    }

    pub(super) fn refused(&self, error: &RedisError) -> LinkError {
        if matches!(error.kind(), redis::ErrorKind::AuthenticationFailed) {
            return LinkError::Unusable("invalid user name or password".to_owned());
        }
        if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
            return self.lost(error);
        }
        match error.code() {
            Some(code) => LinkError::Refused {
                code: refusal::code(code, error.detail()).to_owned(),
                detail: error.detail().unwrap_or_default().to_owned(),
            },
            None => LinkError::Unusable(error.to_string()),
        }
    }
}
