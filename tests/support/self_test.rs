//! Tests of the support code.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use shepherd_monitor::demo::reaper::is_running;
use shepherd_monitor::demo::servers::{PrivatePostgres, PrivateRedis, RedisOptions};

use super::postgres::{TestDatabase, connect};
use super::proxy::Proxy;
use super::python::Python;
use super::redis::{TestRedis, connection};
use super::wait::eventually;

const SOON: Duration = Duration::from_secs(30);
const AT_ONCE: Duration = Duration::from_millis(300);

/// Not a test: the process that [`private_servers_end_when_their_owner_is_killed`] kills.
#[test]
#[ignore = "a process that another test starts and kills"]
fn owner_of_private_servers() {
    let redis = PrivateRedis::start(RedisOptions::default()).unwrap();
    let postgres = PrivatePostgres::start().unwrap();
    println!("\nowns {} {}", redis.pid(), redis.folder().display());
    println!("owns {} {}", postgres.pid(), postgres.folder().display());
    println!("that is all");
    // Blocks until killed, or until the test that started this process is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test]
async fn private_servers_end_when_their_owner_is_killed() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "support::self_test::owner_of_private_servers", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut owned = Vec::new();
    for line in lines.take_while(|line| line != "that is all") {
        if let Some((pid, folder)) = line.strip_prefix("owns ").and_then(|rest| rest.split_once(' ')) {
            owned.push((pid.parse::<u32>().unwrap(), PathBuf::from(folder)));
        }
    }
    assert_eq!(owned.len(), 2);
    assert!(owned.iter().all(|(pid, folder)| is_running(*pid) && folder.is_dir()));

    owner.kill().unwrap();
    owner.wait().unwrap();

    eventually("no server and no folder is left", SOON, || async {
        owned.iter().all(|(pid, folder)| !is_running(*pid) && !folder.exists())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_redis_does_not_reply_until_it_is_resumed() {
    let redis = TestRedis::start();
    redis.stop().unwrap();
    let error = connection(&redis.url(), AT_ONCE).await.err().unwrap();
    assert!(error.is_timeout(), "{error}");
    redis.resume().unwrap();
    redis.connection().await.ping::<()>().await.unwrap();
}

#[tokio::test]
async fn a_killed_redis_restarts_on_its_port_with_or_without_its_data() {
    let redis = TestRedis::start_with(RedisOptions::with_args(["--appendonly", "yes"]));
    let first = redis.pid();
    redis.connection().await.set::<_, _, ()>("key", "value").await.unwrap();

    redis.kill().unwrap();
    assert!(!is_running(first));
    assert!(connection(&redis.url(), AT_ONCE).await.err().unwrap().is_connection_refusal());

    redis.restart().unwrap();
    assert_ne!(redis.pid(), first);
    assert_eq!(redis.connection().await.get::<_, Option<String>>("key").await.unwrap().as_deref(), Some("value"));

    redis.restart_empty().unwrap();
    assert_eq!(redis.connection().await.get::<_, Option<String>>("key").await.unwrap(), None);
}

#[tokio::test]
async fn a_redis_with_a_password_requires_it() {
    let redis = TestRedis::start_with(RedisOptions { password: Some("sesame".into()), ..RedisOptions::default() });
    redis.connection().await.ping::<()>().await.unwrap();
    let stranger = connection(&format!("redis://127.0.0.1:{}/", redis.port()), SOON).await;
    let refused = match stranger {
        Ok(mut connection) => connection.ping::<()>().await.err(),
        Err(error) => Some(error),
    };
    assert!(refused.unwrap().to_string().contains("NOAUTH"));
}

#[test]
fn a_redis_that_exits_at_startup_reports_the_reason() {
    let error = PrivateRedis::start(RedisOptions::with_args(["--no-such-option", "1"])).unwrap_err().to_string();
    assert!(error.contains("redis-server exited at startup") && error.contains("no-such-option"), "{error}");
}

#[tokio::test]
async fn each_test_has_its_own_database_that_is_dropped() {
    let (one, other) = (TestDatabase::create(), TestDatabase::create());
    one.connect().await.batch_execute("CREATE TABLE here (n int)").await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'here'";
    let count = async |db: &TestDatabase| db.connect().await.query_one(tables, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!((count(&one).await, count(&other).await), (1, 0));

    let name = one.name().to_owned();
    drop(one);
    let gone = "SELECT count(*) FROM pg_database WHERE datname = $1";
    assert_eq!(other.connect().await.query_one(gone, &[&name]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_stopped_postgres_does_not_reply_and_a_killed_one_restarts_with_its_rows() {
    let postgres = PrivatePostgres::start().unwrap();
    let client = connect(&postgres.url()).await.unwrap();
    client.batch_execute("CREATE TABLE kept AS SELECT 7 AS n").await.unwrap();

    postgres.stop().unwrap();
    let sum = || client.query_one("SELECT sum(n) FROM kept", &[]);
    assert!(tokio::time::timeout(AT_ONCE, sum()).await.is_err(), "an open session still answers");
    assert!(tokio::time::timeout(AT_ONCE, connect(&postgres.url())).await.is_err(), "a new session is answered");
    postgres.resume().unwrap();
    assert_eq!(sum().await.unwrap().get::<_, i64>(0), 7);

    postgres.kill().unwrap();
    assert!(!is_running(postgres.pid()));
    eventually("the open session ends", SOON, || async { client.is_closed() }).await;
    assert!(connect(&postgres.url()).await.is_err());

    postgres.restart().unwrap();
    let client = connect(&postgres.url()).await.unwrap();
    assert_eq!(client.query_one("SELECT sum(n) FROM kept", &[]).await.unwrap().get::<_, i64>(0), 7);
}

#[test]
fn a_killed_postgres_leaves_no_shared_memory_behind() {
    let postgres = PrivatePostgres::start().unwrap();
    let pid = postgres.pid().to_string();
    // The fifth column is the PID of the creator.
    let segments = || {
        let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
        table.lines().filter(|line| line.split_whitespace().nth(4) == Some(&pid)).count()
    };
    postgres.kill().unwrap();
    assert_eq!(segments(), 1, "a killed server cannot give its segment back");
    drop(postgres);
    assert_eq!(segments(), 0);
}

#[tokio::test]
async fn a_swallowed_reply_leaves_the_client_waiting_for_an_executed_command() {
    let redis = TestRedis::start();
    let proxy = Proxy::to(redis.port());
    let mut client = connection(&redis.url_through(proxy.port()), AT_ONCE).await.unwrap();
    let mut witness = redis.connection().await;

    proxy.swallow_replies();
    assert!(client.set::<_, _, ()>("key", "done").await.unwrap_err().is_timeout());
    assert_eq!(witness.get::<_, String>("key").await.unwrap(), "done");

    proxy.swallow_requests();
    assert!(client.set::<_, _, ()>("key", "never").await.unwrap_err().is_timeout());
    assert_eq!(witness.get::<_, String>("key").await.unwrap(), "done");
}

#[tokio::test]
async fn a_cut_proxy_closes_and_refuses_connections_until_restored() {
    let redis = TestRedis::start();
    let proxy = Proxy::to(redis.port());
    let url = redis.url_through(proxy.port());
    let mut client = connection(&url, SOON).await.unwrap();
    client.ping::<()>().await.unwrap();
    assert_eq!((proxy.connections(), proxy.open_connections()), (1, 1));

    proxy.cut();
    assert_eq!(proxy.open_connections(), 0);
    assert!(client.ping::<()>().await.is_err());
    assert!(connection(&url, SOON).await.err().unwrap().is_connection_refusal());

    proxy.pass();
    connection(&url, SOON).await.unwrap().ping::<()>().await.unwrap();
}

#[tokio::test]
async fn delay_applies_per_direction_and_limit_by_size() {
    let redis = TestRedis::start();
    let proxy = Proxy::to(redis.port());
    let mut client = connection(&redis.url_through(proxy.port()), SOON).await.unwrap();

    proxy.delay(Duration::from_millis(150), Duration::from_millis(100));
    let start = Instant::now();
    client.ping::<()>().await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());

    proxy.limit(100_000);
    let (start, sent) = (Instant::now(), proxy.bytes_to_server());
    client.set::<_, _, ()>("key", vec![b'x'; 50_000]).await.unwrap();
    assert!(proxy.bytes_to_server() - sent > 50_000);
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_python_process_connects_to_redis_and_ends_with_its_handle() {
    let redis = TestRedis::start();
    let port = redis.port().to_string();
    let script = "import redis, sys, time\n\
                  redis.Redis(port=int(sys.argv[1])).set('from', 'python')\n\
                  time.sleep(600)\n";
    let python = Python::start(script, &[&port]);
    let mut client = redis.connection().await;
    eventually("Python's key", SOON, || {
        let mut client = client.clone();
        async move { client.get::<_, Option<String>>("from").await.unwrap() }
    })
    .await;
    let pid = python.pid();
    assert!(python.is_running(), "{}", python.printed());
    drop(python);
    assert!(!is_running(pid));
    assert_eq!(Python::run("import sys; print(sys.argv[1])", &["it's \"quoted\""]), "it's \"quoted\"\n");
    client.ping::<()>().await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "the moon turns blue: not within 30ms; the last answer was still white")]
async fn a_timeout_reports_the_last_result() {
    eventually("the moon turns blue", Duration::from_millis(30), || async { Err::<(), _>("still white") }).await;
}
