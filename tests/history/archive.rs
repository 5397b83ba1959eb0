//! Series and run times, recent and compacted, read as rows and with SQL.

use shepherd_monitor::history::latency::Latency;
use shepherd_monitor::history::{Keep, Micros};
use shepherd_monitor::postgres::history::latency::{self, Batch};
use shepherd_monitor::postgres::history::{Selection, compaction, metrics, retention};
use uuid::Uuid;

use super::*;

/// Three days of three series, with a gap, a spike, fractions and irregular times.
fn samples() -> Vec<(Micros, String, f64)> {
    let mut samples = Vec::new();
    for tick in 0..3 * 2880_i64 {
        let at = DAY_ONE + tick * 30_000_000;
        if (1000..1100).contains(&tick) {
            continue;
        }
        samples.push((at, "backlog:a".to_owned(), if tick == 5000 { 1e6 } else { (tick % 97) as f64 }));
        samples.push((at, "backlog:b%".to_owned(), (tick / 100) as f64 / 8.0));
        samples.push((at + tick * 7, "pg:db_size_bytes".to_owned(), 1e8 + (tick * 7919 % 10_007) as f64 / 3.0));
    }
    samples
}

fn ticks(samples: &[(Micros, String, f64)]) -> Vec<(Micros, Vec<(String, f64)>)> {
    samples.iter().map(|(at, name, value)| (*at, vec![(name.clone(), *value)])).collect()
}

#[tokio::test]
async fn compaction_does_not_change_query_results() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let samples = samples();
    for some in ticks(&samples).chunks(5000) {
        metrics::insert(&pool, some).await.unwrap();
    }
    assert_windows(&pool, &samples, "all young").await;
    let noon = DAY_ONE + 36 * 3_600_000_000;
    while compaction::step(&pool, noon).await.unwrap() > 0 {}
    assert_windows(&pool, &samples, "half moved").await;
    // Repeated and late samples are stored once.
    metrics::insert(&pool, &ticks(&samples[..3000])).await.unwrap();
    while compaction::step(&pool, DAY_ONE + 10 * 86_400_000_000).await.unwrap() > 0 {}
    assert_windows(&pool, &samples, "all moved").await;

    let sql = database.connect().await;
    let left: i64 = sql.query_one("SELECT count(*) FROM monitor_metrics", &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
    // Plain SQL returns bit-identical values.
    let rows = sql
        .query("SELECT (extract(epoch FROM ts) * 1000000)::bigint, metric, value FROM monitor_metrics_all", &[])
        .await
        .unwrap();
    let mut read: Vec<(i64, String, f64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let mut wrote = samples.clone();
    read.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    wrote.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    assert_eq!(read, wrote);
}

#[tokio::test]
async fn plain_sql_reads_every_kind_of_number() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let odd =
        [0.0, -0.0, 1.0 / 3.0, -1e300, 5e-324, 2.5e-308, f64::MAX, f64::MIN_POSITIVE, -2.0, 9_007_199_254_740_993.0];
    let samples: Vec<_> = odd.iter().enumerate().map(|(i, v)| (DAY_ONE + i as i64, "odd".to_owned(), *v)).collect();
    metrics::insert(&pool, &ticks(&samples)).await.unwrap();
    while compaction::step(&pool, DAY_ONE + 86_400_000_000).await.unwrap() > 0 {}
    let sql = database.connect().await;
    let rows = sql.query("SELECT value FROM monitor_metrics_all WHERE metric = 'odd' ORDER BY ts", &[]).await.unwrap();
    let read: Vec<f64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(read, odd);
}

/// Most tasks are fast, some take a thousand times as long.
fn durations(seed: u64) -> Vec<u64> {
    let mut state = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    (0..20 + next() % 40).map(|_| (1 + next() % 50) * 10_u64.pow((next() % 40 / 13) as u32)).collect()
}

fn batch(stream: &str, at: Micros, durations: &[u64]) -> Batch {
    Batch { id: Uuid::new_v4(), stream: stream.to_owned(), at, latency: Latency::of_durations(durations).unwrap() }
}

fn exact(all: &mut [u64], q: f64) -> f64 {
    all.sort_unstable();
    all[(q * (all.len() - 1) as f64) as usize] as f64
}

