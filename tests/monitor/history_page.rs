//! The history page and the pages of a stream and a worker type, in a real browser.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::AsyncCommands;
use serde_json::json;
use thirtyfour::By;

use crate::support::browser::Browser;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

/// Counts what pages must not do: requests to other hosts.
const FOREIGN: &str =
    "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin)).length";

/// Returns the condition that a chart is in this state.
fn stands(chart: &str, state: &str) -> String {
    format!("document.getElementById('p-{chart}').dataset.state === '{state}'")
}

/// Starts a monitor whose database has the last three hours of these worker types, a crash of the first, and no run times.
async fn monitor_with_past(redis: &TestRedis, database: &TestDatabase, types: &[&str]) -> Monitor {
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    eventually("the tables are there", Duration::from_secs(20), || async {
        match monitor.get("/api/historical/metrics?metric=none").await {
            (200, _) => Ok(()),
            (_, problem) => Err(problem),
        }
    })
    .await;
    let client = database.connect().await;
    for (i, name) in types.iter().enumerate() {
        let rise = i as f64 + 1.0;
        for (kind, value) in [("backlog", "20 + n % 17"), ("capacity", "30"), ("workers_alive", "3")] {
            let sql = format!(
                "INSERT INTO monitor_metrics (ts, metric, value) \
                 SELECT date_trunc('minute', now()) - n * interval '1 minute', $1, ({value}) * $2::float8 \
                 FROM generate_series(1, 180) n ON CONFLICT DO NOTHING"
            );
            client.execute(&sql, &[&format!("{kind}:{name}"), &rise]).await.unwrap();
        }
    }
    client
        .execute(
            "INSERT INTO monitor_events (ts, type, worker, severity, detail, payload) VALUES \
             (now() - interval '2 hours', 'scale_down', $1, 'critical', 'crashed: 0 of 3 running', \
              '{\"key\": \"a\", \"kind\": \"crashed\"}'), \
             (now() - interval '110 minutes', 'scale_up', $1, 'info', 'recovered from crash (3 running)', \
              '{\"key\": \"b\", \"recovered_from\": \"crashed\"}')",
            &[&types[0]],
        )
        .await
        .unwrap();
    client
        .batch_execute(
            "INSERT INTO shepherd_brain (qid, start_time, domain) \
             SELECT 'q' || n, now() - n * interval '1 minute', 'arax' FROM generate_series(1, 170) n",
        )
        .await
        .unwrap();
    monitor
}

async fn drag(browser: &Browser, chart: &str, from: i64, to: i64) {
    let over = browser.driver().find(By::Css(format!("#p-{chart} .u-over"))).await.unwrap();
    over.scroll_into_view().await.unwrap();
    let chain = browser.driver().action_chain().move_to_element_center(&over).move_by_offset(from, 0);
    chain
        .click_and_hold()
        .move_by_offset((to - from) / 2, 0)
        .move_by_offset((to - from) / 2, 0)
        .release()
        .perform()
        .await
        .unwrap();
}

