//! Actions of operators on messages.
//!
//! [`preview`] creates a preview, [`apply()`] applies it, and [`recycle`] restores entries from the recycle bin. Steps
//! that must be atomic are scripts in [`redis_streams::message_actions`](crate::redis_streams::message_actions).

pub mod apply;
pub mod preview;
pub mod recycle;

pub use apply::apply;

use crate::postgres::connection::PgPool;
use crate::redis_streams::connection::Pool;

/// Connections to the servers with the streams and the recycle bin.
#[derive(Clone)]
pub struct Sources {
    /// Redis.
    pub redis: Pool,
    /// Postgres.
    pub postgres: PgPool,
}
