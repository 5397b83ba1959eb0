//! `monitor_audit`: the audit log of changes, with the user and the result. It is append-only.
//!
//! A row is written before its change starts ([`begin`]) and completed after it ([`end`]); [`record`] stores rows that are
//! complete. Each of these is a link of the hash chain in `monitor_audit_chain`: see [`audit_chain`](crate::access::audit_chain)
//! for what it covers, and [`audit_trail`](super::audit_trail) for verifying and exporting it. [`retain`] is the only way to
//! remove rows, and is a link too.

use chrono::{DateTime, Utc};
use diesel::deserialize::QueryableByName;
use diesel::result::{Error as QueryError, OptionalExtension};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};

use super::connection::{PgPool, checkout, trouble};
use super::events::{bounded, bounded_value};
use crate::access::audit_chain::{ChainedRow, Fact, Head, Link, Removed, hash_of, hex};
use crate::fleet::reading::SourceTrouble;

/// Maximum size of parameters and results, bytes; longer ones are truncated.
const MOST_BYTES: usize = 64 << 10;
/// Advisory lock (arbitrary number): facts are appended to the chain one at a time, also by several monitors.
const CHAIN_LOCK: i64 = 0x5348_4557;
/// Links that retention removes per transaction.
const REMOVED_AT_ONCE: i32 = 1000;
/// Columns of a [`StoredRow`].
pub(super) const COLUMNS: &str = "id, ts, who, role, address, action, parameters::text AS parameters, outcome, \
    result::text AS result, ended";

/// A change requested by a user.
#[derive(Debug, Clone)]
pub struct RequestedChange {
    /// Name of the user.
    pub who: String,
    /// Role: viewer, operator or admin.
    pub role: &'static str,
    /// Client address.
    pub address: String,
    /// Action.
    pub action: &'static str,
    /// Parameters.
    pub parameters: Value,
}

/// Outcome of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Completed.
    Done,
    /// Rejected before it started.
    Refused,
    /// Failed after it started.
    Failed,
}

impl Outcome {
    /// Name in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// A stored row.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Row {
    /// Row ID, increasing.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// Time of the request.
    #[diesel(sql_type = Timestamptz)]
    pub ts: DateTime<Utc>,
    /// Name of the user.
    #[diesel(sql_type = Text)]
    pub who: String,
    /// Role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// Client address.
    #[diesel(sql_type = Text)]
    pub address: String,
    /// Action.
    #[diesel(sql_type = Text)]
    pub action: String,
    /// Parameters.
    #[diesel(sql_type = Jsonb)]
    pub parameters: Value,
    /// Result; `None` while it is unknown.
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub result: Option<Value>,
    /// begun, done, refused or failed.
    #[diesel(sql_type = Text)]
    pub outcome: String,
    /// End of the change.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub ended: Option<DateTime<Utc>>,
}

/// The columns of a row that the chain covers, as Postgres prints them.
#[derive(QueryableByName)]
pub(super) struct StoredRow {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
    #[diesel(sql_type = Timestamptz)]
    pub(super) ts: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    pub(super) who: String,
    #[diesel(sql_type = Text)]
    pub(super) role: String,
    #[diesel(sql_type = Text)]
    pub(super) address: String,
    #[diesel(sql_type = Text)]
    pub(super) action: String,
    #[diesel(sql_type = Text)]
    pub(super) parameters: String,
    #[diesel(sql_type = Text)]
    pub(super) outcome: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) result: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(super) ended: Option<DateTime<Utc>>,
}

impl From<StoredRow> for ChainedRow {
    fn from(row: StoredRow) -> Self {
        Self {
            id: row.id,
            ts: row.ts.timestamp_micros(),
            who: row.who,
            role: row.role,
            address: row.address,
            action: row.action,
            parameters: row.parameters,
            outcome: row.outcome,
            result: row.result,
            ended: row.ended.map(|ended| ended.timestamp_micros()),
        }
    }
}

/// Columns of a [`StoredLink`].
pub(super) const LINK_COLUMNS: &str = "seq, ts, kind, row_id, detail, hash";

