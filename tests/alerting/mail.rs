//! A mail server with TLS and login that stores the mails.

use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

use super::{Ground, SOON};
use crate::support::wait::eventually;

/// The server and its certificate.
pub(crate) struct Mail {
    reaper: Reaper,
    port: u16,
}

impl Mail {
    /// Starts it in `mode`: `starttls`, `implicit`, or `plain` (without TLS).
    pub(crate) async fn start(mode: &str) -> Self {
        let reaper = Reaper::start("shepherd-mail", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
        let status = reaper
            .run(&[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                "key.pem",
                "-out",
                "cert.pem",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .unwrap();
        assert_eq!(status, 0, "{}", reaper.log_from(0));
        std::fs::write(reaper.folder().join("mail.py"), include_str!("mail.py")).unwrap();
        reaper.serve(&["/usr/bin/python3", "-u", "mail.py", mode]).unwrap();
        let port = eventually("the mail server listens", Duration::from_secs(20), || async {
            let log = reaper.log_from(0);
            let port = log.split("listening on ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            port.ok_or(log)
        })
        .await;
        Self { reaper, port }
    }

    /// Settings that send mail to it.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let folder = self.reaper.folder().display().to_string();
        [
            ("ALERT_EMAIL_TO", "night@example.org".to_owned()),
            ("ALERT_EMAIL_FROM", "shepherd@fleet.example".to_owned()),
            ("SMTP_HOST", "localhost".to_owned()),
            ("SMTP_PORT", self.port.to_string()),
            ("SMTP_USER", "shepherd".to_owned()),
            ("SMTP_PASSWORD", "verysecret".to_owned()),
            ("SSL_CERT_FILE", format!("{folder}/cert.pem")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// All accepted mails: envelope, headers, parts.
    pub(crate) fn mails(&self) -> Vec<Value> {
        let log = self.reaper.log_from(0);
        log.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("mail: ")?).ok()).collect()
    }

    /// Number of attempts to send to a recipient.
    fn tried(&self, recipient: &str) -> usize {
        self.reaper.log_from(0).lines().filter(|line| *line == format!("recipient: {recipient}")).count()
    }

    pub(crate) async fn told(&self, subject: &str) -> Value {
        self.told_in_time(&format!("a mail says {subject:?}"), SOON, |s| s.contains(subject)).await
    }

    /// Waits for a mail whose subject matches `is`.
    pub(crate) async fn told_in_time(&self, what: &str, limit: Duration, is: impl Fn(&str) -> bool) -> Value {
        eventually(what, limit, || async {
            let mails = self.mails();
            let found = mails.iter().find(|m| m["subject"].as_str().is_some_and(&is)).cloned();
            found.ok_or_else(|| self.reaper.log_from(0))
        })
        .await
    }
}

fn settings(mail: &[(String, String)]) -> Vec<(&str, &str)> {
    mail.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[tokio::test]
async fn mail_uses_starttls_and_login_and_resolutions_reply_to_firing_mails() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let mail = Mail::start("starttls").await;
    let given = mail.settings();
    let monitor = ground.monitor("m", &settings(&given)).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    let firing = mail.told("[test] CRITICAL: Worker a crashed").await;
    ground.fleet.up(&["a"]).await;
    let resolved = mail.told("worker a is running again").await;
    for mail in [&firing, &resolved] {
        assert_eq!(mail["tls"], true);
        assert_eq!(mail["user"], "shepherd");
        assert_eq!(mail["to"], "night@example.org");
        let types: Vec<&Value> = mail["types"].as_array().unwrap().iter().take(2).collect();
        assert_eq!(types, ["text/plain", "text/html"]);
    }
    assert!(firing["message-id"].as_str().unwrap().ends_with("@fleet.example>"));
    assert_eq!(resolved["in-reply-to"], firing["message-id"]);
    assert_eq!(resolved["references"], firing["message-id"]);
    assert_eq!(mail.mails().len(), 2);
    assert!(!monitor.log().contains("verysecret"));
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("email:night@example.org") && !page.contains("verysecret"));
}

#[tokio::test]
async fn a_server_without_tls_gets_no_mail_and_no_password() {
    let ground = Ground::new();
    let mail = Mail::start("plain").await;
    let given = mail.settings();
    let monitor = ground.monitor("m", &settings(&given)).await;
    monitor.takes_orders().await;
    let answer = reqwest::Client::new().post(monitor.url("/api/alerts/test")).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let by_mail =
        answer["channels"].as_array().unwrap().iter().find(|c| c["channel"] == "email:night@example.org").unwrap();
    assert_eq!(by_mail["ok"], false, "{answer}");
    assert!(mail.mails().is_empty());
}

#[tokio::test]
async fn mail_uses_implicit_tls() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let mail = Mail::start("implicit").await;
    let by_mail = mail.settings();
    let mut given = settings(&by_mail);
    // Implicit TLS as configured; on port 465 it would be the default.
    given.push(("SMTP_USE_TLS", "implicit"));
    let monitor = ground.monitor("m", &given).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    let firing = mail.told("[test] CRITICAL: Worker a crashed").await;
    assert_eq!((&firing["tls"], &firing["user"]), (&Value::Bool(true), &Value::from("shepherd")));
}

#[tokio::test]
async fn rejected_and_deferred_recipients_do_not_delay_others() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let mail = Mail::start("starttls").await;
    let mut given = mail.settings();
    given.retain(|(name, _)| name != "ALERT_EMAIL_TO");
    given.push(("ALERT_EMAIL_TO".to_owned(), "gone@example.org,busy@example.org,night@example.org".to_owned()));
    let monitor = ground.monitor("m", &settings(&given)).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    assert_eq!(mail.told("Worker a crashed").await["to"], "night@example.org");
    ground.fleet.up(&["a"]).await;
    // The first mail was deferred for a minute, and the resolution is queued behind it.
    let of_busy = eventually("busy hears of both", SOON * 4, || async {
        let mails = mail.mails();
        let of_busy: Vec<String> =
            mails.iter().filter(|m| m["to"] == "busy@example.org").map(|m| m["subject"].to_string()).collect();
        if of_busy.len() == 2 { Ok(of_busy) } else { Err(format!("{mails:?}")) }
    })
    .await;
    assert!(of_busy[0].contains("Worker a crashed") && of_busy[1].contains("running again"), "{of_busy:?}");
    assert_eq!(mail.tried("busy@example.org"), 3);
    assert_eq!(mail.mails().iter().filter(|m| m["to"] == "night@example.org").count(), 2);
    // A 5xx is final for this message and recipient.
    assert_eq!(mail.tried("gone@example.org"), 2);
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("given up") && page.contains("no such mailbox"), "{page}");
}

#[tokio::test]
async fn a_rejected_password_breaks_the_channel_and_its_mail_waits() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let mail = Mail::start("starttls").await;
    let mut given = mail.settings();
    given.retain(|(name, _)| name != "SMTP_PASSWORD");
    given.push(("SMTP_PASSWORD".to_owned(), "anotherone".to_owned()));
    let monitor = ground.monitor("m", &settings(&given)).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    ground.slack.told("channel email:night@example.org rejects notifications", SOON).await;
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("waiting") && !page.contains("given up") && !page.contains("anotherone"), "{page}");
}
