//! A collector of the test's own: takes spans by OTLP over HTTP, reads of the protobuf what tests look at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::wait::eventually;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kinds of span, as they are written down.
pub(crate) const SERVER: u64 = 2;
pub(crate) const CONSUMER: u64 = 5;

#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    /// The names of what was logged in it.
    pub(crate) events: Vec<String>,
    pub(crate) failed: Option<String>,
}

#[derive(Default)]
struct Taken {
    spans: Vec<Span>,
    /// Head of each request.
    heads: Vec<String>,
}

/// Gone when dropped.
pub(crate) struct Collector {
    url: String,
    taken: Arc<Mutex<Taken>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let taken: Arc<Mutex<Taken>> = Arc::default();
        let all = Arc::clone(&taken);
        let serving = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(connection, Arc::clone(&all)));
            }
        });
        Self { url, taken, serving }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.taken.lock().unwrap().spans.clone()
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.taken.lock().unwrap().heads.clone()
    }

    /// Waits for a span of that name.
    pub(crate) async fn span(&self, name: &str) -> Span {
        eventually(&format!("the span {name} arrives"), PATIENCE, || async {
            let spans = self.spans();
            let found = spans.iter().find(|span| span.name == name).cloned();
            found.ok_or_else(|| format!("{:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>()))
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Answers request after request.
async fn serve(connection: TcpStream, taken: Arc<Mutex<Taken>>) {
    let mut connection = BufReader::new(connection);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match connection.read_line(&mut head).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
        }
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let length = header("content-length").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await.unwrap();
        {
            let mut taken = taken.lock().unwrap();
            taken.spans.extend(spans(&body));
            taken.heads.push(head);
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        connection.write_all(answer).await.unwrap();
    }
}

/// A field of a message.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(number) => panic!("{number} where bytes should be"),
        }
    }

    fn text(self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }

    fn hex(self) -> String {
        self.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(bytes) => panic!("{bytes:?} where a number should be"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for place in 0.. {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        number |= u64::from(first & 0x7f) << (7 * place);
        if first & 0x80 == 0 {
            break;
        }
    }
    number
}

/// The fields of a message, by their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = match tag & 7 {
            0 => {
                fields.push((tag >> 3, Value::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(length);
        fields.push((tag >> 3, Value::Bytes(value)));
        bytes = rest;
    }
    fields
}

fn all<'a>(message: &'a [u8], number: u64) -> impl Iterator<Item = Value<'a>> + use<'a> {
    fields(message).into_iter().filter(move |(known, _)| *known == number).map(|(_, value)| value)
}

fn attributes<'a>(pairs: impl Iterator<Item = Value<'a>>) -> BTreeMap<String, String> {
    let pair = |pair: Value<'a>| {
        let key = all(pair.bytes(), 1).next().unwrap().text();
        let value = all(pair.bytes(), 2).next().and_then(|value| fields(value.bytes()).into_iter().next());
        let value = match value {
            Some((1, text)) => text.text(),
            Some((_, Value::Number(number))) => number.to_string(),
            _ => String::new(),
        };
        (key, value)
    };
    pairs.map(pair).collect()
}

/// The spans in a request: `ExportTraceServiceRequest`, in it `ResourceSpans`, in them `ScopeSpans`.
fn spans(request: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in all(request, 1) {
        let resource = all(of_resource.bytes(), 1).next().unwrap();
        let service = attributes(all(resource.bytes(), 1)).remove("service.name").unwrap();
        for of_scope in all(of_resource.bytes(), 2) {
            spans.extend(all(of_scope.bytes(), 2).map(|span| Span { service: service.clone(), ..read(span.bytes()) }));
        }
    }
    spans
}

fn read(message: &[u8]) -> Span {
    let mut span = Span { attributes: attributes(all(message, 9)), ..Span::default() };
    for (number, value) in fields(message) {
        match number {
            1 => span.trace = value.hex(),
            2 => span.id = value.hex(),
            4 => span.parent = value.hex(),
            5 => span.name = value.text(),
            6 => span.kind = value.number(),
            11 => span.events.push(all(value.bytes(), 2).next().unwrap().text()),
            15 => {
                let failed = all(value.bytes(), 3).next().is_some_and(|code| code.number() == 2);
                span.failed = failed.then(|| all(value.bytes(), 2).next().map(Value::text).unwrap_or_default());
            }
            _ => {}
        }
    }
    span
}
