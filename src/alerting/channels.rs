//! The kinds of notification channels, one row each. Settings, routes, the doctor and the documentation are derived from
//! them; `delivery` has a module for each.

/// A kind of channel.
#[derive(Debug)]
pub struct ChannelKind {
    /// Name in routes, and of its messages in the outbox.
    pub name: &'static str,
    /// The setting that turns it on.
    pub setting: &'static str,
    /// Its settings, that one first. Those of e-mail are not here: they have formats of their own.
    pub settings: &'static [ChannelSetting],
}

/// A setting of a channel.
#[derive(Debug)]
pub struct ChannelSetting {
    /// Environment variable.
    pub env: &'static str,
    /// Kind of value.
    pub holds: Holds,
    /// Default; empty for none.
    pub default: &'static str,
    /// Description for `--help` and the documentation.
    pub help: &'static str,
}

/// Kind of value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A URL that contains a secret.
    SecretUrl,
    /// A URL.
    Url,
    /// A secret.
    Secret,
    /// A text without which the channel does not work.
    Needed,
    /// Any text.
    Text,
}

impl Holds {
    /// Whether the value is never shown.
    #[must_use]
    pub fn is_secret(self) -> bool {
        matches!(self, Self::SecretUrl | Self::Secret)
    }
}

const fn setting(env: &'static str, holds: Holds, default: &'static str, help: &'static str) -> ChannelSetting {
    ChannelSetting { env, holds, default, help }
}

/// All kinds of channels.
pub const CHANNELS: &[ChannelKind] = &[
    ChannelKind {
        name: "slack",
        setting: "SLACK_WEBHOOK_URL",
        settings: &[setting(
            "SLACK_WEBHOOK_URL",
            Holds::SecretUrl,
            "",
            "URL of a Slack incoming webhook, or one of a compatible service such as Mattermost; empty: off",
        )],
    },
    ChannelKind { name: "email", setting: "ALERT_EMAIL_TO", settings: &[] },
    ChannelKind {
        name: "webhook",
        setting: "ALERT_WEBHOOK_URL",
        settings: &[setting(
            "ALERT_WEBHOOK_URL",
            Holds::SecretUrl,
            "",
            "URL that receives alerts in the Alertmanager webhook format (version 4); empty: off",
        )],
    },
    ChannelKind {
        name: "pagerduty",
        setting: "PAGERDUTY_ROUTING_KEY",
        settings: &[
            setting(
                "PAGERDUTY_ROUTING_KEY",
                Holds::Secret,
                "",
                "Integration key of a PagerDuty service (Events API v2); empty: off",
            ),
            setting(
                "PAGERDUTY_URL",
                Holds::Url,
                "https://events.pagerduty.com/v2/enqueue",
                "Events API; https://events.eu.pagerduty.com/v2/enqueue for accounts in the EU",
            ),
        ],
    },
    ChannelKind {
        name: "opsgenie",
        setting: "OPSGENIE_API_KEY",
        settings: &[
            setting("OPSGENIE_API_KEY", Holds::Secret, "", "Key of an Opsgenie API integration; empty: off"),
            setting(
                "OPSGENIE_URL",
                Holds::Url,
                "https://api.opsgenie.com",
                "Alert API of Opsgenie, or of a compatible service; https://api.eu.opsgenie.com for accounts in the EU",
            ),
        ],
    },
    ChannelKind {
        name: "teams",
        setting: "TEAMS_WEBHOOK_URL",
        settings: &[setting(
            "TEAMS_WEBHOOK_URL",
            Holds::SecretUrl,
            "",
            "URL of a Microsoft Teams workflow that posts adaptive cards (\"When a Teams webhook request is received\"); empty: \
             off",
        )],
    },
    ChannelKind {
        name: "discord",
        setting: "DISCORD_WEBHOOK_URL",
        settings: &[setting("DISCORD_WEBHOOK_URL", Holds::SecretUrl, "", "URL of a Discord webhook; empty: off")],
    },
    ChannelKind {
        name: "telegram",
        setting: "TELEGRAM_BOT_TOKEN",
        settings: &[
            setting("TELEGRAM_BOT_TOKEN", Holds::Secret, "", "Token of a Telegram bot; empty: off"),
            setting(
                "TELEGRAM_CHAT_ID",
                Holds::Needed,
                "",
                "Chat to which the bot writes: its number, or @name of a public channel",
            ),
            setting(
                "TELEGRAM_URL",
                Holds::Url,
                "https://api.telegram.org",
                "Telegram Bot API, or a local server of it",
            ),
        ],
    },
    ChannelKind {
        name: "ntfy",
        setting: "NTFY_URL",
        settings: &[
            setting(
                "NTFY_URL",
                Holds::SecretUrl,
                "",
                "URL of an ntfy topic, such as https://ntfy.sh/topic; empty: off",
            ),
            setting("NTFY_TOKEN", Holds::Secret, "", "Access token for a protected ntfy topic"),
        ],
    },
    ChannelKind {
        name: "template",
        setting: "ALERT_TEMPLATE_URL",
        settings: &[
            setting(
                "ALERT_TEMPLATE_URL",
                Holds::SecretUrl,
                "",
                "URL that receives notifications in the format of ALERT_TEMPLATE; empty: off",
            ),
            setting(
                "ALERT_TEMPLATE",
                Holds::Needed,
                "",
                "Handlebars file of the request body for ALERT_TEMPLATE_URL (docs/alerts.md lists the fields)",
            ),
            setting("ALERT_TEMPLATE_TYPE", Holds::Text, "application/json", "Content type of that body"),
        ],
    },
];

/// The kind of that name.
#[must_use]
pub fn kind(name: &str) -> Option<&'static ChannelKind> {
    CHANNELS.iter().find(|kind| kind.name == name)
}

/// Names of all kinds, for messages.
#[must_use]
pub fn names() -> String {
    CHANNELS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

/// The settings that turn channels on, for messages.
#[must_use]
pub fn settings() -> String {
    CHANNELS.iter().map(|kind| kind.setting).collect::<Vec<_>>().join(", ")
}

/// Text for a setup without channels: no notifications are sent, and which settings to set.
#[must_use]
pub fn no_channel() -> String {
    format!("notifications are not sent: no channel is configured. Set one of {}", settings())
}
