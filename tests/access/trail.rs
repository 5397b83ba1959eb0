//! The audit log on a real Postgres: append-only, with a hash chain that shows what was changed past the monitor.

use std::process::Command;

use serde_json::json;
use shepherd_monitor::access::audit_chain::{ChainedRow, Head, Link, hash_of};
use shepherd_monitor::postgres::audit::{self, Outcome, RequestedChange};
use shepherd_monitor::postgres::connection::{PgPool, pool};
use shepherd_monitor::postgres::{audit_trail, migrate};
use tokio_postgres::Client as Sql;

use super::SOON;
use crate::support::pgbouncer::{Pgbouncer, PoolMode};
use crate::support::postgres::{TestDatabase, connect};

/// A migrated database, with a pool as the monitor has it and a superuser's connection.
struct Log {
    database: TestDatabase,
    pool: PgPool,
    sql: Sql,
}

fn change(who: &str) -> RequestedChange {
    RequestedChange {
        who: who.to_owned(),
        role: "admin",
        address: "192.0.2.1".to_owned(),
        action: "clean up",
        // JSON that Postgres prints differently from what it was given.
        parameters: json!({"z": 1.50, "a": [1e30, "\u{0}\u{1b}ä"], "nested": {"b": null, "aa": true}}),
    }
}

impl Log {
    async fn new() -> Self {
        let database = TestDatabase::create();
        migrate::run(&database.url(), SOON).await.unwrap();
        let (pool, sql) = (pool(&database.url(), SOON).unwrap(), database.connect().await);
        Self { database, pool, sql }
    }

    /// Four changes; the last one does not end. Their row IDs.
    async fn with_changes() -> (Self, Vec<i64>) {
        let log = Self::new().await;
        let mut ids = Vec::new();
        for who in ["ann", "bo", "cy", "di"] {
            ids.push(audit::begin(&log.pool, change(who)).await.unwrap());
        }
        for (id, outcome) in ids.iter().zip([Outcome::Done, Outcome::Refused, Outcome::Failed]) {
            audit::end(&log.pool, *id, outcome, json!({"entries": 7})).await.unwrap();
        }
        (log, ids)
    }

    async fn verify(&self, head: Option<Head>) -> Result<audit_trail::Intact, String> {
        audit_trail::verify(&self.pool, head).await.unwrap().map_err(|broken| broken.to_string())
    }

    async fn head(&self) -> Head {
        audit_trail::head(&self.pool).await.unwrap().unwrap()
    }

    /// Runs statements as somebody who can disable the triggers.
    async fn past_the_triggers(&self, statements: &str) {
        let text = format!("SET session_replication_role = replica; {statements}; RESET session_replication_role");
        self.sql.batch_execute(&text).await.unwrap();
    }

    /// What is found after these statements, which are undone.
    async fn found_after(&self, statements: &str) -> String {
        let copies = "CREATE TABLE rows AS TABLE monitor_audit; CREATE TABLE links AS TABLE monitor_audit_chain";
        self.sql.batch_execute(copies).await.unwrap();
        self.past_the_triggers(statements).await;
        let found = self.verify(None).await.map_or_else(|broken| broken, |intact| format!("intact: {intact:?}"));
        self.past_the_triggers(
            "DELETE FROM monitor_audit; INSERT INTO monitor_audit TABLE rows; DROP TABLE rows; \
             DELETE FROM monitor_audit_chain; INSERT INTO monitor_audit_chain TABLE links; DROP TABLE links",
        )
        .await;
        assert!(self.verify(None).await.is_ok(), "what was changed is undone");
        found
    }
}

/// Runs `shepherd-monitor audit`; exit code, output and errors.
fn command(database: &TestDatabase, arguments: &[&str]) -> (i32, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    program.arg("audit").args(arguments).env_clear().env("DATABASE_URL", database.url());
    let output = program.output().unwrap();
    let [printed, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().unwrap(), printed, errors)
}

