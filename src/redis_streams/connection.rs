//! Connections to Redis, when they are discarded (`generation.rs`), and what errors mean for the fleet.

use std::slice;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, PoolConfig, PoolError, QueueMode, RecycleError, Timeouts};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisFuture,
    RedisResult, ServerErrorKind, Value,
};

use super::address;
use super::generation::Generation;
use super::greeting;
use super::lazy_resp::{LazyList, Switch};
use super::refusal::{self, ends_connection};
use super::server_info::OUT_OF_MEMORY;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::{tcp, tls};

/// A refused write is the state of the server for this long, unless another write succeeds.
const REFUSAL_HOLDS: Duration = Duration::from_secs(60);
/// A denied command counts for this long, so that those of recordings, one per minute, count throughout.
const DENIAL_HOLDS: Duration = Duration::from_secs(180);
/// Code of errors whose detail is the reason why the server closed a new connection.
const CLOSED_AT_ONCE: &str = "CLOSED";
/// A pooled connection that was used this recently is not asked whether it still works.
const FRESH: Duration = Duration::from_secs(1);

/// The monitor's pool: connections of `deadpool_redis`, discarded when they are of no further use.
pub type Pool = managed::Pool<Manager>;

/// Builds the monitor's pool. Nothing is connected yet: a Redis that is not there is found out
/// with the first reading.
///
/// `answer_within` bounds every answer, so that a stopped server costs one tick, not all.
///
/// # Errors
/// When the address cannot be used.
pub fn pool(url: &str, answer_within: Duration) -> Result<Pool, SourceTrouble> {
    Pool::builder(Manager::new(url, answer_within)?)
        .config(PoolConfig {
            max_size: 4,
            // The one used last is warm at both ends.
            queue_mode: QueueMode::Lifo,
            timeouts: Timeouts { wait: Some(answer_within), create: Some(answer_within), recycle: None },
        })
        .runtime(deadpool::Runtime::Tokio1)
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
pub async fn checkout(pool: &Pool) -> Result<PooledConnection, SourceTrouble> {
    // In a box, as below: what connects is large, and would be part of every query's future.
    Box::pin(pool.get()).await.map(PooledConnection).map_err(|error| match error {
        PoolError::Backend(error) => trouble(&error),
        PoolError::Timeout(_) => SourceTrouble::new(TroubleKind::TimedOut, "Redis timed out"),
        other => SourceTrouble::new(TroubleKind::Failed, other.to_string()),
    })
}

/// What the server refused last for no fault of the command.
#[derive(Debug, Default)]
struct Refused {
    /// Any write.
    write: Option<(Instant, SourceTrouble)>,
    /// A command or key for which the user has no permission.
    denied: Option<(Instant, String)>,
}

/// Shared by all connections to an address.
type Refusals = Arc<Mutex<Refused>>;

/// A connection to Redis that knows whether it is of further use.
pub struct Connection {
    redis: MultiplexedConnection,
    generation: Generation,
    refusals: Refusals,
    made_in: u64,
    /// When the last answer came; `None`: nothing was asked yet.
    used: Option<Instant>,
    /// A command was sent and its answer has not come: whoever waited for it gave up.
    unanswered: bool,
}

impl Connection {
    /// Nothing was asked over it yet: what another server could do is not known of this one.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.used.is_none()
    }

    /// The server behind the address has changed: every other connection is discarded, this one leads to the new server.
    pub fn leads_to_another_server(&mut self) {
        self.generation.end(self.made_in);
        self.made_in = self.generation.number();
    }

    /// Discards this connection and all others made by now.
    fn end_generation(&self) {
        self.generation.end(self.made_in);
    }

    fn is_of_use(&self) -> bool {
        if self.unanswered {
            self.end_generation();
        }
        self.made_in == self.generation.number()
    }

    fn take_note<'a>(&mut self, answers: Result<&'a [Value], &'a RedisError>) {
        self.unanswered = false;
        self.used = Some(Instant::now());
        match answers {
            Ok(answers) => {
                for answer in answers {
                    if let Value::ServerError(error) = answer {
                        self.take_note_of(refusal::code(error.code(), error.details()), error.details());
                    }
                }
            }
            Err(error) if is_of_connection(error) => self.end_generation(),
            Err(error) => self.take_note_of(code_of(error), error.detail()),
        }
    }

    fn take_note_of(&self, code: &str, said: Option<&str>) {
        if ends_connection(code) {
            self.end_generation();
        }
        let refusals = || self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = refused_write(code) {
            refusals().write = Some((Instant::now(), trouble));
        } else if code == "NOPERM" && !said.is_some_and(|said| said.contains("'scan'") || said.contains("'info'")) {
            // Without SCAN, streams are found by name only, which is a supported choice. INFO is sent with every pass, which
            // therefore knows more than that it was denied lately.
            refusals().denied = Some((Instant::now(), denied(said.unwrap_or_default())));
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            self.unanswered = true;
            let answer = self.redis.req_packed_command(cmd).await;
            self.take_note(answer.as_ref().map(slice::from_ref));
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            self.unanswered = true;
            let answers = self.redis.req_packed_commands(cmd, offset, count).await;
            self.take_note(answers.as_deref());
            answers
        })
    }

    fn get_db(&self) -> i64 {
        self.redis.get_db()
    }
}

