//! Adapts the batch size of background jobs (cleanup, keyspace walks), so that they do not delay other clients of Redis.

use std::time::Duration;

/// Returns the maximum size of the next batch, after one of `most` that took `took`: what Redis does in about a millisecond.
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
    fn batches_adapt_to_their_duration() {
        assert_eq!(next_step(500, Duration::from_micros(300)), 1000);
        assert_eq!(next_step(5000, Duration::from_micros(300)), 5000);
        assert_eq!(next_step(1000, Duration::from_micros(1500)), 1000);
        assert_eq!(next_step(1000, Duration::from_millis(20)), 500);
        assert_eq!(next_step(100, Duration::from_millis(20)), 100);
    }
}
