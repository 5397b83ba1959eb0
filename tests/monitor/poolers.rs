//! Postgres through a pooler: PgBouncer in both of its modes, without support for prepared statements.

use std::time::Duration;

use diesel::sql_query;
use diesel::sql_types::Text;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::try_join_all;
use shepherd_monitor::postgres::{connection, events, migrate, probe};

use crate::support::monitor::Monitor;
use crate::support::pgbouncer::{Pgbouncer, PoolMode};
use crate::support::postgres::{TestDatabase, connect};
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const LIMIT: Duration = Duration::from_secs(10);
/// Those of other databases belong to other tests.
const ADVISORY_LOCKS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn works_through(mode: PoolMode) {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let bouncer = Pgbouncer::start(database.port(), mode, 12);
    let sql = database.connect().await;
    sql.batch_execute(&format!("ALTER DATABASE {} SET timezone = 'America/New_York'", database.name())).await.unwrap();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*redis.url()),
        ("DATABASE_URL", &database.url_through(bouncer.port())),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    monitor.takes_orders().await;
    let known = |s: &serde_json::Value| {
        s["postgres"]["source"]["status"] == "ok" && s["postgres"]["connection_count"].is_number()
    };
    monitor.until("Postgres is measured", LIMIT, known).await;
    eventually("history is archived", LIMIT, || async {
        let row = sql.query_one("SELECT count(*) FROM monitor_metrics", &[]).await.unwrap();
        row.get::<_, i64>(0) > 20
    })
    .await;
    eventually("the monitor leads", LIMIT, || async {
        let row = sql.query_one("SELECT count(*) FROM monitor_alert_leader WHERE epoch > 0", &[]).await.unwrap();
        row.get::<_, i64>(0) == 1
    })
    .await;
    let locks = sql.query_one(ADVISORY_LOCKS, &[]).await.unwrap();
    assert_eq!(locks.get::<_, i64>(0), 0, "no lock outlives its transaction");
    let refused = ["prepared statement", "unsupported startup parameter"];
    let log = monitor.log();
    assert!(!refused.iter().any(|words| log.contains(words)), "{log}");
    // What others find in the sessions that the monitor used.
    let client = connect(&database.url_through(bouncer.port())).await.unwrap();
    for (setting, is) in [("timezone", "America/New_York"), ("statement_timeout", "0")] {
        let rows = client.simple_query(&format!("SHOW {setting}")).await.unwrap();
        let shown = rows.iter().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        assert_eq!(shown, Some(is), "{setting}");
    }
}

#[tokio::test]
async fn the_monitor_works_through_a_pooler_in_transaction_mode() {
    works_through(PoolMode::Transaction).await;
}

#[tokio::test]
async fn the_monitor_works_through_a_pooler_in_session_mode() {
    works_through(PoolMode::Session).await;
}

#[tokio::test]
async fn statements_and_transactions_of_many_connections_share_two_sessions() {
    let database = TestDatabase::create();
    let bouncer = Pgbouncer::start(database.port(), PoolMode::Transaction, 2);
    let url = database.url_through(bouncer.port());
    migrate::run(&url, LIMIT).await.unwrap();
    let pool = connection::pool(&url, LIMIT).unwrap();
    let work = async |n: u32| {
        for _ in 0..20 {
            probe::server(&pool, false).await?;
            events::newest(&pool, &events::Filter::default(), 50).await?;
            if n.is_multiple_of(2) {
                probe::query_counts(&pool).await?;
            } else {
                probe::callbacks(&pool).await?;
            }
        }
        Ok::<(), shepherd_monitor::fleet::reading::SourceTrouble>(())
    };
    try_join_all((0..6).map(work)).await.unwrap();
    // A second run finds all migrations run.
    migrate::run(&url, LIMIT).await.unwrap();
    let left = database.connect().await.query_one(ADVISORY_LOCKS, &[]).await;
    assert_eq!(left.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn options_of_a_session_are_kept_without_a_pooler_and_refused_by_name_with_one_but_for_the_search_path() {
    let database = TestDatabase::create();
    let bouncer = Pgbouncer::start(database.port(), PoolMode::Session, 2);
    let options = "?options=-c%20search_path%3Dpg_catalog";
    let others = format!("{}{options}%20-c%20work_mem%3D8MB", database.url_through(bouncer.port()));
    let refused = connection::connect(others, LIMIT).await.err();
    let refused = refused.unwrap().to_string();
    assert!(
        refused.contains("work_mem") && refused.contains("pooler") && !refused.contains("search_path"),
        "{refused}"
    );
    let url = format!("postgres://postgres@127.0.0.1:{}/{}{options}", database.port(), database.name());
    let pool = connection::pool(&url, LIMIT).unwrap();
    let mut connection = connection::checkout(&pool).await.unwrap();
    let set = "DO $$ BEGIN ASSERT current_setting('search_path') = 'pg_catalog' \
               AND current_setting('statement_timeout') = '30s'; END $$";
    diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, set).await.unwrap();
}

#[tokio::test]
async fn the_search_path_of_an_address_holds_for_every_transaction_through_a_pooler_and_for_no_other_client() {
    let database = TestDatabase::create();
    let sql = database.connect().await;
    sql.batch_execute("CREATE SCHEMA \"Own\"; CREATE TABLE \"Own\".notes (note text)").await.unwrap();
    let bouncer = Pgbouncer::start(database.port(), PoolMode::Transaction, 1);
    let url = database.url_through(bouncer.port());
    let pool = connection::pool(&format!("{url}?options=-c%20search_path%3D%22Own%22"), LIMIT).unwrap();
    let other = connect(&url).await.unwrap();
    let mut own = connection::checkout(&pool).await.unwrap();
    for n in 0..3 {
        // A prepared statement, a simple one, and a transaction that allows no snapshot before it begins.
        sql_query("INSERT INTO notes VALUES ($1)").bind::<Text, _>(n.to_string()).execute(&mut own).await.unwrap();
        own.batch_execute("INSERT INTO notes VALUES ('simple')").await.unwrap();
        let mut reading = own.build_transaction().read_only().repeatable_read();
        let counted: Result<usize, diesel::result::Error> =
            reading.run(async |own| sql_query("SELECT note FROM notes").execute(own).await).await;
        assert_eq!(counted.unwrap(), (n + 1) * 2);
        let rows = other.simple_query("SELECT current_schemas(false)::text").await.unwrap();
        let schemas = rows.iter().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        assert_eq!(schemas.as_deref(), Some("{public}"));
    }
}
