//! Completion: forward, acknowledge and delete atomically, once, and only by the owner.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use shepherd_monitor::contract::Name;
use shepherd_monitor::contract::task::{Fields, Outgoing};
use shepherd_monitor::redis_streams::tasks::{Address, EntryId, Finish, Link, TaskStream, Verdict};
use shepherd_monitor::worker::{Answer, TaskError};
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_task_stays_pending_while_redis_refuses_to_forward_it() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "b", "no stream");
    add(&mut redis, "q", &["a", "b"]).await;
    let worker = Running::start(quick(&server, "a").delivery_limit(1000), done);
    eventually("it is tried again", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let rows = held(&mut redis, "a").await;
            rows.len() == 1 && rows[0].deliveries >= 2
        }
    })
    .await;
    assert_eq!(length(&mut redis, "a").await, 1);
    let _: Value = ask!(redis, "DEL", "b");
    reaches(&redis, "b", 1).await;
    reaches(&redis, "a", 0).await;
    assert_eq!((length(&mut redis, "b").await, pending(&mut redis, "a").await), (1, 0));
    worker.leave().await;
}

#[tokio::test]
async fn a_task_that_redis_always_refuses_is_dead_lettered_with_the_reason() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "b", "no stream");
    add(&mut redis, "q", &["a", "b"]).await;
    let worker = Running::start(quick(&server, "a").delivery_limit(2).lease(Duration::from_millis(60)), done);
    reaches(&redis, "a:dead", 1).await;
    let letters = entries(&mut redis, "a:dead").await;
    assert!(field(&letters[0].1, "dead_error").contains("WRONGTYPE"), "{letters:?}");
    assert_eq!(field(&letters[0].1, "dead_deliveries"), "3");
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (0, 0));
    worker.leave().await;
}

#[tokio::test]
async fn tasks_and_heartbeats_survive_an_out_of_memory_redis() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let go = Arc::new(Semaphore::new(0));
    let worker = Running::start(quick(&server, "a").task_limit(5), {
        let go = go.clone();
        move |_| {
            let go = go.clone();
            async move {
                go.acquire().await.unwrap().forget();
                Ok(Answer::forward())
            }
        }
    });
    for n in 0..5 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    eventually("all five run", PATIENCE, || {
        let mut redis = redis.clone();
        async move { pending(&mut redis, "a").await == 5 }
    })
    .await;
    let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 1);
    // The permits also serve handlers that have not reached the semaphore yet.
    go.add_permits(100);
    // The heartbeat is written every 5 s, so one write falls into this period.
    let keys: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
    let lower: u64 = ask!(redis, "PTTL", &keys[0]);
    eventually("the heartbeat is prolonged", PATIENCE, || {
        let (mut redis, key) = (redis.clone(), keys[0].clone());
        async move {
            let now: u64 = ask!(redis, "PTTL", &key);
            now > lower
        }
    })
    .await;
    assert_eq!((length(&mut redis, "b").await, pending(&mut redis, "a").await), (0, 5));
    let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 0);
    reaches(&redis, "b", 5).await;
    assert_eq!(worker.leave().await.in_flight, 0);
    assert_eq!((length(&mut redis, "b").await, length(&mut redis, "a").await), (5, 0));
}

#[tokio::test]
async fn shutdown_writes_its_marker_to_an_out_of_memory_redis() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add(&mut redis, "q", &["a"]).await;
    let worker = Running::start(quick(&server, "a"), done);
    reaches(&redis, "finish_query", 1).await;
    let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 1);
    worker.leave().await;
    let markers: Vec<String> = ask!(redis, "KEYS", "worker:shutdown:a:*");
    let beats: Vec<String> = ask!(redis, "KEYS", "worker:heartbeat:a:*");
    assert_eq!((markers.len(), beats.len()), (1, 0));
}

