//! Rows of queries and callbacks in the tables of the platform (feature `worker-database`).
//!
//! Times are `NOW()` in the time zone of the session. A COMPLETED query is never changed again.

use std::fmt;

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use crate::contract::DatabaseCondition;

mod callback_rows;

pub use callback_rows::{CallbackRow, QueryRow, callback_row, callbacks_outstanding, query_row, remove_callback};

const QUEUED: &str = "QUEUED";
const COMPLETED: &str = "COMPLETED";

mod tables {
    #![allow(missing_docs, unreachable_pub, reason = "made by diesel; the contract describes the columns")]

    diesel::table! {
        shepherd_brain (qid) {
            qid -> Varchar,
            start_time -> Nullable<Timestamp>,
            stop_time -> Nullable<Timestamp>,
            submitter -> Nullable<Text>,
            remote_ip -> Nullable<Text>,
            domain -> Nullable<Text>,
            hostname -> Nullable<Text>,
            response_id -> Nullable<Text>,
            callback_url -> Nullable<Text>,
            state -> Nullable<Text>,
            status -> Nullable<Text>,
            description -> Nullable<Text>,
        }
    }

    diesel::table! {
        callbacks (query_id, callback_id) {
            query_id -> Varchar,
            callback_id -> Varchar,
            otel_trace -> Nullable<Varchar>,
        }
    }
}
use tables::{callbacks, shepherd_brain};

/// A new query.
#[derive(Debug, Clone, Default, Insertable)]
#[diesel(table_name = shepherd_brain)]
pub struct NewQuery<'a> {
    /// ID of the query; at most 255 characters.
    pub qid: &'a str,
    /// User or service that sent the query.
    pub submitter: Option<&'a str>,
    /// IP address of the sender.
    pub remote_ip: Option<&'a str>,
    /// Host that received the query.
    pub hostname: Option<&'a str>,
    /// ID of the response.
    pub response_id: Option<&'a str>,
    /// URL to which the response is posted.
    pub callback_url: Option<&'a str>,
    /// Free text.
    pub description: Option<&'a str>,
}

/// Result of [`finish_query`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// This call set the query to COMPLETED.
    Now,
    /// The query was already COMPLETED and was not changed.
    Before,
    /// The query does not exist.
    Unknown,
}

/// A change of query or callback rows failed; nothing was changed. `Display` describes the operation, the query and, if
/// known, the remedy; the source is the error of the database.
#[derive(Debug)]
pub struct QueryRowsError {
    failed: String,
    condition: Option<DatabaseCondition>,
    source: DieselError,
}

impl QueryRowsError {
    fn new(failed: String, source: DieselError) -> Self {
        let condition = match &source {
            DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => Some(DatabaseCondition::ReadOnly),
            DieselError::DatabaseError(_, info) => DatabaseCondition::from_texts(info.message(), info.hint()),
            _ => None,
        };
        Self { failed, condition, source }
    }

    /// The condition of the database, such as a full disk; `None` for other errors.
    #[must_use]
    pub fn condition(&self) -> Option<DatabaseCondition> {
        self.condition
    }

    /// Underlying diesel error.
    #[must_use]
    pub fn database_error(&self) -> &DieselError {
        &self.source
    }
}

impl fmt::Display for QueryRowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, condition, source } = self;
        match condition {
            Some(condition) => write!(f, "cannot {failed}: {condition} ({source}). {}.", condition.remedy()),
            None => write!(f, "cannot {failed}: {source}"),
        }
    }
}

impl std::error::Error for QueryRowsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Inserts the row of a query with `domain` set to `target` and state QUEUED. Returns `false` if the query exists; its
/// row is not changed.
///
/// # Errors
/// If the database fails.
pub async fn add_query(
    connection: &mut AsyncPgConnection,
    query: &NewQuery<'_>,
    target: &str,
) -> Result<bool, QueryRowsError> {
    use shepherd_brain::dsl;
    let rows = diesel::insert_into(dsl::shepherd_brain)
        .values((query, dsl::domain.eq(target), dsl::state.eq(QUEUED), dsl::start_time.eq(diesel::dsl::now)))
        .on_conflict(dsl::qid)
        .do_nothing()
        .execute(connection)
        .await
        .map_err(|error| QueryRowsError::new(format!("add query {}", query.qid), error))?;
    Ok(rows == 1)
}

/// Records that `query_id` waits for the callback `callback_id`; `otel_trace` is the trace to continue when it arrives.
///
/// # Errors
/// If the database fails, or if the query does not exist.
pub async fn add_callback(
    connection: &mut AsyncPgConnection,
    query_id: &str,
    callback_id: &str,
    otel_trace: Option<&str>,
) -> Result<(), QueryRowsError> {
    use callbacks::dsl;
    let row = (dsl::query_id.eq(query_id), dsl::callback_id.eq(callback_id), dsl::otel_trace.eq(otel_trace));
    let added = diesel::insert_into(dsl::callbacks).values(row).execute(connection).await;
    added.map(drop).map_err(|error| QueryRowsError::new(format!("add a callback to query {query_id}"), error))
}

/// Sets a query to COMPLETED with `status` (such as `OK` or `ERROR`) and deletes its callbacks in one transaction.
/// Idempotent.
///
/// # Errors
/// If the database fails; nothing is changed.
pub async fn finish_query(
    connection: &mut AsyncPgConnection,
    qid: &str,
    status: &str,
) -> Result<Finished, QueryRowsError> {
    let finishing = connection.transaction::<_, DieselError, _>(async |connection| {
        use shepherd_brain::dsl;
        let open = dsl::shepherd_brain.find(qid).filter(dsl::state.is_distinct_from(COMPLETED));
        let flipped = diesel::update(open)
            .set((dsl::state.eq(COMPLETED), dsl::status.eq(status), dsl::stop_time.eq(diesel::dsl::now)))
            .execute(connection)
            .await?;
        diesel::delete(callbacks::table.filter(callbacks::query_id.eq(qid))).execute(connection).await?;
        if flipped > 0 {
            return Ok(Finished::Now);
        }
        let known: i64 = dsl::shepherd_brain.find(qid).count().get_result(connection).await?;
        Ok(if known > 0 { Finished::Before } else { Finished::Unknown })
    });
    finishing.await.map_err(|error| QueryRowsError::new(format!("finish query {qid}"), error))
}
