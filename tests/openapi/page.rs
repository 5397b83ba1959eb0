//! The API page in a browser.

use super::*;
use crate::support::browser::Browser;

#[tokio::test]
async fn the_page_shows_every_operation_and_copies_examples() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let (redis_url, database_url) = (redis.url(), database.url());
    let settings = [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", &database_url), ("MONITOR_ROOT_PATH", "/m")];
    let monitor = Monitor::start(&settings).await;
    // Complete without scripts.
    let (status, html) = monitor.get("/m/api").await;
    assert_eq!(status, 200);
    let escaped = |text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        text.replace('\'', "&#x27;").replace('=', "&#x3D;").replace('`', "&#x60;")
    };
    let api = Api::new();
    for operation in api.operations() {
        for text in [operation.path.as_str(), operation.sample(), operation.told["summary"].as_str().unwrap()] {
            assert!(html.contains(&escaped(text)), "{} is not on the page: {text}", operation.id());
        }
        for parameter in operation.told["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            assert!(parameter["in"] == "path" || html.contains(&format!("<code>{name}</code>")), "{name}");
        }
    }
    for name in api.document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(html.contains(&format!("id=\"type-{name}\"")), "{name} is not on the page");
    }
    assert!(html.contains("href=\"/m/api/openapi.json\""));

    let browser = Browser::start(500, 844).await;
    browser.driver().goto(monitor.url("/m/api")).await.unwrap();
    browser.until("buttons come", "document.querySelectorAll('.sample button').length > 30").await;
    let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    for width in [500, 1920] {
        browser.driver().set_window_rect(0, 0, width, 844).await.unwrap();
        browser.until(&format!("nothing sticks out at {width}"), fits).await;
    }
    // All links within the page have a target.
    let nowhere = "[...document.querySelectorAll('main a[href^=\"#\"]')]\
        .filter(a => !document.getElementById(a.hash.slice(1))).map(a => a.hash)";
    assert_eq!(browser.value(nowhere).await, json!([]));
    // A click copies an example, or selects it if the clipboard is not available.
    browser.value("document.querySelector('#get_snapshot .sample button').click()").await;
    browser.until("it says so", "document.querySelector('#get_snapshot .sample button').textContent !== 'Copy'").await;
    let marked = browser.value("getSelection().toString().trim()").await;
    let snapshot = api.operations().find(|operation| operation.id() == "get_snapshot").unwrap();
    assert_eq!(marked, snapshot.sample());
    // Keyboard shortcut from another page.
    browser.driver().goto(monitor.url("/m/admin")).await.unwrap();
    browser.until("keys are heard", "!document.getElementById('theme').hidden").await;
    browser.press("gi").await;
    browser.until("the page about the API", "location.pathname === '/m/api'").await;
    browser.quit().await;
}
