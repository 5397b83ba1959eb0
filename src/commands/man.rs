//! `shepherd-monitor man`: writes one man page per command.

use clap::{Arg, ArgMatches, Command};

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("man")
        .about("Write the man pages, one per command")
        .arg(Arg::new("FOLDER").required(true).help("Output directory; must exist"))
        .after_help("To read one: man -l FOLDER/shepherd-monitor-serve.1")
}

/// Writes the man pages.
///
/// # Errors
/// When the folder is not writable.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let folder = given.get_one::<String>("FOLDER").map(String::as_str).unwrap_or_default();
    clap_mangen::generate_to(super::command(), folder).map_err(|error| format!("{folder}: {error}"))
}
