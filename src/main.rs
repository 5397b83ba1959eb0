//! The command line: reads settings, starts what was asked for, says in one line why it cannot.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use shepherd_monitor::application::Application;
use shepherd_monitor::settings::{Settings, TABLE};
use shepherd_monitor::telemetry;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("serve", given)) => serve(given),
        _ => Err("no such command".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("shepherd-monitor: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    Command::new("shepherd-monitor")
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
                .args(TABLE.iter().map(setting)),
        )
}

fn setting(entry: &'static shepherd_monitor::settings::Entry) -> Arg {
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

fn settings(given: &ArgMatches) -> Result<Settings, String> {
    let texts: BTreeMap<&'static str, String> =
        TABLE.iter().filter_map(|entry| Some((entry.env, given.get_one::<String>(entry.env)?.clone()))).collect();
    Settings::from(&texts).map_err(|bad| bad.to_string())
}

fn serve(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    telemetry::start(&settings.log_level)?;
    let listener = TcpListener::bind((settings.bind, settings.port)).map_err(|e| {
        format!("cannot listen on {}:{} ({e}); set MONITOR_BIND and MONITOR_PORT", settings.bind, settings.port)
    })?;
    actix_web::rt::System::new().block_on(async move {
        let application = Application::start(&settings, listener).map_err(|e| format!("{e:#}"))?;
        println!("shepherd-monitor: watching; open http://{}{}/", application.address(), settings.root_path);
        wait_for_the_end().await.map_err(|e| e.to_string())?;
        tracing::info!("stopping");
        application.stop().await;
        Ok(())
    })
}

async fn wait_for_the_end() -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
