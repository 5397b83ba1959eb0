//! Merge worker: adds the results of a callback to the response of its query, and ends the task.
//!
//! `cargo run --release --no-default-features --features worker-shepherd,worker-database --example merge -- --stream
//! merge_message [--work-ms N] [--task-limit N]`; Redis is set by `REDIS_URL` (or `REDIS_HOST`, `REDIS_PORT`,
//! `REDIS_PASSWORD`), Postgres by `DATABASE_URL` (or `POSTGRES_HOST`, `POSTGRES_PORT`, `POSTGRES_USER`,
//! `POSTGRES_PASSWORD`). Without `DATABASE_URL` and `POSTGRES_HOST`, callback rows are neither checked nor deleted.

mod shared;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use diesel_async::{AsyncConnection, AsyncPgConnection};
use serde_json::{Map, Value, json};
use shared::Flags;
use shepherd_monitor::worker::queries::{QueryRowsError, callback_row, remove_callback};
use shepherd_monitor::worker::shepherd::{LockOptions, Shepherd, ShepherdError};
use shepherd_monitor::worker::{Answer, Task, TaskError, Worker, typed, with_state};
use tokio::sync::Mutex;

const USAGE: &str = "usage: merge --stream NAME [--work-ms N] [--task-limit N]";
/// Retry delay when the lock of the response is taken.
const BUSY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let flags = Flags::read(std::env::args().skip(1), &["--stream", "--work-ms", "--task-limit"]);
    let started = flags.and_then(|mut flags| {
        let work = Duration::from_millis(flags.number("--work-ms", 0)?);
        Ok(work_on(flags.text("--stream")?, work, flags.number("--task-limit", 10)?))
    });
    shared::exit("merge", USAGE, started)
}

#[tokio::main]
async fn work_on(stream: String, work: Duration, task_limit: u64) -> Result<(), String> {
    shared::log();
    // Wait only briefly: a task that waits for a retry occupies no slot and does not delay the shutdown.
    let limits = LockOptions { wait: Duration::from_secs(3), ..LockOptions::default() };
    let shepherd = Shepherd::builder().lock_options(limits).connect().await.map_err(|e| e.to_string())?;
    let database = Database::from_env();
    let merger = Arc::new(Merger { shepherd, database, work });
    let merge = with_state(merger, |merger, task: Task<Callback>| async move { merger.merge(&task).await });
    let worker = Worker::builder(&stream).map_err(|e| e.to_string())?;
    let task_limit = usize::try_from(task_limit).unwrap_or(usize::MAX);
    worker.task_limit(task_limit).run(typed(merge)).await.map(drop).map_err(|e| e.to_string())
}

/// Fields of a task of `merge_message`.
#[derive(serde::Deserialize)]
struct Callback {
    query_id: String,
    response_id: String,
    callback_id: String,
}

struct Merger {
    shepherd: Shepherd,
    database: Option<Database>,
    work: Duration,
}

impl Merger {
    async fn merge(&self, task: &Task<Callback>) -> Result<Answer, TaskError> {
        let Callback { query_id, response_id, callback_id } = task.body();
        // One token per delivery, so that two tasks of one worker cannot release each other's lock.
        let fence = task.fence();
        let token = format!("{}:{}:{}", fence.consumer, fence.entry, fence.deliveries);
        let lock = match self.shepherd.lock(response_id, token.as_str()).await {
            Ok(lock) => lock,
            Err(e) if e.may_pass() => return Ok(Answer::retry_after(BUSY, e.to_string()).uncounted()),
            Err(e) => return Err(e)?,
        };
        // Already merged, or the query no longer waits for the callback: a late write would undo later work.
        let awaited = match &self.database {
            Some(database) => database.waits_for(callback_id).await?,
            None => true,
        };
        if awaited {
            tokio::time::sleep(self.work).await;
            let (query, response, callback) = (
                self.shepherd.body::<Value>(query_id).await?,
                self.shepherd.body::<Value>(response_id).await?,
                self.shepherd.body::<Value>(callback_id).await?,
            );
            match (query, response, callback) {
                (Some(query), Some(response), Some(callback)) => {
                    match lock.put_body(&merged(&query, response, callback)).await {
                        Ok(()) => {}
                        Err(e @ ShepherdError::LockLost { .. }) => {
                            return Ok(Answer::retry_after(BUSY, e.to_string()).uncounted());
                        }
                        Err(e) => return Err(e)?,
                    }
                }
                // Redis may evict bodies when it is out of memory; the query continues without this callback.
                _ => tracing::warn!(callback_id, "a body is missing; nothing is merged"),
            }
            // After the body is stored and before the task ends: the query continues when no callback row is left.
            if let Some(database) = &self.database {
                database.remove(callback_id).await?;
            }
        }
        lock.release().await?;
        Ok(Answer::end())
    }
}

