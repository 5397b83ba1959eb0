//! A complete worker: spends some time on each task, then forwards it along its workflow.
//!
//! `cargo run --release --no-default-features --features worker --example relay -- --stream NAME [--work-ms N]
//! [--task-limit N] [--fail-every N]`; Redis is set by `REDIS_URL` (or `REDIS_HOST`, `REDIS_PORT`, `REDIS_PASSWORD`).
//! With `--features otlp`, spans are exported to the collector in `OTEL_EXPORTER_OTLP_ENDPOINT`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shepherd_monitor::traces::Collector;
use shepherd_monitor::worker::{Answer, TaskError, Worker, WorkerError};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

const USAGE: &str = "usage: relay --stream NAME [--work-ms N] [--task-limit N] [--fail-every N]";

fn main() -> ExitCode {
    run(std::env::args().skip(1))
}

pub(crate) fn run(args: impl Iterator<Item = String>) -> ExitCode {
    let options = match Options::from_args(args) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // Dropped last, so that remaining spans are exported after the worker and its runtime have ended.
    match telemetry().and_then(|_sending| relay(options).map_err(|e| e.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("relay: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "otlp")]
type Sending = Option<shepherd_monitor::traces::Export>;
#[cfg(not(feature = "otlp"))]
type Sending = Option<()>;

/// Writes log lines to standard error and exports spans, if a collector is configured, until the result is dropped.
fn telemetry() -> Result<Sending, String> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter);
    let collector = Collector::from_env("relay").map_err(|e| e.to_string())?;
    let started = tracing_subscriber::registry().with(logs);
    #[cfg(feature = "otlp")]
    let (sending, started) = {
        let sending = collector.as_ref().map(shepherd_monitor::traces::Export::to).transpose()?;
        let spans = sending.as_ref().map(shepherd_monitor::traces::Export::layer);
        (sending, started.with(spans))
    };
    #[cfg(not(feature = "otlp"))]
    let sending = collector.map(drop);
    started.init();
    Ok(sending)
}

#[tokio::main]
async fn relay(options: Options) -> Result<(), WorkerError> {
    let Options { stream, work, task_limit, fail_every } = options;
    let started = Arc::new(AtomicU64::new(0));
    Worker::builder(&stream)?
        .task_limit(task_limit)
        .run(move |task| {
            let nth = started.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                tokio::time::sleep(work).await;
                if fail_every > 0 && nth.is_multiple_of(fail_every) {
                    return Err(TaskError::new(format!("task {nth} fails, as --fail-every {fail_every} asked")));
                }
                task.progress();
                Ok(Answer::forward())
            }
        })
        .await?;
    Ok(())
}

struct Options {
    stream: String,
    work: Duration,
    task_limit: usize,
    fail_every: u64,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { stream: String::new(), work: Duration::ZERO, task_limit: 10, fail_every: 0 };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{flag} is {value:?}; expected a whole number"));
            match flag.as_str() {
                "--stream" => options.stream = value,
                "--work-ms" => options.work = Duration::from_millis(number()?),
                "--task-limit" => options.task_limit = usize::try_from(number()?).unwrap_or(usize::MAX),
                "--fail-every" => options.fail_every = number()?,
                _ => return Err(format!("{flag} is no flag of relay")),
            }
        }
        Ok(options)
    }
}
