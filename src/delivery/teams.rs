//! Microsoft Teams: adaptive cards, which the workflow "When a Teams webhook request is received" posts.

use serde_json::{Value, json};

use super::Deployment;
use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{cut, entries, symbol, title};
use crate::alerting::message::{About, Message};
use crate::alerting::rule::Severity;
use crate::settings::ChannelValues;

/// Teams accepts messages of up to 28 KB. Together, these stay below it in any script.
const LISTED: usize = 15;
const TITLE: usize = 400;
const TEXT: usize = 300;
const NAME: usize = 80;
const LINK: usize = 300;

/// The channel.
pub(super) struct Teams {
    url: String,
}

impl Teams {
    pub(super) fn new(values: &ChannelValues) -> Self {
        Self { url: values.get("TEAMS_WEBHOOK_URL").to_owned() }
    }
}

impl Channel for Teams {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        let colour = match (message.about, message.severity) {
            (About::Resolved, _) => "Good",
            (About::Test, _) | (_, Severity::Info) => "Accent",
            (_, Severity::Critical) => "Attention",
            (_, Severity::Warning) => "Warning",
        };
        let headline = cut(&title(message, from), TITLE);
        let mut body = vec![json!({
            "type": "TextBlock", "text": format!("{} {}", symbol(message), plain(&headline)), "weight": "Bolder",
            "size": "Medium", "wrap": true, "color": colour,
        })];
        let entries = entries(message, from);
        body.extend(entries.iter().take(LISTED).map(|entry| {
            let name = plain(&cut(&entry.name, NAME));
            let name = match entry.page.as_ref().filter(|page| page.len() <= LINK) {
                Some(page) => format!("[{name}]({page})"),
                None => format!("**{name}**"),
            };
            let text = format!("{name}: {} ({})", plain(&cut(&entry.text, TEXT)), entry.time);
            json!({"type": "TextBlock", "text": text, "wrap": true, "spacing": "Small"})
        }));
        let more = entries.len().saturating_sub(LISTED) + message.more;
        if more > 0 {
            body.push(json!({"type": "TextBlock", "text": format!("and {more} more"), "wrap": true}));
        }
        let open = from.alerts_page().map(|url| json!({"type": "Action.OpenUrl", "title": "Alerts", "url": url}));
        let card = json!({
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "msteams": {"width": "Full"},
            "fallbackText": headline,
            "body": body,
            "actions": open.into_iter().collect::<Vec<Value>>(),
        });
        vec![Request::json(
            &self.url,
            &json!({
                "type": "message",
                "summary": headline,
                "attachments": [
                    {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": null, "content": card}
                ],
            }),
        )]
    }
}

/// Escapes the Markdown that cards interpret.
fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "\\*_[]()~`#".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
