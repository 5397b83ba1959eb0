//! Two and three monitors on one fleet: one leads, another takes over, and no notification is duplicated.

use std::time::Instant;

use super::*;
use crate::support::proxy::Proxy;

/// Maximum time without a leader.
const TAKES_OVER_WITHIN: Duration = Duration::from_secs(15);
const LEADS: &str = "became leader: evaluating and sending alerts";
/// Log lines of a follower: on polling the lease, or on a rejected write.
const FOLLOWS: [&str; 2] = ["another instance is the leader; standing by", "no longer evaluating and sending alerts"];

/// Whether the last such log line says that it leads.
fn leads_now(monitor: &Monitor) -> bool {
    let log = monitor.log();
    log.rfind(LEADS) > FOLLOWS.iter().filter_map(|words| log.rfind(words)).max()
}

async fn leads(monitor: &Monitor) {
    eventually("it leads", SOON, || async { leads_now(monitor) }).await;
}

async fn follows(monitor: &Monitor) {
    eventually("it follows", SOON, || async {
        let log = monitor.log();
        FOLLOWS.iter().any(|words| log.contains(words)) && !leads_now(monitor)
    })
    .await;
}

#[tokio::test]
async fn a_killed_leader_is_replaced_within_fifteen_seconds_and_each_incident_is_notified_once() {
    let took = best_of_three(TAKES_OVER_WITHIN, a_killed_leader).await;
    println!("a killed leader was replaced after {took:?}");
    assert!(took <= TAKES_OVER_WITHIN, "{took:?}");
}

/// Time from the leader's death until another leads. Incidents around it are notified once.
async fn a_killed_leader() -> Duration {
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
    eventually("another leads", SOON, || async { others.iter().any(leads_now) }).await;
    let took = killed.elapsed();
    ground.slack.told("Worker b crashed", SOON).await;
    ground.fleet.crash(&["c"]).await;
    ground.slack.told("Worker c crashed", SOON).await;
    ground.fleet.up(&["a", "b", "c"]).await;
    for name in ["a", "b", "c"] {
        eventually("its end is told", SOON, || async {
            ground.slack.taken().iter().any(|post| {
                post.text().contains("is running again") && post.body.to_string().contains(&format!("*{name}*"))
            })
        })
        .await;
        assert_eq!(ground.slack.count(&format!("Worker {name} crashed")), 1, "{name}");
    }
    assert_eq!(others.iter().filter(|other| leads_now(other)).count(), 1);
    took
}

#[tokio::test]
async fn a_stopped_and_continued_leader_sends_no_duplicates() {
    let took = best_of_three(TAKES_OVER_WITHIN, a_stopped_leader).await;
    println!("a stopped leader was replaced after {took:?}");
    assert!(took <= TAKES_OVER_WITHIN, "{took:?}");
}

async fn a_stopped_leader() -> Duration {
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
    let took = stopped.elapsed();
    ground.slack.told("Worker a crashed", SOON).await;
    first.send("CONT");
    follows(&first).await;
    ground.fleet.crash(&["b"]).await;
    ground.slack.told("Worker b crashed", SOON).await;
    ground.fleet.up(&["a", "b"]).await;
    eventually("both ends are told", SOON, || async {
        let ends: String = ground
            .slack
            .taken()
            .iter()
            .filter(|p| p.text().contains("is running again"))
            .map(|p| p.body.to_string())
            .collect();
        ends.contains("*a*") && ends.contains("*b*")
    })
    .await;
    assert_eq!([ground.slack.count("Worker a crashed"), ground.slack.count("Worker b crashed")], [1, 1]);
    all_told_of(&second, 2).await;
    took
}

