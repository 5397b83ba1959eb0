//! Discord webhooks: an embed, and the title as the text of the push notification.

use serde_json::json;

use super::Deployment;
use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{colour, cut, entries, joined, symbol, title};
use super::webhook::time;
use crate::alerting::message::Message;
use crate::settings::ChannelValues;

/// Maximum lengths: Discord accepts 2,000 characters of content and 4,096 of a description.
const CONTENT: usize = 1900;
const DESCRIPTION: usize = 4000;
const NAME: usize = 200;
const TEXT: usize = 800;
const LINK: usize = 800;

/// The channel.
pub(super) struct Discord {
    url: String,
}

impl Discord {
    pub(super) fn new(values: &ChannelValues) -> Self {
        Self { url: values.get("DISCORD_WEBHOOK_URL").to_owned() }
    }
}

impl Channel for Discord {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        let line = |entry: super::text::Entry| {
            let name = plain(&cut(&entry.name, NAME));
            let name = match entry.page.filter(|page| page.len() <= LINK) {
                Some(page) => format!("[{name}](<{page}>)"),
                None => format!("**{name}**"),
            };
            format!("• {name}: {} ({})", plain(&cut(&entry.text, TEXT)), entry.time)
        };
        let lines: Vec<String> = entries(message, from).into_iter().map(line).collect();
        let content = format!("{} {}", symbol(message), plain(&title(message, from)));
        // Names in a fleet mention no one.
        let embed = (!lines.is_empty()).then(|| {
            json!({
                "description": joined(&lines, message.more, DESCRIPTION),
                "color": colour(message),
                "url": from.alerts_page(),
                "timestamp": time(message.at),
            })
        });
        let body = json!({
            "content": cut(&content, CONTENT),
            "embeds": embed.as_slice(),
            "allowed_mentions": {"parse": []},
        });
        vec![Request::json(&self.url, &body)]
    }
}

/// Escapes Markdown.
fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "\\*_~`|>#[]()<@".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
