//! Trace spans: continued from another process and exported over OTLP.
//!
//! Without the feature `otlp` there is no tracer: spans only provide context for log lines, and the functions of this
//! module do nothing.

use tracing::Span;

use crate::environment;

#[cfg(feature = "otlp")]
mod export;

#[cfg(feature = "otlp")]
pub use export::Export;

/// A span of this process as the tracer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traced {
    /// Span ID.
    pub id: u64,
    /// Whether the span is sampled.
    pub sampled: bool,
}

/// Makes `span` a child of the remote span in `traceparent` and `tracestate`. Must be called before `span` is entered.
/// `None` if no tracer records it.
#[cfg(feature = "otlp")]
pub fn continued(span: &Span, traceparent: &str, tracestate: impl FnOnce() -> Option<String>) -> Option<Traced> {
    use opentelemetry::Context;
    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry::trace::TraceContextExt;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let mut carrier = std::collections::HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    carrier.extend(tracestate().map(|state| ("tracestate".to_owned(), state)));
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    span.set_parent(parent).ok()?;
    let context = span.context();
    let own = context.span().span_context().clone();
    let id = u64::from_be_bytes(own.span_id().to_bytes());
    own.is_valid().then(|| Traced { id, sampled: own.is_sampled() })
}

/// Without a tracer there is nothing to continue.
#[cfg(not(feature = "otlp"))]
pub fn continued(_: &Span, _: &str, _: impl FnOnce() -> Option<String>) -> Option<Traced> {
    None
}

/// Value of a span field that only a tracer needs, such as the kind: `None` without the feature `otlp`, so that it does
/// not appear in log lines.
pub fn field<T>(what: T) -> Option<T> {
    cfg!(feature = "otlp").then_some(what)
}

/// Sets the name of the span. Must be called last: the context of the span is fixed from then on.
#[cfg(feature = "otlp")]
pub fn name(span: &Span, name: impl std::fmt::Display) {
    use opentelemetry::trace::TraceContextExt;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    span.context().span().update_name(name.to_string());
}

/// Does nothing without a tracer.
#[cfg(not(feature = "otlp"))]
pub fn name(_: &Span, _: impl std::fmt::Display) {}

/// Sets an attribute in the exported span only, not in log lines.
#[cfg(feature = "otlp")]
pub fn attribute(span: &Span, name: &'static str, value: impl Into<opentelemetry::Value>) {
    tracing_opentelemetry::OpenTelemetrySpanExt::set_attribute(span, name, value);
}

/// Does nothing without a tracer.
#[cfg(not(feature = "otlp"))]
pub fn attribute<T>(_: &Span, _: &'static str, _: T) {}

/// Marks the operation of the span as failed.
#[cfg(feature = "otlp")]
pub fn failed(span: &Span, why: &str) {
    let status = opentelemetry::trace::Status::error(why.to_owned());
    tracing_opentelemetry::OpenTelemetrySpanExt::set_status(span, status);
}

/// Does nothing without a tracer.
#[cfg(not(feature = "otlp"))]
pub fn failed(_: &Span, _: &str) {}

/// OTLP collector (HTTP) that receives the spans.
#[derive(Clone, PartialEq, Eq)]
pub struct Collector {
    /// URL without `/v1/traces`.
    endpoint: String,
    /// Headers of each request, such as an API key.
    headers: Vec<(String, String)>,
    /// Service name of this process.
    service: String,
}

/// An invalid setting of the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid {setting}: expected {expected}")]
pub struct BadCollector {
    /// Name of the setting.
    pub setting: &'static str,
    /// Expected value.
    pub expected: &'static str,
}

/// Environment variable with the URL of the collector.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Environment variable with additional request headers.
pub const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// Environment variable with the service name.
pub const SERVICE: &str = "OTEL_SERVICE_NAME";

impl Collector {
    /// Validates the settings of a collector.
    ///
    /// # Errors
    /// [`BadCollector`] for the first invalid setting, or if this build does not include the feature `otlp`.
    pub fn new(endpoint: &str, headers: &str, service: &str) -> Result<Self, BadCollector> {
        let bad = |setting, expected| Err(BadCollector { setting, expected });
        if !cfg!(feature = "otlp") {
            return bad(ENDPOINT, "no value: this build has no OpenTelemetry support; rebuild with --features otlp");
        }
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        let has_host = host.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        if !has_host || endpoint.contains(char::is_whitespace) {
            return bad(ENDPOINT, "a URL starting with http:// or https://, such as http://localhost:4318");
        }
        let Some(headers) = headers.split(',').filter(|pair| !pair.trim().is_empty()).map(header).collect() else {
            return bad(HEADERS, "pairs such as api-key=secret, separated by commas, values percent-encoded");
        };
        Ok(Self { endpoint: endpoint.trim_end_matches('/').to_owned(), headers, service: service.to_owned() })
    }

    /// Reads the settings from the environment; `service` is the default service name. `None` if no collector is
    /// configured.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn from_env(service: &str) -> Result<Option<Self>, BadCollector> {
        let set = |name| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
        let Some(endpoint) = set(ENDPOINT) else { return Ok(None) };
        let service = set(SERVICE).unwrap_or_else(|| service.to_owned());
        Self::new(endpoint.trim(), &set(HEADERS).unwrap_or_default(), service.trim()).map(Some)
    }
}

/// Omits the headers, which may contain secrets.
impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector")
            .field("endpoint", &self.endpoint)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Parses `name=value` with a percent-encoded value.
fn header(pair: &str) -> Option<(String, String)> {
    let (name, value) = pair.split_once('=')?;
    let (name, value) = (name.trim(), environment::percent_decoded(value.trim())?);
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let is_value = value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (is_name && is_value).then(|| (name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn builds_without_the_feature_reject_a_collector() {
        let error = Collector::new("http://localhost:4318", "", "x").unwrap_err().to_string();
        assert!(error.contains(ENDPOINT) && error.contains("--features otlp") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn headers_are_parsed_as_specified() {
        let read = |pair| header(pair).map(|(name, value)| format!("{name}: {value}"));
        assert_eq!(read(" api-key = a%20b "), Some("api-key: a b".to_owned()));
        assert_eq!(read("a=b=c").as_deref(), Some("a: b=c"));
        for pair in ["", "a", "=b", "a b=c", "a=%", "a=%2", "a=%zz", "a=%0a", "a=%ff"] {
            assert_eq!(read(pair), None, "{pair}");
        }
    }
}
