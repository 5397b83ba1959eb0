//! `monitor_audit`: who asked for which change, and what became of it.
//!
//! A row is written before its change begins ([`begin`]) and completed after it ([`end`]).

use chrono::{DateTime, Utc};
use diesel::deserialize::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use serde_json::{Value, json};

use super::connection::{PgPool, checkout, trouble};
use super::events::{bounded, bounded_value};
use crate::fleet::reading::SourceTrouble;

/// Parameters and results longer than this are cut: a row tells what was done, it is no copy of it.
const MOST_BYTES: usize = 64 << 10;

/// A change that somebody asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who.
    pub who: String,
    /// As what: viewer, operator or admin.
    pub role: &'static str,
    /// From where.
    pub address: String,
    /// What.
    pub action: &'static str,
    /// With which parameters.
    pub parameters: Value,
}

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was not begun: what was asked for cannot be done.
    Refused,
    /// It was begun and did not end well.
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
    /// Counts up.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// When it was asked for.
    #[diesel(sql_type = Timestamptz)]
    pub ts: DateTime<Utc>,
    /// By whom.
    #[diesel(sql_type = Text)]
    pub who: String,
    /// As what.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// From where.
    #[diesel(sql_type = Text)]
    pub address: String,
    /// What.
    #[diesel(sql_type = Text)]
    pub action: String,
    /// With which parameters.
    #[diesel(sql_type = Jsonb)]
    pub parameters: Value,
    /// What was answered; `None` until that is known.
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub result: Option<Value>,
    /// begun, done, refused or failed.
    #[diesel(sql_type = Text)]
    pub outcome: String,
    /// When it ended.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub ended: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Writes that it begins; the row's id.
///
/// # Errors
/// When Postgres did not take it: then it must not begin.
pub async fn begin(pool: &PgPool, asked: Asked) -> Result<i64, SourceTrouble> {
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

/// Writes how it ended.
///
/// # Errors
/// When Postgres did not take it; then the row still says that it was begun.
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

/// The newest rows, newest first; with `before`, those that are older than that id.
///
/// # Errors
/// When Postgres cannot be read.
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
