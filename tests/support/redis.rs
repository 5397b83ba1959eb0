//! A private redis-server per test.

use std::ops::Deref;
use std::time::Duration;

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use shepherd_monitor::demo::servers::{PrivateRedis, RedisOptions};

/// A private redis-server; stopped when dropped.
pub(crate) struct TestRedis(PrivateRedis);

impl TestRedis {
    /// Starts an empty server without password and persistence.
    pub(crate) fn start() -> Self {
        Self::start_with(RedisOptions::default())
    }

    /// With `TEST_REDIS_SERVER=/path/to/redis-server` in the environment, that server runs, for trying any test on
    /// another version (`make test-matrix`).
    pub(crate) fn start_with(mut options: RedisOptions) -> Self {
        options.program = options.program.or_else(|| std::env::var("TEST_REDIS_SERVER").ok());
        Self(PrivateRedis::start(options).unwrap())
    }

    /// Opens a connection with a timeout of 10 s for connecting and for each reply.
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

/// Opens a connection to a URL with one timeout for connecting and for each reply.
pub(crate) async fn connection(url: &str, limit: Duration) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// Runs a command whose words are separated by spaces.
pub(crate) async fn run(connection: &mut impl redis::aio::ConnectionLike, command: &str) -> redis::Value {
    let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    run_words(connection, &words).await
}

/// Runs a command of arbitrary bytes.
pub(crate) async fn run_words(connection: &mut impl redis::aio::ConnectionLike, words: &[&[u8]]) -> redis::Value {
    let answer = redis::Cmd::new().arg(words).query_async(connection).await;
    answer.unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(&words.join(&b' '))))
}
