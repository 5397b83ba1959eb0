//! E-mail by SMTP: plain and HTML, one mail per recipient, encrypted or not sent at all.

use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use super::sketch::{Sketch, Sketches};
use super::{Deployment, Outcome, moment, shortened, visible};
use crate::alerting::message::{About, Message, span};
use crate::alerting::rule::Severity;
use crate::settings::{MailTls, Secret};
use crate::tls;

/// A mail that was put off is tried again no sooner.
const LATER: Duration = Duration::from_secs(60);
/// What a server answers to a login that it does not take: no mail to anybody is sent until that is
/// mended, and then all of them can be.
const LOGIN_REFUSED: [&str; 4] = ["530", "534", "535", "538"];
/// A server that has not answered by then is tried again.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How mail leaves.
#[derive(Debug, Clone)]
pub struct Smtp {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The login, if there is one.
    pub login: Option<(String, Secret)>,
    /// How it is encrypted.
    pub tls: MailTls,
    /// PEM file with more authorities that its certificate may be signed by.
    pub authorities: Option<String>,
    /// Its certificate is not verified.
    pub any_certificate: bool,
    /// Whom it comes from.
    pub from: String,
}

/// Sends mail.
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    /// What follows the @ in a Message-ID.
    domain: String,
}

impl Mailer {
    /// A mailer by this server. Nothing is connected yet.
    ///
    /// # Errors
    /// What cannot be used, without the password.
    pub fn new(smtp: &Smtp) -> Result<Self, String> {
        let from: Mailbox = smtp.from.parse().map_err(|_| format!("{} is not an email address", smtp.from))?;
        let parameters = || tls_parameters(smtp);
        let tls = match smtp.tls {
            MailTls::Implicit => Tls::Wrapper(parameters()?),
            // Required, not offered: a server that has no STARTTLS gets no mail.
            MailTls::StartTls => Tls::Required(parameters()?),
            MailTls::Off => Tls::None,
        };
        let domain = from.email.domain().to_owned();
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&smtp.host)
            .port(smtp.port)
            .timeout(Some(ANSWER_WITHIN))
            .hello_name(ClientId::default())
            .tls(tls);
        if let Some((user, password)) = &smtp.login {
            builder = builder.credentials(Credentials::new(user.clone(), password.reveal().to_owned()));
        }
        Ok(Self { transport: builder.build(), from, domain })
    }

    /// Sends a message to one recipient.
    pub async fn send(&self, to: &str, message: &Message, sketches: &Sketches, from: &Deployment) -> Outcome {
        let mail = match self.mail(to, message, sketches, from) {
            Ok(mail) => mail,
            Err(why) => return Outcome::Never(why),
        };
        match self.transport.send(mail).await {
            Ok(response) => Outcome::Sent(shortened(&visible(response.first_line().unwrap_or_default()), 120)),
            Err(error) => {
                let mut why = error.to_string();
                if let Some(cause) = std::error::Error::source(&error).map(ToString::to_string)
                    && !why.contains(&cause)
                {
                    why = format!("{why}: {cause}");
                }
                // The remedy comes last, and is worth more than brevity.
                let failure = tls::explain(&why, &tls::SMTP);
                let most = if failure.is_some() { 400 } else { 160 };
                let why = failure.map(|failure| failure.append_to(&why)).unwrap_or(why);
                let why = shortened(&visible(&why), most);
                let code = error.status().map(|code| code.to_string()).unwrap_or_default();
                if LOGIN_REFUSED.contains(&code.as_str()) {
                    Outcome::ChannelBroken(why)
                } else if error.is_permanent() {
                    Outcome::Never(why)
                } else {
                    Outcome::TryAgainAfter { channel_rests: None, at_least: LATER, why }
                }
            }
        }
    }

    /// The mail as it is sent.
    ///
    /// # Errors
    /// When the recipient is no address.
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

fn tls_parameters(smtp: &Smtp) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(smtp.host.clone()).dangerous_accept_invalid_certs(smtp.any_certificate);
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

/// By which the text names the picture of its `n`th alert.
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
