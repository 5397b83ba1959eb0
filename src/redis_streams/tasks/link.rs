//! One connection to Redis that is opened again when it breaks.
//!
//! A link belongs to one task at a time, so a blocking read holds nobody else up, and a reply that
//! comes too late dies with its connection instead of answering the next question.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisError, Value};

use super::Address;
use crate::tls;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why Redis did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The connection failed or no reply came in time: what was asked may have happened.
    #[error("cannot connect to Redis at {address}: {reason}")]
    Lost {
        /// Host and port.
        address: String,
        /// What happened to the connection.
        reason: String,
    },
    /// Redis answered with an error.
    #[error("Redis returned an error: {code} {detail}")]
    Refused {
        /// Its first word, such as `WRONGTYPE`.
        code: String,
        /// The rest.
        detail: String,
    },
    /// The reply or the request makes no sense.
    #[error("{0}")]
    Unusable(String),
}

impl LinkError {
    /// The code of Redis' error, empty for others.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            _ => "",
        }
    }

    /// Whether asking again later can help.
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

    /// An error as a script passes it on: code and detail in one text.
    pub(super) fn from_text(text: &str) -> Self {
        let (code, detail) = text.split_once(' ').unwrap_or((text, ""));
        Self::Refused { code: code.trim_start_matches('-').to_owned(), detail: detail.to_owned() }
    }
}

/// What sends commands to Redis.
pub(super) trait Sender {
    /// Sends all commands at once, as [`Link::send`] does.
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

/// A connection, made when first needed and after each failure.
pub struct Link {
    address: Address,
    response_timeout: Duration,
    connection: Option<MultiplexedConnection>,
    /// Redis' number for the connection, where it is asked for; 0 while there is none.
    identity: Option<Arc<AtomicI64>>,
}

impl Link {
    /// A link whose replies may take up to `response_timeout`. Nothing is opened yet.
    #[must_use]
    pub fn new(address: Address, response_timeout: Duration) -> Self {
        Self { address, response_timeout, connection: None, identity: None }
    }

    /// Another link to the same place, not opened.
    #[must_use]
    pub fn unopened(&self) -> Self {
        Self::new(self.address.clone(), self.response_timeout)
    }

    /// Asks for Redis' number of each connection it opens, so that [`unblock`](Self::unblock) on
    /// another link can end a blocking read on this one.
    #[must_use]
    pub fn identified(mut self) -> Self {
        self.identity = Some(Arc::default());
        self
    }

    /// Where the number is kept; 0 while there is none.
    #[must_use]
    pub fn identity(&self) -> Arc<AtomicI64> {
        self.identity.clone().unwrap_or_default()
    }

    /// Ends the blocking read of another connection as if its time were over. Redis may not know
    /// it any more, or not allow this: then nothing happens.
    pub async fn unblock(&mut self, identity: i64) {
        if identity > 0 {
            let mut pipe = redis::pipe();
            pipe.cmd("CLIENT").arg("UNBLOCK").arg(identity).arg("TIMEOUT");
            let _ = self.one(&mut pipe).await;
        }
    }

    /// Sends all commands at once; each has its own success in the result, in order.
    ///
    /// # Errors
    /// Only of the connection, which is then closed.
    pub async fn send(&mut self, pipe: &mut Pipeline) -> Result<Vec<Result<Value, LinkError>>, LinkError> {
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        // Taken out, so that a caller who gives up half way closes the connection by it.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let replies: Result<Vec<Result<Value, RedisError>>, _> =
            pipe.ignore_errors().query_async(&mut connection).await;
        let replies = replies.map_err(|e| self.lost(&e))?;
        self.connection = Some(connection);
        Ok(replies.into_iter().map(|reply| reply.map_err(|e| self.refused(&e))).collect())
    }

    /// Sends a pipeline of one command.
    ///
    /// # Errors
    /// Of the connection or the command.
    pub async fn one(&mut self, pipe: &mut Pipeline) -> Result<Value, LinkError> {
        self.send(pipe).await?.pop().unwrap_or_else(|| Err(LinkError::Unusable("no reply".to_owned())))
    }

    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, LinkError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout));
        let client = self.address.client().map_err(|e| self.lost(&e))?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(|e| {
            // A password that is refused is an answer, not a lost connection.
            if e.code().is_some() || matches!(e.kind(), redis::ErrorKind::AuthenticationFailed) {
                self.refused(&e)
            } else {
                self.lost(&e)
            }
        })?;
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
            Some(code) => {
                LinkError::Refused { code: code.to_owned(), detail: error.detail().unwrap_or_default().to_owned() }
            }
            None => LinkError::Unusable(error.to_string()),
        }
    }
}