#[tokio::test]
async fn history_page_works() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = monitor_with_past(&redis, &database, &["apples", "pears"]).await;
    let browser = Browser::start(1280, 900).await;
    browser.driver().goto(monitor.url("/history?from=now-6h&to=now")).await.unwrap();
    for chart in ["backlog", "fleet", "heat", "queries", "timeline"] {
        browser.until(&format!("{chart} is drawn"), &stands(chart, "ready")).await;
    }
    browser.until("a panel without data says so", &stands("latency", "empty")).await;
    let text = browser.text().await;
    assert!(
        text.contains("No tasks finished in this time range") && text.contains("crashed: 0 of 3 running"),
        "{text}"
    );
    assert!(text.contains("10\u{202f}m 00\u{202f}s"), "how long the crash lasted: {text}");

    // Zooms by dragging, and back.
    drag(&browser, "backlog", 200, 500).await;
    browser.until("the range is in the address", "/from=20.*Z&to=20.*Z/.test(location.search)").await;
    browser.until("the part is drawn", &stands("backlog", "ready")).await;
    assert_eq!(browser.value("document.querySelector('.presets [aria-current]')").await, json!(null));
    browser.driver().back().await.unwrap();
    browser.until("back is where it was", "location.search === '?from=now-6h&to=now'").await;
    browser.until("and drawn", &stands("backlog", "ready")).await;
    drag(&browser, "backlog", 200, 500).await;
    browser.until("zoomed in again", "location.search.includes('Z')").await;
    browser.press("z").await;
    browser.until("z is the way out", "location.search === '?from=now-6h&to=now'").await;
    browser.press("z").await;
    browser.until("and further", "location.search === '?from=now-720m&to=now'").await;
    browser.press("2").await;
    browser.until("a preset has a key", "location.search === '?from=now-6h&to=now'").await;

    // Hidden series stay hidden.
    browser.until("it is drawn", &stands("backlog", "ready")).await;
    browser.value("document.querySelector('#p-backlog .legend [data-key=pears]').click()").await;
    browser.driver().refresh().await.unwrap();
    browser.until("it is drawn again", &stands("backlog", "ready")).await;
    let pressed = |name: &str| {
        format!("document.querySelector('#p-backlog .legend [data-key={name}]').getAttribute('aria-pressed')")
    };
    assert_eq!(browser.value(&pressed("pears")).await, json!("false"));
    assert_eq!(browser.value(&pressed("apples")).await, json!("true"));

    // The values at the time under the pointer, also in another chart.
    let over = browser.driver().find(By::Css("#p-backlog .u-over")).await.unwrap();
    over.scroll_into_view().await.unwrap();
    browser.driver().action_chain().move_to_element_center(&over).move_by_offset(300, 0).perform().await.unwrap();
    browser.until("it is told", "document.querySelector('#p-backlog .moment').textContent.startsWith('at ')").await;
    browser.until("there too", "document.querySelector('#p-fleet .moment').textContent.startsWith('at ')").await;

    assert_eq!(browser.value(FOREIGN).await, json!(0));
    browser.quit().await;
}

#[tokio::test]
async fn failed_query_affects_only_its_panel() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = monitor_with_past(&redis, &database, &["apples"]).await;
    let client = database.connect().await;
    client.batch_execute("ALTER TABLE shepherd_brain RENAME COLUMN start_time TO renamed").await.unwrap();
    let browser = Browser::start(1280, 900).await;
    browser.driver().goto(monitor.url("/history?from=now-6h&to=now")).await.unwrap();
    browser.until("the queries fail", &stands("queries", "failed")).await;
    for chart in ["backlog", "fleet", "heat"] {
        browser.until(&format!("{chart} is drawn"), &stands(chart, "ready")).await;
    }
    assert!(browser.text().await.contains("Cannot load Queries started:"), "it says what failed");
    browser.until("so does the summary", "document.getElementById('summary').dataset.state === 'failed'").await;
    assert_eq!(browser.value("document.getElementById('incidents').dataset.state").await, json!("ready"));
    // It recovers automatically, and a drawn panel becomes stale.
    client.batch_execute("ALTER TABLE shepherd_brain RENAME COLUMN renamed TO start_time").await.unwrap();
    browser.press("r").await;
    browser.until("the queries are back", &stands("queries", "ready")).await;
    client.batch_execute("ALTER TABLE shepherd_brain RENAME COLUMN start_time TO renamed").await.unwrap();
    browser.press("r").await;
    browser.until("what was drawn is stale", &stands("queries", "stale")).await;
    browser.quit().await;
}