#[derive(QueryableByName)]
pub(super) struct StoredLink {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Timestamptz)]
    ts: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    row_id: Option<i64>,
    #[diesel(sql_type = Text)]
    detail: String,
    #[diesel(sql_type = Binary)]
    hash: Vec<u8>,
}

impl From<StoredLink> for Link {
    fn from(link: StoredLink) -> Self {
        let ts = link.ts.timestamp_micros();
        Self { seq: link.seq, ts, kind: link.kind, row_id: link.row_id, detail: link.detail, hash: link.hash }
    }
}

/// Locks the chain until the transaction ends, and returns its last link. The lock of a stopped process times out after
/// three seconds.
async fn locked_end(connection: &mut AsyncPgConnection) -> Result<Link, QueryError> {
    sql_query("SELECT set_config('idle_in_transaction_session_timeout', '3s', true), pg_advisory_xact_lock($1)")
        .bind::<BigInt, _>(CHAIN_LOCK)
        .execute(connection)
        .await?;
    // A separate statement, so that it sees what was committed while this one waited.
    let last = sql_query(format!("SELECT {LINK_COLUMNS} FROM monitor_audit_chain ORDER BY seq DESC LIMIT 1"));
    let last: Option<StoredLink> = last.get_result(connection).await.optional()?;
    let empty = || QueryError::QueryBuilderError("the hash chain of the audit log was removed".into());
    last.map(Link::from).ok_or_else(empty)
}

/// Appends a fact about `row` after `last`. Returns its link.
async fn append(
    connection: &mut AsyncPgConnection,
    last: &Link,
    fact: Fact,
    row: &ChainedRow,
) -> Result<Link, QueryError> {
    let ts = row.ended.unwrap_or(row.ts);
    let (kind, row_id) = (fact.as_str().to_owned(), Some(row.id));
    let mut link = Link { seq: last.seq + 1, ts, kind, row_id, detail: String::new(), hash: Vec::new() };
    link.hash = hash_of(&last.chained_hash(), &link, Some(row)).to_vec();
    sql_query("INSERT INTO monitor_audit_chain (seq, ts, kind, row_id, hash) VALUES ($1, $2, $3, $4, $5)")
        .bind::<BigInt, _>(link.seq)
        .bind::<Timestamptz, _>(time(ts))
        .bind::<Text, _>(fact.as_str())
        .bind::<BigInt, _>(row.id)
        .bind::<Binary, _>(&link.hash)
        .execute(connection)
        .await?;
    Ok(link)
}

fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

async fn insert(
    connection: &mut AsyncPgConnection,
    asked: &RequestedChange,
    outcome: Option<Outcome>,
) -> Result<ChainedRow, QueryError> {
    let ended = if outcome.is_some() { "now()" } else { "NULL" };
    let row: StoredRow = sql_query(format!(
        "INSERT INTO monitor_audit (who, role, address, action, parameters, outcome, ended) \
         VALUES ($1, $2, $3, $4, $5, $6, {ended}) RETURNING {COLUMNS}"
    ))
    .bind::<Text, _>(bounded(&asked.who))
    .bind::<Text, _>(asked.role)
    .bind::<Text, _>(bounded(&asked.address))
    .bind::<Text, _>(asked.action)
    .bind::<Jsonb, _>(short_enough(asked.parameters.clone()))
    .bind::<Text, _>(outcome.map_or("begun", Outcome::as_str))
    .get_result(connection)
    .await?;
    Ok(row.into())
}

/// Returns whether the tables of the audit log exist.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn is_ready(pool: &PgPool) -> Result<bool, SourceTrouble> {
    #[derive(QueryableByName)]
    struct Ready {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        ready: bool,
    }
    let mut connection = checkout(pool).await?;
    let ready: Result<Ready, _> =
        sql_query("SELECT to_regclass('monitor_audit_chain') IS NOT NULL AS ready").get_result(&mut connection).await;
    Ok(ready.map_err(|e| trouble(&e))?.ready)
}

