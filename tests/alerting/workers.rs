//! Workers that crash, shut down and restart.

use shepherd_monitor::redis_streams::alerts;

use super::slack::Answer;
use super::*;

#[tokio::test]
async fn crashes_and_graceful_shutdowns_are_distinguished_and_notified_once_with_their_resolutions() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b", "<!channel>"]).await;
    let monitor = ground.monitor("m", &[("SERVER_URL", "https://fleet.example")]).await;
    ground.alive(&monitor, &["a", "b", "<!channel>"]).await;
    ground.fleet.leave("b").await;
    ground.slack.told("Worker b scaled to zero", SOON).await;
    ground.fleet.crash(&["a"]).await;
    let post = ground.slack.told("Worker a crashed", SOON).await;
    assert!(post.text().contains("[test]") && post.body.to_string().contains("https://fleet.example/streams/a"));
    ground.fleet.crash(&["<!channel>"]).await;
    let post = ground.slack.told("&lt;!channel&gt;", SOON).await;
    assert!(!post.body.to_string().contains("<!channel>"), "{}", post.body);
    ground.fleet.up(&["a", "b"]).await;
    ground.slack.told("worker a is running again", SOON).await;
    ground.slack.told("worker b is running again", SOON).await;
    let texts: Vec<String> = ground.slack.taken().iter().map(|post| post.text().to_owned()).collect();
    assert_eq!(ground.slack.count("Worker a crashed"), 1, "{texts:?}");
    assert_eq!(ground.slack.count("Worker b scaled"), 1, "{texts:?}");
    // From the API, newest first, in the format of the contract; Redis is updated independently of the channels.
    let wanted = ["worker_crashed:<!channel>", "worker_crashed:a", "worker_zero:b"];
    let alerts = eventually("the API lists them", SOON, || async {
        let alerts = super::alerts(&monitor).await;
        let rules: Vec<&str> = alerts.iter().map(|alert| alert["rule"].as_str().unwrap()).collect();
        if rules == wanted { Ok(alerts) } else { Err(format!("{rules:?}")) }
    })
    .await;
    assert!(alerts.iter().all(|a| a["ts"].is_f64()
        && a["severity"] == "critical"
        && a["detail"].is_string()
        && a["message"].is_string()));
    let mut redis = ground.redis.connection().await;
    let quiet: bool =
        redis::cmd("EXISTS").arg("alert:cooldown:worker_crashed:a").query_async(&mut redis).await.unwrap();
    assert!(!quiet, "an older monitor would obey it");
    // Messages do not wait for Postgres; pending rows are stored shortly afterwards.
    all_told_of(&monitor, 3).await;
    assert!(!monitor.log().contains("verysecret"));
}

