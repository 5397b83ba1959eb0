//! Task run times: statistics of a time range, their aggregation, and the stored form of one day of a stream.
//!
//! Percentiles cannot be merged, so latencies are stored as sketches with a relative error of at most one percent. Rows
//! of the older monitor contain percentiles only. A sum that includes such rows is marked ([`Summary::exact`]) and uses
//! percentiles averaged by task count, the best available estimate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sketches_ddsketch::{Config, DDSketch};

use super::columns::{self, Table};
use super::{DAY, HOUR, Micros, SECOND, Unreadable};

const VERSION: u8 = 1;
/// Maximum relative error of a percentile.
const ERROR: f64 = 0.01;
/// Bins per sketch, enough for a microsecond to a year in milliseconds.
const MAX_BINS: u32 = 2048;
/// Length covered by one sketch of a stored day; longer buckets merge these or hourly ones.
pub const FINE: Micros = 300 * SECOND;

/// Run times of the tasks that finished in a time range, milliseconds.
#[derive(Clone, Serialize, Deserialize)]
pub struct Latency {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    sketch: Option<DDSketch>,
    without_sketch: Option<Percentiles>,
}

/// Percentiles of rows without a sketch, each multiplied by its number of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Percentiles {
    count: u64,
    weighted: [f64; 4],
}

/// Run time statistics, in milliseconds; `null` where a row of the older monitor has no value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "TaskTimes")]
pub struct Summary {
    /// Number of tasks.
    pub count: u64,
    /// Mean.
    pub mean_ms: Option<f64>,
    /// 50th percentile.
    pub p50_ms: Option<f64>,
    /// 90th percentile.
    pub p90_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// Minimum.
    pub min_ms: Option<f64>,
    /// Maximum.
    pub max_ms: Option<f64>,
    /// Whether the percentiles are computed from the tasks. If not, they are averages of percentiles of older
    /// rows.
    pub exact: bool,
}

/// Quantiles in the API.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

impl Latency {
    /// Aggregates durations (milliseconds); `None` if there are none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "durations far below 2^53 ms")]
    pub fn of_durations(durations: &[u64]) -> Option<Self> {
        let mut sketch = empty_sketch();
        for duration in durations {
            sketch.add(*duration as f64);
        }
        Some(Self {
            count: durations.len() as u64,
            sum: durations.iter().map(|d| *d as f64).sum(),
            min: *durations.iter().min()? as f64,
            max: *durations.iter().max()? as f64,
            sketch: Some(sketch),
            without_sketch: None,
        })
    }

    /// Converts a row without a sketch; `None` if it covers no tasks.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn of_summary(row: &Summary) -> Option<Self> {
        let tasks = row.count as f64;
        let percentiles = [row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms].map(|p| p.unwrap_or(f64::NAN) * tasks);
        (row.count > 0).then(|| Self {
            count: row.count,
            sum: row.mean_ms.unwrap_or(f64::NAN) * tasks,
            min: row.min_ms.unwrap_or(f64::NAN),
            max: row.max_ms.unwrap_or(f64::NAN),
            sketch: None,
            without_sketch: Some(Percentiles { count: row.count, weighted: percentiles }),
        })
    }

    /// Number of tasks.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds the tasks of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        match (&mut self.sketch, &other.sketch) {
            // All sketches are created here with the same configuration, so merging cannot fail.
            (Some(mine), Some(theirs)) => drop(mine.merge(theirs)),
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            (_, None) => {}
        }
        match (&mut self.without_sketch, &other.without_sketch) {
            (Some(mine), Some(theirs)) => {
                mine.count += theirs.count;
                for (mine, theirs) in mine.weighted.iter_mut().zip(theirs.weighted) {
                    *mine += theirs;
                }
            }
            (mine @ None, Some(theirs)) => *mine = Some(*theirs),
            (_, None) => {}
        }
    }

    /// Returns the summary for display.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn summary(&self) -> Summary {
        let known = |value: f64| value.is_finite().then_some(value);
        let of_sketch = |q: f64| {
            let value = self.sketch.as_ref().and_then(|sketch| sketch.quantile(q).ok().flatten());
            // Minimum and maximum are exact.
            value.map(|value| value.clamp(self.min, self.max.max(self.min)))
        };
        let percentile = |place: usize| {
            let q = QUANTILES.get(place).copied()?;
            let Some(older) = &self.without_sketch else { return of_sketch(q) };
            let sketched = (self.count - older.count) as f64;
            let weighted = older.weighted.get(place).copied()? + of_sketch(q).map_or(0.0, |value| value * sketched);
            known(weighted / self.count as f64)
        };
        Summary {
            count: self.count,
            mean_ms: known(self.sum / self.count as f64),
            p50_ms: percentile(0),
            p90_ms: percentile(1),
            p95_ms: percentile(2),
            p99_ms: percentile(3),
            min_ms: known(self.min),
            max_ms: known(self.max),
            exact: self.without_sketch.is_none(),
        }
    }

    /// Encodes the sketch for its column; `None` if there is none.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        encode(self)
    }

    /// Decodes the output of [`Self::encode`].
    ///
    /// # Errors
    /// When the bytes are invalid.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        decode(bytes)
    }
}

