//! Queries and callbacks: which are marked as abandoned, and concurrent completions.

use chrono::{TimeDelta, Utc};
use diesel_async::AsyncPgConnection;
use shepherd_monitor::fleet::cleanup::{ABANDONED_STATUS, Finding, Outcome};
use shepherd_monitor::postgres::connection::{PgPool, connect, pool};
use shepherd_monitor::postgres::{alerts, janitor, migrate};
use shepherd_monitor::worker::queries::{Finished, finish_query};
use tokio_postgres::Client;

use super::*;
use crate::support::postgres::TestDatabase;
use crate::support::wait::eventually;

const BUDGET: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(10);

async fn ready(database: &TestDatabase) -> (PgPool, Client) {
    let pool = pool(&database.url(), LIMIT).unwrap();
    migrate::run(&database.url(), LIMIT).await.unwrap();
    migrate::add_fleet_indexes(&pool).await.unwrap();
    (pool, database.connect().await)
}

async fn worker(database: &TestDatabase) -> AsyncPgConnection {
    connect(database.url(), LIMIT).await.unwrap().into_inner()
}

/// Inserts a query in `state`, this many minutes old, with two callbacks.
async fn query(sql: &Client, qid: &str, minutes: i64, state: &str) {
    sql.batch_execute(&format!(
        "INSERT INTO shepherd_brain (qid, start_time, domain, state)
             VALUES ('{qid}', LOCALTIMESTAMP - {minutes} * interval '1 minute', 'aragorn', '{state}');
         INSERT INTO callbacks (query_id, callback_id) VALUES ('{qid}', 'a'), ('{qid}', 'b')"
    ))
    .await
    .unwrap();
}

/// Returns state, status, whether it has an end, and the number of callbacks.
async fn stands(sql: &Client, qid: &str) -> (String, Option<String>, bool, i64) {
    let row = sql
        .query_one(
            "SELECT state, status, stop_time IS NOT NULL, (SELECT count(*) FROM callbacks WHERE query_id = qid)
             FROM shepherd_brain WHERE qid = $1",
            &[&qid],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

#[tokio::test]
async fn timed_out_queries_are_abandoned_in_batches_and_reported_after_the_run() {
    let database = TestDatabase::create();
    let (pool, sql) = ready(&database).await;
    for (qid, minutes, state) in
        [("young", 5, "QUEUED"), ("old", 11, "QUEUED"), ("odd", 90, "RUNNING"), ("done", 90, "COMPLETED")]
    {
        query(&sql, qid, minutes, state).await;
    }
    sql.batch_execute(
        "INSERT INTO shepherd_brain (qid, start_time, domain) SELECT 'many' || n, LOCALTIMESTAMP - interval '1 day', 'bte'
         FROM generate_series(1, 1100) n",
    )
    .await
    .unwrap();
    let preview = janitor::preview(&pool, BUDGET, 1000).await.unwrap();
    assert_eq!((preview.callbacks, preview.abandoned), (2, 1000));
    let pass = janitor::begin(&pool, None).await.unwrap();
    let mut batches = Vec::new();
    loop {
        let abandoned = janitor::abandon(&pool, pass, BUDGET).await.unwrap();
        if abandoned.queries == 0 {
            break;
        }
        batches.push((abandoned.queries, abandoned.callbacks));
    }
    assert_eq!(batches, [(500, 0), (500, 0), (102, 4)]);
    let abandoned = || ("ABANDONED".to_owned(), Some(ABANDONED_STATUS.to_owned()), true, 0);
    assert_eq!(stands(&sql, "old").await, abandoned());
    assert_eq!(stands(&sql, "odd").await, abandoned());
    assert_eq!(stands(&sql, "young").await, ("QUEUED".to_owned(), None, false, 2));
    assert_eq!(stands(&sql, "done").await, ("COMPLETED".to_owned(), None, false, 2));
    assert_eq!(janitor::delete_callbacks(&pool).await.unwrap(), 2);
    assert_eq!(janitor::delete_callbacks(&pool).await.unwrap(), 0);
    assert_eq!(stands(&sql, "young").await.3, 2, "a query that is worked on keeps its callbacks");

    // An interrupted run continues under its ID, and is reported when it ends.
    assert_eq!(untold(&pool).await, []);
    assert_eq!(janitor::begin(&pool, None).await.unwrap(), pass);
    janitor::end(&pool, pass, &Outcome::default()).await.unwrap();
    let found = untold(&pool).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].abandoned["bte"], found[0].abandoned["aragorn"], found[0].count()), (1100, 2, 1102));
    janitor::told(&pool, &[found[0].pass.clone()]).await.unwrap();
    assert_eq!(untold(&pool).await, []);
    assert_ne!(janitor::begin(&pool, None).await.unwrap(), pass);
    let records = janitor::newest(&pool, 10).await.unwrap();
    assert_eq!((records.len(), records[1].resumed, records[1].outcome.is_some()), (2, 1, true));
}

