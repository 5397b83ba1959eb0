//! Which rules are in force: those of the last good version of the file. A file that is missing, empty or wrong changes
//! nothing but what is reported about it.

use std::sync::Arc;

use super::file;
use super::rule::RuleSet;

/// What reading the file gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileRead {
    /// Its text.
    Text(String),
    /// There is no such file.
    Missing,
    /// It cannot be read, and why.
    Unreadable(String),
}

/// The rules in force, and what is wrong with the file.
#[derive(Debug, Clone)]
pub struct InForce {
    /// As messages name it.
    file: String,
    /// A missing file is a problem even before one was read.
    required: bool,
    rules: Arc<RuleSet>,
    text: Option<String>,
    problems: Vec<String>,
}

impl InForce {
    /// Goes on with `rules`, which an earlier run of the evaluator had in force.
    #[must_use]
    pub fn new(file: String, required: bool, rules: Arc<RuleSet>) -> Self {
        Self { file, required, rules, text: None, problems: Vec::new() }
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// What is wrong with the file, as it was read last; empty when nothing is.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Takes in what reading the file gave. Whether other rules are in force since.
    pub fn take(&mut self, read: FileRead) -> bool {
        let file = &self.file;
        let text = match read {
            FileRead::Missing if !self.required && !self.rules.known => return self.report(Vec::new()),
            FileRead::Missing => return self.report(vec![format!("{file}: not found")]),
            FileRead::Unreadable(why) => return self.report(vec![format!("{file}: {why}")]),
            FileRead::Text(text) => text,
        };
        if self.text.as_ref() == Some(&text) {
            return self.report(Vec::new());
        }
        match file::read(&text) {
            Err(mistakes) => self.report(mistakes.iter().map(|mistake| format!("{file}:{mistake}")).collect()),
            Ok(rules) if !rules.known => {
                // An editor, or a deployment, that empties the file before it writes it anew.
                self.report(vec![format!("{file}: contains no rules; write `rules: []` for an empty rule set")])
            }
            Ok(rules) => {
                (self.rules, self.text) = (Arc::new(rules), Some(text));
                self.report(Vec::new());
                true
            }
        }
    }

    fn report(&mut self, problems: Vec<String>) -> bool {
        self.problems = problems;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "rules: [{name: high, type: threshold, metric: xlen, stream: a, threshold: 3}]";

    fn text(text: &str) -> FileRead {
        FileRead::Text(text.to_owned())
    }

    fn in_force(required: bool) -> InForce {
        InForce::new("alerts.yaml".to_owned(), required, Arc::default())
    }

    #[test]
    fn a_file_that_is_moved_away_emptied_cut_short_or_wrong_leaves_the_rules_in_force_and_is_reported_until_it_is_back()
    {
        for bad in [
            FileRead::Missing,
            FileRead::Unreadable("permission denied".to_owned()),
            text(""),
            text("\n# rules follow\n"),
            text("---\n"),
            text("rules:\n"),
            text("{}"),
            text("rules: [{name: high}]"),
            text("rules: ["),
        ] {
            let mut in_force = in_force(false);
            assert!(in_force.take(text(RULES)));
            assert!(!in_force.take(bad.clone()), "{bad:?}");
            assert_eq!((in_force.rules().rules.len(), in_force.rules().known), (1, true), "{bad:?}");
            assert!(in_force.problems()[0].starts_with("alerts.yaml:"), "{bad:?}: {:?}", in_force.problems());
            assert!(!in_force.take(text(RULES)), "the same rules");
            assert!(in_force.problems().is_empty(), "{bad:?}");
            in_force.take(bad);
            assert!(in_force.take(text(&RULES.replace("high", "higher"))));
            assert_eq!(in_force.rules().rules[0].name, "higher");
        }
    }

    #[test]
    fn no_rules_are_in_force_if_the_file_says_so() {
        for none in ["rules: []", "group_by: [rule]", "maintenance: [{daily: '02:00-04:00'}]"] {
            let mut in_force = in_force(true);
            in_force.take(text(RULES));
            assert!(in_force.take(text(none)), "{none}");
            assert_eq!((in_force.rules().rules.len(), in_force.problems().len()), (0, 0), "{none}");
        }
    }

    #[test]
    fn before_any_file_was_read_the_rules_are_not_known_and_only_a_configured_file_is_missed() {
        for (required, problems) in [(false, 0), (true, 1)] {
            let mut in_force = in_force(required);
            assert!(!in_force.take(FileRead::Missing));
            assert_eq!((in_force.rules().known, in_force.problems().len()), (false, problems));
        }
    }
}