#[tokio::test]
async fn percentiles_match_the_tasks_in_the_time_range() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let mut tasks: Vec<(Micros, &str, Vec<u64>)> = Vec::new();
    for slot in 0..2 * 2880_i64 {
        tasks.push((DAY_ONE + slot * 30_000_000, "arax", durations(slot as u64)));
        tasks.push((
            DAY_ONE + slot * 30_000_000,
            "bte",
            durations(90_000 + slot as u64).iter().map(|d| d * 3).collect(),
        ));
    }
    for some in tasks.chunks(3000) {
        let batches = some.iter().map(|(at, stream, durations)| batch(stream, *at, durations)).collect();
        latency::insert(&pool, batches).await.unwrap();
    }
    for state in ["young", "half moved", "moved"] {
        let until = match state {
            "young" => 0,
            "half moved" => DAY_ONE + 30 * 3_600_000_000,
            _ => DAY_ONE + 10 * 86_400_000_000,
        };
        while compaction::step(&pool, until).await.unwrap() > 0 {}
        for (since, until, bucket) in [(0, 48, 14_400), (3, 27, 600), (5, 6, 30)] {
            let window = window(DAY_ONE + since * 3_600_000_000, DAY_ONE + until * 3_600_000_000, bucket);
            let selection = Selection::Names(vec!["arax".to_owned(), "bte".to_owned()]);
            let found = latency::read(&pool, &selection, window).await.unwrap();
            let of = |streams: &[&str], window: Window| -> Vec<u64> {
                let inside = tasks.iter().filter(|(at, stream, _)| streams.contains(stream) && window.contains(*at));
                inside.flat_map(|(_, _, durations)| durations).copied().collect()
            };
            let mut both = found.totals["arax"].clone();
            both.merge(&found.totals["bte"]);
            for (streams, summary) in
                [(vec!["arax"], found.totals["arax"].summary()), (vec!["arax", "bte"], both.summary())]
            {
                let mut all = of(&streams, window);
                assert_eq!(summary.count, all.len() as u64, "{state} {window:?}");
                assert!(summary.exact);
                for (q, got) in [(0.5, summary.p50_ms), (0.9, summary.p90_ms), (0.99, summary.p99_ms)] {
                    let want = exact(&mut all, q);
                    let off = (got.unwrap() - want).abs() / want;
                    assert!(off <= 0.0101, "{state} {window:?} {streams:?}: p{q} is {got:?}, not {want}");
                }
            }
            // Each point too.
            for (at, summary) in &found.points["arax"] {
                let length = if bucket == 30 { 30_000_000 } else { window.bucket };
                let all = of(&["arax"], Window { since: *at, until: at + length, bucket: length });
                assert_eq!(summary.count, all.len() as u64, "{state} {window:?} at {at}");
            }
        }
        // Both days, one of them, and parts of both.
        for (since, until) in [(0, 48), (0, 24), (3, 27), (5, 6)] {
            let window = window(DAY_ONE + since * 3_600_000_000, DAY_ONE + until * 3_600_000_000, 600);
            let volume = latency::volume(&pool, window).await.unwrap();
            let inside = tasks.iter().filter(|(at, _, _)| window.contains(*at));
            let all: u64 = inside.map(|(_, _, durations)| durations.len() as u64).sum();
            assert_eq!(volume.values().sum::<u64>(), all, "{state} {window:?}");
        }
    }
}

#[tokio::test]
async fn batches_are_counted_once_and_merged_by_interval() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let (a, b) = (batch("s", DAY_ONE, &[1, 2, 3]), batch("s", DAY_ONE, &[1000]));
    latency::insert(&pool, vec![a.clone()]).await.unwrap();
    latency::insert(&pool, vec![a.clone(), b.clone()]).await.unwrap();
    latency::insert(&pool, vec![b]).await.unwrap();
    let found =
        latency::read(&pool, &Selection::Prefix("s".into()), window(DAY_ONE, DAY_ONE + 60_000_000, 30)).await.unwrap();
    let summary = found.points["s"][&DAY_ONE];
    assert_eq!((summary.count, summary.min_ms, summary.max_ms), (4, Some(1.0), Some(1000.0)));
    // Compacted, with one more that arrives late.
    while compaction::step(&pool, DAY_ONE + 86_400_000_000).await.unwrap() > 0 {}
    latency::insert(&pool, vec![a, batch("s", DAY_ONE, &[7])]).await.unwrap();
    while compaction::step(&pool, DAY_ONE + 86_400_000_000).await.unwrap() > 0 {}
    let hour = window(DAY_ONE, DAY_ONE + 3_600_000_000, 300);
    let found = latency::read(&pool, &Selection::Prefix("s".into()), hour).await.unwrap();
    assert_eq!(found.totals["s"].count(), 5);
    assert!(found.totals["s"].summary().exact);
}

#[tokio::test]
async fn two_monitors_add_to_the_same_row_without_lost_updates() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    for round in 0..20 {
        let at = DAY_ONE + round * 30_000_000;
        let one = |duration| latency::insert(&pool, vec![batch("s", at, &[duration])]);
        let (a, b, c) = tokio::join!(one(1), one(2), one(3));
        a.and(b).and(c).unwrap();
    }
    let hour = window(DAY_ONE, DAY_ONE + 3_600_000_000, 300);
    let found = latency::read(&pool, &Selection::Prefix("s".into()), hour).await.unwrap();
    assert_eq!(found.totals["s"].count(), 60);
}

#[tokio::test]
async fn retention_deletes_only_expired_data() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let sql = database.connect().await;
    sql.batch_execute(
        "INSERT INTO monitor_metric_days SELECT 'm', current_date - n, 1, '\\x00', '\\x00' FROM generate_series(0, 40) n;
         INSERT INTO monitor_latency_days SELECT 's', current_date - n, 1, '\\x00', '\\x00', '\\x00' FROM generate_series(0, 40) n;
         INSERT INTO monitor_events (ts, type) SELECT now() + interval '1 minute' - n * interval '1 hour', 'alert' FROM generate_series(0, 12000) n;
         INSERT INTO monitor_latency_batches SELECT gen_random_uuid(), now() - n * interval '1 day' FROM generate_series(0, 9) n",
    )
    .await
    .unwrap();
    let keep = Keep { metrics_days: 30, latency_days: 10, events_days: 400 };
    let deleted = retention::sweep(&pool, keep).await.unwrap();
    assert_eq!((deleted.metric_days, deleted.latency_days, deleted.events), (10, 30, 12_000 - 400 * 24));
    let again = retention::sweep(&pool, Keep { metrics_days: 0, ..keep }).await.unwrap();
    assert_eq!(again, retention::Deleted::default());
    let left: i64 = sql.query_one("SELECT count(*) FROM monitor_metric_days", &[]).await.unwrap().get(0);
    assert_eq!(left, 31);
}
