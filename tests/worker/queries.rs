//! Query and callback rows.

use diesel_async::{AsyncConnection, AsyncPgConnection};
use shepherd_monitor::contract::DatabaseCondition;
use shepherd_monitor::worker::queries::{
    CallbackRow, Finished, NewQuery, QueryRow, add_callback, add_query, callback_row, callbacks_outstanding,
    finish_query, query_row, remove_callback,
};

use crate::support::postgres::TestDatabase;

/// The two tables of the platform.
pub(super) const TABLES: &str = "
    CREATE TABLE shepherd_brain (
        qid varchar(255) PRIMARY KEY, start_time timestamp, stop_time timestamp, submitter text, remote_ip text,
        domain text, hostname text, response_id text, callback_url text, state text, status text, description text);
    CREATE TABLE callbacks (
        query_id varchar(255) REFERENCES shepherd_brain (qid), callback_id varchar(255), otel_trace varchar(255));";

async fn connections() -> (TestDatabase, AsyncPgConnection, tokio_postgres::Client) {
    let database = TestDatabase::create();
    let sql = database.connect().await;
    sql.batch_execute(TABLES).await.unwrap();
    let connection = AsyncPgConnection::establish(&database.url()).await.unwrap();
    (database, connection, sql)
}

async fn row(sql: &tokio_postgres::Client, qid: &str) -> (String, Option<String>, Option<String>, bool) {
    let select = "SELECT state, status, domain, stop_time IS NULL FROM shepherd_brain WHERE qid = $1";
    let row = sql.query_one(select, &[&qid]).await.unwrap();
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

async fn callbacks(sql: &tokio_postgres::Client) -> i64 {
    sql.query_one("SELECT count(*) FROM callbacks", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_query_is_added_once_and_finished_once_with_its_callbacks() {
    let (_database, mut connection, sql) = connections().await;
    let query = NewQuery { qid: "q", submitter: Some("someone"), ..NewQuery::default() };
    assert!(add_query(&mut connection, &query, "aragorn").await.unwrap());
    assert!(!add_query(&mut connection, &query, "bte").await.unwrap());
    assert_eq!(row(&sql, "q").await, ("QUEUED".to_owned(), None, Some("aragorn".to_owned()), true));
    let fresh = "SELECT start_time BETWEEN localtimestamp - interval '1 min' AND localtimestamp FROM shepherd_brain";
    assert!(sql.query_one(fresh, &[]).await.unwrap().get::<_, bool>(0));

    add_query(&mut connection, &NewQuery { qid: "other", ..NewQuery::default() }, "bte").await.unwrap();
    for (query, callback) in [("q", "1"), ("q", "2"), ("other", "3")] {
        add_callback(&mut connection, query, callback, None).await.unwrap();
    }
    assert_eq!(finish_query(&mut connection, "q", "OK").await.unwrap(), Finished::Now);
    assert_eq!(
        row(&sql, "q").await,
        ("COMPLETED".to_owned(), Some("OK".to_owned()), Some("aragorn".to_owned()), false)
    );
    assert_eq!(callbacks(&sql).await, 1);
}

#[tokio::test]
async fn a_completed_query_is_not_overwritten_and_its_late_callbacks_are_deleted() {
    let (_database, mut connection, sql) = connections().await;
    add_query(&mut connection, &NewQuery { qid: "q", ..NewQuery::default() }, "aragorn").await.unwrap();
    assert_eq!(finish_query(&mut connection, "q", "OK").await.unwrap(), Finished::Now);
    add_callback(&mut connection, "q", "late", None).await.unwrap();
    assert_eq!(finish_query(&mut connection, "q", "ERROR").await.unwrap(), Finished::Before);
    assert_eq!(row(&sql, "q").await.1.as_deref(), Some("OK"));
    assert_eq!(callbacks(&sql).await, 0);
    assert_eq!(finish_query(&mut connection, "nobody", "OK").await.unwrap(), Finished::Unknown);
}

#[tokio::test]
async fn an_abandoned_query_can_still_complete() {
    let (_database, mut connection, sql) = connections().await;
    add_query(&mut connection, &NewQuery { qid: "q", ..NewQuery::default() }, "aragorn").await.unwrap();
    sql.batch_execute("UPDATE shepherd_brain SET state = 'ABANDONED'").await.unwrap();
    assert_eq!(finish_query(&mut connection, "q", "OK").await.unwrap(), Finished::Now);
    assert_eq!(row(&sql, "q").await.0, "COMPLETED");
}

#[tokio::test]
async fn one_of_many_concurrent_calls_finishes_a_query() {
    let (database, mut connection, _sql) = connections().await;
    add_query(&mut connection, &NewQuery { qid: "q", ..NewQuery::default() }, "aragorn").await.unwrap();
    let mut finishing = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = database.url();
        finishing.spawn(async move {
            let mut connection = AsyncPgConnection::establish(&url).await.unwrap();
            finish_query(&mut connection, "q", "OK").await.unwrap()
        });
    }
    let outcomes = finishing.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Finished::Now).count(), 1, "{outcomes:?}");
}

