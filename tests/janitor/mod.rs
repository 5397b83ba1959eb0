//! The janitor: what it may remove and what never, at what price, and what a crash or a second
//! monitor leave of a pass.

mod fire;
mod model;
mod passes;
mod phantoms;
mod queries;
mod scripts;
mod size;
mod turns;

use std::time::Duration;

use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;

/// Longer than Redis takes to be believed on a busy machine; only a failing test waits so long.
const SOON: Duration = Duration::from_secs(60);

/// What XREADGROUP answers: streams with their entries; nothing when there is none.
type Got = Option<Vec<(String, Vec<(String, redis::Value)>)>>;

/// One command.
async fn ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, words: &[&str]) -> T {
    try_ask(redis, words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// One command that may be refused.
async fn try_ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, words: &[&str]) -> redis::RedisResult<T> {
    let (name, args) = words.split_first().unwrap();
    redis::cmd(name).arg(args).query_async(redis).await
}
