//! Logging to standard error, human-readable on a terminal and JSON otherwise, and export of spans to a collector, if configured.
//!
//! Field names are fixed: `stream`, `consumer`, `worker_type`, `actor`, `tick`, `request_id`, `error`; names of values with a unit
//! end in the unit (`took_ms`).

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::traces::Collector;

/// Flushes pending spans when dropped.
#[must_use = "dropped, it sends no spans"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    _export: Option<crate::traces::Export>,
}

/// Starts logging at `level` (a level or a filter), and the export of spans to `collector`. Must not be called inside a runtime.
///
/// # Errors
/// Why `level` is invalid, or why spans cannot be exported.
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
        // Builds without this feature reject the setting.
        let _ = collector;
        tracing_subscriber::registry().with(logs).try_init().map(|()| Telemetry {}).map_err(|e| e.to_string())
    }
}

/// Returns the layer that formats log lines: human-readable, or one JSON object per line with the names of its spans.
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
    fn json_lines_contain_fields_and_spans() {
        let text = written(false);
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((line["level"].as_str(), line["message"].as_str()), (Some("INFO"), Some("a line")));
        assert_eq!((line["took_ms"].as_u64(), line["spans"][0]["request_id"].as_str()), (Some(5), Some("abc")));
        assert!(line["timestamp"].is_string() && line["target"].is_string() && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn human_readable_lines_start_with_time_and_level() {
        let text = written(true);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_err(), "{text}");
        for part in ["INFO", "request", "abc", "a line", "took_ms"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
