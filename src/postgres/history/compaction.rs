//! Compacts rows of closed hours into one row per series and day.
//!
//! A step deletes rows and stores their contents in one transaction, under a lock that one instance holds. An interrupted step has
//! no effect.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, BigInt, Binary, Bool, Double, Integer, Nullable, Text, Timestamptz};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::latency::{COLUMNS, LatencyRow};
use super::{Kept, damaged, day_of, elsewhere, time};
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;
use crate::history::{DAY, Micros, latency, metric_day};
use crate::postgres::connection::{PgPool, checkout, trouble};

/// Maximum number of rows per step, which takes a fraction of a second.
const ROWS_PER_STEP: i64 = 40_000;
/// Advisory lock (arbitrary number), held until the end of a transaction that moves rows.
const LOCK: i64 = 0x5348_4550 + 1;

/// Error that ends a transaction of the archive.
pub(super) enum Stop {
    Query(diesel::result::Error),
    Source(SourceTrouble),
}

impl From<diesel::result::Error> for Stop {
    fn from(error: diesel::result::Error) -> Self {
        Self::Query(error)
    }
}

impl From<SourceTrouble> for Stop {
    fn from(trouble: SourceTrouble) -> Self {
        Self::Source(trouble)
    }
}

impl From<Stop> for SourceTrouble {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Query(error) => trouble(&error),
            Stop::Source(trouble) => trouble,
        }
    }
}

/// Moves rows that are older than `closed_before`. Returns their number; less than the maximum means that none are left, or that
/// another instance holds the lock.
///
/// # Errors
/// If Postgres fails, or a stored day cannot be decoded; nothing is moved then.
pub async fn step(pool: &PgPool, closed_before: Micros) -> Result<usize, SourceTrouble> {
    let moved = metrics(pool, closed_before).await? + latencies(pool, closed_before).await?;
    if moved > 0 {
        vacuum(pool).await;
    }
    Ok(moved)
}

/// Tries to take the lock that prevents two instances from moving the same rows; held until the end of the transaction.
pub(super) async fn is_mine_alone(connection: &mut AsyncPgConnection) -> Result<bool, diesel::result::Error> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    let locked: Locked = sql_query("SELECT pg_try_advisory_xact_lock($1) AS locked")
        .bind::<BigInt, _>(LOCK)
        .get_result(connection)
        .await?;
    Ok(locked.locked)
}

#[derive(QueryableByName)]
pub(super) struct SampleRow {
    #[diesel(sql_type = Text)]
    pub(super) metric: String,
    #[diesel(sql_type = Timestamptz)]
    pub(super) ts: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Double>)]
    pub(super) value: Option<f64>,
}

/// Returns the `DELETE … RETURNING` of some closed rows.
fn take(kept: Kept, columns: &str) -> String {
    let (table, name) = (kept.table(), kept.name_column());
    format!(
        "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE ts < $1 ORDER BY {name}, ts LIMIT $2)) \
         RETURNING {columns}"
    )
}

async fn metrics(pool: &PgPool, closed_before: Micros) -> Result<usize, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let moving = connection.transaction::<usize, Stop, _>(async |connection| {
        if !is_mine_alone(connection).await? {
            return Ok(0);
        }
        let rows: Vec<SampleRow> = sql_query(take(Kept::Metrics, "metric, ts, value"))
            .bind::<Timestamptz, _>(time(closed_before))
            .bind::<BigInt, _>(ROWS_PER_STEP)
            .load(connection)
            .await?;
        let moved = rows.len();
        put_samples(connection, rows).await?;
        failpoint::reached("compaction.moved");
        Ok(moved)
    });
    Ok(moving.await?)
}

async fn latencies(pool: &PgPool, closed_before: Micros) -> Result<usize, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let moving = connection.transaction::<usize, Stop, _>(async |connection| {
        if !is_mine_alone(connection).await? {
            return Ok(0);
        }
        let rows: Vec<LatencyRow> = sql_query(take(Kept::Latency, COLUMNS))
            .bind::<Timestamptz, _>(time(closed_before))
            .bind::<BigInt, _>(ROWS_PER_STEP)
            .load(connection)
            .await?;
        let moved = rows.len();
        put_latencies(connection, rows).await?;
        Ok(moved)
    });
    Ok(moving.await?)
}

/// Frees the space of deleted rows; without the privilege, autovacuum does it.
async fn vacuum(pool: &PgPool) {
    let Ok(mut connection) = checkout(pool).await else { return };
    for table in [Kept::Metrics.table(), Kept::Latency.table(), "monitor_metric_days", "monitor_latency_days"] {
        if let Err(error) = sql_query(format!("VACUUM {table}")).execute(&mut connection).await {
            tracing::debug!(table, %error, "cannot run VACUUM; leaving it to autovacuum");
        }
    }
}

#[derive(QueryableByName)]
struct StoredMetric {
    #[diesel(sql_type = Text)]
    metric: String,
    #[diesel(sql_type = Integer)]
    day: i32,
    #[diesel(sql_type = Binary)]
    packed: Vec<u8>,
}

