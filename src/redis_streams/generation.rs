//! Which connections to Redis still lead to the right server.
//!
//! Behind one address another server may answer from one moment to the next: a replica is promoted, and open connections
//! stay with the server that was demoted, which still answers reads. Connections to one address share a [`Generation`]; the
//! connection that learns of the change ends it, and every connection opened before is replaced.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redis::ConnectionAddr;

/// How often the server behind an address was found to be the wrong one: a connection is good as long as the generation
/// in which it was opened.
#[derive(Debug, Clone, Default)]
pub(super) struct Generation(Arc<AtomicU64>);

impl Generation {
    /// The generation that all workers and producers of this process share for one server.
    pub(super) fn of_server(server: &ConnectionAddr) -> Self {
        static SERVERS: Mutex<BTreeMap<String, Generation>> = Mutex::new(BTreeMap::new());
        let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        servers.entry(server.to_string()).or_default().clone()
    }

    pub(super) fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the generation `number`, unless it ended before.
    pub(super) fn end(&self, number: u64) {
        if self.0.compare_exchange(number, number + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::debug!("connections to Redis are discarded: the server behind them is not the right one any more");
        }
    }
}
