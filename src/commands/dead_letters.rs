//! `shepherd-monitor dead-letters`: lists, requeues and deletes dead letters.
//!
//! [`command`] defines the arguments, and [`run`] executes them and prints the result. Dead letters and the scripts for
//! atomic steps are in [`redis_streams`](crate::redis_streams). Changes are recorded in the audit log; deleted dead
//! letters are moved to the recycle bin, as on the pages.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use super::audited::{audited, user};
use super::{flags, output, runtime, settings};
use crate::contract::Name;
use crate::doctor::report::count;
use crate::fleet::message::{Action, Chosen, MessageState, Part};
use crate::operator::{self, Sources};
use crate::postgres::connection as postgres;
use crate::printable::{Escaped, Lines};
use crate::redis_streams::connection as redis;
use crate::redis_streams::tasks::dead_letters::{self, DeadLetter, Delivery};
use crate::redis_streams::tasks::{Address, EntryId, Link, LinkError};
use crate::settings::Settings;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Dead letters per Redis command.
const PAGE: usize = 100;
/// Default number of listed dead letters.
const LISTED: &str = "50";
/// Maximum length of an error in a list, characters.
const LINE: usize = 100;

/// The subcommand with its own subcommands; each takes the Redis settings.
pub(super) fn command() -> Command {
    let with = |name: &'static str, about: &'static str, groups: &'static [&'static str]| {
        let stream = Arg::new("stream")
            .long("stream")
            .value_name("NAME")
            .required(true)
            .value_parser(value_parser!(OsString))
            .help("Stream whose dead letters to use, such as aragorn.lookup");
        Command::new(name).about(about).arg(stream).args(flags(|entry| groups.contains(&entry.group)))
    };
    let verb = |name, about| with(name, about, &["Redis"]);
    let change = |name, about| with(name, about, &["Redis", "Postgres"]);
    let chosen = |command: Command, what: &'static str| {
        let ids = Arg::new("id")
            .long("id")
            .value_name("ID")
            .num_args(1..)
            .action(ArgAction::Append)
            .value_parser(EntryId::from_str)
            .help("IDs of the dead letters, as shown in the first column of `list`");
        let all = Arg::new("all").long("all").action(ArgAction::SetTrue).help(what);
        command.args([ids, all]).group(ArgGroup::new("which").args(["id", "all"]).required(true))
    };
    let most = Arg::new("limit")
        .long("limit")
        .value_name("N")
        .default_value(LISTED)
        .value_parser(value_parser!(u32).range(1..))
        .help("Maximum number of dead letters to show, oldest first");
    Command::new("dead-letters")
        .about("List, show, replay or delete dead letters")
        .long_about(
            "A task that exceeds the delivery limit of its worker, or that fails where no stream follows, is moved \
             from its stream NAME to NAME:dead with its history. It stays there until it is replayed or deleted.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(verb("list", "List dead letters, one per line: ID, query, deliveries, error").arg(most))
        .subcommand(chosen(verb("show", "Show dead letters in full: consumers, times, fields"), "All"))
        .subcommand(
            chosen(
                change("replay", "Add dead letters to their stream again as new tasks"),
                "All dead letters of the stream",
            )
            .after_help(
                "The tasks are added to the end of the stream with a new delivery count and the same idempotency \
                 key. Every consumer group of the stream receives them.",
            ),
        )
        .subcommand(
            chosen(change("delete", "Move dead letters to the recycle bin"), "All dead letters of the stream")
                .alias("drop")
                .after_help(
                    "They can be restored for 30 days on the page /admin/recycle-bin. The change is recorded in the \
                     audit log; while Postgres is unreachable, nothing is deleted.",
                ),
        )
}

