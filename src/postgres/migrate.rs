//! Bringing the database up to date: the monitor's tables, and indexes that the fleet's tables
//! need for cheap probes.

use std::time::Duration;

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_query;
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl,
    SimpleAsyncConnection, TransactionManager,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connection::{PgPool, checkout, condition_of, connect, refused, trouble};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// The table in which diesel keeps which migrations were run.
pub(super) const HISTORY_OF_MIGRATIONS: &str = "__diesel_schema_migrations";

/// Any number that only monitors use: two that start together migrate one after the other.
const MIGRATION_LOCK: i64 = 0x5348_4550;

/// The migration that makes the fleet's tables in an empty database.
const FLEET_TABLES: &str = "0001";

/// Makes `schema`, which `url` puts first, and then runs what has not been run yet in it. The fleet's tables are never
/// made there: they would hide those that the fleet makes later.
///
/// # Errors
/// When the database is not there, or this role may not create schemas.
pub async fn run_in(schema: &str, url: &str, timeout: Duration) -> Result<(), SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout)
        .await
        .map_err(|e| SourceTrouble::new(TroubleKind::Unreachable, e.to_string()))?;
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

/// Runs what has not been run yet.
///
/// # Errors
/// When the database is not there, or this role may not create tables.
pub async fn run(url: &str, timeout: Duration) -> Result<(), SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout)
        .await
        .map_err(|e| SourceTrouble::new(TroubleKind::Unreachable, e.to_string()))?;
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

/// The versions of all migrations that this program has, in order.
pub(super) fn known() -> Vec<String> {
    let migrations: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().unwrap_or_default();
    let mut versions: Vec<String> = migrations.iter().map(|migration| migration.name().version().to_string()).collect();
    versions.sort();
    versions
}

/// The migration by which the archive came, and its way back.
const ARCHIVE: &str = "0003";
const ARCHIVE_BACK: &str = include_str!("../../migrations/0003_history/down.sql");

/// Connections of monitors to this database, this one aside.
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name = current_setting('application_name') AND pid <> pg_backend_pid()";
/// Postgres may see the connections of a monitor that has just ended for so many tenths of a second.
const ENDING_TAKES: u32 = 30;

/// What giving the history back came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenBack {
    /// All of it stands in plain rows again.
    All {
        /// Rows of `monitor_metrics`.
        samples: i64,
        /// Rows of `monitor_task_latency`.
        latencies: i64,
    },
    /// No archive is there.
    Nothing,
    /// Nothing was done: monitors are connected.
    Watched {
        /// How often.
        connections: i64,
    },
}

/// How often other monitors are connected to the database; those that are just ending are waited for.
///
/// # Errors
/// When Postgres cannot be asked.
pub async fn monitors_connected(url: &str, timeout: Duration) -> Result<i64, SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout)
        .await
        .map_err(|e| SourceTrouble::new(TroubleKind::Unreachable, e.to_string()))?;
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

/// Unpacks the archive into the tables that the monitor before this one reads, and removes it. The next
/// [`run`] makes it anew from them.
///
/// # Errors
/// When Postgres did not do it; then nothing was changed.
pub async fn give_back(url: &str, timeout: Duration) -> Result<GivenBack, SourceTrouble> {
    let mut connection = connect(url.to_owned(), timeout)
        .await
        .map_err(|e| SourceTrouble::new(TroubleKind::Unreachable, e.to_string()))?;
    let connections = others(&mut connection).await.map_err(|e| trouble(&e))?;
    if connections > 0 {
        return Ok(GivenBack::Watched { connections });
    }
    let giving = connection.transaction::<GivenBack, diesel::result::Error, _>(async |connection| {
        // A monitor that starts meanwhile waits, and then takes over again.
        let lock = format!("SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
        connection.batch_execute(&lock).await?;
        let connections = count(connection, OTHERS).await?;
        if connections > 0 {
            return Ok(GivenBack::Watched { connections });
        }
        if count(connection, "SELECT count(to_regclass('monitor_takeover'))").await? == 0 {
            return Ok(GivenBack::Nothing);
        }
        connection.batch_execute(ARCHIVE_BACK).await?;
        sql_query("DELETE FROM __diesel_schema_migrations WHERE version = $1")
            .bind::<diesel::sql_types::Text, _>(ARCHIVE)
            .execute(connection)
            .await?;
        Ok(GivenBack::All {
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

/// Indexes on the fleet's tables, without which probes read them whole.
pub(super) const FLEET_INDEXES: [(&str, &str); 4] = [
    ("shepherd_brain_start_time_domain", "shepherd_brain (start_time, domain)"),
    ("shepherd_brain_state_status", "shepherd_brain (state, status)"),
    ("callbacks_query_id", "callbacks (query_id)"),
    // As `janitor` words it: a query that may be abandoned is found without reading all others.
    (
        "shepherd_brain_unfinished",
        "shepherd_brain (start_time) WHERE state IS DISTINCT FROM 'COMPLETED' AND state IS DISTINCT FROM 'ABANDONED'",
    ),
];

/// Adds the indexes where the fleet's tables exist, without locking anyone out. What cannot be
/// done (the tables are somebody else's) is logged and left: probes then run less often.
///
/// # Errors
/// When there is no connection.
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
        // Left behind by an attempt that was cut off.
        IndexState { valid: Some(false), .. } => {
            sql_query(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")).execute(connection).await?;
        }
        IndexState { valid: None, .. } => {}
    }
    sql_query(format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {on}")).execute(connection).await?;
    Ok(())
}
