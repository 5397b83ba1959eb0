//! The janitor: what it may remove, at what cost, and its recovery from crashes and concurrent instances.

mod concurrency;
mod model;
mod phantoms;
mod queries;
mod runs;
mod scheduling;
mod scripts;
mod size;

use std::time::Duration;

use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;

/// Time until Redis counts as recovered on a busy machine; only failing tests wait this long.
const SOON: Duration = Duration::from_secs(60);

/// Reply of XREADGROUP: streams with their entries; nil if there are none.
type Got = Option<Vec<(String, Vec<(String, redis::Value)>)>>;

/// Sends a command.
async fn ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, words: &[&str]) -> T {
    try_ask(redis, words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Sends a command that may be rejected.
async fn try_ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, words: &[&str]) -> redis::RedisResult<T> {
    let (name, args) = words.split_first().unwrap();
    redis::cmd(name).arg(args).query_async(redis).await
}
