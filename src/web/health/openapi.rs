//! How the API tells the probes.

use schemars::JsonSchema;
use serde::Serialize;

use super::ReadyQuery;
use crate::actors::messages::Health;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::snapshot::SourceStatus;
use crate::web::openapi::operation::{Group, Operation};

/// Whether the monitor does its work.
#[derive(Serialize, JsonSchema)]
pub(super) struct Readiness {
    /// It does.
    pub(super) ready: bool,
    /// Why it does not.
    pub(super) reason: Option<String>,
    /// With `verbose`: more about it.
    #[serde(flatten)]
    pub(super) more: Option<More>,
}

/// What `verbose` adds.
#[derive(Serialize, JsonSchema)]
pub(super) struct More {
    /// How Redis stands; `null` before the first tick.
    pub(super) redis: Option<SourceStatus>,
    /// How Postgres stands; `null` before the first tick.
    pub(super) postgres: Option<SourceStatus>,
    /// Why Postgres refused the monitor's last write although it can be read (a full disk, say); `null` when it did
    /// not.
    pub(super) postgres_write_error: Option<SourceTrouble>,
    /// The monitor's own condition.
    pub(super) monitor: Health,
}

/// `GET /livez`.
pub fn livez() -> Operation {
    Operation::new(Group::Monitor, "The process lives", "Whatever its sources do. Nobody is asked who they are.")
        .answers_text("text/plain", "`alive`.")
}

/// `GET /readyz`.
pub fn readyz() -> Operation {
    Operation::new(
        Group::Monitor,
        "The monitor does its work",
        "Every actor is up, and ticks are finished in time. Redis and Postgres being away does not make it unready: it \
         is there to say so. Nobody is asked who they are, but with `verbose`, which needs the role viewer.",
    )
    .query::<ReadyQuery>()
    .asks_who()
    .answers::<Readiness>("It does.")
    .with_status::<Readiness>(503, "It does not: `reason` says why.")
}
