//! Selection of the watched streams by include and exclude globs.

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::contract::Name;

/// The longest glob, in characters.
const LONGEST: usize = 200;

/// `MONITOR_STREAMS` and `MONITOR_STREAMS_EXCLUDE`.
#[derive(Debug, Clone, Default)]
pub struct WatchedStreams {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

/// Error: invalid glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadGlob {
    /// Setting that contains it.
    pub setting: &'static str,
    /// The glob.
    pub glob: String,
    /// Reason why it is invalid.
    pub why: String,
}

impl WatchedStreams {
    /// Watches streams that match an `include` glob (or all, without any) and no `exclude` glob.
    ///
    /// # Errors
    /// The first invalid glob.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, BadGlob> {
        let include = globs("MONITOR_STREAMS", include)?;
        Ok(Self {
            include: (!include.is_empty()).then_some(include),
            exclude: globs("MONITOR_STREAMS_EXCLUDE", exclude)?,
        })
    }

    /// Whether `stream` is watched.
    #[must_use]
    pub fn contains(&self, stream: &Name) -> bool {
        if self.include.is_none() && self.exclude.is_empty() {
            return true;
        }
        let text = stream.to_text();
        self.include.as_ref().is_none_or(|globs| globs.is_match(&text)) && !self.exclude.is_match(&text)
    }
}

fn globs(setting: &'static str, globs: &[String]) -> Result<GlobSet, BadGlob> {
    let bad =
        |glob: &String, error: globset::Error| BadGlob { setting, glob: glob.clone(), why: error.kind().to_string() };
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let length = glob.chars().count();
        if length > LONGEST {
            let (glob, why) = (glob.chars().take(60).collect(), format!("{length} characters; the limit is {LONGEST}"));
            return Err(BadGlob { setting, glob, why });
        }
        set.add(Glob::new(glob).map_err(|e| bad(glob, e))?);
    }
    set.build().map_err(|e| BadGlob { setting, glob: globs.join(","), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclude_overrides_include_and_default_watches_all() {
        let list = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
        assert!(WatchedStreams::default().contains(&"anything".into()));
        let some = WatchedStreams::new(&list(&["aragorn*", "arax"]), &list(&["*.score"])).unwrap();
        assert!(some.contains(&"aragorn.lookup".into()) && some.contains(&"arax".into()));
        assert!(WatchedStreams::new(&["?".repeat(145_750)], &[]).unwrap_err().why.contains("145750 characters"));
        assert!(!some.contains(&"aragorn.score".into()) && !some.contains(&"bte".into()));
    }
}
