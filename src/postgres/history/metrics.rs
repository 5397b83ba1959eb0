//! Series: stores samples, and answers queries of time ranges from rows and days.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Double, Integer, Text, Timestamptz};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::FutureExt;

use super::{Kept, Selection, day_of, elsewhere, names_in, taken_over_down_to, time};
use crate::fleet::reading::SourceTrouble;
use crate::history::series::Sample;
use crate::history::stored_name::stored_name;
use crate::history::window::{Aggregate, Window};
use crate::history::{DAY, HOUR, Micros, SECOND, metric_day};
use crate::postgres::connection::{PgPool, checkout, trouble};
use crate::postgres::row_isolation::{Isolated, Put, may_be_about_rows, put_isolating};

/// Maximum size of compacted samples to read for one answer, bytes.
const MOST_PACKED: i64 = 16 << 20;

/// Non-empty buckets of each series by their start.
pub type Series = BTreeMap<String, BTreeMap<Micros, Aggregate>>;

/// Stores samples. Skips stored ones and sets aside those that Postgres rejects.
///
/// # Errors
/// If Postgres fails.
pub async fn insert(pool: &PgPool, ticks: &[(Micros, Vec<Sample>)]) -> Result<(), SourceTrouble> {
    let of_tick = |(at, samples): &(Micros, Vec<Sample>)| -> Vec<Recorded> {
        samples.iter().map(|(name, value)| (*at, stored_name(name).into_owned(), *value)).collect()
    };
    let rows: Vec<Recorded> = ticks.iter().flat_map(of_tick).collect();
    let mut connection = checkout(pool).await?;
    let stored = match put(&mut connection, &rows).await {
        Err(error) if may_be_about_rows(&error) => {
            let name = |(_, name, _): &Recorded| format!("sample of {name}");
            let put: Put<Recorded> = |connection, rows| put(connection, rows).boxed();
            put_isolating(&mut connection, &rows, put, name).await.and_then(Isolated::settle)
        }
        other => other,
    };
    stored.map_err(|e| trouble(&e))
}

/// Time, series and value of a sample.
type Recorded = (Micros, String, f64);

async fn put(connection: &mut AsyncPgConnection, rows: &[Recorded]) -> Result<(), diesel::result::Error> {
    let insert = Insert {
        times: rows.iter().map(|(at, ..)| time(*at)).collect(),
        names: rows.iter().map(|(_, name, _)| name.clone()).collect(),
        values: rows.iter().map(|(.., value)| *value).collect(),
    };
    insert.execute(connection).await.map(drop)
}

/// Statement of [`insert`], prepared once per connection.
#[derive(QueryId)]
struct Insert {
    times: Vec<DateTime<Utc>>,
    names: Vec<String>,
    values: Vec<f64>,
}

impl QueryFragment<Pg> for Insert {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("INSERT INTO monitor_metrics (ts, metric, value) SELECT * FROM unnest(");
        out.push_bind_param::<Array<Timestamptz>, _>(&self.times)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.names)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Double>, _>(&self.values)?;
        out.push_sql(") ON CONFLICT DO NOTHING");
        Ok(())
    }
}

#[derive(QueryableByName)]
struct DayRow {
    #[diesel(sql_type = Text)]
    metric: String,
    #[diesel(sql_type = Integer)]
    day: i32,
    #[diesel(sql_type = Binary)]
    bytes: Vec<u8>,
}

#[derive(QueryableByName)]
struct BucketRow {
    #[diesel(sql_type = Text)]
    metric: String,
    #[diesel(sql_type = BigInt)]
    bucket: i64,
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Double)]
    sum: f64,
    #[diesel(sql_type = Double)]
    min: f64,
    #[diesel(sql_type = Double)]
    max: f64,
}

/// Returns the buckets of a time range.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn read(pool: &PgPool, selection: &Selection, window: Window) -> Result<Series, SourceTrouble> {
    Ok(read_at_most(pool, selection, window, usize::MAX).await?.unwrap_or_default())
}

/// Like [`read`]; returns `None` if there are more than `most` buckets, or too many samples to read.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn read_at_most(
    pool: &PgPool,
    selection: &Selection,
    window: Window,
    most: usize,
) -> Result<Option<Series>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let mut found = connection.build_transaction().read_only().repeatable_read();
    let found = found
        .run(async |connection| {
            if most < usize::MAX && packed_bytes(connection, selection, window).await? > MOST_PACKED {
                return Ok(None);
            }
            found_in(connection, selection, window, most).await.map(Some)
        })
        .await
        .map_err(|e: diesel::result::Error| trouble(&e))?;
    drop(connection);
    let Some((days, buckets)) = found else { return Ok(None) };
    let asked = selection.clone();
    elsewhere(move || {
        let mut series = Series::new();
        let mut points = 0;
        for row in days {
            if points > most {
                return Ok(None);
            }
            let buckets = series.entry(row.metric).or_default();
            let before = buckets.len();
            let begins = Micros::from(row.day) * DAY;
            if window.is_made_of(HOUR) {
                metric_day::hours(begins, &row.bytes)?.for_each(|(hour, of_hour)| add(buckets, window, hour, of_hour));
            } else {
                add_samples(buckets, window, metric_day::samples(&row.bytes)?);
            }
            points += buckets.len() - before;
        }
        for row in buckets {
            let aggregate = Aggregate { count: row.count.unsigned_abs(), sum: row.sum, min: row.min, max: row.max };
            add(series.entry(row.metric).or_default(), window, row.bucket * SECOND, aggregate);
        }
        series.retain(|_, buckets| !buckets.is_empty());
        let points: usize = series.values().map(BTreeMap::len).sum();
        Ok((points <= most).then(|| asked.as_asked(series)))
    })
    .await
}

