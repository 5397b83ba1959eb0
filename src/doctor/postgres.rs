//! What is wrong with a Postgres for this use.

use super::redis::clock;
use super::report::{Finding, count, fine, list, worth_knowing, wrong};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::postgres::examine::{
    Examined, FLEET_TABLES, Inside, LEAST_VERSION, MONITOR_TABLES, NotConnected, Server, Table,
};

/// All findings about a database that was looked over.
#[must_use]
pub fn findings(examined: &Examined) -> Vec<Finding> {
    let server = &examined.server;
    let mut findings = vec![version(server)];
    let Some(inside) = &examined.inside else { return findings };
    findings.push(writable(server));
    findings.push(clock("postgres.clock", "Postgres", inside.clock_ahead_sec));
    findings.push(if server.autovacuum {
        fine("postgres.autovacuum", "Postgres cleans up behind deletions (autovacuum)")
    } else {
        wrong(
            "postgres.autovacuum",
            "autovacuum is off",
            "the space of old history and of finished queries is never free again, and the tables grow for ever",
            "ALTER SYSTEM SET autovacuum = on, then SELECT pg_reload_conf()",
        )
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
            format!("role {} may not see how large the write-ahead log is", server.role),
            "that figure is an em dash, and the disk figures leave it out",
            format!("GRANT pg_monitor TO {}", server.role),
        ));
    }
    findings
}

/// That there is no connection.
#[must_use]
pub fn not_reached(not_connected: &NotConnected) -> Finding {
    let trouble = &not_connected.trouble;
    let means = "without Postgres there is no history, no queries, no silences, and nobody may change anything";
    if not_connected.no_such_database {
        return wrong(
            "postgres.database",
            trouble.detail.clone(),
            means,
            "CREATE DATABASE with that name, or set another in DATABASE_URL",
        );
    }
    let (id, remedy) = match trouble.kind {
        TroubleKind::Refused => (
            "postgres.login",
            "set POSTGRES_USER and POSTGRES_PASSWORD, or DATABASE_URL, as the server knows them; pg_hba.conf says who \
             may come from where",
        ),
        TroubleKind::TimedOut => {
            ("postgres.reached", "see whether the server hangs or a firewall swallows what is sent to it")
        }
        TroubleKind::Loading => ("postgres.reached", "wait until it has started"),
        _ => (
            "postgres.reached",
            "start the server, or set DATABASE_URL (or POSTGRES_HOST and POSTGRES_PORT) to where it is",
        ),
    };
    wrong(id, trouble.detail.clone(), means, remedy)
}

/// That it could not be looked over after all.
#[must_use]
pub fn not_read(trouble: &SourceTrouble) -> Finding {
    wrong(
        "postgres.reached",
        trouble.detail.clone(),
        "it could not be looked over",
        "see whether the server hangs; its log says what failed",
    )
}

fn version(server: &Server) -> Finding {
    if server.version < LEAST_VERSION {
        return wrong(
            "postgres.too_old",
            format!("Postgres {} is too old", server.version_text),
            "it does not understand the monitor's statements",
            "upgrade to a version that still gets fixes",
        );
    }
    fine("postgres.version", format!("Postgres {} answers, as role {}", server.version_text, server.role))
}

fn writable(server: &Server) -> Finding {
    if server.standby {
        return wrong(
            "postgres.standby",
            "this Postgres is a standby, which may only be read",
            "nothing can be written down: no history, no events, no alerts",
            "set DATABASE_URL (or POSTGRES_HOST) to the primary",
        );
    }
    if server.read_only {
        return wrong(
            "postgres.read_only",
            "transactions of this role may only read (default_transaction_read_only)",
            "nothing can be written down: no history, no events, no alerts",
            format!("ALTER ROLE {} RESET default_transaction_read_only, or for the database", server.role),
        );
    }
    fine("postgres.writable", "Postgres is a primary and may be written")
}