/// A row of a stream: its time and run times.
pub type Row = (Micros, Latency);

/// Stored form of one day of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Number of tasks.
    pub count: u64,
    /// Summary columns of every row; see [`columns`].
    pub packed: Vec<u8>,
    /// One sketch per [`FINE`].
    pub fine: Vec<u8>,
    /// One sketch per hour.
    pub hours: Vec<u8>,
}

/// Borrowed stored form of one day.
#[derive(Debug, Clone, Copy)]
pub struct StoredRef<'a> {
    /// See [`Stored::packed`].
    pub packed: &'a [u8],
    /// See [`Stored::fine`].
    pub fine: &'a [u8],
}

/// Builds the stored form of a day from new rows (in any order; rows of the same time are merged) and the stored ones.
///
/// # Errors
/// When the stored bytes are invalid; they must then not be replaced.
pub fn store(day: Micros, stored: Option<StoredRef<'_>>, new: &[Row]) -> Result<Stored, Unreadable> {
    let (mut rows, mut fine) = match stored {
        Some(stored) => (rows(stored.packed)?, parts(day, FINE, stored.fine, |_| true)?),
        None => (Vec::new(), Vec::new()),
    };
    rows.extend(new.iter().map(|(time, latency)| (*time, latency.summary())));
    rows.sort_by_key(|(time, _)| *time);
    rows.dedup_by(|(time, more), (kept_time, kept)| {
        let same = time == kept_time;
        if same {
            // Stored rows are only summaries, so the merged row is an approximation.
            let sum = Latency::of_summary(kept).map(|mut sum| {
                Latency::of_summary(more).iter().for_each(|more| sum.merge(more));
                sum
            });
            *kept = sum.map_or(*more, |sum| Summary { exact: false, ..sum.summary() });
        }
        same
    });
    for (time, latency) in new {
        add(&mut fine, time - time.rem_euclid(FINE), latency);
    }
    let mut hours: Vec<Row> = Vec::new();
    for (time, latency) in &fine {
        add(&mut hours, time - time.rem_euclid(HOUR), latency);
    }
    Ok(Stored {
        count: fine.iter().map(|(_, latency)| latency.count).sum(),
        packed: pack(&rows),
        fine: encode_parts(day, FINE, &fine)?,
        hours: encode_parts(day, HOUR, &hours)?,
    })
}

/// Adds `latency` to the part that starts at `start`; parts are ordered by time.
fn add(parts: &mut Vec<Row>, start: Micros, latency: &Latency) {
    let place = parts.partition_point(|(time, _)| *time < start);
    match parts.get_mut(place).filter(|(time, _)| *time == start) {
        Some((_, part)) => part.merge(latency),
        None => parts.insert(place, (start, latency.clone())),
    }
}

