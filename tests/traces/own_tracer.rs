//! A program that has a tracer of its own: the library's spans are among those that it sends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use shepherd_monitor::worker::{Answer, TaskError, Worker};
use tokio::sync::oneshot;
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::redis::TestRedis;
use crate::support::wait::eventually;
use crate::{PRODUCER, TRACE, traceparent};

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Kept {
    fn span(&self, name: &str) -> Option<SpanData> {
        self.0.lock().unwrap().iter().find(|span| span.name == name).cloned()
    }
}

#[tokio::test]
async fn a_tracer_of_the_programs_own_has_the_tasks_span_with_its_remote_parent() {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("a program"));
    tracing_subscriber::registry().with(layer).init();

    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = Worker::builder("a").unwrap().environment(|_| None).redis_url(server.url());
    let seen: Arc<Mutex<Option<u64>>> = Arc::default();
    let by_handler = Arc::clone(&seen);
    let stopped = async move { stopped.await.err().map(|_| 15) };
    let work = tokio::spawn(worker.run_until(stopped, move |task| {
        *by_handler.lock().unwrap() = task.trace().map(|(_, span)| span);
        async { Ok::<_, TaskError>(Answer::forward()) }.instrument(tracing::info_span!("a part of the work"))
    }));
    let _: String = redis::cmd("XADD")
        .arg("a")
        .arg("*")
        .arg("workflow")
        .arg(r#"[{"id": "a"}, {"id": "b"}]"#)
        .arg("otel")
        .arg(format!(r#"{{"traceparent": "{}", "tracestate": "x=1"}}"#, traceparent("01")))
        .query_async(&mut redis)
        .await
        .unwrap();
    let span = eventually("the task's span has ended", Duration::from_secs(30), || async { kept.span("a") }).await;
    let part = kept.span("a part of the work").unwrap();
    drop(stop);
    work.await.unwrap().unwrap();

    let context = &span.span_context;
    assert_eq!((context.trace_id().to_string().as_str(), span.parent_span_id.to_string().as_str()), (TRACE, PRODUCER));
    assert!(span.parent_span_is_remote);
    assert_eq!(context.trace_state().header(), "x=1");
    assert_eq!((part.parent_span_id, part.span_context.trace_id()), (context.span_id(), context.trace_id()));
    let id = seen.lock().unwrap().unwrap();
    assert_eq!(format!("{id:016x}"), context.span_id().to_string());
    let entries: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg("b").arg("-").arg("+").query_async(&mut redis).await.unwrap();
    let otel = entries[0].1.iter().find(|text| text.contains("traceparent")).unwrap();
    let expected = format!(r#"{{"traceparent": "00-{TRACE}-{id:016x}-01", "tracestate": "x=1"}}"#);
    assert_eq!(otel, &expected);
}
