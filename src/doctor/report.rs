//! Findings and their output: one line each, errors first.

use serde::Serialize;
use serde_json::json;

use crate::printable::Lines;

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Something does not work, or data will be lost.
    Wrong,
    /// May be intentional.
    WorthKnowing,
    /// No problem.
    Fine,
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable identifier: `redis.`, `postgres.` or `monitor.`, and a name.
    pub id: &'static str,
    /// Severity.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// Consequence; empty if fine.
    pub means: String,
    /// Remedy; empty if fine.
    #[serde(rename = "do")]
    pub remedy: String,
}

/// Returns an error.
#[must_use]
pub fn wrong(
    id: &'static str,
    what: impl Into<String>,
    means: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { id, verdict: Verdict::Wrong, what: what.into(), means: means.into(), remedy: remedy.into() }
}

/// Returns a warning.
#[must_use]
pub fn worth_knowing(
    id: &'static str,
    what: impl Into<String>,
    means: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { verdict: Verdict::WorthKnowing, ..wrong(id, what, means, remedy) }
}

/// Returns a successful check.
#[must_use]
pub fn fine(id: &'static str, what: impl Into<String>) -> Finding {
    Finding { id, verdict: Verdict::Fine, what: what.into(), means: String::new(), remedy: String::new() }
}

/// All findings, errors first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report(Vec<Finding>);

impl Report {
    /// Sorts findings by severity; stable within a severity.
    #[must_use]
    pub fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.verdict);
        Self(findings)
    }

    /// Returns whether there are errors.
    #[must_use]
    pub fn something_is_wrong(&self) -> bool {
        self.count(Verdict::Wrong) > 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Formats the report as JSON.
    #[must_use]
    pub fn as_json(&self) -> String {
        let told = json!({
            "wrong": self.count(Verdict::Wrong), "worth_knowing": self.count(Verdict::WorthKnowing),
            "fine": self.count(Verdict::Fine), "findings": self.0,
        });
        format!("{told:#}\n")
    }

    /// Formats the report as text, one line per finding.
    #[must_use]
    pub fn as_text(&self) -> Lines {
        let mut text = Lines::default();
        for (verdict, mark) in [(Verdict::Wrong, '✗'), (Verdict::WorthKnowing, '!'), (Verdict::Fine, '✓')] {
            for finding in self.0.iter().filter(|finding| finding.verdict == verdict) {
                let Finding { what, means, remedy, .. } = finding;
                if means.is_empty() {
                    text.add(format_args!("{mark} {what}."));
                } else {
                    text.add(format_args!("{mark} {what}: {means}. → {remedy}."));
                }
            }
        }
        let (wrong, known) = (self.count(Verdict::Wrong), self.count(Verdict::WorthKnowing));
        let summary = if wrong == 0 { "No problems found".to_owned() } else { count(wrong, "problem") };
        text.add("");
        text.add(format_args!("{summary}, {}, {} OK.", count(known, "note"), self.count(Verdict::Fine)));
        text
    }
}

/// Formats `a`, `a and b`, or `a, b, c and 4 more`.
#[must_use]
pub fn list(names: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<String> = names.into_iter().collect();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    if more > 0 {
        return format!("{} and {more} more", names.join(", "));
    }
    match names.pop() {
        Some(last) if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// Formats `1 stream` or `3 streams`.
#[must_use]
pub fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_one_line_each_with_errors_first() {
        let report = Report::new(vec![
            fine("redis.a", "a is well"),
            worth_knowing("redis.b", "b\nis odd", "it may be so", "look at b"),
            wrong("redis.c", "c is broken", "nothing works", "mend c"),
        ]);
        assert_eq!(
            report.as_text().as_str(),
            "✗ c is broken: nothing works. → mend c.\n! b\\nis odd: it may be so. → look at b.\n✓ a is well.\n\n\
             1 problem, 1 note, 1 OK.\n"
        );
        assert!(report.something_is_wrong());
    }

    #[test]
    fn json_contains_the_same_findings_and_counts() {
        let report = Report::new(vec![fine("redis.a", "a"), worth_knowing("redis.b", "b", "m", "d")]);
        let told: serde_json::Value = serde_json::from_str(&report.as_json()).unwrap();
        assert_eq!((&told["wrong"], &told["worth_knowing"], &told["fine"]), (&0.into(), &1.into(), &1.into()));
        assert_eq!(told["findings"][0]["id"], "redis.b");
        assert_eq!(told["findings"][0]["verdict"], "worth_knowing");
        assert_eq!(told["findings"][0]["do"], "d");
        assert!(!report.something_is_wrong());
    }

    #[test]
    fn long_lists_are_truncated() {
        let names = |n: usize| list((0..n).map(|n| n.to_string()));
        assert_eq!(names(0), "");
        assert_eq!(names(1), "0");
        assert_eq!(names(2), "0 and 1");
        assert_eq!(names(5), "0, 1, 2, 3 and 4");
        assert_eq!(names(7), "0, 1, 2, 3, 4 and 2 more");
        assert_eq!((count(1, "group"), count(2, "group")), ("1 group".to_owned(), "2 groups".to_owned()));
    }
}
