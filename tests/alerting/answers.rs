//! Replies of channels, end to end: rejections of mail servers, redirects, login pages, proxies.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::slack::Answer;
use super::*;

/// Replies that differ from the default: prefix of the command, and the reply.
type Replies = &'static [(&'static str, &'static str)];

/// A mail server with configurable replies that records the commands.
struct Smtp {
    port: u16,
    commands: Arc<Mutex<Vec<String>>>,
}

impl Smtp {
    async fn start(address: &str, replies: Replies) -> std::io::Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let port = listener.local_addr()?.port();
        let commands: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = Arc::clone(&commands);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(session(stream, replies, Arc::clone(&shared)));
            }
        });
        Ok(Self { port, commands })
    }

    /// The client's name in EHLO.
    fn helo_name(&self) -> String {
        let commands = self.commands.lock().unwrap();
        commands.iter().find_map(|command| command.strip_prefix("EHLO ")).unwrap().to_owned()
    }
}

async fn session(stream: TcpStream, replies: Replies, commands: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let reply = |command: &str, default: &str| {
        let reply = replies.iter().find(|(start, _)| command.starts_with(start));
        format!("{}\r\n", reply.map_or(default, |(_, reply)| reply))
    };
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(reply("GREETING", "220 mail.example ESMTP").as_bytes()).await.ok()?;
    let mut in_content = false;
    while let Some(line) = lines.next_line().await.ok()? {
        let answer = match line.as_str() {
            "." => reply(".", "250 2.0.0 accepted"),
            _ if in_content => continue,
            "DATA" => reply("DATA", "354 go on"),
            "QUIT" => reply("QUIT", "221 bye"),
            other => reply(other, if other.starts_with("EHLO") { "250 mail.example" } else { "250 ok" }),
        };
        in_content = line == "DATA" && answer.starts_with("354");
        commands.lock().unwrap().push(line);
        write.write_all(answer.as_bytes()).await.ok()?;
    }
    Some(())
}

