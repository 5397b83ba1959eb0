//! The page of the past: everything over a range of time.
//!
//! The frame is complete before any script runs. [`parts`] are what the server words itself
//! (summary, incidents, events); `plates` are the frames of the charts, which the script fills from
//! the API. Each part and each plate is asked for on its own, so that none waits for another.

pub mod parts;
pub(super) mod plates;
#[cfg(test)]
mod tests;

use serde::Serialize;

use super::link::{About, iso};
use super::range::Range;
use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Moment, MomentStyle};
use crate::contract::Name;
use parts::{Part, Summary};
use plates::Plate;

use crate::fleet::incident::Happened;

/// What `history.js` imports, so that the browser fetches all at once.
pub(super) const MODULES: &[&str] = &[
    "shell.js",
    "clock.js",
    "figures.js",
    "names.js",
    "palette.js",
    "fragments.js",
    "range.js",
    "answers.js",
    "plate.js",
    "plot.js",
    "series.js",
    "lines.js",
    "bars.js",
    "marks.js",
    "heatmap.js",
    "multiples.js",
    "timeline.js",
    "parts.js",
];
/// Without script a page that ends now is loaded again after so many seconds.
const REFRESH: u32 = 60;

/// What a page of the past is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Fleet,
    /// One stream or worker type.
    One(About, Name),
}

/// A range as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The range that is shown.
    pub range: Range,
    /// Why it is not the one in the address.
    pub instead: Option<String>,
    /// The moment by which `now` is meant, Unix seconds.
    pub now: f64,
}

impl Asked {
    /// What an address asks for at `now`; the usual range if that cannot be understood.
    #[must_use]
    pub fn of(from: Option<&str>, to: Option<&str>, now: f64) -> Self {
        match Range::parse(from, to, now) {
            Ok(range) => Self { range, instead: None, now },
            Err(why) => Self { range: Range::default(), instead: Some(why), now },
        }
    }
}

/// What is known of a range when the page is sent.
pub struct Found {
    /// In numbers.
    pub summary: Part<Summary>,
    /// What happened, newest first.
    pub happened: Part<Vec<Happened>>,
}

#[derive(Serialize)]
struct Page<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    past: Past,
    summary: String,
    incidents: String,
    events: String,
}

/// What the range bar and the charts need.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Past {
    from: String,
    to: String,
    /// Unix seconds.
    now: f64,
    words: String,
    since: Option<Moment>,
    until: Option<Moment>,
    instead: Option<String>,
    presets: Vec<Preset>,
    /// The name of the stream or type that this is about, as series have it.
    of: Option<String>,
    plates: Vec<Plate>,
    /// Address of events as a file.
    events_csv: String,
    /// Address of incidents as a file.
    incidents_csv: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Preset {
    from: &'static str,
    name: &'static str,
    key: usize,
    here: bool,
}

/// The presets of the range bar.
const PRESETS: [(&str, &str); 5] =
    [("now-1h", "1 h"), ("now-6h", "6 h"), ("now-24h", "24 h"), ("now-7d", "7 d"), ("now-30d", "30 d")];

impl Past {
    pub(super) fn of(asked: &Asked, scope: &Scope) -> Self {
        let (range, now) = (asked.range, asked.now);
        let (from, to) = range.edges();
        let (since, until) = (range.since(now).floor(), range.until(now).ceil());
        let window = format!("since={since}&until={until}");
        let moment = |unix| Moment::new(unix, MomentStyle::Clock);
        let name = match scope {
            Scope::Fleet => None,
            Scope::One(_, name) => Some(name.to_text()),
        };
        let about = name.as_deref().map(|name| format!("&worker={}", super::link::encoded(name.as_bytes())));
        let about = about.unwrap_or_default();
        Self {
            presets: PRESETS
                .iter()
                .zip(1..)
                .map(|(&(preset, name), key)| Preset { from: preset, name, key, here: from == preset && to == "now" })
                .collect(),
            words: range.words(now),
            since: moment(since),
            until: moment(until),
            instead: asked.instead.clone(),
            plates: plates::of(scope, &window),
            of: name,
            events_csv: format!("/api/historical/events?{window}{about}&limit=5000&format=csv"),
            incidents_csv: format!("/api/historical/incidents?{window}{about}&format=csv"),
            from,
            to,
            now,
        }
    }
}

impl Site {
    /// The history page.
    ///
    /// # Errors
    /// When a template does not fit its view.
    pub fn history(&self, asked: &Asked, found: &Found) -> Result<String, PagesError> {
        let title = self.title("History");
        let refresh = asked.range.ends_now().then_some(REFRESH);
        let scope = Scope::Fleet;
        let page = Page {
            head: Head::of(&self.environment, (&self.pages, "/history"), &title, MODULES, refresh),
            past: Past::of(asked, &scope),
            summary: self.summary(&found.summary)?,
            incidents: self.incidents(&found.happened, asked, &scope)?,
            events: self.events(&found.happened, &scope)?,
        };
        self.pages.render("pages/history", &page)
    }
}

/// The address of the history page over a range: what a number of a live page links to.
pub(super) fn href(since: f64, until: f64) -> Option<String> {
    Some(format!("/history?from={}&to={}", iso(since)?, iso(until)?))
}