/// Records the start of a change. Returns the row ID.
///
/// # Errors
/// If Postgres fails; the change must not start then.
pub async fn begin(pool: &PgPool, asked: RequestedChange) -> Result<i64, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let begun = connection.transaction(async |connection| {
        let last = locked_end(connection).await?;
        let row = insert(connection, &asked, None).await?;
        append(connection, &last, Fact::Begun, &row).await?;
        Ok(row.id)
    });
    begun.await.map_err(|e: QueryError| trouble(&e))
}

/// Records the outcome of a change. Returns the end of the chain with it; `None` if an earlier attempt stored it.
///
/// # Errors
/// If Postgres fails; the row then still says that the change was begun.
pub async fn end(pool: &PgPool, id: i64, outcome: Outcome, result: Value) -> Result<Option<Head>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let result = short_enough(result);
    let ended = connection.transaction(async |connection| {
        let last = locked_end(connection).await?;
        let row: Option<StoredRow> = sql_query(format!(
            "UPDATE monitor_audit SET outcome = $2, result = $3, ended = now() WHERE id = $1 AND outcome = 'begun' \
             RETURNING {COLUMNS}"
        ))
        .bind::<BigInt, _>(id)
        .bind::<Text, _>(outcome.as_str())
        .bind::<Jsonb, _>(&result)
        .get_result(connection)
        .await
        .optional()?;
        // `None`: an earlier attempt stored it, and its reply was lost.
        let Some(row) = row else { return Ok(None) };
        let link = append(connection, &last, Fact::Ended, &row.into()).await?;
        Ok(Some(link.as_head()))
    });
    ended.await.map_err(|e: QueryError| trouble(&e))
}

/// Records complete rows, all or none.
///
/// # Errors
/// If Postgres fails.
pub async fn record(pool: &PgPool, rows: &[(RequestedChange, Outcome)]) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let recorded = connection.transaction(async |connection| {
        let mut last = locked_end(connection).await?;
        for (asked, outcome) in rows {
            let row = insert(connection, asked, Some(*outcome)).await?;
            last = append(connection, &last, Fact::Recorded, &row).await?;
        }
        Ok(())
    });
    recorded.await.map_err(|e: QueryError| trouble(&e))
}

#[derive(QueryableByName)]
struct Expired {
    #[diesel(sql_type = Timestamptz)]
    now: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    before: DateTime<Utc>,
    /// First link that is not the start.
    #[diesel(sql_type = Nullable<BigInt>)]
    first: Option<i64>,
    /// First link that is retained.
    #[diesel(sql_type = Nullable<BigInt>)]
    retained: Option<i64>,
    /// There are rows without a link, older than the chain.
    #[diesel(sql_type = diesel::sql_types::Bool)]
    unlinked: bool,
}

/// Removes rows that are older than `days`, in batches, and records that in the chain. Returns their number.
///
/// # Errors
/// If Postgres fails; batches up to then are removed.
pub async fn retain(pool: &PgPool, days: i32) -> Result<usize, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let mut removed = 0;
    loop {
        let some = connection.transaction(async |connection| retain_some(connection, days).await);
        let Some(some) = some.await.map_err(|e: QueryError| trouble(&e))? else { return Ok(removed) };
        removed += usize::try_from(some).unwrap_or(0);
    }
}

