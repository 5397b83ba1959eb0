//! `shepherd-monitor users`: named users, each with a role and a token that expires.
//!
//! [`users`](crate::access::users) defines the token and what proves a row. Each change is recorded in the audit log, and
//! running monitors apply it within a second.

use std::time::Duration;

use chrono::Utc;
use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::audited::audited;
use super::output::time;
use super::{flags, output, runtime, settings};
use crate::access::Role;
use crate::access::sealing::SealingKey;
use crate::access::users::{self, User, UserToken};
use crate::alerting::file;
use crate::fleet::reading::SourceTrouble;
use crate::postgres::connection::{self, PgPool};
use crate::postgres::users::{self as stored, StoredUser};
use crate::printable::Lines;

/// Default lifetime of a token.
const LIFETIME: &str = "90d";
/// Maximum lifetime of a token.
const LONGEST: Duration = Duration::from_secs(3660 * 86_400);

/// The subcommand with its own subcommands; each takes the Postgres settings and the secret key.
pub(super) fn command() -> Command {
    let with = |name: &'static str, about: &'static str| Command::new(name).about(about);
    let settings = || flags(|entry| entry.group == "Postgres" || entry.env.starts_with("MONITOR_SECRET_KEY"));
    let name = || {
        Arg::new("name")
            .value_name("NAME")
            .required(true)
            .value_parser(users::user_name)
            .help("Name of the user: letters, digits and . _ @ + -")
    };
    let role = |arg: Arg| {
        arg.value_name("ROLE").required(true).value_parser(str::parse::<Role>).help("viewer, operator or admin")
    };
    let expires = || {
        Arg::new("expires")
            .long("expires")
            .value_name("DURATION")
            .default_value(LIFETIME)
            .value_parser(lifetime)
            .help("Lifetime of the token, such as 12h or 90d")
    };
    Command::new("users")
        .about("Add, list and revoke named users and their tokens")
        .long_about(
            "A named user is a person or a program with a role and a token of its own, which expires. The token is \
             accepted where the token of a role is: as a bearer token, as a password, and on the login page. Changes \
             are recorded in the audit log and apply within a second, also to open pages.\n\n\
             The commands need the MONITOR_SECRET_KEY of the monitors.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            with("add", "Add a user and print its token")
                .after_help(
                    "The token is the only output on standard output. It is not stored and cannot be shown again.",
                )
                .arg(name())
                .arg(role(Arg::new("role").long("role")))
                .arg(expires())
                .args(settings()),
        )
        .subcommand(
            with("list", "List users, one per line: name, role, ID and expiry of the token, last use").args(settings()),
        )
        .subcommand(
            with("role", "Give a user another role; the token stays")
                .arg(name())
                .arg(role(Arg::new("role")))
                .args(settings()),
        )
        .subcommand(
            with("renew", "Replace the token of a user and print the new one; the old one ends at once")
                .arg(name())
                .arg(expires())
                .args(settings()),
        )
        .subcommand(with("revoke", "Remove a user; its token and sessions end").arg(name()).args(settings()))
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let expected = "expected a duration such as 12h or 90d, at most 3660d";
    file::duration(text)
        .filter(|lifetime| (Duration::from_secs(1)..=LONGEST).contains(lifetime))
        .ok_or(expected.to_owned())
}

/// Executes the command and prints the result.
///
/// # Errors
/// If there is no secret key, the user does not exist or exists already, or Postgres fails.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let (verb, given) = given.subcommand().ok_or("no users command given")?;
    let settings = settings(given)?;
    let secret = settings.secret_key.as_ref().ok_or(
        "MONITOR_SECRET_KEY is not set: expected the secret key of the monitors, which proves that you may change users",
    )?;
    let registry = Registry {
        key: users::sealing_key(secret.reveal()),
        pool: connection::pool(settings.database_url.reveal(), settings.pool_timeout).map_err(|e| e.detail)?,
    };
    let name = given.try_get_one::<String>("name").ok().flatten().cloned().unwrap_or_default();
    let role = || given.get_one::<Role>("role").copied().unwrap_or_default();
    let expires = || given.get_one::<Duration>("expires").copied().unwrap_or_default();
    let runtime = runtime()?;
    match verb {
        "add" => print_token(&runtime.block_on(registry.add(name, role(), expires()))?),
        "role" => runtime.block_on(registry.change_role(&name, role())),
        "renew" => print_token(&runtime.block_on(registry.renew(&name, expires()))?),
        "revoke" => runtime.block_on(registry.revoke(&name)),
        _ => output::print(&runtime.block_on(registry.list())?),
    }
}

