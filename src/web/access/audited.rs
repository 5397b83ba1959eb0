//! Changes that are recorded in the audit log before they begin.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::Instrument;

use super::caller::Caller;
use crate::access::audit_chain::Head;
use crate::actors::io::{Io, OBSERVES_ONLY, POSTGRES_LATE};
use crate::postgres::audit::{self, Outcome, RequestedChange};
use crate::web::AppState;
use crate::web::problem::Problem;

/// Timeout of writing a row to Postgres.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// Number of attempts to record the outcome of a change, with pauses of 1, 2, 4, … s.
const TRIES: u32 = 8;

/// A change, boxed: a task is moved as a whole when it starts and when it ends.
type Work<T> = Pin<Box<dyn Future<Output = Result<(Value, T), Problem>>>>;

/// Writes a row to the audit log, then runs `work` and stores its JSON result in the row. Returns the result together
/// with the other value of `work`.
///
/// A client that disconnects stops neither the work nor its record.
///
/// # Errors
/// Those of `work`; [`Problem::Forbidden`] in observe-only mode; [`Problem::Unavailable`] without Postgres, in which
/// case `work` did not run.
pub async fn audited<T: 'static>(
    front: &AppState,
    caller: &Caller,
    action: &'static str,
    parameters: Value,
    work: impl Future<Output = Result<(Value, T), Problem>> + 'static,
) -> Result<(Value, T), Problem> {
    if front.io.observe_only {
        return Err(Problem::Forbidden(OBSERVES_ONLY.to_owned()));
    }
    let asked = RequestedChange {
        who: caller.name.clone(),
        role: caller.role.as_str(),
        address: caller.address.clone(),
        action,
        parameters,
    };
    let (io, security) = (front.io.clone(), Arc::clone(&front.lock.security));
    let work: Work<T> = Box::pin(work);
    let doing = async move {
        let (pool, begun) = (io.web.changes.clone(), asked.clone());
        let row = io.run(WRITE_WITHIN, POSTGRES_LATE, async move { audit::begin(&pool, begun).await }).await;
        let row = row.map_err(|trouble| {
            security.changed(&asked, None, None, None);
            let why = trouble.detail;
            Problem::Unavailable(format!("nothing was changed: the audit log cannot be written ({why})"))
        })?;
        let done = work.await;
        let (outcome, result) = match &done {
            Ok((answer, _)) => (Outcome::Done, answer.clone()),
            Err(problem) if problem.means_nothing_was_done() => {
                (Outcome::Refused, json!({"problem": problem.to_string()}))
            }
            Err(problem) => (Outcome::Failed, json!({"problem": problem.to_string()})),
        };
        let end = async move {
            let head = write_end(io, row, action, outcome, result).await;
            security.changed(&asked, Some(row), Some(outcome), head.as_ref());
        };
        // Usually complete before the response; a slow Postgres must not delay the client.
        drop(actix_web::rt::time::timeout(WRITE_WITHIN, actix_web::rt::spawn(end.in_current_span())).await);
        done
    };
    actix_web::rt::spawn(doing.in_current_span()).await.unwrap_or_else(|error| {
        tracing::error!(%error, action, "a change panicked");
        Err(Problem::Unavailable("internal error; see the log".to_owned()))
    })
}

/// Records the outcome of a change. Returns the end of the hash chain.
async fn write_end(io: Io, row: i64, action: &'static str, outcome: Outcome, result: Value) -> Option<Head> {
    let mut pause = Duration::from_secs(1);
    for attempt in 1..=TRIES {
        let (pool, result) = (io.web.changes.clone(), result.clone());
        let writing = io.run(WRITE_WITHIN, POSTGRES_LATE, async move { audit::end(&pool, row, outcome, result).await });
        match writing.await {
            Ok(head) => return head,
            Err(trouble) if attempt == TRIES => {
                tracing::error!(
                    row,
                    action,
                    ?outcome,
                    error = trouble.detail,
                    "cannot record the outcome of a change in the audit log"
                );
            }
            Err(_) => {
                actix_web::rt::time::sleep(pause).await;
                pause *= 2;
            }
        }
    }
    None
}
