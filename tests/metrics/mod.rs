//! What Prometheus and autoscalers are answered: real fleets, Debian's promtool, a real Prometheus.

mod answers;
mod autoscale;
mod counts;
mod deploy;
mod restarts;
mod server;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::{TestRedis, run, run_words};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(60);
const WORKER: &str = include_str!("../monitor/fleet.py");
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

/// One sample: its name, labels and value.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Everything in an answer, of either format.
fn samples(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

fn sample(line: &str) -> Sample {
    let (head, value) = line.rsplit_once(' ').unwrap();
    let (name, mut rest) = head.split_once('{').map_or((head, ""), |(name, rest)| (name, rest));
    let mut labels = BTreeMap::new();
    while let Some((label, after)) = rest.split_once("=\"") {
        let (mut text, mut chars) = (String::new(), after.chars());
        loop {
            match chars.next().unwrap() {
                '"' => break,
                '\\' => match chars.next().unwrap() {
                    'n' => text.push('\n'),
                    c => text.push(c),
                },
                c => text.push(c),
            }
        }
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = chars.as_str();
    }
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

/// The value of the only sample with this name and these labels among others; `None` if there is none.
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |sample: &&Sample| {
        sample.name == name && labels.iter().all(|(label, text)| sample.labels.get(*label).is_some_and(|l| l == text))
    };
    let found: Vec<&Sample> = samples.iter().filter(fits).collect();
    assert!(found.len() < 2, "{found:?}");
    found.first().map(|sample| sample.value)
}

/// What `/metrics` answers to who accepts that: Content-Type and text.
async fn asked(monitor: &Monitor, accept: &str) -> (String, String) {
    let answer = reqwest::Client::new().get(monitor.url("/metrics")).header("accept", accept).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (kind, answer.text().await.unwrap())
}

async fn scraped(monitor: &Monitor) -> Vec<Sample> {
    samples(&asked(monitor, "*/*").await.1)
}

/// Waits until an answer makes `true`; answers it.
async fn until(monitor: &Monitor, what: &str, holds: impl Fn(&[Sample]) -> bool) -> Vec<Sample> {
    eventually(what, SOON, || async {
        let samples = scraped(monitor).await;
        if holds(&samples) { Ok(samples) } else { Err(format!("{} samples, and not these", samples.len())) }
    })
    .await
}

/// Runs Debian's promtool on `input`; what it says when it is not content.
fn promtool(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is installed by scripts/install-packages test");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// A folder of the test's own; gone when dropped.
fn folder() -> Reaper {
    Reaper::start("shepherd-metrics", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap()
}

/// A fleet with everything in it that there are figures of, and a monitor that watches it.
struct Ground {
    redis: TestRedis,
    _database: TestDatabase,
    monitor: Monitor,
    _workers: Vec<Python>,
}

impl Ground {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let (redis, database) = (TestRedis::start(), TestDatabase::create());
        let workers = ["aaaa0001", "aaaa0002"].map(|name| {
            let port = redis.port().to_string();
            Python::start(WORKER, &[&port, "arax", name])
        });
        let (redis_url, database_url) = (redis.url(), database.url());
        let mut all = vec![
            ("REDIS_URL", redis_url.as_str()),
            ("DATABASE_URL", database_url.as_str()),
            ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
            ("PG_VOLUME_CAPACITY", "100Gi"),
            // Nobody is there, and nothing is told during the grace.
            ("ALERT_WEBHOOK_URL", "http://127.0.0.1:9/"),
        ];
        all.extend(settings);
        let monitor = Monitor::start(&all).await;
        Self { redis, _database: database, monitor, _workers: workers.into() }
    }

    async fn connection(&self) -> MultiplexedConnection {
        self.redis.connection().await
    }
}
