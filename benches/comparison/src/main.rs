//! apalis with its Redis backend: `comparison load` adds TASKS tasks, `comparison run` processes them with IN_FLIGHT at
//! a time and prints the seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Query {
    query_id: String,
    response_id: String,
    workflow: String,
    log_level: String,
    otel: String,
    metadata: String,
}

struct Progress {
    done: AtomicU64,
    tasks: u64,
    all: Notify,
}

async fn work(_query: Query, progress: Data<Arc<Progress>>) -> Result<(), BoxDynError> {
    if progress.done.fetch_add(1, Ordering::Relaxed) + 1 == progress.tasks {
        progress.all.notify_one();
    }
    Ok(())
}

fn number(name: &str) -> Result<u64, BoxDynError> {
    Ok(std::env::var(name)?.parse()?)
}

#[tokio::main]
async fn main() -> Result<(), BoxDynError> {
    let (tasks, in_flight) = (number("TASKS")?, usize::try_from(number("IN_FLIGHT")?)?);
    let connection = apalis_redis::connect(std::env::var("REDIS_URL")?).await?;
    let config = Config::default().queue("s").batch_size(in_flight);
    let mut storage = RedisStorage::new(connection).with_config(config);
    if std::env::args().nth(1).as_deref() == Some("load") {
        for n in 0..tasks {
            let query = Query {
                query_id: format!("{n:08x}"),
                response_id: "r".to_owned(),
                workflow: r#"[{"id":"s"},{"id":"next"}]"#.to_owned(),
                log_level: "20".to_owned(),
                otel: r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#.to_owned(),
                metadata: "{}".to_owned(),
            };
            storage.push(query).await?;
        }
        return Ok(());
    }
    let progress = Arc::new(Progress { done: AtomicU64::new(0), tasks, all: Notify::new() });
    let worker = WorkerBuilder::new("comparison")
        .backend(storage)
        .data(Arc::clone(&progress))
        .concurrency(in_flight)
        .build(work);
    let started = Instant::now();
    tokio::select! {
        () = progress.all.notified() => {
            println!("{}", started.elapsed().as_secs_f64());
            Ok(())
        }
        ended = worker.run() => {
            let done = progress.done.load(Ordering::Relaxed);
            Err(format!("the worker ended after {done} of {tasks} tasks: {ended:?}").into())
        }
    }
}
