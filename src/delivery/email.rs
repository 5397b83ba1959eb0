//! Mail over SMTP: plain text and HTML, one mail per recipient, never unencrypted unless configured.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::{authentication::Mechanism, response::Response};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::smtp_reply::{Cause, Failure, Stage};
use super::sparkline::{Sketch, Sketches};
use super::{Deployment, Outcome, moment, shortened, visible};
use crate::alerting::message::{About, Message, span};
use crate::alerting::rule::Severity;
use crate::settings::{MailTls, Secret};
use crate::{tcp, tls};

/// Timeout of connecting to the server, divided among its addresses.
const CONNECT_WITHIN: Duration = Duration::from_secs(16);
/// Timeout of connecting to one address of the server.
const ADDRESS_WITHIN: Duration = Duration::from_secs(8);
/// Timeout of a whole session. Shorter than the dispatcher's timeout of an attempt.
const SENT_WITHIN: Duration = Duration::from_secs(25);
/// Timeout of QUIT, after the mail was accepted.
const QUIT_WITHIN: Duration = Duration::from_secs(1);
/// Supported SASL mechanisms.
const MECHANISMS: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];

/// Configuration of the mail server.
#[derive(Debug, Clone)]
pub struct Smtp {
    /// Host of the server.
    pub host: String,
    /// Port of the server.
    pub port: u16,
    /// User and password, if the server requires them.
    pub login: Option<(String, Secret)>,
    /// Encryption.
    pub tls: MailTls,
    /// PEM file with additional CA certificates.
    pub authorities: Option<String>,
    /// Skips verification of the server's certificate.
    pub any_certificate: bool,
    /// Sender.
    pub from: String,
    /// Name for EHLO; `None`: the host name if it is qualified, otherwise the address literal.
    pub helo_name: Option<String>,
}

/// Sends mail through a server.
pub struct Mailer {
    host: String,
    port: u16,
    /// TLS from the first byte.
    implicit: Option<TlsParameters>,
    /// STARTTLS is required: without it, no mail is sent.
    starttls: Option<TlsParameters>,
    credentials: Option<Credentials>,
    helo_name: Option<ClientId>,
    from: Mailbox,
    /// Domain of Message-IDs.
    domain: String,
}

impl Mailer {
    /// Creates a mailer. Does not connect.
    ///
    /// # Errors
    /// The invalid setting, without the password.
    pub fn new(smtp: &Smtp) -> Result<Self, String> {
        let from: Mailbox = smtp.from.parse().map_err(|_| format!("{} is not an email address", smtp.from))?;
        // Brackets around IPv6 addresses belong to URLs only.
        let host = smtp.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let parameters = || tls_parameters(smtp, &host);
        let (implicit, starttls) = match smtp.tls {
            MailTls::Implicit => (Some(parameters()?), None),
            MailTls::StartTls => (None, Some(parameters()?)),
            MailTls::Off => (None, None),
        };
        let domain = from.email.domain().to_owned();
        let credentials =
            smtp.login.as_ref().map(|(user, password)| Credentials::new(user.clone(), password.reveal().to_owned()));
        let helo_name = smtp.helo_name.clone().map(ClientId::Domain).or_else(qualified_host_name);
        Ok(Self { host, port: smtp.port, implicit, starttls, credentials, helo_name, from, domain })
    }

    /// Sends a notification to one recipient.
    pub async fn send(&self, to: &str, message: &Message, sketches: &Sketches, from: &Deployment) -> Outcome {
        let mail = match self.mail(to, message, sketches, from) {
            Ok(mail) => mail,
            Err(why) => return Outcome::Never(why),
        };
        match self.submit(&mail).await {
            Ok(response) => Outcome::Sent(shortened(&visible(response.first_line().unwrap_or_default()), 120)),
            Err(failure) => failure.meaning(),
        }
    }

