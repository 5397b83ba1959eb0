//! Names and texts that Postgres cannot store unchanged: they are truncated, or the row is set aside and the others are stored.

use shepherd_monitor::alerting::lifecycle::{Alert, Identity, Kind};
use shepherd_monitor::alerting::rule::Severity;
use shepherd_monitor::fleet::event::{Event, EventKind};
use shepherd_monitor::fleet::reading::{SourceTrouble, TroubleKind};
use shepherd_monitor::history::latency::Latency;
use shepherd_monitor::postgres::alerts::{self, Rows};
use shepherd_monitor::postgres::events::{self, Filter, NewRow};
use shepherd_monitor::postgres::history::{compaction, latency, queries_started};
use uuid::Uuid;

use super::*;

/// Returns a name that compression does not shorten.
fn incompressible(bytes: usize) -> String {
    let mut name = String::new();
    while name.len() < bytes {
        name.push_str(&Uuid::new_v4().simple().to_string());
    }
    name.truncate(bytes);
    name
}

fn names() -> Vec<String> {
    vec![
        "arax".to_owned(),
        incompressible(6000),
        format!("{}\0{}", incompressible(40), incompressible(3000)),
        "nul\0nul".to_owned(),
        "é".repeat(3000),
        String::new(),
    ]
}

#[tokio::test]
async fn series_and_run_times_with_long_names_are_stored() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let names = names();
    let series: Vec<String> = names.iter().map(|name| format!("xlen:{name}")).collect();
    let samples: Vec<(String, f64)> = series.iter().zip(1..).map(|(name, n)| (name.clone(), f64::from(n))).collect();
    metrics::insert(&pool, &[(DAY_ONE, samples)]).await.unwrap();
    let all = window(DAY_ONE, DAY_ONE + 3_600_000_000, 60);
    let found = metrics::read(&pool, &Selection::Names(series.clone()), all).await.unwrap();
    for (name, n) in series.iter().zip(1..) {
        let value = found.get(name).map(|buckets| buckets.values().map(|bucket| bucket.sum).sum::<f64>());
        assert_eq!(value, Some(f64::from(n)), "{}", name.len());
    }
    // They are still found after compaction.
    compaction::step(&pool, DAY_ONE + 7_200_000_000).await.unwrap();
    assert_eq!(metrics::read(&pool, &Selection::Names(series), all).await.unwrap().len(), names.len());

    let batch = |name: &String| latency::Batch {
        id: Uuid::new_v4(),
        stream: name.clone(),
        at: DAY_ONE,
        latency: Latency::of_durations(&[5]).unwrap(),
    };
    latency::insert(&pool, names.iter().map(batch).collect()).await.unwrap();
    let found = latency::read(&pool, &Selection::Names(names.clone()), all).await.unwrap();
    for name in &names {
        assert!(found.totals.contains_key(name), "{}: {:?}", name.len(), found.totals.keys());
    }
}

fn alert(key: &str) -> Alert {
    let identity = Identity {
        key: key.to_owned(),
        rule: "a_rule".to_owned(),
        subject: Some(key.to_owned()),
        kind: Kind::Rule,
        severity: Severity::Warning,
    };
    Alert::begin(identity, Some(1.0), 1.8e9, None)
}

#[tokio::test]
async fn alerts_and_events_with_long_names_are_stored() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let epoch = alerts::lead(&pool, "test", 60.0).await.unwrap().epoch.unwrap();
    let all: Vec<Alert> = names().iter().map(|name| alert(&format!("a_rule:{name}"))).collect();
    let kind = || EventKind::SourceDown { trouble: SourceTrouble::new(TroubleKind::Failed, "x".repeat(5_000_000)) };
    let event = |name: &String| {
        let event =
            Event { ts: 1.8e9, subject: name.clone(), kind: kind(), running: (0, 0), key: Uuid::new_v4().to_string() };
        NewRow::from(&event)
    };
    let rows: Vec<NewRow> = names().iter().map(event).collect();
    let written = Rows { alerts: all.iter().collect(), outbox: Vec::new(), events: rows.iter().collect() };
    alerts::write(&pool, epoch, written).await.unwrap();
    let mut kept: Vec<String> = alerts::alerts(&pool).await.unwrap().into_iter().map(|alert| alert.key).collect();
    let mut wanted: Vec<String> = all.iter().map(|alert| alert.key.replace('\0', "\u{fffd}")).collect();
    kept.sort();
    wanted.sort();
    assert_eq!(kept, wanted, "an alert keeps its key, whatever it is stored under");
    // The next state of an alert replaces its row.
    let written = Rows { alerts: all.iter().collect(), ..Rows::default() };
    alerts::write(&pool, epoch, written).await.unwrap();
    assert_eq!(alerts::alerts(&pool).await.unwrap().len(), all.len());
    let stored = events::newest(&pool, &Filter::default(), 100).await.unwrap();
    assert_eq!(stored.len(), rows.len());
    assert!(stored.iter().all(|row| row.detail.as_ref().is_some_and(|detail| detail.len() < 20_000)));
}

