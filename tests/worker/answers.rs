//! Every answer with every form of the workflow field, and tasks that wait for a retry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use redis::Value;
use shepherd_monitor::contract::failures::{FailureKind, LastFailure};
use shepherd_monitor::worker::{
    Answer, Cancelled, FailurePolicy, NewTask, Task, TaskError, Workflow, service, typed, with_state,
};
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::support::proxy::Proxy;
use crate::support::python::Python;

const PRODUCER: &str = include_str!("../python/producer.py");
const WORKER: &str = include_str!("../python/worker.py");
const FORMS: [&str; 10] =
    ["list", "users", "twice", "last", "empty-list", "null", "empty", "missing", "broken", "no-list"];
const ANSWERS: [&str; 11] =
    ["forward", "other-way", "end", "emit", "retry", "fail", "error", "malformed", "panic", "dead-letter", "give-back"];

#[derive(serde::Deserialize)]
struct Metadata {
    answer: String,
}

/// Returns the answer that the task's metadata requests.
async fn answer_from_metadata(attempts: Arc<Mutex<BTreeMap<String, u32>>>, task: Task) -> Result<Answer, TaskError> {
    let Metadata { answer } = task.metadata()?;
    let first = {
        let mut attempts = attempts.lock().unwrap();
        let runs = attempts.entry(task.query_id().unwrap_or_default().to_owned()).or_default();
        *runs += 1;
        *runs == 1
    };
    Ok(match answer.as_str() {
        "other-way" => Answer::forward().workflow(Workflow::through(["a", "other"])),
        "end" => Answer::end(),
        "emit" => {
            Answer::end().emit("emitted", task.related().set("n", "1")).emit("emitted", task.related().set("n", "2"))
        }
        "retry" if first => Answer::retry_after(Duration::from_millis(50), "not yet"),
        "give-back" if first => Answer::give_back("not here"),
        "fail" => Answer::fail("as asked"),
        "error" => return Err("as asked")?,
        "malformed" => task.parse::<BTreeMap<String, u8>>().map(|_| Answer::forward())?,
        "panic" => panic!("as asked"),
        "dead-letter" => Answer::dead_letter("as asked"),
        _ => Answer::forward(),
    })
}

