//! Verifies the hash chain of the audit log, and exports its rows. Both read page by page.

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::QueryableByName;
use diesel::result::{Error as QueryError, OptionalExtension};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use serde_json::value::RawValue;

use super::audit::{COLUMNS, LINK_COLUMNS, StoredLink, StoredRow};
use super::connection::{PgPool, checkout, trouble};
use crate::access::audit_chain::{Broken, ChainedRow, Head, Link, Start, Verified, Verifier, hex};
use crate::fleet::reading::SourceTrouble;

/// Links or rows per page. A row has at most 128 kB.
const PAGE: i64 = 100;
/// Triggers that make the audit log append-only.
const TRIGGERS: i64 = 4;

/// Result of a successful verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intact {
    /// The chain.
    pub chain: Verified,
    /// Existing rows that are older than the chain, which it does not cover.
    pub older_rows: i64,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Nullable<BigInt>)]
    number: Option<i64>,
}

async fn number(connection: &mut AsyncPgConnection, sql: &str, parameter: i64) -> Result<Option<i64>, QueryError> {
    let row: Number = sql_query(sql).bind::<BigInt, _>(parameter).get_result(connection).await?;
    Ok(row.number)
}

/// Verifies the whole chain against one state of the database. `wanted` is a position that was recorded earlier and must
/// be in the chain.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn verify(pool: &PgPool, wanted: Option<Head>) -> Result<Result<Intact, Broken>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    connection.let_statements_run(true).await.map_err(|e| trouble(&e))?;
    let mut reading = connection.build_transaction().read_only().repeatable_read();
    let verified = reading.run(async |connection| walk(connection, wanted).await).await;
    let verified = verified.map_err(|e: QueryError| trouble(&e))?;
    connection.let_statements_run(false).await.map_err(|e| trouble(&e))?;
    Ok(verified)
}

async fn walk(connection: &mut AsyncPgConnection, wanted: Option<Head>) -> Result<Result<Intact, Broken>, QueryError> {
    let start = link(connection, "seq = 0").await?;
    let retention = "seq = (SELECT max(seq) FROM monitor_audit_chain WHERE kind = 'retention')";
    let retention = link(connection, retention).await?;
    let mut verifier = match Verifier::new(start.as_ref(), retention.as_ref(), wanted) {
        Ok(verifier) => verifier,
        Err(broken) => return Ok(Err(broken)),
    };
    let mut after = 0;
    loop {
        let links = sql_query(format!(
            "SELECT {LINK_COLUMNS} FROM monitor_audit_chain WHERE seq > $1 OR seq < 0 ORDER BY seq LIMIT $2"
        ));
        let links = links.bind::<BigInt, _>(after).bind::<BigInt, _>(PAGE).load(connection).await?;
        let links: Vec<Link> = links.into_iter().map(|link: StoredLink| link.into()).collect();
        let Some(last) = links.last() else { break };
        after = last.seq;
        let ids: Vec<i64> = links.iter().filter_map(|link| link.row_id).collect();
        let rows = sql_query(format!("SELECT {COLUMNS} FROM monitor_audit WHERE id = ANY($1)"));
        let rows = rows.bind::<Array<BigInt>, _>(ids).load(connection).await?;
        let rows: Vec<ChainedRow> = rows.into_iter().map(|row: StoredRow| row.into()).collect();
        for link in &links {
            if let Err(broken) = verifier.check(link, rows.iter().find(|row| Some(row.id) == link.row_id)) {
                return Ok(Err(broken));
            }
        }
    }
    let chain = match verifier.end() {
        Ok(chain) => chain,
        Err(broken) => return Ok(Err(broken)),
    };
    let Some(Start { last_id: older, rows }) = start.as_ref().and_then(Link::start) else {
        return Ok(Err(Broken::Start));
    };
    if let Some(broken) = beside_the_chain(connection, older).await? {
        return Ok(Err(broken));
    }
    let found = number(connection, "SELECT count(*) AS number FROM monitor_audit WHERE id <= $1", older).await?;
    match found.unwrap_or(0) {
        found if found > rows => Ok(Err(Broken::OlderInserted { found, rows })),
        older_rows => Ok(Ok(Intact { chain, older_rows })),
    }
}

