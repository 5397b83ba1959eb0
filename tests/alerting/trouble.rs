//! The monitor dies, Postgres is away, Redis is slow: nothing is lost, and little comes twice.

use std::time::Instant;

use super::*;
use crate::support::proxy::Proxy;

/// The monitor ends itself at `point`, is started again, and the alert arrives, then its end:
/// at most so many times.
async fn killed_at(point: &str, at_most: usize) {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let monitor = ground.monitor("m", &[("SHEPHERD_FAILPOINT", point)]).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    eventually("the monitor ends at the failpoint", SOON, || async { !monitor.is_running() }).await;
    drop(monitor);
    let monitor = ground.monitor("m", &[]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    ground.fleet.up(&["a"]).await;
    ground.slack.told("worker a is running again", SOON).await;
    let taken = ground.slack.taken();
    let texts: Vec<&str> = taken.iter().map(slack::Post::text).collect();
    let firing = ground.slack.count("Worker a crashed");
    assert!((1..=at_most).contains(&firing), "{texts:?}");
    assert_eq!(ground.slack.count("up again"), 1, "{texts:?}");
    assert!(texts.last().unwrap().contains("up again"), "{texts:?}");
    if firing == 2 {
        assert_eq!(reference(&taken[0]), reference(&taken[1]), "a person can see that it is the same");
    }
    drop(monitor);
}

/// The key that stands in the message.
fn reference(post: &slack::Post) -> String {
    post.body.to_string().split("ref ").nth(1).unwrap().chars().take(8).collect()
}

#[tokio::test]
async fn killed_before_the_transition_is_written() {
    killed_at("before-commit", 1).await;
}

#[tokio::test]
async fn killed_after_the_transition_is_written() {
    killed_at("after-commit", 1).await;
}

#[tokio::test]
async fn killed_before_the_attempt_is_written() {
    killed_at("before-lease", 1).await;
}

#[tokio::test]
async fn killed_after_the_attempt_is_written() {
    killed_at("after-lease", 1).await;
}

#[tokio::test]
async fn killed_between_sending_and_marking_sends_one_duplicate_with_the_same_key() {
    killed_at("after-send", 2).await;
}

#[tokio::test]
async fn killed_after_marking() {
    killed_at("after-mark", 1).await;
}

/// From the crash to the first message.
async fn time_to_tell(ground: &Ground, monitor: &Monitor, break_it: impl FnOnce()) -> Duration {
    ground.alive(monitor, &["a", "b"]).await;
    break_it();
    let began = Instant::now();
    ground.fleet.crash(&["a", "b"]).await;
    let post = ground.slack.told("2 workers down", SOON).await;
    post.at - began
}

async fn when_all_is_well() -> Duration {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let monitor = ground.monitor("m", &[]).await;
    time_to_tell(&ground, &monitor, || {}).await
}

/// The same while Postgres is broken in this way; and nothing is lost of it.
async fn without_postgres(how: fn(&Proxy)) -> Duration {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let proxy = Proxy::to(ground.database.port());
    let url = ground.database.url_through(proxy.port());
    let monitor = ground.monitor("m", &[("DATABASE_URL", &url)]).await;
    eventually("it leads", SOON, || async { monitor.log().contains("became leader") }).await;
    let took = time_to_tell(&ground, &monitor, || how(&proxy)).await;
    // Its end is told without Postgres too, and all of it is there afterwards.
    ground.fleet.up(&["a", "b"]).await;
    ground.slack.told("2 workers running again", SOON).await;
    proxy.cut();
    proxy.pass();
    eventually("all of it is in Postgres", SOON, || async {
        let events = monitor.events().await;
        events.iter().filter(|event| event["detail"].as_str().is_some_and(|d| d.contains("dropped from"))).count() == 2
    })
    .await;
    assert_eq!(ground.slack.count("2 workers down"), 1);
    took
}

async fn with_a_slow_redis() -> Duration {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let proxy = Proxy::to(ground.redis.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let monitor = ground.monitor("m", &[("REDIS_URL", &url)]).await;
    let slowly = || proxy.delay(Duration::from_millis(50), Duration::from_millis(50));
    time_to_tell(&ground, &monitor, slowly).await
}

#[tokio::test]
async fn without_postgres_and_with_a_slow_redis_the_first_message_leaves_as_fast_as_when_all_is_well() {
    let well = when_all_is_well().await;
    let limit = well * 2;
    let figures = [
        ("all is well", well),
        ("Postgres refuses", best_of_three(limit, || without_postgres(Proxy::cut)).await),
        ("Postgres hangs", best_of_three(limit, || without_postgres(Proxy::swallow_replies)).await),
        ("Redis is slow (100 ms a trip)", best_of_three(limit, with_a_slow_redis).await),
    ];
    println!("from the crash to the first message: {figures:?}");
    for (name, took) in &figures[1..] {
        assert!(*took <= limit, "{name}: {took:?}, and {well:?} when all is well");
    }
}

#[tokio::test]
async fn a_monitor_that_starts_without_postgres_tells_and_keeps_what_it_told() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let proxy = Proxy::to(ground.database.port());
    proxy.cut();
    let url = ground.database.url_through(proxy.port());
    let monitor = ground.monitor("m", &[("DATABASE_URL", &url)]).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    all_noted_as_sent(&monitor).await;
    // Killed and started again, still without Postgres: the disk knows that it was told.
    monitor.send("KILL");
    drop(monitor);
    let monitor = ground.monitor("m", &[("DATABASE_URL", &url)]).await;
    ground.fleet.up(&["a"]).await;
    ground.slack.told("worker a is running again", SOON).await;
    assert_eq!(ground.slack.count("Worker a crashed"), 1);
    drop(monitor);
}
