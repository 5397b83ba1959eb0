//! The webhook receiver: remembers each message with its time, and answers 200, 500 or nothing.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::journal::now;

/// What the receiver answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Accept = 0,
    Refuse = 1,
    Hang = 2,
}

/// A message as it came.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) at: f64,
    pub(crate) body: Value,
    /// It was answered with 200.
    pub(crate) accepted: bool,
}

/// One alert in a message.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: f64,
    pub(crate) message: String,
    pub(crate) rule: String,
    pub(crate) subject: String,
    /// Identifies the alert, whichever occurrence.
    pub(crate) fingerprint: String,
    pub(crate) starts: String,
    pub(crate) resolved: bool,
    pub(crate) accepted: bool,
}

#[derive(Clone)]
pub(crate) struct Receiver {
    port: u16,
    mode: Arc<AtomicU8>,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver =
            Self { port: listener.local_addr().unwrap().port(), mode: Arc::default(), posts: Arc::default() };
        let shared = receiver.clone();
        tokio::spawn(async move {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, shared.clone()));
                }
            }
        });
        receiver
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/alerts", self.port)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    pub(crate) fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// Every alert of every message, in the order in which they came.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.posts().iter().flat_map(lines).collect()
    }
}

fn lines(post: &Post) -> Vec<Line> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let message = text(&post.body["commonAnnotations"]["message_key"]);
    let alerts = post.body["alerts"].as_array().cloned().unwrap_or_default();
    let line = |alert: &Value| Line {
        at: post.at,
        message: message.clone(),
        rule: text(&alert["labels"]["alertname"]),
        subject: text(alert["labels"].get("stream").unwrap_or(&alert["labels"]["source"])),
        fingerprint: text(&alert["fingerprint"]),
        starts: text(&alert["startsAt"]),
        resolved: alert["status"] == "resolved",
        accepted: post.accepted,
    };
    alerts.iter().map(line).collect()
}

async fn serve(mut stream: TcpStream, receiver: Receiver) {
    let mut buffer = Vec::new();
    loop {
        let (head, length) = loop {
            if let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
                let length = text.split("content-length:").nth(1);
                let length = length.and_then(|rest| rest.lines().next()?.trim().parse().ok());
                break (head + 4, length.unwrap_or(0_usize));
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk).await {
                Ok(read) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
                _ => return,
            }
        };
        while buffer.len() < head + length {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk).await {
                Ok(read) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
                _ => return,
            }
        }
        let body = serde_json::from_slice(&buffer[head..head + length]).unwrap_or_default();
        buffer.drain(..head + length);
        let mode = receiver.mode.load(Ordering::SeqCst);
        let accepted = mode == Mode::Accept as u8;
        receiver.posts.lock().unwrap().push(Post { at: now(), body, accepted });
        let text = if accepted {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        } else if mode == Mode::Refuse as u8 {
            "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\nfull"
        } else {
            tokio::time::sleep(Duration::from_secs(120)).await;
            return;
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
