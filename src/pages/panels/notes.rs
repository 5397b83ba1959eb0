//! The status line, and the notes at the top of panels.

use serde::Serialize;

use crate::fleet::snapshot::{Snapshot, SourceStatus};
use crate::pages::block::Draft;
use crate::pages::headline::{Headline, Trouble};
use crate::pages::verdict::Level;
use crate::pages::view::Frame;
use crate::pages::wording::{Label, MomentStyle, Sentence};

/// The status line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct StatusFrame {
    id: &'static str,
    level: Level,
    troubles: Vec<StatusSentence>,
    calm_shape: Option<&'static str>,
    calm: Vec<Sentence>,
}

#[cfg(test)]
impl StatusFrame {
    pub(in crate::pages) fn level(&self) -> Level {
        self.level
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct StatusSentence {
    level: Level,
    shape: &'static str,
    sentence: Sentence,
    href: Option<String>,
}

/// Note at the top of a panel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct NoteFrame {
    id: &'static str,
    level: Level,
    /// Whether the panel's data is stale.
    stale: bool,
    /// Whether the panel is empty.
    empty: bool,
    sentence: Sentence,
    silent: bool,
}

impl NoteFrame {
    fn silent(id: &'static str) -> Self {
        Self { id, level: Level::Fine, stale: false, empty: false, sentence: Sentence::default(), silent: true }
    }

    fn visible(id: &'static str, level: Level, sentence: Sentence) -> Self {
        Self { id, level, stale: false, empty: false, sentence, silent: false }
    }

    fn draft(self) -> Draft {
        Draft { id: self.id.to_owned(), frame: Frame::Note(self), cells: Vec::new() }
    }
}

/// Returns the fragment of the status line.
pub(in crate::pages) fn status(headline: Headline) -> Draft {
    let calm_shape = (headline.problems == 0).then(|| headline.level.shape());
    let troubles = headline
        .troubles
        .into_iter()
        .map(|Trouble { level, sentence, href }| StatusSentence { level, shape: level.shape(), sentence, href })
        .collect();
    let frame = StatusFrame { id: "status", level: headline.level, troubles, calm_shape, calm: headline.calm };
    let frame = Frame::Status(frame);
    Draft { id: "status".to_owned(), frame, cells: Vec::new() }
}

/// Note above the worker cards.
pub(in crate::pages) fn workers(snapshot: &Snapshot) -> Draft {
    let id = "workers-note";
    let note = source(id, "Redis", &snapshot.redis.source, "Worker states are not updated until it recovers.");
    let note = note.unwrap_or_else(|| match (&snapshot.redis.source, snapshot.workers.is_empty()) {
        (SourceStatus::Settling { .. }, _) => NoteFrame::visible(
            id,
            Level::Unknown,
            Sentence::words("Redis is reachable again. Missing heartbeats are ignored while workers rewrite theirs."),
        ),
        (_, true) => NoteFrame {
            empty: true,
            ..NoteFrame::visible(
                id,
                Level::Unknown,
                Sentence::words(
                    "No workers yet. Workers appear here within seconds of their first heartbeat; consumers without \
                     heartbeats appear when they join a consumer group.",
                ),
            )
        },
        _ => NoteFrame::silent(id),
    });
    note.draft()
}

/// Note above the queues.
pub(in crate::pages) fn queues(snapshot: &Snapshot) -> Draft {
    let id = "queues-note";
    let note = source(id, "Redis", &snapshot.redis.source, "Queue figures are from that time.");
    let note = note.unwrap_or_else(|| {
        if !snapshot.streams.is_empty() {
            return NoteFrame::silent(id);
        }
        let words = "No streams yet. A stream appears here when the first message is added to it.";
        NoteFrame { empty: true, ..NoteFrame::visible(id, Level::Unknown, Sentence::words(words)) }
    });
    note.draft()
}

/// Note above the feed.
pub(in crate::pages) fn feed(snapshot: &Snapshot) -> Draft {
    let id = "feed-note";
    if !snapshot.recent_events.is_empty() {
        return NoteFrame::silent(id).draft();
    }
    let words = "No events yet. Workers that start, stop or crash are listed here, and alerts that fire.";
    NoteFrame { empty: true, ..NoteFrame::visible(id, Level::Unknown, Sentence::words(words)) }.draft()
}

/// Returns the note about an unreachable data source; `None` if it is OK.
fn source(id: &'static str, name: &str, status: &SourceStatus, so: &str) -> Option<NoteFrame> {
    match status {
        SourceStatus::Ok | SourceStatus::Settling { .. } => None,
        SourceStatus::Starting => Some(NoteFrame {
            empty: true,
            ..NoteFrame::visible(
                id,
                Level::Unknown,
                Sentence::words(format!("Waiting for the first response from {name}.")),
            )
        }),
        SourceStatus::Down { since, trouble } => {
            let sentence = Sentence::words("As of").at(" ", Some(*since), MomentStyle::Clock).then(format!(
                ": {name} is {}: {}. {so}",
                trouble.kind.state(),
                Label::from_text(&trouble.detail)
            ));
            Some(NoteFrame { stale: true, ..NoteFrame::visible(id, Level::Critical, sentence) })
        }
    }
}
