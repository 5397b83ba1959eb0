//! Chromium: logging in, and pages of another site.

use serde_json::json;
use thirtyfour::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::support::browser::Browser;

/// A page of another site: `localhost` and `127.0.0.1` are different sites.
async fn foreign_page() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let page = "<!doctype html><title>elsewhere</title><form method=post></form>";
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n";
            let _ = stream.write_all(format!("{head}content-length: {}\r\n\r\n{page}", page.len()).as_bytes()).await;
        }
    });
    address
}

/// Sends every kind of request that a page can send, and waits for the results: `posted` and `socket`.
async fn attack(browser: &Browser, monitor: &Monitor) -> (serde_json::Value, serde_json::Value) {
    let script = format!(
        "window.posted = window.socket = undefined; \
         fetch('http://{0}/-/reload', {{method: 'POST', mode: 'no-cors', credentials: 'include'}}) \
            .then(a => window.posted = a.status || 'opaque', () => window.posted = 'failed'); \
         const socket = new WebSocket('ws://{0}/ws'); \
         socket.onmessage = () => {{ window.socket = 'read'; socket.close(); }}; \
         socket.onerror = () => window.socket = window.socket || 'refused';",
        monitor.address()
    );
    browser.driver().execute(script, Vec::new()).await.unwrap();
    browser.until("both are answered", "window.posted !== undefined && window.socket !== undefined").await;
    (browser.value("window.posted").await, browser.value("window.socket").await)
}

async fn changes(monitor: &Monitor) -> usize {
    let audit = reqwest::get(monitor.url("/api/admin/audit")).await.unwrap();
    let audit: serde_json::Value = audit.json().await.unwrap();
    audit["changes"].as_array().map_or(usize::MAX, Vec::len)
}

#[tokio::test]
async fn a_page_of_another_site_can_neither_change_nor_read() {
    // No authentication, so that only the origin check rejects the page.
    let ground = Ground::new(&[]).await;
    let monitor = &ground.monitor;
    monitor.takes_orders().await;
    let browser = Browser::start(1000, 800).await;
    let foreign = foreign_page().await;
    browser.driver().goto(&foreign).await.unwrap();
    let (_, socket) = attack(&browser, monitor).await;
    assert_eq!(socket, "refused");
    // A form submission, as by a click.
    let form = format!("document.forms[0].action = '{}'; document.forms[0].submit()", monitor.url("/-/reload"));
    browser.driver().execute(form, Vec::new()).await.unwrap();
    browser.until("the monitor answers", "document.title !== 'elsewhere'").await;
    assert_eq!(changes(monitor).await, 0);
    // Control: the same requests from the monitor's own page succeed.
    browser.driver().goto(monitor.url("/")).await.unwrap();
    let (posted, socket) = attack(&browser, monitor).await;
    assert_eq!((posted, socket), (json!(200), json!("read")));
    assert_eq!(changes(monitor).await, 1);
    browser.quit().await;
}

#[tokio::test]
async fn a_viewer_logs_in_by_keyboard_sees_permitted_actions_and_logs_out() {
    let ground = Ground::with_tokens(&[]).await;
    let monitor = &ground.monitor;
    let browser = Browser::start(390, 800).await;
    let driver = browser.driver();
    driver.goto(monitor.url("/alerts?x=1")).await.unwrap();
    browser.until("the login page comes", "location.pathname === '/login'").await;
    // The token field has the focus.
    let focused = driver.active_element().await.unwrap();
    focused.send_keys("not-the-token-at-all" + Key::Enter).await.unwrap();
    browser.until("it says that it is wrong", "document.querySelector('[role=alert]') !== null").await;
    let focused = driver.active_element().await.unwrap();
    focused.send_keys(VIEWER + Key::Tab).await.unwrap();
    let name = driver.active_element().await.unwrap();
    name.send_keys("Bo <b>" + Key::Enter).await.unwrap();
    browser.until("the page that was wanted comes", "location.pathname + location.search === '/alerts?x=1'").await;
    assert!(browser.text().await.contains("Bo <b>"));
    assert_eq!(browser.value("document.cookie").await, "", "no script reads the session");
    let cookie = driver.get_named_cookie("shepherd_session").await.unwrap();
    assert_eq!(format!("{:?}", cookie.same_site), "Some(Strict)");
    assert!(!cookie.value.contains(VIEWER));
    // A viewer can read but not change.
    let denied = "fetch('/-/reload', {method: 'POST'}).then(a => window.denied = a.status)";
    driver.execute(denied, Vec::new()).await.unwrap();
    browser.until("it is refused", "window.denied === 403").await;
    browser.until("the page stays live", "document.querySelector('form[action$=\"/logout\"] button') !== null").await;
    // A link from another site, such as in a notification: the first request has no session cookie.
    driver.goto(foreign_page().await).await.unwrap();
    driver.execute(format!("location.href = '{}'", monitor.url("/alerts?from=slack")), Vec::new()).await.unwrap();
    browser.until("it goes on by itself", "location.pathname + location.search === '/alerts?from=slack'").await;
    driver.find(By::Css("form[action$='/logout'] button")).await.unwrap().click().await.unwrap();
    browser.until("the login page comes back", "location.pathname === '/login'").await;
    driver.goto(monitor.url("/")).await.unwrap();
    browser.until("it asks again", "location.pathname === '/login'").await;
    assert!(!monitor.log().contains(VIEWER));
    browser.quit().await;
}