#[tokio::test]
async fn every_change_past_the_monitor_is_found_in_the_chain() {
    let (log, ids) = Log::with_changes().await;
    let intact = log.verify(None).await.unwrap();
    assert_eq!((intact.chain.links, intact.older_rows), (7, 0));
    let [ann, bo, _, di] = ids[..] else { panic!("{ids:?}") };
    for (statements, expected) in [
        (format!("UPDATE monitor_audit SET who = 'eve' WHERE id = {bo}"), format!("row {bo} or its link 2 was changed, inserted or moved: ts, who")),
        (
            format!("UPDATE monitor_audit SET outcome = 'done', result = '{{}}' WHERE id = {bo}"),
            format!("row {bo} or its link 6 was changed, inserted or moved: outcome, result"),
        ),
        (
            format!("UPDATE monitor_audit SET outcome = 'done', ended = now() WHERE id = {di}"),
            format!("the outcome of row {di} has no link"),
        ),
        (format!("DELETE FROM monitor_audit WHERE id = {bo}"), format!("row {bo} is missing: link 2")),
        (
            format!("DELETE FROM monitor_audit WHERE id = {bo}; DELETE FROM monitor_audit_chain WHERE row_id = {bo}"),
            "link 2 is missing".to_owned(),
        ),
        (
            "INSERT INTO monitor_audit (id, who, role, address, action, parameters, outcome) \
             VALUES (99, 'eve', 'admin', '', 'clean up', '{}', 'begun')"
                .to_owned(),
            "row 99 has no link".to_owned(),
        ),
        (
            "INSERT INTO monitor_audit (id, who, role, address, action, parameters, outcome) \
             VALUES (-5, 'eve', 'admin', '', 'clean up', '{}', 'done')"
                .to_owned(),
            "some were inserted since".to_owned(),
        ),
        (
            format!(
                "UPDATE monitor_audit SET id = -1 WHERE id = {ann}; UPDATE monitor_audit SET id = {ann} WHERE id = {bo}; \
                 UPDATE monitor_audit SET id = {bo} WHERE id = -1"
            ),
            format!("row {ann} or its link 1 was changed"),
        ),
        (
            "UPDATE monitor_audit_chain SET seq = -1 WHERE seq = 2; UPDATE monitor_audit_chain SET seq = 2 WHERE seq = 3; \
             UPDATE monitor_audit_chain SET seq = 3 WHERE seq = -1"
                .to_owned(),
            "link 2".to_owned(),
        ),
        ("UPDATE monitor_audit_chain SET hash = sha256('x') WHERE seq = 3".to_owned(), "link 3".to_owned()),
        ("DELETE FROM monitor_audit_chain".to_owned(), "the start of the chain".to_owned()),
    ] {
        let found = log.found_after(&statements).await;
        assert!(found.contains(&expected), "{statements}: {found}");
    }
    log.sql.batch_execute("ALTER TABLE monitor_audit DISABLE TRIGGER monitor_audit_append_only").await.unwrap();
    assert!(log.verify(None).await.unwrap_err().starts_with("1 of the triggers"));
}

#[tokio::test]
async fn the_commands_verify_and_export_the_audit_log() {
    let (log, ids) = Log::with_changes().await;
    let (code, printed, _) = command(&log.database, &["verify"]);
    let head = log.head().await;
    assert_eq!(
        (code, printed.as_str()),
        (0, format!("The audit log is unchanged: 7 links verified, head {head}.\n").as_str())
    );

    let (code, exported, said) = command(&log.database, &["export"]);
    assert_eq!((code, said), (0, format!("shepherd-monitor: exported 4 rows; head of the chain: {head}\n")));
    let rows: Vec<serde_json::Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let who: Vec<&str> = rows.iter().map(|row| row["who"].as_str().unwrap()).collect();
    assert_eq!((who, &rows[1]["result"]["entries"]), (vec!["ann", "bo", "cy", "di"], &json!(7)));
    let last = format!("{}:{}", rows[2]["seq"], rows[2]["hash"].as_str().unwrap());
    assert_eq!(last, head.to_string());
    let (_, csv, _) = command(&log.database, &["export", "--format", "csv", "--since", "1h"]);
    assert!(csv.starts_with("id,ts,who,") && csv.lines().count() == 5, "{csv}");
    let (_, none, _) = command(&log.database, &["export", "--until", "2026-01-01"]);
    assert_eq!(none, "");

    // The newest link cut off: only a recorded head shows it.
    let cut = format!(
        "DELETE FROM monitor_audit_chain WHERE seq = 7; \
         UPDATE monitor_audit SET outcome = 'begun', result = NULL, ended = NULL WHERE id = {}",
        ids[2]
    );
    log.past_the_triggers(&cut).await;
    assert_eq!(command(&log.database, &["verify"]).0, 0);
    let (code, printed, errors) = command(&log.database, &["verify", "--head", &head.to_string()]);
    assert_eq!((code, printed.as_str()), (1, ""));
    assert!(errors.contains("link 7 is not in the chain") && errors.lines().count() == 1, "{errors}");

    log.past_the_triggers("UPDATE monitor_audit SET address = '' WHERE who = 'bo'").await;
    let (code, _, errors) = command(&log.database, &["verify"]);
    assert!(code == 1 && errors.contains(&format!("the audit log was changed: row {} or", ids[1])), "{errors}");
}

