//! OpenAPI descriptions of the probes.

use schemars::JsonSchema;
use serde::Serialize;

use super::ReadyQuery;
use crate::actors::messages::Health;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::snapshot::SourceStatus;
use crate::web::openapi::operation::{Group, Operation};

/// Readiness of the monitor.
#[derive(Serialize, JsonSchema)]
pub(super) struct Readiness {
    /// Whether it is ready.
    pub(super) ready: bool,
    /// Why it is not ready; `null` if it is.
    pub(super) reason: Option<String>,
    /// With `verbose`: details.
    #[serde(flatten)]
    pub(super) more: Option<More>,
}

/// What `verbose` adds.
#[derive(Serialize, JsonSchema)]
pub(super) struct More {
    /// Status of Redis; `null` before the first poll.
    pub(super) redis: Option<SourceStatus>,
    /// Status of Postgres; `null` before the first poll.
    pub(super) postgres: Option<SourceStatus>,
    /// Why Redis rejects writes although it is readable (such as out of memory); `null` otherwise.
    pub(super) redis_write_error: Option<SourceTrouble>,
    /// Error of the last rejected write while Postgres is readable (such as a full disk); `null` otherwise.
    pub(super) postgres_write_error: Option<SourceTrouble>,
    /// Internal state of the monitor.
    pub(super) monitor: Health,
}

/// `GET /livez`.
pub fn livez() -> Operation {
    Operation::new(Group::Monitor, "Liveness", "Independent of Redis and Postgres. No authentication.")
        .answers_text("text/plain", "`alive`.")
}

/// `GET /readyz`.
pub fn readyz() -> Operation {
    Operation::new(
        Group::Monitor,
        "Readiness",
        "Ready if all actors are running and polls finish in time. Unreachable Redis or Postgres does not make it \
         unready. No authentication, except with `verbose`, which requires the role viewer.",
    )
    .query::<ReadyQuery>()
    .asks_who()
    .answers::<Readiness>("Ready.")
    .with_status::<Readiness>(503, "Not ready; see `reason`.")
}
