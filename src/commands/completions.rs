//! `shepherd-monitor completions`: shell completion scripts.

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::{NAME, for_people, output};

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("completions")
        .about("Print a shell completion script")
        .arg(
            Arg::new("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("Shell to generate completions for"),
        )
        .after_help(
            "For bash: shepherd-monitor completions bash > ~/.local/share/bash-completion/completions/shepherd-monitor",
        )
}

/// Prints the script.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let shell = *given.get_one::<Shell>("SHELL").ok_or("no shell given")?;
    output::document(&script(shell))
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    let text = |script: &[u8]| String::from_utf8_lossy(script).into_owned();
    if shell != Shell::Bash {
        clap_complete::generate(shell, &mut for_people(), NAME, &mut script);
        return text(&script);
    }
    // The bash script of clap_complete 4.6.11 mangles a hyphen in the program's name in two different ways and then
    // finds no flags. Generate it for a name without a hyphen and register it for the real name.
    let plain = NAME.replace('-', "_");
    clap_complete::generate(shell, &mut for_people(), &plain, &mut script);
    text(&script).replace(&format!("-o default {plain}\n"), &format!("-o default {NAME}\n"))
}