const REFUSED: [&str; 9] = [
    "UPDATE monitor_audit SET who = 'eve'",
    "UPDATE monitor_audit SET outcome = 'done', who = 'eve' WHERE outcome = 'begun'",
    "UPDATE monitor_audit SET result = '{}' WHERE outcome <> 'begun'",
    "UPDATE monitor_audit SET outcome = 'begun'",
    "DELETE FROM monitor_audit",
    "TRUNCATE monitor_audit",
    "UPDATE monitor_audit_chain SET hash = ''",
    "DELETE FROM monitor_audit_chain WHERE seq = 7",
    "TRUNCATE monitor_audit_chain",
];

#[tokio::test]
async fn the_database_refuses_to_change_or_remove_rows_of_the_audit_log() {
    let (log, _) = Log::with_changes().await;
    for statement in REFUSED {
        let error = log.sql.batch_execute(statement).await.unwrap_err();
        let said = error.as_db_error().unwrap().message();
        assert!(said.starts_with("the audit log is append-only"), "{statement}: {said}");
    }
    let young = "SELECT monitor_audit_retain(7, now(), 100, 8, now(), '', '')";
    let said = log.sql.batch_execute(young).await.unwrap_err().as_db_error().unwrap().message().to_owned();
    assert!(said.contains("at least one day"), "{said}");
    assert!(log.verify(None).await.is_ok());
}

/// The statements in docs/security.md that give the audit log to a role of its own.
fn documented_statements(monitor: &str) -> String {
    let text = std::fs::read_to_string("docs/security.md").unwrap();
    let block = text.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    block.replace("shepherd_audit", &format!("{monitor}_audit")).replace("TO shepherd;", &format!("TO {monitor};"))
}

#[tokio::test]
async fn with_an_owner_of_its_own_the_monitor_s_role_cannot_disable_the_protection() {
    let (log, _) = Log::with_changes().await;
    let name = log.database.name();
    // Roles belong to the server, which the tests share.
    let role = format!("{name}_monitor");
    log.sql.batch_execute(&format!("CREATE ROLE {role} LOGIN")).await.unwrap();
    log.sql.batch_execute(&documented_statements(&role)).await.unwrap();
    let url = format!("postgres://{role}@127.0.0.1:{}/{name}", log.database.port());
    let sql = connect(&url).await.unwrap();
    for statement in REFUSED.iter().chain(&[
        "ALTER TABLE monitor_audit DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "DROP TABLE monitor_audit_chain",
        "CREATE OR REPLACE FUNCTION monitor_audit_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
        "SET shepherd_monitor.audit_retention = 'on'; DELETE FROM monitor_audit",
    ]) {
        assert!(sql.batch_execute(statement).await.is_err(), "{statement}");
    }
    // It records changes, and retention works.
    let pool = pool(&url, SOON).unwrap();
    let id = audit::begin(&pool, change("ann")).await.unwrap();
    audit::end(&pool, id, Outcome::Done, json!({})).await.unwrap();
    let old = "INSERT INTO monitor_audit (id, ts, who, role, address, action, parameters, outcome) \
        VALUES (0, now() - interval '9 days', 'ann', 'admin', '', '', '{}', 'begun')";
    log.sql.batch_execute(old).await.unwrap();
    assert_eq!(audit::retain(&pool, 8).await.unwrap(), 1);
    assert_eq!(log.verify(None).await.unwrap().chain.links, 10);
    drop((sql, pool));
    let audit_role = format!("{role}_audit");
    let gone = format!("DROP OWNED BY {role}, {audit_role} CASCADE; DROP ROLE {role}, {audit_role}");
    log.sql.batch_execute(&gone).await.unwrap();
}

/// Appends a link about a new row that was stored `days` ago.
async fn append_old(log: &Log, days: i64) {
    let last = log.head().await;
    let micros = chrono::Utc::now().timestamp_micros() - days * 86_400_000_000;
    let row = ChainedRow {
        id: last.seq + 1,
        ts: micros,
        who: "ann".to_owned(),
        role: "admin".to_owned(),
        address: String::new(),
        action: "clean up".to_owned(),
        parameters: "{}".to_owned(),
        outcome: "begun".to_owned(),
        result: None,
        ended: None,
    };
    let (seq, kind) = (last.seq + 1, "begun".to_owned());
    let mut link = Link { seq, ts: micros, kind, row_id: Some(row.id), detail: String::new(), hash: Vec::new() };
    link.hash = hash_of(&last.hash, &link, Some(&row)).to_vec();
    let at = format!("'1970-01-01Z'::timestamptz + {micros} * interval '1 microsecond'");
    let hash: String = link.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    log.sql
        .batch_execute(&format!(
            "INSERT INTO monitor_audit (id, ts, who, role, address, action, parameters, outcome) \
             VALUES ({0}, {at}, 'ann', 'admin', '', 'clean up', '{{}}', 'begun'); \
             INSERT INTO monitor_audit_chain (seq, ts, kind, row_id, hash) VALUES ({seq}, {at}, 'begun', {0}, '\\x{hash}')",
            row.id
        ))
        .await
        .unwrap();
}

