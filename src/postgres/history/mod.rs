//! The archive: recent data in plain rows, older data in one row per series and day.
//!
//! [`metrics`] and [`latency`] store new data and answer queries; both read rows and days in one transaction, so that data that is
//! being compacted is seen once. [`compaction`] moves rows to days, [`takeover`] imports the data of an older monitor,
//! [`queries_started`] counts the fleet's queries, [`summary`] summarizes a time range, [`retention`] deletes expired data.

pub mod compaction;
pub mod latency;
pub mod metrics;
pub mod queries_started;
pub mod retention;
pub mod summary;
pub mod takeover;

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::sql_types::{BigInt, Timestamptz};
use diesel::{OptionalExtension, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::Semaphore;

use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::history::stored_name::stored_name;
use crate::history::{DAY, Micros, Unreadable};

/// A table of recent rows; the data of an older monitor is in `…_before`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Metrics,
    Latency,
}

impl Kept {
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Metrics => "monitor_metrics",
            Self::Latency => "monitor_task_latency",
        }
    }

    /// Returns the column with the name of the series.
    pub(super) fn name_column(self) -> &'static str {
        match self {
            Self::Metrics => "metric",
            Self::Latency => "stream",
        }
    }
}

/// Selected series or streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// By name.
    Names(Vec<String>),
    /// By prefix, taken literally.
    Prefix(String),
}

impl Selection {
    /// Returns the condition on `column`, with `$1` as parameter.
    fn condition(&self, column: &str) -> String {
        match self {
            Self::Names(_) => format!("{column} = ANY($1)"),
            Self::Prefix(_) => format!("starts_with({column}, $1[1])"),
        }
    }

    /// Returns the value of `$1`, a text array.
    fn parameter(&self) -> Vec<String> {
        match self {
            Self::Names(names) => names.iter().map(|name| stored_name(name).into_owned()).collect(),
            Self::Prefix(prefix) => vec![stored_name(prefix).into_owned()],
        }
    }

    /// Renames results to the requested names, where those are stored under shortened ones.
    fn as_asked<T>(&self, mut found: BTreeMap<String, T>) -> BTreeMap<String, T> {
        if let Self::Names(names) = self {
            for name in names {
                let value = match stored_name(name) {
                    Cow::Borrowed(_) => None,
                    Cow::Owned(stored) => found.remove(&stored),
                };
                found.extend(value.map(|value| (name.clone(), value)));
            }
        }
        found
    }

    fn takes(&self, name: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|n| n == name || stored_name(n) == name),
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

#[derive(QueryableByName)]
struct Before {
    #[diesel(sql_type = Timestamptz)]
    before: DateTime<Utc>,
}

/// During a takeover, returns the time before which rows are still in `…_before`.
async fn taken_over_down_to(
    connection: &mut AsyncPgConnection,
    kept: Kept,
) -> Result<Option<Micros>, diesel::result::Error> {
    // Infinity cannot be converted to a date.
    let row: Option<Before> = sql_query(
        "SELECT least(before, '9999-01-01 UTC'::timestamptz) AS before FROM monitor_takeover WHERE taken_over = $1",
    )
    .bind::<diesel::sql_types::Text, _>(kept.table())
    .get_result(connection)
    .await
    .optional()?;
    Ok(row.map(|row| row.before.timestamp_micros()))
}

/// Returns all names in a table by a loose index scan: one step per name, independent of the number of rows.
async fn names_in(
    connection: &mut AsyncPgConnection,
    table: &str,
    column: &str,
) -> Result<Vec<String>, diesel::result::Error> {
    #[derive(QueryableByName)]
    struct Named {
        #[diesel(sql_type = diesel::sql_types::Text)]
        name: String,
    }
    let rows: Vec<Named> = sql_query(format!(
        "WITH RECURSIVE names AS ( \
            (SELECT {column} AS name FROM {table} ORDER BY {column} LIMIT 1) \
            UNION ALL \
            SELECT (SELECT {column} FROM {table} WHERE {column} > names.name ORDER BY {column} LIMIT 1) \
            FROM names WHERE names.name IS NOT NULL \
         ) SELECT name FROM names WHERE name IS NOT NULL"
    ))
    .load(connection)
    .await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn time(micros: Micros) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// Returns the day of `time`, counted from 1970.
fn day_of(time: Micros) -> i32 {
    i32::try_from(time.div_euclid(DAY)).unwrap_or(i32::MAX)
}

fn damaged(error: Unreadable) -> SourceTrouble {
    SourceTrouble::new(TroubleKind::Failed, error.to_string())
}

/// Limits the blocking threads that compute answers, so that actors always find a free one.
static ELSEWHERE: Semaphore = Semaphore::const_new(2);

/// Runs a long computation on a blocking thread.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unreadable> + Send + 'static,
) -> Result<T, SourceTrouble> {
    let Ok(_turn) = ELSEWHERE.acquire().await else {
        return Err(SourceTrouble::new(TroubleKind::Failed, "the monitor is stopping"));
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(damaged),
        Err(error) => Err(SourceTrouble::new(TroubleKind::Failed, error.to_string())),
    }
}
