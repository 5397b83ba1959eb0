//! `monitor_audit`: the audit log of changes, with the user and the result.
//!
//! A row is written before its change starts ([`begin`]) and completed after it ([`end`]).

use chrono::{DateTime, Utc};
use diesel::deserialize::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use serde_json::{Value, json};

use super::connection::{PgPool, checkout, trouble};
use super::events::{bounded, bounded_value};
use crate::fleet::reading::SourceTrouble;

/// Maximum size of parameters and results, bytes; longer ones are truncated.
const MOST_BYTES: usize = 64 << 10;

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
    fn as_str(self) -> &'static str {
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

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Records the start of a change. Returns the row ID.
///
/// # Errors
/// If Postgres fails; the change must not start then.
pub async fn begin(pool: &PgPool, asked: RequestedChange) -> Result<i64, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let row: Id = sql_query(
        "INSERT INTO monitor_audit (who, role, address, action, parameters, outcome) \
         VALUES ($1, $2, $3, $4, $5, 'begun') RETURNING id",
    )
    .bind::<Text, _>(bounded(&asked.who))
    .bind::<Text, _>(asked.role)
    .bind::<Text, _>(bounded(&asked.address))
    .bind::<Text, _>(asked.action)
    .bind::<Jsonb, _>(short_enough(asked.parameters))
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(row.id)
}

/// Records the outcome of a change.
///
/// # Errors
/// If Postgres fails; the row then still says that the change was begun.
pub async fn end(pool: &PgPool, id: i64, outcome: Outcome, result: Value) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_audit SET outcome = $2, result = $3, ended = now() WHERE id = $1 AND outcome = 'begun'")
        .bind::<BigInt, _>(id)
        .bind::<Text, _>(outcome.as_str())
        .bind::<Jsonb, _>(short_enough(result))
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Returns the newest rows, newest first; with `before`, only rows with a lower ID.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn newest(pool: &PgPool, before: Option<i64>, limit: u32) -> Result<Vec<Row>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(
        "SELECT id, ts, who, role, address, action, parameters, result, outcome, ended FROM monitor_audit \
         WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
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