#[tokio::test]
async fn retention_removes_old_rows_and_leaves_a_link() {
    let log = Log::new().await;
    for days in [40, 35, 20, 0] {
        append_old(&log, days).await;
    }
    let old_head = log.head().await;
    assert_eq!(audit::retain(&log.pool, 30).await.unwrap(), 2);
    assert_eq!(audit::retain(&log.pool, 30).await.unwrap(), 0, "and no link without a removal");
    let intact = log.verify(Some(old_head)).await.unwrap();
    assert_eq!((intact.chain.links, intact.chain.removed_through, intact.chain.head.seq), (3, 2, 5));
    assert_eq!(audit::retain(&log.pool, 10).await.unwrap(), 1);
    let intact = log.verify(None).await.unwrap();
    assert_eq!((intact.chain.links, intact.chain.removed_through, intact.chain.head.seq), (3, 3, 6));
    // More removed than the link says.
    let found = log.found_after("DELETE FROM monitor_audit_chain WHERE seq = 4; DELETE FROM monitor_audit").await;
    assert!(found.contains("link 4 is missing"), "{found}");
    let printed = command(&log.database, &["verify"]).1;
    assert!(printed.ends_with("Retention removed the links up to 3.\n"), "{printed}");
}

#[tokio::test]
async fn rows_from_before_the_chain_are_kept_and_reported_as_not_verified() {
    let log = Log::new().await;
    // The state before the migration.
    let back = include_str!("../../migrations/0016_audit_chain/down.sql");
    log.sql.batch_execute(back).await.unwrap();
    log.sql.batch_execute("DELETE FROM __diesel_schema_migrations WHERE version = '0016'").await.unwrap();
    let old = "INSERT INTO monitor_audit (ts, who, role, address, action, parameters, outcome) \
        SELECT now() - n * interval '10 days', 'ann', 'admin', '', 'clean up', '{}', 'done' FROM generate_series(0, 4) n";
    log.sql.batch_execute(old).await.unwrap();
    migrate::run(&log.database.url(), SOON).await.unwrap();
    let id = audit::begin(&log.pool, change("bo")).await.unwrap();
    let intact = log.verify(None).await.unwrap();
    assert_eq!((intact.chain.links, intact.older_rows), (1, 5));
    let (code, printed, _) = command(&log.database, &["verify"]);
    assert!(code == 0 && printed.ends_with("Not verified: 5 rows older than the chain.\n"), "{printed}");
    // They are protected from now on, and retention removes them.
    assert!(log.sql.batch_execute("DELETE FROM monitor_audit WHERE who = 'ann'").await.is_err());
    assert_eq!(audit::retain(&log.pool, 25).await.unwrap(), 2);
    assert_eq!(log.verify(None).await.unwrap().older_rows, 3);
    // What counts as older cannot be extended.
    let found =
        log.found_after("UPDATE monitor_audit_chain SET detail = '{\"last_id\":999,\"rows\":9}' WHERE seq = 0").await;
    assert!(found.contains("the start of the chain"), "{found}");
    audit::end(&log.pool, id, Outcome::Done, json!({})).await.unwrap();
    assert!(log.verify(None).await.is_ok());
}

#[tokio::test]
async fn monitors_that_write_at_once_through_a_pooler_extend_one_chain() {
    let log = Log::new().await;
    let pooler = Pgbouncer::start(log.database.port(), PoolMode::Transaction, 6);
    let url = log.database.url_through(pooler.port());
    let monitors = [pool(&url, SOON).unwrap(), pool(&url, SOON).unwrap()];
    let changes = (0..40_usize).map(|n| {
        let pool = &monitors[n % 2];
        async move {
            let id = audit::begin(pool, change(&format!("user {n}"))).await.unwrap();
            audit::end(pool, id, Outcome::Done, json!({"n": n})).await.unwrap();
            audit::record(pool, &[(change("recorded"), Outcome::Refused)]).await.unwrap();
        }
    });
    futures_util::future::join_all(changes).await;
    let intact = log.verify(None).await.unwrap();
    assert_eq!((intact.chain.links, intact.chain.head.seq), (120, 120));
}
