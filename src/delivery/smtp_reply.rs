//! Interprets replies of mail servers for a mail, its recipient and the channel.
//!
//! A 5xx proves that the recipient is invalid only if it names the recipient. Servers use the same codes to reject
//! this host, its EHLO name, its login or the sender, often as late as at RCPT TO.

use std::fmt;
use std::time::Duration;

use super::Outcome;
use crate::error_chain::{causes, root_cause, tls_error};
use crate::printable::{shortened, visible};
use crate::tls;

/// First pause after a temporary rejection (greylisting, full mailbox).
const LATER: Duration = Duration::from_secs(60);
/// First pause after an unreachable server.
const SOON: Duration = Duration::from_secs(2);

/// Stage of the session in which it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Connect, implicit TLS, greeting, EHLO.
    Connect,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Login,
    /// MAIL FROM.
    From,
    /// RCPT TO.
    Recipient,
    /// DATA and the message.
    Content,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::StartTls => "STARTTLS",
            Self::Login => "AUTH",
            Self::From => "MAIL FROM",
            Self::Recipient => "RCPT TO",
            Self::Content => "DATA",
        })
    }
}

/// Cause of the failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// The server's code and text.
    Reply(u16, String),
    /// TLS failed.
    Tls(String),
    /// The server lacks a required extension.
    NotSupported(String),
    /// The connection failed.
    Connection(String),
    /// No reply in time.
    Timeout,
}

impl Cause {
    pub(super) fn of(error: &lettre::transport::smtp::Error) -> Self {
        let text = || root_cause(error);
        if let Some(code) = error.status() {
            let said = causes(error).nth(1).map(ToString::to_string).unwrap_or_default();
            return Self::Reply(code.to_string().parse().unwrap_or(0), shortened(&visible(&said), 160));
        }
        match tls_error(error, &tls::SMTP) {
            Some(why) => Self::Tls(why),
            None if error.is_timeout() => Self::Timeout,
            None if error.is_client() => Self::NotSupported(text()),
            None => Self::Connection(text()),
        }
    }
}

/// A failed submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The stage.
    pub(super) stage: Stage,
    /// The cause.
    pub(super) cause: Cause,
}

impl Failure {
    pub(super) fn meaning(&self) -> Outcome {
        let stage = self.stage;
        let failed = |at_least, why| Outcome::ChannelFailed { at_least, why };
        match &self.cause {
            Cause::Reply(code, text) => reply(stage, *code, text),
            Cause::Tls(why) if why.contains("SMTP_") => Outcome::ChannelBroken(why.clone()),
            Cause::Tls(why) => Outcome::ChannelBroken(format!(
                "{why}. Check SMTP_USE_TLS (implicit: from the first byte; starttls) and the certificate of SMTP_HOST"
            )),
            Cause::NotSupported(why) => Outcome::ChannelBroken(match stage {
                Stage::StartTls => {
                    format!("{why}; set SMTP_USE_TLS to implicit, or to false to send without encryption")
                }
                Stage::Login => format!(
                    "{why} (AUTH PLAIN or LOGIN). Many servers offer them only with TLS: check SMTP_USE_TLS; a relay that \
                     needs no login takes an empty SMTP_USER"
                ),
                _ => why.clone(),
            }),
            Cause::Connection(why) => failed(SOON, format!("cannot connect ({stage}): {why}")),
            Cause::Timeout if stage == Stage::Connect => failed(
                SOON,
                "timed out (connecting; a port with TLS from the first byte needs SMTP_USE_TLS=implicit)".to_owned(),
            ),
            Cause::Timeout => failed(SOON, format!("timed out ({stage})")),
        }
    }
}

/// Outcome of a reply of 400 or more.
fn reply(stage: Stage, code: u16, text: &str) -> Outcome {
    let said = format!("{stage}: {code} {text}");
    let about = About::of(text);
    if (400..500).contains(&code) {
        // Temporary for this mail or recipient, unless the server complains about the sender.
        let of_this_mail = matches!(stage, Stage::Recipient | Stage::Content) && about == About::Unknown && code != 421;
        return if of_this_mail {
            Outcome::TryAgainAfter { channel_rests: None, at_least: LATER, why: said }
        } else {
            Outcome::ChannelFailed { at_least: LATER, why: said }
        };
    }
    let hint = match (stage, about) {
        (_, About::RateLimit) => return Outcome::ChannelFailed { at_least: LATER, why: said },
        (_, About::HeloName) => "set SMTP_HELO_NAME to the full name of this machine",
        (Stage::Connect, _) if matches!(code, 500..=504) => "set SMTP_HELO_NAME to the full name of this machine",
        (_, About::Encryption) => "set SMTP_USE_TLS to true",
        (Stage::Login, _) => login_hint(text),
        (_, About::Login) => "set SMTP_USER and SMTP_PASSWORD",
        (_, About::Relay) => "the server does not relay for this host: set SMTP_USER, or allow this host there",
        (_, About::Client) => "the server refuses this host",
        (Stage::From, _) | (_, About::Sender) => "check ALERT_EMAIL_FROM and SMTP_USER",
        (Stage::Connect, _) => "the server refuses this host",
        (Stage::StartTls, _) => "check SMTP_USE_TLS",
        (Stage::Recipient, About::NoSuchRecipient) => return Outcome::Never(said),
        (Stage::Content, About::TooLarge) => return Outcome::Never(said),
        (Stage::Recipient | Stage::Content, _) if matches!(code, 530 | 534 | 535 | 538) => {
            "set SMTP_USER and SMTP_PASSWORD"
        }
        (Stage::Recipient | Stage::Content, _) => return Outcome::Refused(said),
    };
    Outcome::ChannelBroken(format!("{said} ({hint})"))
}

