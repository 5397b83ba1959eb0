//! The live page in a real browser.

use std::time::Duration;

use redis::AsyncCommands;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::TestRedis;

fn worker(redis: &TestRedis, stream: &str, consumer: &str) -> Python {
    Python::start(include_str!("fleet.py"), &[&redis.port().to_string(), stream, consumer])
}

/// Counts what pages must not do: requests to other hosts, errors, injected scripts.
const FOREIGN: &str =
    "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin)).length";

#[tokio::test]
async fn live_page_updates_without_reload() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let first = worker(&redis, "first.stream", "aaaa0001");
    let monitor =
        Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url()), ("SERVER_MATURITY", "test")])
            .await;
    monitor.until("the worker is alive", Duration::from_secs(10), |s| s["workers"]["first.stream"]["alive"] == 1).await;
    let browser = Browser::start(1280, 900).await;
    browser.driver().goto(monitor.url("/")).await.unwrap();
    browser.value("window.loadedOnce = true").await;
    browser
        .until("the card is there", "document.querySelector('[data-name=\"first.stream\"][data-state]') !== null")
        .await;
    browser.until("the page is live", "document.getElementById('connection').dataset.state === 'live'").await;
    let _second = worker(&redis, "second.stream", "bbbb0001");
    browser.until("a new card appears", "document.querySelector('.card[data-name=\"second.stream\"]') !== null").await;
    first.send("TERM");
    browser
        .until(
            "the goodbye is shown",
            "document.querySelector('.card[data-name=\"first.stream\"]').dataset.state === 'scaled_down'",
        )
        .await;
    browser
        .until("and told in the feed", "document.getElementById('feed').innerText.includes('graceful shutdown')")
        .await;
    assert_eq!(browser.value("window.loadedOnce").await, json!(true), "the page was not loaded again");
    assert_eq!(browser.value(FOREIGN).await, json!(0));
    assert!(browser.text().await.contains("test"), "the environment is shown");
    browser.quit().await;
}

#[tokio::test]
async fn page_reports_a_lost_connection_and_reconnects() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let settings = [("REDIS_URL", redis.url()), ("DATABASE_URL", database.url())];
    let given: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let monitor = Monitor::start(&given).await;
    let port = monitor.address().rsplit(':').next().unwrap().to_owned();
    let browser = Browser::start(1280, 900).await;
    browser.driver().goto(monitor.url("/")).await.unwrap();
    browser.until("the page is live", "document.getElementById('connection').dataset.state === 'live'").await;
    drop(monitor);
    browser
        .until("it says so", "['disconnected', 'stale'].includes(document.getElementById('connection').dataset.state)")
        .await;
    let again: Vec<(&str, &str)> = given.into_iter().chain([("MONITOR_PORT", port.as_str())]).collect();
    let _worker = worker(&redis, "new.stream", "aaaa0001");
    let _monitor = Monitor::start(&again).await;
    browser.until("it is live again", "document.getElementById('connection').dataset.state === 'live'").await;
    browser.until("and shows what is new", "document.querySelector('.card[data-name=\"new.stream\"]') !== null").await;
    browser.quit().await;
}

#[tokio::test]
async fn hostile_names_run_no_scripts_in_the_browser() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    let long = "x".repeat(4096);
    let names = [
        "a:b",
        "q[1]*?",
        "two\nlines\r\n",
        long.as_str(),
        "<img src=x onerror=\"window.pwned=1\">",
        "<script>window.pwned=2</script>",
        "\"><svg onload=window.pwned=3>",
        "'-window.pwned=4-'",
        "javascript:window.pwned=5",
        "{{constructor.constructor('window.pwned=6')()}}",
    ];
    for name in names {
        let beat =
            json!({"stream": name, "consumer": name, "started_at": 1.0, "last_seen": 2.0, "task_limit": 1}).to_string();
        let _: () = connection.set(format!("worker:heartbeat:{name}:{name}"), beat).await.unwrap();
        let _: () = connection.set(format!("worker:heartbeat:bad:{name}"), "[]").await.unwrap();
        let _: String =
            redis::cmd("XADD").arg(name).arg("*").arg("f").arg("v").query_async(&mut connection).await.unwrap();
    }
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    monitor
        .until("all are there", Duration::from_secs(10), |s| {
            s["workers"].as_object().is_some_and(|w| w.len() >= names.len())
        })
        .await;
    let browser = Browser::start(390, 844).await;
    browser.driver().goto(monitor.url("/")).await.unwrap();
    browser.until("all are shown", &format!("document.querySelectorAll('.card').length >= {}", names.len())).await;
    browser.until("the page is live", "document.getElementById('connection').dataset.state === 'live'").await;
    // Later updates are applied too.
    for name in names {
        let _: String =
            redis::cmd("XADD").arg(name).arg("*").arg("f").arg("v").query_async(&mut connection).await.unwrap();
    }
    let tick = monitor.snapshot().await["tick"].as_u64().unwrap() + 3;
    monitor.until("some ticks pass", Duration::from_secs(10), |s| s["tick"].as_u64() > Some(tick)).await;
    assert_eq!(browser.value("typeof window.pwned").await, json!("undefined"));
    assert_eq!(browser.value("document.querySelectorAll('main img, main script').length").await, json!(0));
    assert_eq!(browser.value(FOREIGN).await, json!(0));
    let narrow = browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth").await;
    assert_eq!(narrow, json!(true), "nothing sticks out at 390 px");
    browser.quit().await;
}

#[tokio::test]
async fn page_can_be_used_by_keyboard() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _workers = [worker(&redis, "apples", "aaaa0001"), worker(&redis, "pears", "bbbb0001")];
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    monitor
        .until("both are alive", Duration::from_secs(10), |s| {
            s["workers"]["pears"]["alive"] == 1 && s["workers"]["apples"]["alive"] == 1
        })
        .await;
    let browser = Browser::start(1280, 900).await;
    browser.driver().goto(monitor.url("/")).await.unwrap();
    browser.until("the page is live", "document.getElementById('connection').dataset.state === 'live'").await;
    browser.press("/").await;
    browser.until("the filter has the focus", "document.activeElement.id === 'filter'").await;
    browser.press("pear").await;
    browser.until("only what matches is shown", "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => c.dataset.name).join() === 'pears'").await;
    browser.press("\u{e00c}").await;
    browser
        .until("Esc clears it", "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).length === 2")
        .await;
    browser.value("document.activeElement.blur()").await;
    browser.press("?").await;
    browser.until("help is open", "document.getElementById('help').open").await;
    browser.press("\u{e00c}").await;
    browser.until("and closed", "!document.getElementById('help').open").await;
    let theme = browser.value("document.getElementById('theme').textContent").await;
    browser.press("t").await;
    assert_ne!(browser.value("document.getElementById('theme').textContent").await, theme);
    browser.quit().await;
}
