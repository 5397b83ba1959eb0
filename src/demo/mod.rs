//! The demonstration: private temporary servers with a simulated fleet.
//!
//! [`servers`] starts the servers, and [`reaper`] stops them however their owner exits; the tests use both.
//! [`shepherd`] defines the fleet and [`script`] the scenario, both without clock or I/O; [`Fleet`] runs them with real
//! processes ([`worker`]), and [`Demo`] does so on its own servers. [`seed_history`] generates history.

mod fleet;
mod random;
pub mod reaper;
pub mod script;
pub mod seed_history;
pub mod servers;
pub mod shepherd;
mod shepherd_database;
pub mod worker;
mod worker_processes;

pub use fleet::{Demo, DemoError, DemoOptions, Fleet};
