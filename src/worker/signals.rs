//! SIGTERM and SIGINT, as numbers.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals. From the first of these on, they do not end the process by themselves.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Installs the handlers, on the runtime of the caller.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.term.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.int.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}
