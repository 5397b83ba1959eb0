//! Exponential backoff for failed Redis commands.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::redis_streams::tasks::{Failure, LinkError};

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(2);

/// Backoff state: the current pause and the length of the next one.
#[derive(Debug)]
pub(super) struct Retry {
    delay: Duration,
    until: Option<Instant>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { delay: FIRST, until: None }
    }
}

impl Retry {
    /// Starts a pause, unless one is running. Logs the first of consecutive failures.
    pub(super) fn failed(&mut self, doing: &str, error: &LinkError) {
        if self.until.is_some() {
            return;
        }
        if self.delay == FIRST {
            tracing::warn!(%error, "error while {doing}; retrying");
        }
        self.until = Some(Instant::now() + self.delay);
        self.delay = LAST.min(self.delay * 2);
    }

    /// Resets the backoff after a success.
    pub(super) fn succeeded(&mut self) {
        if self.delay != FIRST && self.until.is_none() {
            tracing::info!("Redis is available again");
            self.delay = FIRST;
        }
    }

    /// Whether a pause is running.
    pub(super) fn waits(&self) -> bool {
        self.until.is_some()
    }

    /// End of the current pause.
    pub(super) fn until(&self) -> Instant {
        self.until.unwrap_or_else(Instant::now)
    }

    /// Ends the pause; the result of the next attempt decides about a longer one.
    pub(super) fn expire(&mut self) {
        self.until = None;
    }
}

/// Repeats `attempt` until it succeeds, fails permanently, or has failed for `patience`. If a reply is lost, the
/// attempt is repeated only if it is `repeatable`.
pub(super) async fn persist<T, F: Future<Output = Result<T, Failure>>>(
    patience: Duration,
    doing: &str,
    repeatable: bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Failure> {
    let (mut retry, mut give_up) = (Retry::default(), None);
    loop {
        let failure = match attempt().await {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        let now = Instant::now();
        if !failure.may_retry(repeatable) || now >= *give_up.get_or_insert(now + patience) {
            return Err(failure);
        }
        retry.failed(doing, &failure.error);
        sleep_until(retry.until()).await;
        retry.expire();
    }
}
