//! The demonstration: private servers that leave nothing behind, and a simulated fleet on them.
//!
//! [`servers`] starts the servers and [`reaper`] ends them whatever happens to their owner; the
//! tests use the same. [`shepherd`] says what the fleet consists of and [`story`] what happens to
//! it, both without clock or I/O; [`Fleet`] makes it happen, with real processes ([`worker`]), and [`Demo`]
//! does so on servers of its own. [`past`] gives it a history.

mod brain;
mod chance;
mod crew;
mod fleet;
pub mod past;
pub mod reaper;
pub mod servers;
pub mod shepherd;
pub mod story;
pub mod worker;

pub use fleet::{Demo, DemoError, DemoOptions, Fleet};
