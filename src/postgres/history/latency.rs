//! Run times of tasks: stores each batch once, and answers queries of time ranges from rows and days.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, BigInt, Binary, Double, Integer, Nullable, Text, Timestamptz};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use futures_util::FutureExt;
use uuid::Uuid;

use super::compaction::Stop;
use super::{Kept, Selection, damaged, day_of, elsewhere, taken_over_down_to, time};
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;
use crate::history::latency::{FINE, Latency, Row, Summary, count, parts, rows};
use crate::history::stored_name::stored_name;
use crate::history::window::Window;
use crate::history::{DAY, HOUR, Micros, Unreadable};
use crate::postgres::connection::{PgPool, checkout, trouble};
use crate::postgres::row_isolation::{Isolated, Put, may_be_about_rows, put_isolating};

/// Advisory lock (arbitrary number).
const LOCK: i64 = 0x5348_4550 + 2;

/// A batch of run times of a stream, with the ID under which it was drained.
#[derive(Clone)]
pub struct Batch {
    /// ID, for deduplication.
    pub id: Uuid,
    /// Stream.
    pub stream: String,
    /// Start of the interval in which the tasks finished.
    pub at: Micros,
    /// Run times.
    pub latency: Latency,
}

/// Stores batches; each is counted once, even if it is stored repeatedly.
///
/// # Errors
/// If Postgres fails; none is stored then.
pub async fn insert(pool: &PgPool, batches: Vec<Batch>) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let storing = connection.transaction(async |connection| put(connection, &batches).await);
    let stored = match storing.await {
        Err(error) if may_be_about_rows(&error) => {
            let name = |batch: &Batch| format!("task durations of {}", batch.stream);
            let put: Put<Batch> = |connection, batches| put(connection, batches).boxed();
            put_isolating(&mut connection, &batches, put, name).await.and_then(Isolated::settle)
        }
        other => other,
    };
    stored.map_err(|e| trouble(&e))
}

async fn put(connection: &mut AsyncPgConnection, batches: &[Batch]) -> Result<(), diesel::result::Error> {
    // Serialized, since concurrent additions to the same row would overwrite each other.
    sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LOCK).execute(connection).await?;
    let ids: Vec<Uuid> = batches.iter().map(|batch| batch.id).collect();
    let new: Vec<NewId> =
        sql_query("INSERT INTO monitor_latency_batches (id) SELECT unnest($1) ON CONFLICT DO NOTHING RETURNING id")
            .bind::<Array<diesel::sql_types::Uuid>, _>(ids)
            .load(connection)
            .await?;
    // Batches of the same interval (as after a restart) are one row.
    let mut new_rows: BTreeMap<(String, Micros), Latency> = BTreeMap::new();
    for batch in batches.iter().filter(|batch| new.iter().any(|new| new.id == batch.id)) {
        let key = (stored_name(&batch.stream).into_owned(), batch.at);
        match new_rows.get_mut(&key) {
            Some(known) => known.merge(&batch.latency),
            None => drop(new_rows.insert(key, batch.latency.clone())),
        }
    }
    add_rows(connection, new_rows).await.map_err(|stop| match stop {
        Stop::Query(error) => error,
        // A damaged row affects only its own stream.
        Stop::Source(trouble) => diesel::result::Error::DeserializationError(trouble.detail.into()),
    })?;
    failpoint::reached("latency.inserted");
    Ok(())
}

#[derive(QueryableByName)]
struct NewId {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: Uuid,
}

