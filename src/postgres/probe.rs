//! Measuring the fleet's queries and the database itself, one statement per group of figures.
//!
//! Times in `shepherd_brain` carry no zone: they are compared with `LOCALTIMESTAMP`, the same
//! server's idea of now in its session zone.

use std::collections::BTreeMap;

use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::connection::{PgPool, checkout, trouble};
use crate::fleet::reading::{Callbacks, DatabaseServer, QueryCounts, QueryVolume, SourceTrouble};

#[derive(QueryableByName)]
struct ServerRow {
    #[diesel(sql_type = BigInt)]
    connections: i64,
    #[diesel(sql_type = BigInt)]
    db_size: i64,
    #[diesel(sql_type = Bool)]
    may_see_wal: bool,
    #[diesel(sql_type = Bool)]
    has_queries: bool,
}

#[derive(QueryableByName)]
struct WalRow {
    #[diesel(sql_type = BigInt)]
    size: i64,
}

/// Asks nothing: whether Postgres answers.
///
/// # Errors
/// When it does not.
pub async fn alive(pool: &PgPool) -> Result<(), SourceTrouble> {
    checkout(pool).await?.batch_execute("").await.map_err(|e| trouble(&e))
}

/// Asks for connections and sizes.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn server(pool: &PgPool) -> Result<DatabaseServer, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let row: ServerRow = sql_query(
        "SELECT (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database)::bigint AS connections, \
         pg_database_size(current_database())::bigint AS db_size, \
         has_function_privilege('pg_ls_waldir()', 'execute') AS may_see_wal, \
         to_regclass('shepherd_brain') IS NOT NULL AND to_regclass('callbacks') IS NOT NULL AS has_queries",
    )
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    let wal_size_bytes = if row.may_see_wal {
        let wal: WalRow = sql_query("SELECT coalesce(sum(size), 0)::bigint AS size FROM pg_ls_waldir()")
            .get_result(&mut connection)
            .await
            .map_err(|e| trouble(&e))?;
        Some(wal.size)
    } else {
        None
    };
    Ok(DatabaseServer {
        connections: row.connections,
        db_size_bytes: row.db_size,
        wal_size_bytes,
        has_queries: row.has_queries,
    })
}

#[derive(QueryableByName)]
struct CountRow {
    #[diesel(sql_type = Nullable<Text>)]
    state: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    status: Option<String>,
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// Counts all queries by state and status: reads an index of the whole table.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn query_counts(pool: &PgPool) -> Result<QueryCounts, SourceTrouble> {
    let rows: Vec<CountRow> =
        rows(pool, "SELECT state, status, count(*) AS count FROM shepherd_brain GROUP BY state, status").await?;
    let mut counts = QueryCounts::default();
    for row in rows {
        *counts.by_state.entry(row.state.unwrap_or_else(|| "none".to_owned())).or_default() += row.count;
        *counts.by_status.entry(row.status.unwrap_or_else(|| "none".to_owned())).or_default() += row.count;
    }
    Ok(counts)
}

#[derive(QueryableByName)]
struct VolumeRow {
    #[diesel(sql_type = Nullable<Text>)]
    domain: Option<String>,
    #[diesel(sql_type = BigInt)]
    last_24h: i64,
    #[diesel(sql_type = BigInt)]
    last_1h: i64,
}

/// Counts the queries of the last day by ARA, and those of the last hour.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn query_volume(pool: &PgPool) -> Result<QueryVolume, SourceTrouble> {
    let statement = "SELECT domain, count(*) AS last_24h, \
         count(*) FILTER (WHERE start_time > LOCALTIMESTAMP - interval '1 hour') AS last_1h \
         FROM shepherd_brain WHERE start_time > LOCALTIMESTAMP - interval '24 hours' GROUP BY domain";
    let rows: Vec<VolumeRow> = rows(pool, statement).await?;
    let per_ara_24h: BTreeMap<String, i64> =
        rows.iter().map(|row| (row.domain.clone().unwrap_or_else(|| "none".to_owned()), row.last_24h)).collect();
    Ok(QueryVolume {
        last_1h: rows.iter().map(|row| row.last_1h).sum(),
        last_24h: rows.iter().map(|row| row.last_24h).sum(),
        per_ara_24h,
    })
}

#[derive(QueryableByName)]
struct CallbacksRow {
    #[diesel(sql_type = BigInt)]
    pending: i64,
    #[diesel(sql_type = Nullable<Double>)]
    oldest_age: Option<f64>,
}

/// Counts the callbacks and dates the oldest query that waits for one.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn callbacks(pool: &PgPool) -> Result<Callbacks, SourceTrouble> {
    let statement = "SELECT count(*) AS pending, \
         extract(epoch FROM LOCALTIMESTAMP - min(b.start_time))::float8 AS oldest_age \
         FROM callbacks c LEFT JOIN shepherd_brain b ON b.qid = c.query_id";
    let rows: Vec<CallbacksRow> = rows(pool, statement).await?;
    let row = rows.into_iter().next();
    Ok(row.map_or_else(Callbacks::default, |row| Callbacks {
        pending: row.pending,
        oldest_age_sec: row.oldest_age.unwrap_or(0.0).max(0.0),
    }))
}

async fn rows<T>(pool: &PgPool, statement: &str) -> Result<Vec<T>, SourceTrouble>
where
    T: diesel::deserialize::QueryableByName<diesel::pg::Pg> + Send + 'static,
{
    let mut connection = checkout(pool).await?;
    sql_query(statement).load(&mut connection).await.map_err(|e| trouble(&e))
}
