//! `shepherd-monitor demo`: runs the monitor on a simulated fleet.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::serve::{listen, watch};
use super::{flags, output, texts};
use crate::demo::{Demo, DemoError, DemoOptions};
use crate::settings::Settings;
use crate::telemetry;

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("demo")
        .about("Run the monitor with a simulated fleet on a private Redis and Postgres; everything is deleted on exit")
        .arg(
            Arg::new("history")
                .long("history")
                .value_name("DAYS")
                .value_parser(days)
                .help("Generate this much history first (such as 30d; at most 60d)"),
        )
        .after_help(
            "Requires redis-server and PostgreSQL to be installed; they need not be running. Press Ctrl-C to stop.",
        )
        .args(flags(|entry| !matches!(entry.group, "Redis" | "Postgres")))
}

/// Parses `30d`, or `30`.
fn days(text: &str) -> Result<u32, String> {
    let days = text.strip_suffix('d').unwrap_or(text).parse().ok();
    days.filter(|days| (1..=60).contains(days)).ok_or_else(|| "expected days, such as 30d, at most 60d".to_owned())
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When the settings are invalid or the demonstration does not start.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let mut texts = texts(given);
    for (name, default) in [("LOG_LEVEL", "warn"), ("SERVER_MATURITY", "demo"), ("MONITOR_ABANDONED_QUERY_SEC", "180")]
    {
        texts.entry(name).or_insert_with(|| default.to_owned());
    }
    texts.entry("MONITOR_SEED_STREAMS").or_insert_with(Demo::seed_streams);
    // Report invalid settings before starting anything.
    let mut settings = Settings::from(&texts).map_err(|bad| bad.to_string())?;
    let _telemetry = telemetry::start(&settings.log_level, settings.collector.as_ref())?;
    let listener = match listen(&settings) {
        Err(_)
            if !matches!(
                given.value_source("MONITOR_PORT"),
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            ) =>
        {
            settings.port = 0;
            listen(&settings)?
        }
        other => other?,
    };
    output::line("Starting a private Redis, a private Postgres and a simulated fleet. Press Ctrl-C to stop.")?;
    let mut options = DemoOptions::new(say).map_err(|e| e.to_string())?;
    options.past_days = given.get_one("history").copied().unwrap_or(0);
    let demo = Demo::start(options).map_err(|error| described(&error))?;
    settings.redis_url = demo.redis_url().into();
    settings.database_url = demo.database_url().into();
    settings.fleet_database_url = None;
    // Removed together with the demonstration.
    settings.spool_folder = demo.redis().folder().join("spool");
    watch(&settings, listener)?;
    output::line("Stopping the fleet and its servers.")
}

/// Prints a line of the scenario. Standard output may be closed before the demonstration ends.
pub(super) fn say(line: &str) {
    _ = output::line(line);
}

/// Prints the log of a server that failed, if it is part of the error, and returns the error in one line.
pub(super) fn described(error: &DemoError) -> String {
    let text = error.to_string();
    let (first, log) = text.split_once('\n').unwrap_or((&text, ""));
    for line in log.lines() {
        output::detail(line);
    }
    first.to_owned()
}
