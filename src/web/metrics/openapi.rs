//! OpenAPI description of `/metrics`.

use crate::web::openapi::operation::{Group, Operation};

/// `GET /metrics`.
pub fn metrics() -> Operation {
    Operation::new(
        Group::Monitor,
        "Prometheus metrics",
        "OpenMetrics if accepted, otherwise the Prometheus text format. Unknown values are omitted, never 0. \
         Series of a consumer or stream disappear with it.",
    )
    .answers_text("text/plain", "The metrics.")
    .or_text("application/openmetrics-text")
    .unavailable("The monitor is starting.")
}