/// Streams in which the query must end.
fn expected(form: &str, answer: &str) -> Vec<&'static str> {
    match answer {
        "forward" | "retry" | "give-back" => match form {
            // "twice" visits `a` a second time first.
            "list" | "users" | "twice" => vec!["b"],
            "missing" => vec![],
            _ => vec!["finish_query"],
        },
        "other-way" => vec!["other"],
        "end" => vec![],
        "emit" => vec!["emitted", "emitted"],
        "fail" => vec!["finish_query"],
        "error" | "malformed" | "panic" if form == "missing" => vec!["a:dead"],
        "error" | "malformed" | "panic" => vec!["finish_query"],
        "dead-letter" => vec!["a:dead"],
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_answer_to_every_form_of_task_behaves_as_documented() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let port = server.port().to_string();
    let args: Vec<&str> = [port.as_str(), "a"].into_iter().chain(ANSWERS).collect();
    Python::run(PRODUCER, &args);
    assert_eq!(length(&mut redis, "a").await, FORMS.len() * ANSWERS.len());

    let builder = quick(&server, "a").task_limit(8).delivery_limit(3);
    let worker = Running::start(builder, with_state(Arc::default(), answer_from_metadata));
    reaches(&redis, "a", 0).await;
    worker.leave().await;
    assert_eq!(pending(&mut redis, "a").await, 0);

    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for stream in ["b", "other", "emitted", "finish_query", "a:dead"] {
        for (_, fields) in entries(&mut redis, stream).await {
            found.entry(field(&fields, "query_id").to_owned()).or_default().push(stream);
            let failed =
                ["fail", "error", "malformed", "panic"].iter().any(|how| field(&fields, "query_id").ends_with(how));
            let failed = failed || (stream == "finish_query" && field(&fields, "error").contains("malformed"));
            if stream == "finish_query" {
                assert_eq!(field(&fields, "status") == "ERROR", failed, "{fields:?}");
                assert_eq!(field(&fields, "workflow"), "[]");
            }
            // Fields that Python workers read unconditionally.
            for needed in ["query_id", "response_id", "otel", "metadata", "log_level"] {
                assert!(fields.iter().any(|(name, _)| name == needed), "{stream}: {fields:?}");
            }
        }
    }
    for form in FORMS {
        for answer in ANSWERS {
            let query = format!("{form}/{answer}");
            assert_eq!(found.remove(&query).unwrap_or_default(), expected(form, answer), "{query}");
        }
    }
    assert_eq!(found, BTreeMap::new());
    let forwarded = entries(&mut redis, "b").await;
    assert!(
        forwarded
            .iter()
            .all(|(_, fields)| field(fields, "workflow") == r#"[{"id": "b", "parameters": {"n": [1, 2]}}]"#)
    );

    // A Python worker can process the forwarded tasks.
    let count = forwarded.len();
    let python = Python::start(WORKER, &[&port, "b", "0", "60"]);
    let before = length(&mut redis, "finish_query").await;
    reaches(&redis, "finish_query", before + count).await;
    python.send("TERM");
}

#[tokio::test]
async fn failures_are_counted_by_kind_with_the_newest_reason() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "fails", &["a"]).await;
    add_fields(&mut redis, "a", &[("query_id", "no workflow")]).await;
    let worker = Running::start(quick(&server, "a"), |_| async { Err("disk on fire")? });
    reaches(&redis, "a", 0).await;
    worker.leave().await;
    let counted: BTreeMap<String, String> = ask!(redis, "HGETALL", "worker:failures");
    let count = |kind: &str| counted.get(&format!("{kind}:a")).map(String::as_str);
    assert_eq!((count("failed"), count("malformed"), count("dead_lettered")), (Some("2"), None, Some("1")));
    let last: LastFailure = serde_json::from_str(&counted["last:a"]).unwrap();
    assert_eq!((last.kind, last.reason.as_str()), (FailureKind::Failed, "disk on fire"));

    // A task that exceeds the delivery limit is counted without an answer of a handler.
    add(&mut redis, "poison", &["p"]).await;
    let ids = taken_by(&mut redis, "lost", "p", 1).await;
    let _: Value = ask!(redis, "XCLAIM", "p", "consumer", "lost", 0, &ids, "IDLE", 600_000, "RETRYCOUNT", 6, "JUSTID");
    let worker = Running::start(quick(&server, "p"), done);
    reaches(&redis, "p:dead", 1).await;
    worker.leave().await;
    let counted: BTreeMap<String, String> = ask!(redis, "HGETALL", "worker:failures");
    assert_eq!(counted["dead_lettered:p"], "1");
    let last: LastFailure = serde_json::from_str(&counted["last:p"]).unwrap();
    assert!(last.reason.contains("delivered 6 times") && last.ts_ms > 1_000_000_000_000, "{last:?}");
}

#[tokio::test]
async fn emitted_tasks_are_added_atomically_and_once() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "full", "no stream");
    add(&mut redis, "q", &["a", "b"]).await;
    let worker = Running::start(quick(&server, "a").delivery_limit(1000), |task| async move {
        let new = task.related();
        Ok(Answer::forward().emit("x", new.clone()).emit("full", new.clone()).emit("x", new))
    });
    eventually("it was refused more than once", PATIENCE, || {
        let mut redis = redis.clone();
        async move { held(&mut redis, "a").await.first().is_some_and(|row| row.deliveries >= 3) }
    })
    .await;
    let there: u32 = ask!(redis, "EXISTS", "b", "x");
    assert_eq!((there, length(&mut redis, "a").await), (0, 1));
    let _: Value = ask!(redis, "DEL", "full");
    reaches(&redis, "a", 0).await;
    worker.leave().await;
    let lengths = (length(&mut redis, "b").await, length(&mut redis, "x").await, length(&mut redis, "full").await);
    assert_eq!(lengths, (1, 2, 1));
}

