//! What the services of other companies get: its shape, and the limits that their documentation states.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Deployment;
use super::channels::of;
use super::http::Request;
use super::sparkline::Sketches;
use crate::alerting::channels::{CHANNELS, Holds};
use crate::alerting::message::{self, About, Line, Message};
use crate::alerting::rule::Severity;
use crate::settings::{ChannelValues, Secret};

const NOW: f64 = 1_795_456_871.0;
const SERVICES: [&str; 6] = ["pagerduty", "opsgenie", "teams", "discord", "telegram", "ntfy"];

fn requests(service: &str, message: &Message, from: &Deployment) -> Vec<Request> {
    let kind = CHANNELS.iter().find(|kind| kind.name == service).unwrap();
    let values: BTreeMap<&'static str, Secret> = kind
        .settings
        .iter()
        .map(|setting| {
            let value = match (setting.default, setting.holds) {
                ("", Holds::SecretUrl) => "https://service.example/topic",
                ("", _) => "KEY",
                (default, _) => default,
            };
            (setting.env, Secret::from(value.to_owned()))
        })
        .collect();
    of(&ChannelValues { kind, values }).unwrap().requests(message, &Sketches::new(), from)
}

fn body(request: &Request) -> Value {
    serde_json::from_str(&request.body).unwrap()
}

fn line(name: &str, text: &str) -> Line {
    Line {
        key: format!("worker_down:{name}"),
        rule: "worker_down".to_owned(),
        subject: Some(name.to_owned()),
        of_source: false,
        severity: Severity::Critical,
        message: text.to_owned(),
        detail: text.to_owned(),
        since: NOW - 12.0,
        ended: None,
        value: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::from([("runbook_url".to_owned(), "https://runbook.example/crash".to_owned())]),
        chart: None,
    }
}

fn of_lines(about: About, title: &str, alerts: Vec<Line>, more: usize) -> Message {
    let mut message = message::test(NOW, "nonce");
    (message.about, message.severity) = (about, Severity::Critical);
    message.title = title.to_owned();
    message.keys = alerts.iter().map(|line| line.key.clone()).collect();
    message.keys.extend((0..more).map(|n| format!("backlog:more{n}")));
    (message.alerts, message.more) = (alerts, more);
    message
}

fn production() -> Deployment {
    Deployment { maturity: Some("production".to_owned()), url: Some("https://fleet.example/shepherd".to_owned()) }
}

#[test]
fn each_service_gets_a_crash_and_its_end() {
    let crash = line("aragorn_lookup", "aragorn_lookup crashed & has *no* workers");
    let over = Line { ended: Some(NOW), ..crash.clone() };
    let firing = of_lines(About::Firing, "aragorn_lookup crashed", vec![crash], 0);
    let resolved = of_lines(About::Resolved, "Resolved after 12 s: aragorn_lookup", vec![over], 0);
    let mut text = String::new();
    for service in SERVICES {
        for message in [&firing, &resolved, &message::test(NOW, "nonce")] {
            for request in requests(service, message, &production()) {
                let authorization = request.authorization.as_deref().unwrap_or("none");
                text.push_str(&format!("=== {service}: POST {} ({authorization})\n", request.url));
                text.push_str(&format!("{:#}\n\n", body(&request)));
            }
        }
    }
    insta::assert_snapshot!("services", text);
}

#[test]
fn an_incident_ends_with_its_alert_and_belongs_to_one_environment() {
    let alerts = || (0..50).map(|n| line(&format!("w{n}"), "crashed")).collect();
    let firing = of_lines(About::Firing, "many", alerts(), 3);
    let resolved = of_lines(About::Resolved, "many", alerts(), 3);
    let staging = Deployment { maturity: Some("staging".to_owned()), ..production() };
    let keys = |message: &Message, from: &Deployment| -> Vec<String> {
        let requests = requests("pagerduty", message, from);
        requests.iter().map(|request| body(request)["dedup_key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&firing, &production()), keys(&resolved, &production()));
    assert_eq!(keys(&firing, &production()).len(), 53, "those that are only counted too");
    assert!(keys(&firing, &production()).iter().all(|key| !keys(&firing, &staging).contains(key)));
    let aliases: Vec<Value> =
        requests("opsgenie", &firing, &production()).iter().map(|request| body(request)["alias"].clone()).collect();
    for (alias, close) in aliases.iter().zip(requests("opsgenie", &resolved, &production())) {
        assert!(close.url.contains(&format!("/v2/alerts/{}/close?", alias.as_str().unwrap())), "{}", close.url);
    }
}

#[test]
fn no_text_exceeds_a_limit_in_any_script() {
    let units = |value: &Value| value.as_str().unwrap().encode_utf16().count();
    for piece in ["a", "é", "&", "<", "\"", "*", "😀", "界", "\u{202e}"] {
        for (length, alerts) in [(5000, 1), (300, 50), (1, 50), (5000, 50)] {
            let text = piece.repeat(length);
            let lines = (0..alerts).map(|n| line(&format!("{n}{text}"), &text)).collect();
            let message = of_lines(About::Firing, &text, lines, 7);
            let from = Deployment { maturity: Some(piece.repeat(500)), ..production() };
            let all = |service: &str| requests(service, &message, &from);
            for request in all("pagerduty") {
                let event = body(&request);
                assert!(event["payload"]["summary"].as_str().unwrap().chars().count() <= 1024);
                assert!(event["dedup_key"].as_str().unwrap().len() <= 255);
            }
            for request in all("opsgenie") {
                let alert = body(&request);
                assert!(units(&alert["message"]) <= 130 && units(&alert["description"]) <= 15_000, "{alert}");
                assert!(alert["entity"].is_null() || units(&alert["entity"]) <= 512);
            }
            for request in all("teams") {
                assert!(request.body.len() <= 28 * 1024, "{piece} × {length}: {} bytes", request.body.len());
            }
            for request in all("discord") {
                let post = body(&request);
                assert!(units(&post["content"]) <= 2000);
                assert!(units(&post["embeds"][0]["description"]) <= 4096);
            }
            for request in all("telegram") {
                let text = &body(&request)["text"];
                assert!(units(text) <= 4096);
                for entity in text.as_str().unwrap().split('&').skip(1) {
                    assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "{entity}");
                }
            }
            for request in all("ntfy") {
                assert!(body(&request)["message"].as_str().unwrap().len() <= 4096);
            }
        }
    }
}