fn print_token((user, token): &(User, UserToken)) -> Result<(), String> {
    let User { name, role, expires, .. } = user;
    let expires = time(*expires);
    output::detail(format_args!("Token of {name} ({role}), valid until {expires}. It cannot be shown again:"));
    output::line(token.reveal())
}

/// The users in Postgres.
struct Registry {
    key: SealingKey,
    pool: PgPool,
}

impl Registry {
    async fn add(&self, name: String, role: Role, lifetime: Duration) -> Result<(User, UserToken), String> {
        let (user, token) = with_new_token(name, role, lifetime)?;
        let row = StoredUser::new(&user, &self.key);
        let added = self.recorded("add user", &user, stored::add(&self.pool, row)).await?;
        if !added {
            let name = user.name;
            return Err(format!(
                "there is a user {name}: users renew {name} replaces the token, users role {name} ROLE the role"
            ));
        }
        Ok((user, token))
    }

    async fn list(&self) -> Result<Lines, String> {
        let rows = stored::all(&self.pool).await.map_err(detail)?;
        let (now, mut lines) = (Utc::now().timestamp(), Lines::default());
        if rows.is_empty() {
            lines.add("No users.");
        }
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in rows {
            let StoredUser { name, role, token_id, expires, used, .. } = row.clone();
            let used = used.map_or_else(|| "never used".to_owned(), |used| format!("last used {}", time(used)));
            let state = match row.proven(&self.key) {
                None => "INVALID: not written with this MONITOR_SECRET_KEY".to_owned(),
                Some(user) if user.is_expired(now) => format!("EXPIRED {}", time(expires)),
                Some(_) => format!("expires {}", time(expires)),
            };
            lines.add(format_args!("{name:width$}  {role:8}  {token_id}  {state}  {used}"));
        }
        Ok(lines)
    }

    async fn change_role(&self, name: &str, role: Role) -> Result<(), String> {
        let user = self.find(name).await?;
        let changed = User { role, ..user.clone() };
        self.replace("change role of user", &user, &changed).await
    }

    async fn renew(&self, name: &str, lifetime: Duration) -> Result<(User, UserToken), String> {
        let user = self.find(name).await?;
        let (renewed, token) = with_new_token(user.name.clone(), user.role, lifetime)?;
        self.replace("renew token of user", &user, &renewed).await?;
        Ok((renewed, token))
    }

    async fn revoke(&self, name: &str) -> Result<(), String> {
        // Also one with a row that is not proven.
        let removing = async {
            let removed = stored::remove(&self.pool, name).await.map_err(detail)?;
            if removed { Ok((json!({}), ())) } else { Err(no_such(name)) }
        };
        audited(&self.pool, "revoke user", json!({"user": name}), removing).await?
    }

    async fn find(&self, name: &str) -> Result<User, String> {
        let rows = stored::all(&self.pool).await.map_err(detail)?;
        let row = rows.into_iter().find(|row| row.name == name).ok_or_else(|| no_such(name))?;
        row.proven(&self.key).ok_or_else(|| {
            format!("the row of {name} was not written with this MONITOR_SECRET_KEY: revoke it and add the user again")
        })
    }

    async fn replace(&self, action: &'static str, from: &User, to: &User) -> Result<(), String> {
        let row = StoredUser::new(to, &self.key);
        let replaced = self.recorded(action, to, stored::replace(&self.pool, &from.token_id, row)).await?;
        if replaced { Ok(()) } else { Err(format!("{} was changed by another command; try again", from.name)) }
    }

    /// Makes a change with a row in the audit log.
    async fn recorded(
        &self,
        action: &'static str,
        user: &User,
        change: impl Future<Output = Result<bool, SourceTrouble>>,
    ) -> Result<bool, String> {
        let parameters = json!({
            "user": user.name, "role": user.role, "token": user.token_id, "expires": time(user.expires),
        });
        let work = async { change.await.map(|done| (json!({"changed": done}), done)).map_err(detail) };
        audited::<bool, String>(&self.pool, action, parameters, work).await?
    }
}

fn with_new_token(name: String, role: Role, lifetime: Duration) -> Result<(User, UserToken), String> {
    let token = UserToken::generate().ok_or("the system returns no random bits")?;
    let created = Utc::now().timestamp();
    let expires = created.saturating_add_unsigned(lifetime.as_secs());
    let (token_id, token_hash) = (token.id().to_owned(), token.hash()?);
    Ok((User { name, role, token_id, token_hash, created, expires }, token))
}

fn no_such(name: &str) -> String {
    format!("there is no user {name}; users list shows all")
}

fn detail(trouble: SourceTrouble) -> String {
    trouble.detail
}
