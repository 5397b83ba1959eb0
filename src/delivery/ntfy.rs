//! ntfy: push notifications to phones, published as JSON.

use reqwest::Url;
use serde_json::json;

use super::Deployment;
use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{cut, entries, joined, title};
use crate::alerting::message::{About, Message};
use crate::alerting::rule::Severity;
use crate::settings::ChannelValues;

/// ntfy makes an attachment of a text beyond 4,096 bytes; a UTF-16 unit is at most three bytes.
const TEXT: usize = 1300;
const TITLE: usize = 250;
const LINE: usize = 400;

/// The channel.
#[derive(Debug)]
pub(super) struct Ntfy {
    /// URL of the server.
    url: String,
    topic: String,
    token: String,
}

impl Ntfy {
    pub(super) fn new(values: &ChannelValues) -> Result<Self, String> {
        let malformed = || "NTFY_URL: expected the URL of a topic, such as https://ntfy.sh/topic".to_owned();
        let mut url = Url::parse(values.get("NTFY_URL")).map_err(|_| malformed())?;
        let path = url.path().trim_end_matches('/').to_owned();
        let (base, topic) = path.rsplit_once('/').filter(|(_, topic)| !topic.is_empty()).ok_or_else(malformed)?;
        url.set_path(base);
        url.set_query(None);
        Ok(Self { url: url.to_string(), topic: topic.to_owned(), token: values.get("NTFY_TOKEN").to_owned() })
    }
}

impl Channel for Ntfy {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        let (priority, tag) = match (message.about, message.severity) {
            (About::Resolved, _) => (3, "white_check_mark"),
            (About::Test, _) => (3, "wrench"),
            (_, Severity::Critical) => (5, "rotating_light"),
            (_, Severity::Warning) => (4, "warning"),
            (_, Severity::Info) => (3, "information_source"),
        };
        let entries = entries(message, from);
        let page = entries.first().filter(|_| entries.len() == 1).and_then(|only| only.page.clone());
        let line = |entry: &super::text::Entry| cut(&format!("{}: {} ({})", entry.name, entry.text, entry.time), LINE);
        let lines: Vec<String> = entries.iter().map(line).collect();
        let title = cut(&title(message, from), TITLE);
        // ntfy shows "triggered" in place of an empty text.
        let text = if lines.is_empty() { title.clone() } else { joined(&lines, message.more, TEXT) };
        let body = json!({
            "topic": self.topic,
            "title": title,
            "message": text,
            "priority": priority,
            "tags": [tag],
            "click": page.or_else(|| from.alerts_page()).unwrap_or_default(),
        });
        let request = Request::json(&self.url, &body).keeping(&self.token);
        let authorization = (!self.token.is_empty()).then(|| format!("Bearer {}", self.token));
        vec![Request { authorization, ..request }]
    }
}
