//! A webhook and a mail server whose certificates a private authority signed.

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

use super::*;
use crate::alerting::mail::Mail;
use crate::support::certificates::Certificates;
use crate::support::wait::eventually;

/// What `notify-test` prints.
fn notify(settings: &[(&str, &str)]) -> String {
    let output = run(&["notify-test"], settings);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn a_webhook_signed_by_an_authority_of_ones_own_is_trusted_by_setting() {
    let certificates = Certificates::new();
    certificates.issue("server", "DNS:localhost", 2);
    let (certificate, key, ca) =
        (certificates.path("server.pem"), certificates.path("server.key"), certificates.path("ca.pem"));
    let reaper = Reaper::start("shepherd-https", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    std::fs::write(reaper.folder().join("https.py"), include_str!("https.py")).unwrap();
    reaper.serve(&["/usr/bin/python3", "-u", "https.py", &certificate, &key]).unwrap();
    let port: u16 = eventually("the receiver listens", Duration::from_secs(20), || async {
        let log = reaper.log_from(0);
        let port = log.split("listening on ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
        port.ok_or(log)
    })
    .await;
    let url = format!("https://localhost:{port}/secret-path");
    let said = notify(&[("ALERT_WEBHOOK_URL", &url)]);
    assert!(said.contains("signed by an untrusted CA") && said.contains("ALERT_WEBHOOK_CA_FILE"), "{said}");
    assert!(!said.contains("secret-path"), "{said}");
    let said = notify(&[("ALERT_WEBHOOK_URL", &url), ("ALERT_WEBHOOK_CA_FILE", &ca)]);
    assert!(said.contains("webhook: sent"), "{said}");
    let by_address = format!("https://127.0.0.1:{port}/");
    let said = notify(&[("ALERT_WEBHOOK_URL", &by_address), ("ALERT_WEBHOOK_CA_FILE", &ca)]);
    assert!(said.contains("for another name"), "{said}");
}

#[tokio::test]
async fn a_self_signed_mail_server_is_trusted_by_file_or_by_name() {
    let mail = Mail::start("starttls").await;
    let settings = mail.settings();
    let file = settings.iter().find(|(name, _)| name == "SSL_CERT_FILE").unwrap().1.clone();
    let base: Vec<(&str, &str)> =
        settings.iter().filter(|(name, _)| name != "SSL_CERT_FILE").map(|(name, value)| (&**name, &**value)).collect();
    let said = notify(&base);
    assert!(said.contains("trusted CA") && said.contains("SMTP_CA_FILE"), "{said}");
    for added in [("SMTP_CA_FILE", &*file), ("SMTP_ACCEPT_ANY_CERTIFICATE_FROM", "localhost")] {
        let said = notify(&[&base[..], &[added]].concat());
        assert!(said.contains("email:night@example.org: sent"), "{added:?}: {said}");
    }
}
