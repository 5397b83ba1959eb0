//! Private servers: Redis or Postgres on a free loopback port with files in a temporary folder, removed when dropped or
//! when the owner dies.

mod port;
mod postgres;
mod redis;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::reaper::{Reaper, ReaperError, is_running};
pub use port::HeldPort;
pub use postgres::PrivatePostgres;
pub use redis::{PrivateRedis, RedisOptions};

/// Error while starting a private server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is not installed.
    #[error("{program} not found {place}; install the package {package}, or run `make demo`, which installs it")]
    Missing {
        /// Program name.
        program: &'static str,
        /// Description of the searched locations.
        place: &'static str,
        /// Debian package that contains it.
        package: &'static str,
    },
    /// No loopback port is available.
    #[error("no free port on 127.0.0.1: {0}")]
    Port(#[source] std::io::Error),
    /// A step before the start failed.
    #[error("{what} failed; end of its log:\n{log}")]
    Preparation {
        /// Command that failed.
        what: String,
        /// Last lines of its output.
        log: String,
    },
    /// The server exited during startup.
    #[error("{program} exited at startup; end of its log:\n{log}")]
    Ended {
        /// Program name.
        program: &'static str,
        /// Last lines of its log.
        log: String,
    },
    /// The server runs but was not ready in time.
    #[error("{program} is not ready after {limit:?}; end of its log:\n{log}")]
    NotReady {
        /// Program name.
        program: &'static str,
        /// Time limit.
        limit: Duration,
        /// Last lines of its log.
        log: String,
    },
    /// The process that controls the server failed.
    #[error(transparent)]
    Reaper(#[from] ReaperError),
}

/// Startup time limit; generous, because a busy machine is not an error.
const READY_LIMIT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(5);

/// Waits until the server logs `ready` after byte `offset`.
///
/// It checks the log instead of the port, because the log certainly belongs to this server and needs no password.
fn await_ready(
    reaper: &Reaper,
    pid: u32,
    program: &'static str,
    ready: &str,
    offset: usize,
) -> Result<(), ServerError> {
    let started = Instant::now();
    loop {
        // Checked before reading the log, so that the last lines are not missed.
        let running = is_running(pid);
        let log = reaper.log_from(offset);
        if log.contains(ready) {
            return Ok(());
        }
        if !running {
            return Err(ServerError::Ended { program, log: last_lines(&log) });
        }
        if started.elapsed() > READY_LIMIT {
            return Err(ServerError::NotReady { program, limit: READY_LIMIT, log: last_lines(&log) });
        }
        std::thread::sleep(READY_PAUSE);
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

/// Returns the first folder of `PATH` that contains `program`.
fn folder_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| folder.join(program).is_file())
}
