//! A change that somebody asked for, as it was written down: what the page shows and the API tells.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Role;

/// A change that somebody asked for.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AuditedChange {
    /// Counts up.
    pub id: i64,
    /// When it was asked for, Unix seconds.
    pub ts: f64,
    /// By whom.
    pub who: String,
    /// As what.
    #[schemars(extend("enum" = Role::ALL))]
    pub role: String,
    /// From which address.
    pub address: String,
    /// What was asked for.
    pub action: String,
    /// With which parameters.
    #[schemars(with = "Map<String, Value>")]
    pub parameters: Value,
    /// How it ended; `begun` until that is known.
    #[schemars(extend("enum" = ["begun", "done", "refused", "failed"]))]
    pub outcome: String,
    /// What was answered; `null` until that is known.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub result: Option<Value>,
    /// When it ended, Unix seconds.
    pub ended: Option<f64>,
}
