//! The monitor's own spans: requests. It needs neither Redis nor Postgres for them.

use std::collections::BTreeSet;

use crate::collector::{Collector, SERVER};
use crate::support::monitor::Monitor;
use crate::{PRODUCER, TRACE, traceparent};

/// No consumers.
const REDIS: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1");
const POSTGRES: (&str, &str) = ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres");

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_with_a_trace_continues_it() {
    let collector = Collector::start().await;
    let monitor = Monitor::start(&[
        REDIS,
        POSTGRES,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        // What is logged and what is traced are two things.
        ("LOG_LEVEL", "error"),
    ])
    .await;
    let client = reqwest::Client::new();
    let ask = |path: &str| client.get(monitor.url(path)).header("traceparent", traceparent("01"));
    for path in ["/livez", "/readyz", "/api/historical/events?severity=t0psecret", "/api/health?key=t0psecret"] {
        ask(path).header("x-request-id", "abc").send().await.unwrap();
    }
    let span = collector.span("GET /api/health").await;
    assert_eq!((span.trace.as_str(), span.parent.as_str(), span.kind), (TRACE, PRODUCER, SERVER), "{span:?}");
    assert_eq!(span.service, "shepherd-monitor");
    let told = |name: &str| span.attributes.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(told("request_id"), "abc", "{span:?}");
    assert_eq!((told("http.response.status_code"), told("url.path")), ("200", "/api/health"), "{span:?}");
    // Probes are not among them, and nothing that stood behind a `?`.
    let all = collector.spans();
    let names: BTreeSet<&str> = all.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["GET /api/health", "GET /api/historical/events"]));
    assert!(!format!("{all:?}").contains("t0psecret"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_sent_when_the_monitor_ends() {
    let collector = Collector::start().await;
    let monitor = Monitor::start(&[
        REDIS,
        POSTGRES,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
        ("OTEL_SERVICE_NAME", "the monitor of the test"),
    ])
    .await;
    assert_eq!(monitor.get("/api/health").await.0, 200);
    assert_eq!(collector.spans().len(), 0);
    monitor.send("TERM");
    let span = collector.span("GET /api/health").await;
    assert_eq!((span.service.as_str(), span.parent.as_str()), ("the monitor of the test", ""), "{span:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_answer_does_not_hold_up_the_end() {
    // It takes connections and says nothing.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", deaf.local_addr().unwrap());
    let monitor = Monitor::start(&[REDIS, POSTGRES, ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
    assert_eq!(monitor.get("/api/health").await.0, 200);
    let asked = std::time::Instant::now();
    monitor.send("TERM");
    let gone = || async { !monitor.is_running() };
    crate::support::wait::eventually("it is gone", std::time::Duration::from_secs(8), gone).await;
    assert!(asked.elapsed() < std::time::Duration::from_secs(5), "it took {:?}", asked.elapsed());
}