/// Returns the response with results, nodes and edges of the callback added. Idempotent.
fn merged(query: &Value, mut response: Value, mut callback: Value) -> Value {
    let question = query.pointer("/message/query_graph").cloned().unwrap_or_else(|| json!({}));
    let queried = question.get("nodes").and_then(Value::as_object).and_then(|nodes| {
        let mut unpinned = nodes.iter().filter(|(_, node)| node.get("ids").is_none_or(Value::is_null));
        unpinned.next().map(|(name, _)| name.clone())
    });
    let mut graph = |part: &str| {
        let mut all = taken(&mut callback, &format!("/message/{part}"));
        all.append(&mut taken(&mut response, &format!("/message/{part}")));
        Value::Object(all)
    };
    let (nodes, edges) = (graph("knowledge_graph/nodes"), graph("knowledge_graph/edges"));
    let auxiliary_graphs = graph("auxiliary_graphs");
    let mut known = BTreeSet::new();
    let mut results = Vec::new();
    for body in [&mut response, &mut callback] {
        let Some(Value::Array(list)) = body.pointer_mut("/message/results").map(Value::take) else { continue };
        let new = list.into_iter().filter(|result| known.insert(answer_of(result, queried.as_deref())));
        results.extend(new.collect::<Vec<_>>());
    }
    json!({
        "message": {
            "query_graph": question,
            "knowledge_graph": { "nodes": nodes, "edges": edges },
            "results": results,
            "auxiliary_graphs": auxiliary_graphs,
        },
        "logs": [],
    })
}

fn taken(body: &mut Value, pointer: &str) -> Map<String, Value> {
    match body.pointer_mut(pointer).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Identity of a result: the IDs bound to the queried node.
fn answer_of(result: &Value, queried: Option<&str>) -> BTreeSet<String> {
    let bound = queried.and_then(|node| result.get("node_bindings")?.get(node)?.as_array());
    let ids = bound.into_iter().flatten().filter_map(|binding| binding.get("id")?.as_str());
    let ids: BTreeSet<String> = ids.map(str::to_owned).collect();
    if ids.is_empty() { BTreeSet::from([result.to_string()]) } else { ids }
}

/// Access to callback rows over one connection, which reconnects after errors.
struct Database {
    url: String,
    connection: Mutex<Option<AsyncPgConnection>>,
}

impl Database {
    fn from_env() -> Option<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = set("DATABASE_URL").or_else(|| {
            let host = set("POSTGRES_HOST")?;
            let quoted = |text: String| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
            let of = |name: &str, default: &str| quoted(set(name).unwrap_or_else(|| default.to_owned()));
            Some(format!(
                "host={} port={} user={} password={} dbname={}",
                quoted(host),
                of("POSTGRES_PORT", "5432"),
                of("POSTGRES_USER", "postgres"),
                of("POSTGRES_PASSWORD", ""),
                of("POSTGRES_DB", "postgres")
            ))
        })?;
        Some(Self { url, connection: Mutex::default() })
    }

    async fn waits_for(&self, callback_id: &str) -> Result<bool, TaskError> {
        let row = self.with(async |connection| callback_row(connection, callback_id).await).await?;
        Ok(row.is_some())
    }

    async fn remove(&self, callback_id: &str) -> Result<bool, TaskError> {
        self.with(async |connection| remove_callback(connection, callback_id).await).await
    }

    /// Runs a statement. If it fails, the task is retried later on a new connection.
    async fn with<R>(
        &self,
        statement: impl AsyncFnOnce(&mut AsyncPgConnection) -> Result<R, QueryRowsError>,
    ) -> Result<R, TaskError> {
        // Uncounted, so that the task is not dead-lettered however long Postgres is unreachable.
        let again = |e: String| TaskError::answer(Answer::retry_after(BUSY, format!("Postgres: {e}")).uncounted());
        let mut guard = self.connection.lock().await;
        let mut connection = match guard.take() {
            Some(connection) => connection,
            None => AsyncPgConnection::establish(&self.url).await.map_err(|e| again(e.to_string()))?,
        };
        let done = statement(&mut connection).await.map_err(|e| again(e.to_string()))?;
        *guard = Some(connection);
        Ok(done)
    }
}
