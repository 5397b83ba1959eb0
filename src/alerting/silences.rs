//! Silences, acknowledgements and maintenance windows.

use serde::{Deserialize, Serialize};

use super::glob::Glob;

/// A silence or an acknowledgement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    /// ID.
    pub id: String,
    /// Glob over rule names or whole keys of alerts.
    pub rule: String,
    /// Glob over streams and worker types; `*` matches any, and alerts without one.
    pub subject: String,
    /// User who created it.
    pub owner: String,
    /// Reason.
    pub reason: String,
    /// Start, Unix seconds.
    pub starts: f64,
    /// End, Unix seconds.
    pub until: f64,
    /// Whether it acknowledges the current occurrence of the alert whose key is `rule`.
    #[serde(default)]
    pub acknowledges: bool,
}

/// Active silences and acknowledgements, with compiled globs.
#[derive(Debug, Clone, Default)]
pub struct Silences {
    list: Vec<Silence>,
    /// Compiled globs of each silence for rule and subject; an acknowledgement has none.
    globs: Vec<(Option<Glob>, Option<Glob>)>,
}

impl Silences {
    /// Compiles the globs of `list`.
    #[must_use]
    pub fn new(list: Vec<Silence>) -> Self {
        let compiled = |silence: &Silence| {
            if silence.acknowledges {
                (None, None)
            } else {
                (Glob::new(&silence.rule).ok(), Glob::new(&silence.subject).ok())
            }
        };
        Self { globs: list.iter().map(compiled).collect(), list }
    }

    /// All silences and acknowledgements.
    #[must_use]
    pub fn list(&self) -> &[Silence] {
        &self.list
    }

    /// Whether one of them matches this alert at `now`. An invalid glob matches its literal text.
    #[must_use]
    pub fn cover(&self, rule: &str, key: &str, subject: Option<&str>, now: f64) -> bool {
        let matches = |text: &str, glob: &Option<Glob>, name: &str| {
            text == "*" || text == name || glob.as_ref().is_some_and(|glob| glob.is_match(name))
        };
        self.list.iter().zip(&self.globs).any(|(silence, (rules, subjects))| {
            !silence.acknowledges
                && (silence.starts..silence.until).contains(&now)
                && (matches(&silence.rule, rules, rule) || matches(&silence.rule, rules, key))
                && (silence.subject == "*" || subject.is_some_and(|name| matches(&silence.subject, subjects, name)))
        })
    }
}

/// A maintenance window.
#[derive(Debug, Clone)]
pub struct Window {
    /// Name.
    pub name: String,
    /// Silenced rules; `None` for all.
    pub rule: Option<Glob>,
    /// Silenced streams and worker types; `None` for all.
    pub stream: Option<Glob>,
    /// Schedule.
    pub when: When,
}

/// Schedule of a maintenance window.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// Once, Unix seconds.
    Once {
        /// Start.
        from: f64,
        /// End.
        until: f64,
    },
    /// Every selected day, UTC; past midnight when the end is before the start.
    Daily {
        /// Seconds after midnight.
        from: u32,
        /// Seconds after midnight.
        until: u32,
        /// Start days, 0 = Monday; every day when empty.
        days: Vec<u32>,
    },
}

impl Window {
    /// Whether it silences this alert at `now`.
    #[must_use]
    pub fn covers(&self, rule: &str, subject: Option<&str>, now: f64) -> bool {
        self.rule.as_ref().is_none_or(|glob| glob.is_match(rule))
            && self.stream.as_ref().is_none_or(|glob| subject.is_some_and(|s| glob.is_match(s)))
            && self.when.is_open(now)
    }
}

impl When {
    /// Whether it is active at `now`.
    #[must_use]
    pub fn is_open(&self, now: f64) -> bool {
        match self {
            Self::Once { from, until } => (*from..*until).contains(&now),
            Self::Daily { from, until, days } => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a date's seconds")]
                let seconds = now.max(0.0) as u64;
                let (day, second) = (seconds / 86_400, u32::try_from(seconds % 86_400).unwrap_or(0));
                // 1 January 1970 was a Thursday.
                let weekday = |day: u64| u32::try_from((day + 3) % 7).unwrap_or(0);
                let begins = |day: u64| days.is_empty() || days.contains(&weekday(day));
                if from <= until {
                    begins(day) && (*from..*until).contains(&second)
                } else {
                    (second >= *from && begins(day)) || (second < *until && begins(day.saturating_sub(1)))
                }
            }
        }
    }
}

/// Acknowledgement of an alert, which silences it until it resolves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// User.
    pub by: String,
    /// Reason.
    pub reason: String,
    /// Time, Unix seconds.
    pub at: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_matches_its_globs_until_it_ends() {
        let silence = Silence {
            id: String::new(),
            rule: "worker_*".into(),
            subject: "arax*".into(),
            owner: String::new(),
            reason: String::new(),
            starts: 10.0,
            until: 20.0,
            acknowledges: false,
        };
        let silences = Silences::new(vec![silence]);
        assert!(silences.cover("worker_zero", "worker_zero:arax", Some("arax"), 10.0));
        assert!(!silences.cover("worker_zero", "worker_zero:arax", Some("arax"), 20.0));
        assert!(!silences.cover("worker_zero", "worker_zero:bte", Some("bte"), 15.0));
        assert!(!silences.cover("disk", "disk", None, 15.0));
    }

    #[test]
    fn daily_window_spans_midnight_on_selected_days() {
        let window = When::Daily { from: 23 * 3600, until: 3600, days: vec![5] };
        // Saturday, 3 January 1970.
        let saturday = 2.0 * 86_400.0;
        assert!(window.is_open(saturday + 23.5 * 3600.0));
        assert!(window.is_open(saturday + 24.5 * 3600.0));
        assert!(!window.is_open(saturday + 0.5 * 3600.0));
        assert!(!window.is_open(saturday + 25.5 * 3600.0));
    }
}
