//! Storing rows of which Postgres refuses some for what they hold: those are set aside with the reason, and
//! the others are stored.

use diesel::result::{DatabaseErrorKind, Error as QueryError};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use futures_util::future::BoxFuture;

use super::connection::condition;
use super::wire::sqlstate_of;
use crate::history::stored_name::bounded_text;

/// Stores a slice of rows with one statement, all of them or none. No rows: the statement must be valid all the same.
pub(super) type Put<R> = for<'a> fn(&'a mut AsyncPgConnection, &'a [R]) -> BoxFuture<'a, Result<(), QueryError>>;

/// What storing rows one by one came to.
#[derive(Debug, Default)]
pub(super) struct Isolated {
    stored: usize,
    refused: Vec<(String, QueryError)>,
}

/// Whether an error may be about single rows, so that the others can be stored without them: not about the
/// connection, the server's condition, or a lock.
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

/// Stores `rows` by halves, each half in a savepoint (or a transaction of its own): what is refused alone is set
/// aside. `name` says which row it is.
///
/// # Errors
/// When the statement fails without rows too, or an error is not about rows.
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
    /// Both together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.stored += other.stored;
        self.refused.extend(other.refused);
        self
    }

    /// If some rows were stored, those that were refused are done with: the log says which and why.
    ///
    /// # Errors
    /// When every row was refused: that is more likely a fault of the database than of all rows, and they wait.
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
