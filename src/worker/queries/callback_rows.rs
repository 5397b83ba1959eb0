//! Callbacks of a query one by one, and what is known of the query itself.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::QueryRowsError;
use super::tables::{callbacks, shepherd_brain};

/// A callback that a query still waits for.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = callbacks)]
pub struct CallbackRow {
    /// The query.
    pub query_id: String,
    /// The trace to continue when the answer comes, a JSON object.
    pub otel_trace: Option<String>,
}

/// What is known of a query.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = shepherd_brain)]
pub struct QueryRow {
    /// `QUEUED`, `COMPLETED` or `ABANDONED`.
    pub state: Option<String>,
    /// How it ended, such as `OK` or `ERROR`.
    pub status: Option<String>,
    /// The ARA that it was sent to.
    pub domain: Option<String>,
    /// The id of its response.
    pub response_id: Option<String>,
    /// Where its response is posted to.
    pub callback_url: Option<String>,
}

/// Removes one callback, whose answer is merged or will never come. False when there was none: it was
/// removed before, or its query is finished. Safe to repeat.
///
/// # Errors
/// Of the database; nothing is changed then.
pub async fn remove_callback(connection: &mut AsyncPgConnection, callback_id: &str) -> Result<bool, QueryRowsError> {
    let row = callbacks::table.filter(callbacks::callback_id.eq(callback_id));
    let removed = diesel::delete(row).execute(connection).await;
    removed.map(|rows| rows > 0).map_err(|error| QueryRowsError::new(format!("remove callback {callback_id}"), error))
}

/// The ids of the callbacks that a query still waits for; empty when it has every answer.
///
/// # Errors
/// Of the database.
pub async fn callbacks_outstanding(
    connection: &mut AsyncPgConnection,
    query_id: &str,
) -> Result<Vec<String>, QueryRowsError> {
    let rows = callbacks::table.filter(callbacks::query_id.eq(query_id)).select(callbacks::callback_id);
    let ids = rows.load(connection).await;
    ids.map_err(|error| QueryRowsError::new(format!("read the callbacks of query {query_id}"), error))
}

/// The query that waits for a callback, and its trace; `None` when no query waits for it.
///
/// # Errors
/// Of the database.
pub async fn callback_row(
    connection: &mut AsyncPgConnection,
    callback_id: &str,
) -> Result<Option<CallbackRow>, QueryRowsError> {
    let row = callbacks::table.filter(callbacks::callback_id.eq(callback_id)).select(CallbackRow::as_select());
    let found = row.first(connection).await.optional();
    found.map_err(|error| QueryRowsError::new(format!("read callback {callback_id}"), error))
}

/// What is known of a query; `None` when there is no such query.
///
/// # Errors
/// Of the database.
pub async fn query_row(connection: &mut AsyncPgConnection, qid: &str) -> Result<Option<QueryRow>, QueryRowsError> {
    let row = shepherd_brain::table.find(qid).select(QueryRow::as_select()).first(connection).await;
    row.optional().map_err(|error| QueryRowsError::new(format!("read query {qid}"), error))
}
