//! PagerDuty, Opsgenie, Teams, Discord, Telegram, ntfy and a template: a scripted server that answers as their
//! documentation says, and rejects what it says they reject.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::*;
use crate::alerting::answers::notify_test;

/// A request: path, `Authorization`, body.
type Seen = (String, String, Value);

struct Services {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Services {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut stream = stream;
                    while let Some(request) = read(&mut reader) {
                        let (status, answer) = answer(&request);
                        shared.lock().unwrap().push(request);
                        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
                        if stream.write_all(head.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, seen }
    }

    fn settings(&self, template: &str) -> Vec<(&'static str, String)> {
        let url = |path: &str| format!("http://127.0.0.1:{}{path}", self.port);
        vec![
            ("PAGERDUTY_ROUTING_KEY", "R0UTINGKEY".to_owned()),
            ("PAGERDUTY_URL", url("/v2/enqueue")),
            ("OPSGENIE_API_KEY", "GENIE".to_owned()),
            ("OPSGENIE_URL", url("")),
            ("TEAMS_WEBHOOK_URL", url("/teams")),
            ("DISCORD_WEBHOOK_URL", url("/api/webhooks/1/verysecret")),
            ("TELEGRAM_BOT_TOKEN", "123:B0T".to_owned()),
            ("TELEGRAM_CHAT_ID", "-42".to_owned()),
            ("TELEGRAM_URL", url("")),
            ("NTFY_URL", url("/topic")),
            ("NTFY_TOKEN", "tk_1".to_owned()),
            ("ALERT_TEMPLATE_URL", url("/template")),
            ("ALERT_TEMPLATE", template.to_owned()),
        ]
    }

