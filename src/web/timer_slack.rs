//! Timer slack of the threads that serve pages.
//!
//! The server's date clock never stops, and waking an idle thread costs more than the clock's work. Without
//! connections, timers may therefore be late by seconds: no other work is due, and a new connection wakes the thread
//! at once. With connections, timers of sessions, requests and shutdown are nearly on time.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Slack without connections.
const UNATTENDED: Duration = Duration::from_secs(2);
/// Slack with connections.
const ATTENDED: Duration = Duration::from_millis(100);

/// The reasons for precise timers: open connections and a shutdown.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    reasons: Arc<AtomicUsize>,
}

/// Guard of an open connection. To be created and dropped on the thread that serves it.
#[derive(Debug)]
pub struct Connected {
    timers: Timers,
}

impl Timers {
    /// To be called on a server thread when it starts.
    pub fn begin(&self) {
        if self.reasons.load(Ordering::SeqCst) == 0 {
            may_be_late_by(UNATTENDED);
        }
    }

    /// Registers a connection of this thread.
    #[must_use]
    pub fn connected(&self) -> Connected {
        self.reasons.fetch_add(1, Ordering::SeqCst);
        may_be_late_by(ATTENDED);
        Connected { timers: self.clone() }
    }

    /// Keeps timers precise from now on, because the server's shutdown depends on them.
    pub fn stop(&self) {
        self.reasons.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if self.timers.reasons.fetch_sub(1, Ordering::SeqCst) == 1 {
            may_be_late_by(UNATTENDED);
        }
    }
}

/// Sets the slack of this thread.
fn may_be_late_by(slack: Duration) {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::thread::set_current_timer_slack(u64::try_from(slack.as_nanos()).ok().and_then(NonZeroU64::new))
    {
        tracing::debug!(%error, "this thread's timers stay on time");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn slack() -> Duration {
        Duration::from_nanos(rustix::thread::current_timer_slack().unwrap())
    }

    #[test]
    fn timers_may_be_late_without_connections_and_shutdown() {
        let timers = Timers::default();
        timers.begin();
        assert_eq!(slack(), UNATTENDED);
        let (one, other) = (timers.connected(), timers.connected());
        assert_eq!(slack(), ATTENDED);
        drop(one);
        assert_eq!(slack(), ATTENDED);
        drop(other);
        assert_eq!(slack(), UNATTENDED);
        let last = timers.connected();
        timers.stop();
        drop(last);
        assert_eq!(slack(), ATTENDED, "the stop is timed");
    }
}
