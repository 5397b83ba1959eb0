//! Locks, bodies and logs of responses, shared with Python. A separate test binary, because it needs the feature
//! `worker-shepherd`: `cargo test --features worker-shepherd --test shepherd`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

mod bodies;
mod lock;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use shepherd_monitor::worker::shepherd::{LockOptions, Shepherd, ShepherdBuilder};

use support::python::Python;
use support::redis::TestRedis;

/// Support code of the other integration tests.
#[path = "../support"]
mod support {
    #![allow(dead_code, reason = "the other tests use the rest")]

    pub(crate) mod proxy;
    pub(crate) mod python;
    pub(crate) mod redis;
    pub(crate) mod wait;
}

/// Generous, for busy machines; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Databases of the platform.
const BODIES: i64 = 1;
const LOCKS: i64 = 2;
const LOGS: i64 = 3;
/// Lifetime of bodies and logs in seconds.
const LIFE: i64 = 1_210_000;

const SCRIPT: &str = include_str!("../python/shepherd.py");

fn builder(url: impl Into<String>) -> ShepherdBuilder {
    Shepherd::builder().environment(|_| None).redis_url(url).retry_for(PATIENCE)
}

async fn shepherd(redis: &TestRedis) -> Shepherd {
    builder(redis.url()).connect().await.unwrap()
}

/// Lock options with a short TTL.
fn short(ttl: Duration) -> LockOptions {
    LockOptions { ttl, ..LockOptions::default() }
}

/// Opens a connection to one of the databases.
async fn database(redis: &TestRedis, number: i64) -> MultiplexedConnection {
    let mut connection = redis.connection().await;
    let _: () = redis::cmd("SELECT").arg(number).query_async(&mut connection).await.unwrap();
    connection
}

/// Runs the Python script and returns its output.
async fn python(redis: &TestRedis, args: &[&str]) -> String {
    let port = redis.port().to_string();
    let args: Vec<String> = [port.as_str()].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    tokio::task::spawn_blocking(move || Python::run(SCRIPT, &args.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

/// Starts the Python script.
fn python_started(redis: &TestRedis, args: &[&str]) -> Python {
    let port = redis.port().to_string();
    Python::start(SCRIPT, &[&[port.as_str()], args].concat())
}

/// Sends a command to Redis: `ask!(redis, "XLEN", "a")`.
macro_rules! ask {
    ($redis:expr, $command:expr $(, $arg:expr)* $(,)?) => {
        redis::cmd($command)$(.arg($arg))*.query_async(&mut $redis).await.unwrap()
    };
}
use ask;
