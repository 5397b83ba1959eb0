//! A notification as plain parts, for services that show text, and cutting of texts to a service's limits.

use serde_json::Value;

use super::{Deployment, moment, visible};
use crate::alerting::message::{About, Message, span};
use crate::alerting::rule::Severity;

/// Severity or outcome, as a symbol.
pub(super) fn symbol(message: &Message) -> &'static str {
    match (message.about, message.severity) {
        (About::Resolved, _) => "✅",
        (About::Test, _) => "🔧",
        (_, Severity::Critical) => "🚨",
        (_, Severity::Warning) => "⚠️",
        (_, Severity::Info) => "ℹ️",
    }
}

/// Severity or outcome, as a colour (`0xRRGGBB`).
pub(super) fn colour(message: &Message) -> u32 {
    match (message.about, message.severity) {
        (About::Resolved, _) => 0x1b_7a48,
        (_, Severity::Critical) => 0xbd_2226,
        (_, Severity::Warning) => 0xc0_7a00,
        (About::Test, _) | (_, Severity::Info) => 0x1f_5fbf,
    }
}

/// The title with the environment.
pub(super) fn title(message: &Message, from: &Deployment) -> String {
    let environment = from.name().map(|name| format!("[{}] ", visible(name))).unwrap_or_default();
    format!("{environment}{}", visible(&message.title))
}

/// One alert of a notification.
pub(super) struct Entry {
    /// Stream, worker type or rule.
    pub name: String,
    /// URL of its page.
    pub page: Option<String>,
    /// What happened.
    pub text: String,
    /// Since when, or how long it lasted.
    pub time: String,
}

/// The listed alerts.
pub(super) fn entries(message: &Message, from: &Deployment) -> Vec<Entry> {
    let entry = |line: &crate::alerting::message::Line| Entry {
        name: visible(line.subject.as_deref().unwrap_or(&line.rule)),
        page: from.page_of(line),
        text: visible(&line.message),
        time: match (message.about, line.ended) {
            (About::Resolved, Some(ended)) => format!("duration {}", span(ended - line.since)),
            _ => format!("since {}", moment(line.since)),
        },
    };
    message.alerts.iter().map(entry).collect()
}

/// Joins `lines`, as many as fit into `most` UTF-16 units, and the number of those left out, `more` included.
pub(super) fn joined(lines: &[String], more: usize, most: usize) -> String {
    let rest = |shown: usize| match lines.len() - shown + more {
        0 => String::new(),
        left => format!("\nand {left} more"),
    };
    let (mut text, mut shown) = (String::new(), 0);
    for line in lines {
        if length(&text) + 1 + length(line) + length(&rest(shown)) > most {
            break;
        }
        if shown > 0 {
            text.push('\n');
        }
        text.push_str(line);
        shown += 1;
    }
    text.push_str(&rest(shown));
    text
}

/// `value` without fields that are null, which an API may not accept in place of a text.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, v)| (name, without_nulls(v))).collect()
        }
        other => other,
    }
}

/// `text`, cut to `most` UTF-16 units, with an ellipsis if it was cut.
pub(super) fn cut(text: &str, most: usize) -> String {
    if length(text) <= most {
        return text.to_owned();
    }
    let mut used = 1;
    let kept = text.chars().take_while(|character| {
        used += character.len_utf16();
        used <= most
    });
    kept.collect::<String>() + "…"
}

/// Length in UTF-16 units, as most services count it; never less than the number of characters.
pub(super) fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_and_say_what_is_left_out() {
        assert_eq!((cut("abc", 3).as_str(), cut("abcd", 3).as_str(), cut("😀😀", 3).as_str()), ("abc", "ab…", "😀…"));
        let lines: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        let text = joined(&lines, 7, 60);
        assert!(length(&text) <= 60 && text.ends_with(" more"), "{text}");
        assert_eq!(joined(&lines[..2], 0, 60), "line 0\nline 1");
        assert_eq!(joined(&["x".repeat(80)], 0, 60), "\nand 1 more");
    }
}