/// Returns the rows of a stored day, oldest first, with their original times.
///
/// # Errors
/// When the bytes are invalid.
pub fn rows(packed: &[u8]) -> Result<Vec<(Micros, Summary)>, Unreadable> {
    let Table { times, columns } = columns::unpack(packed)?;
    let cell = |column: usize, row: usize| {
        columns.get(column).and_then(|c| c.get(row)).copied().filter(|value| value.is_finite())
    };
    Ok(times
        .into_iter()
        .enumerate()
        .map(|(row, time)| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "written from a u64")]
            let count = cell(0, row).unwrap_or(0.0) as u64;
            let summary = Summary {
                count,
                mean_ms: cell(1, row),
                p50_ms: cell(2, row),
                p90_ms: cell(3, row),
                p95_ms: cell(4, row),
                p99_ms: cell(5, row),
                min_ms: cell(6, row),
                max_ms: cell(7, row),
                exact: cell(8, row) == Some(1.0),
            };
            (time, summary)
        })
        .collect())
}

/// Returns the number of tasks in the rows of a stored day whose time is `wanted`.
///
/// # Errors
/// When the bytes are invalid.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "written from a u64")]
pub fn count(packed: &[u8], wanted: impl Fn(Micros) -> bool) -> Result<u64, Unreadable> {
    let Table { times, columns } = columns::unpack_first(1, packed)?;
    let counts = columns.into_iter().next().ok_or(Unreadable("missing counts"))?;
    Ok(times.into_iter().zip(counts).filter(|(time, _)| wanted(*time)).map(|(_, count)| count as u64).sum())
}

fn pack(rows: &[(Micros, Summary)]) -> Vec<u8> {
    let to_the_microsecond = |value: Option<f64>| value.map_or(f64::NAN, |ms| (ms * 1000.0).round() / 1000.0);
    let column = |of: fn(&Summary) -> Option<f64>| rows.iter().map(|(_, row)| to_the_microsecond(of(row))).collect();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let columns = vec![
        column(|row| Some(row.count as f64)),
        column(|row| row.mean_ms),
        column(|row| row.p50_ms),
        column(|row| row.p90_ms),
        column(|row| row.p95_ms),
        column(|row| row.p99_ms),
        column(|row| row.min_ms),
        column(|row| row.max_ms),
        column(|row| Some(f64::from(u8::from(row.exact)))),
    ];
    columns::pack(&Table { times: rows.iter().map(|(time, _)| *time).collect(), columns })
}

/// Returns the start and the run times of the `wanted` parts, each of `length`, of the day that starts at `day`.
///
/// # Errors
/// When the bytes are invalid.
pub fn parts(
    day: Micros,
    length: Micros,
    bytes: &[u8],
    wanted: impl Fn(Micros) -> bool,
) -> Result<Vec<Row>, Unreadable> {
    let parts: Vec<(u16, &[u8])> = decode(bytes)?;
    let begins = parts.into_iter().map(|(slot, part)| (day + Micros::from(slot) * length, part));
    begins.filter(|(begin, _)| wanted(*begin)).map(|(begin, part)| Ok((begin, Latency::decode(part)?))).collect()
}

/// Each part is prefixed with its length, so that readers can skip parts.
fn encode_parts(day: Micros, length: Micros, parts: &[Row]) -> Result<Vec<u8>, Unreadable> {
    let slot = |time: Micros| u16::try_from((time - day).rem_euclid(DAY) / length).unwrap_or(0);
    let encoded = parts.iter().map(|(time, latency)| Some((slot(*time), latency.encode()?)));
    let encoded: Option<Vec<(u16, Vec<u8>)>> = encoded.collect();
    encoded.and_then(|parts| encode(&parts)).ok_or(Unreadable("cannot serialize the sketches"))
}

fn encode(value: &impl Serialize) -> Option<Vec<u8>> {
    let mut bytes = vec![VERSION];
    bytes.extend(postcard::to_allocvec(value).ok()?);
    Some(bytes)
}

fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Unreadable> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| Unreadable("corrupt sketches")),
        Some(_) => Err(Unreadable("unknown sketch version")),
        None => Err(Unreadable("missing sketches")),
    }
}

