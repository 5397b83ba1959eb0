//! Shepherd monitor: watches a fleet of workers on Redis streams, and the library they are built with.
//!
//! In reading order: [`contract`] is the wire that workers and monitor share. [`fleet`] decides
//! what readings of it mean. [`redis_streams`] and [`postgres`] are the only rooms that speak to
//! the two servers. [`history`] says what is kept and how; [`alerting`] decides what somebody is told,
//! [`delivery`] tells it. [`access`] decides who may, [`operator`] does what somebody knowingly asked for.
//! [`actors`] turn readings into events and snapshots, [`pages`] into HTML, [`exposition`] into what Prometheus reads, and
//! [`web`] serves them.
//! [`application`] puts it all together, [`commands`] are what the program can be asked for; [`doctor`] looks for
//! what is wrong. [`worker`] is the library for worker processes; alone it needs [`contract`] and
//! [`redis_streams`] only.

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

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

// Tests share the examples' invented states, which name this crate from outside.
#[cfg(test)]
extern crate self as shepherd_monitor;

#[cfg(feature = "monitor")]
pub mod access;
#[cfg(feature = "monitor")]
pub mod actors;
#[cfg(feature = "monitor")]
pub mod alerting;
#[cfg(feature = "monitor")]
pub mod application;
#[cfg(feature = "monitor")]
pub mod commands;
pub mod contract;
#[cfg(feature = "monitor")]
pub mod delivery;
#[cfg(feature = "monitor")]
pub mod demo;
#[cfg(feature = "monitor")]
pub mod doctor;
#[cfg(feature = "worker")]
pub mod environment;
#[cfg(feature = "monitor")]
pub mod exposition;
#[cfg(feature = "monitor")]
mod failpoint;
#[cfg(feature = "monitor")]
pub mod fleet;
#[cfg(feature = "monitor")]
pub mod history;
#[cfg(feature = "monitor")]
pub mod operator;
#[cfg(feature = "monitor")]
pub mod pages;
#[cfg(feature = "monitor")]
pub mod postgres;
#[cfg(feature = "worker")]
pub mod redis_streams;
#[cfg(feature = "monitor")]
pub mod rules_file;
#[cfg(feature = "monitor")]
pub mod settings;
#[cfg(all(test, feature = "monitor"))]
mod simulation;
#[cfg(feature = "monitor")]
pub mod spool;
#[cfg(feature = "monitor")]
pub mod telemetry;
#[cfg(feature = "worker")]
pub mod tls;
#[cfg(feature = "worker")]
pub mod traces;
#[cfg(feature = "monitor")]
pub mod web;
#[cfg(feature = "worker")]
pub mod worker;