/// A connection of the pool; it goes back to it when dropped.
pub struct PooledConnection(Object<Manager>);

impl ConnectionLike for PooledConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.0.req_packed_command(cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(cmd, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

/// Makes the connections to one address.
#[derive(Clone)]
pub struct Manager {
    client: Client,
    /// Makes the connections whose answers are parsed.
    parsed: Arc<deadpool_redis::Manager>,
    answer_within: Duration,
    generation: Generation,
    refusals: Refusals,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("to", &self.client.get_connection_info().addr().to_string()).finish()
    }
}

impl Manager {
    fn new(url: &str, answer_within: Duration) -> Result<Self, SourceTrouble> {
        let info = info(url)?.set_tcp_settings(tcp::settings());
        let client = Client::open(info.clone()).map_err(|e| trouble(&e))?;
        let parsed = deadpool_redis::Manager::new_with_config(info, config(answer_within)).map_err(|e| trouble(&e))?;
        let (generation, refusals) = (Generation::default(), Refusals::default());
        Ok(Self { client, parsed: Arc::new(parsed), answer_within, generation, refusals })
    }

    /// Why the server refused a write lately, if none succeeded since.
    #[must_use]
    pub fn refused_write(&self) -> Option<SourceTrouble> {
        self.last(REFUSAL_HOLDS, |refused| refused.write.as_ref())
    }

    /// The command that the server denied lately for lack of a permission.
    #[must_use]
    pub fn denied_command(&self) -> Option<String> {
        self.last(DENIAL_HOLDS, |refused| refused.denied.as_ref())
    }

    fn last<T: Clone>(&self, holds: Duration, which: impl Fn(&Refused) -> Option<&(Instant, T)>) -> Option<T> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        which(&refusals).filter(|(at, _)| at.elapsed() < holds).map(|(_, refusal)| refusal.clone())
    }

    /// A write succeeded that needs memory.
    pub fn wrote(&self) {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).write = None;
    }

    async fn connect(&self, answers: Answers) -> RedisResult<Connection> {
        let error = match self.try_to_connect(answers).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        match greeting::reason(self.client.get_connection_info(), &error).await {
            Some(reason) => Err(redis::make_extension_error(CLOSED_AT_ONCE.to_owned(), Some(reason))),
            None => Err(error),
        }
    }

    async fn try_to_connect(&self, answers: Answers) -> RedisResult<Connection> {
        let (generation, made_in) = (self.generation.clone(), self.generation.number());
        let info = self.client.get_connection_info();
        let redis = match info.addr() {
            ConnectionAddr::Tcp(host, port) if answers == Answers::LazyList => {
                let stream = tcp::connect(host, *port).await?;
                let unparsed = Switch::default();
                let stream = LazyList::new(stream, Switch::clone(&unparsed));
                let (connection, driver) =
                    MultiplexedConnection::new_with_config(info.redis_settings(), stream, config(self.answer_within))
                        .await?;
                tokio::spawn(driver);
                unparsed.store(true, Ordering::Release);
                connection
            }
            _ => managed::Manager::create(&*self.parsed).await?,
        };
        let refusals = Arc::clone(&self.refusals);
        Ok(Connection { redis, generation, refusals, made_in, used: None, unanswered: false })
    }
}

fn config(answer_within: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(answer_within))
        .set_response_timeout(Some(answer_within))
        .set_dns_resolver(tcp::Resolver)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Parsed,
    LazyList,
}

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<Connection> {
        self.connect(Answers::Parsed).await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> managed::RecycleResult<RedisError> {
        if connection.is_of_use() && connection.used.is_none_or(|used| used.elapsed() >= FRESH) {
            // Whatever it answers, it answers; an error that says more is noted.
            let ping = redis::cmd("PING");
            drop(tokio::time::timeout(self.answer_within, connection.req_packed_command(&ping)).await);
        }
        if connection.is_of_use() { Ok(()) } else { Err(RecycleError::message("the connection is of no further use")) }
    }
}

