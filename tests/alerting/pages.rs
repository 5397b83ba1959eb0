//! The alerts page, silences and acknowledgements, as people and programs use them.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_silenced_alert_is_shown_and_not_told_until_the_silence_ends_and_an_acknowledged_one_stays_quiet() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let monitor = ground.monitor("m", &[("MONITOR_DOWN_DEBOUNCE_SEC", "3")]).await;
    ground.alive(&monitor, &["a", "b"]).await;
    let client = reqwest::Client::new();
    let order = json!({"rule": "worker_*", "subject": "a", "duration": "1h", "owner": "me", "reason": "new disks"});
    let answer = client.post(monitor.url("/api/silences")).json(&order).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let silence: Value = answer.json().await.unwrap();
    let mut bad = order.clone();
    bad["duration"] = json!("soon");
    assert_eq!(client.post(monitor.url("/api/silences")).json(&bad).send().await.unwrap().status(), 400);
    let foreign = client.post(monitor.url("/api/silences")).header("origin", "https://evil.example").json(&order);
    assert_eq!(foreign.send().await.unwrap().status(), 403, "a page of another site");
    ground.fleet.crash(&["a"]).await;
    eventually("it is shown as silenced", SOON, || async {
        let (_, page) = monitor.get("/alerts").await;
        let silenced =
            page.split("id=\"silenced\"").nth(1).unwrap_or_default().split("</section>").next().unwrap().to_owned();
        silenced.contains("worker_crashed:a")
    })
    .await;
    ground.fleet.crash(&["b"]).await;
    let acknowledged = eventually("b is acknowledged before it is told", SOON, || async {
        let form = [("key", "worker_crashed:b"), ("owner", "me"), ("reason", "on it")];
        let body = form.map(|(name, value)| format!("{name}={}", value.replace(' ', "+"))).join("&");
        let post = client.post(monitor.url("/api/alerts/acknowledge")).body(body);
        let answer = post.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
        (answer.status() == 200).then_some(answer.url().path().to_owned())
    })
    .await;
    assert_eq!(acknowledged, "/alerts", "the page is shown again");
    let id = silence["silenced"].as_str().unwrap();
    let ended = client.post(monitor.url(&format!("/api/silences/{id}/end"))).send().await.unwrap();
    assert_eq!(ended.status(), 200);
    ground.slack.told("Worker a crashed", SOON).await;
    let (status, page) = monitor.get("/alerts").await;
    assert_eq!(status, 200);
    assert!(page.contains("acknowledged by me on it"), "{page}");
    assert_eq!(ground.slack.taken().len(), 1, "of b nobody hears");
    let (_, live) = monitor.get("/").await;
    assert!(live.contains("2 alerts firing"));
    assert!(live.contains("dropped from 1 to 0 with no shutdown marker"), "the feed shows alerts");
}
