//! Number formatting: few digits, a unit, and the exact value as a tooltip.
//!
//! Values are rounded to what a reader needs, so that they rarely change. An unknown value is [`MISSING`], never 0.

/// Placeholder for an unknown value.
pub(super) const MISSING: &str = "—";
/// Narrow no-break space between a number and its unit.
const GAP: char = '\u{202f}';

/// Formats a count: `37`, `1.2 k`, `12.3 M`.
pub(super) fn count(n: u64) -> String {
    scaled(n, 1000, &["", "k", "M", "G", "T"])
}

/// Formats a size in bytes, in powers of ten: `1.4 GB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, 1000, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Formats all digits in groups of three: `12,345`.
pub(super) fn exact(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a fraction: `74 %`. Above tenfold, exact digits carry no information.
pub(super) fn percent(share: f64) -> String {
    let percent = (share * 100.0).round();
    if percent > 999.0 {
        format!(">999{GAP}%")
    } else if share > 0.0 && percent < 1.0 {
        format!("<1{GAP}%")
    } else {
        format!("{percent:.0}{GAP}%")
    }
}

/// Formats seconds: `45 s`, `3 m 20 s`, `2 h 05 m`, `3 d 4 h`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = whole(seconds);
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}{GAP}s"),
        60..3600 => format!("{m}{GAP}m {:02}{GAP}s", seconds % 60),
        3600..86_400 => format!("{h}{GAP}h {:02}{GAP}m", m % 60),
        _ => format!("{d}{GAP}d {}{GAP}h", h % 24),
    }
}

/// Formats seconds as an estimate with one unit: `40 s`, `3 m`, `2 h`.
pub(super) fn about(seconds: f64) -> String {
    let seconds = whole(seconds);
    match seconds {
        0..10 => format!("<10{GAP}s"),
        10..60 => format!("{}{GAP}s", seconds / 10 * 10),
        60..3600 => format!("{}{GAP}m", (seconds + 30) / 60),
        3600..86_400 => format!("{}{GAP}h", (seconds + 1800) / 3600),
        _ => format!("{}{GAP}d", (seconds + 43_200) / 86_400),
    }
}

/// Formats a rate per second with two significant digits: `4.2`, `130`.
pub(super) fn rate(per_second: f64) -> String {
    let rate = per_second.max(0.0);
    if rate >= 100.0 {
        count(two_digits(whole(rate)))
    } else if rate >= 10.0 {
        format!("{rate:.0}")
    } else {
        format!("{rate:.1}")
    }
}

/// Replaces all but the first two digits of `n` by zeros, so that it rarely changes.
pub(super) fn two_digits(n: u64) -> u64 {
    let mut unit = 1;
    while n / unit >= 100 {
        unit *= 10;
    }
    (n / unit + u64::from(n % unit * 2 >= unit && unit > 1)) * unit
}

/// Formats a count with its noun: `1 worker`, `2 workers`.
pub(super) fn counted(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {many}", exact(n)) }
}

/// Converts a count of the snapshot; negative values become 0.
pub(super) fn natural(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Rounds a value that is not negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what u64 holds")]
pub(super) fn whole(value: f64) -> u64 {
    if value.is_finite() { value.clamp(0.0, 1e15) as u64 } else { 0 }
}

#[expect(clippy::cast_precision_loss, reason = "rounded to three digits")]
fn scaled(n: u64, step: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut left = units.iter();
    let mut unit = left.next().copied().unwrap_or_default();
    // From 999.5 on it would round to 1000.
    while value >= if n < step { f64::INFINITY } else { 999.5 } {
        let Some(next) = left.next() else { break };
        value /= step as f64;
        unit = next;
    }
    let number = if n < step || value >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") };
    if unit.is_empty() { number } else { format!("{number}{GAP}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: String) -> String {
        text.replace(GAP, " ")
    }

    #[test]
    fn counts_have_at_most_three_digits_and_a_unit() {
        for (n, told) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0 k"),
            (1234, "1.2 k"),
            (12_345, "12.3 k"),
            (99_949, "99.9 k"),
            (123_456, "123 k"),
            (999_949, "1.0 M"),
            (999_950, "1.0 M"),
            (1_500_000_000, "1.5 G"),
            (u64::MAX, "18446744 T"),
        ] {
            assert_eq!(plain(count(n)), told, "{n}");
        }
        assert_eq!(plain(bytes(1_400_000_000)), "1.4 GB");
        assert_eq!(plain(bytes(12)), "12 B");
        assert_eq!(exact(1_234_567), "1,234,567");
        assert_eq!(exact(0), "0");
    }

    #[test]
    fn durations_have_two_units_and_estimates_one() {
        for (seconds, told, estimate) in [
            (0.4, "0 s", "<10 s"),
            (45.0, "45 s", "40 s"),
            (200.0, "3 m 20 s", "3 m"),
            (7500.0, "2 h 05 m", "2 h"),
            (273_600.0, "3 d 4 h", "3 d"),
        ] {
            assert_eq!((plain(duration(seconds)), plain(about(seconds))), (told.to_owned(), estimate.to_owned()));
        }
        assert_eq!(plain(duration(f64::NAN)), "0 s");
    }

    #[test]
    fn percentages_and_rates_are_rounded() {
        assert_eq!(plain(percent(0.744)), "74 %");
        assert_eq!(plain(percent(0.001)), "<1 %");
        assert_eq!(plain(percent(0.0)), "0 %");
        assert_eq!(plain(percent(42.0)), ">999 %");
        assert_eq!((rate(4.23), rate(42.3), rate(127.0)), ("4.2".to_owned(), "42".to_owned(), "130".to_owned()));
        assert_eq!((two_digits(7), two_digits(99), two_digits(1267)), (7, 99, 1300));
    }
}
