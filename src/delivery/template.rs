//! A webhook whose body is a Handlebars template of the operator's.

use std::fs;

use handlebars::{Handlebars, handlebars_helper, no_escape};
use serde_json::{Value, json};

use super::Deployment;
use super::channels::Channel;
use super::http::Request;
use super::sparkline::Sketches;
use super::text::title;
use super::webhook::time;
use crate::alerting::message::{Line, Message};
use crate::settings::ChannelValues;

// `{{json field}}`: the field as JSON, quoted and escaped.
handlebars_helper!(as_json: |field: Json| field.to_string());

/// The channel.
pub(super) struct Template {
    url: String,
    content_type: String,
    body: Handlebars<'static>,
}

impl Template {
    pub(super) fn new(values: &ChannelValues) -> Result<Self, String> {
        let path = values.get("ALERT_TEMPLATE");
        let wrong = |why: String| format!("ALERT_TEMPLATE ({path}): {why}");
        let text = fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let (url, content_type) = (values.get("ALERT_TEMPLATE_URL"), values.get("ALERT_TEMPLATE_TYPE"));
        if reqwest::header::HeaderValue::from_str(content_type).is_err() {
            return Err(format!("ALERT_TEMPLATE_TYPE is {content_type:?}: expected a content type such as text/plain"));
        }
        let body = compiled(&text).map_err(wrong)?;
        Ok(Self { url: url.to_owned(), content_type: content_type.to_owned(), body })
    }
}

/// Compiles the template and tries it, so that a misspelled field is an error at the start and not at 3 a.m.
fn compiled(text: &str) -> Result<Handlebars<'static>, String> {
    let mut body = Handlebars::new();
    body.set_strict_mode(true);
    body.register_escape_fn(no_escape);
    body.register_helper("json", Box::new(as_json));
    body.register_template_string("body", text).map_err(|error| error.to_string())?;
    let sample = crate::alerting::message::test(0.0, "sample");
    let line = sample_line(text);
    for alerts in [Vec::new(), vec![line]] {
        let message = Message { alerts, ..sample.clone() };
        body.render("body", &fields(&message, &Deployment::default())).map_err(|error| error.to_string())?;
    }
    // An alert without one of the labels leaves its place empty.
    body.set_strict_mode(false);
    Ok(body)
}

impl Channel for Template {
    fn requests(&self, message: &Message, _: &Sketches, from: &Deployment) -> Vec<Request> {
        // It was rendered at the start, with every field.
        let body = self.body.render("body", &fields(message, from)).unwrap_or_else(|_| title(message, from));
        let request = Request::json(&self.url, &Value::Null);
        vec![Request { body, content_type: self.content_type.clone(), ..request }]
    }
}

/// The fields of a template; docs/alerts.md lists them.
fn fields(message: &Message, from: &Deployment) -> Value {
    json!({
        "id": message.id,
        "thread": message.thread,
        "about": message.about,
        "severity": message.severity,
        "title": message.title,
        "text": title(message, from),
        "time": time(message.at),
        "environment": from.maturity.as_deref().unwrap_or_default(),
        "url": from.url.as_deref().unwrap_or_default(),
        "alerts_page": from.alerts_page().unwrap_or_default(),
        "alerts": message.alerts.iter().map(|line| of_alert(line, from)).collect::<Vec<_>>(),
        "more": message.more,
    })
}

fn of_alert(line: &Line, from: &Deployment) -> Value {
    json!({
        "key": line.key,
        "rule": line.rule,
        "subject": line.subject.as_deref().unwrap_or_default(),
        "severity": line.severity,
        "message": line.message,
        "detail": line.detail,
        "since": time(line.since),
        "ended": line.ended.map(time).unwrap_or_default(),
        "value": line.value,
        "labels": line.labels,
        "annotations": line.annotations,
        "page": from.page_of(line).unwrap_or_default(),
    })
}

/// An alert with every label and annotation that the template names: which ones an alert has depends on its rule.
fn sample_line(template: &str) -> Line {
    let named = |prefix: &str| {
        let names = template.split(prefix).skip(1);
        let end = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
        names.map(|rest| (rest.split(end).next().unwrap_or_default().to_owned(), String::new())).collect()
    };
    Line {
        key: "rule:stream".to_owned(),
        rule: "rule".to_owned(),
        subject: Some("stream".to_owned()),
        of_source: false,
        severity: crate::alerting::rule::Severity::Info,
        message: "message".to_owned(),
        detail: "detail".to_owned(),
        since: 0.0,
        ended: None,
        value: Some(0.0),
        labels: named("labels."),
        annotations: named("annotations."),
        chart: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_with_a_mistake_is_an_error_that_names_it() {
        for (text, named) in [
            ("{{titel}}", "titel"),
            ("{{#each alerts}}{{subjct}}{{/each}}", "subjct"),
            ("{{#each alerts}}", "each"),
            ("{{nosuch title}}", "nosuch"),
        ] {
            let why = compiled(text).map(drop).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
        let labelled = compiled("{{#each alerts}}{{rule}} {{labels.team}}{{/each}}").unwrap();
        let line = Line { labels: std::collections::BTreeMap::new(), ..sample_line("") };
        let message = Message { alerts: vec![line], ..crate::alerting::message::test(0.0, "n") };
        assert_eq!(labelled.render("body", &fields(&message, &Deployment::default())).unwrap(), "rule ");
        let body = compiled("{\"t\": {{json title}}, \"a\": [{{#each alerts}}{{json page}}{{/each}}]}").unwrap();
        let message = Message { title: "a \"quoted\"\ntitle".to_owned(), ..crate::alerting::message::test(0.0, "n") };
        let text = body.render("body", &fields(&message, &Deployment::default())).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["t"], message.title);
    }
}
