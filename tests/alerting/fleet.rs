//! Simulated workers: only their heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;

use crate::support::redis::{TestRedis, connection};

/// Renews heartbeats of workers, each the only one of its type.
///
/// The lock on the list is held while heartbeats are written or deleted, so that a running renewal cannot rewrite the
/// heartbeat of a removed worker.
pub(crate) struct Fleet {
    /// Start time by name; it also identifies the process.
    alive: Arc<Mutex<BTreeMap<String, f64>>>,
    url: String,
    _beating: tokio::sync::oneshot::Sender<()>,
}

impl Fleet {
    pub(crate) fn start(redis: &TestRedis) -> Self {
        let alive: Arc<Mutex<BTreeMap<String, f64>>> = Arc::default();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let (shared, url) = (Arc::clone(&alive), redis.url());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut redis = connection(&url, Duration::from_secs(10)).await.unwrap();
                while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                    let workers = shared.lock().await;
                    for (name, since) in workers.iter() {
                        beat(&mut redis, name, *since).await;
                    }
                    drop(workers);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        });
        Self { alive, url: redis.url(), _beating: stop }
    }

    /// Starts these workers.
    pub(crate) async fn up(&self, names: &[&str]) {
        let mut redis = connection(&self.url, Duration::from_secs(10)).await.unwrap();
        let mut alive = self.alive.lock().await;
        for name in names {
            let since = now();
            alive.insert((*name).to_owned(), since);
            beat(&mut redis, name, since).await;
        }
    }

    /// Crashes these workers at the same moment.
    pub(crate) async fn crash(&self, names: &[&str]) {
        let mut redis = connection(&self.url, Duration::from_secs(10)).await.unwrap();
        let mut pipe = redis::pipe();
        pipe.atomic();
        let mut alive = self.alive.lock().await;
        for (name, since) in names.iter().filter_map(|n| alive.remove_entry(*n)).collect::<Vec<_>>() {
            pipe.cmd("DEL").arg(key("heartbeat", &name, since)).ignore();
        }
        let () = pipe.query_async(&mut redis).await.unwrap();
    }

    /// Shuts this worker down gracefully.
    pub(crate) async fn leave(&self, name: &str) {
        let mut redis = connection(&self.url, Duration::from_secs(10)).await.unwrap();
        let mut alive = self.alive.lock().await;
        let (_, since) = alive.remove_entry(name).unwrap();
        let json = serde_json::json!({"stream": name, "consumer": consumer(since), "signum": 15, "ts": now()});
        let () = redis::pipe()
            .cmd("SET")
            .arg(key("shutdown", name, since))
            .arg(json.to_string())
            .arg("EX")
            .arg(120)
            .ignore()
            .cmd("DEL")
            .arg(key("heartbeat", name, since))
            .ignore()
            .query_async(&mut redis)
            .await
            .unwrap();
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn consumer(since: f64) -> String {
    format!("{:08x}", (since * 1000.0) as u64 & 0xffff_ffff)
}

fn key(kind: &str, name: &str, since: f64) -> String {
    format!("worker:{kind}:{name}:{}", consumer(since))
}

async fn beat(redis: &mut MultiplexedConnection, name: &str, since: f64) {
    let json = serde_json::json!({
        "stream": name, "consumer": consumer(since), "started_at": since, "last_seen": now(), "task_limit": 10,
    });
    let result: redis::RedisResult<()> = redis::cmd("SET")
        .arg(key("heartbeat", name, since))
        .arg(json.to_string())
        .arg("EX")
        .arg(15)
        .query_async(redis)
        .await;
    // Fails while a test has stopped the server.
    drop(result);
}
