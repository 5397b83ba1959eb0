//! The demonstration: private temporary servers with a simulated fleet.
//!
//! [`servers`] starts the servers, and [`reaper`] stops them however their owner exits; the tests use both.
//! [`shepherd`] defines the fleet and [`story`] the scenario, both without clock or I/O; [`Fleet`] runs them with real
//! processes ([`worker`]), and [`Demo`] does so on its own servers. [`past`] generates history.

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
