//! How the API tells what Prometheus reads.

use crate::web::openapi::operation::{Group, Operation};

/// `GET /metrics`.
pub fn metrics() -> Operation {
    Operation::new(
        Group::Monitor,
        "All figures, for Prometheus",
        "In OpenMetrics where that is accepted, else in the older text format. What is not known is left out, never 0; \
         series of a consumer or a stream end with it.",
    )
    .answers_text("text/plain", "The figures.")
    .or_text("application/openmetrics-text")
    .unavailable("The monitor is just starting.")
}
