//! Snapshots of every kind of notification in every channel.

use std::fmt::Write as _;
use std::sync::Arc;

use super::email::{self, Mailer, Smtp};
use super::sparkline::{Sketch, Sketches};
use super::{Deployment, slack, webhook};
use crate::alerting::alert_manager::{AlertManager, AlertManagerSettings};
use crate::alerting::file;
use crate::alerting::message::{self, Message};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::snapshot::{Snapshot, SourceStatus};
use crate::fleet::worker_type::TypeState;
use crate::pages::states::Fleet;
use crate::settings::MailTls;

const NOW: f64 = 1_795_456_871.0;

fn board(rules: &str) -> AlertManager {
    let settings = AlertManagerSettings { grace_until: 0.0, debounce: 5.0, channels: vec!["slack".into()] };
    AlertManager::new(settings, Arc::new(file::read(rules).unwrap()))
}

/// A snapshot in which `down` are crashed and `busy` has 733 undelivered messages.
fn fleet(down: &[&str]) -> Snapshot {
    let mut fleet = Fleet::new(NOW);
    fleet.add("busy", 2, 10, 733);
    for name in down {
        fleet.add(name, 3, 10, 0);
        fleet.change(name, |w, _| {
            (w.state, w.alive, w.last_alive_count) = (TypeState::Crashed, 0, 3);
        });
    }
    fleet.finish()
}

/// Messages for `during`, and for the resolution two minutes later.
fn told(mut board: AlertManager, during: &Snapshot, after: &Snapshot) -> Vec<Message> {
    let mut told = Vec::new();
    for (snapshot, at) in [(during, NOW), (during, NOW + 12.0), (after, NOW + 132.0), (after, NOW + 138.0)] {
        board.advance(snapshot, at);
        told.extend(board.due(at).0.messages.into_iter().map(|outgoing| outgoing.message));
    }
    told
}

/// A message in the format of each channel, with variable parts replaced.
fn everywhere(message: &Message) -> String {
    drawn(message, &Sketches::new())
}

/// The same with charts.
fn drawn(message: &Message, sketches: &Sketches) -> String {
    let from =
        Deployment { maturity: Some("production".to_owned()), url: Some("https://fleet.example/shepherd".to_owned()) };
    let mailer = Mailer::new(&Smtp {
        host: "localhost".to_owned(),
        port: 25,
        login: None,
        authorities: None,
        any_certificate: false,
        tls: MailTls::Off,
        from: "Shepherd <shepherd@fleet.example>".to_owned(),
        helo_name: None,
    });
    let mail = mailer.unwrap().mail("night@example.org", message, sketches, &from).unwrap().formatted();
    let mail = String::from_utf8(mail).unwrap();
    let head = mail.split("\r\n\r\n").next().unwrap().replace("\r\n", "\n");
    let boundary = head.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
    let mut text = String::new();
    _ = writeln!(text, "=== Slack\n{:#}\n", slack::payload(message, sketches, &from));
    _ = writeln!(text, "=== webhook\n{:#}\n", webhook::payload(message, &from));
    _ = writeln!(text, "=== mail\n{}\n", head.replace(boundary, "[boundary]"));
    _ = writeln!(text, "=== plain\n{}", email::plain(message, sketches, &from));
    _ = writeln!(
        text,
        "=== HTML\n{}",
        email::html(message, sketches, &from).replace("<p", "\n<p").replace("<li", "\n<li")
    );
    text
}

#[test]
fn a_worker_that_crashes_and_restarts() {
    let messages = told(board("rules: []"), &fleet(&["aragorn.lookup"]), &fleet(&[]));
    assert_eq!(messages.len(), 2);
    insta::assert_snapshot!("firing", everywhere(&messages[0]));
    insta::assert_snapshot!("resolved", everywhere(&messages[1]));
}

