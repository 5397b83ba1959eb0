//! The outside check is called while alerting works, and not when it does not.

use super::slack::Answer;
use super::*;

/// A server that records the calls of the outside check.
fn outside_check() -> (Slack, String) {
    let server = Slack::start();
    let url = server.url();
    (server, url)
}

async fn calls(server: &Slack, at_least: usize) {
    eventually("the outside check is called", SOON, || async {
        let calls = server.posts().len();
        if calls >= at_least { Ok(()) } else { Err(format!("{calls} calls")) }
    })
    .await;
}

#[tokio::test]
async fn only_the_leader_calls_and_its_successor_goes_on() {
    let ground = Ground::new();
    let (of_first, first_url) = outside_check();
    let (of_second, second_url) = outside_check();
    let first = ground.monitor("first", &[("HEARTBEAT_URL", &first_url)]).await;
    calls(&of_first, 1).await;
    let second = ground.monitor("second", &[("HEARTBEAT_URL", &second_url)]).await;
    second.until("it polls", SOON, |snapshot| snapshot["redis"]["source"]["status"] == "ok").await;
    assert_eq!(of_second.posts().len(), 0, "a follower calls");
    first.send("KILL");
    calls(&of_second, 1).await;
}

#[tokio::test]
async fn unreachable_sources_do_not_stop_the_calls_and_failed_calls_are_repeated_without_the_secret() {
    let ground = Ground::new();
    let (server, url) = outside_check();
    server.always(Some(Answer::Status(500)));
    let monitor = ground.monitor("first", &[("HEARTBEAT_URL", &url)]).await;
    calls(&server, 1).await;
    ground.redis.kill().unwrap();
    // The next call is due 10 s after the failed one.
    calls(&server, 2).await;
    server.always(None);
    calls(&server, 3).await;
    eventually("the success is logged", SOON, || async {
        monitor.log().contains("the outside check (HEARTBEAT_URL) is reachable again")
    })
    .await;
    let log = monitor.log();
    assert_eq!(log.matches("cannot reach the outside check").count(), 1, "{log}");
    assert!(!log.contains("verysecret"), "{log}");
}

#[tokio::test]
async fn calls_stop_while_every_channel_is_broken() {
    let ground = Ground::new();
    ground.slack.always(Some(Answer::Status(404)));
    ground.fleet.up(&["a"]).await;
    // A check that fails is called again after 10 s.
    let (server, url) = outside_check();
    server.always(Some(Answer::Status(500)));
    let monitor = ground.monitor("first", &[("HEARTBEAT_URL", &url)]).await;
    ground.alive(&monitor, &["a"]).await;
    calls(&server, 2).await;
    ground.fleet.crash(&["a"]).await;
    eventually("Slack refuses a notification", SOON, || async { !ground.slack.posts().is_empty() }).await;
    // A call may be under way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = server.posts().len();
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(server.posts().len(), before, "called although every channel is broken");
    ground.slack.always(None);
    monitor.takes_orders().await;
    let answers = reqwest::Client::new().post(monitor.url("/api/alerts/test")).send().await.unwrap();
    assert!(answers.status().is_success(), "{answers:?}");
    calls(&server, before + 1).await;
}
