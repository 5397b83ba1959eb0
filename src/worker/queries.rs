//! A query's row and its callbacks: the library's optional database half (feature
//! `worker-database`).
//!
//! The two tables are the fleet's own, as the contract describes them. Times are the server's
//! `NOW()` in its session's zone. A query that is COMPLETED stays so, whoever finishes it again.

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

/// What is known of a query when it comes in.
#[derive(Debug, Clone, Default, Insertable)]
#[diesel(table_name = shepherd_brain)]
pub struct NewQuery<'a> {
    /// Its name; at most 255 characters.
    pub qid: &'a str,
    /// Who sent it.
    pub submitter: Option<&'a str>,
    /// From which address.
    pub remote_ip: Option<&'a str>,
    /// To which host.
    pub hostname: Option<&'a str>,
    /// Where its answer will be kept.
    pub response_id: Option<&'a str>,
    /// Who wants to be told.
    pub callback_url: Option<&'a str>,
    /// Anything people should know.
    pub description: Option<&'a str>,
}

/// What finishing a query did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// It is COMPLETED by this call.
    Now,
    /// It had been COMPLETED before, and was left as it was.
    Before,
    /// There is no such query.
    Unknown,
}

/// A query's rows were not changed. `Display` says what failed, on which query, and what to do about it where
/// that is known; the source is the database's error.
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

    /// The condition of the database, such as a full disk, that made it refuse; `None` for other errors.
    #[must_use]
    pub fn condition(&self) -> Option<DatabaseCondition> {
        self.condition
    }

    /// The error as diesel has it.
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

/// Writes the row of a query to `target` (its `domain`), QUEUED from now on. False when the query
/// is known already: its row is left as it is.
///
/// # Errors
/// Of the database.
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

/// Notes that `query_id` waits for an answer with the name `callback_id`; `otel_trace` is the
/// trace to go on with when it comes.
///
/// # Errors
/// Of the database; also when there is no such query.
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

/// Sets a query COMPLETED with `status` (such as `OK` or `ERROR`) and deletes all its callbacks,
/// both or neither. Safe to repeat.
///
/// # Errors
/// Of the database; nothing is changed then.
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
