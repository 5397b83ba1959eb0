//! Webhook in Alertmanager's format (payload version 4), compatible with its receivers.

use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use super::Deployment;
use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use crate::alerting::message::{About, Line, Message};
use crate::settings::ChannelValues;

/// The channel.
pub(super) struct Webhook {
    url: String,
}

impl Webhook {
    pub(super) fn new(values: &ChannelValues) -> Self {
        Self { url: values.get("ALERT_WEBHOOK_URL").to_owned() }
    }
}

impl Channel for Webhook {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        vec![Request::json(&self.url, &payload(message, from))]
    }
}

/// JSON payload.
#[must_use]
pub fn payload(message: &Message, from: &Deployment) -> Value {
    let over = message.about == About::Resolved;
    let alerts: Vec<Value> = message.alerts.iter().map(|line| alert(line, over, from)).collect();
    let rules: Vec<&str> = message.alerts.iter().map(|line| line.rule.as_str()).collect();
    let one_rule = rules.first().filter(|first| rules.iter().all(|rule| rule == *first));
    let mut common = Map::new();
    common.insert("severity".to_owned(), json!(message.severity));
    if let Some(rule) = one_rule {
        common.insert("alertname".to_owned(), json!(rule));
    }
    if let Some(maturity) = &from.maturity {
        common.insert("environment".to_owned(), json!(maturity));
    }
    json!({
        "version": "4",
        "groupKey": message.thread,
        "truncatedAlerts": message.more,
        "status": if over { "resolved" } else { "firing" },
        "receiver": "shepherd-monitor",
        "groupLabels": one_rule.map_or_else(|| json!({}), |rule| json!({"alertname": rule})),
        "commonLabels": common,
        "commonAnnotations": {"summary": message.title, "message_key": message.id},
        "externalURL": from.url.as_deref().unwrap_or_default(),
        "alerts": alerts,
    })
}

fn alert(line: &Line, over: bool, from: &Deployment) -> Value {
    let mut labels: Map<String, Value> = line.labels.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
    labels.insert("alertname".to_owned(), json!(line.rule));
    labels.insert("severity".to_owned(), json!(line.severity));
    if let Some(subject) = &line.subject {
        let label = if line.of_source { "source" } else { "stream" };
        labels.insert(label.to_owned(), json!(subject));
    }
    if let Some(maturity) = &from.maturity {
        labels.insert("environment".to_owned(), json!(maturity));
    }
    let mut annotations: Map<String, Value> =
        line.annotations.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
    annotations.entry("summary").or_insert_with(|| json!(line.message));
    annotations.entry("description").or_insert_with(|| json!(line.detail));
    if let Some(value) = line.value {
        annotations.insert("value".to_owned(), json!(value.to_string()));
    }
    let url = from.page_of(line);
    json!({
        "status": if over { "resolved" } else { "firing" },
        "labels": labels,
        "annotations": annotations,
        "startsAt": time(line.since),
        "endsAt": line.ended.filter(|_| over).map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), time),
        "generatorURL": url.unwrap_or_default(),
        "fingerprint": fingerprint(&line.key),
    })
}

pub(super) fn time(unix: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a date's milliseconds")]
    let time = DateTime::from_timestamp_millis((unix * 1000.0) as i64).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// FNV-1a hash of the alert key as 16 hex digits.
pub(super) fn fingerprint(key: &str) -> String {
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}
