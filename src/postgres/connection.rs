//! Connections to Postgres, when they are discarded, and what errors mean.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, TimeoutType};
use diesel::connection::{Instrumentation, InstrumentationEvent};
use diesel::result::{ConnectionError, DatabaseErrorKind, Error as QueryError};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};

use super::wire::sqlstate_of;
use super::{address, dial};
use crate::contract::DatabaseCondition;
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// A pool of connections to Postgres.
pub type PgPool = managed::Pool<Manager>;

/// A statement that runs longer is given up: nothing here may hold the database for long.
const STATEMENT_TIMEOUT_MS: u32 = 30_000;

/// A server that a connection reached this recently is no primary that was demoted since: a new connection would reach it
/// again.
const JUST_REACHED: Duration = Duration::from_secs(5);

/// By which `rollback` knows the connections of monitors.
const APPLICATION_NAME: &str = "shepherd-monitor";
/// The SQLSTATE of a missing permission.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Builds the pool. Nothing is connected yet.
///
/// # Errors
/// When the address cannot be used.
pub fn pool(url: &str, timeout: Duration) -> Result<PgPool, SourceTrouble> {
    pool_of(5, url, timeout, timeout)
}

/// Builds a pool of at most `size` connections, in which a query waits for a free one for at most `wait`. Nothing is
/// connected yet.
///
/// # Errors
/// When the address cannot be used.
pub fn pool_of(size: usize, url: &str, timeout: Duration, wait: Duration) -> Result<PgPool, SourceTrouble> {
    build(size, url, None, timeout, wait)
}

/// Builds a pool for a monitor that keeps its tables in a schema of their own, beside those of another monitor. `own` is
/// that schema and an address whose search path has no other, so that no statement can reach the other monitor's tables;
/// the fleet's tables are found through `fleet`, by [`checkout_fleet`].
///
/// # Errors
/// When an address cannot be used.
pub fn pool_beside(
    size: usize,
    (schema, own): (&'static str, &str),
    fleet: &str,
    timeout: Duration,
    wait: Duration,
) -> Result<PgPool, SourceTrouble> {
    let fleet = Fleet { pool: pool_of(size, fleet, timeout, wait)?, schema };
    build(size, own, Some(fleet), timeout, wait)
}

fn build(
    size: usize,
    url: &str,
    fleet: Option<Fleet>,
    timeout: Duration,
    wait: Duration,
) -> Result<PgPool, SourceTrouble> {
    let (generation, pooler) = (Arc::default(), Arc::default());
    PgPool::builder(Manager { url: url.to_owned(), timeout, generation, pooler, fleet })
        .max_size(size)
        // The one used last shows first whether it still works, and is warm at both ends.
        .queue_mode(QueueMode::Lifo)
        .wait_timeout(Some(wait))
        .create_timeout(Some(timeout))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .map_err(|e| SourceTrouble::new(TroubleKind::Failed, e.to_string()))
}

/// Makes the connections to one database.
///
/// A connection is discarded when a query on it was given up or lost, or when Postgres said that another server or
/// session should be behind it; and with it all that were made by then, which lead to the same place.
pub struct Manager {
    url: String,
    timeout: Duration,
    generation: Arc<AtomicU64>,
    /// A pooler was found between, by what it does to statements.
    pooler: Arc<AtomicBool>,
    fleet: Option<Fleet>,
}

/// How the fleet's tables are reached if the search path of the monitor's own connections does not lead to them.
struct Fleet {
    pool: PgPool,
    /// Schema of the monitor's own tables.
    schema: &'static str,
}

impl managed::Manager for Manager {
    type Type = PgConnection;
    type Error = ConnectionError;

    async fn create(&self) -> Result<PgConnection, ConnectionError> {
        let made_in = self.generation.load(Ordering::Relaxed);
        let mut connection = establish(&self.url, self.timeout, self.pooler.load(Ordering::Relaxed)).await?;
        connection.made_in = made_in;
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut PgConnection, _: &Metrics) -> managed::RecycleResult<ConnectionError> {
        let usage = &connection.usage;
        if usage.pooler.load(Ordering::Relaxed) {
            self.pooler.store(true, Ordering::Relaxed);
        }
        if usage.unanswered.load(Ordering::Relaxed) || usage.useless.load(Ordering::Relaxed) {
            let made_in = connection.made_in;
            let _ = self.generation.compare_exchange(made_in, made_in + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        if connection.made_in != self.generation.load(Ordering::Relaxed) || connection.connection.is_broken() {
            return Err(RecycleError::message("the connection is of no further use"));
        }
        Ok(())
    }
}

/// A connection that knows whether it is of further use.
pub struct PgConnection {
    connection: AsyncPgConnection,
    usage: Arc<Usage>,
    made_in: u64,
    pooler: bool,
    _driver: Driver,
}

impl PgConnection {
    /// A pooler is between, which may give each transaction another session: nothing outlives a transaction.
    #[must_use]
    pub fn is_through_pooler(&self) -> bool {
        self.pooler
    }

    /// The connection as diesel has it.
    #[must_use]
    pub fn into_inner(self) -> AsyncPgConnection {
        self.connection
    }

    /// Lets statements run for as long as they take, or not any more. Behind a pooler they always do: what is set there
    /// would be set for others.
    ///
    /// # Errors
    /// When Postgres does not do it.
    pub async fn let_statements_run(&mut self, for_ever: bool) -> Result<(), QueryError> {
        if self.pooler {
            return Ok(());
        }
        let most = if for_ever { 0 } else { STATEMENT_TIMEOUT_MS };
        self.connection.batch_execute(&format!("SET statement_timeout = {most}")).await
    }
}

impl Deref for PgConnection {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.connection
    }
}

impl DerefMut for PgConnection {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.connection
    }
}

/// The task that moves a connection's bytes. A query that was given up does not keep it.
struct Driver {
    task: tokio::task::AbortHandle,
    usage: Arc<Usage>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.usage.unanswered.load(Ordering::Relaxed) {
            self.task.abort();
        }
    }
}

