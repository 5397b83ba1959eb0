//! Checks of Postgres.

use super::redis::{clock, names_no_host};
use super::report::{Finding, count, fine, list, worth_knowing, wrong};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::postgres::connection::PERMISSION_DENIED;
use crate::postgres::diagnostics::{
    Examined, FLEET_TABLES, Inside, LEAST_VERSION, MONITOR_TABLES, NotConnected, PoolMode, Server, Table,
};
use crate::tls;

const GRANT: &str = "grant it to the role of DATABASE_URL: run GRANT EXECUTE ON FUNCTION NAME TO ROLE, or GRANT SELECT ON TABLE NAME TO ROLE";

/// Returns all findings about an examined database.
#[must_use]
pub fn findings(examined: &Examined) -> Vec<Finding> {
    let server = &examined.server;
    let mut findings = vec![version(server)];
    let Some(inside) = &examined.inside else { return findings };
    findings.push(writable(server));
    findings.push(pooler(examined.pooler));
    findings.push(clock("postgres.clock", "Postgres", inside.clock_ahead_sec));
    findings.push(if server.autovacuum {
        fine("postgres.autovacuum", "autovacuum is on")
    } else {
        wrong(
            "postgres.autovacuum",
            "autovacuum is off",
            "space of deleted history and queries is never reclaimed, and the tables grow without bound",
            "run ALTER SYSTEM SET autovacuum = on; then SELECT pg_reload_conf()",
        )
    });
    findings.push(if server.superuser {
        worth_knowing(
            "postgres.superuser",
            format!("role {} is a superuser", server.role),
            "with its password, an attacker can change the audit log, read every database and run programs on the server",
            "create a role that owns the tables of the monitor, and set it in DATABASE_URL or POSTGRES_USER",
        )
    } else {
        fine("postgres.superuser", format!("role {} is not a superuser", server.role))
    });
    let there = |names: &[&str]| -> Vec<&Table> {
        inside.tables.iter().filter(|table| names.contains(&table.name.as_str())).collect()
    };
    let (fleets, own) = (there(&FLEET_TABLES), there(&MONITOR_TABLES));
    findings.extend(of_the_fleet(server, inside, &fleets));
    findings.extend(of_the_monitor(server, inside, &own));
    if !inside.may_see_wal {
        findings.push(worth_knowing(
            "postgres.wal",
            format!("role {} cannot read the size of the write-ahead log", server.role),
            "the WAL size is shown as unknown and not included in disk usage",
            format!("GRANT pg_monitor TO {}", server.role),
        ));
    }
    findings
}

/// Returns the finding for a failed connection.
#[must_use]
pub fn not_reached(not_connected: &NotConnected) -> Finding {
    let trouble = &not_connected.trouble;
    let means = "without Postgres there is no history, no query data and no silences, and changes are rejected";
    if not_connected.no_such_database {
        return wrong(
            "postgres.database",
            trouble.detail.clone(),
            means,
            "create the database, or set another one in DATABASE_URL",
        );
    }
    let said = &trouble.detail;
    let has = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
    if let Some(failure) = tls::explain(said, &tls::POSTGRES) {
        let id = if trouble.kind == TroubleKind::Refused { "postgres.login" } else { "postgres.reached" };
        return wrong(id, said.clone(), means, failure.remedy);
    }
    let (id, remedy) = match trouble.kind {
        _ if said.contains(PERMISSION_DENIED) => ("postgres.permission", GRANT),
        _ if said.contains("password missing") => {
            ("postgres.login", "set POSTGRES_PASSWORD (or POSTGRES_PASSWORD_FILE), or the password in DATABASE_URL")
        }
        _ if has(&["(53300)", "no more connections allowed", "too many clients", "too many connections"]) => (
            "postgres.connections",
            "close connections that are not needed, or raise max_connections of Postgres (max_client_conn of PgBouncer)",
        ),
        _ if said.contains("statement pooling mode") => {
            ("postgres.pooler", "set pool_mode = transaction or session in PgBouncer: the monitor needs transactions")
        }
        TroubleKind::Refused => (
            "postgres.login",
            "check POSTGRES_USER and POSTGRES_PASSWORD, or DATABASE_URL, and the client authentication rules in \
             pg_hba.conf",
        ),
        TroubleKind::TimedOut => {
            ("postgres.reached", "check whether the server is unresponsive or a firewall drops the packets")
        }
        TroubleKind::Loading => ("postgres.reached", "wait until the server has started"),
        _ if names_no_host(said) => (
            "postgres.reached",
            "correct the host name in DATABASE_URL or POSTGRES_HOST, or check the DNS configuration of this machine",
        ),
        _ if said.contains("database does not allow writes") => {
            ("postgres.reached", "add the primary to DATABASE_URL: target_session_attrs requires a writable server")
        }
        _ => ("postgres.reached", "start the server, or correct DATABASE_URL (or POSTGRES_HOST and POSTGRES_PORT)"),
    };
    wrong(id, trouble.detail.clone(), means, remedy)
}