#[tokio::test]
async fn of_three_monitors_one_sends_whichever_is_stopped_and_continued() {
    let ground = Ground::new();
    let names = ["a", "b", "c", "d"];
    ground.fleet.up(&names).await;
    let first = ground.monitor("first", &[]).await;
    leads(&first).await;
    let second = ground.monitor("second", &[]).await;
    let third = ground.monitor("third", &[]).await;
    for other in [&second, &third] {
        follows(other).await;
        ground.alive(other, &names).await;
    }
    // Stop it before it observes a crash; continue it while another leads.
    first.send("STOP");
    ground.fleet.crash(&["a"]).await;
    eventually("another leads", SOON, || async { leads_now(&second) || leads_now(&third) }).await;
    ground.slack.told("Worker a crashed", SOON).await;
    first.send("CONT");
    follows(&first).await;
    ground.fleet.crash(&["b"]).await;
    ground.slack.told("Worker b crashed", SOON).await;
    let (leader, idle) = if leads_now(&second) { (&second, &third) } else { (&third, &second) };
    assert!(!leads_now(idle), "one of the two leads");
    all_noted_as_sent(leader).await;
    // A second change, between the crash and the end of its debounce.
    ground.fleet.crash(&["c"]).await;
    leader.send("STOP");
    eventually("one of the others leads", SOON, || async { leads_now(&first) || leads_now(idle) }).await;
    ground.slack.told("Worker c crashed", SOON).await;
    // A leader stopped for much longer than the lease writes and sends nothing afterwards.
    ground.fleet.crash(&["d"]).await;
    ground.slack.told("Worker d crashed", SOON).await;
    leader.send("CONT");
    follows(leader).await;
    ground.fleet.up(&names).await;
    let counts: Vec<usize> = names.iter().map(|n| ground.slack.count(&format!("Worker {n} crashed"))).collect();
    assert_eq!(counts, [1, 1, 1, 1], "one message an incident");
    eventually("every end is told", SOON, || async {
        let ends: String = ground
            .slack
            .taken()
            .iter()
            .filter(|p| p.text().contains("is running again"))
            .map(|p| p.body.to_string())
            .collect();
        if names.iter().all(|name| ends.matches(&format!("*{name}*")).count() == 1) { Ok(()) } else { Err(ends) }
    })
    .await;
    let texts: Vec<String> = ground.slack.taken().iter().map(|post| post.text().to_owned()).collect();
    assert!(texts.iter().all(|text| text.contains("crashed") || text.contains("is running again")), "{texts:?}");
}

/// Whether it logs that it evaluates and sends without Postgres.
fn goes_on_alone(monitor: &Monitor) -> bool {
    let log = monitor.log();
    [
        "alerting continues, changes are spooled",
        "alerting starts, changes are spooled",
        "alerting continues on this instance",
    ]
    .iter()
    .any(|words| log.contains(words))
}

#[tokio::test]
async fn a_leader_that_dies_without_postgres_is_replaced_and_stored_notifications_are_not_repeated() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b", "c"]).await;
    let proxy = Proxy::to(ground.database.port());
    let url = ground.database.url_through(proxy.port());
    let given = [("DATABASE_URL", url.as_str())];
    let first = ground.monitor("first", &given).await;
    leads(&first).await;
    let second = ground.monitor("second", &given).await;
    follows(&second).await;
    ground.alive(&second, &["a", "b", "c"]).await;
    ground.fleet.crash(&["a"]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    all_noted_as_sent(&first).await;
    eventually("the other knows that it was told", SOON, || async {
        second.get("/alerts").await.1.contains("sent via slack at")
    })
    .await;
    proxy.cut();
    ground.fleet.crash(&["b"]).await;
    ground.slack.told("Worker b crashed", SOON).await;
    assert!(!goes_on_alone(&second), "one of the two goes on");
    first.send("KILL");
    eventually("the other goes on", SOON, || async { goes_on_alone(&second) }).await;
    // The dead leader was the only one to know of the notification sent without Postgres.
    eventually("b is told once more", SOON, || async { ground.slack.count("Worker b crashed") == 2 }).await;
    ground.fleet.crash(&["c"]).await;
    ground.slack.told("Worker c crashed", SOON).await;
    proxy.pass();
    leads(&second).await;
    ground.fleet.up(&["a", "b", "c"]).await;
    eventually("every end is told", SOON, || async {
        let ends: String = ground
            .slack
            .taken()
            .iter()
            .filter(|p| p.text().contains("is running again"))
            .map(|p| p.body.to_string())
            .collect();
        ["*a*", "*b*", "*c*"].iter().all(|name| ends.contains(name))
    })
    .await;
    assert_eq!([ground.slack.count("Worker a crashed"), ground.slack.count("Worker c crashed")], [1, 1]);
    assert_eq!(ground.slack.count("Worker b crashed"), 2);
}