#[tokio::test]
async fn query_with_an_uncommitted_completion_is_not_abandoned() {
    let database = TestDatabase::create();
    let (pool, mut sql) = ready(&database).await;
    query(&sql, "first", 60, "QUEUED").await;
    let pass = janitor::begin(&pool, None).await.unwrap();
    // The worker is first, and has not committed.
    let finishing = sql.transaction().await.unwrap();
    finishing
        .batch_execute("UPDATE shepherd_brain SET state = 'COMPLETED', status = 'OK' WHERE qid = 'first'")
        .await
        .unwrap();
    assert_eq!(janitor::abandon(&pool, pass, BUDGET).await.unwrap().queries, 0);
    finishing.commit().await.unwrap();
    assert_eq!(janitor::abandon(&pool, pass, BUDGET).await.unwrap().queries, 0);
    assert_eq!(stands(&sql, "first").await.0, "COMPLETED");
    // If the worker had rolled back, the query would be marked.
    query(&sql, "given up", 60, "QUEUED").await;
    let finishing = sql.transaction().await.unwrap();
    finishing.batch_execute("UPDATE shepherd_brain SET state = 'COMPLETED' WHERE qid = 'given up'").await.unwrap();
    assert_eq!(janitor::abandon(&pool, pass, BUDGET).await.unwrap().queries, 0);
    finishing.rollback().await.unwrap();
    assert_eq!(janitor::abandon(&pool, pass, BUDGET).await.unwrap().queries, 1);
}

#[tokio::test]
async fn query_completed_during_abandonment_stays_completed() {
    let database = TestDatabase::create();
    let (pool, mut sql) = ready(&database).await;
    query(&sql, "second", 60, "QUEUED").await;
    let pass = janitor::begin(&pool, None).await.unwrap();
    // The janitor has updated it and cannot commit, because the row with its count is locked.
    let watcher = database.connect().await;
    let holding = sql.transaction().await.unwrap();
    holding.batch_execute("LOCK TABLE monitor_janitor_passes IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waiting = |what: &'static str, pattern: &'static str| {
        let watcher = &watcher;
        eventually(what, SOON, move || async move {
            let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1";
            watcher.query_one(query, &[&pattern]).await.unwrap().get::<_, i64>(0) > 0
        })
    };
    let abandoning = tokio::spawn({
        let pool = pool.clone();
        async move { janitor::abandon(&pool, pass, BUDGET).await.unwrap() }
    });
    waiting("the janitor waits", "UPDATE monitor_janitor_passes%").await;
    let mut connection = worker(&database).await;
    let finishing = tokio::spawn(async move { finish_query(&mut connection, "second", "OK").await.unwrap() });
    waiting("the worker waits", "UPDATE \"shepherd_brain\"%").await;
    holding.commit().await.unwrap();
    assert_eq!(abandoning.await.unwrap().queries, 1);
    assert_eq!(finishing.await.unwrap(), Finished::Now);
    assert_eq!(stands(&sql, "second").await, ("COMPLETED".to_owned(), Some("OK".to_owned()), true, 0));
}

#[tokio::test]
async fn final_queries_are_deleted_after_retention_unfinished_ones_stay() {
    let database = TestDatabase::create();
    let (pool, sql) = ready(&database).await;
    let day = 24 * 60;
    for (qid, days, state) in
        [("old", 31, "COMPLETED"), ("older", 90, "ABANDONED"), ("open", 90, "QUEUED"), ("new", 29, "COMPLETED")]
    {
        query(&sql, qid, days * day, state).await;
    }
    assert_eq!(janitor::delete_old_queries(&pool, 30).await.unwrap(), 2);
    assert_eq!(janitor::delete_old_queries(&pool, 30).await.unwrap(), 0);
    let left = sql.query("SELECT qid FROM shepherd_brain ORDER BY qid", &[]).await.unwrap();
    assert_eq!(left.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), ["new", "open"]);
    let callbacks: i64 = sql.query_one("SELECT count(*) FROM callbacks", &[]).await.unwrap().get(0);
    assert_eq!(callbacks, 4);
}

