//! Points at which a test lets the process end, to see what a crash in that moment leaves behind.

/// Aborts the process when `SHEPHERD_FAILPOINT` names this point; does nothing in a release.
pub fn reached(name: &str) {
    if cfg!(debug_assertions) && std::env::var_os("SHEPHERD_FAILPOINT").is_some_and(|wanted| wanted == name) {
        std::process::abort();
    }
}
