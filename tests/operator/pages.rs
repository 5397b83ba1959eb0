//! Hostile names and payloads on every page, in a browser.

use serde_json::json;
use thirtyfour::prelude::*;

use super::*;
use crate::support::browser::Browser;

const EVIL: &str = r#"<img src=x onerror="window.hacked=1">"'</script><script>window.hacked=1</script>{{7*7}}"#;

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn hostile_names_and_payloads_run_no_scripts_on_any_page() {
    let mut world = World::new().await;
    let long = "n".repeat(4096);
    let big = "x".repeat(1_000_000);
    let raw = b"\0\xff<svg onload=window.hacked=1>".to_vec();
    for stream in [EVIL, &long, "..", "a/messages"] {
        for _ in 0..3 {
            let fields: [&[u8]; 8] = [
                EVIL.as_bytes(),
                EVIL.as_bytes(),
                b"raw",
                &raw,
                b"big",
                big.as_bytes(),
                b"metadata",
                br#"{"a":["</pre><script>window.hacked=1</script>",{"b":null}]}"#,
            ];
            let mut words: Vec<&[u8]> = vec![b"XADD", stream.as_bytes(), b"*"];
            words.extend(fields);
            world.command(&words).await;
        }
        world.command(&[b"XGROUP", b"CREATE", stream.as_bytes(), b"consumer", b"0"]).await;
        world
            .command(&[
                b"XREADGROUP",
                b"GROUP",
                b"consumer",
                EVIL.as_bytes(),
                b"COUNT",
                b"2",
                b"STREAMS",
                stream.as_bytes(),
                b">",
            ])
            .await;
    }
    let monitor = world.monitor(&[]).await;
    monitor.until("all are seen", LIMIT, |s| s["streams"].as_object().is_some_and(|all| all.len() == 4)).await;
    let browser = Browser::start(1280, 900).await;
    let nothing_runs = async |what: &str| {
        let hacked = browser.value("window.hacked === undefined").await;
        let markup = browser.value("document.querySelectorAll('main img, main script, main svg[onload]').length").await;
        assert_eq!((hacked, markup), (json!(true), json!(0)), "{what}: {}", browser.text().await);
        assert!(
            browser.value("document.querySelector('main h1') !== null").await == true,
            "{what}: {}",
            browser.text().await
        );
    };
    let mut pages = vec!["/admin/dead-consumers?min_idle_seconds=0".to_owned()];
    for stream in [EVIL, &long, "a/messages"] {
        for state in ["pending", "unread", "dead"] {
            pages.push(format!("/streams/{}/messages?state={state}&contains={}", encoded(stream), encoded("<img")));
        }
    }
    pages.push("/streams//messages?name=%2E%2E".to_owned());
    for page in &pages {
        browser.driver().goto(monitor.url(page)).await.unwrap();
        nothing_runs(page).await;
    }
    assert!(browser.text().await.contains("onerror"), "the name is shown as it is");
    // By keyboard and without scripts: preview, confirm, restore.
    browser.driver().goto(monitor.url(&pages[1])).await.unwrap();
    let press = async |text: &str| {
        let button = browser.driver().find(By::XPath(format!("//main//button[contains(., '{text}')]"))).await.unwrap();
        button.send_keys(Key::Enter).await.unwrap();
    };
    press("recycle bin").await;
    browser
        .until("the preview", "document.querySelector('h1').innerText.startsWith('Move 1 message to the recycle bin')")
        .await;
    nothing_runs("preview").await;
    press("recycle bin").await;
    browser.until("it is done", "document.querySelector('h1').innerText.includes('moved to the recycle bin')").await;
    nothing_runs("applied").await;
    browser.driver().goto(monitor.url("/admin/recycle-bin")).await.unwrap();
    nothing_runs("recycle bin").await;
    press("Restore").await;
    browser.until("it is back", "document.querySelector('h1').innerText.includes('1 message restored')").await;
    nothing_runs("put back").await;
    assert_eq!(world.command(&[b"XLEN", EVIL.as_bytes()]).await, Answer::Int(3));
    if let Ok(folder) = std::env::var("SCREENSHOTS") {
        for (name, path) in
            [("bin", "/admin/recycle-bin"), ("dead", pages[0].as_str()), ("messages", pages[1].as_str())]
        {
            browser.driver().goto(monitor.url(path)).await.unwrap();
            browser.driver().screenshot(std::path::Path::new(&format!("{folder}/{name}.png"))).await.unwrap();
        }
    }
    browser.quit().await;
}

#[tokio::test]
async fn errors_about_invalid_input_contain_the_expected_value() {
    let mut world = World::new().await;
    world.add("s", "q").await;
    world.deliver("s", "w", 1).await;
    let monitor = world.monitor(&[]).await;
    monitor.until("it is seen", LIMIT, |s| s["streams"]["s"].is_object()).await;
    for (path, told) in [
        ("/api/streams/s/messages?state=x", "pending, unread or dead"),
        ("/api/streams/s/messages?group=x", "a consumer group of this stream"),
        ("/api/streams/s/messages?cursor=x", "an entry's id"),
        ("/api/streams/s/messages?limit=9999", "up to 200"),
        ("/api/admin/recycle_bin?batch=x", "a batch ID"),
        ("/api/admin/recycle_bin?state=x", "pending, binned, void or restored"),
        ("/api/admin/dead_consumers?min_idle_seconds=-1", "a number"),
    ] {
        let (status, body) = monitor.get(path).await;
        assert_eq!(status, 400, "{path}: {body}");
        assert!(body.contains(told), "{path}: {body}");
    }
    for (path, body, told) in [
        ("/api/streams/s/messages/preview", json!({"state": "pending"}), "retry, bury or drop"),
        ("/api/streams/s/messages/preview", json!({"action": "retry", "state": "unread"}), "is not possible for"),
        ("/api/streams/s/messages/apply", json!({"token": "x"}), "a preview token"),
        ("/api/admin/recycle_bin/restore", json!({}), "either batch, or up to"),
        ("/api/admin/reclaim_dead_consumers?dry_run=maybe", json!({}), "true or false"),
    ] {
        let (status, answer) = post(&monitor, path, body).await;
        assert_eq!(status, 400, "{path}: {answer}");
        assert!(answer.to_string().contains(told), "{path}: {answer}");
    }
}
