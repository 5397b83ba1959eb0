//! Connection of the page: websockets refused, a stopped monitor, a network that drops packets, a hidden tab; and invalid websocket
//! messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::support::browser::Browser;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::proxy::Proxy;
use crate::support::python::Python;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const STATE: &str = "document.getElementById('connection').dataset.state";
const WORDS: &str = "document.getElementById('connection-word').textContent";

fn worker(redis: &TestRedis, stream: &str, consumer: &str) -> Python {
    Python::start(include_str!("fleet.py"), &[&redis.port().to_string(), stream, consumer])
}

fn card(stream: &str) -> String {
    format!("document.querySelector('.card[data-name=\"{stream}\"]') !== null")
}

/// Opens the live page at `host:port` in a browser, and waits until it is live.
async fn live_page(address: &str) -> Browser {
    let browser = Browser::start(1280, 900).await;
    browser.driver().goto(format!("http://{address}/")).await.unwrap();
    browser.value("window.loadedOnce = true").await;
    browser.until("the page is live", &format!("{STATE} === 'live'")).await;
    browser
}

fn port_of(monitor: &Monitor) -> u16 {
    monitor.address().rsplit(':').next().unwrap().parse().unwrap()
}

/// A gateway in front of the monitor that only permits plain HTTP, as in some companies.
struct Gateway {
    address: String,
    refuses: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    serving: JoinHandle<()>,
}

impl Gateway {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (refuses, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (refusing, counting) = (Arc::clone(&refuses), Arc::clone(&refused));
        let serving = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (refusing, counting) = (Arc::clone(&refusing), Arc::clone(&counting));
                tokio::spawn(async move {
                    let mut client = BufReader::new(client);
                    let mut line = String::new();
                    client.read_line(&mut line).await?;
                    if line.contains("/ws") && refusing.load(Ordering::SeqCst) {
                        counting.fetch_add(1, Ordering::SeqCst);
                        return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
                    server.write_all(line.as_bytes()).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
                });
            }
        });
        Self { address, refuses, refused, serving }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tokio::test]
async fn page_polls_if_websockets_are_refused() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _first = worker(&redis, "first.stream", "aaaa0001");
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let gateway = Gateway::to(port_of(&monitor)).await;
    let browser = live_page(&gateway.address).await;
    browser.until("it says that it polls", &format!("{WORDS} === 'live, polling'")).await;
    let _second = worker(&redis, "second.stream", "bbbb0001");
    browser.until("what is new appears", &card("second.stream")).await;
    assert_eq!(browser.value(WORDS).await, "live, polling");
    assert!(gateway.refused.load(Ordering::SeqCst) >= 2, "a websocket was tried, and tried again");

    gateway.refuses.store(false, Ordering::SeqCst);
    browser.press("r").await;
    browser.until("it goes back to a websocket", &format!("{WORDS} === 'live'")).await;
    let _third = worker(&redis, "third.stream", "cccc0001");
    browser.until("which brings what is new", &card("third.stream")).await;
    assert_eq!(browser.value("window.loadedOnce").await, json!(true), "the page was not loaded again");
    browser.quit().await;
}

#[tokio::test]
async fn page_shows_how_long_it_is_stale_and_resumes() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let browser = live_page(monitor.address()).await;
    monitor.send("STOP");
    browser.until("it is stale", &format!("{STATE} === 'stale'")).await;
    let words = browser.value(WORDS).await;
    let since = words.as_str().unwrap().strip_prefix("stale since ").unwrap_or_else(|| panic!("it says {words}"));
    assert_eq!(since.split(':').count(), 3, "{since} is a time of day");
    assert_eq!(browser.value("document.title.startsWith('✕')").await, true, "the tab says so too");
    monitor.send("CONT");
    let _worker = worker(&redis, "new.stream", "aaaa0001");
    browser.until("it is live again", &format!("{STATE} === 'live'")).await;
    browser.until("and shows what is new", &card("new.stream")).await;
    assert_eq!(browser.value("document.title.startsWith('✕')").await, false);
    assert_eq!(browser.value("window.loadedOnce").await, json!(true), "the page was not loaded again");
    browser.quit().await;
}

