//! OpenAPI descriptions of the live routes.

use schemars::JsonSchema;
use serde::Serialize;

use crate::fleet::snapshot::Snapshot;
use crate::web::alerts::openapi::FiredAlert;
use crate::web::openapi::operation::{Group, Operation};

/// Health of the process.
#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    /// Always `true`.
    pub(super) ok: bool,
}

/// A websocket message.
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
    /// Alerts fired since the previous snapshot; absent if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_alerts: Option<Vec<FiredAlert>>,
}

/// `GET /api/snapshot`.
pub fn snapshot() -> Operation {
    Operation::new(
        Group::Live,
        "Get the current snapshot",
        "The complete state of the fleet as of the last poll. Served from memory; causes no load on the fleet. If \
         a data source is unreachable, it has an `error` field and the data that depends on it is the last known \
         state.",
    )
    .answers::<Snapshot>("The snapshot.")
    .unavailable("The first poll has not finished.")
}

/// `GET /api/health`.
pub fn health() -> Operation {
    Operation::new(Group::Monitor, "Health", "Independent of Redis and Postgres. See `/readyz` for readiness.")
        .answers::<Health>("The process is running.")
}

/// `GET /ws`.
pub fn websocket() -> Operation {
    Operation::new(
        Group::Live,
        "Stream snapshots (websocket)",
        "Sends the current snapshot, then one after every poll. Clients send no messages. Clients that do not read \
         are disconnected. The server sends a ping every 30 s; clients must reply within 75 s.",
    )
    .sends::<SnapshotMessage>("Switching protocols to websocket.")
}
