//! Support code of the integration tests: private servers, network faults, waiting for conditions, Python processes.

#![allow(dead_code, reason = "support is written ahead of the tests that use it")]

pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod identity_provider;
pub(crate) mod monitor;
pub(crate) mod names;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod wait;

mod self_test;

/// Installs the TLS provider for clients of the tests; repeated calls have no effect.
pub(crate) fn tls() {
    drop(rustls::crypto::ring::default_provider().install_default());
}
