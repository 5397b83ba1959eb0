//! Changes made at the command line, recorded in the audit log like those of the pages.

use std::future::Future;

use serde_json::{Value, json};

use super::output::complain;
use crate::access::Role;
use crate::postgres::audit::{self, Outcome, RequestedChange};
use crate::postgres::connection::PgPool;

/// Address of changes made at the command line.
const ADDRESS: &str = "command line";

/// Records the start of a change in the name of the operating-system user. Returns the row ID.
///
/// # Errors
/// If Postgres fails; the change must not start then.
pub(super) async fn begin(pool: &PgPool, action: &'static str, parameters: Value) -> Result<i64, String> {
    // Who has the credentials of Redis and Postgres may do everything.
    let (who, role) = (user(), Role::Admin.as_str());
    let change = RequestedChange { who, role, address: ADDRESS.to_owned(), action, parameters };
    audit::begin(pool, change).await.map_err(|trouble| {
        format!(
            "nothing was changed: the audit log cannot be written ({}). Check DATABASE_URL or run shepherd-monitor \
             doctor",
            trouble.detail
        )
    })
}

/// Records the outcome of a change.
pub(super) async fn end(pool: &PgPool, row: i64, done: Result<&Value, &str>) {
    let (outcome, result) = match done {
        Ok(result) => (Outcome::Done, result.clone()),
        Err(reason) => (Outcome::Failed, json!({"problem": reason})),
    };
    if let Err(trouble) = audit::end(pool, row, outcome, result).await {
        complain(format_args!("cannot record the outcome in row {row} of the audit log: {}", trouble.detail));
    }
}

/// Runs `work` between [`begin`] and [`end`].
///
/// # Errors
/// Those of `work`, and of [`begin`], in which case `work` did not run.
pub(super) async fn audited<T, E: ToString>(
    pool: &PgPool,
    action: &'static str,
    parameters: Value,
    work: impl Future<Output = Result<(Value, T), E>>,
) -> Result<Result<T, E>, String> {
    let row = begin(pool, action, parameters).await?;
    let done = work.await;
    let failed = done.as_ref().err().map(E::to_string);
    end(pool, row, done.as_ref().map(|(result, _)| result).map_err(|_| failed.as_deref().unwrap_or_default())).await;
    Ok(done.map(|(_, value)| value))
}

/// Name of the operating-system user; with the one who called `sudo`, as far as the environment says.
pub(super) fn user() -> String {
    let id = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&users, id).unwrap_or_else(|| format!("uid {id}"));
    match std::env::var("SUDO_USER") {
        Ok(caller) if id == 0 => format!("{name} (sudo: {caller})"),
        _ => name,
    }
}

/// The name of a user in the format of `/etc/passwd`.
fn name_of(users: &str, id: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn user_names_are_found_by_id() {
        let users = "root:x:0:0:root:/root:/bin/sh\n\nbad\n:x:7:7::/:\nbo:x:1000:1000:Bo,,,:/home/bo:/bin/sh\n";
        assert_eq!(name_of(users, 0).as_deref(), Some("root"));
        assert_eq!(name_of(users, 1000).as_deref(), Some("bo"));
        assert_eq!(name_of(users, 7), None);
    }
}
