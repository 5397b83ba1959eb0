//! How many queries were started: from the fleet's own table, hours that are over from what was
//! counted then, per five minutes.
//!
//! `shepherd_brain.start_time` carries no zone; it is read in the server's, which is the session's.

use std::collections::BTreeMap;

use diesel::sql_types::{BigInt, Bool, Text, Timestamptz};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::time;
use crate::fleet::reading::SourceTrouble;
use crate::history::window::Window;
use crate::history::{HOUR, Micros, SECOND};
use crate::postgres::connection::{PgPool, checkout, trouble};

/// Queries started per bucket, by ARA. Empty buckets are not in it.
pub type Started = BTreeMap<String, BTreeMap<Micros, i64>>;

/// So long are the pieces that are counted.
const PIECE: Micros = 300 * SECOND;

/// The ARA of a query, short enough for a row of an index.
const DOMAIN: &str = "left(coalesce(domain, 'none'), 500)";

/// In which the fleet's table is read by its index: a start in it, whatever the zone and its
/// changes, lies within these naive times.
const NEAR: &str = "start_time >= $1::timestamp - interval '3 hours' AND start_time < $2::timestamp + interval '3 hours' \
     AND start_time::timestamptz >= $1 AND start_time::timestamptz < $2";

#[derive(QueryableByName)]
struct StartedRow {
    #[diesel(sql_type = BigInt)]
    bucket: i64,
    #[diesel(sql_type = Text)]
    domain: String,
    #[diesel(sql_type = BigInt)]
    started: i64,
}

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

async fn has_queries(connection: &mut AsyncPgConnection) -> Result<bool, diesel::result::Error> {
    let row: Exists =
        sql_query("SELECT to_regclass('shepherd_brain') IS NOT NULL AS exists").get_result(connection).await?;
    Ok(row.exists)
}

/// Queries started in a window; `None` if the fleet keeps no queries here.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn read(pool: &PgPool, window: Window) -> Result<Option<Started>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let mut reading = connection.build_transaction().read_only().repeatable_read();
    let rows = reading.run(async |connection| {
        if !has_queries(connection).await? {
            return Ok(None);
        }
        let mut rows = Vec::new();
        let mut since = window.since;
        if window.is_made_of(PIECE) {
            let until = counted_until(connection).await?.min(window.until);
            rows = counted(connection, Window { until, ..window }).await?;
            since = since.max(until);
        }
        if since < window.until {
            rows.extend(count(connection, since, window).await?);
        }
        Ok(Some(rows))
    });
    let rows: Option<Vec<StartedRow>> = rows.await.map_err(|e: diesel::result::Error| trouble(&e))?;
    Ok(rows.map(|rows| {
        let mut started = Started::new();
        for row in rows.into_iter().filter(|row| row.started > 0) {
            *started.entry(row.domain).or_default().entry(row.bucket * SECOND).or_default() += row.started;
        }
        started
    }))
}

async fn counted(connection: &mut AsyncPgConnection, window: Window) -> Result<Vec<StartedRow>, diesel::result::Error> {
    sql_query(
        "SELECT (floor(date_part('epoch', since) / $3) * $3)::bigint AS bucket, domain, sum(started)::bigint AS started \
         FROM monitor_query_counts WHERE since >= $1 AND since < $2 GROUP BY 1, 2",
    )
    .bind::<Timestamptz, _>(time(window.since))
    .bind::<Timestamptz, _>(time(window.until))
    .bind::<BigInt, _>(window.bucket / SECOND)
    .load(connection)
    .await
}

async fn count(
    connection: &mut AsyncPgConnection,
    since: Micros,
    window: Window,
) -> Result<Vec<StartedRow>, diesel::result::Error> {
    sql_query(format!(
        "SELECT (floor(date_part('epoch', start_time::timestamptz) / $3) * $3)::bigint AS bucket, \
         {DOMAIN} AS domain, count(*) AS started FROM shepherd_brain WHERE {NEAR} GROUP BY 1, 2"
    ))
    .bind::<Timestamptz, _>(time(since))
    .bind::<Timestamptz, _>(time(window.until))
    .bind::<BigInt, _>(window.bucket / SECOND)
    .load(connection)
    .await
}

/// The end of the last hour that is over by Postgres' clock, which also dates the queries: the clock of
/// a monitor may be wrong. Queries that are written down late have two minutes.
const CLOSED: &str = "date_trunc('hour', now() - interval '2 minutes', 'UTC')";

/// The end of the last piece that was counted once it was over.
async fn counted_until(connection: &mut AsyncPgConnection) -> Result<Micros, diesel::result::Error> {
    let row: super::Count = sql_query(format!(
        "SELECT least(coalesce(date_part('epoch', max(since)) + $1, 0), date_part('epoch', {CLOSED}))::bigint AS count
         FROM monitor_query_counts"
    ))
    .bind::<BigInt, _>(PIECE / SECOND)
    .get_result(connection)
    .await?;
    Ok(row.count * SECOND)
}

/// Counts the hours before `closed_before` that are over by Postgres' clock too and were not counted yet.
///
/// # Errors
/// When Postgres did not do it.
pub async fn count_closed(pool: &PgPool, closed_before: Micros) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let counting = connection.transaction(async |connection| {
        if !has_queries(connection).await? {
            return Ok(());
        }
        // What a clock that was ahead had counted too early is counted again.
        sql_query(format!("DELETE FROM monitor_query_counts WHERE since >= {CLOSED}")).execute(connection).await?;
        let since = counted_until(connection).await?;
        let closed: super::Count =
            sql_query(format!("SELECT date_part('epoch', {CLOSED})::bigint AS count")).get_result(connection).await?;
        let until = (closed_before - closed_before.rem_euclid(HOUR)).min(closed.count * SECOND);
        if since >= until {
            return Ok(());
        }
        // The last piece has a row in any case: so it is known how far was counted.
        sql_query(format!(
            "INSERT INTO monitor_query_counts (since, domain, started) \
             SELECT to_timestamp(floor(date_part('epoch', start_time::timestamptz) / $3) * $3), \
                {DOMAIN}, count(*) \
             FROM shepherd_brain WHERE {NEAR} GROUP BY 1, 2 \
             UNION ALL SELECT $2 - $3 * interval '1 second', '', 0 \
             ON CONFLICT DO NOTHING"
        ))
        .bind::<Timestamptz, _>(time(since))
        .bind::<Timestamptz, _>(time(until))
        .bind::<BigInt, _>(PIECE / SECOND)
        .execute(connection)
        .await?;
        Ok(())
    });
    counting.await.map_err(|e: diesel::result::Error| trouble(&e))
}
