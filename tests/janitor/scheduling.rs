//! The lease of cleanup runs, and when the next run is due.

use std::time::Duration;

use redis::AsyncCommands;
use shepherd_monitor::redis_streams::cleanup::{Turn, end_turn, keep_turn, take_turn};
use shepherd_monitor::redis_streams::connection;

use crate::support::redis::TestRedis;

const EVERY: Duration = Duration::from_secs(300);

#[tokio::test]
async fn one_instance_holds_the_lease_and_early_requests_get_the_due_time() {
    let server = TestRedis::start();
    let pool = connection::pool(&server.url(), Duration::from_secs(10)).unwrap();
    let take = async |who: &str, wanted: bool| take_turn(&pool, who, EVERY, wanted).await.unwrap();

    assert_eq!(take("a", false).await, Turn::Mine, "no pass was ever made");
    assert_eq!(take("a", false).await, Turn::Mine, "it is its own already");
    assert_eq!(take("b", true).await, Turn::Taken, "even when it is wanted");
    assert_eq!((keep_turn(&pool, "a").await, keep_turn(&pool, "b").await), (Ok(true), Ok(false)));
    end_turn(&pool, "b").await.unwrap();
    assert_eq!(take("b", true).await, Turn::Taken, "who has no turn ends none");

    end_turn(&pool, "a").await.unwrap();
    let Turn::NotDue(rest) = take("b", false).await else { panic!("a pass is over since a moment ago") };
    assert!((EVERY - Duration::from_secs(60)..=EVERY).contains(&rest), "{rest:?}");
    assert_eq!(take("b", true).await, Turn::Mine, "somebody asks for it");
    end_turn(&pool, "b").await.unwrap();

    let mut redis = server.connection().await;
    let (now, _): (u64, u64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
    let _: () = redis.set("monitor:janitor:last_pass", now - 290).await.unwrap();
    let Turn::NotDue(rest) = take("a", false).await else { panic!("ten seconds are left") };
    assert!(rest <= Duration::from_secs(10), "{rest:?}");
    for past in [now - 301, now + 1000] {
        let _: () = redis.set("monitor:janitor:last_pass", past).await.unwrap();
        assert_eq!(take("a", false).await, Turn::Mine, "{past}: long ago, or a clock that was set back");
        let _: () = redis.del("monitor:janitor:turn").await.unwrap();
    }
}