#[tokio::test]
async fn of_monitors_that_start_without_postgres_one_sends() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let proxy = Proxy::to(ground.database.port());
    proxy.cut();
    let url = ground.database.url_through(proxy.port());
    let given = [("DATABASE_URL", url.as_str())];
    let monitors = [ground.monitor("first", &given).await, ground.monitor("second", &given).await];
    for monitor in &monitors {
        ground.alive(monitor, &["a", "b"]).await;
    }
    eventually("one begins", SOON, || async { monitors.iter().any(goes_on_alone) }).await;
    eventually("the other stands by", SOON, || async {
        monitors.iter().any(|monitor| monitor.log().contains("another instance is the leader; standing by"))
    })
    .await;
    ground.fleet.crash(&["a"]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    let alone = usize::from(goes_on_alone(&monitors[1]));
    // Stop it until the other takes over, then continue it.
    all_noted_as_sent(&monitors[alone]).await;
    monitors[alone].send("STOP");
    eventually("the other begins", SOON, || async { goes_on_alone(&monitors[1 - alone]) }).await;
    eventually("a is told once more", SOON, || async { ground.slack.count("Worker a crashed") == 2 }).await;
    ground.fleet.crash(&["b"]).await;
    ground.slack.told("Worker b crashed", SOON).await;
    monitors[alone].send("CONT");
    eventually("it stops", SOON, || async {
        monitors[alone].log().contains("lost leadership to another instance")
            || monitors[alone].log().contains("another instance is the leader; standing by")
    })
    .await;
    ground.fleet.up(&["a", "b"]).await;
    ground.slack.told("worker b is running again", SOON).await;
    assert_eq!(ground.slack.count("Worker b crashed"), 1);
}

/// Fires while the stream is not empty.
const LOTS: &str = "rules: [{name: lots, type: threshold, metric: xlen, stream: orders, threshold: 0, cooldown: 1h}]";

async fn add_order(ground: &Ground) {
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
}

async fn finish_orders(ground: &Ground) {
    let mut redis = ground.redis.connection().await;
    let _: i64 = redis::cmd("XTRIM").arg(&["orders", "MAXLEN", "0"]).query_async(&mut redis).await.unwrap();
}

/// Result of a `count(*)` query.
async fn count(ground: &Ground, what: &str) -> i64 {
    ground.database.connect().await.query_one(&format!("SELECT count(*) FROM {what}"), &[]).await.unwrap().get(0)
}

const FIRED: &str = "monitor_events WHERE type = 'alert' AND payload->>'alert' = 'lots'";
const WAITING: &str = "monitor_alert_outbox WHERE state = 'waiting'";

#[tokio::test]
async fn decisions_of_a_continued_former_leader_are_discarded() {
    for _ in 0..3 {
        let ground = Ground::new();
        let rules = ground.rules(LOTS);
        let given = [("MONITOR_ALERTS_CONFIG", rules.as_str())];
        let first = ground.monitor("first", &given).await;
        leads(&first).await;
        let second = ground.monitor("second", &given).await;
        follows(&second).await;
        ground.alive(&second, &[]).await;
        first.send("STOP");
        add_order(&ground).await;
        leads(&second).await;
        ground.slack.told("lots: ", SOON).await;
        all_noted_as_sent(&second).await;
        first.send("CONT");
        follows(&first).await;
        // By now it has observed the alert itself and received the state of the other.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!([count(&ground, FIRED).await, count(&ground, WAITING).await], [1, 0]);
        finish_orders(&ground).await;
        ground.slack.told("Resolved after", SOON).await;
        all_noted_as_sent(&second).await;
        second.send("TERM");
        leads(&first).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let texts: Vec<String> = ground.slack.taken().iter().map(|post| post.text().to_owned()).collect();
        assert_eq!(texts.len(), 2, "fired and resolved, once each: {texts:?}");
    }
}

