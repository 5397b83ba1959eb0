//! Number of started queries per five minutes: from the fleet's table, or from stored counts for closed hours.
//!
//! `shepherd_brain.start_time` has no time zone; it is interpreted in that of the session.

use std::collections::BTreeMap;

use diesel::sql_types::{BigInt, Bool, Text, Timestamptz};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::time;
use crate::fleet::reading::SourceTrouble;
use crate::history::window::Window;
use crate::history::{HOUR, Micros, SECOND};
use crate::postgres::connection::{PgPool, checkout_fleet, own_table, trouble};

/// Started queries by ARA and bucket, without empty buckets.
pub type Started = BTreeMap<String, BTreeMap<Micros, i64>>;

/// Length of a counted interval.
const PIECE: Micros = 300 * SECOND;

/// ARA of a query, truncated to fit an index row.
const DOMAIN: &str = "left(coalesce(domain, 'none'), 500)";

/// Condition that uses the index of the fleet's table: starts in the range are within these naive times in every time zone,
/// including daylight saving.
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

/// Returns the queries started in a time range; `None` if the fleet's table does not exist.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn read(pool: &PgPool, window: Window) -> Result<Option<Started>, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let counts = &counts_table(pool);
    let mut reading = connection.build_transaction().read_only().repeatable_read();
    let rows = reading.run(async |connection| {
        if !has_queries(connection).await? {
            return Ok(None);
        }
        let mut rows = Vec::new();
        let mut since = window.since;
        if window.is_made_of(PIECE) {
            let until = counted_until(connection, counts).await?.min(window.until);
            rows = counted(connection, counts, Window { until, ..window }).await?;
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

/// Name of the table with the stored counts.
fn counts_table(pool: &PgPool) -> String {
    own_table(pool, "monitor_query_counts")
}

async fn counted(
    connection: &mut AsyncPgConnection,
    counts: &str,
    window: Window,
) -> Result<Vec<StartedRow>, diesel::result::Error> {
    sql_query(format!(
        "SELECT (floor(date_part('epoch', since) / $3) * $3)::bigint AS bucket, domain, sum(started)::bigint AS started \
         FROM {counts} WHERE since >= $1 AND since < $2 GROUP BY 1, 2",
    ))
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

/// End of the last closed hour by Postgres' clock, which also sets the start times; the clock of a monitor may be wrong. Two
/// minutes allow for queries that are inserted late.
const CLOSED: &str = "date_trunc('hour', now() - interval '2 minutes', 'UTC')";

/// Returns the end of the last counted interval.
async fn counted_until(connection: &mut AsyncPgConnection, counts: &str) -> Result<Micros, diesel::result::Error> {
    let row: super::Count = sql_query(format!(
        "SELECT least(coalesce(date_part('epoch', max(since)) + $1, 0), date_part('epoch', {CLOSED}))::bigint AS count
         FROM {counts}"
    ))
    .bind::<BigInt, _>(PIECE / SECOND)
    .get_result(connection)
    .await?;
    Ok(row.count * SECOND)
}

/// Counts hours before `closed_before` that are closed by Postgres' clock too and not counted yet.
///
/// # Errors
/// If Postgres fails.
pub async fn count_closed(pool: &PgPool, closed_before: Micros) -> Result<(), SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let counts = &counts_table(pool);
    let counting = connection.transaction(async |connection| {
        if !has_queries(connection).await? {
            return Ok(());
        }
        // Counts that a wrong clock made too early are repeated.
        sql_query(format!("DELETE FROM {counts} WHERE since >= {CLOSED}")).execute(connection).await?;
        let since = counted_until(connection, counts).await?;
        let closed: super::Count =
            sql_query(format!("SELECT date_part('epoch', {CLOSED})::bigint AS count")).get_result(connection).await?;
        let until = (closed_before - closed_before.rem_euclid(HOUR)).min(closed.count * SECOND);
        if since >= until {
            return Ok(());
        }
        // The last interval always has a row, which marks the progress.
        sql_query(format!(
            "INSERT INTO {counts} (since, domain, started) \
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
