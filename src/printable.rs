//! Untrusted text in terminals and logs: names, reasons and errors must not move the cursor, change colours, reorder
//! text or forge lines.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Returns whether `c` must not be displayed unescaped: a control character (C0, DEL, C1), a line separator, or an
/// invisible character that changes the direction of text or hides other text.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Replaces control, invisible and bidirectional characters.
#[must_use]
pub fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if is_hidden(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Untrusted text for a message: on one line, at most `max` characters.
#[must_use]
pub fn excerpt(text: &str, max: usize) -> String {
    shortened(&visible(text), max)
}

/// The first `max` characters, with an ellipsis if truncated.
#[must_use]
pub fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// Formats a value on one line, with hidden characters escaped as in Rust literals: `\n`, `\u{1b}`.
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

impl<T: fmt::Debug> fmt::Debug for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{:?}", self.0)
    }
}

/// Escapes what is written to it.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_hidden) {
            let (plain, after) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = after.chars();
            for c in chars.next().into_iter().flat_map(char::escape_default) {
                self.0.write_char(c)?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Escapes hidden characters of serialized JSON, except white space between tokens. The result is equivalent JSON.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    let raw = |c: char| is_hidden(c) && !matches!(c, '\n' | '\r' | '\t');
    if !document.contains(raw) {
        return Cow::Borrowed(document);
    }
    let mut escaped = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        if raw(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Text of several lines. No value in a line can add or forge one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines(String);

impl Lines {
    /// Appends one line, escaped.
    pub fn add(&mut self, line: impl fmt::Display) {
        _ = writeln!(self.0, "{}", Escaped(line));
    }

    /// Appends other lines.
    pub fn append(&mut self, lines: &Self) {
        self.0.push_str(&lines.0);
    }

    /// The text; each line ends with a line feed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOSTILE: &str =
        "a\x1b[2J\n\r\t\0\x07\x08\x7f\u{9b}31m\u{85}\u{202e}\u{2066}\u{2028}\u{2029}\u{feff}\u{e0041}é";

    #[test]
    fn hidden_characters_are_escaped_on_one_line() {
        let shown = Escaped(HOSTILE).to_string();
        assert!(!shown.contains(is_hidden), "{shown:?}");
        assert_eq!(
            shown,
            "a\\u{1b}[2J\\n\\r\\t\\u{0}\\u{7}\\u{8}\\u{7f}\\u{9b}31m\\u{85}\\u{202e}\\u{2066}\\u{2028}\\u{2029}\
             \\u{feff}\\u{e0041}é"
        );
        assert_eq!(format!("{:?}", Escaped(format_args!("{HOSTILE}"))), shown, "a value displayed by its Debug");
        assert_eq!(Escaped("plain ü 漢 🐑 \\n").to_string(), "plain ü 漢 🐑 \\n");
    }

    #[test]
    fn value_cannot_add_a_line() {
        let mut lines = Lines::default();
        lines.add(format_args!("stream {HOSTILE}"));
        lines.add("");
        assert_eq!(lines.as_str().matches('\n').count(), 2);
        assert!(!lines.as_str().replace('\n', "").contains(is_hidden));
    }

    proptest! {
        #[test]
        fn escaped_json_is_equivalent(text in any::<String>(), pretty in any::<bool>()) {
            let value = serde_json::json!({"key": text.clone() + HOSTILE, text: [1]});
            let document = if pretty { format!("{value:#}") } else { value.to_string() };
            let escaped = json(&document);
            prop_assert!(!escaped.replace('\n', "").contains(is_hidden));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
