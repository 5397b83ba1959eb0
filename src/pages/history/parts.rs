//! Server-rendered fragments of the history page: summary, incidents and events of a range.

use serde::Serialize;

use super::{HistoryRange, Scope, href};
use crate::contract::Name;
use crate::fleet::event::Severity;
use crate::fleet::incident::{Happened, Incident, IncidentKind, Over, incidents};
use crate::pages::figures::{MISSING, count, duration, exact, natural, whole};
use crate::pages::link::{About, history_around};
use crate::pages::site::Site;
use crate::pages::templates::PagesError;
use crate::pages::verdict::Level;
use crate::pages::wording::{Label, Moment, MomentStyle, shortened, visible};

/// Maximum number of names in each list of the summary.
const TOP: usize = 5;
/// Maximum number of incidents and events shown; the CSV file contains all.
const ROWS: usize = 100;
/// Maximum length of one event's text.
const DETAIL: usize = 240;
/// Maximum number of events read for one page.
pub const MOST_EVENTS: i64 = 5000;
/// Margin around an incident in its history link, as a fraction of its duration.
const MARGIN: f64 = 0.5;

/// Result of a request for a part.
#[derive(Debug, Clone, PartialEq)]
pub enum Part<T> {
    /// Available.
    Known(T),
    /// Failed, with the error.
    Failed(String),
    /// Slower than the page waits; the script requests it again.
    Late,
}

/// Summary of a range.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// Queries started; `None` without query tables.
    pub queries_started: Option<i64>,
    /// Worker types that crashed.
    pub crashes: i64,
    /// Number of scale-ups and scale-downs.
    pub scale_events: i64,
    /// Number of alerts.
    pub alert_count: i64,
    /// Peak backlog of each type, descending.
    pub peak_backlog: Vec<(String, f64)>,
    /// Number of tasks finished in each stream, descending.
    pub task_volume: Vec<(String, f64)>,
}

/// State of a part.
#[derive(Debug, PartialEq, Serialize)]
struct Standing {
    state: &'static str,
    note: Option<String>,
}

impl Standing {
    fn of<T>(part: &Part<T>, empty: impl FnOnce(&T) -> Option<String>) -> Self {
        match part {
            Part::Known(what) => match empty(what) {
                Some(note) => Self { state: "empty", note: Some(note) },
                None => Self { state: "ready", note: None },
            },
            Part::Failed(why) => Self { state: "failed", note: Some(Label::from_text(why).to_string()) },
            Part::Late => Self { state: "loading", note: None },
        }
    }
}

#[derive(Serialize)]
struct SummaryView {
    standing: Standing,
    totals: Vec<Total>,
    tops: Vec<Top>,
}

#[derive(Serialize)]
struct Total {
    name: &'static str,
    figure: String,
    title: Option<String>,
    /// Stream or type of the value.
    whose: Option<Link>,
    tone: &'static str,
}

#[derive(Serialize)]
struct Top {
    name: &'static str,
    rows: Vec<TopRow>,
}

#[derive(Serialize)]
struct TopRow {
    link: Link,
    figure: String,
    title: String,
    /// Percent of the highest value.
    share: f64,
}

#[derive(Serialize)]
struct Link {
    href: String,
    name: Label,
}

impl Link {
    fn to(about: About, name: &str) -> Self {
        Self { href: about.of(&Name::from(name)), name: Label::from_text(name) }
    }
}

impl Total {
    fn new(name: &'static str, n: Option<i64>) -> Self {
        let n = n.map(natural);
        Self {
            name,
            figure: n.map_or_else(|| MISSING.to_owned(), count),
            title: n.filter(|n| *n >= 1000).map(exact),
            whose: None,
            tone: if n == Some(0) || n.is_none() { "faint" } else { "" },
        }
    }

    fn toned(mut self, tone: &'static str) -> Self {
        if self.tone.is_empty() {
            self.tone = tone;
        }
        self
    }
}

#[derive(Serialize)]
struct IncidentsView {
    standing: Standing,
    rows: Vec<IncidentRow>,
    more: usize,
    cut: bool,
    one: bool,
}

#[derive(Serialize)]
struct IncidentRow {
    level: Level,
    shape: &'static str,
    word: &'static str,
    subject: Option<Link>,
    source: Label,
    since: Option<Moment>,
    href: Option<String>,
    length: String,
    still: bool,
    what: String,
}

#[derive(Serialize)]
struct EventsView {
    standing: Standing,
    rows: Vec<EventRow>,
    more: usize,
    cut: bool,
}

#[derive(Serialize)]
struct EventRow {
    severity: Severity,
    shape: &'static str,
    subject: Label,
    href: Option<String>,
    detail: String,
    at: Option<Moment>,
}

