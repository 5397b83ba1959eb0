//! The archive: stored data is complete after compaction, takeover and crashes.

mod api;
mod archive;
mod crash;
mod names;
mod outage;
mod recent;
mod repeated_changes;
mod takeover;
mod time_zones;

use std::collections::BTreeMap;
use std::time::Duration;

use shepherd_monitor::history::Micros;
use shepherd_monitor::history::window::{Aggregate, Window};
use shepherd_monitor::postgres::connection::{self, PgPool};
use shepherd_monitor::postgres::history::Selection;
use shepherd_monitor::postgres::history::metrics::{self, Series};
use shepherd_monitor::postgres::migrate;

use crate::support::postgres::TestDatabase;

/// A past time, the start of a day: 2026-03-01.
const DAY_ONE: Micros = 1_772_323_200_000_000;

fn pool(url: &str) -> PgPool {
    connection::pool(url, Duration::from_secs(10)).unwrap()
}

async fn migrated(database: &TestDatabase) -> PgPool {
    migrate::run(&database.url(), Duration::from_secs(10)).await.unwrap();
    pool(&database.url())
}

fn window(since: Micros, until: Micros, bucket_seconds: u32) -> Window {
    let seconds = |at: Micros| at as f64 / 1e6;
    Window::new(Some(seconds(since)), Some(seconds(until)), Some(bucket_seconds), 0.0).unwrap()
}

/// Computes the expected answer from the samples.
fn expected(samples: &[(Micros, String, f64)], selection: &Selection, window: Window) -> Series {
    let mut series = Series::new();
    for (at, name, value) in samples {
        let wanted = match selection {
            Selection::Names(names) => names.contains(name),
            Selection::Prefix(prefix) => name.starts_with(prefix.as_str()),
        };
        if wanted && (window.since..window.until).contains(at) {
            let buckets = series.entry(name.clone()).or_default();
            let one = Aggregate { count: 1, sum: *value, min: *value, max: *value };
            buckets.entry(at - at % window.bucket).and_modify(|known: &mut Aggregate| known.merge(&one)).or_insert(one);
        }
    }
    series
}

/// Sums of floats depend on their order.
fn assert_same(got: &Series, want: &Series, what: &str) {
    let round = |series: &Series| {
        let mut series = series.clone();
        series.values_mut().flat_map(BTreeMap::values_mut).for_each(|a| a.sum = (a.sum * 1e3).round());
        series
    };
    assert_eq!(round(got), round(want), "{what}");
}

async fn assert_windows(pool: &PgPool, samples: &[(Micros, String, f64)], state: &str) {
    const HOUR: Micros = 3_600_000_000;
    for (since, until, bucket) in [
        (DAY_ONE, DAY_ONE + 3 * 24 * HOUR, 3600),
        (DAY_ONE - HOUR, DAY_ONE + 72 * HOUR, 14_400),
        (DAY_ONE + 5 * HOUR, DAY_ONE + 31 * HOUR, 600),
        (DAY_ONE + 23 * HOUR, DAY_ONE + 25 * HOUR, 60),
        (DAY_ONE + 13 * HOUR, DAY_ONE + 14 * HOUR, 30),
        (DAY_ONE + 13 * HOUR, DAY_ONE + 60 * HOUR, 5000),
    ] {
        for selection in [
            Selection::Prefix("backlog:".to_owned()),
            Selection::Prefix("back%".to_owned()),
            Selection::Names(vec!["backlog:a".to_owned(), "pg:db_size_bytes".to_owned()]),
        ] {
            let window = window(since, until, bucket);
            let got = metrics::read(pool, &selection, window).await.unwrap();
            assert_same(&got, &expected(samples, &selection, window), &format!("{state}, {selection:?}, {window:?}"));
        }
    }
}