/// Executes the command and prints the result.
///
/// # Errors
/// In one line: a missing dead letter, an error of Redis, or no connection. Results up to then are printed.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let (verb, given) = given.subcommand().ok_or("no dead-letters command given")?;
    let settings = settings(given)?;
    let stream: OsString = given.get_one::<OsString>("stream").cloned().unwrap_or_default();
    if stream.is_empty() {
        return Err("the stream name is empty; expected a name such as aragorn.lookup".to_owned());
    }
    let address = Address::from_url("REDIS_URL", settings.redis_url.reveal()).map_err(|bad| bad.to_string())?;
    let mut session = Session {
        link: Link::new(address, RESPONSE_TIMEOUT),
        stream: Name::from(stream.into_vec()),
        output: Lines::default(),
    };
    let done = match verb {
        "replay" | "delete" => runtime()?.block_on(session.change(verb, given, &settings)),
        _ => runtime()?.block_on(session.serve(verb, given)).map_err(|trouble| trouble.of(&session.stream)),
    };
    output::print(&session.output)?;
    done
}

enum Trouble {
    Redis(LinkError),
    Missing(Vec<EntryId>),
    /// The recycle bin cannot be used, or the action ended early.
    Stopped(String),
}

impl Trouble {
    fn of(&self, stream: &Name) -> String {
        match self {
            Self::Redis(e) if e.code() == "WRONGTYPE" => {
                format!("{}:dead is not a dead-letter stream ({e})", printable(stream.as_bytes()))
            }
            Self::Redis(e) => e.to_string(),
            Self::Missing(ids) => {
                let ids: Vec<&str> = ids.iter().map(EntryId::as_str).collect();
                format!("no such dead letter of {}: {}", printable(stream.as_bytes()), ids.join(" "))
            }
            Self::Stopped(reason) => reason.clone(),
        }
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Self {
        Self::Redis(error)
    }
}

/// One invocation: the connection, the stream, and the output.
struct Session {
    link: Link,
    stream: Name,
    output: Lines,
}

impl Session {
    async fn serve(&mut self, verb: &str, given: &ArgMatches) -> Result<(), Trouble> {
        if verb == "list" {
            let most = given.get_one::<u32>("limit").copied().unwrap_or(1);
            return self.list(usize::try_from(most).unwrap_or(usize::MAX)).await;
        }
        let ids = self.chosen(given).await?;
        let mut shown = Vec::new();
        for page in ids.chunks(PAGE) {
            shown.extend(self.show(page).await?);
        }
        missing(given, ids, &shown)
    }

    /// Replays or deletes dead letters, with a row in the audit log.
    async fn change(&mut self, verb: &str, given: &ArgMatches, settings: &Settings) -> Result<(), String> {
        let stream = self.stream.clone();
        let ids = self.chosen(given).await.map_err(|trouble| trouble.of(&stream))?;
        let sources = Sources {
            redis: redis::pool(settings.redis_url.reveal(), RESPONSE_TIMEOUT).map_err(|trouble| trouble.detail)?,
            postgres: postgres::pool(settings.database_url.reveal(), settings.pool_timeout)
                .map_err(|trouble| trouble.detail)?,
        };
        let (action, name) = match verb {
            "replay" => (Action::Retry, "retry messages"),
            _ => (Action::Drop, "move messages to recycle bin"),
        };
        let listed: Vec<&str> = ids.iter().map(EntryId::as_str).take(20).collect();
        let parameters = json!({
            "action": action, "messages": ids.len(), "streams": [stream.to_text()], "dead_letters": listed,
            "all": given.get_flag("all"),
        });
        let work = async {
            match action {
                Action::Retry => self.replay(&ids).await,
                _ => self.delete(&sources, &ids).await,
            }
        };
        // An outcome that is only partial is in the result; the error follows.
        let work = async { work.await.map_err(|trouble| trouble.of(&stream)) };
        let (done, stopped) = audited(&sources.postgres, name, parameters, work).await??;
        match stopped {
            Some(trouble) => Err(trouble.of(&stream)),
            None => missing(given, ids, &done).map_err(|trouble| trouble.of(&stream)),
        }
    }

