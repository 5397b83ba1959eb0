//! `monitor_events`: what happened, kept.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::connection::{PgPool, checkout, trouble};
use super::row_isolation::{Isolated, may_be_about_rows, put_isolating};
use super::schema::monitor_events;
use crate::fleet::event::{Event, EventKind, Severity};
use crate::fleet::reading::SourceTrouble;
use crate::history::stored_name::bounded_text;

/// An event as a row that is not stored yet; also what waits in the spool while Postgres is away.
#[derive(Debug, Clone, PartialEq, Insertable, Serialize, Deserialize)]
#[diesel(table_name = monitor_events)]
pub struct NewRow {
    ts: DateTime<Utc>,
    type_: String,
    worker: String,
    severity: String,
    detail: String,
    payload: Value,
}

impl From<&Event> for NewRow {
    fn from(event: &Event) -> Self {
        Self {
            ts: time(event.ts),
            type_: event.type_name().to_owned(),
            worker: bounded(&event.subject),
            severity: event.severity().as_str().to_owned(),
            detail: bounded(&event.summary()),
            payload: bounded_value(event.payload()),
        }
    }
}

impl NewRow {
    /// The same, as a part of the story of the alert with that key.
    #[must_use]
    pub fn of_alert(mut self, key: &str) -> Self {
        self.payload_insert("alert", Value::String(key.replace('\0', "\u{fffd}")));
        self
    }

    /// The same with another field in its payload.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.payload_insert(field, bounded_value(value));
        self
    }

    fn payload_insert(&mut self, field: &str, value: Value) {
        if let Value::Object(payload) = &mut self.payload {
            payload.insert(field.to_owned(), value);
        }
    }
}

impl NewRow {
    /// The key of the alert in whose story it is.
    #[must_use]
    pub fn alert(&self) -> Option<&str> {
        self.payload.get("alert").and_then(Value::as_str)
    }

    /// Whether its type has that name.
    #[must_use]
    pub fn is_of_type(&self, name: &str) -> bool {
        self.type_ == name
    }
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable)]
#[diesel(table_name = monitor_events)]
pub struct Row {
    /// Counts up in the order of storing.
    pub id: i64,
    /// When it happened.
    pub ts: DateTime<Utc>,
    /// What kind of event.
    pub type_: String,
    /// The worker type, or the source.
    pub worker: Option<String>,
    /// info, warning or critical.
    pub severity: Option<String>,
    /// One line for people.
    pub detail: Option<String>,
    /// Its fields.
    pub payload: Option<Value>,
}

impl Row {
    /// When it happened, Unix seconds.
    #[must_use]
    pub fn unix_seconds(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
        let seconds = self.ts.timestamp_micros() as f64 / 1e6;
        seconds
    }
}

impl From<Row> for Event {
    fn from(row: Row) -> Self {
        let ts = row.unix_seconds();
        let key =
            row.payload.as_ref().and_then(|p| p.get("key")).and_then(Value::as_str).unwrap_or_default().to_owned();
        let severity = Severity::from_stored(row.severity.as_deref().unwrap_or_default());
        let kind = EventKind::Recorded { type_name: row.type_, severity, detail: row.detail.unwrap_or_default() };
        let count = |field: &str| {
            let stored = row.payload.as_ref().and_then(|payload| payload.get(field)).and_then(Value::as_u64);
            stored.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
        };
        let running = (count("from"), count("to"));
        Self { ts, subject: row.worker.unwrap_or_default(), kind, key, running }
    }
}

/// Stores events; one that is stored already is left as it is, one that Postgres refuses is set aside.
///
/// # Errors
/// When Postgres did not take them.
pub async fn insert(pool: &PgPool, rows: &[NewRow]) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let stored = match put(&mut connection, rows).await {
        Err(error) if may_be_about_rows(&error) => put_each(&mut connection, rows).await.and_then(Isolated::settle),
        other => other,
    };
    stored.map_err(|e| trouble(&e))
}

/// Stores events; those that Postgres refuses are apart.
pub(super) async fn put_each(
    connection: &mut AsyncPgConnection,
    rows: &[NewRow],
) -> Result<Isolated, diesel::result::Error> {
    let name = |row: &NewRow| format!("{} event of {}", row.type_, row.worker);
    put_isolating(connection, rows, |connection, rows| put(connection, rows).boxed(), name).await
}

/// The same on a connection that may be in a transaction.
pub(super) async fn put(connection: &mut AsyncPgConnection, rows: &[NewRow]) -> Result<(), diesel::result::Error> {
    if rows.is_empty() {
        // Diesel asks nothing then; whether the table can be written is to be known.
        diesel::sql_query("INSERT INTO monitor_events (type) SELECT type FROM monitor_events WHERE false")
            .execute(connection)
            .await?;
    }
    for some in rows.chunks(500) {
        diesel::insert_into(monitor_events::table).values(some).on_conflict_do_nothing().execute(connection).await?;
    }
    Ok(())
}

/// Which events to read; `None` is any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this type.
    pub type_name: Option<String>,
    /// Only of this severity.
    pub severity: Option<String>,
    /// Only about this worker type or source.
    pub worker: Option<String>,
    /// Only from this moment on.
    pub since: Option<DateTime<Utc>>,
    /// Only before this moment.
    pub until: Option<DateTime<Utc>>,
}

/// The newest events that match, newest first.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn newest(pool: &PgPool, filter: &Filter, limit: i64) -> Result<Vec<Row>, SourceTrouble> {
    use monitor_events::dsl;
    let mut query =
        dsl::monitor_events.order((dsl::ts.desc(), dsl::id.desc())).limit(limit).select(Row::as_select()).into_boxed();
    if let Some(type_name) = &filter.type_name {
        query = query.filter(dsl::type_.eq(type_name));
    }
    if let Some(severity) = &filter.severity {
        query = query.filter(dsl::severity.eq(severity));
    }
    if let Some(worker) = &filter.worker {
        query = query.filter(dsl::worker.eq(worker));
    }
    if let Some(since) = filter.since {
        query = query.filter(dsl::ts.ge(since));
    }
    if let Some(until) = filter.until {
        query = query.filter(dsl::ts.lt(until));
    }
    let mut connection = checkout(pool).await?;
    query.load(&mut connection).await.map_err(|e| trouble(&e))
}

fn time(unix_seconds: f64) -> DateTime<Utc> {
    #[expect(clippy::cast_possible_truncation, reason = "microseconds of a date")]
    DateTime::from_timestamp_micros((unix_seconds * 1e6) as i64).unwrap_or_default()
}

/// Text of an event at most (bytes): names may be as long as Redis allows, and every page that shows the feed
/// gets all of it.
const LONGEST_TEXT: usize = 8000;

/// `text`, short enough to be shown, and without NUL, which Postgres cannot hold.
pub(super) fn bounded(text: &str) -> String {
    bounded_text(text, LONGEST_TEXT).into_owned()
}

pub(super) fn bounded_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(bounded(&text)),
        Value::Array(items) => items.into_iter().map(bounded_value).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, bounded_value(value))).collect(),
        other => other,
    }
}
