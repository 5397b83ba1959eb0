//! `shepherd-monitor audit`: verifies the audit log and exports it.
//!
//! [`audit_chain`](crate::access::audit_chain) says what the chain proves; [`audit_trail`] reads it.

use std::io::{self, ErrorKind};

use chrono::{DateTime, NaiveDate, Utc};
use clap::{Arg, ArgMatches, Command};

use super::{flags, output, runtime, settings};
use crate::access::audit_chain::Head;
use crate::alerting::file;
use crate::doctor::report::count;
use crate::fleet::reading::SourceTrouble;
use crate::postgres::audit_trail::{self, ExportedRow, Intact};
use crate::postgres::connection::{self, PgPool};
use crate::printable::{Escaped, Lines};

/// Columns of the CSV format.
const COLUMNS: [&str; 12] =
    ["id", "ts", "who", "role", "address", "action", "parameters", "outcome", "result", "ended", "seq", "hash"];

/// The subcommand with its own subcommands; each takes the Postgres settings.
pub(super) fn command() -> Command {
    let postgres = || flags(|entry| entry.group == "Postgres");
    let head = Arg::new("head")
        .long("head")
        .value_name("SEQ:HASH")
        .value_parser(|text: &str| text.parse::<Head>())
        .help("A position recorded earlier, as printed by `audit export`; fails unless the chain contains it");
    let time = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("TIME").value_parser(time).help(help)
    };
    let format = Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .default_value("jsonl")
        .value_parser(["jsonl", "csv"])
        .help("Output format: one JSON object per line, or CSV with a header");
    Command::new("audit")
        .about("Verify or export the audit log")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("verify")
                .about("Verify the hash chain of the audit log; exits with 1 at the first change that was not recorded")
                .after_help(
                    "Detects rows that were changed, removed, inserted or reordered. It cannot detect that the newest \
                     rows were removed, or that the whole chain was rewritten, unless --head names a position that was \
                     recorded elsewhere.",
                )
                .arg(head)
                .args(postgres()),
        )
        .subcommand(
            Command::new("export")
                .about("Print the audit log, oldest first")
                .after_help(
                    "TIME is a date (2026-11-30), a time (2026-11-30T08:00:00Z), Unix seconds, or relative to now \
                     (7d, 12h). The end of the hash chain is printed on standard error: record it outside of the \
                     database, for `audit verify --head`.",
                )
                .arg(time("since", "Only changes requested at this time or later"))
                .arg(time("until", "Only changes requested before this time"))
                .arg(format)
                .args(postgres()),
        )
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let expected = || "expected a date, an RFC 3339 time, Unix seconds, or a duration such as 7d".to_owned();
    if let Ok(seconds) = text.parse::<i64>() {
        return DateTime::from_timestamp(seconds, 0).ok_or_else(expected);
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    if let Some(midnight) = text.parse::<NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0)) {
        return Ok(midnight.and_utc());
    }
    let ago = file::duration(text).and_then(|ago| chrono::TimeDelta::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago)).ok_or_else(expected)
}

/// Executes the command and prints the result.
///
/// # Errors
/// If the audit log was changed, or cannot be read.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let (verb, given) = given.subcommand().ok_or("no audit command given")?;
    let settings = settings(given)?;
    let pool = connection::pool(settings.database_url.reveal(), settings.pool_timeout).map_err(|e| e.detail)?;
    let detail = |trouble: SourceTrouble| trouble.detail;
    if verb == "verify" {
        let wanted = given.get_one::<Head>("head").cloned();
        let verified = runtime()?.block_on(audit_trail::verify(&pool, wanted)).map_err(detail)?;
        let intact = verified.map_err(|broken| format!("the audit log was changed: {broken}"))?;
        return output::print(&as_text(&intact));
    }
    let csv = given.get_one::<String>("format").is_some_and(|format| format == "csv");
    let range = ["since", "until"].map(|name| given.get_one::<DateTime<Utc>>(name).copied());
    match runtime()?.block_on(export(&pool, range, csv)) {
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Failure::Output(error)) => Err(error.to_string()),
        Err(Failure::Postgres(trouble)) => Err(trouble.detail),
        Ok(()) => Ok(()),
    }
}

