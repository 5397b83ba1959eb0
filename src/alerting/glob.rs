//! Globs over rule names, streams and worker types: limited in length, compiled once, and never panicking.

use globset::{GlobSet, GlobSetBuilder};

/// Maximum length of a glob, characters.
pub const LONGEST: usize = 200;

/// A compiled glob.
#[derive(Debug, Clone)]
pub struct Glob {
    text: String,
    set: GlobSet,
}

impl Glob {
    /// Compiles `text`.
    ///
    /// # Errors
    /// A syntax error, or excessive length.
    pub fn new(text: &str) -> Result<Self, String> {
        let length = text.chars().count();
        if length > LONGEST {
            return Err(format!("{length} characters; the limit is {LONGEST}"));
        }
        let glob = globset::Glob::new(text).map_err(|error| error.kind().to_string())?;
        // A set with one glob: unlike `compile_matcher`, building it returns an error.
        let set = GlobSetBuilder::new().add(glob).build().map_err(|error| error.kind().to_string())?;
        Ok(Self { text: text.to_owned(), set })
    }

    /// Source text of the glob.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the glob matches `name`.
    #[must_use]
    pub fn is_match(&self, name: &str) -> bool {
        self.set.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn glob_of_any_length_compiles_or_fails() {
        assert!(Glob::new("a*[bc]?{d,e}").unwrap().is_match("axxcyd"));
        assert!(Glob::new(&"?".repeat(LONGEST)).unwrap().is_match(&"e".repeat(LONGEST)));
        assert_eq!(Glob::new(&"?".repeat(145_750)).unwrap_err(), "145750 characters; the limit is 200");
        assert!(Glob::new("a[").is_err());
        assert!(Glob::new(&"{".repeat(LONGEST)).is_err());
    }

    proptest! {
        #[test]
        fn matching_never_panics(text in "[a*?\\[\\]{},!\\\\é-]{0,210}", name in "[a-zé.]{0,30}") {
            if let Ok(glob) = Glob::new(&text) {
                let _ = glob.is_match(&name);
            }
        }
    }
}
