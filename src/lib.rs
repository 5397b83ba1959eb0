//! Monitor for fleets of workers on Redis streams, and the library for building the workers.
//!
//! Suggested reading order: [`contract`] defines the keys and values shared by workers and monitor. [`fleet`] derives
//! states from readings. Only [`redis_streams`] and [`postgres`] talk to the two servers. [`history`] defines what is
//! recorded and how; [`alerting`] decides which notifications are due and [`delivery`] sends them. [`access`]
//! implements authentication and authorization, [`operator`] the actions on messages. [`actors`] turn readings into
//! events and snapshots, [`pages`] renders HTML, [`exposition`] renders metrics for Prometheus, and [`web`] serves
//! them. [`application`] assembles the monitor, [`commands`] is the command line, and [`doctor`] runs diagnostic
//! checks. [`worker`] is the library for worker processes; without the monitor it needs only [`contract`] and
//! [`redis_streams`].

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

/// Compiles the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

// Tests share fixtures with the examples, which refer to this crate by name.
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
pub mod error_chain;
#[cfg(feature = "monitor")]
pub mod exposition;
#[cfg(feature = "monitor")]
mod failpoint;
#[cfg(feature = "monitor")]
pub mod fleet;
#[cfg(feature = "monitor")]
pub mod history;
#[cfg(feature = "monitor")]
pub mod http_client;
#[cfg(feature = "monitor")]
pub mod identity_provider;
#[cfg(feature = "monitor")]
pub mod operator;
#[cfg(feature = "monitor")]
pub mod pages;
#[cfg(feature = "monitor")]
pub mod postgres;
#[cfg(feature = "monitor")]
pub mod printable;
#[cfg(feature = "worker")]
pub mod redis_streams;
#[cfg(feature = "monitor")]
pub mod regular_file;
#[cfg(feature = "monitor")]
pub mod settings;
#[cfg(all(test, feature = "monitor"))]
mod simulation;
#[cfg(feature = "monitor")]
pub mod spool;
#[cfg(feature = "worker")]
pub mod tcp;
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