/// Removes a batch; `None` if nothing is older.
async fn retain_some(connection: &mut AsyncPgConnection, days: i32) -> Result<Option<i64>, QueryError> {
    let last = locked_end(connection).await?;
    let expired: Expired = sql_query(
        "SELECT now() AS now, b.before, (SELECT min(seq) FROM monitor_audit_chain WHERE seq > 0) AS first, \
         (SELECT seq FROM monitor_audit_chain WHERE seq > 0 AND ts >= b.before ORDER BY seq LIMIT 1) AS retained, \
         EXISTS (SELECT FROM monitor_audit a WHERE a.ts < b.before \
            AND NOT EXISTS (SELECT FROM monitor_audit_chain c WHERE c.row_id = a.id)) AS unlinked \
         FROM (SELECT now() - $1 * interval '1 day' AS before) AS b",
    )
    .bind::<Integer, _>(days)
    .get_result(connection)
    .await?;
    let first = expired.first.unwrap_or(1);
    let through = expired.retained.map_or(last.seq, |retained| retained - 1);
    let through = through.min(first + i64::from(REMOVED_AT_ONCE) - 1).max(first - 1);
    if through < first && !expired.unlinked {
        return Ok(None);
    }
    let links = sql_query(format!(
        "SELECT {LINK_COLUMNS} FROM monitor_audit_chain WHERE seq IN (0, $1) OR seq = \
         (SELECT max(seq) FROM monitor_audit_chain WHERE kind = 'retention') ORDER BY seq"
    ));
    let links: Vec<StoredLink> = links.bind::<BigInt, _>(through).load(connection).await?;
    let links: Vec<Link> = links.into_iter().map(Link::from).collect();
    let missing = || QueryError::QueryBuilderError("the hash chain of the audit log is broken".into());
    let start = links.iter().find(|link| link.seq == 0).ok_or_else(missing)?;
    // If no link is removed, the last one removed earlier remains the anchor.
    let at = links.iter().find(|link| link.seq == through).map(|link| hex(&link.chained_hash()));
    let hash = at.or_else(|| links.iter().rev().find_map(Link::removed).map(|before| before.hash));
    let removed = Removed { through, hash: hash.ok_or_else(missing)?, start: hex(&start.chained_hash()) };
    let detail = serde_json::to_string(&removed).map_err(|error| QueryError::SerializationError(error.into()))?;
    let (ts, kind) = (expired.now.timestamp_micros(), Fact::Retention.as_str().to_owned());
    let mut link = Link { seq: last.seq + 1, ts, kind, row_id: None, detail, hash: Vec::new() };
    link.hash = hash_of(&last.chained_hash(), &link, None).to_vec();
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let count: Count = sql_query("SELECT monitor_audit_retain($1, $2, $3, $4, $5, $6, $7) AS count")
        .bind::<BigInt, _>(through)
        .bind::<Timestamptz, _>(expired.before)
        .bind::<Integer, _>(REMOVED_AT_ONCE)
        .bind::<BigInt, _>(link.seq)
        .bind::<Timestamptz, _>(expired.now)
        .bind::<Text, _>(&link.detail)
        .bind::<Binary, _>(&link.hash)
        .get_result(connection)
        .await?;
    Ok(Some(count.count))
}

/// Which rows to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shown {
    /// Changes.
    #[default]
    Changes,
    /// Logins, rejected requests and other security events.
    Security,
    /// Both.
    All,
}

/// Returns the newest rows, newest first; with `before`, only rows with a lower ID.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn newest(pool: &PgPool, shown: Shown, before: Option<i64>, limit: u32) -> Result<Vec<Row>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    // They are complete when they are stored, and have a kind.
    let security = "(a.parameters ->> 'kind' IS NOT NULL AND EXISTS (SELECT FROM monitor_audit_chain c \
        WHERE c.row_id = a.id AND c.kind = 'recorded'))";
    let condition = match shown {
        Shown::Changes => format!("NOT {security}"),
        Shown::Security => security.to_owned(),
        Shown::All => "true".to_owned(),
    };
    sql_query(format!(
        "SELECT id, ts, who, role, address, action, parameters, result, outcome, ended FROM monitor_audit a \
         WHERE id < $1 AND {condition} ORDER BY id DESC LIMIT $2"
    ))
    .bind::<BigInt, _>(before.unwrap_or(i64::MAX))
    .bind::<BigInt, _>(i64::from(limit))
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))
}

fn short_enough(value: Value) -> Value {
    let text = value.to_string();
    if text.len() <= MOST_BYTES {
        return bounded_value(value);
    }
    let beginning: String = text.chars().take(MOST_BYTES / 8).collect();
    json!({"cut": true, "bytes": text.len(), "beginning": bounded(&beginning)})
}
