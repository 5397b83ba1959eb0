//! A Postgres that is wrong, in one way after another.

use std::time::Instant;

use shepherd_monitor::demo::servers::PrivatePostgres;

use shepherd_monitor::postgres::audit;

use super::*;
use crate::support::monitor::Monitor;
use crate::support::pgbouncer::{Pgbouncer, PoolMode};
use crate::support::wait::eventually;

/// What it says of this database; Redis is away in these tests.
fn doctor_of(database: &str) -> Said {
    doctor(&[], &[("REDIS_URL", "redis://127.0.0.1:1/"), ("DATABASE_URL", database)])
}

async fn run_in(database: &TestDatabase, sql: &str) {
    database.connect().await.batch_execute(sql).await.unwrap();
}

/// A role of the test's own, on the server that all tests share.
struct Role<'a> {
    database: &'a TestDatabase,
    name: String,
}

impl<'a> Role<'a> {
    async fn create(database: &'a TestDatabase) -> Self {
        let name = format!("role_of_{}", database.name());
        run_in(database, &format!("CREATE ROLE {name} LOGIN")).await;
        Self { database, name }
    }

    fn url(&self) -> String {
        self.database.url().replace("postgres@", &format!("{}@", self.name))
    }

    async fn may(&self, what: &str) {
        run_in(self.database, &what.replace("WHO", &self.name)).await;
    }

    async fn drop(self) {
        run_in(self.database, &format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)).await;
    }
}

#[tokio::test]
async fn a_database_that_does_not_exist() {
    let database = TestDatabase::create();
    let told = doctor_of(&database.url().replace(database.name(), "nowhere")).says("postgres.database", "wrong");
    assert!(told.contains("nowhere") && told.contains("create the database"), "{told}");
}

#[tokio::test]
async fn what_a_pooler_refuses_is_named_with_the_remedy() {
    let database = TestDatabase::create();
    let name = database.name();
    let start = |known: &str, settings: &str| Pgbouncer::start_with(database.port(), known, "right", settings);
    let url =
        |pooler: &Pgbouncer, login: &str, name: &str| format!("postgres://{login}@127.0.0.1:{}/{name}", pooler.port());

    let pooler = start(name, "auth_type = md5\npool_mode = transaction");
    doctor_of(&url(&pooler, "postgres:right", name)).says("postgres.pooler", "fine");
    for login in ["postgres:wrong", "stranger:right"] {
        let told = doctor_of(&url(&pooler, login, name)).says("postgres.login", "wrong");
        assert!(told.contains("check POSTGRES_USER and POSTGRES_PASSWORD"), "{login}: {told}");
    }
    let told = doctor_of(&url(&pooler, "postgres", name)).says("postgres.login", "wrong");
    assert!(told.contains("set POSTGRES_PASSWORD"), "{told}");
    let told = doctor_of(&url(&pooler, "postgres:right", "nowhere")).says("postgres.database", "wrong");
    assert!(told.contains("nowhere") && told.contains("create the database"), "{told}");
    drop(pooler);

    let pooler = start(name, "auth_type = trust\npool_mode = statement");
    let told = doctor_of(&url(&pooler, "postgres", name)).says("postgres.pooler", "wrong");
    assert!(told.contains("set pool_mode = transaction or session"), "{told}");
    drop(pooler);

    let pooler = start(name, "auth_type = trust\npool_mode = session\nmax_client_conn = 1");
    let _only = crate::support::wait::eventually("nobody else is connected", Duration::from_secs(10), || async {
        crate::support::postgres::connect(&url(&pooler, "postgres", name)).await
    })
    .await;
    let told = doctor_of(&url(&pooler, "postgres", name)).says("postgres.connections", "wrong");
    assert!(told.contains("max_client_conn"), "{told}");
}

#[tokio::test]
async fn a_server_without_tls_and_without_a_rule_for_the_login() {
    let server = PrivatePostgres::start().unwrap();
    std::fs::write(server.folder().join("data/pg_hba.conf"), "host all postgres 127.0.0.1/32 trust\n").unwrap();
    let client = crate::support::postgres::connect(&server.url()).await.unwrap();
    client.batch_execute("CREATE ROLE fleet LOGIN; SELECT pg_reload_conf()").await.unwrap();
    let url = server.url().replace("postgres@", "fleet@");
    let told = crate::support::wait::eventually("the rules are read", Duration::from_secs(20), || async {
        let told = doctor_of(&url).says("postgres.login", "wrong");
        told.contains("pg_hba.conf").then_some(told)
    })
    .await;
    assert!(told.contains("client authentication rules in pg_hba.conf") && !told.contains("TLS"), "{told}");
}