#[tokio::test]
async fn eighteen_crashes_are_one_message_and_a_backlog_is_sent_at_once_on_its_own() {
    let ground = Ground::new();
    let names: Vec<String> = (0..18).map(|i| format!("w{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    ground.fleet.up(&names).await;
    let rules = ground.rules("rules: [{name: backlog, type: threshold, metric: xlen, stream: orders, threshold: 5}]");
    // Long enough for the backlog to arrive within it, even on a busy machine.
    let given = [("MONITOR_ALERTS_CONFIG", rules.as_str()), ("MONITOR_DOWN_DEBOUNCE_SEC", "15")];
    let monitor = ground.monitor("m", &given).await;
    ground.alive(&monitor, &names).await;
    let mut redis = ground.redis.connection().await;
    let mut order = async || {
        let _: String = redis::cmd("XADD").arg("orders").arg(&["*", "a", "b"]).query_async(&mut redis).await.unwrap();
    };
    order().await;
    // The monitor discovers new streams in the background.
    monitor.until("the stream is known", SOON, |s| s["streams"]["orders"]["xlen"] == 1).await;
    ground.fleet.crash(&names).await;
    monitor.until("the crashes are seen", SOON, |s| s["workers"]["w00"]["state"] == "crashed").await;
    for _ in 0..5 {
        order().await;
    }
    let down = ground.slack.told("18 workers down", SOON).await;
    let backlog = ground.slack.told("backlog: xlen of orders is 6 (above 5)", SOON).await;
    assert!(backlog.at < down.at, "the backlog does not wait for the window");
    let body = down.body.to_string();
    assert!(names.iter().all(|name| body.contains(name)), "{body}");
    let taken = ground.slack.taken();
    let about = |words: &str| taken.iter().filter(|post| post.text().contains(words)).count();
    assert_eq!((about("workers down"), about("backlog: xlen of orders is 6")), (1, 1), "one message each");
    ground.fleet.up(&names).await;
    ground.slack.told("18 workers running again", SOON).await;
}

#[tokio::test]
async fn a_crash_in_the_grace_period_is_sent_after_it_unless_recovered() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let monitor = ground.monitor("m", &[("MONITOR_STARTUP_GRACE_SEC", "45")]).await;
    ground.alive(&monitor, &["a", "b"]).await;
    ground.fleet.crash(&["a", "b"]).await;
    monitor.until("seen inside the grace", SOON, |s| s["workers"]["a"]["state"] == "crashed").await;
    assert!(ground.slack.posts().is_empty());
    ground.fleet.up(&["b"]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    assert_eq!(ground.slack.taken().len(), 1, "b recovered: nobody hears of it");
}

#[tokio::test]
async fn one_lost_worker_of_three_is_notified() {
    let ground = Ground::new();
    // Three workers of one type, started by hand: simulated workers are the only ones of their type.
    let workers: Vec<crate::support::python::Python> = ["aaaa0001", "aaaa0002", "aaaa0003"]
        .map(|name| {
            let port = ground.redis.port().to_string();
            crate::support::python::Python::start(include_str!("../monitor/fleet.py"), &[&port, "s", name])
        })
        .into();
    let monitor = ground.monitor("m", &[]).await;
    monitor.until("three are alive", SOON, |s| s["workers"]["s"]["alive"] == 3).await;
    workers[1].send("KILL");
    ground.slack.told("s: 1 lost (heartbeat expired), 2 running", SOON).await;
}

#[tokio::test]
async fn messages_arrive_once_and_in_order_despite_429_500_and_hangs_of_slack() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let monitor = ground.monitor("m", &[]).await;
    ground.alive(&monitor, &["a"]).await;
    ground.slack.answers(&[Answer::Busy(4), Answer::Status(500), Answer::Hang]);
    ground.fleet.crash(&["a"]).await;
    eventually("the first try", SOON, || async { !ground.slack.posts().is_empty() }).await;
    // It restarts while the crash notification cannot be sent.
    ground.fleet.up(&["a"]).await;
    ground.slack.told("worker a is running again", SOON).await;
    let posts = ground.slack.posts();
    let statuses: Vec<u16> = posts.iter().map(|post| post.status).collect();
    assert_eq!(statuses, [429, 500, 0, 200, 200]);
    assert!(posts[1].at - posts[0].at >= std::time::Duration::from_secs(4), "Retry-After is heeded");
    assert!(posts[3].text().contains("crashed") && posts[4].text().contains("running again"), "firing before resolved");
}

#[tokio::test]
async fn an_alert_whose_redis_write_timed_out_is_listed_once() {
    let redis = TestRedis::start();
    let pool = shepherd_monitor::redis_streams::connection::pool(&redis.url(), SOON).unwrap();
    let (one, two) = ("{\"rule\":\"one\"}".to_owned(), "{\"rule\":\"two\"}".to_owned());
    for alerts in [&[one.clone()][..], &[one.clone(), two.clone()]] {
        alerts::remember(&pool, alerts).await.unwrap();
    }
    assert_eq!(alerts::newest(&pool, 10).await.unwrap(), [two, one]);
}
