//! The integration tests: one binary, run in parallel.
//!
//! Every test has a redis-server and a database of its own from [`support`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

mod access;
mod addresses;
mod alerting;
mod architecture;
mod demo;
mod deploy;
mod doctor;
mod history;
mod janitor;
mod metrics;
mod monitor;
mod openapi;
mod operator;
mod support;
mod upgrade;
mod worker;
