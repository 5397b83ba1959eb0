//! The history page: charts, summary, incidents and events of a time range.
//!
//! The page is complete without JavaScript. [`parts`] are rendered by the server (summary, incidents, events); `charts`
//! are the chart frames, which the script fills from the API. Each part and each chart is requested separately, so that
//! a slow one does not delay the others.

pub(super) mod chart_specs;
pub mod parts;
#[cfg(test)]
mod tests;

use serde::Serialize;

use super::link::{About, iso};
use super::range::Range;
use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Moment, MomentStyle};
use crate::contract::Name;
use chart_specs::ChartSpec;
use parts::{Part, Summary};

use crate::fleet::incident::Happened;

/// Imports of `history.js`, preloaded to avoid a request chain.
pub(super) const MODULES: &[&str] = &[
    "shell.js",
    "clock.js",
    "figures.js",
    "names.js",
    "palette.js",
    "fragments.js",
    "range.js",
    "answers.js",
    "chart_frame.js",
    "plot.js",
    "series.js",
    "lines.js",
    "bars.js",
    "marks.js",
    "heatmap.js",
    "small_multiples.js",
    "timeline.js",
    "parts.js",
];
/// Reload interval of a range that ends now, without JavaScript, seconds.
const REFRESH: u32 = 60;

/// Scope of a history page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole fleet.
    Fleet,
    /// A single stream or worker type.
    One(About, Name),
}

/// A requested time range.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryRange {
    /// Range that is displayed.
    pub range: Range,
    /// Reason why it differs from the requested one.
    pub instead: Option<String>,
    /// Time that `now` refers to, Unix seconds.
    pub now: f64,
}

impl HistoryRange {
    /// Parses the range of a URL at `now`; falls back to the default range.
    #[must_use]
    pub fn of(from: Option<&str>, to: Option<&str>, now: f64) -> Self {
        match Range::parse(from, to, now) {
            Ok(range) => Self { range, instead: None, now },
            Err(why) => Self { range: Range::default(), instead: Some(why), now },
        }
    }
}

/// Data that is available when the page is sent.
pub struct Found {
    /// Summary.
    pub summary: Part<Summary>,
    /// Events, newest first.
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

/// Data of the range bar and the charts.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Past {
    from: String,
    to: String,
    /// Current time, Unix seconds.
    now: f64,
    words: String,
    since: Option<Moment>,
    until: Option<Moment>,
    instead: Option<String>,
    presets: Vec<Preset>,
    /// Name of the stream or type, as used in series.
    of: Option<String>,
    charts: Vec<ChartSpec>,
    /// URL of the events as CSV.
    events_csv: String,
    /// URL of the incidents as CSV.
    incidents_csv: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Preset {
    from: &'static str,
    name: &'static str,
    key: usize,
    here: bool,
}

/// Presets of the range bar.
const PRESETS: [(&str, &str); 5] =
    [("now-1h", "1 h"), ("now-6h", "6 h"), ("now-24h", "24 h"), ("now-7d", "7 d"), ("now-30d", "30 d")];

impl Past {
    pub(super) fn of(asked: &HistoryRange, scope: &Scope) -> Self {
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
            charts: chart_specs::of(scope, &window),
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
    /// Renders the history page.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn history(&self, asked: &HistoryRange, found: &Found) -> Result<String, PagesError> {
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

/// Returns the URL of the history page for a range, for links from the live page.
pub(super) fn href(since: f64, until: f64) -> Option<String> {
    Some(format!("/history?from={}&to={}", iso(since)?, iso(until)?))
}
