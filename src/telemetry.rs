//! Logs: human lines on a terminal, JSON elsewhere, on standard error; and spans for a collector, if there
//! is one.
//!
//! Fields are named once: `stream`, `consumer`, `worker_type`, `actor`, `tick`, `request_id`, `error`; a
//! value that has a unit says it in its name (`took_ms`).

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::traces::Collector;

/// Sends what is left when it is dropped.
#[must_use = "dropped, it sends no spans"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    _export: Option<crate::traces::Export>,
}

/// Starts logging at `level` (a level or a filter), and sending spans to `collector`. Not inside a runtime.
///
/// # Errors
/// What is wrong with `level`, or why spans cannot be sent.
pub fn start(level: &str, collector: Option<&Collector>) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_new(level.to_lowercase()).map_err(|e| e.to_string())?;
    let logs = lines(std::io::stderr().is_terminal(), std::io::stderr).with_filter(filter);
    #[cfg(feature = "otlp")]
    {
        let export = collector.map(crate::traces::Export::to).transpose()?;
        let spans = export.as_ref().map(crate::traces::Export::layer);
        let started = tracing_subscriber::registry().with(logs).with(spans).try_init();
        started.map(|()| Telemetry { _export: export }).map_err(|e| e.to_string())
    }
    #[cfg(not(feature = "otlp"))]
    {
        // Such a build refuses the setting.
        let _ = collector;
        tracing_subscriber::registry().with(logs).try_init().map(|()| Telemetry {}).map_err(|e| e.to_string())
    }
}

/// How lines look: for people, or as one JSON object each, which names the spans that it stands in once.
fn lines<W>(human: bool, to: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(to);
    if human {
        lines.with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(human: bool) -> String {
        let all = Written::default();
        let to = all.clone();
        let subscriber = tracing_subscriber::registry().with(lines(human, move || to.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let _in = tracing::error_span!("request", request_id = "abc").entered();
            tracing::info!(took_ms = 5, "a line");
        });
        let bytes = all.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object_with_its_fields_and_the_spans_it_stands_in() {
        let text = written(false);
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((line["level"].as_str(), line["message"].as_str()), (Some("INFO"), Some("a line")));
        assert_eq!((line["took_ms"].as_u64(), line["spans"][0]["request_id"].as_str()), (Some(5), Some("abc")));
        assert!(line["timestamp"].is_string() && line["target"].is_string() && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn people_get_a_line_that_begins_with_when_and_how_bad() {
        let text = written(true);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_err(), "{text}");
        for part in ["INFO", "request", "abc", "a line", "took_ms"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
