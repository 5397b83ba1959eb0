//! Examines a database for `doctor`: the server, the privileges of the role, and the existing tables and indexes. Runs in one
//! read-only transaction.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use diesel::sql_types::{Array, Bool, Double, Integer, Nullable, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::address;
use super::connection::{PgConnection, connect, connect_trouble, trouble};
use super::migrate::{self, FLEET_INDEXES, HISTORY_OF_MIGRATIONS};
use crate::fleet::reading::SourceTrouble;
use crate::tcp;

/// Tables of the fleet.
pub const FLEET_TABLES: [&str; 2] = ["shepherd_brain", "callbacks"];

/// Tables of the monitor.
pub const MONITOR_TABLES: [&str; 19] = [
    "monitor_alert_leader",
    "monitor_alert_outbox",
    "monitor_alerts",
    "monitor_audit",
    "monitor_audit_chain",
    "monitor_events",
    "monitor_janitor_passes",
    "monitor_latency_batches",
    "monitor_latency_days",
    "monitor_metric_days",
    "monitor_metrics",
    "monitor_previews",
    "monitor_query_counts",
    "monitor_recycle_bin",
    "monitor_sessions",
    "monitor_silences",
    "monitor_takeover",
    "monitor_task_latency",
    "monitor_users",
];

/// Minimum major version; older servers do not support the monitor's statements.
pub const LEAST_VERSION: i32 = 10;

/// Returns the host to which the password of `url` could be sent unencrypted if the server declines TLS; `None` if there is no
/// password, TLS is required, or the connection is local.
#[must_use]
pub fn password_in_clear(url: &str) -> Option<String> {
    use tokio_postgres::config::{Host, SslMode};

    let address = address::parse(url).ok()?;
    let config = &address.config;
    config.get_password()?;
    let may_be_clear = matches!(config.get_ssl_mode(), SslMode::Prefer | SslMode::Disable);
    let named = config.get_hosts().iter().find_map(|host| match host {
        Host::Tcp(name) => (!tcp::is_loopback(name)).then(|| name.clone()),
        #[cfg(unix)]
        Host::Unix(_) => None,
    });
    let addressed = config.get_hostaddrs().iter().find(|address| !address.is_loopback()).map(ToString::to_string);
    let elsewhere = if config.get_hostaddrs().is_empty() { named } else { addressed };
    elsewhere.filter(|_| may_be_clear)
}

/// Whether the server, or a pooler before it, has no database of this name. PgBouncer's errors have the code 08P01.
fn is_no_database(said: &str) -> bool {
    said.contains("(3D000)") || (said.contains("(08P01)") && said.contains("no such database"))
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotConnected {
    /// The error as the monitor reports it.
    pub trouble: SourceTrouble,
    /// The server is reachable but has no such database.
    pub no_such_database: bool,
}

/// Result of examining a database.
#[derive(Debug, Clone)]
pub struct Examined {
    /// Server and role; only the version if the server is too old.
    pub server: Server,
    /// Contents; `None` if the server is too old.
    pub inside: Option<Inside>,
    /// The connection pooler in between; `None` when there is none.
    pub pooler: Option<PoolMode>,
}

/// For how long a connection pooler gives a client the same session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Until it disconnects.
    Session,
    /// For a transaction.
    Transaction,
}

/// Properties of the server.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Server {
    /// Major version.
    #[diesel(sql_type = Integer)]
    pub version: i32,
    /// Version string.
    #[diesel(sql_type = Text)]
    pub version_text: String,
    /// It is a standby, so it is read-only.
    #[diesel(sql_type = Bool)]
    pub standby: bool,
    /// Transactions are read-only by default.
    #[diesel(sql_type = Bool)]
    pub read_only: bool,
    /// Time zone for this role and database.
    #[diesel(sql_type = Text)]
    pub time_zone: String,
    /// Autovacuum is on.
    #[diesel(sql_type = Bool)]
    pub autovacuum: bool,
    /// Name of the role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// The role is a superuser.
    #[diesel(sql_type = Bool)]
    pub superuser: bool,
    /// Name of the database.
    #[diesel(sql_type = Text)]
    pub database: String,
    /// Clock of the server, Unix seconds; see [`Inside::clock_ahead_sec`].
    #[diesel(sql_type = Double)]
    clock: f64,
}

#[cfg(test)]
impl Server {
    /// Returns a server without problems.
    pub(crate) fn example(version: i32) -> Self {
        Self {
            version,
            version_text: version.to_string(),
            standby: false,
            read_only: false,
            time_zone: "UTC".to_owned(),
            autovacuum: true,
            role: "postgres".to_owned(),
            superuser: false,
            database: "postgres".to_owned(),
            clock: 0.0,
        }
    }
}