#[tokio::test]
async fn one_that_is_away_one_that_hangs_and_one_that_refuses_the_password() {
    let server = PrivatePostgres::start().unwrap();
    let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(server.folder().join("data/pg_hba.conf"), rules).unwrap();
    let client = crate::support::postgres::connect(&server.url()).await.unwrap();
    client.batch_execute("CREATE ROLE fleet LOGIN PASSWORD 'right'; SELECT pg_reload_conf()").await.unwrap();
    let wrong = server.url().replace("postgres@", "fleet:wr0ngpass@");
    let told = crate::support::wait::eventually("the rules are read", Duration::from_secs(20), || async {
        let said = doctor_of(&wrong);
        if said.of("wrong").contains(&"postgres.login") {
            Ok(said.says("postgres.login", "wrong"))
        } else {
            Err("not yet")
        }
    })
    .await;
    assert!(told.contains("POSTGRES_PASSWORD") && !told.contains("wr0ngpass"), "{told}");

    client.batch_execute("ALTER SYSTEM SET autovacuum = off").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    crate::support::wait::eventually("autovacuum is off", Duration::from_secs(20), || async {
        doctor_of(&server.url()).of("wrong").contains(&"postgres.autovacuum")
    })
    .await;

    drop(client);
    server.stop().unwrap();
    let began = Instant::now();
    let told = doctor_of(&server.url()).says("postgres.reached", "wrong");
    assert!(told.contains("timed out"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(40), "it took {:?}", began.elapsed());
    server.resume().unwrap();
    server.kill().unwrap();
    let told = doctor_of(&server.url()).says("postgres.reached", "wrong");
    assert!(told.contains("cannot connect to Postgres") && told.contains("DATABASE_URL"), "{told}");
}

#[tokio::test]
async fn a_database_without_the_fleets_tables_is_fine_and_one_with_half_of_them_is_not() {
    let database = TestDatabase::create();
    run_in(&database, "CREATE TABLE somebody_elses ()").await;
    let said = doctor_of(&database.url());
    assert!(said.says("postgres.fleet", "fine").contains("this fleet has no queries"));
    assert!(said.says("postgres.migrations", "worth_knowing").contains("start the monitor"));
    run_in(&database, "CREATE TABLE shepherd_brain (qid text)").await;
    assert!(doctor_of(&database.url()).says("postgres.fleet", "worth_knowing").contains("callbacks"));
}

#[tokio::test]
async fn missing_indexes_and_tables_have_names() {
    let database = database_in_use().await;
    let said = doctor_of(&database.url());
    assert_eq!(said.of("wrong"), ["redis.reached"], "{:#?}", said.findings);
    run_in(&database, "DROP INDEX shepherd_brain_state_status; DROP INDEX callbacks_query_id").await;
    let told = doctor_of(&database.url()).says("postgres.indexes", "worth_knowing");
    assert!(told.contains("shepherd_brain_state_status and callbacks_query_id"), "{told}");
    run_in(&database, "DROP TABLE monitor_audit").await;
    let told = doctor_of(&database.url()).says("postgres.tables", "wrong");
    assert!(told.contains("monitor_audit"), "{told}");
    run_in(&database, "DELETE FROM __diesel_schema_migrations WHERE version > '0010'").await;
    assert!(doctor_of(&database.url()).says("postgres.migrations", "worth_knowing").contains("not up to date"));
    run_in(&database, "INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')").await;
    assert!(doctor_of(&database.url()).says("postgres.newer", "worth_knowing").contains("9999"));
}

#[tokio::test]
async fn the_tables_that_are_looked_for_are_those_that_the_migrations_make() {
    let database = database_in_use().await;
    let rows = database
        .connect()
        .await
        .query(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'monitor\\_%' \
             AND tablename NOT LIKE '%\\_before' ORDER BY tablename",
            &[],
        )
        .await
        .unwrap();
    let made: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(made, shepherd_monitor::postgres::diagnostics::MONITOR_TABLES);
}

#[tokio::test]
async fn a_role_that_may_not_make_or_write_tables() {
    let fresh = TestDatabase::create();
    let role = Role::create(&fresh).await;
    let told = doctor_of(&role.url()).says("postgres.may_create", "wrong");
    let remedy = format!("GRANT USAGE, CREATE ON SCHEMA public TO {}", role.name);
    assert!(told.contains(&remedy), "{told}");
    run_in(&fresh, "REVOKE USAGE ON SCHEMA public FROM PUBLIC").await;
    let redis = TestRedis::start();
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &role.url())]).await;
    eventually("the monitor reports it as well", Duration::from_secs(60), || async {
        let (_, ready) = monitor.get("/readyz?verbose").await;
        let said = "the tables of the monitor cannot be created or changed";
        if ready.contains(said) { Ok(()) } else { Err(ready) }
    })
    .await;
    drop(monitor);
    // What it says to do is what helps, for a role without further privileges.
    role.may(&remedy).await;
    doctor_of(&role.url()).says("postgres.migrations", "worth_knowing");
    migrate::run(&role.url(), Duration::from_secs(10)).await.unwrap();
    let old = "INSERT INTO monitor_audit (ts, who, role, address, action, parameters, outcome) \
               VALUES (now() - interval '40 days', 'ann', 'admin', '', 'reload rules', '{}', 'done')";
    run_in(&fresh, old).await;
    let pool = connection::pool(&role.url(), Duration::from_secs(10)).unwrap();
    assert_eq!(audit::retain(&pool, 30).await.unwrap(), 1);
    role.drop().await;

    let database = database_in_use().await;
    let role = Role::create(&database).await;
    role.may("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO WHO").await;
    role.may("REVOKE INSERT ON monitor_events FROM WHO; REVOKE DELETE ON callbacks FROM WHO").await;
    run_in(&database, "DROP INDEX callbacks_query_id").await;
    let said = doctor_of(&role.url());
    assert!(
        said.says("postgres.may_write", "wrong").contains(&format!("GRANT INSERT ON monitor_events TO {}", role.name))
    );
    assert!(said.says("postgres.may_tend", "wrong").contains(&format!("GRANT DELETE ON callbacks TO {}", role.name)));
    let told = said.says("postgres.may_number", "wrong");
    assert!(told.contains("GRANT USAGE ON SEQUENCE") && told.contains("monitor_events_id_seq"), "{told}");
    let told = said.says("postgres.indexes", "worth_knowing");
    assert!(told.contains("CREATE INDEX CONCURRENTLY callbacks_query_id ON callbacks (query_id)"), "{told}");
    assert!(said.says("postgres.wal", "worth_knowing").contains("pg_monitor"));
    role.may("ALTER ROLE WHO SET default_transaction_read_only = on").await;
    doctor_of(&role.url()).says("postgres.read_only", "wrong");
    role.drop().await;
}

