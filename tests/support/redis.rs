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
