//! How the API tells its live side.

use schemars::JsonSchema;
use serde::Serialize;

use crate::fleet::snapshot::Snapshot;
use crate::web::alerts::openapi::FiredAlert;
use crate::web::openapi::operation::{Group, Operation};

/// This process answers.
#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    /// Always `true`.
    pub(super) ok: bool,
}

/// A message of the websocket.
#[derive(Serialize, JsonSchema)]
struct SnapshotMessage {
    /// Always `snapshot`.
    #[schemars(extend("const" = "snapshot"))]
    r#type: String,
    /// The snapshot.
    data: SentSnapshot,
}

/// A snapshot as the websocket sends it.
#[derive(Serialize, JsonSchema)]
struct SentSnapshot {
    #[serde(flatten)]
    snapshot: Snapshot,
    /// Alerts that fired since the snapshot before; absent when none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_alerts: Option<Vec<FiredAlert>>,
}

/// `GET /api/snapshot`.
pub fn snapshot() -> Operation {
    Operation::new(
        Group::Live,
        "The newest snapshot",
        "Everything that is known after the newest tick. Asking changes nothing and costs the fleet nothing. A source \
         that cannot be read carries `error`, and what depends on it is frozen.",
    )
    .answers::<Snapshot>("The snapshot.")
    .unavailable("The first tick is still under way.")
}

/// `GET /api/health`.
pub fn health() -> Operation {
    Operation::new(Group::Monitor, "This process answers", "Whatever its sources do. `/readyz` says whether it works.")
        .answers::<Health>("It does.")
}

/// `GET /ws`.
pub fn websocket() -> Operation {
    Operation::new(
        Group::Live,
        "Snapshots by websocket",
        "The newest snapshot at once, then one after each tick. The client sends nothing; one that does not read is \
         dropped. It is pinged every 30 s and must answer within 75 s.",
    )
    .sends::<SnapshotMessage>("It is a websocket now.")
}