#[tokio::test]
async fn a_new_leader_continues_repeats_without_another_first_notification() {
    let ground = Ground::new();
    let rules = ground.rules(&LOTS.replace("1h", "5s"));
    let given = [("MONITOR_ALERTS_CONFIG", rules.as_str())];
    let first = ground.monitor("first", &given).await;
    leads(&first).await;
    let second = ground.monitor("second", &given).await;
    follows(&second).await;
    ground.alive(&second, &[]).await;
    add_order(&ground).await;
    ground.slack.told("Still firing for 5 s: lots", SOON).await;
    all_noted_as_sent(&first).await;
    first.send("KILL");
    let before = ground.slack.count("Still firing");
    leads(&second).await;
    eventually("it is sent again twice", SOON, || async { ground.slack.count("Still firing") >= before + 2 }).await;
    finish_orders(&ground).await;
    ground.slack.told("Resolved after", SOON).await;
    let posts = ground.slack.taken();
    assert!(!posts[0].text().contains("Still firing") && posts.last().unwrap().text().contains("Resolved"));
    assert!(posts[1..posts.len() - 1].iter().all(|post| post.text().contains("Still firing")));
    for pair in posts[..posts.len() - 1].windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_secs(4), "{:?}", pair[1].at - pair[0].at);
    }
}

#[tokio::test]
async fn alerts_sent_by_a_cut_off_leader_are_resolved_by_its_successor() {
    let ground = Ground::new();
    let (database, redis) = (Proxy::to(ground.database.port()), Proxy::to(ground.redis.port()));
    let database_url = ground.database.url_through(database.port());
    let redis_url = format!("redis://127.0.0.1:{}/0", redis.port());
    let given = [("DATABASE_URL", database_url.as_str()), ("REDIS_URL", redis_url.as_str())];
    let first = ground.monitor("first", &given).await;
    leads(&first).await;
    let second = ground.monitor("second", &[]).await;
    follows(&second).await;
    database.cut();
    redis.cut();
    // It cannot detect that only itself is cut off.
    ground.slack.told("source_down", SOON).await;
    leads(&second).await;
    database.pass();
    redis.pass();
    follows(&first).await;
    eventually("both ends are sent", SOON, || async {
        let posts = ground.slack.taken();
        let ends: String =
            posts.iter().filter(|post| post.text().contains("Resolved")).map(|post| post.body.to_string()).collect();
        if ["*redis*", "*postgres*"].iter().all(|source| ends.matches(source).count() == 1) {
            Ok(())
        } else {
            Err(ends)
        }
    })
    .await;
    all_noted_as_sent(&second).await;
    assert_eq!(count(&ground, WAITING).await, 0);
}

#[tokio::test]
async fn the_spool_of_an_earlier_run_does_not_overwrite_newer_state() {
    let ground = Ground::new();
    let rules = ground.rules(LOTS);
    let proxy = Proxy::to(ground.database.port());
    let url = ground.database.url_through(proxy.port());
    let given = [("MONITOR_ALERTS_CONFIG", rules.as_str()), ("DATABASE_URL", url.as_str())];
    let first = ground.monitor("first", &given).await;
    leads(&first).await;
    proxy.cut();
    eventually("it goes on alone", SOON, || async { goes_on_alone(&first) }).await;
    add_order(&ground).await;
    ground.slack.told("lots: ", SOON).await;
    all_noted_as_sent(&first).await;
    first.send("KILL");
    drop(first);
    let second = ground.monitor("second", &given[..1]).await;
    leads(&second).await;
    eventually("it is notified by the new leader", SOON, || async { ground.slack.count("lots: ") == 2 }).await;
    finish_orders(&ground).await;
    ground.slack.told("Resolved after", SOON).await;
    all_noted_as_sent(&second).await;
    second.send("TERM");
    eventually("it ended", SOON, || async { !second.is_running() }).await;
    proxy.pass();
    let first = ground.monitor("first", &given).await;
    leads(&first).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let texts: Vec<String> = ground.slack.taken().iter().map(|post| post.text().to_owned()).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
}
