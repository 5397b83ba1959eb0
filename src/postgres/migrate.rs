//! Migrates the database: the monitor's tables, and indexes on the fleet's tables that make probes cheap.

use std::time::Duration;

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_query;
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl,
    SimpleAsyncConnection, TransactionManager,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connection::{PgPool, checkout, condition_of, connect, connect_trouble, refused, trouble};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Table in which diesel records applied migrations.
pub(super) const HISTORY_OF_MIGRATIONS: &str = "__diesel_schema_migrations";

/// Advisory lock (arbitrary number), so that instances migrate one after the other.
const MIGRATION_LOCK: i64 = 0x5348_4550;

/// Migration that creates the fleet's tables in an empty database.
const FLEET_TABLES: &str = "0001";

/// Creates `schema`, which must be first in the search path of `url`, and applies pending migrations there. Never creates the
/// fleet's tables in it, since they would shadow the real ones.
///
/// # Errors
/// If the database is unreachable, or the role may not create schemas.
pub async fn run_in(schema: &str, url: &str, timeout: Duration) -> Result<(), SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout).await.map_err(|e| connect_trouble(&e.to_string()))?;
    let make = format!(
        "SELECT pg_advisory_xact_lock({MIGRATION_LOCK});
         -- Whoever may not make schemas can be given one.
         DO $$ BEGIN IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF; END $$;
         CREATE TABLE IF NOT EXISTS {schema}.{HISTORY_OF_MIGRATIONS}
            (version VARCHAR(50) PRIMARY KEY NOT NULL, run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO {schema}.{HISTORY_OF_MIGRATIONS} (version) VALUES ('{FLEET_TABLES}') ON CONFLICT DO NOTHING"
    );
    connection
        .batch_execute(&make)
        .await
        .map_err(|error| SourceTrouble::new(TroubleKind::Failed, format!("cannot create schema {schema}: {error}")))?;
    drop(connection);
    run(url, timeout).await
}

/// Applies pending migrations.
///
/// # Errors
/// If the database is unreachable, or the role may not create tables.
pub async fn run(url: &str, timeout: Duration) -> Result<(), SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout).await.map_err(|e| connect_trouble(&e.to_string()))?;
    // All in one transaction: a pooler may give the next one another session, which does not have the lock.
    AnsiTransactionManager::begin_transaction(&mut *connection).await.map_err(|e| trouble(&e))?;
    let lock = format!("SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
    connection.batch_execute(&lock).await.map_err(|e| trouble(&e))?;
    // The harness blocks, and panics on an actor's thread.
    let ran = tokio::task::spawn_blocking(move || {
        let mut harness = AsyncMigrationHarness::new(connection);
        let ran = harness.run_pending_migrations(MIGRATIONS).map(|ran| ran.len()).map_err(|e| e.to_string());
        (ran, harness.into_inner())
    });
    let (ran, mut connection) = ran.await.map_err(|e| SourceTrouble::new(TroubleKind::Failed, e.to_string()))?;
    let ran = match ran {
        Ok(count) => {
            let committed = AnsiTransactionManager::commit_transaction(&mut *connection).await;
            committed.map(|()| count).map_err(|e| e.to_string())
        }
        failed => failed,
    };
    match ran {
        Ok(0) => Ok(()),
        Ok(count) => {
            tracing::info!(count, "migrated the database schema");
            Ok(())
        }
        Err(error) => Err(match condition_of(&error) {
            Some(condition) => refused(condition, &error),
            None => SourceTrouble::new(TroubleKind::Failed, format!("cannot migrate the database schema: {error}")),
        }),
    }
}

/// Returns the versions of all migrations in this binary, in order.
pub(super) fn known() -> Vec<String> {
    let migrations: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().unwrap_or_default();
    let mut versions: Vec<String> = migrations.iter().map(|migration| migration.name().version().to_string()).collect();
    versions.sort();
    versions
}

/// Migration that introduced the archive; it can be reverted.
const ARCHIVE: &str = "0003";
const ARCHIVE_BACK: &str = include_str!("../../migrations/0003_history/down.sql");

/// Counts connections of other monitors to this database.
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name = current_setting('application_name') AND pid <> pg_backend_pid()";
/// Time for which Postgres may still show the connections of an ended monitor, tenths of a second.
const ENDING_TAKES: u32 = 30;

/// Result of returning the history to the older monitor's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedBack {
    /// All data is in plain rows again.
    All {
        /// Rows of `monitor_metrics`.
        samples: i64,
        /// Rows of `monitor_task_latency`.
        latencies: i64,
    },
    /// There is no archive.
    Nothing,
    /// Nothing was done, because monitors are connected.
    Watched {
        /// Number of connections.
        connections: i64,
    },
}