/// Stores rows, merged with existing ones of the same stream and interval.
async fn add_rows(
    connection: &mut AsyncPgConnection,
    mut new_rows: BTreeMap<(String, Micros), Latency>,
) -> Result<(), Stop> {
    let (streams, times): (Vec<String>, Vec<DateTime<Utc>>) =
        new_rows.keys().map(|(stream, at)| (stream.clone(), time(*at))).unzip();
    let known: Vec<LatencyRow> = sql_query(format!(
        "SELECT {COLUMNS} FROM monitor_task_latency JOIN unnest($1, $2) AS wanted (stream, ts) USING (stream, ts)"
    ))
    .bind::<Array<Text>, _>(&streams)
    .bind::<Array<Timestamptz>, _>(&times)
    .load(connection)
    .await?;
    for row in known {
        // An unreadable row must not be replaced.
        let known = row.latency().map_err(damaged)?;
        if let (Some(known), Some(latency)) = (known, new_rows.get_mut(&(row.stream, row.ts.timestamp_micros()))) {
            latency.merge(&known);
        }
    }
    let summaries: Vec<Summary> = new_rows.values().map(Latency::summary).collect();
    let figures = |of: fn(&Summary) -> Option<f64>| summaries.iter().map(of).collect::<Vec<_>>();
    let counts: Vec<i32> = summaries.iter().map(|s| i32::try_from(s.count).unwrap_or(i32::MAX)).collect();
    let sketches: Vec<Option<Vec<u8>>> = new_rows.values().map(Latency::encode).collect();
    sql_query(
        "INSERT INTO monitor_task_latency (stream, ts, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms, sketch) \
         SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         ON CONFLICT (stream, ts) DO UPDATE SET (count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms, sketch) = \
         (excluded.count, excluded.mean_ms, excluded.p50_ms, excluded.p90_ms, excluded.p95_ms, excluded.p99_ms, \
          excluded.min_ms, excluded.max_ms, excluded.sketch)",
    )
    .bind::<Array<Text>, _>(streams)
    .bind::<Array<Timestamptz>, _>(times)
    .bind::<Array<Integer>, _>(counts)
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.mean_ms))
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.p50_ms))
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.p90_ms))
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.p95_ms))
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.p99_ms))
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.min_ms))
    .bind::<Array<Nullable<Double>>, _>(figures(|s| s.max_ms))
    .bind::<Array<Nullable<Binary>>, _>(sketches)
    .execute(connection)
    .await?;
    Ok(())
}

/// Columns of [`LatencyRow`].
pub(super) const COLUMNS: &str = "stream, ts, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms, sketch";
/// The same for a table without sketches.
pub(super) const COLUMNS_BEFORE: &str =
    "stream, ts, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms, NULL::bytea AS sketch";

/// A row of `monitor_task_latency`.
#[derive(QueryableByName)]
pub(super) struct LatencyRow {
    #[diesel(sql_type = Text)]
    pub(super) stream: String,
    #[diesel(sql_type = Timestamptz)]
    pub(super) ts: DateTime<Utc>,
    #[diesel(sql_type = Integer)]
    count: i32,
    #[diesel(sql_type = Nullable<Double>)]
    mean_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    p50_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    p90_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    p95_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    p99_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    min_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    max_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Binary>)]
    sketch: Option<Vec<u8>>,
}

impl LatencyRow {
    fn summary(&self) -> Summary {
        Summary {
            count: u64::from(self.count.unsigned_abs()),
            mean_ms: self.mean_ms,
            p50_ms: self.p50_ms,
            p90_ms: self.p90_ms,
            p95_ms: self.p95_ms,
            p99_ms: self.p99_ms,
            min_ms: self.min_ms,
            max_ms: self.max_ms,
            exact: self.sketch.is_some(),
        }
    }

    /// Decodes the row; `None` if it contains no task.
    pub(super) fn latency(&self) -> Result<Option<Latency>, Unreadable> {
        match &self.sketch {
            Some(sketch) => Latency::decode(sketch).map(Some),
            None => Ok(Latency::of_summary(&self.summary())),
        }
    }
}

#[derive(QueryableByName)]
struct DayRow {
    #[diesel(sql_type = Text)]
    stream: String,
    #[diesel(sql_type = Integer)]
    day: i32,
    #[diesel(sql_type = Binary)]
    bytes: Vec<u8>,
}

/// Run times in a time range, by stream.
#[derive(Default)]
pub struct Latencies {
    /// Points of each stream by their start. With buckets below five minutes, each row is a point at its own time; longer buckets
    /// are merged.
    pub points: BTreeMap<String, BTreeMap<Micros, Summary>>,
    /// Each stream over the whole range.
    pub totals: BTreeMap<String, Latency>,
}

/// Returns points and totals of a time range.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn read(pool: &PgPool, selection: &Selection, window: Window) -> Result<Latencies, SourceTrouble> {
    Ok(read_at_most(pool, selection, window, usize::MAX).await?.unwrap_or_default())
}