/// Returns the finding for a database that could not be examined.
#[must_use]
pub fn not_read(trouble: &SourceTrouble) -> Finding {
    let (id, remedy) = if trouble.detail.contains(PERMISSION_DENIED) {
        ("postgres.permission", GRANT)
    } else {
        ("postgres.reached", "check whether the server is unresponsive; see its log")
    };
    wrong(id, trouble.detail.clone(), "Postgres could not be checked", remedy)
}

fn version(server: &Server) -> Finding {
    if server.version < LEAST_VERSION {
        return wrong(
            "postgres.too_old",
            format!("Postgres {} is too old", server.version_text),
            "it does not support the SQL that the monitor uses",
            "upgrade to a supported version",
        );
    }
    fine("postgres.version", format!("connected to Postgres {} as role {}", server.version_text, server.role))
}

fn writable(server: &Server) -> Finding {
    if server.standby {
        return wrong(
            "postgres.standby",
            "this Postgres is a read-only standby",
            "no history, events or alerts can be stored",
            "set DATABASE_URL (or POSTGRES_HOST) to the primary",
        );
    }
    if server.read_only {
        return wrong(
            "postgres.read_only",
            "transactions of this role are read-only (default_transaction_read_only)",
            "no history, events or alerts can be stored",
            format!("run ALTER ROLE {} RESET default_transaction_read_only, or ALTER DATABASE", server.role),
        );
    }
    fine("postgres.writable", "Postgres is a writable primary")
}

fn pooler(mode: Option<PoolMode>) -> Finding {
    const ID: &str = "postgres.pooler";
    match mode {
        None => fine(ID, "no connection pooler is between the monitor and Postgres"),
        Some(PoolMode::Session) => fine(
            ID,
            "a connection pooler in session mode is between the monitor and Postgres; it works with it, and sets no \
             statement timeout",
        ),
        Some(PoolMode::Transaction) => fine(
            ID,
            "a connection pooler in transaction mode is between the monitor and Postgres; it works with it: statements \
             go unnamed, migrations hold their lock for one transaction, and no statement timeout is set",
        ),
    }
}

fn of_the_fleet(server: &Server, inside: &Inside, tables: &[&Table]) -> Vec<Finding> {
    if tables.len() < FLEET_TABLES.len() {
        let missing = FLEET_TABLES.iter().filter(|name| !tables.iter().any(|table| table.name == **name));
        return vec![if tables.is_empty() {
            fine("postgres.fleet", "no query tables (shepherd_brain, callbacks): this fleet has no queries")
        } else {
            worth_knowing(
                "postgres.fleet",
                format!("table {} of the fleet is missing", list(missing.map(|name| (*name).to_owned()))),
                "queries and callbacks are neither shown nor cleaned up",
                "create it, or set search_path to the schema that contains it",
            )
        }];
    }
    let mut findings = Vec::new();
    if server.time_zone == "UTC" || server.time_zone == "Etc/UTC" {
        findings.push(fine("postgres.time_zone", "query timestamps (without time zone) are in UTC"));
    } else {
        findings.push(worth_knowing(
            "postgres.time_zone",
            format!("the time zone of this database is {}", server.time_zone),
            "query timestamps have no time zone and are interpreted in this one: clients that write in another zone \
             appear shifted, and an hour is ambiguous when daylight saving time ends",
            format!("run ALTER DATABASE {} SET timezone = 'UTC' if the fleet writes UTC", server.database),
        ));
    }
    let needed = ["SELECT", "UPDATE", "DELETE"];
    findings.extend(refused(
        server,
        "postgres.may_tend",
        tables,
        &needed,
        "queries are only partially shown or cleaned up",
    ));
    let missing: Vec<&(&str, &str, bool)> = inside.indexes.iter().filter(|(.., usable)| !usable).collect();
    if missing.is_empty() {
        findings.push(fine("postgres.indexes", "the fleet's tables have all required indexes"));
    } else {
        let owned = tables.iter().all(|table| table.owned);
        let statements = missing.iter().map(|(name, on, _)| format!("CREATE INDEX CONCURRENTLY {name} ON {on}"));
        findings.push(worth_knowing(
            "postgres.indexes",
            format!(
                "the fleet's tables lack a valid {} {}",
                if missing.len() == 1 { "index" } else { "indexes" },
                list(missing.iter().map(|(name, ..)| (*name).to_owned()))
            ),
            "the monitor scans whole tables, and polls less often the longer that takes",
            if owned {
                "start the monitor to create them".to_owned()
            } else {
                format!("as owner of the tables, run: {}", statements.collect::<Vec<_>>().join("; "))
            },
        ));
    }
    findings
}

