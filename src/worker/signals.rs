//! SIGTERM and SIGINT: the first asks to leave in good order, the second leaves at once.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Gives the number of the first signal. From then on another one ends the process.
///
/// # Errors
/// When the handlers cannot be installed.
pub(super) fn first() -> std::io::Result<impl Future<Output = Option<i32>> + Send> {
    let mut both = Both { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? };
    Ok(async move {
        let number = both.next().await;
        tracing::info!(signal = number, "asked to leave; taking no new tasks, waiting for the running ones");
        tokio::spawn(async move {
            let again = both.next().await;
            tracing::warn!(signal = again, "asked to leave again; going at once");
            std::process::exit(128 + again);
        });
        Some(number)
    })
}

struct Both {
    term: Signal,
    int: Signal,
}

impl Both {
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.term.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.int.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}
