//! Operations on messages: they change exactly what the preview showed, and can be reversed without loss or
//! duplicates.

mod pages;
mod phantoms;
mod restore;
mod size;
mod skipped;

use std::time::Duration;

use redis::Value as Answer;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use shepherd_monitor::contract::Name;
use shepherd_monitor::fleet::message::{Action, Found, MessageState, Wanted};
use shepherd_monitor::operator::{Sources, preview};
use shepherd_monitor::postgres::{self, migrate};
use shepherd_monitor::redis_streams;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run, run_words};

/// Reached only by failing tests.
const LIMIT: Duration = Duration::from_secs(60);
/// Two hours, milliseconds.
const HOURS: u64 = 7_200_000;

/// XRANGE reply: IDs and fields.
type Entries = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

struct World {
    redis: TestRedis,
    database: TestDatabase,
    ask: MultiplexedConnection,
}

impl World {
    async fn new() -> Self {
        let redis = TestRedis::start();
        let ask = redis.connection().await;
        Self { redis, database: TestDatabase::create(), ask }
    }

    async fn sources(&self) -> Sources {
        migrate::run(&self.database.url(), LIMIT).await.unwrap();
        Sources {
            redis: redis_streams::connection::pool(&self.redis.url(), LIMIT).unwrap(),
            postgres: postgres::connection::pool(&self.database.url(), LIMIT).unwrap(),
        }
    }

    async fn monitor(&self, more: &[(&str, &str)]) -> Monitor {
        let (redis, database) = (self.redis.url(), self.database.url());
        // The monitor also creates the tables, but only shortly after it starts to serve.
        migrate::run(&database, LIMIT).await.unwrap();
        let mut settings = vec![("REDIS_URL", redis.as_str()), ("DATABASE_URL", database.as_str())];
        settings.extend_from_slice(more);
        Monitor::start(&settings).await
    }

    async fn command(&mut self, words: &[&[u8]]) -> Answer {
        run_words(&mut self.ask, words).await
    }

    async fn text(&mut self, line: &str) -> Answer {
        run(&mut self.ask, line).await
    }

    /// Adds a task with bytes that are not UTF-8.
    async fn add(&mut self, stream: &str, query: &str) -> String {
        let workflow = format!(r#"[{{"id":"{stream}"}}]"#);
        let id = self
            .command(&[
                b"XADD",
                stream.as_bytes(),
                b"*",
                b"query_id",
                query.as_bytes(),
                b"workflow",
                workflow.as_bytes(),
                b"raw\xff",
                b"\0\xfe",
            ])
            .await;
        redis::from_redis_value(id).unwrap()
    }

    /// Delivers up to `count` entries of the group `consumer` to `owner`, with an idle time of two hours.
    async fn deliver(&mut self, stream: &str, owner: &str, count: usize) -> Vec<String> {
        let created = format!("XGROUP CREATE {stream} consumer 0 MKSTREAM");
        let words: Vec<&str> = created.split(' ').collect();
        let _: redis::RedisResult<Answer> = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.ask).await;
        self.text(&format!("XREADGROUP GROUP consumer {owner} COUNT {count} STREAMS {stream} >")).await;
        let held = self.text(&format!("XPENDING {stream} consumer - + 100000 {owner}")).await;
        let held: Vec<(String, String, u64, u64)> = redis::from_redis_value(held).unwrap();
        let ids: Vec<String> = held.into_iter().map(|row| row.0).collect();
        for id in &ids {
            self.text(&format!("XCLAIM {stream} consumer {owner} 0 {id} IDLE {HOURS} JUSTID")).await;
        }
        ids
    }

    /// Pending entries: ID, owner, idle time (ms), deliveries.
    async fn pending(&mut self, stream: &str) -> Vec<(String, String, u64, u64)> {
        redis::from_redis_value(self.text(&format!("XPENDING {stream} consumer - + 100000")).await).unwrap()
    }

    /// Query IDs in a stream, sorted.
    async fn queries(&mut self, stream: &str) -> Vec<String> {
        let entries: Entries = redis::from_redis_value(self.text(&format!("XRANGE {stream} - +")).await).unwrap();
        let query = |fields: Vec<(Vec<u8>, Vec<u8>)>| {
            assert!(fields.iter().any(|(name, value)| name == b"raw\xff" && value == b"\0\xfe"), "bytes are kept");
            let found = fields.into_iter().find(|(name, _)| name == b"query_id").unwrap();
            String::from_utf8(found.1).unwrap()
        };
        let mut queries: Vec<String> = entries.into_iter().map(|(_, fields)| query(fields)).collect();
        queries.sort();
        queries
    }

    async fn length(&mut self, stream: &str) -> u64 {
        redis::from_redis_value(self.text(&format!("XLEN {stream}")).await).unwrap()
    }
}

fn wanted(state: MessageState) -> Wanted {
    Wanted { state, group: Name::from("consumer"), owner: None, min_idle_ms: 0, field: None, contains: Vec::new() }
}

async fn preview(sources: &Sources, stream: &str, state: MessageState, action: Action) -> Found {
    preview::messages(&sources.redis, &Name::from(stream), &wanted(state), &[], (action, "a test")).await.unwrap()
}

/// Sends a POST with a JSON body; returns status and JSON.
async fn post(monitor: &Monitor, path: &str, body: Value) -> (u16, Value) {
    let client = reqwest::Client::builder().timeout(LIMIT).build().unwrap();
    let request = client.post(monitor.url(path)).header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| json!(text)))
}