#[tokio::test]
async fn a_full_disk_is_reported_with_operation_and_remedy() {
    let (_database, mut connection, sql) = connections().await;
    add_query(&mut connection, &NewQuery { qid: "before", ..NewQuery::default() }, "arax").await.unwrap();
    sql.batch_execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'could not extend file \"base/5/16384\": No space left on device'
                 USING ERRCODE = '53100', HINT = 'Check free disk space.';
         END $$;
         CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON shepherd_brain EXECUTE FUNCTION full_disk();
         CREATE TRIGGER full_disk BEFORE INSERT ON callbacks EXECUTE FUNCTION full_disk()",
    )
    .await
    .unwrap();
    let errors = [
        (
            "add query q1",
            add_query(&mut connection, &NewQuery { qid: "q1", ..NewQuery::default() }, "arax").await.unwrap_err(),
        ),
        ("add a callback to query before", add_callback(&mut connection, "before", "c", None).await.unwrap_err()),
        ("finish query before", finish_query(&mut connection, "before", "OK").await.unwrap_err()),
    ];
    for (failed, error) in errors {
        assert_eq!(error.condition(), Some(DatabaseCondition::DiskFull));
        let text = error.to_string();
        for words in [failed, "Postgres is out of disk space", "No space left on device", "Free disk space"] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }
    // A read-only server is a different condition; a missing query is none.
    sql.batch_execute("DROP FUNCTION full_disk CASCADE").await.unwrap();
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, "SET default_transaction_read_only = on")
        .await
        .unwrap();
    let error = finish_query(&mut connection, "before", "OK").await.unwrap_err();
    assert_eq!(error.condition(), Some(DatabaseCondition::ReadOnly), "{error}");
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, "SET default_transaction_read_only = off")
        .await
        .unwrap();
    let error = add_callback(&mut connection, "nowhere", "c", None).await.unwrap_err();
    assert_eq!(error.condition(), None, "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test]
async fn a_query_waits_for_its_callbacks_until_each_is_removed() {
    let (_database, mut connection, sql) = connections().await;
    for qid in ["q", "other"] {
        add_query(&mut connection, &NewQuery { qid, ..NewQuery::default() }, "aragorn").await.unwrap();
    }
    let trace = r#"{"traceparent": "00-1-2-01"}"#;
    for (query, callback, trace) in [("q", "1", Some(trace)), ("q", "2", None), ("other", "3", None)] {
        add_callback(&mut connection, query, callback, trace).await.unwrap();
    }
    let found = callback_row(&mut connection, "1").await.unwrap();
    assert_eq!(found, Some(CallbackRow { query_id: "q".into(), otel_trace: Some(trace.into()) }));
    assert_eq!(callback_row(&mut connection, "nobody's").await.unwrap(), None);

    assert!(remove_callback(&mut connection, "1").await.unwrap());
    assert_eq!(callbacks_outstanding(&mut connection, "q").await.unwrap(), ["2"]);
    assert!(!remove_callback(&mut connection, "1").await.unwrap(), "it was removed before");
    assert!(remove_callback(&mut connection, "2").await.unwrap());
    assert_eq!(callbacks_outstanding(&mut connection, "q").await.unwrap(), Vec::<String>::new());
    assert_eq!(callbacks_outstanding(&mut connection, "other").await.unwrap(), ["3"]);
    assert_eq!(callbacks(&sql).await, 1);
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, "SET default_transaction_read_only = on")
        .await
        .unwrap();
    let error = remove_callback(&mut connection, "3").await.unwrap_err();
    assert!(error.to_string().starts_with("cannot remove callback 3: "), "{error}");
    assert_eq!(error.condition(), Some(DatabaseCondition::ReadOnly));
}

#[tokio::test]
async fn a_query_row_has_its_initial_fields_and_final_status() {
    let (_database, mut connection, _sql) = connections().await;
    let query = NewQuery { qid: "q", response_id: Some("r"), callback_url: Some("http://c"), ..NewQuery::default() };
    add_query(&mut connection, &query, "aragorn").await.unwrap();
    let row = QueryRow {
        state: Some("QUEUED".into()),
        status: None,
        domain: Some("aragorn".into()),
        response_id: Some("r".into()),
        callback_url: Some("http://c".into()),
    };
    assert_eq!(query_row(&mut connection, "q").await.unwrap(), Some(row.clone()));
    finish_query(&mut connection, "q", "ERROR").await.unwrap();
    let ended = QueryRow { state: Some("COMPLETED".into()), status: Some("ERROR".into()), ..row };
    assert_eq!(query_row(&mut connection, "q").await.unwrap(), Some(ended));
    assert_eq!(query_row(&mut connection, "nobody").await.unwrap(), None);
}
