//! Opsgenie's Alert API: one alert per alert key, closed when it resolves.

use serde_json::json;

use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::{cut, title, without_nulls};
use super::webhook::fingerprint;
use super::{Deployment, visible};
use crate::alerting::message::{About, Line, Message};
use crate::alerting::rule::Severity;
use crate::settings::ChannelValues;

/// Maximum lengths, characters.
const MESSAGE: usize = 130;
const DESCRIPTION: usize = 15_000;
const ENTITY: usize = 512;

/// The channel.
pub(super) struct Opsgenie {
    url: String,
    key: String,
}

impl Opsgenie {
    pub(super) fn new(values: &ChannelValues) -> Self {
        let url = values.get("OPSGENIE_URL").trim_end_matches('/').to_owned();
        Self { url, key: values.get("OPSGENIE_API_KEY").to_owned() }
    }

    fn post(&self, path: &str, body: &serde_json::Value) -> Request {
        let request = Request::json(format!("{}/v2/alerts{path}", self.url), body).keeping(&self.key);
        Request { authorization: Some(format!("GenieKey {}", self.key)), ..request }
    }

    fn create(&self, alias: &str, message: &Message, line: Option<&Line>, from: &Deployment) -> Request {
        let environment = from.name().map(|name| format!("[{}] ", visible(name))).unwrap_or_default();
        let text = match line {
            Some(line) => format!("{environment}{}", visible(&line.message)),
            None => title(message, from),
        };
        let priority = match line.map_or(message.severity, |line| line.severity) {
            Severity::Critical => "P1",
            Severity::Warning => "P3",
            Severity::Info => "P5",
        };
        let page = line.and_then(|line| from.page_of(line)).or_else(|| from.alerts_page());
        let detail = line.map(|line| line.detail.as_str()).unwrap_or_default();
        let links = page.into_iter().chain(line.and_then(|line| line.annotations.get("runbook_url").cloned()));
        let description = std::iter::once(detail.to_owned())
            .chain(links)
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("\n");
        self.post(
            "",
            &without_nulls(json!({
                "message": cut(&text, MESSAGE),
                "alias": alias,
                "description": cut(&description, DESCRIPTION),
                "entity": line.and_then(|line| line.subject.as_deref()).map(|subject| cut(subject, ENTITY)),
                "source": "shepherd-monitor",
                "tags": line.map(|line| vec![line.rule.as_str()]).unwrap_or_default(),
                "details": line.map(|line| line.labels.clone()).unwrap_or_default(),
                "priority": priority,
            })),
        )
    }

    fn close(&self, alias: &str) -> Request {
        self.post(&format!("/{alias}/close?identifierType=alias"), &json!({"source": "shepherd-monitor"}))
    }
}

impl Channel for Opsgenie {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        // Two deployments may have the same alert.
        let alias = |key: &str| {
            format!("shepherd-monitor-{}", fingerprint(&format!("{}\n{key}", from.name().unwrap_or_default())))
        };
        if message.about == About::Test {
            let alias = alias(&message.id);
            return vec![self.create(&alias, message, None, from), self.close(&alias)];
        }
        let request = |key: &String| {
            if message.about == About::Resolved {
                return self.close(&alias(key));
            }
            self.create(&alias(key), message, message.alerts.iter().find(|line| line.key == *key), from)
        };
        message.keys.iter().map(request).collect()
    }
}
