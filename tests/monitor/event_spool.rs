//! Events that are spooled in Redis while Postgres is unreachable.

use std::time::Duration;

use shepherd_monitor::redis_streams::{connection, event_spool};

use crate::support::redis::TestRedis;

#[tokio::test]
async fn two_monitors_that_move_the_spool_concurrently_lose_nothing() {
    let redis = TestRedis::start();
    let pool = connection::pool(&redis.url(), Duration::from_secs(5)).unwrap();
    let events: Vec<String> = (0..1500).map(|n| format!("{{\"n\":{n}}}")).collect();
    event_spool::put(&pool, &events).await.unwrap();
    let mut moved = Vec::new();
    // Both read the same events, store them, and then remove them.
    for batch in [500, 300, 500, 700] {
        let mine = event_spool::peek(&pool, 500).await.unwrap();
        let others = event_spool::peek(&pool, batch).await.unwrap();
        event_spool::remove(&pool, &others).await.unwrap();
        event_spool::remove(&pool, &mine).await.unwrap();
        moved.extend(mine.into_iter().chain(others));
    }
    assert_eq!(event_spool::peek(&pool, 10).await.unwrap(), Vec::<String>::new());
    moved.sort();
    moved.dedup();
    assert_eq!(moved.len(), events.len());
}
