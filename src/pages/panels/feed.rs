//! The event feed, newest first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::fleet::event::{Event, Severity};
use crate::fleet::snapshot::Snapshot;
use crate::pages::block::Draft;
use crate::pages::link::history_around;
use crate::pages::view::{Frame, List};
use crate::pages::wording::{Label, MomentStyle, Sentence, shortened, visible};

/// Maximum number of events shown.
const SHOWN: usize = 50;
/// Maximum length of one event's text.
const SUMMARY: usize = 240;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct EventFrame {
    id: String,
    severity: Severity,
    shape: &'static str,
    subject: Label,
    /// Link to the history around it.
    href: Option<String>,
    summary: String,
    at: Sentence,
}

/// Stable numbers of events, for short element IDs.
#[derive(Debug, Default)]
pub(in crate::pages) struct Numbers {
    by_key: BTreeMap<String, u64>,
    last: u64,
}

impl Numbers {
    fn of(&mut self, event: &Event) -> u64 {
        let key = format!("{}\n{}", event.key, event.ts);
        *self.by_key.entry(key).or_insert_with(|| {
            self.last += 1;
            self.last
        })
    }

    /// Removes events that are no longer shown.
    fn keep(&mut self, shown: &BTreeSet<u64>) {
        self.by_key.retain(|_, number| shown.contains(number));
    }
}

/// Adds each event; returns their list.
pub(in crate::pages) fn compose(
    snapshot: &Snapshot,
    alerts: &[Arc<Event>],
    numbers: &mut Numbers,
    drafts: &mut Vec<Draft>,
) -> List {
    let mut members = Vec::new();
    let mut shown = BTreeSet::new();
    let mut events: Vec<&Event> = snapshot.recent_events.iter().chain(alerts).map(|event| &**event).collect();
    // Newest first; the stable sort keeps the order of simultaneous events.
    events.sort_by(|a, b| b.ts.total_cmp(&a.ts));
    events.truncate(SHOWN);
    // The oldest event gets the lowest number.
    for event in events.into_iter().rev() {
        let number = numbers.of(event);
        // A duplicate of the same occurrence.
        if !shown.insert(number) {
            continue;
        }
        let id = format!("e-{number}");
        drafts.push(Draft { id: id.clone(), frame: Frame::Event(frame(event, id.clone())), cells: Vec::new() });
        members.push(id);
    }
    numbers.keep(&shown);
    members.reverse();
    List { id: "feed", members }
}

fn frame(event: &Event, id: String) -> EventFrame {
    let severity = event.severity();
    EventFrame {
        id,
        severity,
        shape: match severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        },
        subject: Label::from_text(&event.subject),
        href: history_around(event.ts),
        summary: shortened(&visible(&event.summary()), SUMMARY).into_owned(),
        at: Sentence::default().at("", Some(event.ts), MomentStyle::Ago),
    }
}
