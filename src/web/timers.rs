//! How late timers of the thread that serves pages may be.
//!
//! The server's clock for dates never rests, and a thread that slept costs more to wake than the clock does then. So
//! while nobody is connected timers may be late by seconds: there is nothing else for them to do, and whoever connects
//! wakes the thread at once. While somebody is, sessions, requests and the stop go by them, and they are nearly on time.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// So late while nobody is connected.
const UNATTENDED: Duration = Duration::from_secs(2);
/// And while somebody is.
const ATTENDED: Duration = Duration::from_millis(100);

/// The timers, and why they should be on time: connections that are open, and a stop.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    reasons: Arc<AtomicUsize>,
}

/// Somebody is connected for as long as this is kept. Made and dropped on the thread that serves the connection.
#[derive(Debug)]
pub struct Connected {
    timers: Timers,
}

impl Timers {
    /// To be called on the thread that serves pages, when it begins.
    pub fn begin(&self) {
        if self.reasons.load(Ordering::SeqCst) == 0 {
            may_be_late_by(UNATTENDED);
        }
    }

    /// A connection was made on this thread.
    #[must_use]
    pub fn connected(&self) -> Connected {
        self.reasons.fetch_add(1, Ordering::SeqCst);
        may_be_late_by(ATTENDED);
        Connected { timers: self.clone() }
    }

    /// From here on it does not matter who leaves: the server times its stop.
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

/// For this thread.
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
    fn they_may_be_late_while_nobody_is_connected_and_no_stop_has_begun() {
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