/// Finds rows that no link covers, and a disabled protection.
async fn beside_the_chain(connection: &mut AsyncPgConnection, older: i64) -> Result<Option<Broken>, QueryError> {
    let unlinked = "SELECT min(id) AS number FROM monitor_audit a WHERE id > $1 \
        AND NOT EXISTS (SELECT FROM monitor_audit_chain c WHERE c.row_id = a.id)";
    let outcome = "SELECT min(id) AS number FROM monitor_audit a WHERE id > $1 AND outcome <> 'begun' \
        AND NOT EXISTS (SELECT FROM monitor_audit_chain c WHERE c.row_id = a.id AND c.kind IN ('ended', 'recorded'))";
    if let Some(row) = number(connection, unlinked, older).await? {
        return Ok(Some(Broken::Unlinked(row)));
    }
    if let Some(row) = number(connection, outcome, older).await? {
        return Ok(Some(Broken::OutcomeUnlinked(row)));
    }
    let triggers = "SELECT $1 - count(*) AS number FROM pg_trigger \
        WHERE tgrelid IN (to_regclass('monitor_audit'), to_regclass('monitor_audit_chain')) \
        AND tgname IN ('monitor_audit_append_only', 'monitor_audit_not_truncated') AND tgenabled IN ('O', 'A')";
    let missing = number(connection, triggers, TRIGGERS).await?.unwrap_or(0);
    Ok((missing > 0).then_some(Broken::Unprotected(missing)))
}

async fn link(connection: &mut AsyncPgConnection, condition: &str) -> Result<Option<Link>, QueryError> {
    let query = sql_query(format!("SELECT {LINK_COLUMNS} FROM monitor_audit_chain WHERE {condition}"));
    let link: Option<StoredLink> = query.get_result(connection).await.optional()?;
    Ok(link.map(Link::from))
}

/// Returns the end of the chain; `None` if there is no chain.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn head(pool: &PgPool) -> Result<Option<Head>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let last = link(&mut connection, "seq = (SELECT max(seq) FROM monitor_audit_chain)").await;
    Ok(last.map_err(|e| trouble(&e))?.map(|last| last.as_head()))
}

#[derive(QueryableByName)]
struct RowWithLink {
    #[diesel(embed)]
    stored: StoredRow,
    #[diesel(sql_type = Nullable<BigInt>)]
    seq: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    hash: Option<Vec<u8>>,
}

/// An exported row.
#[derive(Debug, Serialize)]
pub struct ExportedRow {
    /// Row ID.
    pub id: i64,
    /// Time of the request, RFC 3339.
    pub ts: String,
    /// User.
    pub who: String,
    /// Role.
    pub role: String,
    /// Address.
    pub address: String,
    /// Action.
    pub action: String,
    /// Parameters.
    pub parameters: Option<Box<RawValue>>,
    /// Outcome.
    pub outcome: String,
    /// Result.
    pub result: Option<Box<RawValue>>,
    /// Time of the outcome, RFC 3339.
    pub ended: Option<String>,
    /// The newest link of the row; `None` if it is older than the chain.
    pub seq: Option<i64>,
    /// Hash of that link, hexadecimal.
    pub hash: Option<String>,
}

impl From<RowWithLink> for ExportedRow {
    fn from(RowWithLink { stored: row, seq, hash }: RowWithLink) -> Self {
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let json = |text: String| RawValue::from_string(text).ok();
        Self {
            id: row.id,
            ts: time(row.ts),
            who: row.who,
            role: row.role,
            address: row.address,
            action: row.action,
            parameters: json(row.parameters),
            outcome: row.outcome,
            result: row.result.and_then(json),
            ended: row.ended.map(time),
            seq,
            hash: hash.map(|hash| hex(&hash)),
        }
    }
}

/// Returns a page of rows with an ID above `after` and a time in the range, by ID; empty after the last one.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn page(
    pool: &PgPool,
    after: i64,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
) -> Result<Vec<ExportedRow>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let rows: Vec<RowWithLink> = sql_query(format!(
        "SELECT a.*, c.seq, c.hash FROM (SELECT {COLUMNS} FROM monitor_audit WHERE id > $1 \
         AND ($2 IS NULL OR ts >= $2) AND ($3 IS NULL OR ts < $3) ORDER BY id LIMIT $4) AS a \
         LEFT JOIN LATERAL (SELECT seq, hash FROM monitor_audit_chain WHERE row_id = a.id ORDER BY seq DESC LIMIT 1) AS c \
         ON true ORDER BY a.id"
    ))
    .bind::<BigInt, _>(after)
    .bind::<Nullable<Timestamptz>, _>(since)
    .bind::<Nullable<Timestamptz>, _>(until)
    .bind::<BigInt, _>(PAGE)
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(rows.into_iter().map(ExportedRow::from).collect())
}
