//! Ways to tell somebody: a message in, what became of it out.
//!
//! [`channels`] says which there are and picks one by name; [`slack`], [`email`] and [`webhook`]
//! word a message for their reader, with a [`sketch`] where it can be shown, and send it. None of them tries again by itself: [`Outcome`]
//! says whether and when that can help.

pub mod channels;
pub mod email;
mod http;
pub mod sketch;
pub mod slack;
#[cfg(test)]
mod tests;
pub mod webhook;

use std::time::Duration;

use crate::alerting::message::Line;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken, and what was answered.
    Sent(String),
    /// Not now; perhaps later.
    TryAgainAfter {
        /// How long the channel wants to be left alone, for this and every other message.
        channel_rests: Option<Duration>,
        /// At least so long for this message.
        at_least: Duration,
        /// What was answered.
        why: String,
    },
    /// This message will never be taken.
    Never(String),
    /// The channel takes nothing any more until somebody mends it.
    ChannelBroken(String),
}

/// Which deployment speaks, shown in every message.
#[derive(Debug, Clone, Default)]
pub struct Deployment {
    /// `SERVER_MATURITY`.
    pub maturity: Option<String>,
    /// `SERVER_URL`.
    pub url: Option<String>,
}

impl Deployment {
    /// `production`, the address, or nothing.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.maturity.as_deref().or(self.url.as_deref())
    }

    /// Where people read on about an alert: `{SERVER_URL}/streams/{name}`, or the page of all alerts
    /// when it is about no stream or worker type.
    #[must_use]
    pub fn page_of(&self, line: &Line) -> Option<String> {
        let url = self.url.as_deref()?.trim_end_matches('/');
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return None;
        }
        let Some(subject) = line.subject.as_deref().filter(|_| !line.of_source) else {
            return Some(format!("{url}/alerts"));
        };
        let mut page = format!("{url}/streams/");
        for byte in subject.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                page.push(char::from(byte));
            } else {
                page.push_str(&format!("%{byte:02X}"));
            }
        }
        Some(page)
    }
}

/// `text` without characters that hide, reverse or end a line.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The first `max` characters, with a mark where more was.
fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// A moment in UTC, for people: `24 Nov 18:01:11 UTC`.
fn moment(unix: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a date's seconds")]
    let time = chrono::DateTime::from_timestamp(unix as i64, 0).unwrap_or_default();
    time.format("%-d %b %H:%M:%S UTC").to_string()
}
