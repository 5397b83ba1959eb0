//! A redis-server for one test.

use std::ops::Deref;
use std::time::Duration;

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use shepherd_monitor::demo::servers::{PrivateRedis, RedisOptions};

/// A redis-server of the test's own; gone when dropped.
pub(crate) struct TestRedis(PrivateRedis);

impl TestRedis {
    /// A plain one: empty, no password, no persistence.
    pub(crate) fn start() -> Self {
        Self::start_with(RedisOptions::default())
    }

    pub(crate) fn start_with(options: RedisOptions) -> Self {
        Self(PrivateRedis::start(options).unwrap())
    }

    /// A connection that waits for a connect and for each answer ten seconds at most.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        connection(&self.url(), Duration::from_secs(10)).await.unwrap()
    }
}

impl Deref for TestRedis {
    type Target = PrivateRedis;

    fn deref(&self) -> &PrivateRedis {
        &self.0
    }
}

/// A connection to any URL with one limit for the connect and for each answer.
pub(crate) async fn connection(url: &str, limit: Duration) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// What Redis answers to a command, whose words are separated by spaces.
pub(crate) async fn run(connection: &mut MultiplexedConnection, command: &str) -> redis::Value {
    let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    run_words(connection, &words).await
}

/// What Redis answers to a command with any bytes in it.
pub(crate) async fn run_words(connection: &mut MultiplexedConnection, words: &[&[u8]]) -> redis::Value {
    let answer = redis::Cmd::new().arg(words).query_async(connection).await;
    answer.unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(&words.join(&b' '))))
}
