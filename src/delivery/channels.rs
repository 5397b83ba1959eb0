//! The configured notification channels by name: those of [`CHANNELS`], and
//! `email:ADDRESS` for each recipient.

use futures_util::{StreamExt as _, stream};
use reqwest::Client;

use super::email::{Mailer, Smtp};
use super::http::{self, Request};
use super::sparkline::Sketches;
use super::{Deployment, Outcome, discord, ntfy, opsgenie, pagerduty, slack, teams, telegram, template, webhook};
use crate::alerting::channels::{CHANNELS, ChannelKind};
use crate::alerting::message::{About, Message};
use crate::settings::ChannelValues;

/// Requests of one notification that are sent at the same time, so that fifty alerts are sent within the limit of an attempt.
const REQUESTS_AT_ONCE: usize = 8;

/// A service that takes notifications by HTTP.
pub(super) trait Channel: Send + Sync {
    /// The requests that deliver `message`, in order. If one fails, all are sent again later.
    fn requests(&self, message: &Message, sketches: &Sketches, from: &Deployment) -> Vec<Request>;

    /// A simpler form, for a service that rejects the first.
    fn simpler(&self, _: &Message, _: &Deployment) -> Option<Request> {
        None
    }
}

/// The channel of each kind, in its module.
pub(super) fn of(values: &ChannelValues) -> Result<Box<dyn Channel>, String> {
    Ok(match values.kind.name {
        "slack" => Box::new(slack::Slack::new(values)),
        "webhook" => Box::new(webhook::Webhook::new(values)),
        "pagerduty" => Box::new(pagerduty::PagerDuty::new(values)),
        "opsgenie" => Box::new(opsgenie::Opsgenie::new(values)),
        "teams" => Box::new(teams::Teams::new(values)),
        "discord" => Box::new(discord::Discord::new(values)),
        "telegram" => Box::new(telegram::Telegram::new(values)),
        "ntfy" => Box::new(ntfy::Ntfy::new(values)?),
        "template" => Box::new(template::Template::new(values)?),
        other => return Err(format!("no module for channel {other}")),
    })
}

/// Configuration of the channels.
#[derive(Debug, Clone, Default)]
pub struct ChannelSettings {
    /// The channels that are on, without e-mail.
    pub channels: Vec<ChannelValues>,
    /// PEM file with additional CA certificates for their URLs.
    pub webhook_authorities: Option<String>,
    /// Mail server and recipients.
    pub email: Option<(Smtp, Vec<String>)>,
    /// Shown in every notification.
    pub deployment: Deployment,
}

/// The configured channels.
pub struct Channels {
    by_http: Vec<(&'static str, Box<dyn Channel>)>,
    /// Created only if a channel needs it, because it loads the system's certificates.
    client: Option<Client>,
    mailer: Option<(Mailer, Vec<String>)>,
    from: Deployment,
}

impl Channels {
    /// Creates the channels. Does not connect.
    ///
    /// # Errors
    /// The invalid setting; secrets are not included.
    pub fn new(settings: ChannelSettings) -> Result<Self, String> {
        // Fails if another part of the program installed the same provider already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let ChannelSettings { channels, webhook_authorities, email, deployment: from } = settings;
        let by_http: Result<Vec<_>, String> =
            channels.iter().map(|values| Ok((values.kind.name, of(values)?))).collect();
        let by_http = by_http?;
        let client = (!by_http.is_empty()).then(|| http::client(webhook_authorities.as_deref())).transpose()?;
        let mailer = email.map(|(smtp, to)| Ok::<_, String>((Mailer::new(&smtp)?, to))).transpose()?;
        Ok(Self { by_http, client, mailer, from })
    }

    /// Names of the channels, in the order of their kinds.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let recipients = || self.mailer.iter().flat_map(|(_, recipients)| recipients).map(|to| format!("email:{to}"));
        let is_on = |kind: &ChannelKind| self.by_http.iter().any(|(name, _)| *name == kind.name);
        let of_kind = |kind: &ChannelKind| match kind.name {
            "email" => recipients().collect(),
            name if is_on(kind) => vec![name.to_owned()],
            _ => Vec::new(),
        };
        CHANNELS.iter().flat_map(of_kind).collect()
    }

    /// Sends `message` through the channel of that name, with `sketches` if the channel can show them.
    pub async fn send(&self, channel: &str, message: &Message, sketches: &Sketches) -> Outcome {
        if let (Some(to), Some((mailer, _))) = (channel.strip_prefix("email:"), &self.mailer) {
            return mailer.send(to, message, sketches, &self.from).await;
        }
        let by_http = self.by_http.iter().find(|(name, _)| *name == channel);
        let (Some((_, channel)), Some(client)) = (by_http, &self.client) else {
            return Outcome::Never("this channel is no longer configured".to_owned());
        };
        // The requests of a notification are about different alerts, except those of a test.
        let at_once = if message.about == About::Test { 1 } else { REQUESTS_AT_ONCE };
        let requests = channel.requests(message, sketches, &self.from);
        let mut outcomes = stream::iter(requests).map(|request| http::send(client, request)).buffered(at_once);
        let mut outcome = Outcome::Sent(String::new());
        while let Some(next) = outcomes.next().await {
            outcome = next;
            if !matches!(outcome, Outcome::Sent(_)) {
                break;
            }
        }
        drop(outcomes);
        let (Outcome::Never(_) | Outcome::Refused(_), Some(simpler)) = (&outcome, channel.simpler(message, &self.from))
        else {
            return outcome;
        };
        match http::send(client, simpler).await {
            Outcome::Sent(said) => Outcome::Sent(format!("{said} (as plain text; with blocks: {})", outcome.answer())),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_module() {
        for kind in CHANNELS.iter().filter(|kind| !kind.settings.is_empty()) {
            let values = ChannelValues { kind, values: std::collections::BTreeMap::new() };
            let made = of(&values).map(drop);
            assert!(!made.is_err_and(|why| why.starts_with("no module")), "{}", kind.name);
        }
    }
}
