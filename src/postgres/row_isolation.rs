//! Stores rows of which Postgres rejects some for their content: those are set aside with the reason, the others are stored.

use diesel::result::{DatabaseErrorKind, Error as QueryError};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use futures_util::future::BoxFuture;

use super::connection::condition;
use super::wire::sqlstate_of;
use crate::history::stored_name::bounded_text;

/// Stores rows with one statement, all or none. The statement must also be valid for no rows.
pub(super) type Put<R> = for<'a> fn(&'a mut AsyncPgConnection, &'a [R]) -> BoxFuture<'a, Result<(), QueryError>>;

/// Result of storing rows individually.
#[derive(Debug, Default)]
pub(super) struct Isolated {
    stored: usize,
    refused: Vec<(String, QueryError)>,
}

/// Returns whether an error may concern single rows, as opposed to the connection, the state of the server, or a lock.
pub(super) fn may_be_about_rows(error: &QueryError) -> bool {
    let QueryError::DatabaseError(kind, info) = error else {
        return matches!(error, QueryError::DeserializationError(_) | QueryError::SerializationError(_));
    };
    let about_the_server = matches!(
        kind,
        DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::UnableToSendCommand
            | DatabaseErrorKind::SerializationFailure
            | DatabaseErrorKind::ReadOnlyTransaction
    );
    let given_up = match sqlstate_of(info.message()) {
        // Connections, the transaction's state, deadlocks, resources, locks, an operator, the system.
        Some(code) => ["08", "25", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class)),
        None => {
            let message = info.message().to_lowercase();
            ["canceling statement", "terminating connection", "deadlock"].iter().any(|words| message.contains(words))
        }
    };
    !about_the_server && condition(error).is_none() && !given_up
}

/// Stores `rows` by bisection, each half in a savepoint (or its own transaction), and sets aside single rows that are rejected.
/// `name` describes a row for the log.
///
/// # Errors
/// If the statement fails without rows too, or an error does not concern rows.
pub(super) async fn put_isolating<R: Sync>(
    connection: &mut AsyncPgConnection,
    rows: &[R],
    put: Put<R>,
    name: fn(&R) -> String,
) -> Result<Isolated, QueryError> {
    let mut isolated = Isolated::default();
    if rows.is_empty() {
        return Ok(isolated);
    }
    attempt(connection, &[], put).await?;
    let mut waiting = vec![rows];
    while let Some(some) = waiting.pop() {
        match (attempt(connection, some, put).await, some) {
            (Ok(()), _) => isolated.stored += some.len(),
            (Err(error), _) if !may_be_about_rows(&error) => return Err(error),
            (Err(error), [row]) => isolated.refused.push((name(row), error)),
            (Err(_), _) => {
                let (first, second) = some.split_at(some.len() / 2);
                waiting.extend([second, first]);
            }
        }
    }
    Ok(isolated)
}

async fn attempt<R: Sync>(connection: &mut AsyncPgConnection, rows: &[R], put: Put<R>) -> Result<(), QueryError> {
    connection.transaction(async |connection| put(connection, rows).await).await
}

impl Isolated {
    /// Combines two results.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.stored += other.stored;
        self.refused.extend(other.refused);
        self
    }

    /// If some rows were stored, logs the rejected ones and drops them.
    ///
    /// # Errors
    /// If every row was rejected: that is more likely a fault of the database, and the rows wait.
    pub(super) fn settle(self) -> Result<(), QueryError> {
        let Self { stored, mut refused } = self;
        if stored == 0 {
            return refused.pop().map_or(Ok(()), |(_, error)| Err(error));
        }
        for (row, error) in refused {
            tracing::error!(
                row = %bounded_text(&row, 200),
                reason = %error,
                "Postgres rejected a row; the row is skipped and the others are stored"
            );
        }
        Ok(())
    }
}
