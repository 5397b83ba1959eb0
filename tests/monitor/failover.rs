//! Connections that lead to the wrong server, or nowhere, are discarded; those to the right one are kept.

use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::ConnectionLike;
use shepherd_monitor::fleet::reading::TroubleKind;
use shepherd_monitor::fleet::watched::WatchedStreams;
use shepherd_monitor::postgres;
use shepherd_monitor::redis_streams::connection::{self, PersistentConnection, Pool, checkout};
use shepherd_monitor::redis_streams::streams_reader::StreamsReader;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::proxy::Proxy;
use crate::support::redis::{TestRedis, run};

const LIMIT: Duration = Duration::from_secs(5);

async fn run_id(redis: &mut impl ConnectionLike) -> String {
    let info: String = redis::cmd("INFO").arg("server").query_async(redis).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().to_owned()
}

async fn run_id_of(server: &TestRedis) -> String {
    run_id(&mut server.connection().await).await
}

/// Opens three connections of the pool and leaves them in it.
async fn fill(pool: &Pool) {
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut redis = checkout(pool).await.unwrap();
        let _: () = redis::cmd("SET").arg("k").arg("v").query_async(&mut redis).await.unwrap();
        open.push(redis);
    }
}

/// The second becomes the primary of the first, and new connections lead to it.
async fn fail_over(old: &TestRedis, new: &TestRedis, name: &Proxy) {
    run(&mut new.connection().await, "REPLICAOF NO ONE").await;
    run(&mut old.connection().await, &format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    name.lead_to(new.port());
}

fn through(proxy: &Proxy) -> String {
    format!("redis://127.0.0.1:{}/", proxy.port())
}

#[tokio::test]
async fn after_a_failover_one_refused_write_discards_every_connection_to_the_demoted_primary() {
    let (old, new) = (TestRedis::start(), TestRedis::start());
    let name = Proxy::to(old.port());
    let pool = connection::pool(&through(&name), LIMIT).unwrap();
    fill(&pool).await;
    let mut kept = PersistentConnection::beside(&pool);
    let mut redis = kept.take().await.unwrap();
    let of_old = run_id(&mut redis).await;
    kept.keep(redis);
    fail_over(&old, &new, &name).await;
    {
        let mut redis = checkout(&pool).await.unwrap();
        let set: Result<Value, _> = redis::cmd("SET").arg("k").arg("v").query_async(&mut redis).await;
        assert_eq!(set.unwrap_err().code(), Some("READONLY"), "the demoted primary is still at the other end");
    }
    fill(&pool).await;
    let mut redis = kept.take().await.unwrap();
    let of_new = run_id(&mut redis).await;
    assert_eq!(of_new, run_id_of(&new).await);
    assert_ne!(of_new, of_old);
}

#[tokio::test]
async fn a_write_that_a_script_is_refused_discards_connections_too() {
    let (old, new) = (TestRedis::start(), TestRedis::start());
    let name = Proxy::to(old.port());
    let pool = connection::pool(&through(&name), LIMIT).unwrap();
    fill(&pool).await;
    fail_over(&old, &new, &name).await;
    let script = redis::Script::new("return redis.call('SET', KEYS[1], 'v')");
    let mut refused = 0;
    for _ in 0..4 {
        let mut redis = checkout(&pool).await.unwrap();
        let set: Result<Value, _> = script.key("k").invoke_async(&mut redis).await;
        refused += usize::from(set.is_err());
    }
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn a_query_without_an_answer_discards_all_connections_that_a_firewall_may_have_forgotten() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let pool = connection::pool(&through(&proxy), Duration::from_millis(500)).unwrap();
    fill(&pool).await;
    // Used a moment ago, so none is asked whether it works.
    proxy.swallow_requests();
    {
        let mut redis = checkout(&pool).await.unwrap();
        let asked = redis::cmd("GET").arg("k").query_async::<Value>(&mut redis).await;
        assert!(asked.unwrap_err().is_timeout());
    }
    proxy.pass();
    let before = proxy.connections();
    fill(&pool).await;
    assert_eq!(proxy.connections(), before + 3);
    // The same where the caller gave up first.
    proxy.swallow_requests();
    {
        let mut redis = checkout(&pool).await.unwrap();
        let get = redis::cmd("GET");
        let asking = redis.req_packed_command(&get);
        assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
    }
    proxy.pass();
    fill(&pool).await;
    assert_eq!(proxy.connections(), before + 6);
}

#[tokio::test]
async fn another_server_behind_the_address_ends_all_connections_but_the_one_that_found_it() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let pool = connection::pool(&through(&proxy), LIMIT).unwrap();
    fill(&pool).await;
    let (mut one, mut other) = (PersistentConnection::beside(&pool), PersistentConnection::beside(&pool));
    for kept in [&mut one, &mut other] {
        let mut redis = kept.take().await.unwrap();
        run_id(&mut redis).await;
        kept.keep(redis);
    }
    let mut redis = one.take().await.unwrap();
    redis.leads_to_another_server();
    one.keep(redis);
    assert!(!one.take().await.unwrap().is_new());
    assert!(other.take().await.unwrap().is_new());
    let before = proxy.connections();
    fill(&pool).await;
    assert_eq!(proxy.connections(), before + 3);
}

