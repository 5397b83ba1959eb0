//! What the integration tests stand on: private servers, faults between client and server,
//! waiting for a condition, Python processes.

#![allow(dead_code, reason = "support is written ahead of the tests that use it")]

pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod monitor;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod wait;

mod self_test;

/// Chooses who does TLS, for clients that the tests make; once is enough.
pub(crate) fn tls() {
    drop(rustls::crypto::ring::default_provider().install_default());
}
