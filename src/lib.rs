//! Shepherd monitor: watches, records and mends a fleet of workers on Redis streams.
//!
//! In reading order: [`contract`] is the wire that workers and monitor share; [`fleet`] decides
//! what the readings mean; [`worker`] is the library for worker processes.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "a test may fail loudly"
    )
)]

pub mod contract;
#[cfg(feature = "monitor")]
pub mod fleet;
#[cfg(feature = "monitor")]
pub mod postgres;
#[cfg(feature = "worker")]
pub mod redis_streams;
#[cfg(feature = "monitor")]
pub mod settings;
#[cfg(feature = "monitor")]
pub mod telemetry;