#[tokio::test]
async fn a_lost_reply_neither_loses_a_task_nor_forwards_it_twice() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let go = Arc::new(Semaphore::new(0));
    let worker = Running::start(quick(&server, "a").task_limit(10).redis_url(server.url_through(proxy.port())), {
        let go = go.clone();
        move |_| {
            let go = go.clone();
            async move {
                go.acquire().await.unwrap().forget();
                Ok(Answer::forward())
            }
        }
    });
    for n in 0..10 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    eventually("all ten run", PATIENCE, || {
        let mut redis = redis.clone();
        async move { pending(&mut redis, "a").await == 10 }
    })
    .await;
    proxy.swallow_replies();
    // The permits also serve handlers that have not reached the semaphore yet.
    go.add_permits(100);
    eventually("Redis has done it, and the worker does not hear of it", PATIENCE, || {
        let mut redis = redis.clone();
        async move { length(&mut redis, "b").await > 0 }
    })
    .await;
    proxy.cut();
    proxy.pass();
    reaches(&redis, "b", 10).await;
    assert_eq!(worker.leave().await.in_flight, 0);
    let mut forwarded = queries(&mut redis, "b").await;
    forwarded.sort();
    assert_eq!(forwarded, (0..10).map(|n| format!("q{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_entry_is_kept_until_the_other_group_has_finished_it() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "XGROUP", "CREATE", "a", "unread", "0", "MKSTREAM");
    let _: Value = ask!(redis, "XGROUP", "CREATE", "a", "holding", "0");
    for n in 0..12 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let _: Value = ask!(redis, "XREADGROUP", "GROUP", "holding", "x", "COUNT", 8, "STREAMS", "a", ">");
    let worker = Running::start(quick(&server, "a").task_limit(4), done);
    reaches(&redis, "finish_query", 12).await;
    assert_eq!(length(&mut redis, "a").await, 12);
    worker.leave().await;

    // Both groups read all entries; one acknowledges all, the other all except the last two.
    for group in ["unread", "holding"] {
        let _: Value = ask!(redis, "XREADGROUP", "GROUP", group, "x", "STREAMS", "a", ">");
    }
    let ids: Vec<String> = entries(&mut redis, "a").await.into_iter().map(|(id, _)| id).collect();
    let _: Value = ask!(redis, "XACK", "a", "unread", &ids);
    let _: Value = ask!(redis, "XACK", "a", "holding", &ids[..10]);
    let _: Value = ask!(redis, "XGROUP", "SETID", "a", "consumer", "0");
    let again = Running::start(quick(&server, "a").task_limit(4), done);
    reaches(&redis, "finish_query", 24).await;
    again.leave().await;
    let left: Vec<String> = entries(&mut redis, "a").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ids[10..]);
}

#[tokio::test]
async fn a_fenced_worker_changes_nothing() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let id = add(&mut redis, "q", &["a", "b"]).await;
    let (go, calls) = (Arc::new(Notify::new()), Calls::default());
    let worker = Running::start(quick(&server, "a"), {
        let (go, calls) = (go.clone(), calls.clone());
        move |task| {
            let (go, calls) = (go.clone(), calls.clone());
            async move {
                calls.note(&task);
                go.notified().await;
                Ok(Answer::forward())
            }
        }
    });
    eventually("it runs", PATIENCE, || async { calls.tasks().len() == 1 }).await;
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "thief", 0, &id);
    eventually("the handler can see it", PATIENCE, || async { calls.tasks()[0].is_lost() }).await;
    go.notify_one();
    worker.leave().await;
    assert_eq!((length(&mut redis, "a").await, length(&mut redis, "b").await), (1, 0));
    let rows = held(&mut redis, "a").await;
    assert_eq!((rows[0].owner.as_str(), rows[0].deliveries), ("thief", 2));
}

