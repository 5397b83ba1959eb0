//! Request IDs, which connect responses with log lines: taken from the request if valid, otherwise generated.
//! Responses and the body of a [`Problem`](super::problem::Problem) contain them.

use std::sync::Arc;
use std::time::Instant;

use actix_web::Error;
use actix_web::HttpMessage as _;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;
use tracing::{Instrument, Span};

use super::AppState;
use super::access::Caller;
use crate::traces;

const HEADER: &str = "x-request-id";
/// Longer IDs are replaced.
const LONGEST: usize = 128;

tokio::task_local! {
    static CURRENT: Arc<str>;
}

/// ID of the current request.
pub(super) fn current() -> Option<Arc<str>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Middleware around all routes: assigns the request ID and logs the response at level debug. Probes are not logged,
/// as they arrive every few seconds.
///
/// # Errors
/// Those of the inner service.
pub async fn identified<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let id = taken_over(request.headers()).unwrap_or_else(|| uuid::Uuid::now_v7().to_string().into());
    let span = if is_probe(&request) { Span::none() } else { span(&request, &id) };
    let begun = Instant::now();
    let mut answer = CURRENT.scope(Arc::clone(&id), next.call(request)).instrument(span.clone()).await?;
    if let Ok(id) = HeaderValue::from_str(&id) {
        answer.headers_mut().insert(HeaderName::from_static(HEADER), id);
    }
    if !span.is_none() {
        span.in_scope(|| tell(&answer, begun));
    }
    Ok(answer)
}

/// Level error, so that the span is present whatever the log level.
fn span(request: &ServiceRequest, id: &str) -> Span {
    let span = tracing::error_span!("request", request_id = id, otel.kind = traces::field("server"));
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(traceparent) = header("traceparent") {
        traces::continued(&span, traceparent, || header("tracestate").map(str::to_owned));
    }
    span
}

/// Logs the response, without the query string, which may contain secrets.
fn tell<B>(answer: &ServiceResponse<B>, begun: Instant) {
    let (request, status) = (answer.request(), answer.status().as_u16());
    let (method, path) = (request.method().as_str(), request.path());
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let caller = request.extensions().get::<Caller>().map(|caller| caller.name.clone());
    tracing::debug!(method, path, status, took_ms, caller, "answered");
    if cfg!(feature = "otlp") {
        let span = Span::current();
        traces::attribute(&span, "http.request.method", method.to_owned());
        traces::attribute(&span, "url.path", path.to_owned());
        traces::attribute(&span, "http.response.status_code", i64::from(status));
        if let Some(route) = request.match_pattern() {
            traces::name(&span, format_args!("{method} {route}"));
            traces::attribute(&span, "http.route", route);
        }
        if answer.status().is_server_error() {
            traces::failed(&span, answer.status().canonical_reason().unwrap_or_default());
        }
    }
}

/// ID of the request, if it is valid in a header and in a log.
fn taken_over(headers: &HeaderMap) -> Option<Arc<str>> {
    let id = headers.get(HEADER)?.to_str().ok()?;
    let is_one = (1..=LONGEST).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_one.then(|| id.into())
}

fn is_probe(request: &ServiceRequest) -> bool {
    let root = request.app_data::<Data<AppState>>().map_or("", |front| front.lock.root.as_str());
    let path = request.path();
    ["/livez", "/readyz"].contains(&path.strip_prefix(root).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn taken(id: &[u8]) -> Option<Arc<str>> {
        let value = HeaderValue::from_bytes(id).unwrap();
        taken_over(TestRequest::get().insert_header((HEADER, value)).to_http_request().headers())
    }

    #[test]
    fn only_ids_that_are_valid_in_headers_and_logs_are_accepted() {
        for id in ["a", "0b6dbe30-0000-4000-8000-000000000000", "Root=1-67891233-abcdef;x", &"x".repeat(LONGEST)] {
            assert_eq!(taken(id.as_bytes()).as_deref(), Some(id));
        }
        for id in ["", "a b", "a\tb", "\u{e4}", &"x".repeat(LONGEST + 1)] {
            assert_eq!(taken(id.as_bytes()), None, "{id}");
        }
        assert_eq!(taken_over(TestRequest::get().to_http_request().headers()), None);
    }
}