#[tokio::test]
async fn another_time_zone_than_utc() {
    let database = database_in_use().await;
    doctor_of(&database.url()).is_fine("postgres.time_zone");
    run_in(&database, &format!("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'", database.name())).await;
    let told = doctor_of(&database.url()).says("postgres.time_zone", "worth_knowing");
    assert!(told.contains("Asia/Tokyo"), "{told}");
}

#[tokio::test]
async fn a_pooler_is_named_with_its_mode() {
    let (redis, database) = (TestRedis::start(), database_in_use().await);
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        for sessions in [1, 5] {
            // In session mode each client has one for itself, and doctor looks with two.
            let sessions = if mode == PoolMode::Session { sessions + 1 } else { sessions };
            let bouncer = Pgbouncer::start(database.port(), mode, sessions);
            let url = database.url_through(bouncer.port());
            let said = doctor(&[], &[("REDIS_URL", &redis.url()), ("DATABASE_URL", &url)]);
            let words = said.says("postgres.pooler", "fine");
            assert!(words.contains(&format!("{} mode", mode.name())), "{words}");
            said.is_fine("postgres.tables");
        }
    }
    let said = doctor(&[], &[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url_through(database.port()))]);
    assert!(said.says("postgres.pooler", "fine").contains("no connection pooler"));
}
