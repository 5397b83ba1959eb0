//! Display of names, times and sentences.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::contract::Name;
use crate::printable::is_hidden;

/// Maximum length of a displayed name, characters; the middle is shortened.
const SHOWN: usize = 64;
/// Maximum length of a name in a tooltip, characters.
const TITLE: usize = 400;

/// Returns `words` with a capital first letter.
pub(super) fn capitalised(words: &str) -> String {
    let mut chars = words.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// A displayed name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Label {
    /// Displayed text.
    pub(super) text: String,
    /// Full name, if `text` is shortened.
    pub(super) title: Option<String>,
}

impl Label {
    /// Returns the label of `name`.
    pub(super) fn of(name: &Name) -> Self {
        Self::from_text(&name.to_text())
    }

    /// Returns the label of an untrusted text.
    pub(super) fn from_text(text: &str) -> Self {
        let visible = visible(text);
        let text = shortened(&visible, SHOWN);
        let title = (text != visible).then(|| shortened(&visible, TITLE).into_owned());
        Self { text: text.into_owned(), title }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Escapes control characters and characters that change the text direction.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if text.is_empty() {
        return Cow::Borrowed("(empty)");
    }
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\0' => shown.push_str("\\0"),
            c if is_hidden(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Shortens `text` in the middle to at most `max` characters.
pub(super) fn shortened(text: &str, max: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= max {
        return Cow::Borrowed(text);
    }
    let tail = max / 4;
    let head: String = text.chars().take(max - tail - 1).collect();
    let end: String = text.chars().skip(length - tail).collect();
    Cow::Owned(format!("{head}…{end}"))
}

/// A time element, Unix seconds. The script formats it in local time; without JavaScript it shows UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Moment {
    /// ISO 8601.
    iso: String,
    /// Text without JavaScript.
    text: String,
    /// Format used by the script.
    style: MomentStyle,
}

/// Format of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MomentStyle {
    /// `4 min ago`
    Ago,
    /// `3 m 20 s`: the time elapsed since.
    Since,
    /// `12:04:05`, with the date if it is not today.
    Clock,
}

impl Moment {
    /// Returns the element for Unix seconds; `None` if out of range.
    pub(super) fn new(unix: f64, style: MomentStyle) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "a float far beyond the calendar gives None below")]
        let time: DateTime<Utc> = DateTime::from_timestamp(unix.floor() as i64, 0)?;
        Some(Self {
            iso: time.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            text: match style {
                MomentStyle::Clock => time.format("%H:%M:%S UTC").to_string(),
                MomentStyle::Ago | MomentStyle::Since => time.format("%-d %b %H:%M UTC").to_string(),
            },
            style,
        })
    }

    /// Writes the element.
    pub(super) fn write_html(&self, html: &mut String) {
        let style = match self.style {
            MomentStyle::Ago => "ago",
            MomentStyle::Since => "since",
            MomentStyle::Clock => "clock",
        };
        _ = write!(html, r#"<time datetime="{0}" title="{0}" data-{style}>{1}</time>"#, self.iso, self.text);
    }
}

/// Text with embedded times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sentence(Vec<Piece>);

/// Part of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Piece {
    Words { words: String },
    At { at: Moment },
}

impl Sentence {
    /// Returns a sentence of text only.
    pub(super) fn words(words: impl Into<String>) -> Self {
        Self::default().then(words)
    }

    /// Appends text.
    #[must_use]
    pub(super) fn then(mut self, words: impl Into<String>) -> Self {
        let words = words.into();
        if !words.is_empty() {
            self.0.push(Piece::Words { words });
        }
        self
    }

    /// Appends `before` and a time; nothing if the time is unknown.
    #[must_use]
    pub(super) fn at(mut self, before: &str, unix: Option<f64>, style: MomentStyle) -> Self {
        if let Some(at) = unix.and_then(|unix| Moment::new(unix, style)) {
            self = self.then(before);
            self.0.push(Piece::At { at });
        }
        self
    }

    /// Returns plain text, with times in UTC.
    #[cfg(test)]
    pub(super) fn plain(&self) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Words { words } => words.as_str(),
                Piece::At { at } => at.text.as_str(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_are_escaped() {
        assert_eq!(visible("a\nb\0\u{202e}c"), "a\\nb\\0\\u{202e}c");
        assert_eq!(visible(""), "(empty)");
    }

    #[test]
    fn long_names_are_shortened_in_the_middle() {
        let label = Label::from_text(&format!("{}{}z", "a".repeat(63), "b".repeat(4000)));
        assert_eq!(label.text.chars().count(), SHOWN);
        assert!(label.text.starts_with("aaa") && label.text.contains('…') && label.text.ends_with("bz"));
        assert_eq!(label.title.map(|t| t.chars().count()), Some(TITLE));
    }

    #[test]
    fn moment_without_script_shows_utc() {
        let mut html = String::new();
        Moment::new(1_795_456_871.5, MomentStyle::Clock).unwrap().write_html(&mut html);
        assert_eq!(
            html,
            r#"<time datetime="2026-11-23T18:01:11Z" title="2026-11-23T18:01:11Z" data-clock>18:01:11 UTC</time>"#
        );
        assert_eq!(Moment::new(f64::INFINITY, MomentStyle::Ago), None);
    }
}
