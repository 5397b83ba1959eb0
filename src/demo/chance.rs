//! Chance, as far as a demonstration needs it.

use std::time::Duration;

use uuid::Uuid;

/// Any number, each as likely as the others.
pub(super) fn lot() -> u32 {
    // The lowest bits of a random UUID are random throughout.
    Uuid::new_v4().as_u128() as u32
}

/// Between half and one and a half times `mean`.
pub(super) fn around(mean: Duration) -> Duration {
    mean.mul_f64(0.5 + f64::from(lot()) / f64::from(u32::MAX))
}

/// True once in `n` times.
pub(super) fn once_in(n: u32) -> bool {
    lot().is_multiple_of(n.max(1))
}
