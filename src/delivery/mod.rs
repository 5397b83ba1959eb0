//! Delivery of notifications: sends a message and reports the outcome.
//!
//! [`channels`] makes the configured channels and selects one by name. Each service has a module that makes requests of a
//! message, with a [`sparkline`] if the service can show one; [`email`] makes and sends mails. `http` sends requests;
//! it and `smtp_reply` interpret responses. No channel retries by itself: [`Outcome`] says whether and when to retry.
//! [`outside_check`] calls an outside check.

pub mod channels;
mod discord;
pub mod email;
mod http;
mod ntfy;
mod opsgenie;
pub mod outside_check;
mod pagerduty;
#[cfg(test)]
mod services_tests;
pub mod slack;
mod smtp_reply;
pub mod sparkline;
mod teams;
mod telegram;
mod template;
#[cfg(test)]
mod tests;
mod text;
pub mod webhook;

use std::time::Duration;

use crate::alerting::message::Line;
use crate::printable::{shortened, visible};

/// Outcome of sending a message. Only [`Outcome::Sent`] and [`Outcome::Never`] are final: without proof that the
/// message is the problem, it stays queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The channel accepted it; its reply.
    Sent(String),
    /// Temporarily rejected.
    TryAgainAfter {
        /// Pause that the channel requests for all messages.
        channel_rests: Option<Duration>,
        /// Minimum pause for this message.
        at_least: Duration,
        /// The reply.
        why: String,
    },
    /// The channel is unreachable or failed internally; the message itself may be valid.
    ChannelFailed {
        /// Minimum pause until the next attempt.
        at_least: Duration,
        /// The cause.
        why: String,
    },
    /// Rejected; the reply does not show whether this message or every message is rejected.
    Refused(String),
    /// The reply proves that this message or its recipient will never be accepted.
    Never(String),
    /// The channel rejects all messages until its settings or the service change.
    ChannelBroken(String),
}

impl Outcome {
    /// The reply, or the cause of the failure.
    #[must_use]
    pub fn answer(&self) -> &str {
        match self {
            Self::Sent(said) | Self::Refused(said) | Self::Never(said) | Self::ChannelBroken(said) => said,
            Self::TryAgainAfter { why, .. } | Self::ChannelFailed { why, .. } => why,
        }
    }
}

/// Identification of the deployment, shown in every notification.
#[derive(Debug, Clone, Default)]
pub struct Deployment {
    /// `SERVER_MATURITY`.
    pub maturity: Option<String>,
    /// `SERVER_URL`.
    pub url: Option<String>,
}

impl Deployment {
    /// Name: the environment, else the URL.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.maturity.as_deref().or(self.url.as_deref())
    }

    /// URL of the alerts page.
    #[must_use]
    pub fn alerts_page(&self) -> Option<String> {
        let url = self.url.as_deref()?.trim_end_matches('/');
        (url.starts_with("http://") || url.starts_with("https://")).then(|| format!("{url}/alerts"))
    }

    /// URL of the page about an alert's subject: `{SERVER_URL}/streams/{name}`, or the alerts page if it is not about
    /// a stream or worker type.
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

/// Time in UTC, for people: `24 Nov 18:01:11 UTC`.
fn moment(unix: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a date's seconds")]
    let time = chrono::DateTime::from_timestamp(unix as i64, 0).unwrap_or_default();
    time.format("%-d %b %H:%M:%S UTC").to_string()
}
