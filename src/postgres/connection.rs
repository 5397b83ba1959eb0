//! Connections to Postgres, and what errors mean.

use std::time::Duration;

use deadpool_redis::TimeoutType;
use diesel::result::{ConnectionError, DatabaseErrorKind, Error as QueryError};
use diesel_async::pooled_connection::deadpool::{Object, Pool, PoolError};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, PoolError as ManagerError, RecyclingMethod,
};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use futures_util::FutureExt;

use super::address;
use crate::contract::DatabaseCondition;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::tls;

/// A pool of connections to Postgres.
pub type PgPool = Pool<AsyncPgConnection>;

/// A statement that runs longer is given up: nothing here may hold the database for long.
const STATEMENT_TIMEOUT_MS: u32 = 30_000;

/// By which `rollback` knows the connections of monitors.
const APPLICATION_NAME: &str = "shepherd-monitor";

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
    let mut config = ManagerConfig::default();
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(move |url| connect(url.to_owned(), timeout).boxed());
    let manager = AsyncDieselConnectionManager::new_with_config(url, config);
    Pool::builder(manager)
        .max_size(size)
        .wait_timeout(Some(wait))
        .create_timeout(Some(timeout))
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()
        .map_err(|e| SourceTrouble::new(TroubleKind::Failed, e.to_string()))
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
pub async fn checkout(pool: &PgPool) -> Result<Object<AsyncPgConnection>, SourceTrouble> {
    // In a box: what connects is large, and would be part of every query's future.
    Box::pin(pool.get()).await.map_err(|error| match error {
        PoolError::Timeout(TimeoutType::Wait) => SourceTrouble::new(
            TroubleKind::TimedOut,
            "no free connection to Postgres: other queries take too long. Try again later",
        ),
        PoolError::Timeout(_) => SourceTrouble::new(TroubleKind::TimedOut, "Postgres timed out"),
        PoolError::Backend(ManagerError::ConnectionError(error)) => connect_trouble(&error.to_string()),
        PoolError::Backend(ManagerError::QueryError(error)) => trouble(&error),
        other => SourceTrouble::new(TroubleKind::Failed, other.to_string()),
    })
}

/// Connects once, outside the pool (migrations, advisory locks).
///
/// # Errors
/// What the server or the network said.
pub async fn connect(url: String, timeout: Duration) -> Result<AsyncPgConnection, ConnectionError> {
    let bad = |e: &dyn std::fmt::Display| ConnectionError::BadConnection(e.to_string());
    let address = address::parse(&url).map_err(|expected| bad(&format!("DATABASE_URL: expected {expected}")))?;
    let mut config = address.config.clone();
    // One that only observes calls itself so.
    if config.get_application_name().is_none_or(|name| !name.starts_with(APPLICATION_NAME)) {
        config.application_name(APPLICATION_NAME);
    }
    // Each host in its turn, within the time for all.
    let hosts = u32::try_from(config.get_hosts().len().max(1)).unwrap_or(1);
    if config.get_connect_timeout().is_none_or(|given| *given > timeout / hosts) {
        config.connect_timeout(timeout / hosts);
    }
    let options = config.get_options().map(|given| format!("{given} ")).unwrap_or_default();
    config.options(format!("{options}-c statement_timeout={STATEMENT_TIMEOUT_MS}"));
    if address.is_plain() {
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|e| bad(&said(&e)))?;
        return in_its_own_time_zone(AsyncPgConnection::try_from_client_and_connection(client, connection).await?)
            .await;
    }
    let tls = tokio_postgres_rustls::MakeRustlsConnect::new(
        address.tls().map_err(|expected| bad(&format!("DATABASE_URL: expected {expected}")))?,
    );
    let (client, connection) = config.connect(tls).await.map_err(|e| bad(&said(&e)))?;
    in_its_own_time_zone(AsyncPgConnection::try_from_client_and_connection(client, connection).await?).await
}

/// diesel sets UTC; the fleet's times carry no zone and are meant in the server's.
async fn in_its_own_time_zone(mut connection: AsyncPgConnection) -> Result<AsyncPgConnection, ConnectionError> {
    let reset = connection.batch_execute("RESET TIME ZONE").await;
    reset.map_err(|e| ConnectionError::BadConnection(e.to_string()))?;
    Ok(connection)
}

/// tokio-postgres says only "db error": the server's own words are in the source.
fn said(error: &tokio_postgres::Error) -> String {
    let said = match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string),
    };
    match tls::explain(&said, &tls::POSTGRES) {
        Some(failure) => failure.append_to(&said),
        None => said,
    }
}

pub(super) fn connect_trouble(said: &str) -> SourceTrouble {
    let lower = said.to_lowercase();
    if let Some(condition) = DatabaseCondition::from_texts(said, None) {
        return refused(condition, said);
    }
    // Class 28 is invalid authorization, 57P03 "cannot connect now": starting up or shutting down.
    if ["(28p01)", "(28000)"].iter().any(|code| lower.contains(code)) {
        SourceTrouble::new(TroubleKind::Refused, format!("Postgres rejected the login: {said}"))
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
        QueryError::DatabaseError(DatabaseErrorKind::ClosedConnection, _) => {
            SourceTrouble::new(TroubleKind::Unreachable, "the connection to Postgres was closed")
        }
        other if names_missing_object(&other.to_string()) => {
            tracing::debug!(error = %other, "a statement needs a table or column that does not exist");
            SourceTrouble::new(TroubleKind::Failed, TABLES_NOT_READY)
        }
        other => SourceTrouble::new(TroubleKind::Failed, format!("Postgres returned an error: {other}")),
    }
}

/// The condition in which Postgres refused a statement for no fault of the statement.
pub(super) fn condition(error: &QueryError) -> Option<DatabaseCondition> {
    match error {
        QueryError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => Some(DatabaseCondition::ReadOnly),
        QueryError::DatabaseError(_, info) => DatabaseCondition::from_texts(info.message(), info.hint()),
        _ => None,
    }
}

pub(super) fn refused(condition: DatabaseCondition, said: &str) -> SourceTrouble {
    SourceTrouble::new(condition.into(), format!("{condition} ({said}). {}", condition.remedy()))
}

/// What users read when tables are missing, whichever statement found out: during the first seconds of a start the
/// monitor creates and updates them.
pub const TABLES_NOT_READY: &str = "the tables in Postgres are not ready: they are being created or migrated. If \
 this lasts for more than a minute, run `shepherd-monitor doctor`";

/// Whether an error text says that a table, column, function or type does not exist. The driver does not hand on the
/// error's code; messages of the server may be translated, names of the monitor's own tables are not.
fn names_missing_object(text: &str) -> bool {
    text.ends_with("does not exist") || text.contains("\"monitor_") || text.contains("»monitor_")
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