/// What became of the queries on a connection.
#[derive(Debug)]
struct Usage {
    made: Instant,
    /// A query was sent and its answer has not come.
    unanswered: AtomicBool,
    useless: AtomicBool,
    pooler: AtomicBool,
}

/// Notes for [`Usage`] what diesel does.
struct Watch(Arc<Usage>);

impl Instrumentation for Watch {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => self.0.unanswered.store(true, Ordering::Relaxed),
            InstrumentationEvent::FinishQuery { error, .. } => {
                self.0.unanswered.store(false, Ordering::Relaxed);
                match error.map_or(After::GoOn, after) {
                    After::GoOn => {}
                    After::OtherServer if self.0.made.elapsed() < JUST_REACHED => {}
                    After::OtherServer | After::Reconnect => self.0.useless.store(true, Ordering::Relaxed),
                    After::Pooler => {
                        self.0.useless.store(true, Ordering::Relaxed);
                        self.0.pooler.store(true, Ordering::Relaxed);
                    }
                }
            }
            _ => {}
        }
    }
}

/// What an error says about the connection that it came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    GoOn,
    /// It is of no further use.
    Reconnect,
    /// The server behind it is no primary (any more).
    OtherServer,
    /// A prepared statement belongs to another session: a pooler is between.
    Pooler,
}

fn after(error: &QueryError) -> After {
    let QueryError::DatabaseError(kind, info) = error else { return After::GoOn };
    match kind {
        DatabaseErrorKind::ReadOnlyTransaction => return After::OtherServer,
        DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => return After::Reconnect,
        _ => {}
    }
    match sqlstate_of(info.message()).as_deref() {
        Some("25006") => After::OtherServer,
        // No such prepared statement; there is one of that name.
        Some("26000" | "42P05") => After::Pooler,
        // Shutting down, crashed, not ready, gone.
        Some("57P01" | "57P02" | "57P03" | "57P05") => After::Reconnect,
        // A plan that outlived a change of its tables. Other features that are not supported concern their statement only.
        Some("0A000") if info.message().contains("cached plan") => After::Reconnect,
        Some(code) if code.starts_with("08") => After::Reconnect,
        _ => After::GoOn,
    }
}

/// A short name by which the database at `url` is told from others, whatever the login; for files.
#[must_use]
pub fn identity(url: &str) -> String {
    let config = address::parse(url).map(|address| address.config).unwrap_or_default();
    let mut where_it_is = format!("{:?} {:?} {:?}", config.get_hosts(), config.get_ports(), config.get_dbname());
    // They may name a schema.
    where_it_is.extend(config.get_options().map(|options| format!(" {options}")));
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, where_it_is.as_bytes())
        .simple()
        .to_string()
        .chars()
        .take(12)
        .collect()
}

/// A connection from the pool.
///
/// # Errors
/// Why there is none.
pub async fn checkout(pool: &PgPool) -> Result<Object<Manager>, SourceTrouble> {
    // In a box: what connects is large, and would be part of every query's future.
    Box::pin(pool.get()).await.map_err(|error| match error {
        PoolError::Timeout(TimeoutType::Wait) => SourceTrouble::new(
            TroubleKind::TimedOut,
            "no free connection to Postgres: other queries take too long. Try again later",
        ),
        PoolError::Timeout(_) => SourceTrouble::new(TroubleKind::TimedOut, "Postgres timed out"),
        PoolError::Backend(error) => connect_trouble(&error.to_string()),
        other => SourceTrouble::new(TroubleKind::Failed, other.to_string()),
    })
}

