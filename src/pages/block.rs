//! Blocks: keyed page fragments that are rendered again only when their content changed.

use super::cell::{Cell, Cells};
use super::templates::{Pages, PagesError};
use super::view::Frame;

/// Desired content of a fragment: its frame and its cells.
pub(super) struct Draft {
    /// Element ID.
    pub(super) id: String,
    /// Part that rarely changes.
    pub(super) frame: Frame,
    /// Part that changes often.
    pub(super) cells: Cells,
}

/// A rendered fragment, with the tick at which each part last changed.
pub(super) struct Block {
    frame: Frame,
    frame_changed: u64,
    html: Vec<Segment>,
    cells: Vec<(String, Cell, u64)>,
}

/// A piece of a rendered frame.
pub(super) enum Segment {
    /// Literal HTML.
    Html(String),
    /// Placeholder for a cell's element.
    Cell { tag: String, class: String, slot: String },
    /// Placeholder for a cell's bar.
    Bar { slot: String },
    /// Placeholder for a sparkline. The server draws it in a full page, the script in an update.
    Spark,
}

/// Changed parts of a block.
pub(super) enum Change<'a> {
    /// None.
    Nothing,
    /// These cells.
    Cells(Vec<(&'a str, &'a Cell)>),
    /// The whole block.
    Frame,
}

impl Block {
    /// Renders a new block.
    pub(super) fn new(pages: &Pages, draft: Draft, tick: u64) -> Result<Self, PagesError> {
        let html = pages.frame(&draft.frame)?;
        let cells = draft.cells.into_iter().map(|(slot, cell)| (slot, cell, tick)).collect();
        Ok(Self { frame: draft.frame, frame_changed: tick, html, cells })
    }

    /// Applies the differences to `draft`.
    pub(super) fn update(&mut self, pages: &Pages, draft: Draft, tick: u64) -> Result<(), PagesError> {
        let same_slots = self.cells.len() == draft.cells.len()
            && self.cells.iter().zip(&draft.cells).all(|((before, ..), (after, _))| before == after);
        if draft.frame != self.frame || !same_slots {
            *self = Self::new(pages, draft, tick)?;
            return Ok(());
        }
        for ((_, cell, changed), (_, new)) in self.cells.iter_mut().zip(draft.cells) {
            if *cell != new {
                *cell = new;
                *changed = tick;
            }
        }
        Ok(())
    }

    /// Current frame.
    pub(super) fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Returns the changes after `tick`.
    pub(super) fn since(&self, tick: u64) -> Change<'_> {
        if self.frame_changed > tick {
            return Change::Frame;
        }
        let cells: Vec<_> = self
            .cells
            .iter()
            .filter(|(.., changed)| *changed > tick)
            .map(|(slot, cell, _)| (slot.as_str(), cell))
            .collect();
        if cells.is_empty() { Change::Nothing } else { Change::Cells(cells) }
    }

    /// Writes the HTML, with `spark` in place of the sparkline.
    pub(super) fn write_html(&self, html: &mut String, spark: &str) {
        for segment in &self.html {
            match segment {
                Segment::Html(text) => html.push_str(text),
                Segment::Spark => html.push_str(spark),
                Segment::Cell { tag, class, slot } => {
                    if let Some(cell) = self.cell(slot) {
                        cell.write_html(html, tag, class, slot);
                    }
                }
                Segment::Bar { slot } => {
                    if let Some(cell) = self.cell(slot) {
                        cell.write_bar(html, slot);
                    }
                }
            }
        }
    }

    fn cell(&self, slot: &str) -> Option<&Cell> {
        self.cells.iter().find(|(name, ..)| name == slot).map(|(_, cell, _)| cell)
    }
}
