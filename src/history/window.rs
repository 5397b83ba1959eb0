//! Requested time ranges, divided into buckets.

use super::{Micros, SECOND};

/// Default bucket lengths, seconds.
const LENGTHS: [u32; 11] = [30, 60, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400];
/// Approximate number of points per series, for windows of any length.
const POINTS: f64 = 200.0;
/// Maximum number of points per series.
pub const MAX_POINTS: i64 = 3000;
/// Maximum length of a window, seconds.
pub const MAX_WINDOW_SEC: f64 = 400.0 * 86_400.0;
/// Default length of a window, seconds.
pub const DEFAULT_WINDOW_SEC: f64 = 86_400.0;

/// A time range divided into buckets. Buckets start at multiples of their length, so that a time falls into the same
/// bucket in every window; the first and the last bucket are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Start, inclusive: a multiple of the bucket length.
    pub since: Micros,
    /// End, exclusive: a multiple of the bucket length.
    pub until: Micros,
    /// Bucket length.
    pub bucket: Micros,
}

/// Error: the invalid value and the expected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadWindow(pub String);

impl Window {
    /// Returns the window from `since` to `until` (Unix seconds; default: the day before `now`), in buckets of
    /// `bucket_seconds` or of the default length.
    ///
    /// # Errors
    /// When a value is not a valid time, `since` is not before `until`, or the window has too many points.
    pub fn new(
        since: Option<f64>,
        until: Option<f64>,
        bucket_seconds: Option<u32>,
        now: f64,
    ) -> Result<Self, BadWindow> {
        for (name, value) in [("since", since), ("until", until)] {
            if value.is_some_and(|v| !(0.0..1e11).contains(&v)) {
                return Err(BadWindow(format!("{name} is {}: expected Unix seconds", value.unwrap_or_default())));
            }
        }
        let until = until.unwrap_or(now);
        let since = since.unwrap_or((until - DEFAULT_WINDOW_SEC).max(0.0));
        if since >= until {
            return Err(BadWindow(format!("since is {since}, until is {until}: expected since < until")));
        }
        if until - since > MAX_WINDOW_SEC {
            return Err(BadWindow(format!(
                "the time range is {:.0} days: expected at most {:.0}",
                (until - since) / 86_400.0,
                MAX_WINDOW_SEC / 86_400.0
            )));
        }
        let seconds = bucket_seconds.unwrap_or_else(|| bucket_for(until - since));
        if seconds == 0 {
            return Err(BadWindow("bucket_seconds is 0: expected at least 1".to_owned()));
        }
        let bucket = Micros::from(seconds) * SECOND;
        #[expect(clippy::cast_possible_truncation, reason = "checked above to be dates")]
        let (since, until) = ((since * 1e6) as Micros, (until * 1e6).ceil() as Micros);
        let window =
            Self { since: since - since.rem_euclid(bucket), until: until + (-until).rem_euclid(bucket), bucket };
        let points = (window.until - window.since) / bucket;
        if points > MAX_POINTS {
            return Err(BadWindow(format!(
                "bucket_seconds is {seconds}: results in {points} points, expected at most {MAX_POINTS}"
            )));
        }
        Ok(window)
    }

    /// The same stretch in buckets of the next of the usual lengths; `None` if there is none.
    #[must_use]
    pub fn coarser(&self) -> Option<Self> {
        let bucket = LENGTHS.into_iter().map(|seconds| Micros::from(seconds) * SECOND).find(|b| *b > self.bucket)?;
        let (since, until) =
            (self.since - self.since.rem_euclid(bucket), self.until + (-self.until).rem_euclid(bucket));
        Some(Self { since, until, bucket })
    }

    /// Start of the bucket that contains `time`.
    #[must_use]
    pub fn bucket_of(&self, time: Micros) -> Micros {
        time - time.rem_euclid(self.bucket)
    }

    /// Whether the window contains `time`.
    #[must_use]
    pub fn contains(&self, time: Micros) -> bool {
        (self.since..self.until).contains(&time)
    }

    /// Whether each bucket is a whole number of pieces of `length`.
    #[must_use]
    pub fn is_made_of(&self, length: Micros) -> bool {
        self.bucket % length == 0
    }
}

/// Default bucket length for a window, seconds: the first length that is at least a two-hundredth of it.
#[must_use]
pub fn bucket_for(window_sec: f64) -> u32 {
    let fits = LENGTHS.into_iter().find(|length| f64::from(*length) >= window_sec / POINTS);
    fits.unwrap_or_else(|| {
        // Longer buckets are whole days.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "windows have a limit")]
        let days = (window_sec / POINTS / 86_400.0).ceil() as u32;
        days * 86_400
    })
}

/// Aggregate of a value over a time range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aggregate {
    /// Number of samples.
    pub count: u64,
    /// Sum of the samples.
    pub sum: f64,
    /// Minimum.
    pub min: f64,
    /// Maximum.
    pub max: f64,
}

impl Aggregate {
    /// Aggregate of a single sample.
    #[must_use]
    pub fn of(value: f64) -> Self {
        Self { count: 1, sum: value, min: value, max: value }
    }

    /// Adds the samples of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Mean.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_in_longer_buckets_holds_the_same_moments_until_there_are_no_longer_ones() {
        let mut window = Window::new(Some(1000.0), Some(9000.0), Some(30), 0.0).unwrap();
        let mut lengths = vec![window.bucket / SECOND];
        while let Some(coarser) = window.coarser() {
            assert!(coarser.since <= window.since && coarser.until >= window.until);
            assert!(coarser.since % coarser.bucket == 0 && coarser.until % coarser.bucket == 0);
            lengths.push(coarser.bucket / SECOND);
            window = coarser;
        }
        assert_eq!(lengths, LENGTHS.map(i64::from));
    }

    #[test]
    fn default_bucket_lengths() {
        for (window, bucket) in [
            (600.0, 30),
            (3600.0, 30),
            (6000.0, 30),
            (6001.0, 60),
            (86_400.0, 600),
            (7.0 * 86_400.0, 3600),
            (30.0 * 86_400.0, 14_400),
            (400.0 * 86_400.0, 172_800),
        ] {
            assert_eq!(bucket_for(window), bucket, "{window}");
        }
    }

    #[test]
    fn window_is_aligned_to_buckets() {
        let window = Window::new(Some(1000.5), Some(7000.1), None, 0.0).unwrap();
        assert_eq!((window.since, window.until), (990 * SECOND, 7020 * SECOND));
        assert_eq!(window.bucket_of(1019 * SECOND), 990 * SECOND);
        let until_now = Window::new(None, None, None, 1e9).unwrap();
        assert_eq!((until_now.bucket, until_now.until), (600 * SECOND, 1_000_000_200 * SECOND));
    }

    #[test]
    fn invalid_window_errors_state_the_expected_value() {
        for (since, until, bucket) in [
            (Some(f64::NAN), None, None),
            (Some(-1.0), None, None),
            (None, Some(f64::INFINITY), None),
            (Some(10.0), Some(10.0), None),
            (Some(20.0), Some(10.0), None),
            (Some(0.0), Some(1e9), None),
            (Some(0.0), Some(1e6), Some(1)),
            (None, None, Some(0)),
        ] {
            let bad = Window::new(since, until, bucket, 1e9).unwrap_err();
            assert!(bad.0.contains("expected"), "{bad}");
        }
    }
}
