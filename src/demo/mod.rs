//! The demonstration: private servers that leave nothing behind, and a simulated fleet on them.
//!
//! [`servers`] starts them, [`reaper`] ends them whatever happens to their owner. The tests use
//! the same servers.

pub mod reaper;
pub mod servers;
