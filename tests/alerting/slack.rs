//! A scripted Slack server that records messages with their times.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::wait::eventually;

/// A scripted response.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// This status.
    Status(u16),
    /// 429 with `Retry-After`, seconds.
    Busy(u64),
    /// No response until the client gives up.
    Hang,
    /// A raw response, after which the connection closes; recorded with this status.
    Raw(u16, &'static str),
}

/// A recorded request.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) at: Instant,
    pub(crate) body: Value,
    pub(crate) status: u16,
}

impl Post {
    /// Plain text of the message.
    pub(crate) fn text(&self) -> &str {
        self.body["text"].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Script {
    posts: Vec<Post>,
    next: VecDeque<Answer>,
    then: Option<Answer>,
}

/// The server; stops when dropped.
pub(crate) struct Slack {
    port: u16,
    script: Arc<Mutex<Script>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Slack {
    pub(crate) fn start() -> Self {
        let script: Arc<Mutex<Script>> = Arc::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let shared = Arc::clone(&script);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    tokio::select! {
                        _ = &mut stopped => return,
                        accepted = listener.accept() => {
                            if let Ok((stream, _)) = accepted {
                                tokio::spawn(serve(stream, Arc::clone(&shared)));
                            }
                        }
                    }
                }
            });
        });
        Self { port, script, _stop: stop }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/services/T0/B0/verysecret", self.port)
    }

    /// Responds with these in order, then with 200.
    pub(crate) fn answers(&self, answers: &[Answer]) {
        self.script.lock().unwrap().next.extend(answers);
    }

    /// Always responds with this; `None`: 200.
    pub(crate) fn always(&self, answer: Option<Answer>) {
        self.script.lock().unwrap().then = answer;
    }

    /// All requests.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.script.lock().unwrap().posts.clone()
    }

    /// All accepted messages.
    pub(crate) fn taken(&self) -> Vec<Post> {
        self.posts().into_iter().filter(|post| post.status == 200).collect()
    }

    /// Waits until a message with `text` is accepted.
    pub(crate) async fn told(&self, text: &str, limit: Duration) -> Post {
        eventually(&format!("Slack is told {text:?}"), limit, || async {
            let posts = self.posts();
            let texts: Vec<(u16, &str)> = posts.iter().map(|post| (post.status, post.text())).collect();
            let found = posts.iter().find(|post| post.status == 200 && post.text().contains(text)).cloned();
            found.ok_or_else(|| format!("{texts:?}"))
        })
        .await
    }

    /// Number of accepted messages with `text`.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.taken().iter().filter(|post| post.text().contains(text)).count()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut buffer = Vec::new();
    loop {
        let (head, length) = loop {
            if let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
                let length =
                    text.split("content-length:").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
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
        let answer = {
            let mut script = script.lock().unwrap();
            let answer = script.next.pop_front().or(script.then).unwrap_or(Answer::Status(200));
            let status = match answer {
                Answer::Status(status) | Answer::Raw(status, _) => status,
                Answer::Busy(_) => 429,
                Answer::Hang => 0,
            };
            script.posts.push(Post { at: Instant::now(), body, status });
            answer
        };
        let text = match answer {
            Answer::Status(200) => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(),
            Answer::Status(status) => format!("HTTP/1.1 {status} No\r\ncontent-length: 4\r\n\r\nsaid"),
            Answer::Busy(seconds) => {
                format!("HTTP/1.1 429 Busy\r\nretry-after: {seconds}\r\ncontent-length: 4\r\n\r\nbusy")
            }
            Answer::Raw(_, response) => {
                _ = stream.write_all(response.as_bytes()).await;
                return;
            }
            Answer::Hang => {
                tokio::time::sleep(Duration::from_secs(300)).await;
                return;
            }
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
