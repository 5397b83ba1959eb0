//! Trace context of a task: the W3C `traceparent` in the JSON of its `otel` field.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;

/// Span ID (8 bytes).
pub type SpanId = u64;

const TRACE_ID: Range<usize> = 3..35;
const PARENT: Range<usize> = 36..52;
const FLAGS: Range<usize> = 53..55;
/// The `sampled` flag of `traceparent`.
const SAMPLED: u8 = 1;

/// Span of a task run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnSpan {
    /// Span ID.
    pub id: SpanId,
    /// Whether the span is sampled; `None` without a tracer, which keeps the decision of the parent.
    pub sampled: Option<bool>,
}

/// Trace context of a received task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The `otel` field, unchanged.
    json: String,
    /// Position of the `traceparent` in it.
    at: Range<usize>,
}

#[derive(Deserialize)]
struct Carrier<'a> {
    #[serde(borrow)]
    traceparent: Cow<'a, str>,
}

#[derive(Deserialize)]
struct State {
    tracestate: String,
}

impl TraceContext {
    /// Parses the `otel` field; `None` without a valid `traceparent`.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        let json = std::str::from_utf8(json).ok()?;
        let Carrier { traceparent } = serde_json::from_str(json).ok()?;
        // Tracers never write escape sequences, so a `traceparent` with them is invalid.
        let Cow::Borrowed(text) = traceparent else { return None };
        let start = text.as_ptr() as usize - json.as_ptr() as usize;
        is_traceparent(text).then(|| Self { json: json.to_owned(), at: start..start + text.len() })
    }

    /// Trace ID: 32 hex digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.part(TRACE_ID)
    }

    /// ID of the span that sent the task: 16 hex digits.
    #[must_use]
    pub fn parent(&self) -> &str {
        self.part(PARENT)
    }

    /// The `traceparent`, unchanged.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        self.json.get(self.at.clone()).unwrap_or_default()
    }

    /// The `tracestate`, if present.
    #[must_use]
    pub fn tracestate(&self) -> Option<String> {
        serde_json::from_str(&self.json).ok().map(|State { tracestate }| tracestate)
    }

    /// Returns the `otel` field of a task that `span` sends. Only the parent and the `sampled` flag change.
    #[must_use]
    pub fn continued(&self, span: OwnSpan) -> String {
        let before = self.json.get(..self.at.start).unwrap_or_default();
        let after = self.json.get(self.at.end..).unwrap_or_default();
        let came = u8::from_str_radix(self.part(FLAGS), 16).unwrap_or_default();
        let flags = span.sampled.map_or(came, |sampled| came & !SAMPLED | u8::from(sampled));
        format!("{before}00-{}-{:016x}-{flags:02x}{after}", self.trace_id(), span.id)
    }

    fn part(&self, part: Range<usize>) -> &str {
        self.traceparent().get(part).unwrap_or_default()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.trace_id(), self.parent())
    }
}

/// Checks `version-traceid-parentid-flags`. Later versions may append parts; version 00 has exactly these.
fn is_traceparent(text: &str) -> bool {
    let part = |part: Range<usize>| text.get(part).filter(|digits| digits.bytes().all(is_digit));
    let (Some(version), Some(trace_id), Some(parent), Some(_)) =
        (part(0..2), part(TRACE_ID), part(PARENT), part(FLAGS))
    else {
        return false;
    };
    let dashed = [2, 35, 52].iter().all(|at| text.as_bytes().get(*at) == Some(&b'-'));
    let ends = if version == "00" { text.len() == 55 } else { matches!(text.as_bytes().get(55), None | Some(b'-')) };
    let not_zero = |digits: &str| digits.bytes().any(|b| b != b'0');
    dashed && ends && version != "ff" && not_zero(trace_id) && not_zero(parent)
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{OwnSpan, TraceContext};

    fn own(id: u64) -> OwnSpan {
        OwnSpan { id, sampled: None }
    }

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn forwarded_tasks_stay_in_the_trace_with_the_new_span_as_parent() {
        let otel = format!(r#"{{"traceparent": "00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "a=1"}}"#);
        let context = TraceContext::parse(otel.as_bytes()).unwrap();
        assert_eq!((context.trace_id(), context.parent()), (TRACE, "00f067aa0ba902b7"));
        assert_eq!((context.traceparent().len(), context.tracestate().as_deref()), (55, Some("a=1")));
        let next = context.continued(own(0xab));
        assert_eq!(next, otel.replace("00f067aa0ba902b7", "00000000000000ab"));
        assert_eq!(TraceContext::parse(next.as_bytes()).unwrap().parent(), "00000000000000ab");
    }

    #[test]
    fn sampled_flag_follows_the_decision_of_the_tracer() {
        let flags = |came: &str, sampled| {
            let otel = format!(r#"{{"traceparent":"00-{TRACE}-00f067aa0ba902b7-{came}"}}"#);
            let next = TraceContext::parse(otel.as_bytes()).unwrap().continued(OwnSpan { id: 1, sampled });
            next.get(next.len() - 4..next.len() - 2).unwrap().to_owned()
        };
        assert_eq!([flags("00", None), flags("01", None), flags("03", None)], ["00", "01", "03"]);
        assert_eq!([flags("01", Some(false)), flags("03", Some(false)), flags("02", Some(true))], ["00", "02", "03"]);
    }

    #[test]
    fn later_traceparent_versions_continue_as_version_00() {
        let otel = format!(r#"{{"traceparent":"42-{TRACE}-00f067aa0ba902b7-01-more"}}"#);
        let next = TraceContext::parse(otel.as_bytes()).unwrap().continued(own(1));
        assert_eq!(next, format!(r#"{{"traceparent":"00-{TRACE}-0000000000000001-01"}}"#));
    }

    #[test]
    fn invalid_trace_contexts_are_ignored() {
        for otel in [
            "",
            "{}",
            "[]",
            r#"{"traceparent":5}"#,
            r#"{"traceparent":"00"}"#,
            r#"{"traceparent":"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}"#,
            r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"}"#,
            r#"{"traceparent":"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#,
            r#"{"traceparent":"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"}"#,
            r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"}"#,
            r#"{"traceparent":"00 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 01"}"#,
            r#"{"traceparent":"42-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more"}"#,
        ] {
            assert_eq!(TraceContext::parse(otel.as_bytes()), None, "{otel}");
        }
    }
}
