//! `shepherd-monitor sessions`: lists and revokes browser sessions.

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde_json::json;

use super::audited::audited;
use super::output::time;
use super::{flags, output, runtime, settings};
use crate::doctor::report::count;
use crate::fleet::reading::SourceTrouble;
use crate::postgres::connection::{self, PgPool};
use crate::postgres::sessions::{self as stored, StoredSession};
use crate::printable::Lines;

/// Shown digits of the ID of a session, and the fewest that name one.
const SHOWN: usize = 12;

/// The subcommand with its own subcommands; each takes the Postgres settings.
pub(super) fn command() -> Command {
    let postgres = || flags(|entry| entry.group == "Postgres");
    let id = Arg::new("id")
        .long("id")
        .value_name("ID")
        .num_args(1..)
        .action(ArgAction::Append)
        .help("Sessions with these IDs, as shown in the first column of `list`");
    let user = Arg::new("user")
        .long("user")
        .value_name("NAME")
        .help("All sessions of this user, as shown in the second column of `list`");
    let all = Arg::new("all").long("all").action(ArgAction::SetTrue).help("All sessions");
    Command::new("sessions")
        .about("List or revoke browser sessions")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .about("List sessions, most recently used first: ID, user, role, login, last use")
                .args(postgres()),
        )
        .subcommand(
            Command::new("revoke")
                .about("End sessions; their open pages are disconnected within a second")
                .args([id, user, all])
                .group(ArgGroup::new("which").args(["id", "user", "all"]).required(true))
                .args(postgres()),
        )
}

/// Executes the command and prints the result.
///
/// # Errors
/// If there is no such session, or Postgres fails.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let (verb, given) = given.subcommand().ok_or("no sessions command given")?;
    let settings = settings(given)?;
    let pool = connection::pool(settings.database_url.reveal(), settings.pool_timeout).map_err(detail)?;
    match verb {
        "revoke" => runtime()?.block_on(revoke(&pool, given)),
        _ => output::print(&runtime()?.block_on(list(&pool))?),
    }
}

async fn list(pool: &PgPool) -> Result<Lines, String> {
    let mut lines = Lines::default();
    let sessions = stored::all(pool).await.map_err(detail)?;
    if sessions.is_empty() {
        lines.add("No sessions.");
    }
    let width = sessions.iter().map(|session| session.name.chars().count()).max().unwrap_or(0);
    for session in sessions {
        let StoredSession { name, role, began, used, .. } = &session;
        let (id, began, used) = (id(&session), time(*began), time(*used));
        lines.add(format_args!("{:.SHOWN$}  {name:width$}  {role:8}  login {began}  last used {used}", id));
    }
    Ok(lines)
}

async fn revoke(pool: &PgPool, given: &ArgMatches) -> Result<(), String> {
    let sessions = stored::all(pool).await.map_err(detail)?;
    let ids: Vec<&String> = given.get_many("id").unwrap_or_default().collect();
    if let Some(id) = ids.iter().find(|id| id.len() < SHOWN) {
        return Err(format!(
            "{id:?} is not the ID of a session: expected {SHOWN} hexadecimal digits or more, as in sessions list"
        ));
    }
    let user = given.get_one::<String>("user");
    let is_chosen = |session: &&StoredSession| {
        let id = id(session);
        given.get_flag("all") || user == Some(&session.name) || ids.iter().any(|chosen| id.starts_with(*chosen))
    };
    let chosen: Vec<&StoredSession> = sessions.iter().filter(is_chosen).collect();
    if chosen.is_empty() && !given.get_flag("all") {
        return Err("there is no such session; sessions list shows all".to_owned());
    }
    let mut users: Vec<&str> = chosen.iter().map(|session| session.name.as_str()).collect();
    users.sort_unstable();
    users.dedup();
    let parameters = json!({"sessions": chosen.len(), "users": users.iter().take(20).collect::<Vec<_>>()});
    let keys = chosen.iter().map(|session| session.id.clone()).collect();
    let removing = async {
        let removed = stored::remove_all(pool, keys).await.map_err(detail)?;
        Ok::<_, String>((json!({"revoked": removed}), removed))
    };
    let removed = audited(pool, "revoke sessions", parameters, removing).await??;
    output::line(format_args!("Revoked {}.", count(removed, "session")))
}

/// ID of a session: hexadecimal, not the cookie.
fn id(session: &StoredSession) -> String {
    session.id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn detail(trouble: SourceTrouble) -> String {
    trouble.detail
}