/// A connection whose search path leads to the fleet's tables. Statements on it name the monitor's own tables with
/// [`own_table`].
///
/// # Errors
/// Why there is none.
pub async fn checkout_fleet(pool: &PgPool) -> Result<Object<Manager>, SourceTrouble> {
    checkout(pool.manager().fleet.as_ref().map_or(pool, |fleet| &fleet.pool)).await
}

/// The monitor's own table `name`, for a statement on a connection of [`checkout_fleet`].
#[must_use]
pub fn own_table(pool: &PgPool, name: &str) -> String {
    pool.manager().fleet.as_ref().map_or_else(|| name.to_owned(), |fleet| format!("{}.{name}", fleet.schema))
}

/// Connects once, outside the pool (migrations, advisory locks).
///
/// # Errors
/// What the server or the network said.
pub async fn connect(url: String, timeout: Duration) -> Result<PgConnection, ConnectionError> {
    establish(&url, timeout, false).await
}

async fn establish(url: &str, timeout: Duration, pooler: bool) -> Result<PgConnection, ConnectionError> {
    let bad = |e: &dyn std::fmt::Display| ConnectionError::BadConnection(e.to_string());
    let address = address::parse(url).map_err(|expected| bad(&format!("DATABASE_URL: expected {expected}")))?;
    let mut config = address.config.clone();
    // One that only observes calls itself so.
    if config.get_application_name().is_none_or(|name| !name.starts_with(APPLICATION_NAME)) {
        config.application_name(APPLICATION_NAME);
    }
    // Each host in its turn, within the time for all.
    let hosts = u32::try_from(config.get_hosts().len().max(1)).unwrap_or(1);
    let timeout = config.get_connect_timeout().map_or(timeout / hosts, |given| (*given).min(timeout / hosts));
    let tls = if address.is_plain() {
        None
    } else {
        Some(address.tls().map_err(|expected| bad(&format!("DATABASE_URL: expected {expected}")))?)
    };
    let dialled = dial::open(&config, tls, timeout, address.keeps_password, pooler).await.map_err(|e| bad(&e))?;
    let (pooler, task) = (dialled.pooler, dialled.driver);
    let mut connection = if pooler {
        // Nothing that diesel sets may stay behind in a session that others use: it is rolled back.
        dialled.client.batch_execute("BEGIN").await.map_err(|e| bad(&dial::said(&e)))?;
        let mut connection = AsyncPgConnection::try_from(dialled.client).await?;
        connection.batch_execute("ROLLBACK").await.map_err(|e| bad(&e))?;
        connection
    } else {
        let mut connection = AsyncPgConnection::try_from(dialled.client).await?;
        // diesel sets UTC; the fleet's times carry no zone and are meant in the server's.
        let mut session = format!("RESET TIME ZONE; SET statement_timeout = {STATEMENT_TIMEOUT_MS}");
        for (name, value) in dial::settings(config.get_options().unwrap_or_default()) {
            session.push_str(&format!("; SELECT set_config({}, {}, false)", quoted(&name), quoted(&value)));
        }
        connection.batch_execute(&session).await.map_err(|e| bad(&e))?;
        connection
    };
    let usage = Arc::new(Usage {
        made: Instant::now(),
        unanswered: AtomicBool::new(false),
        useless: AtomicBool::new(false),
        pooler: AtomicBool::new(pooler),
    });
    connection.set_instrumentation(Watch(Arc::clone(&usage)));
    Ok(PgConnection { connection, made_in: 0, pooler, _driver: Driver { task, usage: Arc::clone(&usage) }, usage })
}

