//! PagerDuty, Events API v2: one event per alert, so that each incident resolves with its alert.

use serde_json::{Value, json};

use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{cut, title};
use super::webhook::{fingerprint, time};
use super::{Deployment, visible};
use crate::alerting::message::{About, Line, Message};
use crate::alerting::rule::Severity;
use crate::settings::ChannelValues;

/// Maximum length of a summary, characters.
const SUMMARY: usize = 1024;

/// The channel.
pub(super) struct PagerDuty {
    url: String,
    key: String,
}

impl PagerDuty {
    pub(super) fn new(values: &ChannelValues) -> Self {
        Self { url: values.get("PAGERDUTY_URL").to_owned(), key: values.get("PAGERDUTY_ROUTING_KEY").to_owned() }
    }

    fn event(&self, action: &str, key: &str, payload: Option<Value>, from: &Deployment) -> Request {
        let mut event = json!({
            "routing_key": self.key,
            "event_action": action,
            // Two deployments may have the same alert.
            "dedup_key": format!("shepherd-monitor/{}", fingerprint(&format!("{}\n{key}", from.name().unwrap_or_default()))),
        });
        if let Some(payload) = payload {
            event["payload"] = payload;
            event["client"] = json!("shepherd-monitor");
            event["client_url"] = json!(from.alerts_page());
        }
        Request::json(&self.url, &event).keeping(&self.key)
    }
}

impl Channel for PagerDuty {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        if message.about == About::Test {
            let trigger = self.event("trigger", &message.id, Some(payload(message, None, from)), from);
            return vec![trigger, self.event("resolve", &message.id, None, from)];
        }
        let events = message.keys.iter().map(|key| {
            if message.about == About::Resolved {
                return self.event("resolve", key, None, from);
            }
            let line = message.alerts.iter().find(|line| line.key == *key);
            let mut event = payload(message, line, from);
            if line.is_none() {
                event["custom_details"] = json!({"alert": key});
            }
            let mut request = self.event("trigger", key, Some(event), from);
            if let Some(links) = line.map(|line| links(line, from)).filter(|links| !links.is_empty()) {
                let mut body: Value = serde_json::from_str(&request.body).unwrap_or_default();
                body["links"] = json!(links);
                request.body = body.to_string();
            }
            request
        });
        events.collect()
    }
}

fn payload(message: &Message, line: Option<&Line>, from: &Deployment) -> Value {
    let environment = from.name().map(|name| format!("[{}] ", visible(name))).unwrap_or_default();
    let summary = match line {
        Some(line) => format!("{environment}{}", visible(&line.message)),
        None => title(message, from),
    };
    let severity = match line.map_or(message.severity, |line| line.severity) {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    json!({
        "summary": cut(&summary, SUMMARY),
        "source": from.url.as_deref().unwrap_or("shepherd-monitor"),
        "severity": severity,
        "timestamp": time(line.map_or(message.at, |line| line.since)),
        "component": line.and_then(|line| line.subject.as_deref()),
        "class": line.map(|line| &line.rule),
        "custom_details": line.map(|line| json!({
            "detail": line.detail,
            "value": line.value,
            "labels": line.labels,
            "annotations": line.annotations,
        })),
    })
}

fn links(line: &Line, from: &Deployment) -> Vec<Value> {
    let runbook = line.annotations.get("runbook_url").map(|url| json!({"href": url, "text": "Runbook"}));
    let page = from.page_of(line).map(|url| json!({"href": url, "text": "Page in the monitor"}));
    page.into_iter().chain(runbook).collect()
}
