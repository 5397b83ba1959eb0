//! The queue table: one row per stream, followed by one per group when there are several.

use serde::Serialize;

use crate::contract::Name;
use crate::fleet::snapshot::{GroupStatus, Snapshot, StreamStatus};
use crate::pages::block::Draft;
use crate::pages::cell::{Cell, Cells, Tone};
use crate::pages::element_id;
use crate::pages::figures::{about, exact, rate};
use crate::pages::link::About;
use crate::pages::view::{Frame, List};
use crate::pages::wording::Label;

/// Oldest message age that counts as a problem, seconds.
const LONG_WAIT: f64 = 600.0;
/// Maximum number of group rows per stream.
const GROUPS: usize = 20;

/// A row without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct QueueFrame {
    id: String,
    key: String,
    name: Label,
    /// Link to its page.
    href: String,
    /// Whether the key does not exist.
    absent: bool,
    /// Whether no group reads it.
    unread: bool,
    error: Option<Label>,
    groups: Vec<GroupFrame>,
    /// Number of groups that are not shown.
    more_groups: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct GroupFrame {
    name: Label,
    undelivered: String,
    pending: String,
    oldest: String,
    consumers: String,
}

/// Adds a row for each stream; returns their list.
pub(in crate::pages) fn compose(snapshot: &Snapshot, drafts: &mut Vec<Draft>) -> List {
    let mut members = Vec::new();
    for (name, status) in &snapshot.streams {
        let draft = row(name, status, snapshot);
        members.push(draft.id.clone());
        drafts.push(draft);
    }
    List { id: "queue-rows", members }
}

fn row(name: &Name, status: &StreamStatus, snapshot: &Snapshot) -> Draft {
    let key = element_id::key(name);
    let id = format!("q-{key}");
    let several = status.groups.len() > 1;
    let groups: &[GroupStatus] = if several { &status.groups } else { &[] };
    let mut cells = figures(status, snapshot.ts);
    let mut frames = Vec::new();
    for (i, group) in groups.iter().take(GROUPS).enumerate() {
        let slot = |letter: char| format!("{letter}{i}");
        cells.extend(group_figures(group, snapshot.ts, slot));
        frames.push(GroupFrame {
            name: Label::of(&group.name),
            undelivered: slot('u'),
            pending: slot('p'),
            oldest: slot('o'),
            consumers: slot('n'),
        });
    }
    let frame = QueueFrame {
        id: id.clone(),
        key,
        name: Label::of(name),
        href: About::Stream.of(name),
        absent: !status.exists && status.error.is_none(),
        unread: status.exists && status.groups.is_empty() && status.error.is_none(),
        error: status.error.as_deref().map(Label::from_text),
        groups: frames,
        more_groups: status.groups.len().saturating_sub(GROUPS),
    };
    Draft { id, frame: Frame::Queue(frame), cells }
}

pub(in crate::pages) fn figures(status: &StreamStatus, ts: f64) -> Cells {
    let consumers = if status.error.is_some() { None } else { Some(status.consumer_count as u64) };
    [
        ("l", Cell::count(status.xlen)),
        ("u", Cell::count_at_least(status.undelivered, status.undelivered_at_least)),
        ("p", pending(status.pending, status.phantom_pending.unwrap_or(0), status.phantom_pending_at_least)),
        ("o", oldest(status.oldest_waiting_sec, status.undelivered, ts)),
        ("n", Cell::count(consumers)),
        ("d", drain(status)),
    ]
    .map(|(slot, cell)| (slot.to_owned(), cell))
    .into()
}

pub(in crate::pages) fn group_figures(group: &GroupStatus, ts: f64, slot: impl Fn(char) -> String) -> Cells {
    vec![
        (slot('u'), Cell::count_at_least(group.lag.value(), group.lag.is_lower_bound())),
        (slot('p'), pending(Some(group.pending), group.phantom_pending, group.phantom_pending_at_least)),
        (slot('o'), oldest(group.oldest_waiting_sec, group.lag.value(), ts)),
        (slot('n'), Cell::count(group.consumer_count.map(|count| count as u64))),
    ]
}

/// Pending IDs, with the number of phantom IDs as a tooltip.
pub(in crate::pages) fn pending(pending: Option<u64>, phantoms: u64, at_least: bool) -> Cell {
    let cell = Cell::count(pending);
    let Some(n) = pending.filter(|_| phantoms > 0) else { return cell };
    let least = if at_least { "≥ " } else { "" };
    let words = format!("{}, including {least}{} phantom (no entry in the stream)", exact(n), exact(phantoms));
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^53")]
    let value = n as f64;
    cell.titled(words).toned(Tone::Warning).valued(value)
}

/// Explains phantom pending and its cleanup; `None` when there is none.
pub(in crate::pages) fn phantom_note(phantoms: Option<u64>, at_least: bool) -> Option<String> {
    let n = phantoms.filter(|n| *n > 0)?;
    let least = if at_least { "≥ " } else { "" };
    Some(format!(
        "Phantom pending: {least}{} no entry in the stream, because the entry was deleted or trimmed while it was \
         pending. No worker can process them, so they do not count as backlog. The next cleanup run acknowledges them.",
        match n {
            1 => "1 pending ID has".to_owned(),
            n => format!("{} pending IDs have", exact(n)),
        }
    ))
}

/// Returns the oldest message age.
fn oldest(waiting_sec: Option<f64>, undelivered: Option<u64>, ts: f64) -> Cell {
    match (waiting_sec, undelivered) {
        // Computed from milliseconds, so that the same entry always gives the same time.
        (Some(sec), _) => Cell::Since(((ts - sec) * 1000.0).round() / 1000.0),
        // The sort value is the negated time; empty queues sort as the youngest.
        (None, Some(0)) => Cell::text("–").titled("no messages waiting").toned(Tone::Faint).valued(-1e11),
        (None, _) => Cell::missing(),
    }
}

/// Returns the time to drain.
fn drain(status: &StreamStatus) -> Cell {
    let rates = match (status.added_per_sec, status.read_per_sec) {
        (Some(added), Some(read)) => Some(format!("{}/s added, {}/s delivered", rate(added), rate(read))),
        _ => None,
    };
    let nothing = status.undelivered == Some(0);
    let cell = match status.drain_sec {
        _ if nothing => Cell::text("–").titled("backlog is empty").toned(Tone::Faint).valued(0.0),
        Some(sec) => {
            let cell = Cell::text(about(sec)).valued(sec.round());
            if sec > LONG_WAIT { cell.toned(Tone::Warning) } else { cell }
        }
        None if rates.is_some() && status.undelivered.is_some() => {
            let grows = status.added_per_sec > status.read_per_sec;
            Cell::text(if grows { "growing" } else { "steady" }).toned(Tone::Warning).valued(1e9)
        }
        None => Cell::missing(),
    };
    match rates {
        Some(rates) if !nothing => cell.titled(rates),
        _ => cell,
    }
}
