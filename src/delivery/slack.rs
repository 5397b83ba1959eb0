//! Slack incoming webhooks: blocks with a plain-text fallback, within Slack's limits.

use serde_json::{Value, json};

use super::channels::Channel;
use super::http::Request;
use super::sparkline::{Sketch, Sketches};
use super::{Deployment, moment, shortened, visible};
use crate::alerting::message::{About, Line, Message, span};
use crate::alerting::rule::Severity;
use crate::settings::ChannelValues;

/// Maximum length of a section's text: in UTF-16 units, after escaping.
const SECTION: usize = 3000;
/// Maximum number of blocks with alerts; Slack accepts 50 blocks per message.
const SECTIONS: usize = 40;
/// Maximum lengths of the parts, after escaping. Together they fit into one section.
const TITLE: usize = 900;
const ENVIRONMENT: usize = 150;
const NAME: usize = 240;
const LINK: usize = 1000;
const DRAWN: usize = 200;
const LINE: usize = 1400;
/// Maximum length of the names in the plain text.
const NAMES: usize = 1200;

/// The channel. If Slack rejects the blocks, it gets the plain text instead.
pub(super) struct Slack {
    url: String,
}

impl Slack {
    pub(super) fn new(values: &ChannelValues) -> Self {
        Self { url: values.get("SLACK_WEBHOOK_URL").to_owned() }
    }
}

impl Channel for Slack {
    fn requests(&self, message: &Message, sketches: &Sketches, from: &Deployment) -> Vec<Request> {
        vec![Request::json(&self.url, &payload(message, sketches, from))]
    }

    fn simpler(&self, message: &Message, from: &Deployment) -> Option<Request> {
        Some(Request::json(&self.url, &json!({"text": summary(message, from)})))
    }
}

/// JSON payload for Slack.
#[must_use]
pub fn payload(message: &Message, sketches: &Sketches, from: &Deployment) -> Value {
    let colour = match (message.about, message.severity) {
        (About::Resolved, _) => "#1b7a48",
        (About::Test, _) => "#1f5fbf",
        (_, Severity::Critical) => "#bd2226",
        (_, Severity::Warning) => "#c07a00",
        (_, Severity::Info) => "#1f5fbf",
    };
    let mut sections = vec![String::new()];
    for line in &message.alerts {
        let text = worded(line, message.about, sketches.get(&line.key), from);
        let full = sections.last().is_some_and(|last| length(last) + length(&text) + 1 > SECTION);
        if full {
            sections.push(String::new());
        }
        if let Some(last) = sections.last_mut() {
            if !last.is_empty() {
                last.push('\n');
            }
            last.push_str(&text);
        }
    }
    let left_out = sections.len().saturating_sub(SECTIONS);
    sections.truncate(SECTIONS);
    let (emoji, environment, title) = headline(message, from);
    let mut blocks = vec![section(&format!("{emoji} *{environment}{title}*"))];
    blocks.extend(sections.iter().filter(|text| !text.is_empty()).map(|text| section(text)));
    if message.more > 0 {
        blocks.push(section(&format!("and {} more", message.more)));
    } else if left_out > 0 {
        blocks.push(section("and more; see the Alerts page"));
    }
    let key: String = message.id.chars().take(8).collect();
    let place =
        from.url.as_deref().map(|url| format!("{} · ", escaped_within(&visible(url), LINK))).unwrap_or_default();
    blocks.push(json!({
        "type": "context",
        "elements": [{"type": "mrkdwn", "text": format!("{place}{} · ref {key}", moment(message.at))}],
    }));
    let text = summary(message, from);
    json!({
        "text": text,
        "attachments": [{"color": colour, "fallback": text, "blocks": blocks}],
    })
}

