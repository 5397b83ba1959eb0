//! How much a background job takes on at a time, so that Redis does not notice: cleaning, walking.

use std::time::Duration;

/// How many entries or keys the next step takes on at most, after one of `most` that took `took`: as many
/// as Redis does in about a millisecond.
#[must_use]
pub fn next_step(most: u64, took: Duration) -> u64 {
    const LEAST: u64 = 100;
    const MOST: u64 = 5000;
    match took.as_micros() {
        0..800 => (most * 2).min(MOST),
        800..2000 => most,
        _ => (most / 2).max(LEAST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_while_they_are_short_and_shrink_when_they_are_long() {
        assert_eq!(next_step(500, Duration::from_micros(300)), 1000);
        assert_eq!(next_step(5000, Duration::from_micros(300)), 5000);
        assert_eq!(next_step(1000, Duration::from_micros(1500)), 1000);
        assert_eq!(next_step(1000, Duration::from_millis(20)), 500);
        assert_eq!(next_step(100, Duration::from_millis(20)), 100);
    }
}