fn add(buckets: &mut BTreeMap<Micros, Aggregate>, window: Window, at: Micros, what: Aggregate) {
    if window.contains(at) {
        buckets.entry(window.bucket_of(at)).and_modify(|known| known.merge(&what)).or_insert(what);
    }
}

/// Samples are in order of time, so each bucket is looked up once.
fn add_samples(buckets: &mut BTreeMap<Micros, Aggregate>, window: Window, samples: Vec<(Micros, f64)>) {
    let inside = samples.into_iter().filter(|(at, value)| value.is_finite() && window.contains(*at));
    let mut open: Option<(Micros, Aggregate)> = None;
    for (at, value) in inside {
        match &mut open {
            Some((bucket, aggregate)) if at - *bucket < window.bucket => aggregate.merge(&Aggregate::of(value)),
            _ => {
                let next = (window.bucket_of(at), Aggregate::of(value));
                if let Some((bucket, aggregate)) = open.replace(next) {
                    add(buckets, window, bucket, aggregate);
                }
            }
        }
    }
    if let Some((bucket, aggregate)) = open {
        add(buckets, window, bucket, aggregate);
    }
}

async fn found_in(
    connection: &mut AsyncPgConnection,
    selection: &Selection,
    window: Window,
    most: usize,
) -> Result<(Vec<DayRow>, Vec<BucketRow>), diesel::result::Error> {
    let bytes = if window.is_made_of(HOUR) { "hours" } else { "packed" };
    let days = sql_query(format!(
        "SELECT metric, day - date '1970-01-01' AS day, {bytes} AS bytes FROM monitor_metric_days \
         WHERE {} AND day BETWEEN date '1970-01-01' + $2 AND date '1970-01-01' + $3",
        selection.condition("metric")
    ))
    .bind::<Array<Text>, _>(selection.parameter())
    .bind::<Integer, _>(day_of(window.since))
    .bind::<Integer, _>(day_of(window.until - 1))
    .load(connection)
    .await?;
    let mut buckets = bucketed(connection, "monitor_metrics", selection, window, most).await?;
    let before = taken_over_down_to(connection, Kept::Metrics).await?;
    if let Some(before) = before.filter(|before| *before > window.since) {
        let table = "monitor_metrics_before";
        // By name, which is the first column of the key.
        let mut names = names_in(connection, table, "metric").await?;
        names.retain(|name| selection.takes(name));
        let older = Window { until: window.until.min(before), ..window };
        buckets.extend(bucketed(connection, table, &Selection::Names(names), older, most).await?);
    }
    Ok((days, buckets))
}

/// Aggregates rows to buckets in Postgres. Starts are whole seconds.
async fn bucketed(
    connection: &mut AsyncPgConnection,
    table: &str,
    selection: &Selection,
    window: Window,
    most: usize,
) -> Result<Vec<BucketRow>, diesel::result::Error> {
    let (since, until): (DateTime<Utc>, DateTime<Utc>) = (time(window.since), time(window.until));
    sql_query(format!(
        "SELECT metric, (floor(date_part('epoch', ts) / $4) * $4)::bigint AS bucket, count(*) AS count, \
         sum(value) AS sum, min(value) AS min, max(value) AS max FROM {table} \
         WHERE {} AND ts >= $2 AND ts < $3 AND value > '-Infinity' AND value < 'Infinity' GROUP BY 1, 2 LIMIT $5",
        selection.condition("metric")
    ))
    .bind::<Array<Text>, _>(selection.parameter())
    .bind::<Timestamptz, _>(since)
    .bind::<Timestamptz, _>(until)
    .bind::<BigInt, _>(window.bucket / SECOND)
    // One more than the limit shows that there are too many.
    .bind::<BigInt, _>(i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1))
    .load(connection)
    .await
}

#[derive(QueryableByName)]
struct Bytes {
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

/// Returns the size of the compacted samples in a time range, bytes; 0 if hourly aggregates suffice.
async fn packed_bytes(
    connection: &mut AsyncPgConnection,
    selection: &Selection,
    window: Window,
) -> Result<i64, diesel::result::Error> {
    if window.is_made_of(HOUR) || window.until - window.since <= 2 * DAY {
        return Ok(0);
    }
    let found: Bytes = sql_query(format!(
        "SELECT coalesce(sum(octet_length(packed)), 0)::bigint AS bytes FROM monitor_metric_days \
         WHERE {} AND day BETWEEN date '1970-01-01' + $2 AND date '1970-01-01' + $3",
        selection.condition("metric")
    ))
    .bind::<Array<Text>, _>(selection.parameter())
    .bind::<Integer, _>(day_of(window.since))
    .bind::<Integer, _>(day_of(window.until - 1))
    .get_result(connection)
    .await?;
    Ok(found.bytes)
}