#[tokio::test]
async fn rejected_row_is_set_aside_and_others_are_stored() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let sql = database.connect().await;
    // Like an encoding that lacks a character.
    sql.batch_execute(
        "ALTER TABLE monitor_metrics ADD CHECK (metric <> 'xlen:bad');
         ALTER TABLE monitor_task_latency ADD CHECK (stream <> 'bad');
         ALTER TABLE monitor_events ADD CHECK (worker <> 'bad');
         ALTER TABLE monitor_alerts ADD CHECK (subject <> 'bad')",
    )
    .await
    .unwrap();
    let names: Vec<String> = (0..50).map(|n| if n == 17 { "bad".to_owned() } else { format!("s{n}") }).collect();
    let samples = names.iter().map(|name| (format!("xlen:{name}"), 1.0)).collect();
    metrics::insert(&pool, &[(DAY_ONE, samples)]).await.unwrap();
    let batch = |name: &String| latency::Batch {
        id: Uuid::new_v4(),
        stream: name.clone(),
        at: DAY_ONE,
        latency: Latency::of_durations(&[5]).unwrap(),
    };
    latency::insert(&pool, names.iter().map(batch).collect()).await.unwrap();
    let event = |name: &String| {
        let kind = EventKind::Unhung { consumer: "c".into() };
        NewRow::from(&Event {
            ts: 1.8e9,
            subject: name.clone(),
            kind,
            running: (0, 0),
            key: Uuid::new_v4().to_string(),
        })
    };
    let rows: Vec<NewRow> = names.iter().map(event).collect();
    events::insert(&pool, &rows).await.unwrap();
    let all: Vec<Alert> = names.iter().map(|name| alert(name)).collect();
    let epoch = alerts::lead(&pool, "test", 60.0).await.unwrap().epoch.unwrap();
    let rows: Vec<NewRow> = names.iter().map(event).collect();
    let written = Rows { alerts: all.iter().collect(), outbox: Vec::new(), events: rows.iter().collect() };
    alerts::write(&pool, epoch, written).await.unwrap();
    for (table, wanted) in
        [("monitor_metrics", 49), ("monitor_task_latency", 49), ("monitor_events", 98), ("monitor_alerts", 49)]
    {
        let count = sql.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(count, wanted, "{table}");
    }
    // If all rows are rejected, the database is at fault: they are kept.
    metrics::insert(&pool, &[(DAY_ONE, vec![("xlen:bad".to_owned(), 1.0)])]).await.unwrap_err();
    sql.batch_execute("ALTER TABLE monitor_events RENAME TO gone").await.unwrap();
    events::insert(&pool, &names.iter().map(event).collect::<Vec<_>>()).await.unwrap_err();
}

#[tokio::test]
async fn queries_of_an_ara_with_a_long_name_are_counted() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let sql = database.connect().await;
    // The fleet's table without the monitor's indexes.
    let insert =
        "INSERT INTO shepherd_brain (qid, start_time, domain) VALUES ($1, LOCALTIMESTAMP - interval '3 hours', $2)";
    for (qid, domain) in [("a", "arax".to_owned()), ("b", incompressible(6000))] {
        sql.execute(insert, &[&qid, &domain]).await.unwrap();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as Micros;
    queries_started::count_closed(&pool, now).await.unwrap();
    sql.batch_execute("DELETE FROM shepherd_brain").await.unwrap();
    let all = window(now - 24 * 3_600_000_000, now, 3600);
    let started = queries_started::read(&pool, all).await.unwrap().unwrap();
    assert_eq!(started.values().flat_map(|buckets| buckets.values()).sum::<i64>(), 2);
}