/// Contents of the database.
#[derive(Debug, Clone)]
pub struct Inside {
    /// Seconds that its clock is ahead of this machine's; negative if behind.
    pub clock_ahead_sec: f64,
    /// Schema for new tables; `None` if there is none.
    pub schema: Option<String>,
    /// The role may create tables there.
    pub may_create: bool,
    /// The role may read the size of the write-ahead log.
    pub may_see_wal: bool,
    /// Existing tables of the fleet and the monitor.
    pub tables: Vec<Table>,
    /// Sequences of the monitor's tables that the role may not use.
    pub sequences_refused: Vec<String>,
    /// Indexes that the monitor adds to existing fleet tables: name, definition, whether it exists and is valid.
    pub indexes: Vec<(&'static str, &'static str, bool)>,
    /// Versions of applied migrations; `None` if there are none, or they may not be read.
    pub migrated: Option<Vec<String>>,
    /// Versions of the migrations in this binary.
    pub known_migrations: Vec<String>,
}

/// A table, with the privileges of the role.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Table {
    /// Name.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Privileges that the role lacks, of SELECT, INSERT, UPDATE and DELETE; of an append-only table, without those that
    /// the monitor does not use.
    #[diesel(sql_type = Array<Text>)]
    pub refused: Vec<String>,
    /// The role may alter it.
    #[diesel(sql_type = Bool)]
    pub owned: bool,
}

#[derive(QueryableByName)]
struct Rights {
    #[diesel(sql_type = Nullable<Text>)]
    schema: Option<String>,
    #[diesel(sql_type = Bool)]
    may_create: bool,
    #[diesel(sql_type = Bool)]
    may_see_wal: bool,
}

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Examines the database at `url`. `within` is the connect timeout.
///
/// # Errors
/// Why there is no connection.
pub async fn examine(url: &str, within: Duration) -> Result<Result<Examined, SourceTrouble>, NotConnected> {
    let connected = match tokio::time::timeout(within, connect(url.to_owned(), within)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err("timed out".to_owned()),
    };
    let mut connection = connected
        .map_err(|said| NotConnected { no_such_database: is_no_database(&said), trouble: connect_trouble(&said) })?;
    let pooler = match connection.is_through_pooler() {
        true => pool_mode(&mut connection, url, within).await,
        false => None,
    };
    Ok(look(&mut connection, pooler).await.map_err(|e| trouble(&e)))
}

/// Finds out what a pooler does: one client marks its session, and while another one has a transaction open, the first
/// looks whether the mark is still there.
async fn pool_mode(connection: &mut PgConnection, url: &str, within: Duration) -> Option<PoolMode> {
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let mut other = connect(url.to_owned(), within).await.ok()?;
    let looking = async {
        set_mark(connection, &mark).await?;
        other.batch_execute("BEGIN").await?;
        let others = marked(&mut other).await? == mark;
        Ok::<bool, diesel::result::Error>(!others && marked(connection).await? == mark)
    };
    let kept = tokio::time::timeout(within, looking).await;
    // A pool of one session has none left for the first while the other has its transaction.
    let is_session = matches!(kept, Ok(Ok(true)));
    if is_session {
        drop(set_mark(connection, "").await);
    }
    Some(if is_session { PoolMode::Session } else { PoolMode::Transaction })
}

async fn set_mark(connection: &mut PgConnection, mark: &str) -> Result<(), diesel::result::Error> {
    connection.batch_execute(&format!("SELECT set_config('shepherd_monitor.mark', '{mark}', false)")).await
}

async fn marked(connection: &mut PgConnection) -> Result<String, diesel::result::Error> {
    let mark: Named = sql_query("SELECT coalesce(current_setting('shepherd_monitor.mark', true), '') AS name")
        .get_result(connection)
        .await?;
    Ok(mark.name)
}

async fn look(connection: &mut PgConnection, pooler: Option<PoolMode>) -> Result<Examined, diesel::result::Error> {
    connection.batch_execute("BEGIN READ ONLY").await?;
    let before = unix();
    let server: Server = sql_query(
        "SELECT current_setting('server_version_num')::int / 10000 AS version, \
         current_setting('is_superuser') = 'on' AS superuser, \
         current_setting('server_version') AS version_text, pg_is_in_recovery() AS standby, \
         current_setting('default_transaction_read_only') = 'on' AS read_only, \
         current_setting('TimeZone') AS time_zone, current_setting('autovacuum') = 'on' AS autovacuum, \
         current_user::text AS role, current_database()::text AS database, \
         extract(epoch FROM clock_timestamp())::float8 AS clock",
    )
    .get_result(connection)
    .await?;
    let clock_ahead_sec = server.clock - f64::midpoint(before, unix());
    if server.version < LEAST_VERSION {
        return Ok(Examined { server, inside: None, pooler });
    }
    let rights: Rights = sql_query(
        "SELECT current_schema()::text AS schema, \
         coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create, \
         has_function_privilege('pg_ls_waldir()', 'execute') AS may_see_wal",
    )
    .get_result(connection)
    .await?;
    let tables = tables(connection).await?;
    let sequences_refused = sequences_refused(connection).await?;
    let indexes = indexes(connection, &tables).await?;
    let migrated = migrated(connection).await?;
    let inside = Inside {
        clock_ahead_sec,
        schema: rights.schema,
        may_create: rights.may_create,
        may_see_wal: rights.may_see_wal,
        tables,
        sequences_refused,
        indexes,
        migrated,
        known_migrations: migrate::known(),
    };
    Ok(Examined { server, inside: Some(inside), pooler })
}

