//! Crashes of the monitor, Postgres unreachable, slow Redis: no notification is lost, and few are duplicated.

use std::time::Instant;

use super::*;
use crate::support::proxy::Proxy;

/// Kills the monitor at `point` and restarts it. The alert and its resolution must arrive, each at most `at_most`
/// times.
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
    assert_eq!(ground.slack.count("is running again"), 1, "{texts:?}");
    assert!(texts.last().unwrap().contains("is running again"), "{texts:?}");
    if firing == 2 {
        assert_eq!(reference(&taken[0]), reference(&taken[1]), "a person can see that it is the same");
    }
    drop(monitor);
}

/// The key in the message.
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

/// Time from the crash to the first message.
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

/// The same with Postgres broken in this way; checks that no record is lost.
async fn without_postgres(how: fn(&Proxy)) -> Duration {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let proxy = Proxy::to(ground.database.port());
    let url = ground.database.url_through(proxy.port());
    let monitor = ground.monitor("m", &[("DATABASE_URL", &url)]).await;
    eventually("it leads", SOON, || async { monitor.log().contains("became leader") }).await;
    let took = time_to_tell(&ground, &monitor, || how(&proxy)).await;
    // The resolution is also sent without Postgres, and everything is stored afterwards.
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
async fn without_postgres_or_with_a_slow_redis_the_first_message_is_not_delayed() {
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
async fn a_monitor_that_starts_without_postgres_sends_and_records_notifications() {
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
    // Killed and restarted without Postgres: the spool records that it was sent.
    monitor.send("KILL");
    drop(monitor);
    let monitor = ground.monitor("m", &[("DATABASE_URL", &url)]).await;
    ground.fleet.up(&["a"]).await;
    ground.slack.told("worker a is running again", SOON).await;
    assert_eq!(ground.slack.count("Worker a crashed"), 1);
    drop(monitor);
}