    /// Submits `mail` in a new SMTP session.
    async fn submit(&self, mail: &lettre::Message) -> Result<Response, Failure> {
        let until = Instant::now() + SENT_WITHIN;
        let connect_failed =
            |error: io::Error| Failure { stage: Stage::Connect, cause: Cause::Connection(error.to_string()) };
        let addresses = tcp::socket_addresses(&self.host, self.port).await.map_err(connect_failed)?;
        let name = match &self.helo_name {
            Some(name) => name.clone(),
            None => address_literal(&addresses).await,
        };
        let count = u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let connecting = AsyncSmtpConnection::connect_tokio1(
            addresses.as_slice(),
            Some(ADDRESS_WITHIN.min(CONNECT_WITHIN / count)),
            &name,
            self.implicit.clone(),
            None,
        );
        let mut session = step(Stage::Connect, until, connecting).await?;
        if let Some(parameters) = &self.starttls {
            step(Stage::StartTls, until, session.starttls(parameters.clone(), &name)).await?;
        }
        if let Some(credentials) = &self.credentials {
            step(Stage::Login, until, session.auth(&MECHANISMS, credentials)).await?;
        }
        let (envelope, content) = (mail.envelope(), mail.formatted());
        let mut options = Vec::new();
        let ascii = envelope.to().iter().chain(envelope.from()).all(|address| AsRef::<str>::as_ref(address).is_ascii());
        for (needed, extension, option) in [
            (!ascii, Extension::SmtpUtfEight, MailParameter::SmtpUtfEight),
            (!content.is_ascii(), Extension::EightBitMime, MailParameter::Body(MailBodyParameter::EightBitMime)),
        ] {
            if needed && !session.server_info().supports_feature(extension) {
                let cause = Cause::NotSupported(format!("the server does not support {extension}"));
                return Err(Failure { stage: Stage::From, cause });
            }
            if needed {
                options.push(option);
            }
        }
        step(Stage::From, until, session.command(Mail::new(envelope.from().cloned(), options))).await?;
        for to in envelope.to() {
            step(Stage::Recipient, until, session.command(Rcpt::new(to.clone(), Vec::new()))).await?;
        }
        step(Stage::Content, until, session.command(Data)).await?;
        let response = step(Stage::Content, until, session.message(&content)).await?;
        // The mail is accepted; a failing QUIT changes nothing.
        _ = tokio::time::timeout(QUIT_WITHIN, session.quit()).await;
        Ok(response)
    }

    /// Builds the mail.
    ///
    /// # Errors
    /// If the recipient is not a valid address.
    pub fn mail(
        &self,
        to: &str,
        message: &Message,
        sketches: &Sketches,
        from: &Deployment,
    ) -> Result<lettre::Message, String> {
        let to: Mailbox = to.parse().map_err(|_| "not an email address".to_owned())?;
        let id = |of: &str| format!("<{of}@{}>", self.domain);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a date's seconds")]
        let date = std::time::UNIX_EPOCH + Duration::from_secs(message.at.max(0.0) as u64);
        let mut mail = lettre::Message::builder()
            .from(self.from.clone())
            .to(to)
            .date(date)
            .subject(subject(message, from))
            .message_id(Some(id(&message.id)));
        if message.thread != message.id {
            mail = mail.in_reply_to(id(&message.thread)).references(id(&message.thread));
        }
        let png = ContentType::parse("image/png").map_err(|_| "cannot attach the chart".to_owned())?;
        let mut rich = MultiPart::related().singlepart(SinglePart::html(html(message, sketches, from)));
        for (n, line) in message.alerts.iter().enumerate() {
            if let Some(picture) = sketches.get(&line.key).and_then(Sketch::picture) {
                rich = rich.singlepart(Attachment::new_inline(content_id(n)).body(picture, png.clone()));
            }
        }
        let plain = SinglePart::plain(plain(message, sketches, from));
        mail.multipart(MultiPart::alternative().singlepart(plain).multipart(rich))
            .map_err(|_| "cannot build the email".to_owned())
    }
}

fn tls_parameters(smtp: &Smtp, host: &str) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned()).dangerous_accept_invalid_certs(smtp.any_certificate);
    if let Some(path) = &smtp.authorities {
        let unusable = |why: String| format!("SMTP_CA_FILE is {path:?}: expected {why}");
        for certificate in tls::certificates(path).map_err(unusable)? {
            let certificate =
                Certificate::from_der(certificate.to_vec()).map_err(|error| unusable(error.to_string()))?;
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build_rustls().map_err(|_| "cannot initialize TLS".to_owned())
}

/// One command and its reply.
async fn step<T>(
    stage: Stage,
    until: Instant,
    exchange: impl Future<Output = Result<T, lettre::transport::smtp::Error>>,
) -> Result<T, Failure> {
    match timeout_at(until, exchange).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Failure { stage, cause: Cause::of(&error) }),
        Err(_) => Err(Failure { stage, cause: Cause::Timeout }),
    }
}

/// Host name of this machine, if qualified: servers reject other names in EHLO.
fn qualified_host_name() -> Option<ClientId> {
    match ClientId::default() {
        ClientId::Domain(name) if name.contains('.') => Some(ClientId::Domain(name)),
        _ => None,
    }
}

