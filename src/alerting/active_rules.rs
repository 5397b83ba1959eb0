//! Active rules: those of the last valid version of the rules file. A missing, empty or invalid file is reported and
//! does not change them.

use std::sync::Arc;

use super::file;
use super::rule::RuleSet;

/// Result of reading the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileRead {
    /// Its text.
    Text(String),
    /// The file does not exist.
    Missing,
    /// The file is unreadable, with the error.
    Unreadable(String),
}

/// Active rules, and the current errors of the file.
#[derive(Debug, Clone)]
pub struct InForce {
    /// Path as shown in messages.
    file: String,
    /// Whether a missing file is an error before any version was read.
    required: bool,
    rules: Arc<RuleSet>,
    text: Option<String>,
    problems: Vec<String>,
}

impl InForce {
    /// Starts with `rules`, which were active in an earlier run of the evaluator.
    #[must_use]
    pub fn new(file: String, required: bool, rules: Arc<RuleSet>) -> Self {
        Self { file, required, rules, text: None, problems: Vec::new() }
    }

    /// Active rules.
    #[must_use]
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Errors of the last read; empty when the file is valid.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Whether `read` is a text other than that of the active rules.
    #[must_use]
    pub fn is_new(&self, read: &FileRead) -> bool {
        matches!(read, FileRead::Text(read) if self.text.as_ref() != Some(read))
    }

    /// Applies the result of reading the file. Returns whether the active rules changed.
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
    fn missing_empty_truncated_or_invalid_file_is_reported_and_keeps_the_rules() {
        for bad in [
            FileRead::Missing,
            FileRead::Unreadable("permission denied".to_owned()),
            text(""),
            text("\n# rules follow\n"),
            text("---\n"),
            text("rules:\n"),
            text("{}"),
            text("rules:"),
            text("groups: []"),
            text("services: {redis: {image: redis}}"),
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
    fn explicit_empty_rules_replace_the_active_ones() {
        for none in ["rules: []", "group_by: [rule]", "maintenance: [{daily: '02:00-04:00'}]"] {
            let mut in_force = in_force(true);
            in_force.take(text(RULES));
            assert!(in_force.take(text(none)), "{none}");
            assert_eq!((in_force.rules().rules.len(), in_force.problems().len()), (0, 0), "{none}");
        }
    }

    #[test]
    fn only_a_configured_file_is_required_initially() {
        for (required, problems) in [(false, 0), (true, 1)] {
            let mut in_force = in_force(required);
            assert!(!in_force.take(FileRead::Missing));
            assert_eq!((in_force.rules().known, in_force.problems().len()), (false, problems));
        }
    }
}