    async fn replay(&mut self, ids: &[EntryId]) -> Result<(Value, Done), Trouble> {
        let (mut done, mut stopped) = (Vec::new(), None);
        for page in ids.chunks(PAGE) {
            match dead_letters::replay(&mut self.link, &self.stream, page).await {
                Ok(replayed) => {
                    done.extend(replayed.ids);
                    stopped = replayed.refused.map(Trouble::Redis);
                }
                Err(error) => stopped = Some(Trouble::Redis(error)),
            }
            if stopped.is_some() {
                break;
            }
        }
        let stream = printable(self.stream.as_bytes());
        self.tell(format_args!("{} replayed into {stream}", done.len()));
        let problem = stopped.as_ref().map(|trouble| trouble.of(&self.stream));
        Ok((json!({"done": done.len(), "problem": problem}), (done, stopped)))
    }

    /// Moves dead letters to the recycle bin.
    async fn delete(&mut self, sources: &Sources, ids: &[EntryId]) -> Result<(Value, Done), Trouble> {
        let mut present = Vec::new();
        for page in ids.chunks(PAGE) {
            let letters = dead_letters::find(&mut self.link, &self.stream, page).await?;
            present.extend(letters.into_iter().map(|letter| (letter.entry.id, letter.deliveries)));
        }
        let entries = present.iter().map(|(id, deliveries)| (0, id.as_str().to_owned(), *deliveries)).collect();
        let part = Part {
            stream: self.stream.as_bytes().to_vec(),
            group: Vec::new(),
            state: MessageState::Dead,
            owners: vec![Vec::new()],
            entries,
        };
        let why = "command line".to_owned();
        let chosen = Chosen { action: Action::Drop, why, min_idle_ms: 0, of_the_dead: false, parts: vec![part] };
        let applied = operator::apply(sources, &chosen, &user()).await;
        let (stream, batch) = (printable(self.stream.as_bytes()), applied.batch.clone().unwrap_or_default());
        let letters = count(usize::try_from(applied.done).unwrap_or(usize::MAX), "dead letter");
        let into = if applied.done > 0 { format!(" (batch {batch})") } else { String::new() };
        self.tell(format_args!("{letters} of {stream} moved to the recycle bin{into}"));
        let refused = applied.refused.as_ref().map(|(count, error)| format!("{count} refused by Redis: {error}"));
        let problem = applied.ended_early.clone().or(refused);
        let result =
            json!({"done": applied.done, "batch": applied.batch.filter(|_| applied.done > 0), "problem": problem});
        let done = present.into_iter().map(|(id, _)| id).collect();
        Ok((result, (done, problem.map(Trouble::Stopped))))
    }

    /// Returns the IDs that the arguments select.
    async fn chosen(&mut self, given: &ArgMatches) -> Result<Vec<EntryId>, Trouble> {
        match given.get_many::<EntryId>("id") {
            Some(ids) => Ok(ids.cloned().collect()),
            None => Ok(self.all().await?),
        }
    }

    /// Returns the IDs of the current dead letters; later ones are not touched.
    async fn all(&mut self) -> Result<Vec<EntryId>, LinkError> {
        let mut ids: Vec<EntryId> = Vec::new();
        loop {
            let start = ids.last().map_or_else(|| "-".to_owned(), |last| format!("({last}"));
            let page = dead_letters::list(&mut self.link, &self.stream, &start, PAGE).await?;
            let full = page.len() == PAGE;
            ids.extend(page.into_iter().map(|letter| letter.entry.id));
            if !full {
                return Ok(ids);
            }
        }
    }