#[tokio::test]
async fn silent_connection_is_closed_and_reopened() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let proxy = Proxy::to(port_of(&monitor));
    let browser = live_page(&format!("127.0.0.1:{}", proxy.port())).await;
    let connections = proxy.connections();
    proxy.swallow_replies();
    browser.until("it is stale", &format!("{STATE} === 'stale'")).await;
    eventually("the page tries another connection", Duration::from_secs(40), || async {
        proxy.connections() > connections
    })
    .await;
    proxy.pass();
    let _worker = worker(&redis, "new.stream", "aaaa0001");
    browser.until("it is live again", &format!("{STATE} === 'live'")).await;
    browser.until("and shows what is new", &card("new.stream")).await;
    assert_eq!(browser.value("window.loadedOnce").await, json!(true), "the page was not loaded again");
    browser.quit().await;
}

#[tokio::test]
async fn hidden_tab_pauses_and_catches_up_when_shown() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _first = worker(&redis, "first.stream", "aaaa0001");
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let browser = live_page(monitor.address()).await;
    browser.until("the first card is there", &card("first.stream")).await;
    let hidden = |hidden: bool| {
        format!(
            "(Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {hidden} }}), \
             document.dispatchEvent(new Event('visibilitychange')))"
        )
    };
    browser.value(&hidden(true)).await;
    browser.value("window.changes = 0").await;
    // An update in progress is complete by then.
    let seen = monitor.snapshot().await["tick"].as_u64().unwrap() + 2;
    let tick_after = |tick: u64| {
        monitor.until("ticks pass", Duration::from_secs(10), move |s| s["tick"].as_u64().is_some_and(|n| n > tick))
    };
    tick_after(seen).await;
    let watch = "(new MutationObserver(all => window.changes += all.length)\
                 .observe(document.querySelector('main'), { subtree: true, childList: true, characterData: true }))";
    browser.value(watch).await;
    let _second = worker(&redis, "second.stream", "bbbb0001");
    monitor
        .until("the second is alive", Duration::from_secs(10), |s| s["workers"]["second.stream"]["alive"] == 1)
        .await;
    let seen = monitor.snapshot().await["tick"].as_u64().unwrap() + 3;
    tick_after(seen).await;
    assert_eq!(browser.value(&card("second.stream")).await, false, "nobody looks");
    assert_eq!(browser.value("window.changes").await, json!(0), "nothing is drawn for nobody");
    browser.value(&hidden(false)).await;
    browser.until("it catches up", &card("second.stream")).await;
    browser.until("and is live", &format!("{STATE} === 'live'")).await;
    assert_eq!(browser.value("window.loadedOnce").await, json!(true), "the page was not loaded again");
    browser.quit().await;
}

#[tokio::test]
async fn websocket_ignores_invalid_client_messages() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    monitor.until("there is a snapshot", Duration::from_secs(10), |s| s["tick"].is_u64()).await;
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", monitor.address())).await.unwrap();
    let part = |text: &str, code, last| Message::Frame(Frame::message(text.to_owned(), OpCode::Data(code), last));
    for said in [
        Message::text("hello"),
        Message::text(""),
        Message::text("x".repeat(1000)),
        Message::binary(vec![0_u8, 255]),
        Message::Pong(Vec::new().into()),
        part("in ", Data::Text, false),
        part("several ", Data::Continue, false),
        part("parts", Data::Continue, true),
        Message::Ping(b"there?".to_vec().into()),
    ] {
        socket.send(said).await.unwrap();
    }
    let mut answered = false;
    let mut ticks = Vec::new();
    while ticks.len() < 4 || !answered {
        match tokio::time::timeout(Duration::from_secs(10), socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["type"], "snapshot");
                ticks.push(message["data"]["tick"].as_u64().unwrap());
            }
            Message::Pong(payload) => answered |= &payload[..] == b"there?",
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert!(ticks.is_sorted(), "{ticks:?}");
}

#[tokio::test]
async fn client_that_offers_compression_after_other_extensions_is_accepted() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let (redis_url, database_url) = (redis.url(), database.url());
    let name = ("SERVER_URL", "https://dashboard.example");
    let monitor = Monitor::start(&[("REDIS_URL", &redis_url), ("DATABASE_URL", &database_url), name]).await;
    let mut socket = TcpStream::connect(monitor.address()).await.unwrap();
    let asked = "GET /ws HTTP/1.1\r\nHost: dashboard.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                 Origin: https://dashboard.example\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
    socket.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = [0; 512];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    assert!(!answer.contains("sec-websocket-extensions"), "nothing is agreed to that is not kept: {answer}");
}