/// Output of `notify-test` with these settings.
pub(super) async fn notify_test(settings: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.arg("notify-test").env_clear().envs(settings.iter().copied()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(!printed.contains("verysecret"), "{printed}");
    printed
}

async fn by_mail(host: &str, port: u16, more: &[(&str, &str)]) -> String {
    let port = port.to_string();
    let mut settings = vec![
        ("ALERT_EMAIL_TO", "night@example.org"),
        ("ALERT_EMAIL_FROM", "shepherd@fleet.example"),
        ("SMTP_HOST", host),
        ("SMTP_PORT", port.as_str()),
        ("SMTP_USE_TLS", "false"),
    ];
    settings.extend(more);
    notify_test(&settings).await
}

const LOGIN: &[(&str, &str)] = &[("SMTP_USER", "shepherd"), ("SMTP_PASSWORD", "verysecret")];

#[tokio::test]
async fn rejections_of_a_mail_server_are_reported_with_the_setting_to_change() {
    type Settings = &'static [(&'static str, &'static str)];
    let cases: [(Replies, Settings, &str); 10] = [
        (&[("EHLO", "504 5.5.2 need fully-qualified hostname")], &[], "SMTP_HELO_NAME"),
        (&[("RCPT", "504 5.5.2 <4f1c>: Helo command rejected: need fully-qualified hostname")], &[], "SMTP_HELO_NAME"),
        (&[("MAIL", "554 5.7.1 not from you")], &[], "MAIL FROM: 554 5.7.1 not from you (check ALERT_EMAIL_FROM"),
        (&[("RCPT", "550 5.7.1 relaying denied")], &[], "does not relay for this host"),
        (&[("MAIL", "530 5.7.0 Authentication required")], &[], "set SMTP_USER and SMTP_PASSWORD"),
        (&[], LOGIN, "(AUTH PLAIN or LOGIN)"),
        (&[("EHLO", "250-mail.example\r\n250 AUTH GSSAPI NTLM")], LOGIN, "(AUTH PLAIN or LOGIN)"),
        (&[], &[("SMTP_USE_TLS", "starttls")], "set SMTP_USE_TLS"),
        // The server greets in plain text although the client expects implicit TLS.
        (&[], &[("SMTP_USE_TLS", "implicit")], "TLS failed"),
        (&[("GREETING", "554 5.7.1 no service for you")], &[], "refuses this host"),
    ];

    for (replies, more, expected) in cases {
        let server = Smtp::start("127.0.0.1", replies).await.unwrap();
        let printed = by_mail("127.0.0.1", server.port, more).await;
        assert!(printed.contains("not sent: ") && printed.contains(expected), "{replies:?}: {printed}");
    }
}

#[tokio::test]
async fn ehlo_sends_a_qualified_or_the_configured_name() {
    let server = Smtp::start("127.0.0.1", &[]).await.unwrap();
    assert!(by_mail("127.0.0.1", server.port, &[]).await.contains("sent: 2.0.0 accepted"));
    assert!(server.helo_name().contains('.'), "{}", server.helo_name());
    let server = Smtp::start("127.0.0.1", &[]).await.unwrap();
    by_mail("127.0.0.1", server.port, &[("SMTP_HELO_NAME", "monitor.fleet.example")]).await;
    assert_eq!(server.helo_name(), "monitor.fleet.example");
    let refused = by_mail("127.0.0.1", server.port, &[("SMTP_HELO_NAME", "two words")]).await;
    assert!(refused.contains("SMTP_HELO_NAME is \"two words\""), "{refused}");
}

#[tokio::test]
async fn a_mail_server_can_be_an_ipv6_address() {
    let Ok(server) = Smtp::start("::1", &[]).await else { return };
    for host in ["::1", "[::1]"] {
        let printed = by_mail(host, server.port, &[]).await;
        assert!(printed.contains("email:night@example.org: sent: 2.0.0 accepted"), "{host}: {printed}");
    }
}

#[tokio::test]
async fn responses_of_other_services_do_not_count_as_sent() {
    let slack = Slack::start();
    let cases = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 34\r\n\r\n<!DOCTYPE html><title>Log in</title>", "HTML page"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n{\"ok\":false,\"error\":\"channel_is_archived\"}", "archived"),
        (
            "HTTP/1.1 301 Moved\r\nlocation: https://new.example/hook\r\ncontent-length: 0\r\n\r\n",
            "https://new.example/hook",
        ),
        ("HTTP/1.1 302 Found\r\nlocation: /login?to=verysecret\r\ncontent-length: 0\r\n\r\n", "/login;"),
        (
            "HTTP/1.1 308 Moved\r\nlocation: http://other.example/verysecret\r\ncontent-length: 0\r\n\r\n",
            "http://other.example/",
        ),
        ("HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n", "the proxy requires authentication"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nok", "connection closed"),
    ];
    for (response, expected) in cases {
        slack.answers(&[Answer::Raw(0, response)]);
        let printed = notify_test(&[("SLACK_WEBHOOK_URL", &slack.url())]).await;
        assert!(printed.contains("slack: not sent: ") && printed.contains(expected), "{response}: {printed}");
    }
    // Same host and method: the redirect is followed. The scripted server closes the connection and says so, as the next
    // request would otherwise be sent over it.
    slack.answers(&[Answer::Raw(
        0,
        "HTTP/1.1 308 Moved\r\nconnection: close\r\nlocation: /new/\r\ncontent-length: 0\r\n\r\n",
    )]);
    let printed = notify_test(&[("SLACK_WEBHOOK_URL", &slack.url())]).await;
    assert!(printed.contains("slack: sent: 200 OK: ok"), "{printed}");
    assert_eq!(slack.taken().len(), 1);
    // After rejected blocks, the plain text is sent.
    slack
        .answers(&[Answer::Raw(0, "HTTP/1.1 400 No\r\nconnection: close\r\ncontent-length: 14\r\n\r\ninvalid_blocks")]);
    let printed = notify_test(&[("SLACK_WEBHOOK_URL", &slack.url())]).await;
    assert!(printed.contains("slack: sent: ") && printed.contains("invalid_blocks"), "{printed}");
    let last = slack.taken().pop().unwrap();
    assert!(last.text().contains("Test notification") && last.body.get("attachments").is_none(), "{:?}", last.body);
}

#[tokio::test]
async fn a_proxy_that_requires_a_login_is_reported() {
    let proxy = Slack::start();
    proxy.always(Some(Answer::Raw(0, "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")));
    let address = format!("http://127.0.0.1:{}", proxy.port());
    let settings =
        [("SLACK_WEBHOOK_URL", "https://hooks.example/services/verysecret"), ("HTTPS_PROXY", address.as_str())];
    let printed = notify_test(&settings).await;
    assert!(printed.contains("the proxy answered 407") && printed.contains("HTTPS_PROXY"), "{printed}");
}

#[tokio::test]
async fn queued_messages_of_a_broken_channel_are_sent_after_a_successful_test() {
    const LOGIN_PAGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\n<html><title>Log in</title>";
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let webhook = Slack::start();
    ground.slack.always(Some(Answer::Raw(0, LOGIN_PAGE)));
    let monitor = ground.monitor("m", &[("ALERT_WEBHOOK_URL", &webhook.url())]).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    eventually("the webhook is notified of Slack", SOON, || async {
        webhook.taken().iter().any(|post| post.body.to_string().contains("channel slack rejects notifications"))
    })
    .await;
    ground.slack.always(None);
    monitor.takes_orders().await;
    let answer = reqwest::Client::new().post(monitor.url("/api/alerts/test")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    ground.slack.told("Worker a crashed", Duration::from_secs(10)).await;
}