#[tokio::test]
async fn what_a_server_can_do_is_asked_anew_over_a_new_connection() {
    let server = TestRedis::start();
    let (mut redis, mut ask) = (server.connection().await, server.connection().await);
    let mut reader = StreamsReader::new(WatchedStreams::new(&[], &[]).unwrap(), &[]);
    let probes = async |ask: &mut redis::aio::MultiplexedConnection| match run(ask, "INFO commandstats").await {
        Value::BulkString(text) => {
            let text = String::from_utf8(text).unwrap();
            text.lines().find_map(|line| line.strip_prefix("cmdstat_info:calls=")?.split(',').next()?.parse().ok())
        }
        other => panic!("{other:?}"),
    };
    reader.read(&mut redis).await.unwrap();
    let first: Option<u64> = probes(&mut ask).await;
    reader.read(&mut redis).await.unwrap();
    // One for the pass, one for this question.
    assert_eq!(probes(&mut ask).await, first.map(|calls| calls + 2));
    reader.reconnected();
    reader.read(&mut redis).await.unwrap();
    assert_eq!(probes(&mut ask).await, first.map(|calls| calls + 5));
}

#[tokio::test]
async fn a_user_that_may_not_scan_still_sees_the_streams_that_are_known() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    run(&mut redis, "XADD s * f v").await;
    run(&mut redis, "ACL SETUSER default -scan").await;
    let mut reader = StreamsReader::new(WatchedStreams::new(&[], &[]).unwrap(), &["s".into()]);
    for _ in 0..2 {
        let (reading, _) = reader.read(&mut redis).await.unwrap();
        assert_eq!(reading.streams[&shepherd_monitor::contract::Name::from("s")].facts.as_ref().unwrap().length, 1);
    }
}

#[tokio::test]
async fn the_monitor_works_with_the_new_primary_within_seconds_of_a_failover() {
    let (old, new, database) = (TestRedis::start(), TestRedis::start(), TestDatabase::create());
    let name = Proxy::to(old.port());
    let monitor = Monitor::start(&[
        ("REDIS_URL", &*through(&name)),
        ("DATABASE_URL", &database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
    ])
    .await;
    let reads = |snapshot: &serde_json::Value| snapshot["redis"]["source"]["status"] != "down";
    let kept = async |server: &TestRedis| {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("shepherd-monitor:hist:*")
            .query_async(&mut server.connection().await)
            .await
            .unwrap();
        !keys.is_empty()
    };
    monitor.until("Redis is read", LIMIT * 2, |s| s["redis"]["source"]["status"] == "settling").await;
    crate::support::wait::eventually("series are kept", LIMIT * 2, || async { kept(&old).await }).await;
    fail_over(&old, &new, &name).await;
    let began = Instant::now();
    crate::support::wait::eventually("series are kept in the new primary", LIMIT * 3, || async { kept(&new).await })
        .await;
    monitor.until("the new primary is read", LIMIT, reads).await;
    assert!(began.elapsed() < Duration::from_secs(15));
    crate::support::wait::eventually("no connection stays with the demoted one", LIMIT, || async {
        let clients = run(&mut old.connection().await, "CLIENT LIST TYPE normal").await;
        let Value::BulkString(clients) = clients else { panic!("{clients:?}") };
        let clients = String::from_utf8(clients).unwrap();
        if clients.lines().count() == 1 { Ok(()) } else { Err(clients) }
    })
    .await;
}

#[tokio::test]
async fn a_postgres_query_that_was_given_up_discards_all_connections() {
    let database = TestDatabase::create();
    let proxy = Proxy::to(database.port());
    let pool = postgres::connection::pool(&database.url_through(proxy.port()), LIMIT).unwrap();
    let fill = async || {
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(postgres::connection::checkout(&pool).await.unwrap());
        }
    };
    fill().await;
    assert_eq!(proxy.connections(), 3);
    fill().await;
    assert_eq!(proxy.connections(), 3);
    proxy.swallow_replies();
    assert!(tokio::time::timeout(Duration::from_millis(300), postgres::probe::alive(&pool)).await.is_err());
    proxy.pass();
    postgres::probe::alive(&pool).await.unwrap();
    fill().await;
    assert_eq!(proxy.connections(), 6);
}

#[tokio::test]
async fn a_postgres_that_shuts_down_says_so_and_is_connected_to_anew() {
    let database = TestDatabase::create();
    let pool = postgres::connection::pool(&database.url(), LIMIT).unwrap();
    let mut connection = postgres::connection::checkout(&pool).await.unwrap();
    let sql = database.connect().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sql.batch_execute(end).await.unwrap();
    let error = diesel_async::SimpleAsyncConnection::batch_execute(&mut connection, "SELECT 1").await.unwrap_err();
    assert_eq!(postgres::connection::trouble(&error).kind, TroubleKind::Unreachable, "{error}");
    drop(connection);
    postgres::probe::alive(&pool).await.unwrap();
}
