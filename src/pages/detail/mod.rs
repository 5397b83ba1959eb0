//! Pages of a single stream and a single worker type: current state, consumers, and history.

mod failures;
mod stream;
mod worker_type;

pub(super) use stream::StreamFrame;
pub(super) use worker_type::WorkerTypeFrame;

use serde::Serialize;

use super::block::{Block, Draft};
use super::history::{Found, HistoryRange, MODULES, Past, Scope};
use super::link::About;
use super::site::{Head, Site};
use super::templates::PagesError;
use super::verdict::Level;
use super::wording::{Label, MomentStyle, Sentence};
use crate::contract::Name;
use crate::fleet::consumer::ConsumerState;
use crate::fleet::snapshot::{Snapshot, SourceStatus};

/// Maximum number of consumer rows.
const CONSUMERS: usize = 200;
/// Reload interval without JavaScript, seconds.
const REFRESH: u32 = 15;

#[derive(Serialize)]
struct Page<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    past: Past,
    kind: &'static str,
    name: Label,
    now: String,
    incidents: String,
    events: String,
}

impl Site {
    /// Returns the name in `snapshot` for the name from a URL: the same bytes, or the same displayed text. `None` if
    /// there is no such stream or type.
    #[must_use]
    pub fn find(snapshot: &Snapshot, about: About, requested: &Name) -> Option<Name> {
        fn named<'a>(mut names: impl Iterator<Item = &'a Name> + Clone, requested: &Name) -> Option<Name> {
            names
                .clone()
                .find(|name| *name == requested)
                // Series contain names as text.
                .or_else(|| names.find(|name| name.to_text().as_bytes() == requested.as_bytes()))
                .cloned()
        }
        match about {
            About::Stream => named(snapshot.streams.keys(), requested),
            About::WorkerType => named(snapshot.workers.keys(), requested),
        }
    }

    /// Renders the page about `name`, which is in `snapshot`.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn detail(
        &self,
        (about, name): (About, &Name),
        snapshot: &Snapshot,
        asked: &HistoryRange,
        found: &Found,
    ) -> Result<String, PagesError> {
        let scope = Scope::One(about, name.clone());
        let label = Label::of(name);
        let title = self.title(&label.text);
        let kind = match about {
            About::Stream => "stream",
            About::WorkerType => "worker",
        };
        let refresh = asked.range.ends_now().then_some(REFRESH);
        let page = Page {
            head: Head::of(&self.environment, (&self.pages, about.path()), &title, MODULES, refresh),
            past: Past::of(asked, &scope),
            kind,
            now: self.now(about, name, snapshot)?,
            name: label,
            incidents: self.incidents(&found.happened, asked, &scope)?,
            events: self.events(&found.happened, &scope)?,
        };
        self.pages.render("pages/detail", &page)
    }

    /// Renders the current state of `name` as an element.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn now(&self, about: About, name: &Name, snapshot: &Snapshot) -> Result<String, PagesError> {
        let draft = match about {
            About::Stream => stream::compose(name, snapshot),
            About::WorkerType => worker_type::compose(name, snapshot),
        };
        let mut html = String::new();
        if let Some(draft) = draft {
            Block::new(&self.pages, draft, snapshot.tick)?.write_html(&mut html, "");
        }
        Ok(html)
    }

    /// Renders the page for an unknown name.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn nothing(&self, about: About, name: &Name) -> Result<String, PagesError> {
        #[derive(Serialize)]
        struct Nothing<'a> {
            #[serde(flatten)]
            head: Head<'a>,
            what: &'static str,
            name: Label,
        }
        let what = match about {
            About::Stream => "stream",
            About::WorkerType => "worker type",
        };
        let title = self.title("Not found");
        let head = Head::of(&self.environment, (&self.pages, about.path()), &title, &["shell.js"], None);
        self.pages.render("pages/nothing", &Nothing { head, what, name: Label::of(name) })
    }
}

/// Returns a note with the age of the data while Redis is unreachable.
fn staleness(snapshot: &Snapshot) -> Option<Sentence> {
    match &snapshot.redis.source {
        SourceStatus::Down { since, trouble } => Some(
            Sentence::words("As of")
                .at(" ", Some(*since), MomentStyle::Clock)
                .then(format!(": Redis has been {} since then.", trouble.kind.state())),
        ),
        _ => None,
    }
}

/// Returns level and word for a consumer's state.
fn level_and_word(state: ConsumerState) -> (Level, &'static str) {
    match state {
        ConsumerState::NoHeartbeat => (Level::Unknown, "no heartbeat"),
        ConsumerState::Alive => (Level::Fine, "alive"),
        ConsumerState::Draining => (Level::Fine, "draining"),
        ConsumerState::Hung => (Level::Warning, "hung"),
        ConsumerState::Unreadable => (Level::Warning, "unreadable"),
        ConsumerState::Suspect => (Level::Unknown, "heartbeat late"),
        ConsumerState::Left => (Level::Unknown, "shut down"),
        ConsumerState::LeftWithWork => (Level::Warning, "shut down with pending messages"),
        ConsumerState::Lost => (Level::Critical, "lost"),
        ConsumerState::Unobserved => (Level::Unknown, "stopped, not observed"),
    }
}

impl Draft {
    /// Returns the element with the current state.
    fn now(frame: super::view::Frame, cells: super::cell::Cells) -> Self {
        Self { id: "now".to_owned(), frame, cells }
    }
}
