//! A connection to Redis for concurrent callers that reconnects automatically.
//!
//! Unlike [`Link`], it multiplexes commands, so blocking commands must not be sent. [`Failure`] tells whether a command
//! may have been executed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::link::Sender;
use super::script::{Call, Script, next};
use super::{Address, Link, LinkError};
use crate::redis_streams::refusal::ends_connection;

/// A connection that was unused for this long is checked with PING before a command is sent. Redis closes idle
/// connections (setting `timeout`), and the outcome of a command on a closed one would be unknown.
const IDLE: Duration = Duration::from_secs(1);

/// Error of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// The error.
    pub error: LinkError,
    /// No reply arrived, so the command may have been executed.
    pub unanswered: bool,
}

impl Failure {
    /// Whether a retry can succeed and, unless `repeatable`, cannot execute the command twice.
    #[must_use]
    pub fn may_retry(&self, repeatable: bool) -> bool {
        self.error.may_pass() && (repeatable || !self.unanswered)
    }
}

/// A shared connection; cheap to clone.
#[derive(Clone)]
pub struct SharedLink(Arc<Shared>);

struct Shared {
    address: Address,
    link: Link,
    state: Mutex<State>,
    /// Number of opened connections and of failed attempts.
    opened: AtomicU64,
    failed: AtomicU64,
}

enum State {
    Closed,
    Open(Open, Instant),
    Failed(LinkError),
}

/// An open connection.
#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    /// Number of the connection, so that closing it never closes its successor.
    number: u64,
    /// Generation in which it was opened.
    opened_in: u64,
}

impl fmt::Debug for SharedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedLink").field(&self.0.address).finish()
    }
}

impl SharedLink {
    /// Returns a link with the given response timeout. Does not connect yet.
    #[must_use]
    pub fn new(address: Address, response_timeout: Duration) -> Self {
        Self(Arc::new(Shared {
            link: Link::new(address.clone(), response_timeout),
            address,
            state: Mutex::new(State::Closed),
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }))
    }

    /// Address of the server.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Connects if necessary and sends PING.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses the connection.
    pub async fn ping(&self) -> Result<(), Failure> {
        let mut ping = redis::pipe();
        ping.cmd("PING");
        self.one(&mut ping).await.map(drop)
    }

    /// Sends a pipeline with one command.
    ///
    /// # Errors
    /// If the connection or the command fails.
    pub async fn one(&self, pipe: &mut Pipeline) -> Result<Value, Failure> {
        let mut sending = self.sending().await?;
        let reply = match sending.send_all(pipe).await {
            Ok(replies) => next(&mut replies.into_iter()),
            Err(error) => Err(error),
        };
        self.judged(reply, &sending.open).await
    }

    /// Calls a script.
    pub(super) async fn run(&self, script: &Script, call: &Call) -> Result<Value, Failure> {
        let mut sending = self.sending().await?;
        let reply = script.run(&mut sending, call).await;
        self.judged(reply, &sending.open).await
    }

    async fn sending(&self) -> Result<Sending<'_>, Failure> {
        Ok(Sending { open: self.open().await?, link: &self.0.link })
    }

    async fn judged(&self, reply: Result<Value, LinkError>, open: &Open) -> Result<Value, Failure> {
        let Err(error) = reply else { return reply.map_err(|error| Failure { error, unanswered: false }) };
        let unanswered = matches!(error, LinkError::Lost { .. });
        if ends_connection(error.code()) {
            self.0.address.generation().end(open.opened_in);
        } else if unanswered {
            self.close(open.number).await;
        }
        Err(Failure { error, unanswered })
    }

    /// Closes the connection if the error is specific to the server, such as that of a replica: a new connection may
    /// reach another server.
    pub(super) async fn close_if_of_server(&self, error: &LinkError) {
        if ends_connection(error.code())
            && let State::Open(open, _) = &*self.0.state.lock().await
        {
            self.0.address.generation().end(open.opened_in);
        }
    }

    /// Closes the connection with this number, unless a later one has replaced it.
    async fn close(&self, number: u64) {
        let mut state = self.0.state.lock().await;
        if matches!(&*state, State::Open(open, _) if open.number == number) {
            *state = State::Closed;
        }
    }

    /// Returns a connection that leads to the right server and was used recently or replies to PING.
    async fn open(&self) -> Result<Open, Failure> {
        let failed = self.0.failed.load(Ordering::Relaxed);
        let mut state = self.0.state.lock().await;
        let opened_in = self.0.address.generation().number();
        match &mut *state {
            State::Open(open, used) if open.opened_in == opened_in => {
                if used.elapsed() < IDLE || open.answers().await {
                    *used = Instant::now();
                    return Ok(open.clone());
                }
            }
            // Another caller failed to connect while this one waited for the lock.
            State::Failed(error) if self.0.failed.load(Ordering::Relaxed) != failed => {
                return Err(Failure { error: error.clone(), unanswered: false });
            }
            State::Open(..) | State::Failed(_) | State::Closed => {}
        }
        match self.0.link.connect().await {
            Ok(connection) => {
                let open = Open { connection, number: self.0.opened.fetch_add(1, Ordering::Relaxed), opened_in };
                *state = State::Open(open.clone(), Instant::now());
                Ok(open)
            }
            Err(error) => {
                self.0.failed.fetch_add(1, Ordering::Relaxed);
                *state = State::Failed(error.clone());
                Err(Failure { error, unanswered: false })
            }
        }
    }
}

impl Open {
    async fn answers(&mut self) -> bool {
        let reply: Result<Value, RedisError> = redis::cmd("PING").query_async(&mut self.connection).await;
        reply.is_ok()
    }
}

impl Sender for Sending<'_> {
    async fn send_all(&mut self, pipe: &mut Pipeline) -> Result<Vec<Result<Value, LinkError>>, LinkError> {
        let replies: Result<Vec<Result<Value, RedisError>>, _> =
            pipe.ignore_errors().query_async(&mut self.open.connection).await;
        let replies = replies.map_err(|e| self.link.lost(&e))?;
        Ok(replies.into_iter().map(|reply| reply.map_err(|e| self.link.refused(&e))).collect())
    }
}

/// An open connection, and the link that interprets its errors.
struct Sending<'a> {
    open: Open,
    link: &'a Link,
}