/// What to do about a rejected login; the large providers reject valid passwords too.
fn login_hint(text: &str) -> &'static str {
    let text = text.to_lowercase();
    if text.contains("smtpclientauthentication is disabled") {
        "allow authenticated SMTP for this mailbox or tenant in the admin center of Microsoft 365"
    } else if text.contains("basic authentication is disabled") || text.contains("5.7.139") {
        "this server takes no passwords from this account: allow authenticated SMTP, or use a relay"
    } else if text.contains("application-specific password") {
        "set SMTP_PASSWORD to an app password of this account"
    } else {
        "check SMTP_USER and SMTP_PASSWORD"
    }
}

/// Subject of a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    HeloName,
    Encryption,
    Login,
    Relay,
    Client,
    Sender,
    NoSuchRecipient,
    TooLarge,
    RateLimit,
    Unknown,
}

impl About {
    fn of(text: &str) -> Self {
        // Text in angle brackets is an address or a name, not the server's wording.
        let words: Vec<&str> =
            text.split('<').map(|part| part.split_once('>').map_or(part, |(_, words)| words)).collect();
        let text = words.concat().to_lowercase();
        let any = |words: &[&str]| words.iter().any(|word| text.contains(word));
        // RFC 3463 codes. Wording takes precedence, because many servers use one code for all rejections.
        let code = text.split_whitespace().find(|word| {
            let parts: Vec<&str> = word.split('.').collect();
            parts.len() == 3 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        });
        let code = code.and_then(|code| code.split_once('.')).map(|(_, detail)| detail).unwrap_or_default();
        if any(&RATE_LIMIT) || code == "4.5" {
            Self::RateLimit
        } else if any(&["recipient table", "mailbox table", "alias table"]) {
            // Postfix: "User unknown in relay recipient table".
            Self::NoSuchRecipient
        } else if any(&["helo", "ehlo"]) {
            Self::HeloName
        } else if any(&["starttls", "encryption required", "tls required", "must use tls"]) {
            Self::Encryption
        } else if any(&["authenticat", "authoriz", "log in", "login required"]) && !any(&["recipient address rejected"])
        {
            Self::Login
        } else if any(&["relay"]) {
            Self::Relay
        } else if any(&["client host", "your host", "your ip", "blocked using", "blacklist", "blocklist", "spamhaus"]) {
            Self::Client
        } else if any(&["sender"]) || ["1.7", "1.8"].contains(&code) {
            Self::Sender
        } else if any(&NO_SUCH_RECIPIENT) || ["1.1", "1.2", "1.3", "1.6", "1.10", "2.1"].contains(&code) {
            Self::NoSuchRecipient
        } else if any(&["too large", "too big", "size limit", "exceeds fixed maximum", "exceeds size"])
            || ["2.3", "3.4"].contains(&code)
        {
            Self::TooLarge
        } else {
            Self::Unknown
        }
    }
}

/// Limits of senders, which pass. A full mailbox of the recipient is another thing.
const RATE_LIMIT: [&str; 7] = [
    "rate limit",
    "sending limit",
    "sending quota",
    "daily user",
    "daily message",
    "maximum sending rate",
    "too many messages",
];

