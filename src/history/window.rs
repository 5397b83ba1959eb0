//! What people ask for: from when to when, in buckets of which length.

use super::{Micros, SECOND};

/// The lengths that buckets have unless somebody asks for another, seconds.
const LENGTHS: [u32; 11] = [30, 60, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400];
/// About so many points a series, whatever the window.
const POINTS: f64 = 200.0;
/// More points than this are refused.
pub const MAX_POINTS: i64 = 3000;
/// Windows are at most this long, seconds.
pub const MAX_WINDOW_SEC: f64 = 400.0 * 86_400.0;
/// The window when none is asked for, seconds.
pub const DEFAULT_WINDOW_SEC: f64 = 86_400.0;

/// A stretch of time cut into buckets. Buckets begin at multiples of their length, so that the
/// same moment is in the same bucket whatever the window; the first and the last are whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first moment: a multiple of the bucket.
    pub since: Micros,
    /// The first moment after it: a multiple of the bucket.
    pub until: Micros,
    /// How long a bucket is.
    pub bucket: Micros,
}

/// Why a window cannot be had: which value, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadWindow(pub String);

impl Window {
    /// The window from `since` to `until` (Unix seconds; left out: a day until `now`), in buckets of
    /// `bucket_seconds`, or of the contract's choice.
    ///
    /// # Errors
    /// When a value is no time, since is not before until, or there would be too many points.
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

    /// The beginning of the bucket that `time` is in.
    #[must_use]
    pub fn bucket_of(&self, time: Micros) -> Micros {
        time - time.rem_euclid(self.bucket)
    }

    /// Whether `time` is in it.
    #[must_use]
    pub fn contains(&self, time: Micros) -> bool {
        (self.since..self.until).contains(&time)
    }

    /// Whether its buckets are made of whole pieces of `length`.
    #[must_use]
    pub fn is_made_of(&self, length: Micros) -> bool {
        self.bucket % length == 0
    }
}

/// The contract's bucket for a window of so many seconds: the first length that is at least a
/// two-hundredth of it.
#[must_use]
pub fn bucket_for(window_sec: f64) -> u32 {
    let fits = LENGTHS.into_iter().find(|length| f64::from(*length) >= window_sec / POINTS);
    fits.unwrap_or_else(|| {
        // Whole days beyond that.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "windows have a limit")]
        let days = (window_sec / POINTS / 86_400.0).ceil() as u32;
        days * 86_400
    })
}

/// What is known of a number over a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aggregate {
    /// Samples in it.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The least of them.
    pub min: f64,
    /// The greatest of them.
    pub max: f64,
}

impl Aggregate {
    /// One sample.
    #[must_use]
    pub fn of(value: f64) -> Self {
        Self { count: 1, sum: value, min: value, max: value }
    }

    /// Takes in what is known of another stretch.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The average.
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
    fn buckets_are_the_contracts() {
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
    fn a_window_begins_and_ends_with_whole_buckets() {
        let window = Window::new(Some(1000.5), Some(7000.1), None, 0.0).unwrap();
        assert_eq!((window.since, window.until), (990 * SECOND, 7020 * SECOND));
        assert_eq!(window.bucket_of(1019 * SECOND), 990 * SECOND);
        let until_now = Window::new(None, None, None, 1e9).unwrap();
        assert_eq!((until_now.bucket, until_now.until), (600 * SECOND, 1_000_000_200 * SECOND));
    }

    #[test]
    fn what_cannot_be_had_says_what_was_expected() {
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
