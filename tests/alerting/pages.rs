//! The alerts page, silences and acknowledgements, in a browser and by the API.

use serde_json::json;

use super::*;
use crate::support::browser::Browser;

/// WebDriver code of the Tab key.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

#[tokio::test]
async fn silenced_alerts_are_sent_after_the_silence_and_acknowledged_ones_are_not_sent() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    // Long enough to acknowledge before the notification is sent, even on a busy machine.
    let monitor = ground.monitor("m", &[("MONITOR_DOWN_DEBOUNCE_SEC", "15")]).await;
    ground.alive(&monitor, &["a", "b"]).await;
    let client = reqwest::Client::new();
    monitor.takes_orders().await;
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
    assert!(page.contains("acknowledged by me: on it"), "{page}");
    assert_eq!(ground.slack.taken().len(), 1, "of b nobody hears");
    let (_, live) = monitor.get("/").await;
    assert!(live.contains("2 alerts firing"));
    assert!(live.contains("dropped from 1 to 0 with no shutdown marker"), "the feed shows alerts");
}

/// Text of a part of the page.
fn part(id: &str) -> String {
    format!("(document.getElementById('{id}')?.innerText ?? '')")
}

#[tokio::test]
async fn the_alerts_page_works_by_keyboard() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "<img src=x onerror=\"window.pwned=1\">"]).await;
    let rules = ground
        .rules("rules: [{name: lots, type: threshold, metric: xlen, stream: orders, threshold: 0, severity: info}]");
    let given = [("MONITOR_ALERTS_CONFIG", rules.as_str()), ("MONITOR_HISTORY_INTERVAL_SEC", "1")];
    let monitor = ground.monitor("m", &given).await;
    ground.alive(&monitor, &["a"]).await;
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    ground.slack.told("lots: xlen of orders is 1", SOON).await;
    let browser = Browser::start(1280, 900).await;
    let page = monitor.url("/alerts");

    // Firing, with the chart of its metric, the limit and the timeline.
    eventually("the chart is drawn", SOON, || async {
        browser.driver().goto(&page).await.unwrap();
        browser.value("document.querySelectorAll('#firing figure svg path.line').length").await == 1
    })
    .await;
    assert_eq!(browser.value("document.querySelector('#firing figure text.limit').textContent").await, "limit 0");
    let said = browser.value("document.querySelector('#firing figure > svg').getAttribute('aria-label')").await;
    assert_eq!(said, "xlen:orders: now 1, limit 0");
    assert_eq!(
        browser.value("document.querySelector('#firing details summary').textContent").await,
        "Fired 1 time in 30 days"
    );
    browser
        .until("the rule's present value", &format!("{}.includes('xlen of orders above 0\\t1')", part("rules")))
        .await;

    // Acknowledge by keyboard.
    browser.value("document.querySelector('#firing li > details summary').focus()").await;
    browser.press(ENTER).await;
    browser.press(&format!("{TAB}me{TAB}on it{TAB}{ENTER}")).await;
    browser.until("it is acknowledged", &format!("{}.includes('acknowledged by me: on it')", part("silenced"))).await;
    assert_eq!(browser.value("location.pathname").await, "/alerts");

    // Create and end a silence.
    browser.value("document.querySelector('#silences details summary').focus()").await;
    browser.press(ENTER).await;
    browser.press(&format!("{TAB}worker_*{TAB}a{TAB}2h{TAB}me{TAB}new disks{TAB}{ENTER}")).await;
    browser.until("it is shown", &format!("{}.includes('worker_* on a until')", part("silences"))).await;
    assert!(browser.text().await.contains("me: new disks"));
    ground.fleet.crash(&["a", "<img src=x onerror=\"window.pwned=1\">"]).await;
    ground.slack.told("&lt;img src=x", SOON).await;
    eventually("a is silenced", SOON, || async {
        browser.driver().goto(&page).await.unwrap();
        browser.value(&format!("{}.includes('worker_crashed:a')", part("silenced"))).await == true
    })
    .await;
    assert_eq!(ground.slack.count("Worker a crashed"), 0);
    assert_eq!(browser.value("typeof window.pwned").await, "undefined");
    browser.value("document.querySelector('#silences li button').focus()").await;
    browser.press(ENTER).await;
    browser.until("nobody asks for quiet", &format!("{}.includes('No active silences')", part("silences"))).await;
    ground.slack.told("Worker a crashed", SOON).await;

    // The test button shows the reply of each channel.
    browser.value("document.querySelector('#outbox form button').focus()").await;
    browser.press(ENTER).await;
    browser
        .until("what Slack answered", "document.body.innerText.includes('Test notification sent via every channel')")
        .await;
    assert!(browser.text().await.contains("slack") && browser.text().await.contains("200 OK: ok"));
    ground.slack.told("Test notification", SOON).await;

    // Keyboard shortcuts between pages; no horizontal overflow on a phone.
    browser.driver().goto(monitor.url("/")).await.unwrap();
    browser.until("the page is live", "document.getElementById('connection').dataset.state === 'live'").await;
    browser.press("ga").await;
    browser.until("the alerts page", "location.pathname === '/alerts'").await;
    browser.driver().set_window_rect(0, 0, 500, 844).await.unwrap();
    let narrow = browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth").await;
    assert_eq!(narrow, true, "nothing sticks out");
    browser.quit().await;
}