const NO_SUCH_RECIPIENT: [&str; 17] = [
    "address unknown",
    "does not exist",
    "doesn't exist",
    "invalid mailbox",
    "invalid recipient",
    "mailbox not found",
    "no mailbox",
    "no such address",
    "no such mailbox",
    "no such recipient",
    "no such user",
    "recipient unknown",
    "unknown mailbox",
    "unknown recipient",
    "unknown user",
    "user not found",
    "user unknown",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Kind {
        Later,
        Failed,
        Refused,
        Never,
        Broken,
    }

    fn kind(stage: Stage, code: u16, text: &str) -> (Kind, String) {
        let outcome = Failure { stage, cause: Cause::Reply(code, text.to_owned()) }.meaning();
        let kind = match &outcome {
            Outcome::TryAgainAfter { .. } => Kind::Later,
            Outcome::ChannelFailed { .. } => Kind::Failed,
            Outcome::Refused(_) => Kind::Refused,
            Outcome::Never(_) => Kind::Never,
            Outcome::ChannelBroken(_) => Kind::Broken,
            Outcome::Sent(_) => panic!("{outcome:?}"),
        };
        (kind, outcome.answer().to_owned())
    }

    #[test]
    fn a_rejection_is_final_only_if_it_names_the_recipient_or_the_size() {
        use Kind::{Broken, Failed, Later, Never, Refused};
        use Stage::{Connect, Content, From, Login, Recipient, StartTls};
        for (stage, code, text, expected, hint) in [
            (Recipient, 550, "no such mailbox", Never, "no such mailbox"),
            (Recipient, 550, "5.1.1 <gone@example.org>: Recipient address rejected: User unknown", Never, "5.1.1"),
            (Recipient, 550, "5.2.1 The email account that you tried to reach is disabled", Never, "5.2.1"),
            (Content, 552, "5.3.4 Message size exceeds fixed limit", Never, "5.3.4"),
            (Recipient, 550, "5.1.1 <a@b.example>: User unknown in relay recipient table", Never, "recipient table"),
            (Recipient, 550, "5.1.1 <a@b.example>: User unknown in virtual mailbox table", Never, "mailbox table"),
            // Limits pass, whatever the code.
            (Recipient, 550, "5.4.5 Daily user sending limit exceeded", Failed, "5.4.5"),
            (From, 550, "5.4.5 Daily SMTP relay limit exceeded for customer", Failed, "5.4.5"),
            (Content, 554, "Throttling failure: Maximum sending rate exceeded.", Failed, "rate"),
            (Recipient, 550, "relay denied", Broken, "SMTP_USER"),
            (Recipient, 554, "5.7.1 <a@b.example>: Relay access denied", Broken, "SMTP_USER"),
            (Recipient, 550, "5.7.1 Unable to relay for unknown user", Broken, "relay"),
            (
                Recipient,
                504,
                "5.5.2 <4f1c>: Helo command rejected: need fully-qualified hostname",
                Broken,
                "SMTP_HELO_NAME",
            ),
            (Recipient, 554, "5.7.1 <unknown[10.1.2.3]>: Client host rejected: Access denied", Broken, "this host"),
            (
                Recipient,
                553,
                "5.7.1 <a@b.example>: Sender address rejected: not owned by user",
                Broken,
                "ALERT_EMAIL_FROM",
            ),
            (Recipient, 530, "5.7.0 Authentication required", Broken, "SMTP_USER"),
            (From, 554, "5.7.1 Access denied", Broken, "ALERT_EMAIL_FROM"),
            (From, 550, "no such user", Broken, "ALERT_EMAIL_FROM"),
            (From, 530, "5.7.0 Must issue a STARTTLS command first", Broken, "SMTP_USE_TLS"),
            (From, 530, "5.7.57 Client not authenticated to send mail", Broken, "SMTP_USER"),
            (Connect, 504, "need a name with a dot", Broken, "SMTP_HELO_NAME"),
            (Connect, 554, "5.7.1 no SMTP service for you", Broken, "this host"),
            (Login, 535, "5.7.8 bad password", Broken, "check SMTP_USER and SMTP_PASSWORD"),
            (
                Login,
                535,
                "5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.",
                Broken,
                "allow authenticated SMTP for this mailbox",
            ),
            (Login, 534, "5.7.9 Application-specific password required.", Broken, "app password"),
            (Login, 504, "5.5.4 unrecognized authentication type", Broken, "SMTP_USER"),
            (StartTls, 502, "not implemented", Broken, "SMTP_USE_TLS"),
            // Not proven, so not final.
            (Recipient, 550, "5.7.1 policy", Refused, "policy"),
            (Recipient, 552, "5.2.2 mailbox full", Refused, "full"),
            (Recipient, 550, "requested action not taken: mailbox unavailable", Refused, "unavailable"),
            (Content, 554, "5.7.1 rejected as spam", Refused, "spam"),
            (Recipient, 452, "mailbox full", Later, "full"),
            (Recipient, 450, "4.2.0 greylisted, see you in 300 seconds", Later, "greylisted"),
            (Recipient, 450, "4.7.1 <4f1c>: Helo command rejected: Host not found", Failed, "Helo"),
            (Recipient, 421, "4.7.0 closing", Failed, "421"),
            (From, 451, "4.3.0 try again", Failed, "451"),
            (Connect, 421, "too many connections", Failed, "421"),
            (Login, 454, "4.7.0 temporary authentication failure", Failed, "454"),
        ] {
            let (kind, said) = kind(stage, code, text);
            assert_eq!(kind, expected, "{stage}: {code} {text}: {said}");
            assert!(said.contains(hint), "{stage}: {code} {text}: {said}");
        }
    }

    #[test]
    fn a_server_without_tls_or_login_breaks_the_channel_and_reports_the_setting() {
        for (stage, setting) in [(Stage::StartTls, "SMTP_USE_TLS"), (Stage::Login, "SMTP_USER")] {
            let cause = Cause::NotSupported("not offered".to_owned());
            let Outcome::ChannelBroken(why) = (Failure { stage, cause }).meaning() else { panic!("{stage}") };
            assert!(why.contains(setting), "{why}");
        }
        let silent = Failure { stage: Stage::Connect, cause: Cause::Timeout }.meaning();
        assert!(matches!(&silent, Outcome::ChannelFailed { why, .. } if why.contains("implicit")), "{silent:?}");
    }
}
