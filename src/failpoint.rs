//! Failpoints: places at which a test can end the process, to check the recovery from a crash there.
//!
//! Only in debug builds.

/// Aborts the process without cleanup if `SHEPHERD_FAILPOINT` is `place`.
#[cfg(debug_assertions)]
pub(crate) fn reached(place: &str) {
    if std::env::var("SHEPHERD_FAILPOINT").is_ok_and(|wanted| wanted == place) {
        std::process::abort();
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: &str) {}
