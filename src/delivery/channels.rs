//! The notification channels, by name: `slack`, `email:ADDRESS` for each recipient, `webhook`.

use reqwest::Client;

use super::email::{Mailer, Smtp};
use super::sparkline::Sketches;
use super::{Deployment, Outcome, http, slack, webhook};
use crate::alerting::message::Message;
use crate::settings::Secret;

/// Configuration of the channels.
#[derive(Debug, Clone, Default)]
pub struct ChannelSettings {
    /// URL of a Slack incoming webhook.
    pub slack: Option<Secret>,
    /// URL of a webhook for Alertmanager's payload.
    pub webhook: Option<Secret>,
    /// PEM file with additional CA certificates for both webhooks.
    pub webhook_authorities: Option<String>,
    /// Mail server and recipients.
    pub email: Option<(Smtp, Vec<String>)>,
    /// Shown in every notification.
    pub deployment: Deployment,
}

/// The configured channels.
pub struct Channels {
    settings: ChannelSettings,
    /// Created only if a channel needs it, because it loads the system's certificates.
    client: Option<Client>,
    mailer: Option<Mailer>,
}

impl Channels {
    /// Creates the channels. Does not connect.
    ///
    /// # Errors
    /// The invalid setting; secrets are not included.
    pub fn new(settings: ChannelSettings) -> Result<Self, String> {
        // Fails if another part of the program installed the same provider already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let speaks_http = settings.slack.is_some() || settings.webhook.is_some();
        let client = speaks_http.then(|| http::client(settings.webhook_authorities.as_deref())).transpose()?;
        let mailer = settings.email.as_ref().map(|(smtp, _)| Mailer::new(smtp)).transpose()?;
        Ok(Self { settings, client, mailer })
    }

    /// Names of the channels.
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

    /// Sends `message` through the channel of that name, with `sketches` if the channel can show them.
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

/// Outcome for a channel that is no longer configured.
fn gone() -> Outcome {
    Outcome::Never("this channel is no longer configured".to_owned())
}