#[test]
fn a_rule_with_a_text_labels_and_annotations() {
    let rules = "
rules:
  - name: backlog
    type: threshold
    metric: xlen
    stream: 'b*'
    threshold: 500
    message: \"{subject} has {value} waiting, more than {threshold} & that is <b>bad</b>\"
    labels: {team: search}
    annotations: {runbook: \"https://example.org/{subject}\"}
";
    let messages = told(board(rules), &fleet(&[]), &Fleet::new(NOW).finish());
    assert_eq!(messages.len(), 2);
    insta::assert_snapshot!("rule", everywhere(&messages[0]));
    let line = &messages[0].alerts[0];
    let chart = line.chart.as_ref().unwrap();
    assert_eq!((chart.series.as_str(), chart.limit), ("xlen:busy", Some(500.0)));
    let samples = (0..120_u32).map(|n| (NOW - 30.0 * f64::from(120 - n), f64::from(n * n) / 20.0)).collect();
    let sketch = Sketch { samples, until: NOW, limit: chart.limit, unit: chart.unit.clone() };
    let sketches = Sketches::from([(line.key.clone(), sketch)]);
    insta::assert_snapshot!("rule_drawn", drawn(&messages[0], &sketches));
}

#[test]
fn eighteen_workers_down_at_once() {
    let names: Vec<String> = (0..18).map(|i| format!("worker.{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let messages = told(board("rules: []"), &fleet(&names), &fleet(&[]));
    assert_eq!(messages.len(), 2);
    insta::assert_snapshot!("eighteen", everywhere(&messages[0]));
    insta::assert_snapshot!("eighteen_resolved", everywhere(&messages[1]));
}

#[test]
fn an_alert_storm_is_counted() {
    let rules: String = (0..360)
        .map(|i| format!("\n  - {{name: rule{i:03}, type: threshold, metric: xlen, stream: busy, threshold: 500}}"))
        .collect();
    let messages = told(board(&format!("rules:{rules}")), &fleet(&[]), &Fleet::new(NOW).finish());
    let last = messages.iter().find(|message| message.title.ends_with("and 340 more")).unwrap();
    assert_eq!((last.alerts.len(), last.more), (message::NAMED, 291));
    insta::assert_snapshot!("storm", everywhere(last));
}

#[test]
fn an_unreachable_database() {
    let mut away = fleet(&[]);
    let trouble = SourceTrouble::new(TroubleKind::Unreachable, "connection refused (127.0.0.1:5432)");
    away.postgres.source = SourceStatus::Down { since: NOW, trouble };
    let messages = told(board("rules: []"), &away, &fleet(&[]));
    assert_eq!(messages.len(), 2);
    insta::assert_snapshot!("database", everywhere(&messages[0]));
    insta::assert_snapshot!("database_resolved", everywhere(&messages[1]));
}

#[test]
fn a_test_message() {
    insta::assert_snapshot!("test", everywhere(&message::test(NOW, "nonce")));
}

#[test]
fn names_cannot_mention_link_or_run_scripts() {
    let names = [
        "<!channel>",
        "<@U123>|<https://evil.example|click>",
        "*_~`bold`~_*",
        "<script>alert(1)</script>\"onload='x'",
        "two\r\nBcc: everybody@example.org",
        "\u{202e}backwards",
    ];
    let messages = told(board("rules: []"), &fleet(&names), &fleet(&[]));
    let all = everywhere(&messages[0]);
    for bad in ["<!channel", "<@U123", "<https://evil", "<script", "\r", "\nBcc:", "\u{202e}"] {
        let channels = all.split("=== plain").next().unwrap();
        // JSON receivers get names unescaped; they escape them for display.
        let shown =
            channels.split("=== webhook").next().unwrap().to_owned() + channels.split("=== mail").nth(1).unwrap();
        assert!(!shown.contains(bad) && !all.split("=== HTML").nth(1).unwrap().contains(bad), "{bad:?} in {all}");
    }
    insta::assert_snapshot!("hostile", all);
    // With a single alert, its name is in the subject and in Slack's first line.
    let alone = told(board("rules: []"), &fleet(&["<!channel>"]), &fleet(&[]));
    insta::assert_snapshot!("hostile_alone", everywhere(&alone[0]));
}

/// All texts of a Slack payload with their maximum lengths in UTF-16 units.
fn texts(payload: &serde_json::Value) -> Vec<(&str, usize)> {
    let mut texts = vec![(payload["text"].as_str().unwrap(), 4000)];
    let attachments = payload["attachments"].as_array().unwrap();
    assert!(attachments.len() <= 100);
    for attachment in attachments {
        texts.push((attachment["fallback"].as_str().unwrap(), 4000));
        let blocks = attachment["blocks"].as_array().unwrap();
        assert!(blocks.len() <= 50, "{} blocks", blocks.len());
        for block in blocks {
            texts.extend(block["text"]["text"].as_str().map(|text| (text, 3000)));
            let elements = block["elements"].as_array().into_iter().flatten();
            texts.extend(elements.map(|element| (element["text"].as_str().unwrap(), 2000)));
        }
    }
    texts
}

#[test]
fn slack_messages_respect_the_limits_and_never_split_entities() {
    let pieces = ["é", "&", "<", "a", "😀", "|", "\u{202e}", "界"];
    for piece in pieces {
        for (name_length, text_length, alerts) in [(450, 400, 1), (1, 400, 50), (450, 5000, 50), (5000, 5000, 3)] {
            let line = |n: usize| message::Line {
                key: format!("rule:{n}{}", piece.repeat(name_length)),
                rule: "rule".to_owned(),
                subject: Some(format!("{n}{}", piece.repeat(name_length))),
                of_source: false,
                severity: crate::alerting::rule::Severity::Critical,
                message: piece.repeat(text_length),
                detail: piece.repeat(text_length),
                since: NOW,
                ended: None,
                value: None,
                labels: Default::default(),
                annotations: Default::default(),
                chart: None,
            };
            let mut message = message::test(NOW, "nonce");
            message.about = message::About::Firing;
            message.title = piece.repeat(text_length);
            message.alerts = (0..alerts).map(line).collect();
            message.more = alerts;
            let samples = vec![(NOW, 1.0), (NOW + 1.0, 2.0), (NOW + 2.0, 3.0)];
            let sketch = Sketch { samples, until: NOW + 3.0, limit: Some(2.0), unit: piece.repeat(400) };
            let sketches: Sketches = message.alerts.iter().map(|line| (line.key.clone(), sketch.clone())).collect();
            for url in ["https://fleet.example".to_owned(), format!("https://fleet.example/{}", piece.repeat(3000))] {
                let from = Deployment { maturity: Some(piece.repeat(500)), url: Some(url) };
                let payload = slack::payload(&message, &sketches, &from);
                for (text, most) in texts(&payload) {
                    let length = text.encode_utf16().count();
                    assert!(length <= most, "{piece:?} × {name_length}, {text_length}: {length} of {most}");
                    for entity in text.split('&').skip(1) {
                        let whole = ["amp;", "lt;", "gt;"].iter().any(|known| entity.starts_with(known));
                        assert!(whole, "cut inside an entity: {entity:.20}");
                    }
                    let opened = text.matches('<').count();
                    assert_eq!(opened, text.matches('>').count(), "a link is cut");
                }
            }
        }
    }
}

#[test]
fn the_plain_text_of_a_slack_message_names_the_subjects() {
    let names: Vec<String> = (0..18).map(|i| format!("worker.{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let messages = told(board("rules: []"), &fleet(&names), &fleet(&[]));
    for message in &messages {
        let payload = slack::payload(message, &Sketches::new(), &Deployment::default());
        for text in [&payload["text"], &payload["attachments"][0]["fallback"]] {
            let text = text.as_str().unwrap();
            assert!(names.iter().all(|name| text.contains(name)), "{text}");
        }
    }
}
