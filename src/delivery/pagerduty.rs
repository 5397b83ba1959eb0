//! PagerDuty, Events API v2: one event per alert, so that each incident resolves with its alert.

use serde_json::{Map, Value, json};

use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{cut, title, without_nulls};
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

    fn event(&self, action: &str, key: &str, mut event: Map<String, Value>, from: &Deployment) -> Request {
        event.insert("routing_key".to_owned(), json!(self.key));
        event.insert("event_action".to_owned(), json!(action));
        // Two deployments may have the same alert.
        let dedup_key = fingerprint(&format!("{}\n{key}", from.name().unwrap_or_default()));
        event.insert("dedup_key".to_owned(), json!(format!("shepherd-monitor/{dedup_key}")));
        Request::json(&self.url, &without_nulls(Value::Object(event))).keeping(&self.key)
    }

    fn trigger(&self, key: &str, message: &Message, from: &Deployment) -> Request {
        let line = message.alerts.iter().find(|line| line.key == key);
        let event = [
            ("payload", payload(key, message, line, from)),
            ("client", json!("shepherd-monitor")),
            ("client_url", json!(from.alerts_page())),
            ("links", json!(line.map(|line| links(line, from)).unwrap_or_default())),
        ];
        self.event("trigger", key, event.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(), from)
    }

    fn resolve(&self, key: &str, from: &Deployment) -> Request {
        self.event("resolve", key, Map::new(), from)
    }
}

impl Channel for PagerDuty {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        match message.about {
            About::Test => vec![self.trigger(&message.id, message, from), self.resolve(&message.id, from)],
            About::Resolved => message.keys.iter().map(|key| self.resolve(key, from)).collect(),
            About::Firing | About::StillFiring => {
                message.keys.iter().map(|key| self.trigger(key, message, from)).collect()
            }
        }
    }
}

fn payload(key: &str, message: &Message, line: Option<&Line>, from: &Deployment) -> Value {
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
        "custom_details": {
            "alert": key,
            "detail": line.map(|line| &line.detail),
            "value": line.and_then(|line| line.value),
            "labels": line.map(|line| &line.labels),
            "annotations": line.map(|line| &line.annotations),
        },
    })
}

fn links(line: &Line, from: &Deployment) -> Vec<Value> {
    let runbook = line.annotations.get("runbook_url").map(|url| json!({"href": url, "text": "Runbook"}));
    let page = from.page_of(line).map(|url| json!({"href": url, "text": "Page in the monitor"}));
    page.into_iter().chain(runbook).collect()
}
