//! Task failures of a stream: counts by kind, and the reason of the newest one.

use serde::Serialize;

use crate::contract::Name;
use crate::contract::failures::FailureKind;
use crate::fleet::snapshot::Snapshot;
use crate::pages::cell::{Cell, Cells, Tone};
use crate::pages::verdict::Level;
use crate::pages::wording::{MomentStyle, Sentence, visible};

/// Task failures without their values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct FailuresFrame {
    level: Level,
    /// Newest failure.
    last: Option<Sentence>,
}

/// Returns the frame and adds its cells; `None` without failures.
pub(super) fn compose(stream: &Name, snapshot: &Snapshot, cells: &mut Cells) -> Option<FailuresFrame> {
    let failures = snapshot.streams.get(stream)?.failures.as_ref().filter(|failures| failures.any())?;
    let recent = Cell::count(Some(failures.last_5m));
    let recent = if failures.last_5m > 0 { recent.toned(Tone::Warning) } else { recent };
    cells.push(("f5".to_owned(), recent));
    for (slot, kind) in ["ff", "fm", "fd"].into_iter().zip(FailureKind::ALL) {
        cells.push((slot.to_owned(), Cell::count(Some(failures.counts.of(kind)))));
    }
    let last = failures.last.as_ref().map(|last| {
        let what = match last.kind {
            FailureKind::Failed => "Last failure: task failed",
            FailureKind::Malformed => "Last failure: malformed task",
            FailureKind::DeadLettered => "Last failure: task dead-lettered",
        };
        let sentence = Sentence::words(what).at(" ", Some(last.ts), MomentStyle::Ago);
        let sentence = match last.entry.as_str() {
            "" => sentence,
            entry => sentence.then(format!(" (entry {})", visible(entry))),
        };
        match last.reason.as_str() {
            "" => sentence,
            reason => sentence.then(format!(": {}", visible(reason))),
        }
    });
    let level = if failures.last_5m > 0 { Level::Warning } else { Level::Unknown };
    Some(FailuresFrame { level, last })
}
