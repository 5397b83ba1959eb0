//! What an operator does knowingly to what is on the streams.
//!
//! [`find`] looks and fixes what is to be done (a preview), [`apply()`] does exactly that, [`recycle`]
//! keeps what was dropped and puts it back. The steps that must not be cut in two are scripts in
//! [`redis_streams::operate`](crate::redis_streams::operate).

pub mod apply;
pub mod find;
pub mod recycle;

pub use apply::apply;

use deadpool_redis::Pool;

use crate::postgres::connection::PgPool;

/// Where the streams and the recycle bin are.
#[derive(Clone)]
pub struct Sources {
    /// Redis.
    pub redis: Pool,
    /// Postgres.
    pub postgres: PgPool,
}