#[tokio::test]
async fn each_task_of_a_batch_has_its_own_verdict() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "text", "x");
    for n in 0..6 {
        add(&mut redis, &format!("q{n}"), &["a"]).await;
    }
    let ids = taken_by(&mut redis, "me", "a", 6).await;
    // Another owner with the same delivery count, as after a release.
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "thief", 0, &ids[1], "JUSTID");
    let _: Value = ask!(redis, "XACK", "a", "consumer", &ids[2]);
    // Claimed and claimed back: same owner, later delivery.
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "thief", 0, &ids[3], "JUSTID");
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "me", 0, &ids[3]);

    let stream = TaskStream::new(Name::from("a"), Name::from("consumer"), Name::from("me"));
    let mut link = Link::new(Address::from_url("url", &server.url()).unwrap(), PATIENCE);
    let fields: Arc<Fields> = Arc::new([("query_id", "x")].into_iter().collect());
    let tasks: Vec<Finish> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| Finish {
            id: EntryId::from(id.as_str()),
            deliveries: 1,
            outgoing: vec![Outgoing::new(Name::from(if n == 4 { "text" } else { "b" }), Arc::clone(&fields))],
            duration: Some(Duration::from_millis(5)),
            recorded: true,
            failure: None,
        })
        .collect();
    let mut verdicts = stream.finish(&mut link, &tasks, 0).await.unwrap().verdicts;
    let refused = verdicts.remove(4);
    assert!(matches!(&refused, Verdict::Refused(e) if e.code() == "WRONGTYPE" && !e.may_pass()), "{refused:?}");
    use Verdict::{Done, Fenced, Gone};
    assert_eq!(verdicts, [Done, Fenced, Gone, Fenced, Done]);
    assert_eq!((length(&mut redis, "b").await, pending(&mut redis, "a").await), (2, 3));

    // Repeating the call, as after a lost reply, changes nothing.
    let again = stream.finish(&mut link, &tasks, 0).await.unwrap().verdicts;
    assert_eq!((&again[0], &again[5]), (&Gone, &Gone));
    assert_eq!((length(&mut redis, "b").await, pending(&mut redis, "a").await), (2, 3));
}

#[tokio::test]
async fn failed_panicking_and_malformed_tasks_go_to_finish_query_and_affect_no_other() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for query in ["good1", "fails", "panics", "good2"] {
        add(&mut redis, query, &["a", "b"]).await;
    }
    add_fields(&mut redis, "a", &[("query_id", "bad json"), ("workflow", "[{")]).await;
    add_fields(&mut redis, "a", &[("query_id", "bad meta"), ("workflow", "[]"), ("metadata", "{")]).await;
    add(&mut redis, "good3", &["a", "b"]).await;
    let worker = Running::start(quick(&server, "a").task_limit(2), |task| async move {
        match task.query_id() {
            Some("fails") => Err(std::io::Error::other("disk on fire"))?,
            Some("panics") => panic!("not my day"),
            Some("bad meta") => task.metadata::<Vec<u8>>().map(|_| Answer::forward()).map_err(Into::into),
            _ => Ok(Answer::forward()),
        }
    });
    reaches(&redis, "finish_query", 4).await;
    reaches(&redis, "b", 3).await;
    worker.leave().await;
    assert_eq!(queries(&mut redis, "b").await, ["good1", "good2", "good3"]);
    for (_, fields) in entries(&mut redis, "finish_query").await {
        let reason = match field(&fields, "query_id") {
            "fails" => "disk on fire",
            "panics" => "not my day",
            "bad json" => "not JSON",
            "bad meta" => "metadata",
            other => panic!("{other} failed"),
        };
        assert!(field(&fields, "error").contains(reason), "{fields:?}");
        assert_eq!((field(&fields, "status"), field(&fields, "workflow")), ("ERROR", "[]"));
    }
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (0, 0));
}

#[tokio::test]
async fn a_task_that_fails_on_finish_query_is_dead_lettered_once() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    add_fields(&mut redis, "finish_query", &[("query_id", "q"), ("workflow", "[]")]).await;
    let worker =
        Running::start(quick(&server, "finish_query"), |_| async { Err(TaskError::new("the table is locked")) });
    reaches(&redis, "finish_query:dead", 1).await;
    reaches(&redis, "finish_query", 0).await;
    worker.leave().await;
    let (_, letter) = &entries(&mut redis, "finish_query:dead").await[0];
    assert_eq!((field(letter, "query_id"), field(letter, "dead_error")), ("q", "the table is locked"));
}

#[tokio::test]
async fn a_task_continues_its_trace_from_stream_to_stream() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let otel = format!(r#"{{"traceparent":"00-{TRACE}-00f067aa0ba902b7-01","tracestate":"x=1"}}"#);
    let through = workflow(&["a", "b"]);
    add_fields(&mut redis, "a", &[("query_id", "q"), ("workflow", &through), ("otel", &otel)]).await;
    let calls = Calls::default();
    let worker = Running::start(quick(&server, "a"), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            async { Ok(Answer::forward()) }
        }
    });
    reaches(&redis, "b", 1).await;
    worker.leave().await;
    let task = &calls.tasks()[0];
    let (trace, span) = task.trace().unwrap();
    assert_eq!((trace.trace_id(), trace.parent()), (TRACE, "00f067aa0ba902b7"));
    let (_, next) = &entries(&mut redis, "b").await[0];
    let sent: serde_json::Value = serde_json::from_str(field(next, "otel")).unwrap();
    assert_eq!(sent["traceparent"], format!("00-{TRACE}-{span:016x}-01"));
    assert_eq!(sent["tracestate"], "x=1");
}

