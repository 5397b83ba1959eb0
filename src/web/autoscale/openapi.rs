//! How the API tells what autoscalers ask.

use super::{Scale, ScaleQuery};
use crate::web::openapi::operation::{Group, Operation};

/// `GET /api/autoscale/{name}`.
pub fn autoscale() -> Operation {
    Operation::new(
        Group::Live,
        "Work and proposed workers of a worker type",
        "For autoscalers such as KEDA's `metrics-api`. An answer has a backlog that is known exactly; where it is not, \
         the answer is 503, so that what is unknown is never taken for nothing.",
    )
    .path("name", "The worker type.", "aragorn.lookup")
    .query::<ScaleQuery>()
    .answers::<Scale>("Its backlog, and how many workers it takes.")
    .unavailable("The backlog is not known exactly.")
}
