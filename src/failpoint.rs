//! Places at which a test can end the process, to see what a crash there leaves behind.
//!
//! Compiled into debug builds only.

/// Ends the process at once, as a kill would, if `SHEPHERD_FAILPOINT` names this place.
#[cfg(debug_assertions)]
pub(crate) fn reached(place: &str) {
    if std::env::var("SHEPHERD_FAILPOINT").is_ok_and(|wanted| wanted == place) {
        std::process::abort();
    }
}

/// Nothing, in a release.
#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: &str) {}
