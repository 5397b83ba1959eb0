//! The panel of invalid heartbeats; hidden when there are none.

use serde::Serialize;

use crate::fleet::snapshot::Snapshot;
use crate::pages::block::Draft;
use crate::pages::view::Frame;
use crate::pages::wording::Label;

/// Maximum number of rows.
const ROWS: usize = 20;

/// Data of the panel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct UnreadableFrame {
    id: &'static str,
    total: usize,
    rows: Vec<Row>,
    more: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    key: Label,
    reason: Label,
}

/// Returns the fragment of the panel; empty without rows.
pub(in crate::pages) fn compose(snapshot: &Snapshot) -> Draft {
    let all = &snapshot.unreadable_heartbeats;
    let rows = all
        .iter()
        .take(ROWS)
        .map(|one| Row { key: Label::from_text(&one.key), reason: Label::from_text(&one.reason) })
        .collect();
    let frame = UnreadableFrame { id: "unreadable", total: all.len(), rows, more: all.len().saturating_sub(ROWS) };
    Draft { id: "unreadable".to_owned(), frame: Frame::Unreadable(frame), cells: Vec::new() }
}