/// Like [`read`]; returns `None` if there are more than `most` points.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn read_at_most(
    pool: &PgPool,
    selection: &Selection,
    window: Window,
    most: usize,
) -> Result<Option<Latencies>, SourceTrouble> {
    // Compacted days have no buckets between a row and five minutes.
    let coarse = (window.bucket >= FINE).then(|| {
        let bucket = window.bucket - window.bucket % FINE;
        Window { bucket, since: window.since - window.since.rem_euclid(bucket), ..window }
    });
    let reach = coarse.unwrap_or(Window {
        since: window.since - window.since.rem_euclid(FINE),
        until: window.until + (-window.until).rem_euclid(FINE),
        bucket: FINE,
    });
    let mut connection = checkout(pool).await?;
    let mut reading = connection.build_transaction().read_only().repeatable_read();
    let found = reading.run(async |connection| found_in(connection, selection, reach, coarse.is_none()).await).await;
    let (days, packed, young) = found.map_err(|e: diesel::result::Error| trouble(&e))?;
    drop(connection);
    let by_hours = reach.is_made_of(HOUR);
    let asked = selection.clone();
    elsewhere(move || {
        // One stream at a time, to limit memory: buckets are large, their summaries small.
        let mut streams: BTreeMap<String, OfStream> = BTreeMap::new();
        for day in days {
            streams.entry(day.stream).or_default().days.push((day.day, day.bytes));
        }
        for day in packed {
            streams.entry(day.stream).or_default().packed.push(day.bytes);
        }
        for row in young {
            streams.entry(row.stream.clone()).or_default().young.push(row);
        }
        let mut points: BTreeMap<String, BTreeMap<Micros, Summary>> = BTreeMap::new();
        let (mut totals, mut found) = (BTreeMap::new(), 0);
        for (stream, of_stream) in streams {
            let length = if by_hours { HOUR } else { FINE };
            let (of_buckets, total) = of_stream.summed_up(window, (reach, coarse.is_some()), length)?;
            found += of_buckets.len();
            if found > most {
                return Ok(None);
            }
            totals.extend(total.map(|total| (stream.clone(), total)));
            points.insert(stream, of_buckets);
        }
        points.retain(|_, points| !points.is_empty());
        Ok(Some(Latencies { points: asked.as_asked(points), totals: asked.as_asked(totals) }))
    })
    .await
}

/// Stored data of one stream.
#[derive(Default)]
struct OfStream {
    days: Vec<(i32, Vec<u8>)>,
    packed: Vec<Vec<u8>>,
    young: Vec<LatencyRow>,
}

impl OfStream {
    /// Returns its points in `window` and its total, from days split into parts of `length`. If `coarse`, a point is a bucket of
    /// `reach`, otherwise a row.
    fn summed_up(
        self,
        window: Window,
        (reach, coarse): (Window, bool),
        length: Micros,
    ) -> Result<(BTreeMap<Micros, Summary>, Option<Latency>), Unreadable> {
        let mut points: BTreeMap<Micros, Summary> = BTreeMap::new();
        let mut buckets: BTreeMap<Micros, Latency> = BTreeMap::new();
        let mut add = |(at, latency): Row| {
            if !reach.contains(at) {
                return;
            }
            match buckets.get_mut(&reach.bucket_of(at)) {
                Some(known) => known.merge(&latency),
                None => drop(buckets.insert(reach.bucket_of(at), latency)),
            }
        };
        for (day, bytes) in self.days {
            let parts = parts(Micros::from(day) * DAY, length, &bytes, |at| reach.contains(at))?;
            parts.into_iter().for_each(&mut add);
        }
        for bytes in self.packed {
            points.extend(rows(&bytes)?.into_iter().filter(|(at, _)| window.contains(*at)));
        }
        for row in self.young {
            let Some(latency) = row.latency()? else { continue };
            let at = row.ts.timestamp_micros();
            if !coarse && window.contains(at) {
                points.insert(at, row.summary());
            }
            add((at, latency));
        }
        if coarse {
            points.extend(buckets.iter().map(|(at, latency)| (*at, latency.summary())));
        }
        let total = buckets.into_values().reduce(|mut total, latency| {
            total.merge(&latency);
            total
        });
        Ok((points, total))
    }
}

#[derive(QueryableByName)]
struct VolumeRow {
    #[diesel(sql_type = Text)]
    stream: String,
    /// Number of tasks, if the day is entirely in the range.
    #[diesel(sql_type = BigInt)]
    tasks: i64,
    /// Compacted rows of a day that is partially in the range.
    #[diesel(sql_type = Nullable<Binary>)]
    packed: Option<Vec<u8>>,
}

