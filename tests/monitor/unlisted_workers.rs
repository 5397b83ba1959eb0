//! Workers that no consumer group lists: before Redis 7.2, those that wait on an empty stream. They are known by their
//! heartbeat only.

use std::time::Duration;

use crate::alerting::fleet::Fleet;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run_words};

/// Time to find a replacement; the keyspace is otherwise scanned every ten minutes.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn replacements_are_found_among_many_keys() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    // More keys than are scanned with every poll.
    let script = "for n = 1, 6000 do redis.call('SET', 'unrelated:' .. n, n) end";
    run_words(&mut redis.connection().await, &[b"EVAL", script.as_bytes(), b"0"]).await;
    let fleet = Fleet::start(&redis);
    fleet.up(&["a", "b", "c"]).await;
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let state = |name: &'static str, state: &'static str| {
        let monitor = &monitor;
        async move { monitor.until(&format!("{name} is {state}"), SOON, |s| s["workers"][name]["state"] == state).await }
    };
    for name in ["a", "b", "c"] {
        state(name, "alive").await;
    }
    monitor.until("recovery is over", SOON, |s| s["redis"]["source"]["status"] == "ok").await;
    fleet.leave("a").await;
    fleet.crash(&["b"]).await;
    state("a", "scaled_down").await;
    state("b", "crashed").await;
    fleet.up(&["a", "b"]).await;
    state("a", "alive").await;
    state("b", "alive").await;
}
