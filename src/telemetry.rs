//! Logging to standard error, human-readable on a terminal and JSON otherwise, and export of spans to a collector, if configured.
//!
//! Field names are fixed: `stream`, `consumer`, `worker_type`, `actor`, `tick`, `request_id`, `error`; names of values with a unit
//! end in the unit (`took_ms`).
//!
//! Values come from servers and clients. Both formats escape them here, so that no log line can control a terminal or
//! forge another line.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::printable::{self, Escaped};
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
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer();
    if human {
        lines.with_writer(to).with_target(false).fmt_fields(EscapedFields).boxed()
    } else {
        lines.with_writer(JsonOutput(to)).json().flatten_event(true).with_current_span(false).boxed()
    }
}

/// Formats messages and fields (`name=value`) of events and spans for people. The default formatter leaves line breaks
/// in messages, and control characters in values logged by their `Display`, as they are.
struct EscapedFields;

impl<'a> FormatFields<'a> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut visitor = EscapedVisitor { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct EscapedVisitor<'a> {
    writer: Writer<'a>,
    first: bool,
    result: fmt::Result,
}

impl EscapedVisitor<'_> {
    fn write(&mut self, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.writer.write_char(' ')?;
        }
        match name.strip_prefix("r#").unwrap_or(name) {
            "message" => {}
            // Italic name, dimmed sign, as in the default format.
            name if self.writer.has_ansi_escapes() => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            name => write!(self.writer, "{name}=")?,
        }
        write!(self.writer, "{:?}", Escaped(value))
    }
}

impl Visit for EscapedVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Metadata of records of the crate `log`; the formatter shows them in their place.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.write(field.name(), value);
        }
    }
}

/// Escapes the control characters that JSON permits in strings and terminals interpret.
struct JsonOutput<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for JsonOutput<W> {
    type Writer = JsonOutput<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonOutput(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for JsonOutput<W> {
    /// The formatter writes whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable::json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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

    fn written_by(human: bool, log: impl FnOnce()) -> String {
        let all = Written::default();
        let to = all.clone();
        let subscriber = tracing_subscriber::registry().with(lines(human, move || to.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let bytes = all.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn written(human: bool) -> String {
        written_by(human, || {
            let _in = tracing::error_span!("request", request_id = "abc").entered();
            tracing::info!(took_ms = 5, "a line");
        })
    }

    /// Logs a value in every way in which one can reach a line: message, fields of each kind, errors, spans.
    fn log_everywhere(value: &str) {
        let error = io::Error::other(value.to_owned());
        let span = tracing::error_span!("request", of = value, user = %value, late = tracing::field::Empty);
        span.record("late", tracing::field::display(value));
        let _in = span.entered();
        let name = crate::contract::Name::from(value);
        tracing::warn!(text = value, display = %value, debug = ?value, %name, ?name, r#type = %value, "of {value}");
        tracing::warn!(error = &error as &dyn std::error::Error, message = value);
        tracing::warn!(%error, "{error:#}");
        tracing::warn!(value);
    }

    const HOSTILE: &str =
        "x\nforged\r\t\0\x07\x08\x1b]0;title\x07\x1b[2J\x7f\u{9b}31m\u{85}\u{202e}\u{2066}\u{2028}\u{2029}";

    #[test]
    fn no_value_controls_the_terminal_or_forges_a_line() {
        let text = written_by(true, || log_everywhere(HOSTILE));
        assert_eq!(text.lines().count(), 4, "{text:?}");
        assert!(text.matches("\\n").count() >= 20 && text.matches("\\u{9b}31m").count() >= 20, "{text:?}");
        // The only sequences are the formatter's own: colours of levels and names.
        let colours = ["0", "1", "2", "3", "33"].map(|code| format!("\x1b[{code}m"));
        let rest = colours.iter().fold(text.replace('\n', ""), |text, own| text.replace(own, ""));
        assert!(!rest.contains(printable::is_hidden), "{rest:?}");
    }

    #[test]
    fn json_logs_are_one_valid_line_per_record_without_control_characters() {
        let text = written_by(false, || log_everywhere(HOSTILE));
        assert!(!text.replace('\n', "").contains(printable::is_hidden), "{text:?}");
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0]["message"], format!("of {HOSTILE}"));
        assert_eq!(lines[0]["text"], HOSTILE);
        assert_eq!(lines[0]["spans"][0]["user"], HOSTILE);
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