fn as_text(Intact { chain, older_rows }: &Intact) -> Lines {
    let links = count(usize::try_from(chain.links).unwrap_or(usize::MAX), "link");
    let mut text = Lines::default();
    text.add(format_args!("The audit log is unchanged: {links} verified, head {}.", chain.head));
    if chain.removed_through > 0 {
        text.add(format_args!("Retention removed the links up to {}.", chain.removed_through));
    }
    if let Some(rows) = usize::try_from(*older_rows).ok().filter(|rows| *rows > 0) {
        text.add(format_args!("Not verified: {} older than the chain.", count(rows, "row")));
    }
    text
}

enum Failure {
    Postgres(SourceTrouble),
    Output(io::Error),
}

/// Prints page by page, so that memory is bounded.
async fn export(pool: &PgPool, [since, until]: [Option<DateTime<Utc>>; 2], csv: bool) -> Result<(), Failure> {
    let mut document = output::Stream::new();
    if csv {
        document.line(&COLUMNS.join(",")).map_err(Failure::Output)?;
    }
    let (mut after, mut exported) = (i64::MIN, 0);
    loop {
        let rows = audit_trail::page(pool, after, since, until).await.map_err(Failure::Postgres)?;
        let Some(last) = rows.last() else { break };
        after = last.id;
        exported += rows.len();
        for row in &rows {
            let line = if csv { as_csv(row) } else { serde_json::to_string(row).unwrap_or_default() };
            document.line(&line).map_err(Failure::Output)?;
        }
    }
    document.finish().map_err(Failure::Output)?;
    let head = audit_trail::head(pool).await.map_err(Failure::Postgres)?;
    let head = head.map_or_else(|| "none".to_owned(), |head| head.to_string());
    output::detail(format_args!("shepherd-monitor: exported {}; head of the chain: {head}", count(exported, "row")));
    Ok(())
}

/// Formats a row according to RFC 4180; NULL is an empty field. Control characters are escaped, and a text that a
/// spreadsheet would take for a formula is preceded by an apostrophe: users choose their names.
fn as_csv(row: &ExportedRow) -> String {
    let json = |value: &Option<Box<serde_json::value::RawValue>>| {
        value.as_ref().map_or_else(String::new, |value| value.get().to_owned())
    };
    let fields = [
        row.id.to_string(),
        row.ts.clone(),
        row.who.clone(),
        row.role.clone(),
        row.address.clone(),
        row.action.clone(),
        json(&row.parameters),
        row.outcome.clone(),
        json(&row.result),
        row.ended.clone().unwrap_or_default(),
        row.seq.map(|seq| seq.to_string()).unwrap_or_default(),
        row.hash.clone().unwrap_or_default(),
    ];
    let quoted = |field: &String| {
        let field = Escaped(field).to_string();
        let formula = if field.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
        match field.contains(['"', ',']) {
            true => format!("\"{formula}{}\"", field.replace('"', "\"\"")),
            false => format!("{formula}{field}"),
        }
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_absolute_or_relative() {
        let at = |text: &str| time(text).map(|time| time.timestamp());
        assert_eq!(at("2026-11-30"), at("2026-11-30T01:00:00+01:00"));
        assert_eq!(at("1795996800"), at("2026-11-30"));
        let day_ago = Utc::now().timestamp() - at("1d").unwrap();
        assert!((86_400..86_410).contains(&day_ago), "{day_ago}");
        assert!(at("yesterday").is_err());
    }

    #[test]
    fn csv_fields_are_quoted_where_needed() {
        let row = ExportedRow {
            id: 7,
            ts: "t".to_owned(),
            who: "=a \"b\", c\r\nd".to_owned(),
            role: "admin".to_owned(),
            address: String::new(),
            action: "x".to_owned(),
            parameters: serde_json::value::RawValue::from_string(r#"{"a":1}"#.to_owned()).ok(),
            outcome: "begun".to_owned(),
            result: None,
            ended: None,
            seq: Some(3),
            hash: None,
        };
        assert_eq!(as_csv(&row), "7,t,\"'=a \"\"b\"\", c\\r\\nd\",admin,,x,\"{\"\"a\"\":1}\",begun,,,3,");
        assert_eq!(as_csv(&row).matches("begun").count(), 1);
    }
}
