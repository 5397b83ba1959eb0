//! An entry of the audit log, as the page and the API show it.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Role;

/// An audited change, or a security event.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AuditedChange {
    /// Increasing ID.
    pub id: i64,
    /// Time of the request, Unix seconds.
    pub ts: f64,
    /// User.
    pub who: String,
    /// Role of the user; `none` if the client is not authenticated.
    #[schemars(extend("enum" = ["none", Role::Viewer.as_str(), Role::Operator.as_str(), Role::Admin.as_str()]))]
    pub role: String,
    /// Client address.
    pub address: String,
    /// Action.
    pub action: String,
    /// Parameters.
    #[schemars(with = "Map<String, Value>")]
    pub parameters: Value,
    /// Outcome; `begun` until it is known.
    #[schemars(extend("enum" = ["begun", "done", "refused", "failed"]))]
    pub outcome: String,
    /// Response; `null` until it is known.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub result: Option<Value>,
    /// End, Unix seconds.
    pub ended: Option<f64>,
}