fn headline(message: &Message, from: &Deployment) -> (&'static str, String, String) {
    let emoji = match (message.about, message.severity) {
        (About::Resolved, _) => ":white_check_mark:",
        (About::Test, _) => ":wrench:",
        (_, Severity::Critical) => ":rotating_light:",
        (_, Severity::Warning) => ":warning:",
        (_, Severity::Info) => ":information_source:",
    };
    let environment =
        from.name().map(|name| format!("[{}] ", escaped_within(&visible(name), ENVIRONMENT))).unwrap_or_default();
    (emoji, environment, escaped_within(&visible(&message.title), TITLE))
}

/// Plain text of the message: title and subjects. Slack uses it for push notifications; receivers without support for
/// blocks (Mattermost) show only this.
fn summary(message: &Message, from: &Deployment) -> String {
    let (emoji, environment, title) = headline(message, from);
    let detail = match message.alerts.as_slice() {
        [only] if message.about.is_firing() && only.message != message.title => {
            format!(" - {}", escaped_within(&visible(&only.message), LINE))
        }
        [_, _, ..] => format!(": {}", names(message)),
        _ => String::new(),
    };
    format!("{emoji} {environment}{title}{detail}")
}

/// Names of the alerts, as many as fit.
fn names(message: &Message) -> String {
    let one_rule = message.alerts.windows(2).all(|pair| matches!(pair, [a, b] if a.rule == b.rule));
    let down = message.alerts.iter().all(|line| line.rule.starts_with("worker_"));
    let mut all: Vec<&str> = Vec::new();
    for line in &message.alerts {
        let name = line.subject.as_deref().filter(|_| one_rule || down).unwrap_or(&line.key);
        if !all.contains(&name) {
            all.push(name);
        }
    }
    let (mut shown, mut count) = (String::new(), 0);
    for name in &all {
        let name = escaped_within(&visible(name), NAME);
        let comma = if shown.is_empty() { "" } else { ", " };
        if length(&shown) + length(&name) > NAMES {
            break;
        }
        shown.push_str(comma);
        shown.push_str(&name);
        count += 1;
    }
    match all.len() - count + message.more {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn worded(line: &Line, about: About, sketch: Option<&Sketch>, from: &Deployment) -> String {
    let since = match (about, line.ended) {
        (About::Resolved, Some(ended)) => format!("duration {}", span(ended - line.since)),
        _ => format!("since {}", moment(line.since)),
    };
    let name = line.subject.as_deref().unwrap_or(&line.rule);
    let shown = escaped_within(&shortened(&visible(name), 120), NAME);
    let link = |page: String| Some(escaped(&page).replace('|', "%7C")).filter(|page| length(page) <= LINK);
    let page = from.page_of(line).and_then(link).or_else(|| from.alerts_page().and_then(link));
    let name = match page {
        Some(page) => format!("<{page}|{}>", shown.replace('|', "¦")),
        None => format!("*{shown}*"),
    };
    let drawn = sketch.and_then(Sketch::blocks).map(|blocks| format!("\n    {}", escaped_within(&blocks, DRAWN)));
    let text = escaped_within(&visible(&line.message), LINE);
    format!("• {name}: {text} _({since})_{}", drawn.unwrap_or_default())
}

fn section(text: &str) -> Value {
    json!({"type": "section", "text": {"type": "mrkdwn", "text": text}})
}

/// Length as Slack counts it (UTF-16 units).
pub(super) fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// `text`, escaped and truncated to `most` characters, with an ellipsis if truncated.
fn escaped_within(text: &str, most: usize) -> String {
    let (mut shown, mut used, mut cut_at) = (String::new(), 0, 0);
    for character in text.chars() {
        let piece = escaped(character.encode_utf8(&mut [0; 4]));
        used += length(&piece);
        if used > most {
            shown.truncate(cut_at);
            shown.push('…');
            break;
        }
        shown.push_str(&piece);
        if used < most {
            cut_at = shown.len();
        }
    }
    shown
}

/// Escapes `<!channel>`, `<@user>` and `<link>`, the only syntax that Slack interprets.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
