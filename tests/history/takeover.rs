//! A database of an older monitor: imported day by day, readable meanwhile, and exported completely.

use shepherd_monitor::history::Micros;
use shepherd_monitor::postgres::history::takeover::{self, Step};
use shepherd_monitor::postgres::history::{compaction, latency, metrics};

use super::*;

/// Tables of the older monitor as in the contract, with its two indexes.
const TABLES: &str = "
    CREATE TABLE monitor_metrics (ts timestamptz NOT NULL, metric text NOT NULL, value double precision, PRIMARY KEY (metric, ts));
    CREATE INDEX monitor_metrics_ts_idx ON monitor_metrics (ts);
    CREATE TABLE monitor_events (id bigserial PRIMARY KEY, ts timestamptz NOT NULL DEFAULT now(), type text NOT NULL,
        worker text, severity text, detail text, payload jsonb);
    CREATE TABLE monitor_task_latency (ts timestamptz NOT NULL, stream text NOT NULL, count int NOT NULL, mean_ms double precision,
        p50_ms double precision, p90_ms double precision, p95_ms double precision, p99_ms double precision,
        min_ms double precision, max_ms double precision, PRIMARY KEY (stream, ts));
    INSERT INTO monitor_metrics SELECT to_timestamp(1772323200 + n * 30 + 0.123), 'backlog:' || s, n % 50
        FROM generate_series(0, 3 * 2880 - 1) n, unnest(ARRAY['a', 'b%']) s WHERE n NOT BETWEEN 1000 AND 1100;
    INSERT INTO monitor_metrics VALUES (to_timestamp(1772323200), 'pg:missing', NULL);
    INSERT INTO monitor_task_latency SELECT to_timestamp(1772323200 + n * 30), 'arax', 10, 5.5, 5, 8, 9, 9.75, 1, n % 100 + 10
        FROM generate_series(0, 3 * 2880 - 1) n;";

async fn filled() -> (TestDatabase, Vec<(Micros, String, f64)>) {
    let database = TestDatabase::create();
    let sql = database.connect().await;
    sql.batch_execute(TABLES).await.unwrap();
    let rows = sql
        .query("SELECT (extract(epoch FROM ts) * 1000000)::bigint, metric, value FROM monitor_metrics WHERE value IS NOT NULL", &[])
        .await
        .unwrap();
    let samples = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    (database, samples)
}

#[tokio::test]
async fn takeover_moves_day_by_day_and_stays_readable() {
    let (database, mut samples) = filled().await;
    let pool = migrated(&database).await;
    let sql = database.connect().await;
    // New samples are added meanwhile.
    let new = (DAY_ONE + 71 * 3_600_000_000, "backlog:a".to_owned(), 77.0);
    metrics::insert(&pool, &[(new.0, vec![(new.1.clone(), new.2)])]).await.unwrap();
    samples.push(new);
    let all = window(DAY_ONE, DAY_ONE + 3 * 86_400_000_000, 3600);
    let mut steps = 0;
    loop {
        assert_windows(&pool, &samples, &format!("after {steps} steps")).await;
        let found = latency::read(&pool, &Selection::Prefix(String::new()), all).await.unwrap();
        let total = found.totals["arax"].summary();
        assert_eq!((total.count, total.p99_ms, total.exact), (3 * 28_800, Some(9.75), false), "after {steps} steps");
        assert_eq!((total.min_ms, total.max_ms), (Some(1.0), Some(109.0)));
        let rows: i64 = sql
            .query_one("SELECT count(*) FROM monitor_metrics_all WHERE value IS NOT NULL", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(rows, samples.len() as i64, "after {steps} steps");
        if takeover::step(&pool).await.unwrap() == Step::Nothing {
            break;
        }
        steps += 1;
    }
    // Three days and a final step, for two tables.
    assert_eq!(steps, 8);
    let size: i64 = sql.query_one("SELECT pg_total_relation_size('monitor_metrics_before')", &[]).await.unwrap().get(0);
    assert!(size < 50_000, "{size} bytes are still used");
    // Rows without a sketch are unchanged.
    let fine = window(DAY_ONE + 3_600_000_000, DAY_ONE + 2 * 3_600_000_000, 30);
    let found = latency::read(&pool, &Selection::Prefix(String::new()), fine).await.unwrap();
    let (_, row) = found.points["arax"].first_key_value().unwrap();
    assert_eq!((row.count, row.mean_ms, row.p99_ms, row.exact), (10, Some(5.5), Some(9.75), false));

    // And back: the older monitor finds its rows again.
    while compaction::step(&pool, DAY_ONE + 10 * 86_400_000_000).await.unwrap() > 0 {}
    sql.batch_execute(include_str!("../../migrations/0003_history/down.sql")).await.unwrap();
    let rows = sql
        .query(
            "SELECT (extract(epoch FROM ts) * 1000000)::bigint, metric, value FROM monitor_metrics ORDER BY metric, ts",
            &[],
        )
        .await
        .unwrap();
    let back: Vec<(i64, String, f64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    samples.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    assert_eq!(back, samples);
    let latencies: i64 =
        sql.query_one("SELECT count(*) FROM monitor_task_latency WHERE p99_ms = 9.75", &[]).await.unwrap().get(0);
    assert_eq!(latencies, 3 * 2880);
}

#[tokio::test]
async fn concurrent_takeover_by_two_monitors_duplicates_nothing() {
    let (database, samples) = filled().await;
    let (a, b) = (migrated(&database).await, pool(&database.url()));
    let run = async |pool: &PgPool| {
        let mut moved = 0;
        while takeover::step(pool).await.unwrap() == Step::Moved {
            moved += 1;
        }
        moved
    };
    let (first, second) = tokio::join!(run(&a), run(&b));
    while takeover::step(&a).await.unwrap() == Step::Moved {}
    assert!(first + second > 0);
    assert_windows(&a, &samples, "after two").await;
}
