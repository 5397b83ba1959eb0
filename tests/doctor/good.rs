//! A good set-up is called good, and stays as it was.

use shepherd_monitor::demo::servers::RedisOptions;
use tokio_postgres::Client;

use super::*;

/// A heartbeat as workers write it.
const HEARTBEAT: &str =
    r#"{"stream":"arax","consumer":"c1","started_at":1700000000.0,"last_seen":1700000005.0,"task_limit":4}"#;

/// A Redis that keeps what it has, with a group at work.
async fn good_redis() -> TestRedis {
    let redis =
        TestRedis::start_with(RedisOptions::with_args(["--appendonly", "yes", "--enable-debug-command", "yes"]));
    ask_all(
        &redis,
        &[
            &["XGROUP", "CREATE", "arax", "consumer", "0", "MKSTREAM"],
            &["XADD", "arax", "*", "query_id", "q1"],
            &["XADD", "arax", "*", "query_id", "q2"],
            &["XREADGROUP", "GROUP", "consumer", "c1", "COUNT", "1", "STREAMS", "arax", ">"],
            &["SET", "worker:heartbeat:arax:c1", HEARTBEAT],
        ],
    )
    .await;
    redis
}

/// Everything that is set.
fn settings<'a>(redis: &'a str, database: &'a str, spool: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("REDIS_URL", redis),
        ("DATABASE_URL", database),
        ("MONITOR_SPOOL_DIR", spool),
        ("MONITOR_ALERTS_CONFIG", concat!(env!("CARGO_MANIFEST_DIR"), "/alerts.yaml")),
        ("ALERT_WEBHOOK_URL", "http://127.0.0.1:9/alerts"),
        ("HEARTBEAT_URL", "http://127.0.0.1:9/heartbeat"),
        ("SERVER_URL", "https://monitor.example"),
        ("PG_VOLUME_CAPACITY", "100Gi"),
    ]
}

/// What a bug of the server under test would say (see `doctor/bugs.rs`), and the role of the tests' own server.
const OF_THE_SERVERS: [&str; 3] = ["redis.without_lag", "redis.bug_lag", "postgres.superuser"];

#[tokio::test]
async fn of_a_good_set_up_nothing_is_said_to_be_wrong() {
    let (redis, database) = (good_redis().await, database_in_use().await);
    let spool = redis.folder().join("spool").display().to_string();
    let (redis_url, database_url) = (redis.url(), database.url());
    let settings = settings(&redis_url, &database_url, &spool);
    let said = doctor(&[], &settings);
    assert_eq!((said.code, said.of("wrong")), (0, vec![]), "{:#?}", said.findings);
    let known: Vec<&str> = said.of("worth_knowing").into_iter().filter(|id| !OF_THE_SERVERS.contains(id)).collect();
    assert!(known.is_empty(), "{:#?}", said.findings);
    for id in
        ["redis.streams", "redis.may", "redis.persistence", "postgres.tables", "postgres.indexes", "monitor.rules"]
    {
        said.is_fine(id);
    }
    assert!(!spool_exists(&spool), "the folder was not made to find out whether it could be");

    let text = run(&[], &settings);
    let told = String::from_utf8(text.stdout).unwrap();
    assert!(text.status.success() && told.contains("\nNo problems found, "), "{told}");
    let lines: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.iter().rev().skip(1).all(|line| line.starts_with(['!', '✓'])), "{told}");
    assert_eq!(lines.len(), said.findings.len() + 1, "a line for each finding, and one for their number: {told}");
}

fn spool_exists(spool: &str) -> bool {
    std::path::Path::new(spool).exists()
}

/// What would tell that something changed in Redis: the keys and all their values, and each command that
/// changes something and was carried out.
async fn state_of_redis(redis: &TestRedis) -> (String, String, Vec<String>) {
    let text = |value: ::redis::Value| format!("{value:?}");
    let digest = text(ask(redis, &["DEBUG", "DIGEST"]).await);
    let size = text(ask(redis, &["DBSIZE"]).await);
    let ::redis::Value::BulkString(stats) = ask(redis, &["INFO", "commandstats"]).await else { panic!() };
    let stats = String::from_utf8(stats).unwrap();
    // Reads, and what belongs to a connection.
    let harmless = [
        "info",
        "time",
        "config|get",
        "acl|whoami",
        "acl|dryrun",
        "scan",
        "xlen",
        "xinfo",
        "xrange",
        "mget",
        "getrange",
        "hlen",
        "hmget",
        "type",
        "xpending",
        // What a script does is counted as well.
        "eval",
        "multi",
        "discard",
        "ping",
        "unwatch",
        "client",
        "hello",
        "select",
        "auth",
        "debug",
        "dbsize",
        "command",
    ];
    let carried_out = stats.lines().filter(|line| {
        let name = line.strip_prefix("cmdstat_").and_then(|rest| rest.split(':').next()).unwrap_or_default();
        let calls_any = line.split(':').nth(1).is_some_and(|figures| !figures.starts_with("calls=0,"));
        !name.is_empty()
            && calls_any
            && !harmless.iter().any(|known| name == *known || name.split('|').next() == Some(known))
    });
    let calls = |line: &str| line.split(',').next().unwrap_or_default().to_owned();
    (digest, size, carried_out.map(calls).collect())
}

/// The same of a database: all its relations, and each row that was ever written.
async fn state_of_postgres(client: &Client) -> (String, String) {
    let relations = "SELECT coalesce(string_agg(oid || relname || relfilenode, ',' ORDER BY oid), '') FROM pg_class \
                     WHERE relnamespace = 'public'::regnamespace";
    // Statistics come late; a row of one's own shows the rest.
    let rows = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::text FROM pg_stat_user_tables";
    client.execute("SELECT pg_stat_clear_snapshot()", &[]).await.unwrap();
    (client.query_one(relations, &[]).await.unwrap().get(0), client.query_one(rows, &[]).await.unwrap().get(0))
}

#[tokio::test]
async fn nothing_is_changed_by_looking() {
    let (redis, database) = (good_redis().await, TestDatabase::create());
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE mine (n int); INSERT INTO mine VALUES (1)").await.unwrap();
    let (redis_url, database_url) = (redis.url(), database.url());
    let spool = redis.folder().join("spool").display().to_string();
    let settings = settings(&redis_url, &database_url, &spool);
    // The database has none of the monitor's tables: whoever looked by making them would be seen.
    let before = (state_of_redis(&redis).await, state_of_postgres(&client).await);
    let said = doctor(&[], &settings);
    said.says("postgres.migrations", "worth_knowing");
    said.is_fine("redis.may");
    let after = (state_of_redis(&redis).await, state_of_postgres(&client).await);
    assert_eq!(before, after);
    // These would tell.
    ask(&redis, &["SADD", "monitor:known_workers", "arax"]).await;
    let changed = state_of_redis(&redis).await;
    assert!(changed.0 != before.0.0 && changed.1 != before.0.1 && changed.2 != before.0.2, "{changed:?}");
    client.batch_execute("CREATE TABLE another ()").await.unwrap();
    assert_ne!(state_of_postgres(&client).await.0, before.1.0);
}
