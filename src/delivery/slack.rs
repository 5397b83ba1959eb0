//! Slack's incoming webhooks: blocks with a plain-text fallback, within Slack's limits.

use reqwest::Client;
use serde_json::{Value, json};

use super::sketch::{Sketch, Sketches};
use super::{Deployment, Outcome, http, moment, shortened, visible};
use crate::alerting::message::{About, Line, Message, span};
use crate::alerting::rule::Severity;
use crate::settings::Secret;

/// Slack takes 3000 characters in a section and 50 blocks in a message.
const SECTION: usize = 2900;
const SECTIONS: usize = 40;
/// Longest text of one alert, escaped: with its name it fits into a section.
const LINE: usize = 1900;

/// Sends a message.
pub async fn send(client: &Client, url: &Secret, message: &Message, sketches: &Sketches, from: &Deployment) -> Outcome {
    http::post(client, url.reveal(), &payload(message, sketches, from)).await
}

/// The JSON that Slack is sent.
#[must_use]
pub fn payload(message: &Message, sketches: &Sketches, from: &Deployment) -> Value {
    let (emoji, colour) = match (message.about, message.severity) {
        (About::Resolved, _) => (":white_check_mark:", "#1b7a48"),
        (About::Test, _) => (":wrench:", "#1f5fbf"),
        (_, Severity::Critical) => (":rotating_light:", "#bd2226"),
        (_, Severity::Warning) => (":warning:", "#c07a00"),
        (_, Severity::Info) => (":information_source:", "#1f5fbf"),
    };
    let title = escaped(&shortened(&visible(&message.title), 240));
    let environment = from.name().map(|name| format!("[{}] ", escaped(&visible(name)))).unwrap_or_default();
    let mut sections = vec![String::new()];
    for line in &message.alerts {
        let text = worded(line, message.about, sketches.get(&line.key), from);
        let full = sections.last().is_some_and(|last| last.len() + text.len() + 1 > SECTION);
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
    let mut blocks = vec![section(&format!("{emoji} *{environment}{title}*"))];
    blocks.extend(sections.iter().filter(|text| !text.is_empty()).map(|text| section(text)));
    if message.more > 0 {
        blocks.push(section(&format!("and {} more", message.more)));
    } else if left_out > 0 {
        blocks.push(section("and more; see the Alerts page"));
    }
    let key: String = message.id.chars().take(8).collect();
    let place = from.url.as_deref().map(|url| format!("{} · ", escaped(&visible(url)))).unwrap_or_default();
    blocks.push(json!({
        "type": "context",
        "elements": [{"type": "mrkdwn", "text": format!("{place}{} · ref {key}", moment(message.at))}],
    }));
    let detail = message
        .alerts
        .first()
        .filter(|_| message.alerts.len() == 1 && message.about.is_firing())
        .map(|line| &line.message);
    let detail = detail.filter(|text| **text != message.title);
    let detail = detail.map(|text| format!(" - {}", escaped(&shortened(&visible(text), LINE)))).unwrap_or_default();
    json!({
        "text": format!("{emoji} {environment}{title}{detail}"),
        "attachments": [{"color": colour, "blocks": blocks}],
    })
}

fn worded(line: &Line, about: About, sketch: Option<&Sketch>, from: &Deployment) -> String {
    let text = escaped_within(&visible(&line.message), LINE);
    let since = match (about, line.ended) {
        (About::Resolved, Some(ended)) => format!("duration {}", span(ended - line.since)),
        _ => format!("since {}", moment(line.since)),
    };
    let name = line.subject.as_deref().unwrap_or(&line.rule);
    let shown = escaped(&shortened(&visible(name), 120));
    let name = match from.page_of(line) {
        Some(page) => format!("<{page}|{}>", shown.replace('|', "¦")),
        None => format!("*{shown}*"),
    };
    let drawn = sketch.and_then(Sketch::blocks).map(|blocks| format!("\n    {blocks}")).unwrap_or_default();
    format!("• {name}: {text} _({since})_{drawn}")
}

fn section(text: &str) -> Value {
    json!({"type": "section", "text": {"type": "mrkdwn", "text": text}})
}

/// The beginning of `text`, escaped, in at most `most` characters; a mark where more was.
fn escaped_within(text: &str, most: usize) -> String {
    let (mut shown, mut length) = (String::new(), 0);
    for character in text.chars() {
        let piece = escaped(character.encode_utf8(&mut [0; 4]));
        length += piece.chars().count();
        if length >= most {
            shown.push('…');
            break;
        }
        shown.push_str(&piece);
    }
    shown
}

/// Slack reads `<!channel>`, `<@user>` and `<link>`; nothing else pings anybody.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