#[tokio::test]
async fn a_lost_reply_repeats_neither_emitted_tasks_nor_retries() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let (go, runs) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let builder =
        quick(&server, "a").task_limit(10).redis_url(server.url_through(proxy.port())).reclaim_min_idle(PATIENCE);
    let worker = Running::start(builder, {
        let (go, runs) = (go.clone(), runs.clone());
        move |task: Task| {
            let (go, runs) = (go.clone(), runs.clone());
            async move {
                runs.fetch_add(1, SeqCst);
                go.acquire().await?.forget();
                if task.query_id() == Some("again") && task.fence().deliveries == 1 {
                    return Ok(Answer::retry_after(Duration::ZERO, "once more"));
                }
                Ok(Answer::end().emit("x", task.related()).emit("x", task.related()))
            }
        }
    });
    for query in ["q1", "q2", "q3", "again"] {
        add(&mut redis, query, &["a", "b"]).await;
    }
    eventually("all run", PATIENCE, || async { runs.load(SeqCst) == 4 }).await;
    proxy.swallow_replies();
    go.add_permits(100);
    eventually("Redis has done something, and the worker does not hear of it", PATIENCE, || {
        let mut redis = redis.clone();
        async move { length(&mut redis, "x").await > 0 }
    })
    .await;
    proxy.cut();
    proxy.pass();
    reaches(&redis, "a", 0).await;
    worker.leave().await;
    let mut emitted = queries(&mut redis, "x").await;
    emitted.sort();
    assert_eq!(emitted, ["again", "again", "q1", "q1", "q2", "q2", "q3", "q3"]);
    assert_eq!(runs.load(SeqCst), 5);
}

#[tokio::test]
async fn a_task_waiting_for_a_retry_occupies_no_slot_and_is_not_in_flight() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for query in ["waits", "passes1", "passes2"] {
        add(&mut redis, query, &["a", "b"]).await;
    }
    let worker = Running::start(quick(&server, "a").task_limit(1), |task: Task| async move {
        match task.query_id() {
            Some("waits") => Err(TaskError::retry_after(Duration::from_secs(600), "not today")),
            _ => Ok(Answer::forward()),
        }
    });
    reaches(&redis, "b", 2).await;
    eventually("the heartbeat says so", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
            let json: String = ask!(redis, "GET", &keys[0]);
            if json.contains(r#""in_flight":0"#) && json.contains(r#""waiting":1"#) { Ok(()) } else { Err(json) }
        }
    })
    .await;
    let rows = held(&mut redis, "a").await;
    assert_eq!((rows.len(), rows[0].deliveries), (1, 2));
    // The lease is renewed while the task waits: the idle time stays below the threshold for longer than that.
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(held(&mut redis, "a").await[0].idle_ms < 300);
    // At shutdown the task is released with an idle time that makes others wait until the retry is due.
    worker.leave().await;
    let rows = held(&mut redis, "a").await;
    assert_eq!((rows.len(), rows[0].deliveries), (1, 1));
    assert!(rows[0].idle_ms < 250, "{rows:?}");
}

#[tokio::test]
async fn tasks_waiting_for_a_retry_on_a_dead_worker_are_reclaimed() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a", "b"]).await;
    let waits = |_: Task| async { Ok(Answer::retry_after(Duration::from_secs(600), "not today")) };
    let first = Running::start(quick(&server, "a"), waits);
    eventually("it waits", PATIENCE, || {
        let mut redis = redis.clone();
        async move { held(&mut redis, "a").await.first().is_some_and(|row| row.deliveries == 2) }
    })
    .await;
    let owner = held(&mut redis, "a").await[0].owner.clone();
    first.crash().await;
    let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{owner}"));
    let second = Running::start(quick(&server, "a"), done);
    reaches(&redis, "b", 1).await;
    second.leave().await;
}

#[tokio::test]
async fn only_counted_retries_stop_at_the_delivery_limit() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "counted", &["a", "b"]).await;
    add(&mut redis, "uncounted", &["a", "b"]).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let worker = Running::start(quick(&server, "a").delivery_limit(3), {
        let runs = runs.clone();
        move |task: Task| {
            let runs = runs.clone();
            async move {
                let again = Answer::retry_after(Duration::from_millis(1), "the index is being rebuilt");
                match task.query_id() {
                    Some("counted") => Ok(again),
                    _ if runs.fetch_add(1, SeqCst) < 20 => Ok(again.uncounted()),
                    _ => Ok(Answer::forward()),
                }
            }
        }
    });
    reaches(&redis, "a:dead", 1).await;
    reaches(&redis, "b", 1).await;
    worker.leave().await;
    let (_, letter) = &entries(&mut redis, "a:dead").await[0];
    assert_eq!((field(letter, "query_id"), field(letter, "dead_deliveries")), ("counted", "4"));
    assert!(field(letter, "dead_error").contains("the index is being rebuilt"), "{letter:?}");
    let records: Vec<String> = ask!(redis, "KEYS", "worker:deliveries:*");
    assert_eq!(records, Vec::<String>::new());
}

