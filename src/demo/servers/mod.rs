//! Private servers: a Redis or a Postgres of one's own on a free loopback port, its files in a
//! temporary folder, gone when dropped and gone when the owner dies in any way.

mod port;
mod postgres;
mod redis;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::reaper::{Reaper, ReaperError, is_running};
pub use port::HeldPort;
pub use postgres::PrivatePostgres;
pub use redis::{PrivateRedis, RedisOptions};

/// Why a private server is not there.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is not installed.
    #[error("{program} not found {place}; install the package {package}, or run `make demo`, which installs it")]
    Missing {
        /// The program that was looked for.
        program: &'static str,
        /// Where it was looked for, in words.
        place: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// No loopback port could be had.
    #[error("no free port on 127.0.0.1: {0}")]
    Port(#[source] std::io::Error),
    /// A step before the start failed.
    #[error("{what} failed; end of its log:\n{log}")]
    Preparation {
        /// The command that failed.
        what: String,
        /// The last lines that it printed.
        log: String,
    },
    /// The server ended instead of serving.
    #[error("{program} exited at startup; end of its log:\n{log}")]
    Ended {
        /// The server.
        program: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// The server runs but is not ready in time.
    #[error("{program} is not ready after {limit:?}; end of its log:\n{log}")]
    NotReady {
        /// The server.
        program: &'static str,
        /// How long it was given.
        limit: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// The process that keeps the server.
    #[error(transparent)]
    Reaper(#[from] ReaperError),
}

/// How long a server may take to be ready: generous, because a busy machine is no error.
const READY_LIMIT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(5);

/// Waits until the server says `ready` in its log after byte `offset`.
///
/// The log and not the port is asked: it is this server's own, whatever password it wants.
fn await_ready(
    reaper: &Reaper,
    pid: u32,
    program: &'static str,
    ready: &str,
    offset: usize,
) -> Result<(), ServerError> {
    let started = Instant::now();
    loop {
        // Asked before the log is read, so that a last word is not missed.
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

/// The first folder of `PATH` that holds `program`.
fn folder_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| folder.join(program).is_file())
}
