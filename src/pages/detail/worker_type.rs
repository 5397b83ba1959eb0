//! Current state of a worker type: its state, load and consumers.

use std::cmp::Reverse;

use serde::Serialize;

use super::failures::{self, FailuresFrame};
use super::{CONSUMERS, level_and_word, staleness};
use crate::contract::Name;
use crate::fleet::snapshot::{ConsumerStatus, Snapshot};
use crate::pages::block::Draft;
use crate::pages::cell::{Cell, Cells};
use crate::pages::figures::about;
use crate::pages::link::About;
use crate::pages::panels::{cards, queues};
use crate::pages::verdict::{self, Level};
use crate::pages::view::Frame;
use crate::pages::wording::{Label, Sentence};

/// A worker type without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct WorkerTypeFrame {
    name: Label,
    stale: Option<Sentence>,
    level: Level,
    pill: &'static str,
    shape: &'static str,
    sentence: Sentence,
    /// Note about phantom pending.
    phantoms: Option<String>,
    /// Link to the stream that it reads.
    stream: Option<String>,
    failures: Option<FailuresFrame>,
    consumers: Vec<ConsumerRow>,
    more_consumers: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ConsumerRow {
    name: Label,
    level: Level,
    shape: &'static str,
    word: &'static str,
    /// Reason why its heartbeat is invalid.
    why: Option<Label>,
    slots: [String; 6],
}

/// Returns the element of a worker type; `None` if it does not exist.
pub(super) fn compose(name: &Name, snapshot: &Snapshot) -> Option<Draft> {
    let status = snapshot.workers.get(name)?;
    let verdict = verdict::of(status, snapshot.streams.get(name), snapshot.ts);
    let mut cells: Cells = cards::figures(status, None);
    let phantoms = status.phantom_pending.unwrap_or(0);
    cells.push(("p".to_owned(), queues::pending(status.pending, phantoms, status.phantom_pending_at_least)));
    let failures = failures::compose(name, snapshot, &mut cells);
    let mut all: Vec<&ConsumerStatus> = status.consumers.iter().collect();
    // Consumers in trouble first, stopped ones last.
    all.sort_by_key(|c| (c.state.is_gone(), Reverse(level_and_word(c.state).0.is_trouble()), &c.consumer));
    let mut consumers = Vec::new();
    for (i, consumer) in all.iter().take(CONSUMERS).enumerate() {
        let slot = |letter: char| format!("c{letter}{i}");
        let (level, word) = level_and_word(consumer.state);
        #[expect(clippy::cast_precision_loss, reason = "rounded to one unit")]
        let idle = consumer.idle_ms.map_or_else(Cell::missing, |ms| Cell::text(about(ms as f64 / 1000.0)));
        cells.extend([
            (slot('s'), Cell::Since(consumer.state_since)),
            (slot('t'), consumer.started_at.map_or_else(Cell::missing, Cell::Since)),
            (slot('f'), Cell::count(consumer.in_flight.map(u64::from))),
            (slot('l'), Cell::count(consumer.task_limit.map(u64::from))),
            (slot('p'), queues::pending(consumer.pending, consumer.phantom_pending.unwrap_or(0), false)),
            (slot('i'), idle),
        ]);
        consumers.push(ConsumerRow {
            name: Label::of(&consumer.consumer),
            level,
            shape: level.shape(),
            word,
            why: consumer.unreadable.as_deref().map(Label::from_text),
            slots: ['s', 't', 'f', 'l', 'p', 'i'].map(slot),
        });
    }
    let frame = WorkerTypeFrame {
        name: Label::of(name),
        stale: staleness(snapshot),
        level: verdict.level,
        pill: verdict.pill,
        shape: verdict.shape,
        sentence: verdict.sentence,
        phantoms: queues::phantom_note(status.phantom_pending, status.phantom_pending_at_least),
        stream: snapshot.streams.contains_key(name).then(|| About::Stream.of(name)),
        failures,
        more_consumers: all.len().saturating_sub(consumers.len()),
        consumers,
    };
    Some(Draft::now(Frame::WorkerType(frame), cells))
}