#[tokio::test]
async fn retention_uses_the_end_time_and_keeps_rows_marked_retain() {
    let database = TestDatabase::create();
    let (pool, sql) = ready(&database).await;
    sql.batch_execute(
        "INSERT INTO shepherd_brain (qid, start_time, stop_time, state) VALUES
             ('ended lately', LOCALTIMESTAMP - interval '40 days', LOCALTIMESTAMP - interval '2 days', 'COMPLETED'),
             ('ended long ago', LOCALTIMESTAMP - interval '41 days', LOCALTIMESTAMP - interval '31 days', 'COMPLETED'),
             ('end unknown', LOCALTIMESTAMP - interval '40 days', NULL, 'ABANDONED'),
             ('start unknown', NULL, LOCALTIMESTAMP - interval '31 days', 'COMPLETED'),
             ('no times', NULL, NULL, 'COMPLETED'),
             ('queued', LOCALTIMESTAMP - interval '90 days', LOCALTIMESTAMP - interval '80 days', 'QUEUED'),
             ('no state', LOCALTIMESTAMP - interval '90 days', NULL, NULL)",
    )
    .await
    .unwrap();
    let left = || async {
        let rows = sql.query("SELECT qid FROM shepherd_brain ORDER BY qid", &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    assert_eq!(janitor::delete_old_queries(&pool, 30).await.unwrap(), 3);
    assert_eq!(left().await, ["ended lately", "no state", "no times", "queued"]);
    // The column is added while the monitor runs.
    sql.batch_execute(
        "ALTER TABLE shepherd_brain ADD COLUMN retain boolean;
         INSERT INTO shepherd_brain (qid, start_time, stop_time, state, retain) SELECT 'retain ' || coalesce(r::text, 'null'),
             LOCALTIMESTAMP - interval '90 days', LOCALTIMESTAMP - interval '80 days', 'COMPLETED', r
         FROM (VALUES (true), (false), (NULL)) AS v (r)",
    )
    .await
    .unwrap();
    assert_eq!(janitor::delete_old_queries(&pool, 30).await.unwrap(), 2);
    assert_eq!(left().await, ["ended lately", "no state", "no times", "queued", "retain true"]);
}

#[tokio::test]
async fn age_of_queries_is_independent_of_time_zone_and_daylight_saving() {
    for zone in ["Asia/Kathmandu", "America/St_Johns", "Pacific/Apia", "Europe/Berlin"] {
        let database = TestDatabase::create();
        let url = database.url();
        database
            .connect()
            .await
            .batch_execute(&format!("ALTER DATABASE {} SET timezone = '{zone}'", database.name()))
            .await
            .unwrap();
        let (pool, sql) = ready(&database).await;
        query(&sql, "young", 9, "QUEUED").await;
        query(&sql, "old", 11, "QUEUED").await;
        let pass = janitor::begin(&pool, None).await.unwrap();
        assert_eq!(janitor::abandon(&pool, pass, BUDGET).await.unwrap().queries, 1, "{zone} {url}");
        assert_eq!(stands(&sql, "young").await.0, "QUEUED", "{zone}");
    }
    // A time zone in which daylight saving started five minutes ago: a query of six minutes looks like one of an hour and six
    // minutes.
    let database = TestDatabase::create();
    let at = Utc::now() - TimeDelta::minutes(5);
    // Daylight saving starts on this day of the year at this time, in standard time (UTC).
    let day = at.format("%j").to_string().trim_start_matches('0').parse::<u32>().unwrap() - 1;
    let zone = format!("XST0XDT,{day}/{},{}/0", at.format("%H:%M:%S"), (day + 100) % 365);
    database
        .connect()
        .await
        .batch_execute(&format!("ALTER DATABASE {} SET timezone = '{zone}'", database.name()))
        .await
        .unwrap();
    let (pool, sql) = ready(&database).await;
    sql.batch_execute(
        "INSERT INTO shepherd_brain (qid, start_time, state)
         VALUES ('six minutes', (now() - interval '6 minutes') AT TIME ZONE current_setting('timezone'), 'QUEUED'),
                ('sixty', (now() - interval '60 minutes') AT TIME ZONE current_setting('timezone'), 'QUEUED')",
    )
    .await
    .unwrap();
    let naive = "SELECT count(*) FROM shepherd_brain WHERE start_time < LOCALTIMESTAMP - interval '10 minutes'";
    assert_eq!(sql.query_one(naive, &[]).await.unwrap().get::<_, i64>(0), 2, "the clocks did not change: {zone}");
    let pass = janitor::begin(&pool, None).await.unwrap();
    assert_eq!(janitor::abandon(&pool, pass, BUDGET).await.unwrap().queries, 1);
    assert_eq!(stands(&sql, "six minutes").await.0, "QUEUED");
}

#[tokio::test]
async fn fleet_without_query_tables_is_no_error() {
    let database = TestDatabase::create();
    database.connect().await.batch_execute("CREATE TABLE something_else (id int)").await.unwrap();
    let (pool, _sql) = ready(&database).await;
    assert!(!janitor::has_queries(&pool).await.unwrap());
    let pass = janitor::begin(&pool, Some("somebody")).await.unwrap();
    janitor::end(&pool, pass, &Outcome::default()).await.unwrap();
    assert_eq!(janitor::newest(&pool, 5).await.unwrap()[0].asked_by.as_deref(), Some("somebody"));
}

/// Returns the findings without an alert, as the leader reads them.
async fn untold(pool: &PgPool) -> Vec<Finding> {
    alerts::lead(pool, "test", 60.0).await.unwrap().findings
}
