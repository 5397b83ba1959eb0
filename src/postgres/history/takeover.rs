//! Imports the data of an older monitor, day by day, newest first.
//!
//! Migration 0003 renames the old tables. A step moves the newest remaining day and records the progress in `monitor_takeover` in
//! one transaction; queries read older times from the old tables. The old tables are truncated at the end, which frees their space
//! at once. Times are rounded to milliseconds.

use diesel::sql_types::{Array, Nullable, Text, Timestamptz};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::compaction::{SampleRow, Stop, is_mine_alone, put_latencies, put_samples};
use super::latency::{COLUMNS_BEFORE, LatencyRow};
use super::{Kept, names_in, taken_over_down_to, time};
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;
use crate::history::{DAY, Micros};
use crate::postgres::connection::{PgPool, checkout};

/// The microseconds of a gauge are noise, and would be most of the compacted size.
const TO_THE_MILLISECOND: &str = "date_trunc('milliseconds', ts)";
/// Series to read at a time.
const NAMES_AT_ONCE: usize = 20;

/// Result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A day was imported; there may be more.
    Moved,
    /// Nothing is left to import, or another instance holds the lock.
    Nothing,
}

/// Imports the newest remaining day.
///
/// # Errors
/// If Postgres fails; nothing is moved then.
pub async fn step(pool: &PgPool) -> Result<Step, SourceTrouble> {
    for kept in [Kept::Metrics, Kept::Latency] {
        if day(pool, kept).await? == Step::Moved {
            return Ok(Step::Moved);
        }
    }
    Ok(Step::Nothing)
}

async fn day(pool: &PgPool, kept: Kept) -> Result<Step, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let moving = connection.transaction::<Step, Stop, _>(async |connection| {
        let Some(before) = taken_over_down_to(connection, kept).await? else { return Ok(Step::Nothing) };
        if !is_mine_alone(connection).await? {
            return Ok(Step::Nothing);
        }
        let set_aside = format!("{}_before", kept.table());
        let names = names_in(connection, &set_aside, kept.name_column()).await?;
        let Some(newest) = newest_before(connection, kept, &set_aside, &names, before).await? else {
            finish(connection, kept, &set_aside).await?;
            return Ok(Step::Moved);
        };
        let begins = newest - newest.rem_euclid(DAY);
        let until = before.min(begins + DAY);
        for some in names.chunks(NAMES_AT_ONCE) {
            move_some(connection, kept, &set_aside, some, (begins, until)).await?;
        }
        failpoint::reached("takeover.moved");
        sql_query("UPDATE monitor_takeover SET before = $1 WHERE taken_over = $2")
            .bind::<Timestamptz, _>(time(begins))
            .bind::<Text, _>(kept.table())
            .execute(connection)
            .await?;
        Ok(Step::Moved)
    });
    Ok(moving.await?)
}

async fn newest_before(
    connection: &mut AsyncPgConnection,
    kept: Kept,
    table: &str,
    names: &[String],
    before: Micros,
) -> Result<Option<Micros>, diesel::result::Error> {
    #[derive(QueryableByName)]
    struct Newest {
        #[diesel(sql_type = Nullable<Timestamptz>)]
        newest: Option<chrono::DateTime<chrono::Utc>>,
    }
    let name = kept.name_column();
    let newest: Newest = sql_query(format!(
        "SELECT max((SELECT max(ts) FROM {table} WHERE {name} = wanted AND ts < $2)) AS newest FROM unnest($1) AS wanted"
    ))
    .bind::<Array<Text>, _>(names)
    .bind::<Timestamptz, _>(time(before))
    .get_result(connection)
    .await?;
    Ok(newest.newest.map(|newest| newest.timestamp_micros()))
}

async fn move_some(
    connection: &mut AsyncPgConnection,
    kept: Kept,
    table: &str,
    names: &[String],
    (since, until): (Micros, Micros),
) -> Result<(), Stop> {
    let name = kept.name_column();
    let select = |columns: &str| {
        sql_query(format!("SELECT {columns} FROM {table} WHERE {name} = ANY($1) AND ts >= $2 AND ts < $3"))
            .bind::<Array<Text>, _>(names)
            .bind::<Timestamptz, _>(time(since))
            .bind::<Timestamptz, _>(time(until))
    };
    match kept {
        Kept::Metrics => {
            let rows: Vec<SampleRow> =
                select(&format!("metric, {TO_THE_MILLISECOND} AS ts, value")).load(connection).await?;
            put_samples(connection, rows).await
        }
        Kept::Latency => {
            let columns = COLUMNS_BEFORE.replace(" ts,", &format!(" {TO_THE_MILLISECOND} AS ts,"));
            let rows: Vec<LatencyRow> = select(&columns).load(connection).await?;
            put_latencies(connection, rows).await
        }
    }
}

/// With a lock timeout, so that readers do not wait: if the table is in use, the next step tries again.
async fn finish(connection: &mut AsyncPgConnection, kept: Kept, table: &str) -> Result<(), diesel::result::Error> {
    connection.batch_execute(&format!("SET LOCAL lock_timeout = '2s'; TRUNCATE {table}")).await?;
    sql_query("DELETE FROM monitor_takeover WHERE taken_over = $1")
        .bind::<Text, _>(kept.table())
        .execute(connection)
        .await?;
    tracing::info!(table = kept.table(), "imported an older monitor's history");
    Ok(())
}