/// Address literal of this machine, as RFC 5321 (4.1.4) requires without a qualified name: the local address of the
/// route to the server. No packet is sent.
async fn address_literal(server: &[SocketAddr]) -> ClientId {
    let found = async {
        for to in server {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let Ok(socket) = UdpSocket::bind(any).await else { continue };
            if socket.connect(to).await.is_ok() {
                return socket.local_addr().ok();
            }
        }
        None
    };
    match found.await.map(|address| address.ip()) {
        Some(std::net::IpAddr::V4(address)) => ClientId::Ipv4(address),
        Some(std::net::IpAddr::V6(address)) => ClientId::Ipv6(address),
        None => ClientId::Ipv4(std::net::Ipv4Addr::LOCALHOST),
    }
}

/// Content-ID of the picture of the `n`th alert.
fn content_id(n: usize) -> String {
    format!("chart-{n}")
}

fn subject(message: &Message, from: &Deployment) -> String {
    let environment = from.name().map(|name| format!("[{}] ", visible(name))).unwrap_or_default();
    let word = match (message.about.is_firing(), message.severity) {
        (true, Severity::Critical) => "CRITICAL: ",
        (true, Severity::Warning) => "Warning: ",
        _ => "",
    };
    shortened(&format!("{environment}{word}{}", visible(&message.title)), 200)
}

pub(super) fn plain(message: &Message, sketches: &Sketches, from: &Deployment) -> String {
    let mut text = format!("{}\n\n", visible(&message.title));
    for line in &message.alerts {
        text.push_str(&format!(
            "* {}: {}\n",
            visible(line.subject.as_deref().unwrap_or(&line.rule)),
            visible(&line.message)
        ));
        text.push_str(&match (message.about, line.ended) {
            (About::Resolved, Some(ended)) => {
                format!("  duration {}, started {}\n", span(ended - line.since), moment(line.since))
            }
            _ => format!("  since {}\n", moment(line.since)),
        });
        if let Some(blocks) = sketches.get(&line.key).and_then(Sketch::blocks) {
            text.push_str(&format!("  {blocks}\n"));
        }
        if let Some(page) = from.page_of(line) {
            text.push_str(&format!("  {page}\n"));
        }
    }
    if message.more > 0 {
        text.push_str(&format!("* and {} more\n", message.more));
    }
    text.push_str(&format!("\n-- \n{}{} ref {}\n", place(from), moment(message.at), message.id));
    text
}

pub(super) fn html(message: &Message, sketches: &Sketches, from: &Deployment) -> String {
    let colour = match (message.about, message.severity) {
        (About::Resolved, _) => "#1b7a48",
        (About::Test, _) | (_, Severity::Info) => "#1f5fbf",
        (_, Severity::Critical) => "#bd2226",
        (_, Severity::Warning) => "#8f5b00",
    };
    let mut rows = String::new();
    for (n, line) in message.alerts.iter().enumerate() {
        let name = escaped(line.subject.as_deref().unwrap_or(&line.rule));
        let name = match from.page_of(line) {
            Some(page) => format!("<a href=\"{}\">{name}</a>", escaped(&page)),
            None => name,
        };
        let when = match (message.about, line.ended) {
            (About::Resolved, Some(ended)) => format!("duration {}", span(ended - line.since)),
            _ => format!("since {}", moment(line.since)),
        };
        let chart = sketches.get(&line.key).and_then(Sketch::said).map_or_else(String::new, |said| {
            let (id, said) = (content_id(n), escaped(&said));
            format!(
                "<br><img src=\"cid:{id}\" width=\"240\" height=\"48\" alt=\"{said}\"><br>\
                 <span style=\"color:#59636f;font-size:12px\">{said}</span>"
            )
        });
        rows.push_str(&format!(
            "<li><b>{name}</b>: {} <span style=\"color:#59636f\">({when})</span>{chart}</li>",
            escaped(&line.message)
        ));
    }
    if message.more > 0 {
        rows.push_str(&format!("<li>and {} more</li>", message.more));
    }
    format!(
        "<!doctype html><html><body style=\"font:14px/1.45 system-ui,sans-serif;color:#1a1f26\">\
         <p style=\"border-left:4px solid {colour};padding-left:10px;font-size:16px\"><b>{}</b></p><ul>{rows}</ul>\
         <p style=\"color:#59636f;font-size:12px\">{}{} · ref {}</p></body></html>",
        escaped(&message.title),
        escaped(&place(from)),
        moment(message.at),
        message.id
    )
}

fn place(from: &Deployment) -> String {
    match (&from.maturity, &from.url) {
        (Some(maturity), Some(url)) => format!("{} · {} · ", visible(maturity), visible(url)),
        (Some(one), None) | (None, Some(one)) => format!("{} · ", visible(one)),
        (None, None) => String::new(),
    }
}

fn escaped(text: &str) -> String {
    visible(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
