//! The channels there are, by name: `slack`, `email:ADDRESS` for each recipient, `webhook`.

use reqwest::Client;

use super::email::{Mailer, Smtp};
use super::sketch::Sketches;
use super::{Deployment, Outcome, http, slack, webhook};
use crate::alerting::message::Message;
use crate::settings::Secret;

/// What the channels are made of.
#[derive(Debug, Clone, Default)]
pub struct ChannelSettings {
    /// Slack's incoming webhook.
    pub slack: Option<Secret>,
    /// A webhook that takes Alertmanager's payload.
    pub webhook: Option<Secret>,
    /// PEM file with more authorities that both webhooks may be signed by.
    pub webhook_authorities: Option<String>,
    /// How mail leaves, and to whom.
    pub email: Option<(Smtp, Vec<String>)>,
    /// Shown in every message.
    pub deployment: Deployment,
}

/// The channels, ready to send.
pub struct Channels {
    settings: ChannelSettings,
    /// None when no channel needs it: it reads the system's certificates when it is made.
    client: Option<Client>,
    mailer: Option<Mailer>,
}

impl Channels {
    /// Makes them. Nothing is connected yet.
    ///
    /// # Errors
    /// What cannot be used; no secret is repeated.
    pub fn new(settings: ChannelSettings) -> Result<Self, String> {
        // Another part of the program may have chosen already, and chose the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let speaks_http = settings.slack.is_some() || settings.webhook.is_some();
        let client = speaks_http.then(|| http::client(settings.webhook_authorities.as_deref())).transpose()?;
        let mailer = settings.email.as_ref().map(|(smtp, _)| Mailer::new(smtp)).transpose()?;
        Ok(Self { settings, client, mailer })
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.settings.slack.is_some() {
            names.push("slack".to_owned());
        }
        if let Some((_, recipients)) = &self.settings.email {
            names.extend(recipients.iter().map(|to| format!("email:{to}")));
        }
        if self.settings.webhook.is_some() {
            names.push("webhook".to_owned());
        }
        names
    }

    /// Sends `message` by the channel of that name, with these drawings where it can show them.
    pub async fn send(&self, channel: &str, message: &Message, sketches: &Sketches) -> Outcome {
        let (settings, from) = (&self.settings, &self.settings.deployment);
        match (channel, channel.strip_prefix("email:")) {
            ("slack", _) => match (&settings.slack, &self.client) {
                (Some(url), Some(client)) => slack::send(client, url, message, sketches, from).await,
                _ => gone(),
            },
            ("webhook", _) => match (&settings.webhook, &self.client) {
                (Some(url), Some(client)) => webhook::send(client, url, message, from).await,
                _ => gone(),
            },
            (_, Some(to)) => match &self.mailer {
                Some(mailer) => mailer.send(to, message, sketches, from).await,
                None => gone(),
            },
            _ => gone(),
        }
    }
}

/// A message for a channel that was set up once and is not any more.
fn gone() -> Outcome {
    Outcome::Never("this channel is no longer configured".to_owned())
}
