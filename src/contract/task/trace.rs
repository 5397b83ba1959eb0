//! The trace a task belongs to: the W3C `traceparent` in the JSON of its `otel` field.

use std::fmt;

use serde_json::{Map, Value};

/// The eight bytes that name a span.
pub type SpanId = u64;

/// Where in which trace a task was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceContext {
    carrier: Map<String, Value>,
    trace_id: String,
    parent: String,
    flags: String,
}

impl TraceContext {
    /// Reads the `otel` field; `None` when it holds no valid `traceparent`.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        let carrier: Map<String, Value> = serde_json::from_slice(json).ok()?;
        let mut parts = carrier.get("traceparent")?.as_str()?.split('-');
        let (version, trace_id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Later versions may append parts; version 00 has exactly four and ff is forbidden.
        let sound = hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && hex(trace_id, 32)
            && hex(parent, 16)
            && hex(flags, 2)
            && trace_id.bytes().any(|b| b != b'0')
            && parent.bytes().any(|b| b != b'0');
        sound.then(|| Self {
            trace_id: trace_id.to_owned(),
            parent: parent.to_owned(),
            flags: flags.to_owned(),
            carrier: carrier.clone(),
        })
    }

    /// The trace's id: 32 hex digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        &self.trace_id
    }

    /// The span that sent the task: 16 hex digits.
    #[must_use]
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The value of the `otel` field for what `span` sends on; everything but the parent is kept.
    #[must_use]
    pub fn continued(&self, span: SpanId) -> String {
        let mut carrier = self.carrier.clone();
        let traceparent = format!("00-{}-{span:016x}-{}", self.trace_id, self.flags);
        carrier.insert("traceparent".to_owned(), Value::String(traceparent));
        Value::Object(carrier).to_string()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.trace_id, self.parent)
    }
}

fn hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::TraceContext;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn what_is_sent_on_stays_in_the_trace_with_the_new_span_as_parent() {
        let otel = format!(r#"{{"traceparent":"00-{TRACE}-00f067aa0ba902b7-01","tracestate":"a=1"}}"#);
        let context = TraceContext::parse(otel.as_bytes()).unwrap();
        let next = TraceContext::parse(context.continued(0xab).as_bytes()).unwrap();
        assert_eq!((next.trace_id(), next.parent()), (TRACE, "00000000000000ab"));
        assert!(context.continued(1).contains(r#""tracestate":"a=1""#));
    }

    #[test]
    fn a_trace_context_that_is_none_is_left_alone() {
        for otel in [
            "",
            "{}",
            "[]",
            r#"{"traceparent":5}"#,
            r#"{"traceparent":"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}"#,
            r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"}"#,
            r#"{"traceparent":"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#,
            r#"{"traceparent":"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"}"#,
            r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"}"#,
        ] {
            assert_eq!(TraceContext::parse(otel.as_bytes()), None, "{otel}");
        }
    }
}
