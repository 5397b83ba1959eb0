//! The command line: reads settings, starts what was asked for, says in one line why it cannot.

use std::io::{self, Write as _};
use std::net::TcpListener;
use std::process::ExitCode;

use clap::ArgMatches;
use clap::parser::ValueSource;
use clap_complete::Shell;
use shepherd_monitor::alerting::{file, message, rule};
use shepherd_monitor::application::{Application, channel_settings};
use shepherd_monitor::command_line::{command, completions, texts};
use shepherd_monitor::dead_letters;
use shepherd_monitor::delivery::Outcome;
use shepherd_monitor::delivery::channels::Channels;
use shepherd_monitor::delivery::sketch::Sketches;
use shepherd_monitor::demo::{self, Demo, DemoOptions, Fleet};
use shepherd_monitor::doctor;
use shepherd_monitor::give_back;
use shepherd_monitor::health;
use shepherd_monitor::settings::{self, Settings};
use shepherd_monitor::telemetry;
use shepherd_monitor::test_rules;
use shepherd_monitor::worker;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("serve", given)) => serve(given),
        Some(("doctor", given)) => return examine(given),
        Some(("demo", given)) => demonstrate(given),
        Some(("health", given)) => ask_health(given),
        Some(("dead-letters", given)) => tend_dead_letters(given),
        Some(("check-config", given)) => check_config(given),
        Some(("test-rules", given)) => run_test_rules(given),
        Some(("notify-test", given)) => notify_test(given),
        Some(("settings", _)) => print(settings::document(worker::SETTINGS).as_bytes()),
        Some(("completions", given)) => print_completions(given),
        Some(("man", given)) => write_man_pages(given),
        Some(("give-back", given)) => give_archive_back(given),
        Some(("demo-fleet", given)) => run_fleet(given),
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

/// Looks everything over; 2 is for what could not even be begun.
fn examine(given: &ArgMatches) -> ExitCode {
    let settings = Settings::from(&texts(given)).map_err(|bad| bad.to_string());
    let told = settings.and_then(|settings| {
        let report = doctor::examine(given, &settings)?;
        print(report.told(given).as_bytes())?;
        Ok(report.something_is_wrong())
    });
    match told {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("shepherd-monitor: {reason}");
            ExitCode::from(2)
        }
    }
}

fn print_completions(given: &ArgMatches) -> Result<(), String> {
    let shell = *given.get_one::<Shell>("SHELL").ok_or("no shell was named")?;
    print(&completions(shell))
}

fn write_man_pages(given: &ArgMatches) -> Result<(), String> {
    let folder = given.get_one::<String>("FOLDER").map(String::as_str).unwrap_or_default();
    clap_mangen::generate_to(command(), folder).map_err(|error| format!("{folder}: {error}"))
}

/// A reader that has gone, such as `head`, is no failure.
fn print(text: &[u8]) -> Result<(), String> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
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

fn give_archive_back(given: &ArgMatches) -> Result<(), String> {
    give_back::run(&Settings::from(&texts(given)).map_err(|bad| bad.to_string())?)
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

/// The simulated fleet on servers that are somebody else's.
fn run_fleet(given: &ArgMatches) -> Result<(), String> {
    let settings = Settings::from(&texts(given)).map_err(|bad| bad.to_string())?;
    let options = DemoOptions::new().map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        // Before there is anything to end.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
        let (redis, database) = (settings.redis_url.reveal().to_owned(), settings.database_url.reveal().to_owned());
        let fleet = Fleet::start(options, redis, database).map_err(|e| e.to_string())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        drop(fleet);
        println!("The fleet is gone.");
        Ok(())
    })
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