fn of_the_monitor(server: &Server, inside: &Inside, tables: &[&Table]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let run = inside.migrated.as_deref().unwrap_or_default();
    let pending: Vec<String> =
        inside.known_migrations.iter().filter(|version| !run.contains(version)).cloned().collect();
    let unknown: Vec<String> =
        run.iter().filter(|version| !inside.known_migrations.contains(version)).cloned().collect();
    let schema = inside.schema.as_deref().unwrap_or("public");
    if !pending.is_empty() && !inside.may_create {
        findings.push(wrong(
            "postgres.may_create",
            match &inside.schema {
                Some(schema) => format!("role {} cannot create tables in schema {schema}", server.role),
                None => format!("role {} has no schema to create tables in", server.role),
            },
            format!("the monitor cannot run its migrations ({} pending)", count(pending.len(), "migration")),
            format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {}", server.role),
        ));
    } else if !pending.is_empty() {
        findings.push(worth_knowing(
            "postgres.migrations",
            if run.is_empty() {
                "the monitor's tables do not exist yet".to_owned()
            } else {
                format!("the monitor's schema is not up to date ({} pending)", count(pending.len(), "migration"))
            },
            "no history, audit log or alert state is stored until they are created",
            "start the monitor to create them",
        ));
    }
    if !unknown.is_empty() {
        findings.push(worth_knowing(
            "postgres.newer",
            format!("the database was migrated by a newer version of the monitor (migrations {})", list(unknown)),
            "this version may not be compatible with the schema",
            "run that version or a later one",
        ));
    }
    let missing: Vec<String> = MONITOR_TABLES
        .iter()
        .filter(|name| !tables.iter().any(|table| table.name == **name))
        .map(|name| (*name).to_owned())
        .collect();
    // All migrations were applied, so the tables were deleted afterwards.
    if pending.is_empty() && !missing.is_empty() {
        findings.push(wrong(
            "postgres.tables",
            format!("{} of the monitor missing: {}", count(missing.len(), "table"), list(missing)),
            "data for them cannot be stored, and they are not recreated",
            "restore them from a backup, or check search_path",
        ));
    }
    let all = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    findings.extend(refused(server, "postgres.may_write", tables, &all, "history, events or alerts are not stored"));
    if !inside.sequences_refused.is_empty() {
        findings.push(wrong(
            "postgres.may_number",
            format!("role {} cannot use {}", server.role, list(inside.sequences_refused.iter().cloned())),
            "rows that use it cannot be stored",
            format!("GRANT USAGE ON SEQUENCE {} TO {}", inside.sequences_refused.join(", "), server.role),
        ));
    }
    if findings.is_empty() {
        findings.push(fine("postgres.tables", "the monitor's schema is up to date and writable"));
    }
    findings
}

/// Returns the finding for missing table privileges.
fn refused(
    server: &Server,
    id: &'static str,
    tables: &[&Table],
    needed: &[&str],
    means: &'static str,
) -> Option<Finding> {
    let lacks = |table: &&&Table| table.refused.iter().any(|right| needed.contains(&right.as_str()));
    let lacking: Vec<&&Table> = tables.iter().filter(lacks).collect();
    let missing = needed.iter().filter(|right| lacking.iter().any(|table| table.refused.iter().any(|r| r == *right)));
    let missing: Vec<String> = missing.map(|right| (*right).to_owned()).collect();
    (!lacking.is_empty()).then(|| {
        let names: Vec<&str> = lacking.iter().map(|table| table.name.as_str()).collect();
        wrong(
            id,
            format!(
                "role {} cannot {} in {}",
                server.role,
                list(missing.clone()),
                list(names.iter().map(|name| (*name).to_owned()))
            ),
            means,
            format!("GRANT {} ON {} TO {}", missing.join(", "), names.join(", "), server.role),
        )
    })
}
