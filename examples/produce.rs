//! Adds tasks to a stream, as the server of the platform does for queries.
//!
//! `cargo run --release --no-default-features --features worker --example produce -- --stream NAME [--workflow
//! a,b,c|null] [--field NAME=VALUE]... [--count N] [--key KEY] [--max-length N]`; Redis is set by `REDIS_URL` (or
//! `REDIS_HOST`, `REDIS_PORT`, `REDIS_PASSWORD`). Each task has the standard fields of Shepherd tasks, with its own
//! query ID and response ID; `--field` sets a field. Prints the ID of each entry.

use std::process::ExitCode;

use shepherd_monitor::worker::{NewTask, Producer, Workflow};

const USAGE: &str = "usage: produce --stream NAME [--workflow a,b,c|null] [--field NAME=VALUE]... [--count N] \
                     [--key KEY] [--max-length N]";

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match produce(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("produce: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn produce(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut producer = Producer::builder();
    if let Some(entries) = options.max_length {
        producer = producer.max_length(entries);
    }
    let producer = producer.connect().await?;
    let tasks = (0..options.count).map(|n| options.task(n));
    for id in producer.add_all(options.stream.as_str(), tasks).await? {
        println!("{id}");
    }
    Ok(())
}

#[derive(Default)]
struct Options {
    stream: String,
    workflow: Option<String>,
    fields: Vec<(String, String)>,
    count: u64,
    key: Option<String>,
    max_length: Option<u64>,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { count: 1, ..Self::default() };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse().map_err(|_| format!("{flag} is {value:?}; expected a whole number"));
            match flag.as_str() {
                "--stream" => options.stream = value,
                "--workflow" => options.workflow = Some(value),
                "--field" => match value.split_once('=') {
                    Some((name, value)) => options.fields.push((name.to_owned(), value.to_owned())),
                    None => return Err(format!("--field is {value:?}; expected NAME=VALUE")),
                },
                "--count" => options.count = number()?,
                "--key" => options.key = Some(value),
                "--max-length" => options.max_length = Some(number()?),
                _ => return Err(format!("{flag} is no flag of produce")),
            }
        }
        match options.stream.is_empty() {
            true => Err("--stream is missing".to_owned()),
            false => Ok(options),
        }
    }

    fn task(&self, n: u64) -> NewTask {
        let short_id = || uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect::<String>();
        let mut task = NewTask::query(&short_id(), &short_id());
        task = match self.workflow.as_deref() {
            Some("null") => task.null_workflow(),
            Some(streams) => task.workflow(Workflow::through(streams.split(','))),
            None => task,
        };
        for (name, value) in &self.fields {
            task = task.set(name.as_str(), value.as_str());
        }
        match &self.key {
            // One key per task, the same when the command is repeated.
            Some(key) => task.idempotency_key(format!("{key}/{n}")),
            None => task,
        }
    }
}