fn of_the_fleet(server: &Server, inside: &Inside, tables: &[&Table]) -> Vec<Finding> {
    if tables.len() < FLEET_TABLES.len() {
        let missing = FLEET_TABLES.iter().filter(|name| !tables.iter().any(|table| table.name == **name));
        return vec![if tables.is_empty() {
            fine(
                "postgres.fleet",
                "there are no queries here (no shepherd_brain, no callbacks): a fleet without queries",
            )
        } else {
            worth_knowing(
                "postgres.fleet",
                format!("the fleet's table {} is missing", list(missing.map(|name| (*name).to_owned()))),
                "queries and callbacks are not shown, and not cleaned up",
                "make it as the fleet does, or set the schema with search_path",
            )
        }];
    }
    let mut findings = Vec::new();
    if server.time_zone == "UTC" || server.time_zone == "Etc/UTC" {
        findings.push(fine("postgres.time_zone", "the times of queries, which carry no zone, are UTC"));
    } else {
        findings.push(worth_knowing(
            "postgres.time_zone",
            format!("the time zone of this database is {}", server.time_zone),
            "the times of queries carry no zone and are read in this one: who writes them in another looks early or late, \
             and where clocks change an hour comes twice",
            format!("ALTER DATABASE {} SET timezone = 'UTC', if the fleet writes UTC", server.database),
        ));
    }
    let needed = ["SELECT", "UPDATE", "DELETE"];
    findings.extend(refused(
        server,
        "postgres.may_tend",
        tables,
        &needed,
        "queries are shown or cleaned up only in part",
    ));
    let missing: Vec<&(&str, &str, bool)> = inside.indexes.iter().filter(|(.., usable)| !usable).collect();
    if missing.is_empty() {
        findings.push(fine("postgres.indexes", "the fleet's tables have the indexes that the monitor needs"));
    } else {
        let owned = tables.iter().all(|table| table.owned);
        let statements = missing.iter().map(|(name, on, _)| format!("CREATE INDEX CONCURRENTLY {name} ON {on}"));
        findings.push(worth_knowing(
            "postgres.indexes",
            format!(
                "the fleet's tables have no usable {} {}",
                if missing.len() == 1 { "index" } else { "indexes" },
                list(missing.iter().map(|(name, ..)| (*name).to_owned()))
            ),
            "probes read whole tables, and are made less often the longer they take",
            if owned {
                "start the monitor, which makes them".to_owned()
            } else {
                format!("let the tables' owner run: {}", statements.collect::<Vec<_>>().join("; "))
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
                Some(schema) => format!("role {} may not make tables in the schema {schema}", server.role),
                None => format!("role {} has no schema to make tables in", server.role),
            },
            format!("the monitor cannot bring its tables up to date ({} pending)", count(pending.len(), "migration")),
            format!("GRANT CREATE ON SCHEMA {schema} TO {}", server.role),
        ));
    } else if !pending.is_empty() {
        findings.push(worth_knowing(
            "postgres.migrations",
            if run.is_empty() {
                "the monitor has no tables here yet".to_owned()
            } else {
                format!("the monitor's tables are not up to date ({} pending)", count(pending.len(), "migration"))
            },
            "there is no history, no audit and no alert state until they are made",
            "start the monitor, which makes them",
        ));
    }
    if !unknown.is_empty() {
        findings.push(worth_knowing(
            "postgres.newer",
            format!("a newer monitor has been at work here (migrations {})", list(unknown)),
            "this one may not understand its tables",
            "run that version, or a later one",
        ));
    }
    let missing: Vec<String> = MONITOR_TABLES
        .iter()
        .filter(|name| !tables.iter().any(|table| table.name == **name))
        .map(|name| (*name).to_owned())
        .collect();
    // Its migrations say that they were made.
    if pending.is_empty() && !missing.is_empty() {
        findings.push(wrong(
            "postgres.tables",
            format!("{} of the monitor's vanished: {}", count(missing.len(), "table"), list(missing)),
            "what belongs there cannot be stored, and they are not made again",
            "restore them from a backup, or see whether search_path leads elsewhere",
        ));
    }
    let all = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    findings.extend(refused(server, "postgres.may_write", tables, &all, "history, events or alerts are not stored"));
    if !inside.sequences_refused.is_empty() {
        findings.push(wrong(
            "postgres.may_number",
            format!("role {} may not use {}", server.role, list(inside.sequences_refused.iter().cloned())),
            "rows that are numbered by it are not stored",
            format!("GRANT USAGE ON SEQUENCE {} TO {}", inside.sequences_refused.join(", "), server.role),
        ));
    }
    if findings.is_empty() {
        findings.push(fine("postgres.tables", "the monitor's tables are up to date, and it may write them"));
    }
    findings
}

/// What this role may not do with tables.
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
                "role {} may not {} in {}",
                server.role,
                list(missing.clone()),
                list(names.iter().map(|name| (*name).to_owned()))
            ),
            means,
            format!("GRANT {} ON {} TO {}", missing.join(", "), names.join(", "), server.role),
        )
    })
}