fn empty_sketch() -> DDSketch {
    DDSketch::new(Config::new(ERROR, MAX_BINS, 1e-3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Exact value at the rank that the sketch uses.
    fn exact(sorted: &[u64], q: f64) -> f64 {
        sorted[(q * (sorted.len() - 1) as f64) as usize] as f64
    }

    fn merged(parts: &[Vec<u64>]) -> Option<Latency> {
        parts.iter().filter_map(|part| Latency::of_durations(part)).reduce(|mut all, part| {
            all.merge(&part);
            all
        })
    }

    fn durations() -> impl Strategy<Value = Vec<u64>> {
        // Skewed distribution: most durations are short, some a thousand times longer.
        let duration = (0..10_000_u64, 0..4_u32).prop_map(|(n, power)| n % 100 * 10_u64.pow(power));
        proptest::collection::vec(duration, 0..200)
    }

    proptest! {
        #[test]
        fn merged_percentiles_are_within_one_percent(
            parts in proptest::collection::vec(durations(), 1..20),
        ) {
            let mut all: Vec<u64> = parts.concat();
            all.sort_unstable();
            let Some(summary) = merged(&parts).map(|latency| latency.summary()) else {
                prop_assert!(all.is_empty());
                return Ok(());
            };
            prop_assert_eq!(summary.count, all.len() as u64);
            prop_assert!(summary.exact);
            prop_assert_eq!(summary.max_ms, all.last().map(|max| *max as f64));
            for (q, got) in [(0.5, summary.p50_ms), (0.9, summary.p90_ms), (0.95, summary.p95_ms), (0.99, summary.p99_ms)] {
                let (want, got) = (exact(&all, q), got.unwrap());
                prop_assert!((got - want).abs() <= want * 0.0101, "p{} is {want}, not {got}", q * 100.0);
            }
        }

        #[test]
        fn day_stored_in_parts_counts_each_task_once(
            rows in proptest::collection::vec((0..2880_i64, durations()), 0..20), cut in any::<prop::sample::Index>(),
        ) {
            let day = 20_000 * DAY;
            let rows: Vec<Row> = rows
                .iter()
                .filter_map(|(slot, durations)| Some((day + slot * 30 * SECOND, Latency::of_durations(durations)?)))
                .collect();
            let (first, second) = rows.split_at(if rows.is_empty() { 0 } else { cut.index(rows.len()) });
            let part = store(day, None, first).unwrap();
            let known = StoredRef { packed: &part.packed, fine: &part.fine };
            let stored = store(day, Some(known), second).unwrap();
            let tasks: u64 = rows.iter().map(|(_, latency)| latency.count()).sum();
            prop_assert_eq!(stored.count, tasks);
            for (length, bytes) in [(FINE, &stored.fine), (HOUR, &stored.hours)] {
                let parts = parts(day, length, bytes, |_| true).unwrap();
                prop_assert!(parts.iter().all(|(time, _)| time % length == 0 && (day..day + DAY).contains(time)));
                prop_assert_eq!(parts.iter().map(|(_, latency)| latency.count()).sum::<u64>(), tasks);
            }
            prop_assert_eq!(super::rows(&stored.packed).unwrap().iter().map(|(_, row)| row.count).sum::<u64>(), tasks);
        }
    }

    #[test]
    fn sums_with_rows_without_sketch_are_marked_inexact() {
        let row = |count, p99| Summary {
            count,
            mean_ms: Some(10.0),
            p50_ms: Some(9.0),
            p90_ms: None,
            p95_ms: Some(12.0),
            p99_ms: Some(p99),
            min_ms: Some(1.0),
            max_ms: Some(p99),
            exact: false,
        };
        let mut sum = Latency::of_summary(&row(1, 100.0)).unwrap();
        sum.merge(&Latency::of_summary(&row(3, 20.0)).unwrap());
        let summary = sum.summary();
        assert_eq!((summary.count, summary.p99_ms, summary.max_ms), (4, Some(40.0), Some(100.0)));
        assert_eq!((summary.p90_ms, summary.exact), (None, false));
        assert!(Latency::of_summary(&row(0, 1.0)).is_none());
    }

    #[test]
    fn a_sketch_is_small() {
        let durations: Vec<u64> = (0..60_u64).map(|n| 20 + n * n * 7 % 900).collect();
        let bytes = Latency::of_durations(&durations).unwrap().encode().unwrap();
        assert!(bytes.len() < 700, "{} bytes", bytes.len());
    }
}