async fn tables(connection: &mut AsyncPgConnection) -> Result<Vec<Table>, diesel::result::Error> {
    let names: Vec<&str> = FLEET_TABLES.iter().chain(&MONITOR_TABLES).copied().collect();
    sql_query(
        "SELECT t.name, pg_has_role(c.relowner, 'USAGE') AS owned, \
         ARRAY(SELECT p FROM unnest(CASE t.name WHEN 'monitor_audit' THEN ARRAY['SELECT', 'INSERT', 'UPDATE'] \
         WHEN 'monitor_audit_chain' THEN ARRAY['SELECT', 'INSERT'] \
         ELSE ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END) AS p \
         WHERE NOT has_table_privilege(c.oid, p)) AS refused \
         FROM unnest($1) AS t (name) JOIN pg_class c ON c.oid = to_regclass(t.name) ORDER BY t.name",
    )
    .bind::<Array<Text>, _>(names)
    .load(connection)
    .await
}

async fn sequences_refused(connection: &mut AsyncPgConnection) -> Result<Vec<String>, diesel::result::Error> {
    let refused: Vec<Named> = sql_query(
        "SELECT s.relname::text AS name FROM unnest($1) AS t (name) \
         JOIN pg_depend d ON d.refobjid = to_regclass(t.name) AND d.deptype = 'a' \
         JOIN pg_class s ON s.oid = d.objid \
         WHERE CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') ELSE false END \
         ORDER BY s.relname",
    )
    .bind::<Array<Text>, _>(MONITOR_TABLES.to_vec())
    .load(connection)
    .await?;
    Ok(refused.into_iter().map(|sequence| sequence.name).collect())
}

async fn indexes(
    connection: &mut AsyncPgConnection,
    tables: &[Table],
) -> Result<Vec<(&'static str, &'static str, bool)>, diesel::result::Error> {
    let names: Vec<&str> = FLEET_INDEXES.iter().map(|(name, _)| *name).collect();
    let usable: Vec<Named> = sql_query(
        "SELECT i.name FROM unnest($1) AS i (name) JOIN pg_index x ON x.indexrelid = to_regclass(i.name) \
         WHERE x.indisvalid",
    )
    .bind::<Array<Text>, _>(names)
    .load(connection)
    .await?;
    let on_a_table = |on: &str| tables.iter().any(|table| Some(table.name.as_str()) == on.split(' ').next());
    let wanted = FLEET_INDEXES.iter().filter(|(_, on)| on_a_table(on));
    Ok(wanted.map(|(name, on)| (*name, *on, usable.iter().any(|index| index.name == *name))).collect())
}

async fn migrated(connection: &mut AsyncPgConnection) -> Result<Option<Vec<String>>, diesel::result::Error> {
    let there: Vec<Named> =
        sql_query("SELECT $1 AS name WHERE coalesce(has_table_privilege(to_regclass($1)::oid, 'SELECT'), false)")
            .bind::<Text, _>(HISTORY_OF_MIGRATIONS)
            .load(connection)
            .await?;
    if there.is_empty() {
        return Ok(None);
    }
    let run: Vec<Named> = sql_query(format!("SELECT version AS name FROM {HISTORY_OF_MIGRATIONS} ORDER BY version"))
        .load(connection)
        .await?;
    Ok(Some(run.into_iter().map(|row| row.name).collect()))
}

fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::password_in_clear;

    #[test]
    fn a_password_goes_in_clear_only_where_nothing_says_that_it_must_not() {
        for url in [
            "postgres://me:pw@db/x",
            "postgres://me:pw@db/x?sslmode=prefer",
            "postgres://me:pw@10.0.0.1/x?sslmode=disable",
            // Parameters that the driver does not know, and one that looks like another.
            "postgres://me:pw@db/x?gssencmode=disable&target_session_attrs=primary",
            "postgres://me:sslmode=verify-full@db/x",
            "host=localhost hostaddr=10.0.0.1 user=me password=pw",
        ] {
            assert!(password_in_clear(url).is_some(), "{url}");
        }
        for url in [
            "postgres://me@db/x",
            "postgres://me:pw@localhost/x",
            "postgres://me:pw@127.0.0.1/x",
            "postgres://me:pw@[::1]/x",
            "postgres://me:pw@db/x?sslmode=require",
            "postgres://me:pw@db/x?sslmode=verify-full",
            "host=/run/postgresql user=me password=pw",
        ] {
            assert_eq!(password_in_clear(url), None, "{url}");
        }
    }
}
