//! Current state of a stream: its length, groups and consumers.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use super::failures::{self, FailuresFrame};
use super::{CONSUMERS, level_and_word, staleness};
use crate::contract::Name;
use crate::fleet::reading::GroupConsumer;
use crate::fleet::snapshot::{ConsumerStatus, Snapshot};
use crate::pages::block::Draft;
use crate::pages::cell::{Cell, Cells};
use crate::pages::figures::{about, rate};
use crate::pages::link::{About, messages_of};
use crate::pages::panels::queues;
use crate::pages::verdict::Level;
use crate::pages::view::Frame;
use crate::pages::wording::{Label, Sentence};

/// Maximum number of groups shown.
const GROUPS: usize = 100;

/// A stream without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct StreamFrame {
    name: Label,
    stale: Option<Sentence>,
    /// Note shown first.
    note: Option<String>,
    /// Note about phantom pending.
    phantoms: Option<String>,
    error: Option<Label>,
    /// Link to the workers that read it.
    workers: Option<String>,
    /// Link to its messages.
    messages: String,
    groups: Vec<GroupRow>,
    more_groups: usize,
    consumers: Vec<ConsumerRow>,
    more_consumers: usize,
    several_groups: bool,
    failures: Option<FailuresFrame>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct GroupRow {
    name: Label,
    last: String,
    slots: [String; 4],
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ConsumerRow {
    name: Label,
    group: Option<Label>,
    level: Level,
    shape: &'static str,
    word: &'static str,
    slots: [String; 4],
}

/// Returns the element of a stream; `None` if it does not exist.
pub(super) fn compose(name: &Name, snapshot: &Snapshot) -> Option<Draft> {
    let status = snapshot.streams.get(name)?;
    let workers = snapshot.workers.get(name);
    let mut cells: Cells = queues::figures(status, snapshot.ts);
    let speed = |per_second: Option<f64>| per_second.map_or_else(Cell::missing, |r| Cell::text(rate(r)));
    cells.push(("in".to_owned(), speed(status.added_per_sec)));
    cells.push(("out".to_owned(), speed(status.read_per_sec)));
    let failures = failures::compose(name, snapshot, &mut cells);
    let mut groups = Vec::new();
    for (i, group) in status.groups.iter().take(GROUPS).enumerate() {
        let slot = |letter: char| format!("g{letter}{i}");
        cells.extend(queues::group_figures(group, snapshot.ts, slot));
        groups.push(GroupRow {
            name: Label::of(&group.name),
            last: group.last_delivered_id.clone(),
            slots: ['u', 'p', 'o', 'n'].map(slot),
        });
    }
    let known: BTreeMap<&Name, &ConsumerStatus> =
        workers.into_iter().flat_map(|w| &w.consumers).map(|c| (&c.consumer, c)).collect();
    let mut all: Vec<(&Name, &GroupConsumer, Option<&ConsumerStatus>)> =
        status.consumers.iter().map(|(group, c)| (group, c, known.get(&c.name).copied())).collect();
    let level = |known: Option<&ConsumerStatus>| known.map_or(Level::Unknown, |c| level_and_word(c.state).0);
    // Consumers in trouble first, stopped ones last.
    let gone = |known: Option<&ConsumerStatus>| known.is_some_and(|c| c.state.is_gone());
    all.sort_by_key(|(_, listed, known)| (gone(*known), Reverse(level(*known).is_trouble()), &listed.name));
    let mut consumers = Vec::new();
    for (i, (group, listed, known)) in all.iter().take(CONSUMERS).enumerate() {
        let slot = |letter: char| format!("c{letter}{i}");
        let (level, word) = known.map_or((Level::Unknown, "no heartbeat"), |c| level_and_word(c.state));
        #[expect(clippy::cast_precision_loss, reason = "rounded to one unit")]
        let idle = Cell::text(about(listed.idle_ms as f64 / 1000.0));
        cells.extend([
            (slot('s'), known.map_or_else(Cell::missing, |c| Cell::Since(c.state_since))),
            (slot('t'), known.and_then(|c| c.started_at).map_or_else(Cell::missing, Cell::Since)),
            (slot('p'), queues::pending(Some(listed.pending), listed.phantom_pending, false)),
            (slot('i'), idle),
        ]);
        consumers.push(ConsumerRow {
            name: Label::of(&listed.name),
            group: status.consumers.are_of_several_groups().then(|| Label::of(group)),
            level,
            shape: level.shape(),
            word,
            slots: ['s', 't', 'p', 'i'].map(slot),
        });
    }
    let note = match (status.exists, status.groups.is_empty(), &status.error) {
        (_, _, Some(_)) => None,
        (false, ..) => Some("This stream does not exist yet. It is created when the first message is added."),
        (true, true, _) => Some("No consumer group."),
        _ => None,
    };
    let frame = StreamFrame {
        name: Label::of(name),
        stale: staleness(snapshot),
        note: note.map(str::to_owned),
        phantoms: queues::phantom_note(status.phantom_pending, status.phantom_pending_at_least),
        error: status.error.as_deref().map(Label::from_text),
        workers: workers.map(|_| About::WorkerType.of(name)),
        messages: messages_of(name),
        more_groups: status.groups.len().saturating_sub(groups.len()),
        several_groups: groups.len() > 1,
        failures,
        groups,
        more_consumers: all.len().saturating_sub(consumers.len()),
        consumers,
    };
    Some(Draft::now(Frame::Stream(frame), cells))
}