/// `text` as a literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(super) fn connect_trouble(said: &str) -> SourceTrouble {
    let lower = said.to_lowercase();
    if let Some(condition) = DatabaseCondition::from_texts(said, None) {
        return refused(condition, said);
    }
    // Class 28 is invalid authorization, 57P03 "cannot connect now": starting up or shutting down. PgBouncer has one code
    // for everything (08P01), and the driver none for what it cannot do itself.
    let by_pooler = lower.contains("(08p01)")
        && ["authentication failed", "auth failed", "no such user"].iter().any(|words| lower.contains(words));
    let by_driver = lower.contains("password missing") || lower.contains("authentication method");
    if by_pooler || by_driver || ["(28p01)", "(28000)"].iter().any(|code| lower.contains(code)) {
        SourceTrouble::new(TroubleKind::Refused, format!("Postgres rejected the login: {said}"))
    } else if denies(said) {
        // Every session sets its time zone and time limit, and asks whether the server is writable.
        SourceTrouble::new(TroubleKind::Refused, format!("{PERMISSION_DENIED}: {said}"))
    } else if lower.contains("(57p03)") {
        SourceTrouble::new(TroubleKind::Loading, format!("Postgres is not ready: {said}"))
    } else if lower.contains("timed out") {
        SourceTrouble::new(TroubleKind::TimedOut, "Postgres timed out")
    } else {
        SourceTrouble::new(TroubleKind::Unreachable, format!("cannot connect to Postgres ({said})"))
    }
}

/// What a failed statement says about Postgres as a source.
#[must_use]
pub fn trouble(error: &QueryError) -> SourceTrouble {
    if let Some(condition) = condition(error) {
        return refused(condition, &error.to_string());
    }
    match error {
        error if after(error) == After::Reconnect => {
            SourceTrouble::new(TroubleKind::Unreachable, "the connection to Postgres was closed")
        }
        other if names_missing_object(other) => {
            tracing::debug!(error = %other, "a statement needs a table or column that does not exist");
            SourceTrouble::new(TroubleKind::Failed, TABLES_NOT_READY)
        }
        QueryError::DatabaseError(_, info) if denies(info.message()) => {
            // Of one table or function; all others can be read.
            SourceTrouble::new(TroubleKind::Failed, format!("{PERMISSION_DENIED}: {}", info.message()))
        }
        other => SourceTrouble::new(TroubleKind::Failed, format!("Postgres returned an error: {other}")),
    }
}

fn denies(said: &str) -> bool {
    sqlstate_of(said).is_some_and(|code| code == INSUFFICIENT_PRIVILEGE)
}

/// The condition in which Postgres refused a statement for no fault of the statement.
pub(super) fn condition(error: &QueryError) -> Option<DatabaseCondition> {
    match error {
        QueryError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => Some(DatabaseCondition::ReadOnly),
        QueryError::DatabaseError(_, info) => match sqlstate_of(info.message()) {
            Some(code) => DatabaseCondition::from_sqlstate(&code),
            None => DatabaseCondition::from_texts(info.message(), info.hint()),
        },
        _ => None,
    }
}

/// The same of an error of which only the text is left.
pub(super) fn condition_of(text: &str) -> Option<DatabaseCondition> {
    sqlstate_of(text)
        .and_then(|code| DatabaseCondition::from_sqlstate(&code))
        .or_else(|| DatabaseCondition::from_texts(text, None))
}

pub(super) fn refused(condition: DatabaseCondition, said: &str) -> SourceTrouble {
    SourceTrouble::new(condition.into(), format!("{condition} ({said}). {}", condition.remedy()))
}

/// What users read when the role lacks a permission; the server's message follows.
pub const PERMISSION_DENIED: &str = "Postgres denied the monitor's role a permission";

/// What users read when tables are missing, whichever statement found out: during the first seconds of a start the
/// monitor creates and updates them.
pub const TABLES_NOT_READY: &str = "the tables in Postgres are not ready: they are being created or migrated. If \
 this lasts for more than a minute, run `shepherd-monitor doctor`";

/// Whether an error says that a table, column, function or type does not exist. Without its SQLSTATE its text decides:
/// messages of the server may be translated, names of the monitor's own tables are not.
fn names_missing_object(error: &QueryError) -> bool {
    let QueryError::DatabaseError(_, info) = error else { return false };
    let text = info.message();
    match sqlstate_of(text) {
        Some(code) => matches!(code.as_str(), "42P01" | "42703" | "42883" | "42704" | "3F000"),
        None => text.ends_with("does not exist") || text.contains("\"monitor_") || text.contains("»monitor_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_missing_tables_is_told_without_its_sql() {
        let error = |text: &str| QueryError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(text.to_owned()));
        for text in [
            "relation \"monitor_audit\" does not exist",
            "column p.alerted does not exist",
            "function monitor_pack(bytea) does not exist",
            "Relation »monitor_audit« existiert nicht",
            "column \"resumed\" of relation \"monitor_janitor_passes\" does not exist",
        ] {
            assert_eq!(trouble(&error(text)).detail, TABLES_NOT_READY, "{text}");
        }
        let other = trouble(&error("canceling statement due to statement timeout")).detail;
        assert_eq!(other, "Postgres returned an error: canceling statement due to statement timeout");
    }
}