/// Returns the number of finished tasks per stream in a time range.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn volume(pool: &PgPool, window: Window) -> Result<BTreeMap<String, u64>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    // Only the first and last days are decoded.
    let rows: Vec<VolumeRow> = sql_query(
        "WITH days AS (SELECT stream, tasks, packed, day::timestamp AT TIME ZONE 'UTC' AS begins, \
            (day + 1)::timestamp AT TIME ZONE 'UTC' AS ends FROM monitor_latency_days), \
         touched AS (SELECT *, begins >= $1 AND ends <= $2 AS inside FROM days WHERE ends > $1 AND begins < $2) \
         SELECT stream, sum(tasks)::bigint AS tasks, NULL::bytea AS packed FROM touched WHERE inside GROUP BY stream \
         UNION ALL SELECT stream, 0, packed FROM touched WHERE NOT inside \
         UNION ALL SELECT stream, sum(count)::bigint, NULL FROM monitor_task_latency \
            WHERE ts >= $1 AND ts < $2 GROUP BY stream \
         UNION ALL SELECT stream, sum(count)::bigint, NULL FROM monitor_task_latency_before \
            WHERE ts >= $1 AND ts < $2 AND ts < (SELECT before FROM monitor_takeover WHERE taken_over = $3) GROUP BY stream",
    )
    .bind::<Timestamptz, _>(time(window.since))
    .bind::<Timestamptz, _>(time(window.until))
    .bind::<Text, _>(Kept::Latency.table())
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    drop(connection);
    elsewhere(move || {
        let mut volume: BTreeMap<String, u64> = BTreeMap::new();
        for row in rows {
            let unpacked = row.packed.map_or(Ok(0), |packed| count(&packed, |at| window.contains(at)))?;
            *volume.entry(row.stream).or_default() += row.tasks.unsigned_abs() + unpacked;
        }
        volume.retain(|_, tasks| *tasks > 0);
        Ok(volume)
    })
    .await
}

async fn found_in(
    connection: &mut AsyncPgConnection,
    selection: &Selection,
    reach: Window,
    rows_too: bool,
) -> Result<(Vec<DayRow>, Vec<DayRow>, Vec<LatencyRow>), diesel::result::Error> {
    let sketches = if reach.is_made_of(HOUR) { "hours" } else { "fine" };
    let days = days(connection, selection, reach, sketches).await?;
    let packed = if rows_too { self::days(connection, selection, reach, "packed").await? } else { Vec::new() };
    let mut young = young(connection, &format!("{COLUMNS} FROM monitor_task_latency"), selection, reach).await?;
    let before = taken_over_down_to(connection, Kept::Latency).await?;
    if let Some(before) = before.filter(|before| *before > reach.since) {
        let older = Window { until: reach.until.min(before), ..reach };
        let from = format!("{COLUMNS_BEFORE} FROM monitor_task_latency_before");
        young.extend(self::young(connection, &from, selection, older).await?);
    }
    Ok((days, packed, young))
}

async fn days(
    connection: &mut AsyncPgConnection,
    selection: &Selection,
    window: Window,
    column: &str,
) -> Result<Vec<DayRow>, diesel::result::Error> {
    sql_query(format!(
        "SELECT stream, day - date '1970-01-01' AS day, {column} AS bytes FROM monitor_latency_days \
         WHERE {} AND day BETWEEN date '1970-01-01' + $2 AND date '1970-01-01' + $3",
        selection.condition("stream")
    ))
    .bind::<Array<Text>, _>(selection.parameter())
    .bind::<Integer, _>(day_of(window.since))
    .bind::<Integer, _>(day_of(window.until - 1))
    .load(connection)
    .await
}

async fn young(
    connection: &mut AsyncPgConnection,
    columns_from: &str,
    selection: &Selection,
    window: Window,
) -> Result<Vec<LatencyRow>, diesel::result::Error> {
    sql_query(format!("SELECT {columns_from} WHERE {} AND ts >= $2 AND ts < $3", selection.condition("stream")))
        .bind::<Array<Text>, _>(selection.parameter())
        .bind::<Timestamptz, _>(time(window.since))
        .bind::<Timestamptz, _>(time(window.until))
        .load(connection)
        .await
}
