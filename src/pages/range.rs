//! Time range of a history page: parsing, formatting, and resolving.
//!
//! An edge is a time (`2026-11-24T12:00:00Z`, Unix seconds, or milliseconds as in Grafana) or relative (`now`,
//! `now-6h`).

use chrono::{DateTime, NaiveDateTime};

use super::figures::duration;
use super::link::iso;

/// Default range, seconds.
const USUAL: u32 = 86_400;
/// Minimum and maximum length, seconds.
const SHORTEST: f64 = 10.0;
const LONGEST: f64 = 400.0 * 86_400.0;

/// A time range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    from: Edge,
    to: Edge,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Edge {
    /// Seconds before now.
    Before(u32),
    /// Unix seconds.
    At(f64),
}

impl Default for Range {
    fn default() -> Self {
        Self { from: Edge::Before(USUAL), to: Edge::Before(0) }
    }
}

impl Range {
    /// Parses the range of a URL at `now` (Unix seconds).
    ///
    /// # Errors
    /// A description of the invalid value.
    pub fn parse(from: Option<&str>, to: Option<&str>, now: f64) -> Result<Self, String> {
        let from = from.map_or(Ok(Edge::Before(USUAL)), Edge::parse)?;
        let range = Self { from, to: to.map_or(Ok(Edge::Before(0)), Edge::parse)? };
        let length = range.until(now) - range.since(now);
        if length < SHORTEST {
            return Err("the start is not before the end".to_owned());
        }
        if length > LONGEST {
            return Err(format!("longer than {}", duration(LONGEST)));
        }
        Ok(range)
    }

    /// Start, Unix seconds.
    #[must_use]
    pub fn since(&self, now: f64) -> f64 {
        self.from.at(now)
    }

    /// End, Unix seconds.
    #[must_use]
    pub fn until(&self, now: f64) -> f64 {
        self.to.at(now)
    }

    /// Whether it moves with the current time.
    pub(super) fn ends_now(&self) -> bool {
        self.to == Edge::Before(0)
    }

    /// Returns `from` and `to` for URLs.
    pub(super) fn edges(&self) -> (String, String) {
        (self.from.text(), self.to.text())
    }

    /// Describes the range: `the last 24 h`.
    pub(super) fn words(&self, now: f64) -> String {
        let length = duration(self.until(now) - self.since(now));
        let length = length.replace("\u{202f}m 00\u{202f}s", "\u{202f}m").replace("\u{202f}h 00\u{202f}m", "\u{202f}h");
        let length = length.replace("\u{202f}d 0\u{202f}h", "\u{202f}d");
        if self.ends_now() { format!("the last {length}") } else { length }
    }
}

impl Edge {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            let shown = super::wording::shortened(&super::wording::visible(text), 40).into_owned();
            format!("{shown} is not a time; expected now-6h, 2026-11-24T12:00:00Z or Unix seconds")
        };
        if text == "now" {
            return Ok(Self::Before(0));
        }
        if let Some(before) = text.strip_prefix("now-") {
            let unit = match before.chars().last() {
                Some('s') => 1,
                Some('m') => 60,
                Some('h') => 3600,
                Some('d') => 86_400,
                Some('w') => 7 * 86_400,
                _ => return Err(bad()),
            };
            let number = before.get(..before.len() - 1).and_then(|n| n.parse::<u32>().ok());
            return number.and_then(|n| n.checked_mul(unit)).map(Self::Before).ok_or_else(bad);
        }
        if let Ok(number) = text.parse::<f64>() {
            // Interpreted as seconds, such numbers are beyond the year 5138, so they are milliseconds.
            let seconds = if number >= 1e11 { number / 1000.0 } else { number };
            return if (0.0..1e11).contains(&seconds) { Ok(Self::At(seconds)) } else { Err(bad()) };
        }
        let zoned = DateTime::parse_from_rfc3339(text).map(|t| t.timestamp());
        let naive =
            || ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M"].iter().find_map(|f| NaiveDateTime::parse_from_str(text, f).ok());
        let unix =
            zoned.ok().or_else(|| naive().map(|t| t.and_utc().timestamp())).filter(|t| *t >= 0).ok_or_else(bad)?;
        #[expect(clippy::cast_precision_loss, reason = "seconds of a calendar")]
        Ok(Self::At(unix as f64))
    }

    fn at(self, now: f64) -> f64 {
        match self {
            Self::Before(seconds) => (now - f64::from(seconds)).max(0.0),
            Self::At(unix) => unix,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Before(0) => "now".to_owned(),
            Self::Before(s) => match (s % 86_400, s % 3600, s % 60) {
                (0, ..) if s > 86_400 => format!("now-{}d", s / 86_400),
                (_, 0, _) => format!("now-{}h", s / 3600),
                (_, _, 0) => format!("now-{}m", s / 60),
                _ => format!("now-{s}s"),
            },
            Self::At(unix) => iso(unix).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 1_795_456_800.0;

    fn range(from: &str, to: &str) -> Result<(f64, f64), String> {
        Range::parse(Some(from), Some(to), NOW).map(|r| (r.since(NOW), r.until(NOW)))
    }

    #[test]
    fn edges_are_parsed_in_all_formats() {
        for (from, to) in [
            ("now-24h", "now"),
            ("now-1d", "now-0s"),
            ("1795370400", "1795456800"),
            ("1795370400000", "1795456800000"),
            ("2026-11-22T18:00:00Z", "2026-11-23T18:00"),
            ("2026-11-22T19:00:00+01:00", "now"),
        ] {
            assert_eq!(range(from, to), Ok((NOW - 86_400.0, NOW)), "{from} {to}");
        }
    }

    #[test]
    fn invalid_ranges_are_errors() {
        for (from, to) in [
            ("now", "now-6h"),
            ("yesterday", "now"),
            ("now-6y", "now"),
            ("now-", "now"),
            ("now-99999999d", "now"),
            ("NaN", "now"),
            ("-5", "now"),
            ("inf", "now"),
            ("0", "now"),
            ("now-ü", "now"),
        ] {
            assert!(range(from, to).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn ranges_keep_their_notation() {
        let text = |from| Range::parse(Some(from), None, NOW).unwrap().edges().0;
        assert_eq!(
            ["now-6h", "now-7d", "now-24h", "now-90m", "now-3601s"].map(text),
            ["now-6h", "now-7d", "now-24h", "now-90m", "now-3601s"]
        );
        assert_eq!(text("1795370400"), "2026-11-22T18:00:00Z");
        assert_eq!(Range::default().words(NOW), "the last 1\u{202f}d");
    }
}