    async fn list(&mut self, most: usize) -> Result<(), Trouble> {
        let total = dead_letters::count(&mut self.link, &self.stream).await?;
        let letters = dead_letters::list(&mut self.link, &self.stream, "-", most).await?;
        for letter in &letters {
            let query = letter.entry.fields.get("query_id").map_or_else(|| "—".to_owned(), printable);
            let error: String = printable(letter.error.as_bytes()).chars().take(LINE).collect();
            let (id, deliveries) = (&letter.entry.id, letter.deliveries);
            self.tell(format_args!("{id}  query {query}  deliveries {deliveries}  {error}"));
        }
        let stream = self.stream.clone();
        match u64::try_from(letters.len()) {
            Ok(0) => self.tell(format_args!("no dead letters of {stream}")),
            Ok(shown) if shown < total => {
                self.tell(format_args!("the oldest {shown} of {total} dead letters of {stream}; --limit shows more"));
            }
            _ => {}
        }
        Ok(())
    }

    async fn show(&mut self, ids: &[EntryId]) -> Result<Vec<EntryId>, LinkError> {
        let letters = dead_letters::find(&mut self.link, &self.stream, ids).await?;
        for letter in &letters {
            self.output.append(&whole(letter));
        }
        Ok(letters.into_iter().map(|letter| letter.entry.id).collect())
    }

    fn tell(&mut self, line: std::fmt::Arguments<'_>) {
        self.output.add(line);
    }
}

/// The processed dead letters, and why not all were processed.
type Done = (Vec<EntryId>, Option<Trouble>);

/// With `--all`, a dead letter that another client took meanwhile is not an error.
fn missing(given: &ArgMatches, ids: Vec<EntryId>, done: &[EntryId]) -> Result<(), Trouble> {
    let missing: Vec<EntryId> = ids.into_iter().filter(|id| !done.contains(id)).collect();
    if given.get_flag("all") || missing.is_empty() { Ok(()) } else { Err(Trouble::Missing(missing)) }
}

/// Formats a dead letter with all details.
fn whole(letter: &DeadLetter) -> Lines {
    let DeadLetter { entry, id, group, deliveries, at_ms, error, history } = letter;
    let mut text = Lines::default();
    text.add(&entry.id);
    let mut line = |name: &str, value: &str| {
        text.add(format_args!("  {name:<11} {value}"));
    };
    line("origin", &format!("entry {} in group {}", printable(id.as_bytes()), printable(group.as_bytes())));
    line("moved at", &time(*at_ms));
    line("deliveries", &deliveries.to_string());
    for Delivery { consumer, deliveries, delivered_ms, lost_ms, reason, .. } in history {
        let held = Duration::from_millis(lost_ms.saturating_sub(*delivered_ms));
        let (consumer_name, since) = (printable(consumer.as_bytes()), time(*delivered_ms));
        line(
            "",
            &format!(
                "delivery {deliveries}: {consumer_name}, {since}, held for {held:?}: {}",
                printable(reason.as_bytes())
            ),
        );
    }
    line("error", &printable(error.as_bytes()));
    for (name, value) in letter.own_fields() {
        line(&printable(name), &printable(value));
    }
    text
}

/// Formats Unix milliseconds as UTC.
fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    time.map_or_else(|| "—".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Returns bytes as text on one line.
fn printable(bytes: &[u8]) -> String {
    Escaped(Name::from(bytes)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_characters_are_escaped() {
        assert_eq!(printable(b"a\x1b[2J\nb\xff \xc3\xa4"), "a\\u{1b}[2J\\nb\\xff ä");
    }

    #[test]
    fn commands_require_a_selection_of_dead_letters() {
        let parsed = |words: &[&str]| command().try_get_matches_from([&["dead-letters"], words].concat());
        assert!(parsed(&["list", "--stream", "a"]).is_ok());
        assert!(parsed(&["drop", "--stream", "a", "--id", "1-0", "2-0", "--id", "3-0"]).is_ok());
        for wrong in [
            &["list"][..],
            &["drop", "--stream", "a"],
            &["drop", "--stream", "a", "--all", "--id", "1-0"],
            &["replay", "--stream", "a", "--id", "-"],
            &["list", "--stream", "a", "--limit", "0"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
