//! OpenAPI description of the autoscaling route.

use super::{Scale, ScaleQuery};
use crate::web::openapi::operation::{Group, Operation};

/// `GET /api/autoscale/{name}`.
pub fn autoscale() -> Operation {
    Operation::new(
        Group::Live,
        "Backlog and desired workers of a worker type",
        "For autoscalers such as KEDA's `metrics-api`. Returns 503 unless the backlog is known exactly, so that an \
         unknown backlog is never treated as zero.",
    )
    .path("name", "The worker type, or a stream that no worker has used yet.", "aragorn.lookup")
    .query::<ScaleQuery>()
    .answers::<Scale>("The backlog and the desired number of workers.")
    .unavailable("The exact backlog is unknown.")
}
