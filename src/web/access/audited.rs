//! No change without a row that tells of it.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::Instrument;

use super::caller::Caller;
use crate::actors::io::{Io, OBSERVES_ONLY, POSTGRES_LATE};
use crate::postgres::audit::{self, Asked, Outcome};
use crate::web::Front;
use crate::web::problem::Problem;

/// Postgres is given this long to take a row.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// How often it is tried to write down how a change ended, after pauses of 1, 2, 4, … s.
const TRIES: u32 = 8;

/// Does `work` with a row in the audit that was written before it began, and completes the row
/// with what `work` answers: the JSON is kept there, and given back beside whatever else it made.
///
/// A client that hangs up stops neither the work nor its record.
///
/// # Errors
/// Those of `work`; [`Problem::Forbidden`] from a monitor that only observes; without Postgres [`Problem::Unavailable`], and `work` was not begun.
pub async fn audited<T: 'static>(
    front: &Front,
    caller: &Caller,
    action: &'static str,
    parameters: Value,
    work: impl Future<Output = Result<(Value, T), Problem>> + 'static,
) -> Result<(Value, T), Problem> {
    if front.io.observe_only {
        return Err(Problem::Forbidden(OBSERVES_ONLY.to_owned()));
    }
    let asked = Asked {
        who: caller.name.clone(),
        role: caller.role.as_str(),
        address: caller.address.clone(),
        action,
        parameters,
    };
    let io = front.io.clone();
    let doing = async move {
        let pool = io.web.changes.clone();
        let row = io.run(WRITE_WITHIN, POSTGRES_LATE, async move { audit::begin(&pool, asked).await }).await.map_err(
            |trouble| {
                let why = trouble.detail;
                Problem::Unavailable(format!("nothing was changed: the audit log cannot be written ({why})"))
            },
        )?;
        let done = work.await;
        let (outcome, result) = match &done {
            Ok((answer, _)) => (Outcome::Done, answer.clone()),
            Err(problem) if problem.means_nothing_was_done() => {
                (Outcome::Refused, json!({"problem": problem.to_string()}))
            }
            Err(problem) => (Outcome::Failed, json!({"problem": problem.to_string()})),
        };
        let end = write_end(io, row, action, outcome, result);
        // Usually there before the answer; when Postgres is slow, nobody waits for it.
        drop(actix_web::rt::time::timeout(WRITE_WITHIN, actix_web::rt::spawn(end.in_current_span())).await);
        done
    };
    actix_web::rt::spawn(doing.in_current_span()).await.unwrap_or_else(|error| {
        tracing::error!(%error, action, "a change panicked");
        Err(Problem::Unavailable("internal error; see the log".to_owned()))
    })
}

async fn write_end(io: Io, row: i64, action: &'static str, outcome: Outcome, result: Value) {
    let mut pause = Duration::from_secs(1);
    for attempt in 1..=TRIES {
        let (pool, result) = (io.web.changes.clone(), result.clone());
        let writing = io.run(WRITE_WITHIN, POSTGRES_LATE, async move { audit::end(&pool, row, outcome, result).await });
        match writing.await {
            Ok(()) => return,
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
}
