//! Reads query rows, and reads and deletes single callback rows.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::QueryRowsError;
use super::tables::{callbacks, shepherd_brain};

/// A callback that a query waits for.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = callbacks)]
pub struct CallbackRow {
    /// ID of the query.
    pub query_id: String,
    /// Trace to continue when the callback arrives, as a JSON object.
    pub otel_trace: Option<String>,
}

/// The row of a query.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = shepherd_brain)]
pub struct QueryRow {
    /// `QUEUED`, `COMPLETED` or `ABANDONED`.
    pub state: Option<String>,
    /// Final status, such as `OK` or `ERROR`.
    pub status: Option<String>,
    /// ARA that received the query.
    pub domain: Option<String>,
    /// ID of the response.
    pub response_id: Option<String>,
    /// URL to which the response is posted.
    pub callback_url: Option<String>,
}

/// Deletes a callback that was merged or will never arrive. Returns `false` if it did not exist: it was deleted before,
/// or its query is finished. Idempotent.
///
/// # Errors
/// If the database fails; nothing is changed.
pub async fn remove_callback(connection: &mut AsyncPgConnection, callback_id: &str) -> Result<bool, QueryRowsError> {
    let row = callbacks::table.filter(callbacks::callback_id.eq(callback_id));
    let removed = diesel::delete(row).execute(connection).await;
    removed.map(|rows| rows > 0).map_err(|error| QueryRowsError::new(format!("remove callback {callback_id}"), error))
}

/// Returns the IDs of the callbacks that a query waits for; empty if all have arrived.
///
/// # Errors
/// If the database fails.
pub async fn callbacks_outstanding(
    connection: &mut AsyncPgConnection,
    query_id: &str,
) -> Result<Vec<String>, QueryRowsError> {
    let rows = callbacks::table.filter(callbacks::query_id.eq(query_id)).select(callbacks::callback_id);
    let ids = rows.load(connection).await;
    ids.map_err(|error| QueryRowsError::new(format!("read the callbacks of query {query_id}"), error))
}

/// Returns the query that waits for a callback, and its trace; `None` if no query waits for it.
///
/// # Errors
/// If the database fails.
pub async fn callback_row(
    connection: &mut AsyncPgConnection,
    callback_id: &str,
) -> Result<Option<CallbackRow>, QueryRowsError> {
    let row = callbacks::table.filter(callbacks::callback_id.eq(callback_id)).select(CallbackRow::as_select());
    let found = row.first(connection).await.optional();
    found.map_err(|error| QueryRowsError::new(format!("read callback {callback_id}"), error))
}

/// Returns the row of a query; `None` if the query does not exist.
///
/// # Errors
/// If the database fails.
pub async fn query_row(connection: &mut AsyncPgConnection, qid: &str) -> Result<Option<QueryRow>, QueryRowsError> {
    let row = shepherd_brain::table.find(qid).select(QueryRow::as_select()).first(connection).await;
    row.optional().map_err(|error| QueryRowsError::new(format!("read query {qid}"), error))
}
