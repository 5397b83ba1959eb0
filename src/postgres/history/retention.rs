//! Deletes expired data: whole days of series in one statement, events in batches.

use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;

use crate::fleet::reading::SourceTrouble;
use crate::history::Keep;
use crate::postgres::connection::{PgPool, checkout, trouble};
use crate::postgres::{audit, recycle_bin};

/// Rows to delete per statement.
const ROWS_AT_ONCE: i64 = 5000;
/// Retention of the IDs of stored batches, days.
const BATCHES_DAYS: i32 = 7;

/// Number of deleted rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Days of series.
    pub metric_days: usize,
    /// Days of run times.
    pub latency_days: usize,
    /// Events.
    pub events: usize,
    /// Rows of the audit log.
    pub changes: usize,
    /// Entries of the recycle bin, and expired previews.
    pub recycled: usize,
}

/// Deletes data that is older than its retention.
///
/// # Errors
/// If Postgres fails; earlier statements remain in effect.
pub async fn sweep(pool: &PgPool, keep: Keep) -> Result<Deleted, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let mut deleted = Deleted::default();
    let days = |days: u32| i32::try_from(days).ok().filter(|days| *days > 0);
    if let Some(days) = days(keep.metrics_days) {
        deleted.metric_days =
            sql_query("DELETE FROM monitor_metric_days WHERE day < (now() AT TIME ZONE 'UTC')::date - $1")
                .bind::<Integer, _>(days)
                .execute(&mut connection)
                .await
                .map_err(|e| trouble(&e))?;
        sql_query("DELETE FROM monitor_query_counts WHERE since < now() - $1 * interval '1 day'")
            .bind::<Integer, _>(days)
            .execute(&mut connection)
            .await
            .map_err(|e| trouble(&e))?;
    }
    if let Some(days) = days(keep.latency_days) {
        deleted.latency_days =
            sql_query("DELETE FROM monitor_latency_days WHERE day < (now() AT TIME ZONE 'UTC')::date - $1")
                .bind::<Integer, _>(days)
                .execute(&mut connection)
                .await
                .map_err(|e| trouble(&e))?;
    }
    sql_query("DELETE FROM monitor_latency_batches WHERE stored_at < now() - $1 * interval '1 day'")
        .bind::<Integer, _>(BATCHES_DAYS)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    if let Some(days) = days(keep.events_days) {
        deleted.events = events_older(&mut connection, days).await?;
        deleted.changes = audit::retain(pool, days).await?;
    }
    deleted.recycled = recycle_bin::sweep(pool).await?;
    Ok(deleted)
}

/// Deletes events that are older than this many days, in batches. Returns their number.
async fn events_older(connection: &mut AsyncPgConnection, days: i32) -> Result<usize, SourceTrouble> {
    let mut deleted = 0;
    loop {
        let some = sql_query(
            "DELETE FROM monitor_events WHERE id = ANY(ARRAY(SELECT id FROM monitor_events \
             WHERE ts < now() - $1 * interval '1 day' ORDER BY ts LIMIT $2 FOR UPDATE SKIP LOCKED))",
        )
        .bind::<Integer, _>(days)
        .bind::<BigInt, _>(ROWS_AT_ONCE)
        .execute(connection)
        .await
        .map_err(|e| trouble(&e))?;
        deleted += some;
        if some == 0 {
            return Ok(deleted);
        }
    }
}