/// A connection kept from pass to pass, so that none begins with asking whether it still works;
/// made anew when a pass fails. Answers that are lists may come unparsed: read them with
/// [`super::resp_reader::Reply`].
pub struct PersistentConnection {
    manager: Manager,
    connection: Option<Connection>,
}

impl PersistentConnection {
    /// A connection to `url`, once it is wanted. `answer_within` bounds every answer.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn to(url: &str, answer_within: Duration) -> Result<Self, SourceTrouble> {
        Ok(Self { manager: Manager::new(url, answer_within)?, connection: None })
    }

    /// A connection to where `pool` leads, discarded when one of the pool finds the server changed.
    #[must_use]
    pub fn beside(pool: &Pool) -> Self {
        Self { manager: pool.manager().clone(), connection: None }
    }

    /// The connection, for one pass. Lost unless [`Self::keep`] is called after it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn take(&mut self) -> Result<Connection, SourceTrouble> {
        if let Some(connection) = self.connection.take().filter(Connection::is_of_use) {
            return Ok(connection);
        }
        let connecting = Box::pin(self.manager.connect(Answers::LazyList));
        match tokio::time::timeout(self.manager.answer_within, connecting).await {
            Ok(connected) => connected.map_err(|e| trouble(&e)),
            Err(_) => Err(SourceTrouble::new(TroubleKind::TimedOut, "Redis timed out")),
        }
    }

    /// Keeps it for the next pass: this one went well.
    pub fn keep(&mut self, connection: Connection) {
        self.connection = Some(connection);
    }
}

pub(super) fn is_of_connection(error: &RedisError) -> bool {
    error.is_timeout() || error.is_io_error() || error.is_connection_dropped()
}

pub(super) fn code_of(error: &RedisError) -> &str {
    refusal::code(error.code().unwrap_or_default(), error.detail())
}

/// Whether a command failed because its key holds another type, which concerns only that key.
pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    code_of(error) == "WRONGTYPE"
}

/// Whether the server does not offer a command to this user: no permission, or it was disabled or renamed.
pub(super) fn is_unavailable(error: &RedisError) -> bool {
    match code_of(error) {
        "NOPERM" => true,
        "ERR" => error.detail().is_some_and(|said| said.contains("unknown command")),
        _ => false,
    }
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
        _ => match code_of(error) {
            "NOAUTH" | "WRONGPASS" => SourceTrouble::new(TroubleKind::Refused, "Redis rejected the password"),
            "NOPERM" => SourceTrouble::new(TroubleKind::Refused, denied(server_said)),
            CLOSED_AT_ONCE => SourceTrouble::new(
                match server_said {
                    greeting::TOO_MANY_CLIENTS => TroubleKind::TooManyConnections,
                    greeting::PROTECTED_MODE => TroubleKind::Refused,
                    _ => TroubleKind::Unreachable,
                },
                server_said,
            ),
            "LOADING" => SourceTrouble::new(TroubleKind::Loading, "Redis is loading its data"),
            "READONLY" => SourceTrouble::new(TroubleKind::Replica, "Redis is a replica and rejects writes"),
            "ERR" if server_said.contains("unknown command") => SourceTrouble::new(
                TroubleKind::Failed,
                format!(
                    "Redis does not know a command ({server_said}): it is a Sentinel or a proxy, or the command is disabled. \
                     Run shepherd-monitor doctor"
                ),
            ),
            code => refused_write(code).unwrap_or_else(|| {
                SourceTrouble::new(TroubleKind::Failed, format!("Redis returned an error: {error}"))
            }),
        },
    }
}

/// What users read when the user of the address has no permission for a command or key.
fn denied(server_said: &str) -> String {
    format!("Redis denied a command: {server_said}")
}

/// The state of a server that can be read and answers every write with this code.
fn refused_write(code: &str) -> Option<SourceTrouble> {
    let (kind, detail) = match code {
        "OOM" => (TroubleKind::OutOfMemory, OUT_OF_MEMORY),
        "MISCONF" => (
            TroubleKind::ReadOnly,
            "Redis rejects writes: it cannot save its data to disk (MISCONF). Free disk space on its server, or see its \
             log",
        ),
        "NOREPLICAS" => (
            TroubleKind::ReadOnly,
            "Redis rejects writes: fewer replicas than min-replicas-to-write are connected. Restart its replicas",
        ),
        _ => return None,
    };
    Some(SourceTrouble::new(kind, detail).of_redis())
}
