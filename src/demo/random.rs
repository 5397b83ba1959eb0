//! Random values for the demonstration.

use std::time::Duration;

use uuid::Uuid;

/// Returns a uniformly distributed number.
pub(super) fn lot() -> u32 {
    // The lowest bits of a version 4 UUID are all random.
    Uuid::new_v4().as_u128() as u32
}

/// Returns a duration between half and one and a half times `mean`.
pub(super) fn around(mean: Duration) -> Duration {
    mean.mul_f64(0.5 + f64::from(lot()) / f64::from(u32::MAX))
}

/// Returns true with a probability of 1 in `n`.
pub(super) fn once_in(n: u32) -> bool {
    lot().is_multiple_of(n.max(1))
}