/// Merges samples into the rows of their days.
pub(super) async fn put_samples(connection: &mut AsyncPgConnection, rows: Vec<SampleRow>) -> Result<(), Stop> {
    let mut days: BTreeMap<(String, i32), Vec<(Micros, f64)>> = BTreeMap::new();
    for row in rows {
        let at = row.ts.timestamp_micros();
        // NULL values are skipped.
        if let Some(value) = row.value {
            days.entry((row.metric, day_of(at))).or_default().push((at, value));
        }
    }
    if days.is_empty() {
        return Ok(());
    }
    let (names, numbers): (Vec<String>, Vec<i32>) = days.keys().cloned().unzip();
    let known: Vec<StoredMetric> = sql_query(
        "SELECT d.metric, d.day - date '1970-01-01' AS day, d.packed FROM monitor_metric_days d \
         JOIN unnest($1, $2) AS wanted (metric, day) ON d.metric = wanted.metric AND d.day = date '1970-01-01' + wanted.day",
    )
    .bind::<Array<Text>, _>(&names)
    .bind::<Array<Integer>, _>(&numbers)
    .load(connection)
    .await?;
    let stored = elsewhere(move || {
        let mut known: BTreeMap<(String, i32), Vec<u8>> =
            known.into_iter().map(|row| ((row.metric, row.day), row.packed)).collect();
        days.into_iter()
            .map(|(key, samples)| metric_day::store(known.remove(&key).as_deref(), samples))
            .collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let samples: Vec<i32> = stored.iter().map(|day| i32::try_from(day.count).unwrap_or(i32::MAX)).collect();
    let (packed, hours): (Vec<Vec<u8>>, Vec<Vec<u8>>) = stored.into_iter().map(|day| (day.packed, day.hours)).unzip();
    sql_query(
        "INSERT INTO monitor_metric_days (metric, day, samples, packed, hours) \
         SELECT metric, date '1970-01-01' + day, samples, packed, hours \
         FROM unnest($1, $2, $3, $4, $5) AS new (metric, day, samples, packed, hours) \
         ON CONFLICT (metric, day) DO UPDATE SET (samples, packed, hours) = (excluded.samples, excluded.packed, excluded.hours)",
    )
    .bind::<Array<Text>, _>(names)
    .bind::<Array<Integer>, _>(numbers)
    .bind::<Array<Integer>, _>(samples)
    .bind::<Array<Binary>, _>(packed)
    .bind::<Array<Binary>, _>(hours)
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(QueryableByName)]
struct StoredLatency {
    #[diesel(sql_type = Text)]
    stream: String,
    #[diesel(sql_type = Integer)]
    day: i32,
    #[diesel(sql_type = Binary)]
    packed: Vec<u8>,
    #[diesel(sql_type = Binary)]
    fine: Vec<u8>,
}

/// Merges latencies into the rows of their days.
pub(super) async fn put_latencies(connection: &mut AsyncPgConnection, rows: Vec<LatencyRow>) -> Result<(), Stop> {
    let mut days: BTreeMap<(String, i32), Vec<latency::Row>> = BTreeMap::new();
    for row in rows {
        let at = row.ts.timestamp_micros();
        if let Some(known) = row.latency().map_err(damaged)? {
            days.entry((row.stream, day_of(at))).or_default().push((at, known));
        }
    }
    if days.is_empty() {
        return Ok(());
    }
    let (names, numbers): (Vec<String>, Vec<i32>) = days.keys().cloned().unzip();
    let known: Vec<StoredLatency> = sql_query(
        "SELECT d.stream, d.day - date '1970-01-01' AS day, d.packed, d.fine FROM monitor_latency_days d \
         JOIN unnest($1, $2) AS wanted (stream, day) ON d.stream = wanted.stream AND d.day = date '1970-01-01' + wanted.day",
    )
    .bind::<Array<Text>, _>(&names)
    .bind::<Array<Integer>, _>(&numbers)
    .load(connection)
    .await?;
    let stored = elsewhere(move || {
        let known: BTreeMap<(String, i32), StoredLatency> =
            known.into_iter().map(|row| ((row.stream.clone(), row.day), row)).collect();
        let days = days.into_iter().map(|(key, rows)| {
            let known = known.get(&key).map(|row| latency::StoredRef { packed: &row.packed, fine: &row.fine });
            latency::store(Micros::from(key.1) * DAY, known, &rows)
        });
        days.collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let tasks: Vec<i64> = stored.iter().map(|day| i64::try_from(day.count).unwrap_or(i64::MAX)).collect();
    let (mut packed, mut fine, mut hours) = (Vec::new(), Vec::new(), Vec::new());
    for day in stored {
        packed.push(day.packed);
        fine.push(day.fine);
        hours.push(day.hours);
    }
    sql_query(
        "INSERT INTO monitor_latency_days (stream, day, tasks, packed, fine, hours) \
         SELECT stream, date '1970-01-01' + day, tasks, packed, fine, hours \
         FROM unnest($1, $2, $3, $4, $5, $6) AS new (stream, day, tasks, packed, fine, hours) \
         ON CONFLICT (stream, day) DO UPDATE SET (tasks, packed, fine, hours) = \
         (excluded.tasks, excluded.packed, excluded.fine, excluded.hours)",
    )
    .bind::<Array<Text>, _>(names)
    .bind::<Array<Integer>, _>(numbers)
    .bind::<Array<BigInt>, _>(tasks)
    .bind::<Array<Binary>, _>(packed)
    .bind::<Array<Binary>, _>(fine)
    .bind::<Array<Binary>, _>(hours)
    .execute(connection)
    .await?;
    Ok(())
}