#[tokio::test]
async fn the_answer_of_a_lost_run_does_not_affect_a_later_delivery() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let id = add(&mut redis, "q", &["a", "b"]).await;
    let (calls, first, second) = (Calls::default(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let worker = Running::start(quick(&server, "a").task_limit(2), {
        let (calls, first, second) = (calls.clone(), first.clone(), second.clone());
        move |task: Task| {
            calls.note(&task);
            let (nth, first, second) = (calls.tasks().len(), first.clone(), second.clone());
            // In a separate task, so that cancelling the handler does not stop it.
            let work =
                tokio::spawn(async move { if nth == 1 { first.notified().await } else { second.notified().await } });
            async move {
                work.await?;
                if nth == 1 { Err("too late")? } else { Ok(Answer::forward()) }
            }
        }
    });
    eventually("it runs", PATIENCE, || async { calls.tasks().len() == 1 }).await;
    // Another worker claimed the entry and died.
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "dead", 0, &id, "IDLE", 600_000, "RETRYCOUNT", 2, "JUSTID");
    eventually("it is taken back", PATIENCE, || async { calls.tasks().len() == 2 }).await;
    assert_eq!(calls.tasks()[0].cancelled().await, Cancelled::Lost);
    first.notify_one();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((length(&mut redis, "a").await, length(&mut redis, "finish_query").await), (1, 0));
    second.notify_one();
    reaches(&redis, "b", 1).await;
    worker.leave().await;
    assert_eq!((length(&mut redis, "a").await, length(&mut redis, "finish_query").await), (0, 0));
}

#[tokio::test]
async fn a_released_task_is_redelivered_within_seconds_even_to_the_only_worker() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a", "b"]).await;
    let calls = Calls::default();
    let builder = quick(&server, "a").reclaim_interval(Duration::from_secs(3600));
    let worker = Running::start(builder, {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            let first = calls.tasks().len() == 1;
            async move { if first { Ok(Answer::give_back("not here")) } else { Ok(Answer::forward()) } }
        }
    });
    let started = std::time::Instant::now();
    reaches(&redis, "b", 1).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    worker.leave().await;
}

#[tokio::test]
async fn a_malformed_task_does_not_reach_a_typed_handler() {
    #[derive(serde::Deserialize)]
    struct Callback {
        callback_id: String,
        attempt: u32,
    }
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add_fields(&mut redis, "m", &[("query_id", "good"), ("callback_id", "c"), ("attempt", "3")]).await;
    add_fields(&mut redis, "m", &[("query_id", "bad"), ("callback_id", "c"), ("attempt", "many")]).await;
    add_fields(&mut redis, "m", &[("query_id", "bad"), ("callback_id", "c"), ("workflow", "null")]).await;
    let merge = typed(|task: Task<Callback>| async move {
        assert_eq!((task.body().callback_id.as_str(), task.body().attempt), ("c", 3));
        Ok(Answer::end().emit("merged", task.related()))
    });
    let worker = Running::start(quick(&server, "m"), merge);
    reaches(&redis, "m", 0).await;
    worker.leave().await;
    assert_eq!(queries(&mut redis, "merged").await, ["good"]);
    let dead = entries(&mut redis, "m:dead").await;
    assert!(dead.len() == 1 && field(&dead[0].1, "dead_error").contains("\"attempt\""), "{dead:?}");
    let failed = entries(&mut redis, "finish_query").await;
    assert!(failed.len() == 1 && field(&failed[0].1, "error").contains("missing field \"attempt\""), "{failed:?}");

    // The configured policy overrides the default.
    add_fields(&mut redis, "n", &[("query_id", "bad")]).await;
    let typed = typed(|_: Task<Callback>| async move { Ok(Answer::end()) });
    let worker = Running::start(quick(&server, "n").on_malformed(FailurePolicy::Fail), typed);
    reaches(&redis, "finish_query", 2).await;
    worker.leave().await;
}