impl Site {
    /// Renders the summary of a range as an element.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn summary(&self, part: &Part<Summary>) -> Result<String, PagesError> {
        let none = Summary::default();
        let known = if let Part::Known(summary) = part { Some(summary) } else { None };
        let s = known.unwrap_or(&none);
        let figure = |n: i64| known.map(|_| n);
        #[expect(clippy::cast_possible_truncation, reason = "counts far below 2^53")]
        let tasks: i64 = s.task_volume.iter().map(|(_, n)| *n as i64).sum();
        let highest = s.peak_backlog.first();
        let mut peak = Total::new("Highest backlog", None);
        if known.is_some() {
            let value = highest.map_or(0.0, |(_, peak)| *peak);
            peak = Total::new("Highest backlog", Some(i64::try_from(whole(value)).unwrap_or(i64::MAX)));
            peak.whose = highest.map(|(name, _)| Link::to(About::WorkerType, name));
        }
        let view = SummaryView {
            standing: Standing::of(part, |_| None),
            totals: vec![
                Total::new("Queries started", s.queries_started),
                Total::new("Tasks finished", figure(tasks)),
                Total::new("Crashes", figure(s.crashes)).toned("critical"),
                Total::new("Alerts", figure(s.alert_count)).toned("warning"),
                Total::new("Scale events", figure(s.scale_events)),
                peak,
            ],
            tops: vec![
                top("Highest backlog", About::WorkerType, &s.peak_backlog),
                top("Tasks finished", About::Stream, &s.task_volume),
            ],
        };
        self.pages.render("fragments/summary", &view)
    }

    /// Renders the incidents among `happened` as an element.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn incidents(
        &self,
        happened: &Part<Vec<Happened>>,
        asked: &HistoryRange,
        scope: &Scope,
    ) -> Result<String, PagesError> {
        let known: &[Happened] = if let Part::Known(events) = happened { events } else { &[] };
        let found = incidents(known);
        let empty = "No incidents in this time range.";
        let one = *scope != Scope::Fleet;
        let view = IncidentsView {
            standing: Standing::of(happened, |_| found.is_empty().then(|| empty.to_owned())),
            more: found.len().saturating_sub(ROWS),
            rows: found.iter().take(ROWS).map(|incident| incident_row(incident, asked)).collect(),
            cut: is_cut(known),
            one,
        };
        self.pages.render("fragments/incidents", &view)
    }

    /// Renders the events as an element.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn events(&self, happened: &Part<Vec<Happened>>, scope: &Scope) -> Result<String, PagesError> {
        let known: &[Happened] = if let Part::Known(events) = happened { events } else { &[] };
        let empty = match scope {
            Scope::Fleet => "No events in this time range.",
            Scope::One(..) => "No events in this time range.",
        };
        let view = EventsView {
            standing: Standing::of(happened, |_| known.is_empty().then(|| empty.to_owned())),
            rows: known.iter().take(ROWS).map(event_row).collect(),
            more: known.len().saturating_sub(ROWS),
            cut: is_cut(known),
        };
        self.pages.render("fragments/past_events", &view)
    }
}

/// Whether the limit was reached, so that there may be more events.
fn is_cut(events: &[Happened]) -> bool {
    i64::try_from(events.len()).is_ok_and(|n| n >= MOST_EVENTS)
}

fn top(name: &'static str, about: About, figures: &[(String, f64)]) -> Top {
    let most = figures.first().map_or(1.0, |(_, most)| most.max(1.0));
    let row = |(of, figure): &(String, f64)| TopRow {
        link: Link::to(about, of),
        figure: count(whole(*figure)),
        title: exact(whole(*figure)),
        share: (figure / most * 100.0).clamp(0.0, 100.0).round(),
    };
    Top { name, rows: figures.iter().take(TOP).map(row).collect() }
}

fn incident_row(incident: &Incident, asked: &HistoryRange) -> IncidentRow {
    let (level, word) = match incident.kind {
        IncidentKind::Crash => (Level::Critical, "crashed"),
        IncidentKind::Hung => (Level::Warning, "hung"),
        IncidentKind::Lost => (Level::Warning, "lost"),
        IncidentKind::SourceDown => (Level::Critical, "unavailable"),
    };
    let end = match incident.over {
        Over::At(at) => at,
        Over::AtOnce => incident.since.unwrap_or_default(),
        Over::NotYet => asked.range.until(asked.now),
    };
    let begin = incident.since.unwrap_or(end);
    let margin = ((end - begin) * MARGIN).max(300.0);
    let length = match (incident.since, incident.over) {
        (_, Over::AtOnce) => String::new(),
        (None, _) => format!("≥ {}", duration(end - asked.range.since(asked.now))),
        (Some(since), Over::NotYet) => format!("≥ {}", duration(end - since)),
        (Some(since), Over::At(at)) => duration(at - since),
    };
    let is_source = incident.kind == IncidentKind::SourceDown;
    IncidentRow {
        level,
        shape: level.shape(),
        word,
        subject: (!is_source).then(|| Link::to(About::WorkerType, &incident.subject)),
        source: Label::from_text(if incident.subject == "postgres" { "Postgres" } else { "Redis" }),
        since: incident.since.and_then(|at| Moment::new(at, MomentStyle::Clock)),
        href: href(begin - margin, end + margin),
        length,
        still: incident.over == Over::NotYet,
        what: shortened(&visible(&incident.what), DETAIL).into_owned(),
    }
}

fn event_row(event: &Happened) -> EventRow {
    EventRow {
        severity: event.severity,
        shape: event.severity.as_str(),
        subject: Label::from_text(&event.subject),
        href: history_around(event.ts),
        detail: shortened(&visible(&event.detail), DETAIL).into_owned(),
        at: Moment::new(event.ts, MomentStyle::Clock),
    }
}
