//! The command line: reads settings, starts what was asked for, says in one line why it cannot.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use shepherd_monitor::alerting::{file, message, rule};
use shepherd_monitor::application::{Application, channel_settings};
use shepherd_monitor::dead_letters;
use shepherd_monitor::delivery::Outcome;
use shepherd_monitor::delivery::channels::Channels;
use shepherd_monitor::delivery::sketch::Sketches;
use shepherd_monitor::demo::{self, Demo, DemoOptions};
use shepherd_monitor::health;
use shepherd_monitor::settings::{Settings, TABLE};
use shepherd_monitor::telemetry;
use shepherd_monitor::test_rules;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("serve", given)) => serve(given),
        Some(("demo", given)) => demonstrate(given),
        Some(("health", given)) => ask_health(given),
        Some(("dead-letters", given)) => tend_dead_letters(given),
        Some(("check-config", given)) => check_config(given),
        Some(("test-rules", given)) => run_test_rules(given),
        Some(("notify-test", given)) => notify_test(given),
        Some(("demo-worker", given)) => demo::worker::run(given.into()),
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
                .args(settings_of(|_| true)),
        )
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
        .subcommand(demo::worker::command())
}

fn settings_of(groups: impl Fn(&str) -> bool) -> Vec<Arg> {
    TABLE.iter().filter(|entry| groups(entry.group)).map(setting).collect()
}

/// Says every mistake of a rules' file.
fn check_config(given: &ArgMatches) -> Result<(), String> {
    let name = given.get_one::<String>("FILE").map(String::as_str).unwrap_or_default();
    let text = std::fs::read_to_string(name).map_err(|error| format!("{name}: {error}"))?;
    match file::read(&text) {
        Ok(rules) => {
            println!("{name}: {} rules, no mistakes", rules.rules.len());
            Ok(())
        }
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!("{name}:{mistake}");
            }
            Err(format!("{name} has {} mistakes", mistakes.len()))
        }
    }
}

fn ask_health(given: &ArgMatches) -> Result<(), String> {
    let settings = Settings::from(&texts(given)).map_err(|bad| bad.to_string())?;
    health::ask(&settings, given.get_flag("ready"))
}

fn run_test_rules(given: &ArgMatches) -> Result<(), String> {
    test_rules::run(given, &Settings::from(&texts(given)).map_err(|bad| bad.to_string())?)
}

/// Sends a test message through each channel.
fn notify_test(given: &ArgMatches) -> Result<(), String> {
    let settings = Settings::from(&texts(given)).map_err(|bad| bad.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async move {
        let channels = Channels::new(channel_settings(&settings))?;
        let names = channels.names();
        if names.is_empty() {
            return Err(rule::no_channel());
        }
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let message = message::test(since.as_secs_f64(), &since.as_nanos().to_string());
        let mut failed = 0;
        for name in &names {
            let (word, answer) = match channels.send(name, &message, &Sketches::new()).await {
                Outcome::Sent(answer) => ("sent", answer),
                Outcome::TryAgainAfter { why, .. } | Outcome::Never(why) | Outcome::ChannelBroken(why) => {
                    failed += 1;
                    ("not sent", why)
                }
            };
            println!("{name}: {word}: {answer}");
        }
        if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} channels did not take it", names.len())) }
    })
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

/// `30d`, or `30`.
fn days(text: &str) -> Result<u32, String> {
    let days = text.strip_suffix('d').unwrap_or(text).parse().ok();
    days.filter(|days| (1..=60).contains(days)).ok_or_else(|| "expected days, such as 30d, at most 60d".to_owned())
}

/// The texts that were given, by variable; a subcommand may not have all of them.
fn texts(given: &ArgMatches) -> BTreeMap<&'static str, String> {
    let text = |name| given.try_get_one::<String>(name).ok()?.cloned();
    TABLE.iter().filter_map(|entry| Some((entry.env, text(entry.env)?))).collect()
}

fn serve(given: &ArgMatches) -> Result<(), String> {
    let settings = Settings::from(&texts(given)).map_err(|bad| bad.to_string())?;
    let _telemetry = telemetry::start(&settings.log_level, settings.collector.as_ref())?;
    let listener = listen(&settings)?;
    watch(&settings, listener)
}

fn tend_dead_letters(given: &ArgMatches) -> Result<(), String> {
    let texts = given.subcommand().map(|(_, given)| texts(given)).unwrap_or_default();
    dead_letters::run(given, &Settings::from(&texts).map_err(|bad| bad.to_string())?)
}

/// The monitor on a fleet of its own.
fn demonstrate(given: &ArgMatches) -> Result<(), String> {
    let mut texts = texts(given);
    for (name, default) in [("LOG_LEVEL", "warn"), ("SERVER_MATURITY", "demo"), ("MONITOR_ABANDONED_QUERY_SEC", "180")]
    {
        texts.entry(name).or_insert_with(|| default.to_owned());
    }
    texts.entry("MONITOR_SEED_STREAMS").or_insert_with(Demo::seed_streams);
    // Before anything is started: what is wrong with the settings.
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
    println!("Starting a private Redis, a private Postgres and a simulated fleet; Ctrl-C ends it all.");
    let mut options = DemoOptions::new().map_err(|e| e.to_string())?;
    options.past_days = given.get_one("history").copied().unwrap_or(0);
    let demo = Demo::start(options).map_err(|e| e.to_string())?;
    settings.redis_url = demo.redis_url().into();
    settings.database_url = demo.database_url().into();
    // Goes with the demonstration.
    settings.spool_folder = demo.redis().folder().join("spool");
    watch(&settings, listener)?;
    println!("Ending the fleet and its servers.");
    Ok(())
}

fn listen(settings: &Settings) -> Result<TcpListener, String> {
    settings.may_serve().map_err(|bad| bad.to_string())?;
    TcpListener::bind((settings.bind, settings.port)).map_err(|e| {
        format!("cannot listen on {}:{} ({e}); set MONITOR_BIND and MONITOR_PORT", settings.bind, settings.port)
    })
}

/// Watches until SIGINT or SIGTERM.
fn watch(settings: &Settings, listener: TcpListener) -> Result<(), String> {
    // One thread for the actors and their queries; what computes for long does so on one of two others.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(2).enable_all().build().map_err(|e| format!("no event loop: {e}"))?;
    actix_web::rt::System::with_tokio_rt(move || runtime).block_on(async move {
        let application = Application::start(settings, listener).map_err(|e| format!("{e:#}"))?;
        println!("shepherd-monitor: watching; open http://{}{}/", application.address(), settings.root_path);
        wait_for_the_end(&application).await.map_err(|e| e.to_string())?;
        tracing::info!("stopping");
        application.stop().await;
        Ok(())
    })
}

async fn wait_for_the_end(application: &Application) -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => application.reload_rules(),
        }
    }
}
