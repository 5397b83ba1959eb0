//! A worker type's state, rolled up from its consumers.

use serde::{Deserialize, Serialize};

/// What is known of a worker type as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeState {
    /// At least one consumer has a live heartbeat.
    Alive,
    /// The last consumer left in good order.
    ScaledDown,
    /// It went to zero and at least one consumer vanished on the way.
    Crashed,
    /// Never seen alive.
    Unknown,
}
