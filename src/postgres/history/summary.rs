//! Summary of a time range.

use diesel::sql_types::{BigInt, Timestamptz};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::time;
use crate::fleet::reading::SourceTrouble;
use crate::history::window::Window;
use crate::postgres::connection::{PgPool, checkout, trouble};

/// Number of events in a time range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, QueryableByName)]
pub struct Happened {
    /// Crashes of worker types: no worker running, and at least one did not shut down gracefully.
    #[diesel(sql_type = BigInt)]
    pub crashes: i64,
    /// Changes in the number of workers.
    #[diesel(sql_type = BigInt)]
    pub scale_events: i64,
    /// Alerts.
    #[diesel(sql_type = BigInt)]
    pub alerts: i64,
}

/// Counts the events of a time range.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn happened(pool: &PgPool, window: Window) -> Result<Happened, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(
        "SELECT count(*) FILTER (WHERE type = 'scale_down' AND payload ->> 'kind' = 'crashed') AS crashes, \
         count(*) FILTER (WHERE type IN ('scale_up', 'scale_down')) AS scale_events, \
         count(*) FILTER (WHERE type = 'alert') AS alerts \
         FROM monitor_events WHERE ts >= $1 AND ts < $2",
    )
    .bind::<Timestamptz, _>(time(window.since))
    .bind::<Timestamptz, _>(time(window.until))
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))
}