/// Returns the number of connections of other monitors to the database; waits for those that are closing.
///
/// # Errors
/// If Postgres fails.
pub async fn monitors_connected(url: &str, timeout: Duration) -> Result<i64, SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout).await.map_err(|e| connect_trouble(&e.to_string()))?;
    others(&mut connection).await.map_err(|e| trouble(&e))
}

async fn others(connection: &mut AsyncPgConnection) -> Result<i64, diesel::result::Error> {
    let mut connections = count(connection, OTHERS).await?;
    for _ in 0..ENDING_TAKES {
        if connections == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        connections = count(connection, OTHERS).await?;
    }
    Ok(connections)
}

/// Unpacks the archive into the tables of the older monitor, and removes it. The next [`run`] creates it again from them.
///
/// # Errors
/// If Postgres fails; nothing is changed then.
pub async fn give_back(url: &str, timeout: Duration) -> Result<HandedBack, SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout).await.map_err(|e| connect_trouble(&e.to_string()))?;
    let connections = others(&mut connection).await.map_err(|e| trouble(&e))?;
    if connections > 0 {
        return Ok(HandedBack::Watched { connections });
    }
    let giving = connection.transaction::<HandedBack, diesel::result::Error, _>(async |connection| {
        // A monitor that starts meanwhile waits, and then takes over again.
        let lock = format!("SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
        connection.batch_execute(&lock).await?;
        let connections = count(connection, OTHERS).await?;
        if connections > 0 {
            return Ok(HandedBack::Watched { connections });
        }
        if count(connection, "SELECT count(to_regclass('monitor_takeover'))").await? == 0 {
            return Ok(HandedBack::Nothing);
        }
        connection.batch_execute(ARCHIVE_BACK).await?;
        sql_query("DELETE FROM __diesel_schema_migrations WHERE version = $1")
            .bind::<diesel::sql_types::Text, _>(ARCHIVE)
            .execute(connection)
            .await?;
        Ok(HandedBack::All {
            samples: count(connection, "SELECT count(*) FROM monitor_metrics").await?,
            latencies: count(connection, "SELECT count(*) FROM monitor_task_latency").await?,
        })
    });
    giving.await.map_err(|e| trouble(&e))
}

async fn count(connection: &mut AsyncPgConnection, sql: &str) -> Result<i64, diesel::result::Error> {
    #[derive(diesel::QueryableByName)]
    struct Count {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        count: i64,
    }
    sql_query(sql).get_result(connection).await.map(|row: Count| row.count)
}

/// Indexes on the fleet's tables, without which probes scan whole tables.
pub(super) const FLEET_INDEXES: [(&str, &str); 4] = [
    ("shepherd_brain_start_time_domain", "shepherd_brain (start_time, domain)"),
    ("shepherd_brain_state_status", "shepherd_brain (state, status)"),
    ("callbacks_query_id", "callbacks (query_id)"),
    // The condition of `janitor`: finds queries to mark as abandoned without a full scan.
    (
        "shepherd_brain_unfinished",
        "shepherd_brain (start_time) WHERE state IS DISTINCT FROM 'COMPLETED' AND state IS DISTINCT FROM 'ABANDONED'",
    ),
];

/// Creates the indexes concurrently on existing fleet tables. Failures (as on tables of another owner) are logged and skipped;
/// probes then run less often.
///
/// # Errors
/// If there is no connection.
pub async fn add_fleet_indexes(pool: &PgPool) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    connection.let_statements_run(true).await.map_err(|e| trouble(&e))?;
    for (name, on) in FLEET_INDEXES {
        if let Err(error) = add_index(&mut connection, name, on).await {
            tracing::warn!(index = name, %error, "cannot create an index on the fleet's tables; queries on them will be slower");
        }
    }
    connection.let_statements_run(false).await.map_err(|e| trouble(&e))
}

#[derive(diesel::QueryableByName)]
struct IndexState {
    #[diesel(sql_type = diesel::sql_types::Bool)]
    table_exists: bool,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Bool>)]
    valid: Option<bool>,
}

async fn add_index(connection: &mut AsyncPgConnection, name: &str, on: &str) -> Result<(), diesel::result::Error> {
    let table = on.split(' ').next().unwrap_or(on);
    let state: IndexState = sql_query(format!(
        "SELECT to_regclass('{table}') IS NOT NULL AS table_exists, \
         (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{name}')) AS valid"
    ))
    .get_result(connection)
    .await?;
    match state {
        IndexState { table_exists: false, .. } | IndexState { valid: Some(true), .. } => return Ok(()),
        // Left by an interrupted `CREATE INDEX CONCURRENTLY`.
        IndexState { valid: Some(false), .. } => {
            sql_query(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")).execute(connection).await?;
        }
        IndexState { valid: None, .. } => {}
    }
    sql_query(format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {on}")).execute(connection).await?;
    Ok(())
}
