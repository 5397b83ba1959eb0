//! Logs: human lines on a terminal, JSON elsewhere, on standard error.
//!
//! Fields are named once: `stream`, `consumer`, `worker_type`, `actor`, `tick`, `error`; a value
//! that has a unit says it in its name (`took_ms`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging at `level` (a level or a filter).
///
/// # Errors
/// What is wrong with `level`.
pub fn start(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level.to_lowercase()).map_err(|e| e.to_string())?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() {
        logs.with_target(false).try_init()
    } else {
        logs.json().flatten_event(true).try_init()
    };
    started.map_err(|e| e.to_string())
}
