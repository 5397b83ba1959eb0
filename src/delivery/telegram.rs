//! Telegram: a bot writes to a chat.

use serde_json::json;

use super::Deployment;
use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{cut, entries, joined, symbol, title};
use crate::alerting::message::Message;
use crate::settings::ChannelValues;

/// Telegram accepts 4,096 characters without markup and escapes; these are with them.
const WHOLE: usize = 4000;
const TITLE: usize = 500;
const NAME: usize = 200;
const TEXT: usize = 700;

/// The channel.
pub(super) struct Telegram {
    url: String,
    token: String,
    chat: String,
}

impl Telegram {
    pub(super) fn new(values: &ChannelValues) -> Self {
        let token = values.get("TELEGRAM_BOT_TOKEN").to_owned();
        let base = values.get("TELEGRAM_URL").trim_end_matches('/');
        let chat = values.get("TELEGRAM_CHAT_ID").to_owned();
        Self { url: format!("{base}/bot{token}/sendMessage"), token, chat }
    }
}

impl Channel for Telegram {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        let line = |entry: super::text::Entry| {
            let name = escaped(&cut(&entry.name, NAME));
            let name = match entry.page {
                Some(page) => format!("<a href=\"{}\">{name}</a>", escaped(&page)),
                None => format!("<b>{name}</b>"),
            };
            format!("• {name}: {} <i>({})</i>", escaped(&cut(&entry.text, TEXT)), entry.time)
        };
        let lines: Vec<String> = entries(message, from).into_iter().map(line).collect();
        let headline = format!("{} <b>{}</b>", symbol(message), escaped(&cut(&title(message, from), TITLE)));
        let rest = WHOLE.saturating_sub(super::text::length(&headline) + 1);
        let listed = joined(&lines, message.more, rest);
        let text = if listed.is_empty() { headline } else { format!("{headline}\n{listed}") };
        let body = json!({
            "chat_id": self.chat,
            "text": text,
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": true},
        });
        vec![Request::json(&self.url, &body).keeping(&self.token)]
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