    /// Waits for a request that `matches`.
    async fn gets(&self, what: &str, matches: impl Fn(&Seen) -> bool) -> Seen {
        eventually(what, SOON, || async {
            let seen = self.seen.lock().unwrap().clone();
            seen.iter().find(|seen| matches(seen)).cloned().ok_or_else(|| format!("{seen:?}"))
        })
        .await
    }
}

fn read(reader: &mut impl BufRead) -> Option<Seen> {
    let (mut path, mut authorization, mut length) = (String::new(), String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => value.clone_into(&mut authorization),
            _ if line.is_empty() => break,
            _ if path.is_empty() => line.split(' ').nth(1)?.clone_into(&mut path),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
    Some((path, authorization, body))
}

/// The answers of the services' documentation.
fn answer((path, authorization, body): &Seen) -> (u16, String) {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match path.as_str() {
        "/v2/enqueue" => {
            let complete = text("/event_action") == "resolve"
                || (!text("/payload/summary").is_empty()
                    && !text("/payload/source").is_empty()
                    && ["critical", "error", "warning", "info"].contains(&text("/payload/severity")));
            if text("/routing_key") != "R0UTINGKEY" || text("/dedup_key").is_empty() || !complete {
                let errors = json!({"status": "invalid event", "message": "Event object is invalid",
                    "errors": [format!("invalid routing key {}", text("/routing_key"))]});
                return (400, errors.to_string());
            }
            (202, json!({"status": "success", "message": "Event processed", "dedup_key": "k"}).to_string())
        }
        path if path.starts_with("/v2/alerts") => match authorization.as_str() {
            "GenieKey GENIE" => {
                (202, json!({"result": "Request will be processed", "took": 0.1, "requestId": "r"}).to_string())
            }
            _ => (422, json!({"message": "Key format is not valid!", "took": 0.0, "requestId": "r"}).to_string()),
        },
        "/teams" if text("/attachments/0/contentType") == "application/vnd.microsoft.card.adaptive" => {
            (202, String::new())
        }
        "/api/webhooks/1/verysecret" if !text("/content").is_empty() => (204, String::new()),
        "/bot123:B0T/sendMessage" if text("/chat_id") == "-42" && text("/parse_mode") == "HTML" => {
            (200, json!({"ok": true, "result": {"message_id": 1}}).to_string())
        }
        "/bot123:B0T/sendMessage" => {
            (400, json!({"ok": false, "error_code": 400, "description": "Bad Request: chat not found"}).to_string())
        }
        "/" if text("/topic") == "topic" && authorization == "Bearer tk_1" => {
            (200, json!({"id": "x", "event": "message", "topic": "topic"}).to_string())
        }
        "/" => (403, json!({"code": 40301, "http": 403, "error": "forbidden"}).to_string()),
        "/template" => (200, "ok".to_owned()),
        _ => (404, String::new()),
    }
}

#[tokio::test]
async fn every_service_opens_and_closes_an_incident() {
    let services = Services::start();
    let ground = Ground::new();
    let template = ground.folder.folder().join("template.hbs");
    std::fs::write(&template, "{{about}} {{text}}{{#each alerts}} {{subject}}={{labels.team}}{{/each}}").unwrap();
    ground.fleet.up(&["a_1"]).await;
    let settings = services.settings(template.to_str().unwrap());
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let monitor = ground.monitor("m", &settings).await;
    ground.alive(&monitor, &["a_1"]).await;
    ground.fleet.crash(&["a_1"]).await;
    let at = |path: &'static str, words: &'static str| {
        move |seen: &Seen| seen.0.starts_with(path) && seen.2.to_string().contains(words)
    };
    let (_, _, event) = services.gets("PagerDuty opens", at("/v2/enqueue", "trigger")).await;
    assert_eq!(
        (event["payload"]["component"].as_str(), event["payload"]["severity"].as_str()),
        (Some("a_1"), Some("critical"))
    );
    let (_, _, opsgenie) = services.gets("Opsgenie opens", at("/v2/alerts", "crashed")).await;
    for (what, path, words) in [
        ("Teams", "/teams", "a\\\\_1 crashed"),
        ("Discord", "/api/webhooks", "a\\\\_1 crashed"),
        ("Telegram", "/bot123", "a_1 crashed"),
        ("ntfy", "/", "rotating_light"),
        ("the template", "/template", "firing [test] Worker a_1 crashed a_1="),
    ] {
        services.gets(what, at(path, words)).await;
    }
    ground.fleet.up(&["a_1"]).await;
    let (_, _, end) = services.gets("PagerDuty closes", at("/v2/enqueue", "resolve")).await;
    assert_eq!(end["dedup_key"], event["dedup_key"]);
    let closes = format!("/v2/alerts/{}/close", opsgenie["alias"].as_str().unwrap());
    services.gets("Opsgenie closes", |seen| seen.0.starts_with(&closes)).await;
    services.gets("ntfy", at("/", "white_check_mark")).await;
    for secret in ["R0UTINGKEY", "GENIE", "B0T", "tk_1", "verysecret"] {
        assert!(!monitor.log().contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_service_that_rejects_is_reported_without_its_secret() {
    let services = Services::start();
    let folder = Reaper::start("shepherd-alerts", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    let template = folder.folder().join("template.hbs");
    std::fs::write(&template, "{{json title}}").unwrap();
    let mut settings = services.settings(template.to_str().unwrap());
    let said = async |settings: &[(&'static str, String)]| {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        notify_test(&settings).await
    };
    let good = said(&settings).await;
    for name in ["pagerduty", "opsgenie", "teams", "discord", "telegram", "ntfy", "template"] {
        assert!(good.lines().any(|line| line.contains(name) && !line.contains("not sent")), "{name}: {good}");
    }
    for (name, value) in &mut settings {
        match *name {
            "PAGERDUTY_ROUTING_KEY" | "OPSGENIE_API_KEY" | "NTFY_TOKEN" => *value = "wr0ngkey".to_owned(),
            "TELEGRAM_CHAT_ID" => *value = "-1".to_owned(),
            _ => {}
        }
    }
    let bad = said(&settings).await;
    for (name, why) in [
        ("pagerduty", "invalid event"),
        ("opsgenie", "Key format is not valid"),
        ("telegram", "chat not found"),
        ("ntfy", "forbidden"),
    ] {
        let line = bad.lines().find(|line| line.contains(name) && line.contains(why));
        assert!(line.is_some_and(|line| line.contains("not sent")), "{name}: {bad}");
    }
    assert!(!bad.contains("wr0ngkey") && !bad.contains("B0T"), "{bad}");
    for (setting, value, why) in [
        ("ALERT_TEMPLATE", "/no/such/file", "ALERT_TEMPLATE (/no/such/file): cannot be read"),
        ("TELEGRAM_CHAT_ID", "", "TELEGRAM_CHAT_ID is \"\": expected a value, as TELEGRAM_BOT_TOKEN is given"),
        ("NTFY_URL", "https://ntfy.sh", "NTFY_URL: expected the URL of a topic"),
    ] {
        let mut settings = services.settings(template.to_str().unwrap());
        settings.iter_mut().filter(|(name, _)| *name == setting).for_each(|(_, given)| value.clone_into(given));
        let said = said(&settings).await;
        assert!(said.contains(why), "{said}");
    }
}
