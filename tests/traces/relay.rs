//! A task's trace from its producer through two worker processes to a collector.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec, is_running};

use crate::collector::{CONSUMER, Collector};
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;
use crate::{PRODUCER, TRACE, traceparent};

const PATIENCE: Duration = Duration::from_secs(30);
/// So long that spans come at the end of the process or not at all.
const NEVER_MS: &str = "600000";

/// The example itself.
#[path = "../../examples/relay.rs"]
#[expect(dead_code, reason = "its own main is not asked")]
mod example;

/// Not a test: a process that is the example, with the arguments that follow this name.
#[test]
#[ignore = "the body of processes that other tests start"]
fn relay_process() {
    example::run(std::env::args().skip_while(|word| word != RELAY).skip(1));
}

const RELAY: &str = "relay::relay_process";

/// A relay; killed when dropped.
struct Process {
    reaper: Reaper,
    pid: u32,
}

impl Process {
    fn start(redis: &TestRedis, stream: &str, more: &[&str], settings: &[(&str, &str)]) -> Self {
        let reaper = Reaper::start("shepherd-relay", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
        let mut command = vec!["env".to_owned(), "-i".to_owned(), format!("REDIS_URL={}", redis.url())];
        command.extend(settings.iter().map(|(name, value)| format!("{name}={value}")));
        command.push(std::env::current_exe().unwrap().to_str().unwrap().to_owned());
        let arguments = ["--exact", "--ignored", "--nocapture", "--", RELAY, "--stream", stream];
        command.extend(arguments.iter().chain(more).map(|&word| word.to_owned()));
        let pid = reaper.serve(&command).unwrap();
        Self { reaper, pid }
    }

    async fn leave(self) -> String {
        self.reaper.send("TERM").unwrap();
        eventually("the relay has left", PATIENCE, || async { !is_running(self.pid) }).await;
        self.reaper.log_from(0)
    }
}

async fn add(redis: &mut MultiplexedConnection, stream: &str, query: &str, otel: &str) {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(stream).arg("*").arg("query_id").arg(query).arg("otel").arg(otel);
    let _: String =
        cmd.arg("workflow").arg(r#"[{"id": "a"}, {"id": "b"}]"#).arg("x").arg("1").query_async(redis).await.unwrap();
}

/// The `traceparent` of the task of `query` in a stream, once it is there.
async fn arrived(redis: &MultiplexedConnection, stream: &str, query: &str) -> String {
    eventually(&format!("{query} is in {stream}"), PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let range = redis::cmd("XRANGE").arg(stream).arg("-").arg("+").to_owned();
            let entries: Vec<(String, Vec<String>)> = range.query_async(&mut redis).await.unwrap();
            let field = |pairs: &[String], name: &str| {
                pairs.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone()).unwrap_or_default()
            };
            let entry = entries.into_iter().find(|(_, pairs)| field(pairs, "query_id") == query);
            let otel: Option<serde_json::Value> = entry.map(|(_, p)| serde_json::from_str(&field(&p, "otel")).unwrap());
            otel.map(|otel| otel["traceparent"].as_str().unwrap().to_owned())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_a_chain_of_workers_are_one_trace_that_begins_at_the_producer() {
    let (server, collector) = (TestRedis::start(), Collector::start().await);
    let mut redis = server.connection().await;
    let settings = |service| {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0psecret"),
            ("OTEL_BSP_SCHEDULE_DELAY", NEVER_MS),
            ("OTEL_SERVICE_NAME", service),
        ]
    };
    let first = Process::start(&server, "a", &[], &settings("first"));
    let second = Process::start(&server, "b", &[], &settings("second"));
    // One whose producer is not recorded, then one whose is.
    for (query, flags) in [("unseen", "00"), ("seen", "01")] {
        let otel = format!(r#"{{"traceparent": "{}", "tracestate": "x=1"}}"#, traceparent(flags));
        add(&mut redis, "a", query, &otel).await;
    }
    let sent = arrived(&redis, "finish_query", "seen").await;
    let unseen = arrived(&redis, "finish_query", "unseen").await;
    for process in [first, second] {
        let log = process.leave().await;
        assert!(!log.contains("t0psecret") && !log.contains("panic"), "{log}");
    }

    // Both processes sent what was left when they ended.
    let (a, b) = (collector.span("a").await, collector.span("b").await);
    assert_eq!((a.trace.as_str(), a.parent.as_str()), (TRACE, PRODUCER), "{a:?}");
    assert_eq!((b.trace.as_str(), b.parent.as_str()), (TRACE, a.id.as_str()), "{b:?}");
    assert_eq!(sent, format!("00-{TRACE}-{}-01", b.id), "what is on the stream names the span that was sent");
    assert_eq!((a.service.as_str(), b.service.as_str()), ("first", "second"));
    assert_eq!((a.kind, a.failed.as_deref()), (CONSUMER, None));
    let attribute = |name: &str| a.attributes.get(name).map(String::as_str);
    assert_eq!((attribute("query_id"), attribute("stream")), (Some("seen"), Some("a")), "{a:?}");
    assert!(collector.heads().iter().all(|head| head.starts_with("POST /v1/traces ")));
    assert!(collector.heads().iter().all(|head| head.to_lowercase().contains("authorization: bearer t0psecret")));

    // What the producer does not record nobody does; the trace goes on all the same.
    assert_eq!(collector.spans().len(), 2, "{:?}", collector.spans());
    assert!(unseen.starts_with(&format!("00-{TRACE}-")) && unseen.ends_with("-00"), "{unseen}");
    assert!(!unseen.contains(PRODUCER), "{unseen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_of_a_failed_task_says_why_and_is_the_parent_of_what_follows() {
    let (server, collector) = (TestRedis::start(), Collector::start().await);
    let mut redis = server.connection().await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let relay = Process::start(&server, "a", &["--fail-every", "1"], &settings);
    add(&mut redis, "a", "q", &format!(r#"{{"traceparent": "{}"}}"#, traceparent("01"))).await;
    let sent = arrived(&redis, "finish_query", "q").await;
    let a = collector.span("a").await;
    assert_eq!(sent, format!("00-{TRACE}-{}-01", a.id));
    assert!(a.failed.as_deref().is_some_and(|why| why.contains("task 1 fails")), "{a:?}");
    assert_eq!(a.service, "relay");
    relay.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_this_tracer_does_not_record_is_passed_on_as_not_recorded() {
    let (server, collector) = (TestRedis::start(), Collector::start().await);
    let mut redis = server.connection().await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_TRACES_SAMPLER", "always_off")];
    let relay = Process::start(&server, "a", &[], &settings);
    add(&mut redis, "a", "q", &format!(r#"{{"traceparent": "{}"}}"#, traceparent("01"))).await;
    let sent = arrived(&redis, "b", "q").await;
    assert!(sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-00"), "{sent}");
    relay.leave().await;
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_work_on_while_the_collector_is_away_or_there_is_none() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{nobody}");
    let away = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    for (settings, says_so) in [(away.as_slice(), true), (&[], false)] {
        let relay = Process::start(&server, "a", &[], settings);
        for query in [says_so.to_string(), format!("{says_so} again")] {
            add(&mut redis, "a", &query, &format!(r#"{{"traceparent": "{}"}}"#, traceparent("01"))).await;
            let sent = arrived(&redis, "b", &query).await;
            assert!(sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-01"), "{sent}");
            assert!(!sent.contains(PRODUCER), "the span is the parent even if nobody sends it: {sent}");
        }
        let log = relay.leave().await;
        assert!(!log.contains("panic") && log.contains("export") == says_so, "{log}");
    }
}
