//! Cells: values inside a fragment that are updated without rendering the fragment.

use std::fmt::Write as _;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::figures::{self, MISSING};
use super::wording::{Moment, MomentStyle};

/// A value that is replaced in place.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// A text.
    Figure {
        /// Displayed text.
        text: String,
        /// Exact value, shown as a tooltip.
        title: Option<String>,
        /// Colour.
        tone: Tone,
        /// Sort value, and width of its bar (percent).
        value: Option<f64>,
    },
    /// Time elapsed since this time, Unix seconds; the script keeps it up to date.
    Since(f64),
}

/// Meaning of a value's colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tone {
    /// None.
    #[default]
    Plain,
    /// Unimportant: absent or unknown.
    Faint,
    /// Needs attention.
    Warning,
    /// Needs action.
    Critical,
}

impl Tone {
    fn word(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Faint => "faint",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Cells by slot, in the order of the fragment's template.
pub(super) type Cells = Vec<(String, Cell)>;

impl Cell {
    /// Returns a plain text cell.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Figure { text: text.into(), title: None, tone: Tone::Plain, value: None }
    }

    /// Returns a cell for an unknown value.
    pub(super) fn missing() -> Self {
        Self::text(MISSING).titled("unknown").toned(Tone::Faint)
    }

    /// Returns a cell for a count, or for an unknown one.
    pub(super) fn count(n: Option<u64>) -> Self {
        let Some(n) = n else { return Self::missing() };
        let cell = Self::text(figures::count(n)).toned(if n == 0 { Tone::Faint } else { Tone::Plain });
        if n < 1000 { cell } else { cell.titled(figures::exact(n)).valued(as_float(n)) }
    }

    /// Returns a cell for a count that may be a lower bound.
    pub(super) fn count_at_least(n: Option<u64>, at_least: bool) -> Self {
        match n {
            Some(n) if at_least => {
                Self::text(format!("≥ {}", figures::count(n))).titled(figures::exact(n)).valued(as_float(n))
            }
            n => Self::count(n),
        }
    }

    /// Returns a cell for a size in bytes.
    pub(super) fn bytes(n: Option<u64>) -> Self {
        let Some(n) = n else { return Self::missing() };
        Self::text(figures::bytes(n))
    }

    #[must_use]
    pub(super) fn titled(mut self, words: impl Into<String>) -> Self {
        if let Self::Figure { title, .. } = &mut self {
            *title = Some(words.into());
        }
        self
    }

    #[must_use]
    pub(super) fn toned(mut self, to: Tone) -> Self {
        if let Self::Figure { tone, .. } = &mut self {
            *tone = to;
        }
        self
    }

    #[must_use]
    pub(super) fn valued(mut self, to: f64) -> Self {
        if let Self::Figure { value, .. } = &mut self {
            *value = Some(to);
        }
        self
    }

    /// Writes its element: `tag` with `class`, identified by `slot`.
    pub(super) fn write_html(&self, html: &mut String, tag: &str, class: &str, slot: &str) {
        _ = write!(html, "<{tag}");
        if !class.is_empty() {
            _ = write!(html, r#" class="{class}""#);
        }
        _ = write!(html, r#" data-c="{slot}""#);
        match self {
            Self::Figure { text, title, tone, value } => {
                if let Some(title) = title {
                    _ = write!(html, r#" title="{}""#, handlebars::html_escape(title));
                }
                if *tone != Tone::Plain {
                    _ = write!(html, r#" data-tone="{}""#, tone.word());
                }
                if let Some(value) = value {
                    _ = write!(html, r#" data-v="{value}""#);
                }
                _ = write!(html, ">{}", handlebars::html_escape(text));
            }
            Self::Since(unix) => {
                _ = write!(html, r#" data-v="-{}">"#, figures::whole(*unix));
                if let Some(moment) = Moment::new(*unix, MomentStyle::Since) {
                    moment.write_html(html);
                }
            }
        }
        _ = write!(html, "</{tag}>");
    }

    /// Writes the bar of the cell.
    pub(super) fn write_bar(&self, html: &mut String, slot: &str) {
        let (tone, value) = match self {
            Self::Figure { tone, value, .. } => (tone.word(), value.unwrap_or(0.0).clamp(0.0, 100.0)),
            Self::Since(_) => ("", 0.0),
        };
        _ = write!(
            html,
            r#"<svg class="bar" data-bar="{slot}" data-tone="{tone}" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"><rect width="{value}" height="1"/></svg>"#
        );
    }
}

/// Compact form: a text, `[text, title, tone, value]` without trailing absent items, or a number for [`Cell::Since`].
impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Since(unix) => serializer.serialize_u64(figures::whole(*unix)),
            Self::Figure { text, title: None, tone: Tone::Plain, value: None } => serializer.serialize_str(text),
            Self::Figure { text, title, tone, value } => {
                let mut seq = serializer.serialize_seq(None)?;
                seq.serialize_element(text)?;
                seq.serialize_element(title)?;
                if *tone != Tone::Plain || value.is_some() {
                    seq.serialize_element(tone.word())?;
                }
                match value {
                    // Most values are integers, which are shorter this way.
                    Some(value) if value.fract() == 0.0 && *value >= 0.0 => {
                        seq.serialize_element(&figures::whole(*value))?
                    }
                    Some(value) => seq.serialize_element(value)?,
                    None => {}
                }
                seq.end()
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "sorted by it, shown elsewhere")]
fn as_float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_serialize_compactly() {
        for (cell, json) in [
            (Cell::count(Some(37)), r#""37""#),
            (Cell::count(Some(0)), r#"["0",null,"faint"]"#),
            (Cell::count(Some(1234)), "[\"1.2\u{202f}k\",\"1,234\",\"\",1234]"),
            (Cell::count(None), r#"["—","unknown","faint"]"#),
            (Cell::count_at_least(Some(40), true), r#"["≥ 40","40","",40]"#),
            (Cell::Since(12.9), "12"),
        ] {
            assert_eq!(serde_json::to_string(&cell).unwrap(), json);
        }
    }
}
