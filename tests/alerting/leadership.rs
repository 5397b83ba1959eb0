//! Two and three monitors on one fleet: one leads, another takes over, nothing comes twice.

use std::time::Instant;

use super::*;

const LEADS: &str = "this monitor evaluates and sends alerts";

async fn leads(monitor: &Monitor) {
    eventually("it leads", SOON, || async { monitor.log().contains(LEADS) }).await;
}

async fn follows(monitor: &Monitor) {
    eventually("it follows", SOON, || async { monitor.log().contains("ready to take over") }).await;
}

#[tokio::test]
async fn a_killed_leader_is_replaced_within_fifteen_seconds_and_every_incident_is_told_once() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b", "c"]).await;
    let first = ground.monitor("first", &[]).await;
    leads(&first).await;
    let others = [ground.monitor("second", &[]).await, ground.monitor("third", &[]).await];
    for other in &others {
        follows(other).await;
        ground.alive(other, &["a", "b", "c"]).await;
    }
    ground.fleet.crash(&["a"]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    all_noted_as_sent(&first).await;
    ground.fleet.crash(&["b"]).await;
    first.send("KILL");
    let killed = Instant::now();
    eventually("another leads", SOON, || async { others.iter().any(|other| other.log().contains(LEADS)) }).await;
    let took = killed.elapsed();
    println!("a killed leader was replaced after {took:?}");
    assert!(took <= Duration::from_secs(15), "{took:?}");
    ground.slack.told("Worker b crashed", SOON).await;
    ground.fleet.crash(&["c"]).await;
    ground.slack.told("Worker c crashed", SOON).await;
    ground.fleet.up(&["a", "b", "c"]).await;
    for name in ["a", "b", "c"] {
        eventually("its end is told", SOON, || async {
            ground
                .slack
                .taken()
                .iter()
                .any(|post| post.text().contains("up again") && post.body.to_string().contains(&format!("*{name}*")))
        })
        .await;
        assert_eq!(ground.slack.count(&format!("Worker {name} crashed")), 1, "{name}");
    }
    assert_eq!(others.iter().filter(|other| other.log().contains(LEADS)).count(), 1);
}

#[tokio::test]
async fn a_leader_that_is_stopped_and_continued_tells_nothing_twice() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let first = ground.monitor("first", &[]).await;
    leads(&first).await;
    let second = ground.monitor("second", &[]).await;
    follows(&second).await;
    ground.alive(&second, &["a", "b"]).await;
    first.send("STOP");
    let stopped = Instant::now();
    ground.fleet.crash(&["a"]).await;
    leads(&second).await;
    println!("a stopped leader was replaced after {:?}", stopped.elapsed());
    assert!(stopped.elapsed() <= Duration::from_secs(15));
    ground.slack.told("Worker a crashed", SOON).await;
    first.send("CONT");
    follows(&first).await;
    ground.fleet.crash(&["b"]).await;
    ground.slack.told("Worker b crashed", SOON).await;
    ground.fleet.up(&["a", "b"]).await;
    eventually("both ends are told", SOON, || async {
        let ends: String =
            ground.slack.taken().iter().filter(|p| p.text().contains("up again")).map(|p| p.body.to_string()).collect();
        ends.contains("*a*") && ends.contains("*b*")
    })
    .await;
    assert_eq!([ground.slack.count("Worker a crashed"), ground.slack.count("Worker b crashed")], [1, 1]);
    let events = second.events().await;
    assert_eq!(events.iter().filter(|event| event["type"] == "alert").count(), 2, "{events:?}");
}
