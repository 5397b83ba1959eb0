//! Measures the fleet's queries and the database, one statement per group of figures.
//!
//! Times in `shepherd_brain` have no time zone; they are compared with `LOCALTIMESTAMP`, which is in the session's time zone too.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::connection::{PgPool, checkout_fleet, trouble};
use super::prepared::prepared;
use crate::fleet::reading::{Callbacks, DatabaseServer, QueryCounts, QueryVolume, SourceTrouble, TroubleKind};

/// Checks that Postgres answers.
///
/// # Errors
/// If it does not.
pub async fn alive(pool: &PgPool) -> Result<(), SourceTrouble> {
    checkout_fleet(pool).await?.batch_execute("").await.map_err(|e| trouble(&e))
}

prepared!(
    /// Connections, database size, whether the write-ahead log may be read, whether the query tables exist.
    Server,
    (BigInt, BigInt, Bool, Bool),
    "SELECT (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database)::bigint, \
     pg_database_size(current_database())::bigint, \
     has_function_privilege('pg_ls_waldir()', 'execute'), \
     to_regclass('shepherd_brain') IS NOT NULL AND to_regclass('callbacks') IS NOT NULL"
);

prepared!(
    /// The same, with the size of the write-ahead log, for a role that may read it: an answer less to wait for.
    ServerWithWal,
    (BigInt, BigInt, BigInt, Bool),
    "SELECT (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database)::bigint, \
     pg_database_size(current_database())::bigint, \
     (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir())::bigint, \
     to_regclass('shepherd_brain') IS NOT NULL AND to_regclass('callbacks') IS NOT NULL"
);

prepared!(
    /// Client connections to all databases.
    Connections,
    (BigInt),
    "SELECT coalesce(sum(numbackends), 0)::bigint FROM pg_stat_database"
);

prepared!(
    /// Size of the connected database, bytes.
    DatabaseSize,
    (BigInt),
    "SELECT pg_database_size(current_database())::bigint"
);

prepared!(
    /// Whether the role may read the write-ahead log.
    MaySeeWal,
    (Bool),
    "SELECT has_function_privilege('pg_ls_waldir()', 'execute')"
);

prepared!(
    /// Whether the fleet's query tables exist.
    HasQueries,
    (Bool),
    "SELECT to_regclass('shepherd_brain') IS NOT NULL AND to_regclass('callbacks') IS NOT NULL"
);

prepared!(
    /// Size of the write-ahead log, bytes.
    WalSize,
    (BigInt),
    "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()"
);

/// Reads connections and sizes; a figure that Postgres refuses contains the reason. `sees_wal`: the size of the write-ahead
/// log could be read before.
///
/// # Errors
/// If Postgres cannot be read at all.
pub async fn server(pool: &PgPool, sees_wal: bool) -> Result<DatabaseServer, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    if sees_wal {
        let all: QueryResult<(i64, i64, i64, bool)> = ServerWithWal.get_result(&mut connection).await;
        match all {
            Ok((connections, size, wal, has_queries)) => {
                return Ok(DatabaseServer {
                    connections: Ok(connections),
                    db_size_bytes: Ok(size),
                    wal_size_bytes: Ok(Some(wal)),
                    has_queries,
                });
            }
            Err(error) if is_closed(&error) => return Err(trouble(&error)),
            Err(_) => {}
        }
    }
    let together: QueryResult<(i64, i64, bool, bool)> = Server.get_result(&mut connection).await;
    let (connections, db_size_bytes, may_see_wal, has_queries) = match together {
        Ok((connections, size, may_see_wal, has_queries)) => (Ok(connections), Ok(size), Ok(may_see_wal), has_queries),
        Err(error) if is_closed(&error) => return Err(trouble(&error)),
        // Managed servers may refuse some of them, so each is queried separately.
        Err(_) => {
            let (has_queries,) = HasQueries.get_result(&mut connection).await.map_err(|e| trouble(&e))?;
            let connections = figure(Connections.get_result(&mut connection).await);
            let size = figure(DatabaseSize.get_result(&mut connection).await);
            (connections, size, figure(MaySeeWal.get_result(&mut connection).await), has_queries)
        }
    };
    let wal_size_bytes = match may_see_wal {
        Ok(true) => figure(WalSize.get_result(&mut connection).await).map(Some),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(DatabaseServer { connections, db_size_bytes, wal_size_bytes, has_queries })
}

fn is_closed(error: &diesel::result::Error) -> bool {
    trouble(error).kind == TroubleKind::Unreachable
}

fn figure<T>(answer: QueryResult<(T,)>) -> Result<T, String> {
    answer.map(|(value,)| value).map_err(|error| trouble(&error).detail)
}

prepared!(
    /// Number of queries by state and status.
    Counts,
    (Nullable<Text>, Nullable<Text>, BigInt),
    "SELECT state::text, status::text, count(*) FROM shepherd_brain GROUP BY 1, 2"
);

/// Counts all queries by state and status; scans an index of the whole table.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn query_counts(pool: &PgPool) -> Result<QueryCounts, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let rows: Vec<(Option<String>, Option<String>, i64)> =
        Counts.load(&mut connection).await.map_err(|e| trouble(&e))?;
    let mut counts = QueryCounts::default();
    for (state, status, count) in rows {
        *counts.by_state.entry(state.unwrap_or_else(none)).or_default() += count;
        *counts.by_status.entry(status.unwrap_or_else(none)).or_default() += count;
    }
    Ok(counts)
}

prepared!(
    /// Queries of the last day and the last hour by ARA.
    Volume,
    (Nullable<Text>, BigInt, BigInt),
    "SELECT domain::text, count(*), count(*) FILTER (WHERE start_time > LOCALTIMESTAMP - interval '1 hour') \
     FROM shepherd_brain WHERE start_time > LOCALTIMESTAMP - interval '24 hours' GROUP BY 1"
);

/// Counts queries of the last day by ARA, and those of the last hour.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn query_volume(pool: &PgPool) -> Result<QueryVolume, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let rows: Vec<(Option<String>, i64, i64)> = Volume.load(&mut connection).await.map_err(|e| trouble(&e))?;
    Ok(QueryVolume {
        last_1h: rows.iter().map(|(_, _, last_1h)| last_1h).sum(),
        last_24h: rows.iter().map(|(_, last_24h, _)| last_24h).sum(),
        per_ara_24h: rows.into_iter().map(|(ara, last_24h, _)| (ara.unwrap_or_else(none), last_24h)).collect(),
    })
}

prepared!(
    /// Number of callbacks, and the age of the oldest query that waits for one, seconds.
    Waiting,
    (BigInt, Nullable<Double>),
    "SELECT count(*), extract(epoch FROM LOCALTIMESTAMP - min(b.start_time))::float8 \
     FROM callbacks c LEFT JOIN shepherd_brain b ON b.qid = c.query_id"
);

/// Counts callbacks and returns the age of the oldest query that waits for one.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn callbacks(pool: &PgPool) -> Result<Callbacks, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let (pending, oldest_age): (i64, Option<f64>) =
        Waiting.get_result(&mut connection).await.map_err(|e| trouble(&e))?;
    Ok(Callbacks { pending, oldest_age_sec: oldest_age.map(|age| age.max(0.0)) })
}

fn none() -> String {
    "none".to_owned()
}
