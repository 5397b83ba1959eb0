//! Recent samples in Redis: ended series are removed completely.

use shepherd_monitor::redis_streams::{connection, recent_series};

use super::*;
use crate::support::redis::TestRedis;

const KEEP: Duration = Duration::from_secs(1000);

#[tokio::test]
async fn series_of_deleted_streams_are_removed_from_redis() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let pool = connection::pool(&server.url(), Duration::from_secs(5)).unwrap();
    let now = 1_800_000_000;
    let old: Vec<(String, f64)> = (0..300).map(|n| (format!("xlen:old{n}"), 1.0)).collect();
    recent_series::push(&pool, 0, now - 2000, &old, KEEP).await.unwrap();
    let young = [("xlen:young".to_owned(), 1.0), ("xlen:expired".to_owned(), 1.0)];
    recent_series::push(&pool, 1, now, &young, KEEP).await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*hist:xlen:*").query_async(&mut redis).await.unwrap();
    assert_eq!(keys.len(), 302);
    for key in &keys {
        let ttl: i64 = redis::cmd("TTL").arg(key).query_async(&mut redis).await.unwrap();
        assert!((990..=1000).contains(&ttl), "{key} lives {ttl}");
    }
    // One expired; some, of an earlier version, have no TTL.
    let of = |name: &str| keys.iter().find(|key| key.ends_with(name)).unwrap().clone();
    let _: i64 = redis::cmd("DEL").arg(of("xlen:expired")).query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("PERSIST").arg(of("xlen:old7")).query_async(&mut redis).await.unwrap();
    assert_eq!(recent_series::forget_ended(&pool, now, KEEP).await.unwrap(), 301);
    assert_eq!(recent_series::names(&pool).await.unwrap(), ["xlen:young"]);
    let keys: Vec<String> = redis::cmd("KEYS").arg("*hist:xlen:*").query_async(&mut redis).await.unwrap();
    assert_eq!(keys, [of("xlen:young")]);
    assert_eq!(recent_series::forget_ended(&pool, now, KEEP).await.unwrap(), 0);
}
