//! What the program can be asked for: its commands and flags, from which `--help`, the man pages and
//! the shells' completions are made.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::settings::{Entry, TABLE};
use crate::{dead_letters, demo, doctor, give_back, test_rules};

const NAME: &str = "shepherd-monitor";

/// Everything that the program understands.
#[must_use]
pub fn command() -> Command {
    for_people().subcommand(demo::worker::command())
}

/// The commands that people give; what a setting's flag is called and means is in [`TABLE`].
fn for_people() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Watches a fleet of workers on Redis streams: who is alive, what waits, what went wrong.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("serve")
                .about("Watch the fleet and serve its pages and API")
                .after_help(
                    "Every setting is a flag or an environment variable; the flag wins. Redis and Postgres need not \
                     be there at the start: the page says so and recovers by itself.",
                )
                .args(settings_of(|_| true)),
        )
        .subcommand(doctor::command(settings_of(|_| true)))
        .subcommand(
            Command::new("demo")
                .about("Watch a simulated fleet on a private Redis and Postgres, all gone at the end")
                .arg(
                    Arg::new("history")
                        .long("history")
                        .value_name("DAYS")
                        .value_parser(days)
                        .help("Give the fleet a past of so many days (30d; at most 60d)"),
                )
                .after_help("Needs redis-server and PostgreSQL to be installed, not to be running. Ctrl-C ends it.")
                .args(settings_of(|group| !matches!(group, "Redis" | "Postgres"))),
        )
        .subcommand(
            Command::new("demo-fleet")
                .about("Run the simulated fleet on a Redis and a Postgres that are there, for a monitor to watch")
                .after_help("For trying things out: it fills both, and what it wrote stays. Ctrl-C ends its workers.")
                .args(settings_of(|group| matches!(group, "Redis" | "Postgres"))),
        )
        .subcommand(
            Command::new("check-config")
                .about("Read a file of alert rules and say what is wrong with it, with line and column")
                .arg(Arg::new("FILE").required(true).help("The file, such as alerts.yaml")),
        )
        .subcommand(test_rules::command(
            TABLE
                .iter()
                .filter(|entry| entry.group == "Postgres" || entry.env == "MONITOR_HISTORY_INTERVAL_SEC")
                .map(setting)
                .collect(),
        ))
        .subcommand(
            Command::new("notify-test")
                .about("Send a test message through each channel and show the answers")
                .args(settings_of(|group| matches!(group, "Alerts" | "Server"))),
        )
        .subcommand(
            Command::new("health")
                .about("Ask the monitor that runs here with the same settings whether it lives; fails if not")
                .arg(
                    Arg::new("ready")
                        .long("ready")
                        .action(ArgAction::SetTrue)
                        .help("Ask whether it does its work instead: /readyz"),
                )
                .args(settings_of(|group| group == "Server")),
        )
        .subcommand(dead_letters::command(&settings_of(|group| group == "Redis")))
        .subcommand(give_back::command(settings_of(|group| group == "Postgres")))
        .subcommand(Command::new("settings").about("Print every setting with its default, as docs/settings.md"))
        .subcommand(
            Command::new("completions")
                .about("Print the completions of a shell")
                .arg(Arg::new("SHELL").required(true).value_parser(value_parser!(Shell)).help("Whose"))
                .after_help("For bash: shepherd-monitor completions bash > ~/.local/share/bash-completion/completions/shepherd-monitor"),
        )
        .subcommand(
            Command::new("man")
                .about("Write the man pages, one for each command")
                .arg(Arg::new("FOLDER").required(true).help("Where to; it is there already"))
                .after_help("To read one of them: man -l FOLDER/shepherd-monitor-serve.1"),
        )
}

fn settings_of(groups: impl Fn(&str) -> bool) -> Vec<Arg> {
    TABLE.iter().filter(|entry| groups(entry.group)).map(setting).collect()
}

fn setting(entry: &'static Entry) -> Arg {
    let help = if entry.default.is_empty() {
        entry.help.to_owned()
    } else {
        format!("{} [default: {}]", entry.help, entry.default)
    };
    Arg::new(entry.env)
        .long(entry.flag())
        .env(entry.env)
        .hide_env_values(true)
        .help_heading(entry.group)
        .value_name("VALUE")
        .allow_hyphen_values(true)
        .help(help)
}

/// `30d`, or `30`.
fn days(text: &str) -> Result<u32, String> {
    let days = text.strip_suffix('d').unwrap_or(text).parse().ok();
    days.filter(|days| (1..=60).contains(days)).ok_or_else(|| "expected days, such as 30d, at most 60d".to_owned())
}

/// What a shell needs to complete the program's commands and flags.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    if shell != Shell::Bash {
        clap_complete::generate(shell, &mut for_people(), NAME, &mut script);
        return script;
    }
    // In bash's script a hyphen in the program's name is worded in two ways (clap_complete 4.6.11), and no flag is
    // found: it is made for a name without one, and then completes the right name.
    let plain = NAME.replace('-', "_");
    clap_complete::generate(shell, &mut for_people(), &plain, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    script.replace(&format!("-o default {plain}\n"), &format!("-o default {NAME}\n")).into_bytes()
}

/// The texts that were given, by variable; a subcommand may not have all of them.
#[must_use]
pub fn texts(given: &ArgMatches) -> BTreeMap<&'static str, String> {
    let text = |name| given.try_get_one::<String>(name).ok()?.cloned();
    TABLE.iter().filter_map(|entry| Some((entry.env, text(entry.env)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        command().debug_assert();
    }
}