#[tokio::test]
async fn the_idempotency_key_is_constant_across_deliveries_and_differs_per_hop() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let id = add(&mut redis, "q", &["a", "b"]).await;
    let calls = Calls::default();
    let stuck = Running::start(quick(&server, "a"), {
        let calls = calls.clone();
        move |task| {
            calls.note(&task);
            std::future::pending()
        }
    });
    eventually("it runs", PATIENCE, || async { calls.tasks().len() == 1 }).await;
    stuck.crash().await;
    let dead = calls.tasks()[0].fence().consumer.to_text();
    let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{dead}"));
    let note = |calls: Calls| {
        move |task: Task| {
            calls.note(&task);
            async { Ok(Answer::forward()) }
        }
    };
    let first = Running::start(quick(&server, "a"), note(calls.clone()));
    let second = Running::start(quick(&server, "b"), note(calls.clone()));
    reaches(&redis, "finish_query", 1).await;
    first.leave().await;
    second.leave().await;
    let calls = calls.tasks();
    let keys: Vec<String> = calls.iter().map(|task| task.idempotency_key().to_string()).collect();
    assert_eq!(keys, [format!("a/{id}/0"), format!("a/{id}/0"), format!("a/{id}/1")]);
    assert_eq!(calls.iter().map(|task| task.fence().deliveries).collect::<Vec<_>>(), [1, 2, 1]);
}

/// Collects log output in memory.
#[derive(Clone, Default)]
struct Logged(Arc<std::sync::Mutex<Vec<u8>>>);

impl Logged {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Captures the log output of this thread until the guard is dropped.
    fn catch(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn handler_logs_are_in_the_span_that_is_the_parent_of_the_next_task() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let logged = Logged::default();
    let _catching = logged.catch();
    let otel = format!(r#"{{"traceparent":"00-{TRACE}-b7ad6b7169203331-01"}}"#);
    let through = workflow(&["a", "b"]);
    add_fields(&mut redis, "a", &[("query_id", "q"), ("workflow", &through), ("otel", &otel)]).await;
    let worker = Running::start(quick(&server, "a"), |_| async {
        tokio::task::yield_now().await;
        tracing::info!("in the handler");
        Ok(Answer::forward())
    });
    reaches(&redis, "b", 1).await;
    worker.leave().await;
    let (_, next) = &entries(&mut redis, "b").await[0];
    let sent: serde_json::Value = serde_json::from_str(field(next, "otel")).unwrap();
    let span = sent["traceparent"].as_str().unwrap().split('-').nth(2).unwrap();
    let text = logged.text();
    let line = text.lines().find(|line| line.contains("in the handler")).unwrap_or_else(|| panic!("{text}"));
    for part in [TRACE, "b7ad6b7169203331", span, "query_id=\"q\"", "stream=a"] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
}

#[tokio::test]
async fn a_malformed_failed_or_panicking_task_is_logged_once() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let logged = Logged::default();
    let _catching = logged.catch();
    let mut ids = Vec::new();
    for query in ["malformed", "fails", "panics"] {
        ids.push(add(&mut redis, query, &["a"]).await);
    }
    let worker = Running::start(quick(&server, "a"), |task| async move {
        match task.query_id() {
            Some("panics") => panic!("not my day"),
            Some("malformed") => Err(TaskError::malformed("no such gene")),
            _ => Err(TaskError::new("not today")),
        }
    });
    reaches(&redis, "finish_query", 3).await;
    worker.leave().await;
    let text = logged.text();
    for (id, reason) in ids.iter().zip(["no such gene", "not today", "not my day"]) {
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(reason)).collect();
        assert_eq!(lines.len(), 1, "{reason}: {text}");
        assert!(lines[0].contains(id.as_str()), "{lines:?}");
    }
}