#[tokio::test]
async fn tasks_beyond_timeout_or_deadline_fail() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let slow = |_: Task| async {
        tokio::time::sleep(PATIENCE).await;
        Ok(Answer::forward())
    };
    add(&mut redis, "slow", &["a"]).await;
    let worker = Running::start(quick(&server, "a").timeout(Duration::from_millis(50)), slow);
    reaches(&redis, "finish_query", 1).await;
    worker.leave().await;

    let origin = r#"{"stream":"first","id":"1000-0","hop":3}"#;
    add_fields(&mut redis, "a", &[("query_id", "old"), ("workflow", "[]"), ("shepherd_origin", origin)]).await;
    add(&mut redis, "late", &["a"]).await;
    let worker = Running::start(quick(&server, "a").task_limit(2).deadline(Duration::from_secs(1)), slow);
    reaches(&redis, "finish_query", 3).await;
    worker.leave().await;
    let failed: BTreeMap<String, String> = entries(&mut redis, "finish_query")
        .await
        .into_iter()
        .map(|(_, fields)| (field(&fields, "query_id").to_owned(), field(&fields, "error").to_owned()))
        .collect();
    assert_eq!(failed["slow"], "timed out after 50ms");
    assert!(failed["old"].contains("older than its deadline of 1s") && failed["late"] == failed["old"], "{failed:?}");
}

#[tokio::test]
async fn tower_layers_wrap_a_handler() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..6 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    add(&mut redis, "letter", &["a", "b"]).await;
    add(&mut redis, "slow", &["a", "b"]).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = with_state((now, most.clone()), |(now, most), task: Task| async move {
        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        now.fetch_sub(1, SeqCst);
        match task.query_id() {
            Some("letter") => Err(TaskError::dead_letter("unusable")),
            Some("slow") => std::future::pending().await,
            _ => Ok(Answer::forward()),
        }
    });
    let limited =
        tower::ServiceBuilder::new().concurrency_limit(2).timeout(Duration::from_secs(1)).service(service(handler));
    let (stop, stopped) = tokio::sync::oneshot::channel::<Option<i32>>();
    let builder = quick(&server, "a").task_limit(8);
    let stopped = async move { stopped.await.unwrap_or_default() };
    let work = tokio::spawn(builder.run_service_until(stopped, limited));
    reaches(&redis, "a", 0).await;
    stop.send(None).unwrap();
    work.await.unwrap().unwrap();
    assert_eq!((length(&mut redis, "b").await, length(&mut redis, "a:dead").await), (6, 1));
    assert!(field(&entries(&mut redis, "finish_query").await[0].1, "error").contains("timed out"));
    assert_eq!(most.load(SeqCst), 2);
}

#[tokio::test]
async fn a_handler_is_notified_of_the_shutdown_before_it_is_dropped() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a", "b"]).await;
    let (running, notified) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let worker = Running::start(quick(&server, "a").drain_timeout(Duration::from_millis(100)), {
        let (running, notified) = (running.clone(), notified.clone());
        move |task: Task| {
            let (running, notified) = (running.clone(), notified.clone());
            async move {
                running.notify_one();
                if task.cancelled().await == Cancelled::ShuttingDown {
                    notified.fetch_add(1, SeqCst);
                }
                std::future::pending().await
            }
        }
    });
    running.notified().await;
    let left = worker.leave().await;
    assert_eq!((left.in_flight, notified.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn emitted_tasks_keep_arbitrary_fields() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let worker = Running::start(quick(&server, "a"), |_| async {
        Ok(Answer::end().emit("blobs", NewTask::new().set("payload", vec![0, 255, 10]).set("n", "1")))
    });
    reaches(&redis, "blobs", 1).await;
    worker.leave().await;
    let blobs: Vec<(String, Vec<Vec<u8>>)> = ask!(redis, "XRANGE", "blobs", "-", "+");
    assert_eq!(blobs[0].1, [&b"payload"[..], &[0, 255, 10], b"n", b"1"]);
}