#[tokio::test]
async fn live_page_links_to_history_streams_and_worker_types() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _worker = Python::start(include_str!("fleet.py"), &[&redis.port().to_string(), "apples", "aaaa0001"]);
    let monitor = monitor_with_past(&redis, &database, &["apples"]).await;
    monitor.until("it is alive", Duration::from_secs(10), |s| s["workers"]["apples"]["alive"] == 1).await;
    let browser = Browser::start(1280, 900).await;
    let follow = async |css: &str| {
        browser.driver().goto(monitor.url("/")).await.unwrap();
        browser.until("the link is there", &format!("document.querySelector('{css}') !== null")).await;
        browser.value(&format!("document.querySelector('{css}').click()")).await;
    };
    follow(".card h3 a").await;
    browser.until("the worker type's page", "location.pathname === '/workers/apples'").await;
    browser.until("with its past", &stands("load", "ready")).await;
    assert!(browser.text().await.contains("aaaa0001"), "and who is there");
    follow("#queue-rows th a").await;
    browser.until("the stream's page", "location.pathname === '/streams/apples'").await;
    browser.until("with its past", "document.getElementById('p-depth') !== null").await;
    assert!(browser.text().await.contains("Oldest message age"), "and how it is now");
    follow("#feed a").await;
    browser
        .until(
            "the minutes around an event",
            "location.pathname === '/history' && /from=20.*&to=20/.test(location.search)",
        )
        .await;
    browser.driver().goto(monitor.url("/")).await.unwrap();
    browser.until("the page is live", "document.getElementById('connection').dataset.state === 'live'").await;
    browser.press("gh").await;
    browser.until("g h", "location.pathname === '/history'").await;
    assert_eq!(monitor.get("/streams/nobody").await.0, 404);
    browser.quit().await;
}

#[tokio::test]
async fn hostile_names_run_no_scripts_on_history_pages() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let names = [
        "<img src=x onerror=\"window.pwned=1\">",
        "\"><svg onload=window.pwned=2>/?#%2F",
        "javascript:window.pwned=3",
        "a,b",
        "..",
    ];
    let mut connection = redis.connection().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for name in names {
        let beat = json!({"stream": name, "consumer": name, "started_at": now, "last_seen": now, "task_limit": 1});
        let _: () = connection.set(format!("worker:heartbeat:{name}:{name}"), beat.to_string()).await.unwrap();
        let _: String =
            redis::cmd("XADD").arg(name).arg("*").arg("f").arg("v").query_async(&mut connection).await.unwrap();
    }
    let monitor = monitor_with_past(&redis, &database, &names).await;
    monitor
        .until("all are there", Duration::from_secs(10), |s| {
            s["workers"].as_object().is_some_and(|w| names.iter().all(|name| w.contains_key(*name)))
        })
        .await;
    let browser = Browser::start(390, 844).await;
    let harmless = async |where_: &str| {
        assert_eq!(browser.value("typeof window.pwned").await, json!("undefined"), "{where_}");
        assert_eq!(browser.value("document.querySelectorAll('main img, main script').length").await, json!(0));
        assert_eq!(browser.value(FOREIGN).await, json!(0));
        let narrow = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        assert_eq!(browser.value(narrow).await, json!(true), "nothing sticks out at 390 px: {where_}");
    };
    browser.driver().goto(monitor.url("/history?from=now-6h&to=now")).await.unwrap();
    for chart in ["backlog", "fleet", "heat", "timeline"] {
        browser.until(&format!("{chart} is drawn"), &stands(chart, "ready")).await;
    }
    harmless("history").await;
    browser.driver().goto(monitor.url("/")).await.unwrap();
    let links = browser.value("[...document.querySelectorAll('.card h3 a')].map(a => a.href)").await;
    let links: Vec<String> = serde_json::from_value(links).unwrap();
    assert!(links.len() >= names.len());
    for link in links {
        browser.driver().goto(&link).await.unwrap();
        browser.until("its past is drawn", &stands("load", "ready")).await;
        harmless(&link).await;
    }
    browser
        .driver()
        .goto(monitor.url("/streams/%3Cimg%20src%3Dx%20onerror%3D%22window.pwned%3D9%22%3E%FF"))
        .await
        .unwrap();
    browser.until("nobody is called so", "document.body.innerText.includes('No stream named')").await;
    harmless("not found").await;
    browser.quit().await;
}
