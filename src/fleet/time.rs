//! Times on a monotonic clock.

use std::time::Duration;

/// Milliseconds since the process started; only differences are meaningful.
///
/// All timers of the fleet's state machines use it, so steps of the wall clock have no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// Time since `earlier`; zero if it is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Seconds since the process started.
    #[must_use]
    pub fn seconds(self) -> f64 {
        Duration::from_millis(self.0).as_secs_f64()
    }

    /// The time `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}
