//! Ways to tell somebody: a message in, what became of it out.
//!
//! [`channels`] says which there are and picks one by name; [`slack`], [`email`] and [`webhook`]
//! word a message for their reader, with a [`sketch`] where it can be shown, and send it. What an answer means is decided in
//! `http` and `smtp_reply`: none of them tries again by itself, [`Outcome`] says whether and when that can help.

pub mod channels;
pub mod email;
mod http;
pub mod sketch;
pub mod slack;
mod smtp_reply;
#[cfg(test)]
mod tests;
pub mod webhook;

use std::error::Error;
use std::time::Duration;

use crate::alerting::message::Line;
use crate::tls::{self, TlsSettings};

/// What became of a message. Only [`Outcome::Never`] is final beside [`Outcome::Sent`]: an answer that does not prove that
/// this message is the problem leaves it waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The channel accepted it, and what it answered.
    Sent(String),
    /// Not now; perhaps later.
    TryAgainAfter {
        /// How long the channel asks to be left without requests, for this and every other message.
        channel_rests: Option<Duration>,
        /// At least so long for this message.
        at_least: Duration,
        /// What was answered.
        why: String,
    },
    /// The channel cannot be reached, or failed by itself: nothing is known about the message.
    ChannelFailed {
        /// At least so long until the next attempt.
        at_least: Duration,
        /// What happened.
        why: String,
    },
    /// Refused, and the answer does not say whether it refuses this message or every message.
    Refused(String),
    /// The answer proves that this message, or its recipient, will never be accepted.
    Never(String),
    /// The channel accepts nothing until its settings, or the service, are changed.
    ChannelBroken(String),
}

impl Outcome {
    /// What the channel answered, or what happened.
    #[must_use]
    pub fn answer(&self) -> &str {
        match self {
            Self::Sent(said) | Self::Refused(said) | Self::Never(said) | Self::ChannelBroken(said) => said,
            Self::TryAgainAfter { why, .. } | Self::ChannelFailed { why, .. } => why,
        }
    }
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

    /// The page of all alerts.
    #[must_use]
    pub fn alerts_page(&self) -> Option<String> {
        let url = self.url.as_deref()?.trim_end_matches('/');
        (url.starts_with("http://") || url.starts_with("https://")).then(|| format!("{url}/alerts"))
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
            return self.alerts_page();
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

/// `error` and what caused it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = match error.downcast_ref::<std::io::Error>() {
            // The source of such an error is not what it wraps, but the source of that.
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
        Some(error)
    })
}

/// Why TLS failed, if that is what happened, and what to do: it fails again until a certificate or a setting is changed.
fn tls_error(error: &(dyn Error + 'static), settings: &TlsSettings) -> Option<String> {
    let of_tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()).map(ToString::to_string);
    let said = of_tls.clone().unwrap_or_else(|| root_cause(error));
    match tls::explain(&said, settings) {
        Some(failure) => Some(failure.append_to("TLS failed")),
        None => of_tls.map(|said| format!("TLS failed: {said}")),
    }
}

/// The innermost cause, in one line.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(|cause| shortened(&visible(&cause.to_string()), 120)).unwrap_or_default()
}

/// A moment in UTC, for people: `24 Nov 18:01:11 UTC`.
fn moment(unix: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a date's seconds")]
    let time = chrono::DateTime::from_timestamp(unix as i64, 0).unwrap_or_default();
    time.format("%-d %b %H:%M:%S UTC").to_string()
}
