//! Settings: each has an environment variable, a flag and a default, all in one table.
//!
//! [`TABLE`] lists and describes them; `--help` and docs/settings.md are generated from it. [`Settings::from`] parses
//! them once; an invalid value is a [`BadSetting`], one line with the name, the value and the expected value.

mod access;
mod document;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::access::Policy;
use crate::access::address::TrustedProxies;
use crate::alerting::channels::{CHANNELS, ChannelKind, ChannelSetting, Holds};
use crate::contract::Name;
use crate::environment::{self, percent_encoded};
use crate::fleet::watched::WatchedStreams;
use crate::history::Keep;
use crate::postgres::address;
use crate::redis_streams::address as redis_address;
use crate::tls;
use crate::traces::{self, Collector};

pub use crate::environment::BadSetting;
pub use document::document;

/// Description of a setting.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Environment variable.
    pub env: &'static str,
    /// Default value; empty for none.
    pub default: &'static str,
    /// Description for `--help` and the documentation.
    pub help: &'static str,
    /// The value is never shown.
    pub secret: bool,
    /// Heading in `--help` and the documentation.
    pub group: &'static str,
}

impl Entry {
    /// Name of the flag: the variable in lower case with dashes, without `MONITOR_`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.env.strip_prefix("MONITOR_").unwrap_or(self.env).to_lowercase().replace('_', "-")
    }
}

const fn entry(group: &'static str, env: &'static str, default: &'static str, help: &'static str) -> Entry {
    Entry { env, default, help, secret: false, group }
}

const fn secret(group: &'static str, env: &'static str, help: &'static str) -> Entry {
    Entry { env, default: "", help, secret: true, group }
}

const REDIS: &str = "Redis";
const POSTGRES: &str = "Postgres";
const SERVER: &str = "Server";
const ACCESS: &str = "Access";
/// Description of every `…_FILE` setting.
const SECRET_FILE: &str = "File with the value of the variable without _FILE";
/// Prefixes of the monitor's settings.
pub const PREFIXES: [&str; 6] = ["MONITOR_", "REDIS_", "POSTGRES_", "SMTP_", "ALERT_", "SLACK_"];
/// Confirms that clients without authentication may change everything.
const ACCEPTED: &str = "MONITOR_I_ACCEPT_THAT_ANYBODY_MAY_CHANGE_EVERYTHING";
const FLEET: &str = "Fleet";
const HISTORY: &str = "History";
const JANITOR: &str = "Janitor";
const ALERTS: &str = "Alerts";
const TRACES: &str = "Traces";
const CHANNEL: &str = "Notification channels";

/// All settings of the monitor, in the order of the documentation.
pub static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| BASE.iter().copied().chain(of_channels()).collect());

/// Settings of the channels ([`CHANNELS`]).
fn of_channels() -> impl Iterator<Item = Entry> {
    CHANNELS.iter().flat_map(|kind| kind.settings).flat_map(|setting| {
        let &ChannelSetting { env, default, help, holds } = setting;
        let file = holds.is_secret().then(|| entry(CHANNEL, format!("{env}_FILE").leak(), "", SECRET_FILE));
        [Some(Entry { env, default, help, secret: holds.is_secret(), group: CHANNEL }), file].into_iter().flatten()
    })
}

/// All other settings.
const BASE: &[Entry] = &[
    secret(
        REDIS,
        "REDIS_URL",
        "Redis URL: redis://[user:password@]host:port/db, rediss:// for TLS. Overrides REDIS_HOST, REDIS_PORT, REDIS_USER and REDIS_PASSWORD",
    ),
    entry(REDIS, "REDIS_URL_FILE", "", SECRET_FILE),
    entry(REDIS, "REDIS_HOST", "localhost", "Redis host, host:port, or path of a Unix socket"),
    entry(REDIS, "REDIS_PORT", "6379", "Redis port"),
    entry(REDIS, "REDIS_USER", "", "Redis user (ACL)"),
    secret(REDIS, "REDIS_PASSWORD", "Redis password"),
    entry(REDIS, "REDIS_PASSWORD_FILE", "", SECRET_FILE),
    entry(
        REDIS,
        "REDIS_TLS",
        "",
        "yes: connect to REDIS_HOST with TLS; implied by REDIS_TLS_CA_FILE, REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE",
    ),
    entry(
        REDIS,
        "REDIS_TLS_CA_FILE",
        "",
        "PEM file with the CA certificates for Redis; empty: the CA certificates of the system",
    ),
    entry(REDIS, "REDIS_TLS_CERT_FILE", "", "PEM file with the client certificate for Redis, if it requires one"),
    entry(REDIS, "REDIS_TLS_KEY_FILE", "", "PEM file with the private key of REDIS_TLS_CERT_FILE"),
    secret(
        POSTGRES,
        "DATABASE_URL",
        "Postgres URL: postgres://user:password@host:port/database, or host=HOST user=USER as in libpq. Overrides \
         POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB",
    ),
    entry(POSTGRES, "DATABASE_URL_FILE", "", SECRET_FILE),
    entry(
        POSTGRES,
        "POSTGRES_HOST",
        "localhost",
        "Postgres host, host:port, a comma-separated list of these, or the directory of a Unix socket",
    ),
    entry(POSTGRES, "POSTGRES_PORT", "5432", "Postgres port"),
    entry(POSTGRES, "POSTGRES_USER", "postgres", "Postgres user"),
    secret(POSTGRES, "POSTGRES_PASSWORD", "Postgres password"),
    entry(POSTGRES, "POSTGRES_PASSWORD_FILE", "", SECRET_FILE),
    entry(POSTGRES, "POSTGRES_DB", "postgres", "Postgres database"),
    entry(
        POSTGRES,
        "POSTGRES_SSLMODE",
        "",
        "disable, prefer, require, verify-ca or verify-full, as libpq; empty: verify-full with POSTGRES_SSLROOTCERT, else \
         prefer",
    ),
    entry(
        POSTGRES,
        "POSTGRES_SSLROOTCERT",
        "",
        "PEM file with the CA certificates for Postgres; system: the CA certificates of the system",
    ),
    entry(POSTGRES, "POSTGRES_SSLCERT", "", "PEM file with the client certificate for Postgres"),
    entry(POSTGRES, "POSTGRES_SSLKEY", "", "PEM file with the private key of POSTGRES_SSLCERT"),
    entry(POSTGRES, "POSTGRES_POOL_TIMEOUT", "5", "Timeout for a connection from the Postgres pool (5, 5s, 500ms)"),
    entry(
        POSTGRES,
        "PG_VOLUME_CAPACITY",
        "",
        "Size of the Postgres volume, for the disk usage (100Gi, 50G, bytes); empty: unknown",
    ),
    entry(SERVER, "MONITOR_BIND", "127.0.0.1", "Address to listen on; 0.0.0.0 for all"),
    entry(SERVER, "MONITOR_PORT", "5440", "Port to listen on; 0 picks a free one"),
    entry(
        SERVER,
        "MONITOR_ROOT_PATH",
        "",
        "URL prefix, in addition to / (such as /monitor); works with proxies that strip it and with proxies that do not",
    ),
    entry(
        SERVER,
        "SERVER_URL",
        "",
        "Public URL of this deployment, such as https://fleet.example; shown on pages and in notifications",
    ),
    entry(SERVER, "SERVER_MATURITY", "", "Environment (production, test, ...); shown on pages and in notifications"),
    entry(
        SERVER,
        "MONITOR_METRICS_PER_CONSUMER",
        "yes",
        "no: omit per-consumer series from /metrics (most of its size in large fleets)",
    ),
    entry(
        SERVER,
        "LOG_LEVEL",
        "info",
        "error, warn, info, debug, trace, or a filter such as info,shepherd_monitor=debug",
    ),
    entry(
        SERVER,
        "MONITOR_OBSERVE_ONLY",
        "no",
        "yes: read only, for a trial beside another monitor: no changes in Redis or in the fleet's tables, no cleanup, no \
         operator or admin actions. History and alerts are recorded in a separate schema; configured channels are notified",
    ),
    entry(
        ACCESS,
        "MONITOR_AUTH",
        "none",
        "Authentication mode: none (loopback only), token (bearer token, or login page in browsers), basic (the password is a \
         token), proxy (headers of an authenticating proxy), oidc (OpenID Connect: browsers log in at an identity provider, \
         programs use bearer tokens)",
    ),
    secret(
        ACCESS,
        "MONITOR_VIEWER_TOKEN",
        "Token for the viewer role; at least 16 random characters (openssl rand -hex 24)",
    ),
    secret(
        ACCESS,
        "MONITOR_OPERATOR_TOKEN",
        "Token for the operator role: acknowledge, silence, reload rules, retry messages, read the audit log",
    ),
    secret(
        ACCESS,
        "MONITOR_ADMIN_TOKEN",
        "Token for the admin role: also delete and restore messages, run cleanups, forget worker types",
    ),
    entry(ACCESS, "MONITOR_VIEWER_TOKEN_FILE", "", SECRET_FILE),
    entry(ACCESS, "MONITOR_OPERATOR_TOKEN_FILE", "", SECRET_FILE),
    entry(ACCESS, "MONITOR_ADMIN_TOKEN_FILE", "", SECRET_FILE),
    secret(
        ACCESS,
        "MONITOR_SECRET_KEY",
        "Secret that proves the rows of named users (shepherd-monitor users) and of sessions in Postgres; at least 32 random \
         characters (openssl rand -hex 32), the same for all monitors with this database",
    ),
    entry(ACCESS, "MONITOR_SECRET_KEY_FILE", "", SECRET_FILE),
    entry(ACCESS, "MONITOR_PROXY_TRUSTED", "", "Comma-separated addresses or networks of trusted proxies (10.0.0.0/8)"),
    entry(ACCESS, "MONITOR_SESSION_IDLE_SEC", "12h", "Idle timeout of a browser session (no request and no open page)"),
    entry(ACCESS, "MONITOR_SESSION_MAX_SEC", "168h", "Maximum lifetime of a browser session"),
    entry(ACCESS, "MONITOR_PROXY_USER_HEADER", "X-Forwarded-User", "Proxy header with the user name"),
    entry(
        ACCESS,
        "MONITOR_PROXY_ROLE_HEADER",
        "X-Forwarded-Role",
        "Proxy header with the role (viewer, operator or admin), or with groups listed in MONITOR_PROXY_ROLES",
    ),
    entry(
        ACCESS,
        "MONITOR_PROXY_ROLES",
        "",
        "Comma-separated roles of groups (sre=admin,ops=operator); the highest role applies",
    ),
    entry(
        ACCESS,
        "MONITOR_PROXY_DEFAULT_ROLE",
        "",
        "Role of users without a role or a listed group; empty: refuse them",
    ),
    entry(
        ACCESS,
        "MONITOR_OIDC_ISSUER",
        "",
        "Issuer URL of the identity provider (https://id.example/realms/ops), where the redirect URL SERVER_URL/login/callback \
         must be registered",
    ),
    entry(ACCESS, "MONITOR_OIDC_CLIENT_ID", "", "Client ID of the monitor at the identity provider"),
    secret(ACCESS, "MONITOR_OIDC_CLIENT_SECRET", "Client secret; empty for a public client"),
    entry(ACCESS, "MONITOR_OIDC_CLIENT_SECRET_FILE", "", SECRET_FILE),
    entry(
        ACCESS,
        "MONITOR_OIDC_SCOPES",
        "openid,profile,email",
        "Comma-separated scopes to request; some providers send groups only with a scope groups",
    ),
    entry(
        ACCESS,
        "MONITOR_OIDC_USER_CLAIM",
        "email",
        "Claim with the user name, which users must not be able to choose at the provider; sub is always unique",
    ),
    entry(ACCESS, "MONITOR_OIDC_GROUPS_CLAIM", "groups", "Claim with the groups, also as a path: realm_access.roles"),
    entry(
        ACCESS,
        "MONITOR_OIDC_ROLES",
        "",
        "Comma-separated roles of groups (sre=admin,ops=operator); the highest role applies",
    ),
    entry(ACCESS, "MONITOR_OIDC_DEFAULT_ROLE", "", "Role of users without a listed group; empty: refuse them"),
    entry(ACCESS, "MONITOR_OIDC_CA_FILE", "", "PEM file with additional CA certificates for the identity provider"),
    entry(
        ACCESS,
        "MONITOR_MAX_CONNECTIONS_PER_ADDRESS",
        "500",
        "Maximum connections per client address, except trusted proxies; 0: unlimited",
    ),
    entry(ACCESS, ACCEPTED, "", "yes: allow MONITOR_AUTH=none on addresses other than loopback"),
    entry(FLEET, "MONITOR_POLL_INTERVAL_SEC", "3", "Poll interval (3, 3s, 500ms)"),
    entry(FLEET, "MONITOR_STREAMS", "", "Comma-separated globs of the streams to watch; empty: all"),
    entry(FLEET, "MONITOR_STREAMS_EXCLUDE", "", "Comma-separated globs of streams to ignore"),
    entry(FLEET, "MONITOR_SEED_STREAMS", "", "Comma-separated streams to show before they exist"),
    entry(
        FLEET,
        "MONITOR_ARAS",
        "aragorn,arax,bte,sipr,gandalf,example",
        "Comma-separated ARAs of the per-ARA panel, in this order",
    ),
    entry(
        FLEET,
        "RECLAIM_MIN_IDLE_SEC",
        "30",
        "Hung threshold: seconds without progress after which a worker with pending messages is hung, for streams without a built-in threshold",
    ),
    entry(HISTORY, "MONITOR_HISTORY_INTERVAL_SEC", "30", "Interval at which series and run times are recorded"),
    entry(HISTORY, "MONITOR_HISTORY_DAYS", "3", "Retention of series in Redis, days"),
    entry(HISTORY, "MONITOR_METRICS_RETENTION_DAYS", "30", "Retention of series in Postgres, days; 0: unlimited"),
    entry(HISTORY, "MONITOR_LATENCY_RETENTION_DAYS", "30", "Retention of run times in Postgres, days; 0: unlimited"),
    entry(HISTORY, "MONITOR_EVENTS_RETENTION_DAYS", "30", "Retention of events in Postgres, days; 0: unlimited"),
    entry(
        HISTORY,
        "MONITOR_SPOOL_DIR",
        "",
        "Spool directory for samples and alerts while Postgres is unreachable; empty: shepherd-monitor in XDG_STATE_HOME, \
         HOME/.local/state or /var/lib",
    ),
    entry(JANITOR, "MONITOR_ABANDONED_QUERY_SEC", "600", "Age after which an unfinished query is marked as abandoned"),
    entry(JANITOR, "QUERY_RETENTION_DAYS", "30", "Retention of finished queries in Postgres, days; 0: unlimited"),
    entry(
        JANITOR,
        "MONITOR_JANITOR_EXCLUDE",
        "",
        "Comma-separated globs of streams that the janitor never trims and whose consumers it never deletes",
    ),
    entry(ALERTS, "MONITOR_ALERTS_CONFIG", "alerts.yaml", "Alert rules file; reloaded when it changes"),
    entry(
        ALERTS,
        "MONITOR_STARTUP_GRACE_SEC",
        "90",
        "Delay of worker-down alerts after the start; alerts that still fire are then sent",
    ),
    entry(ALERTS, "MONITOR_DOWN_DEBOUNCE_SEC", "5", "Worker-down alerts within this time are sent as one notification"),
    entry(
        ALERTS,
        "ALERT_WEBHOOK_CA_FILE",
        "",
        "PEM file with additional CA certificates for the URLs of all channels and HEARTBEAT_URL",
    ),
    secret(
        ALERTS,
        "HEARTBEAT_URL",
        "URL of an outside check (healthchecks.io, Uptime Kuma) that is requested every minute while this monitor leads, \
         evaluates alerts and has a working channel; empty: off",
    ),
    entry(ALERTS, "HEARTBEAT_URL_FILE", "", SECRET_FILE),
    entry(ALERTS, "ALERT_EMAIL_TO", "", "Comma-separated e-mail recipients; empty: e-mail is off"),
    entry(ALERTS, "ALERT_EMAIL_FROM", "", "Sender of e-mails"),
    entry(ALERTS, "SMTP_HOST", "", "SMTP server, host or host:port"),
    entry(ALERTS, "SMTP_PORT", "587", "SMTP port"),
    entry(ALERTS, "SMTP_USER", "", "SMTP user"),
    secret(ALERTS, "SMTP_PASSWORD", "SMTP password"),
    entry(ALERTS, "SMTP_PASSWORD_FILE", "", SECRET_FILE),
    entry(
        ALERTS,
        "SMTP_HELO_NAME",
        "",
        "Host name for EHLO; empty: the host name if it has a dot, else the IP address in brackets",
    ),
    entry(
        ALERTS,
        "SMTP_USE_TLS",
        "true",
        "SMTP encryption: true (implicit TLS on port 465, STARTTLS on others), implicit, starttls, or false; unless false, \
         e-mails are never sent unencrypted",
    ),
    entry(ALERTS, "SMTP_CA_FILE", "", "PEM file with additional CA certificates for the mail server"),
    entry(
        ALERTS,
        "SMTP_ACCEPT_ANY_CERTIFICATE_FROM",
        "",
        "Same host as SMTP_HOST: do not verify its certificate, for a relay with a self-signed certificate",
    ),
    entry(
        TRACES,
        traces::ENDPOINT,
        "",
        "OTLP/HTTP endpoint for spans (http://localhost:4318), in a build with the feature otlp; empty: off",
    ),
    secret(TRACES, traces::HEADERS, "OTLP headers: comma-separated name=value pairs, values percent-encoded"),
    entry(TRACES, "OTEL_EXPORTER_OTLP_HEADERS_FILE", "", SECRET_FILE),
    entry(TRACES, traces::SERVICE, "shepherd-monitor", "Service name in traces"),
];

/// A text that `Debug` does not print.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// All settings, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Redis URL, including the password.
    pub redis_url: Secret,
    /// Postgres URL, including the password and, in observe-only mode, the schema of the tables.
    pub database_url: Secret,
    /// Postgres as the fleet's tables are found there, if not with `database_url`: an observer's has only its own schema.
    pub fleet_database_url: Option<Secret>,
    /// Observe-only mode: the monitor changes nothing in Redis or in the fleet's tables.
    pub observe_only: bool,
    /// Timeout of acquiring a database connection.
    pub pool_timeout: Duration,
    /// Capacity of the database volume, bytes; 0 if unknown.
    pub disk_capacity_bytes: u64,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Port to listen on.
    pub port: u16,
    /// Path prefix of all routes: empty, or `/x` without a trailing slash.
    pub root_path: String,
    /// Authentication mode.
    pub access: Policy,
    /// Settings whose value is in a file, with its path.
    pub secret_files: Vec<(&'static str, PathBuf)>,
    /// Secret that proves the rows of named users; `None`: there are none.
    pub secret_key: Option<Secret>,
    /// Proxies whose headers are trusted.
    pub trusted_proxies: TrustedProxies,
    /// Idle time after which a session ends.
    pub session_idle: Duration,
    /// Total lifetime of a session.
    pub session_absolute: Duration,
    /// Maximum number of connections per address; 0: unlimited.
    pub connections_per_address: usize,
    /// Clients without authentication may change everything, as confirmed by the user.
    pub anybody_may: bool,
    /// Public URL of this deployment.
    pub server_url: Option<String>,
    /// Environment name of this deployment.
    pub maturity: Option<String>,
    /// Poll interval.
    pub poll_interval: Duration,
    /// Streams to watch.
    pub watched: WatchedStreams,
    /// Streams to show before they exist.
    pub seed_streams: Vec<Name>,
    /// Products of the panel by ARA.
    pub aras: Arc<[String]>,
    /// Hung threshold of streams that the contract does not list.
    pub default_floor: Duration,
    /// Interval of recording history.
    pub history_interval: Duration,
    /// Retention of series in Redis.
    pub recent_window: Duration,
    /// Retention of history in Postgres.
    pub keep: Keep,
    /// Folder of the spool, for data that waits for Postgres.
    pub spool_folder: PathBuf,
    /// Queries without an end are marked as abandoned at this age.
    pub abandoned_after: Duration,
    /// Retention of final queries, days; 0: forever.
    pub query_days: u32,
    /// Streams that cleanup runs may change.
    pub may_touch: WatchedStreams,
    /// Export metrics per consumer.
    pub metrics_per_consumer: bool,
    /// Log filter: a level, or a filter expression.
    pub log_level: String,
    /// Settings of alerts and notifications.
    pub alerts: AlertSettings,
    /// OpenTelemetry collector for spans.
    pub collector: Option<Collector>,
    /// Warnings about valid but questionable settings.
    pub warnings: Vec<String>,
}

/// Settings of the alerts.
#[derive(Debug, Clone)]
pub struct AlertSettings {
    /// Rules file.
    pub file: PathBuf,
    /// The rules file was set explicitly, so it must exist.
    pub file_is_given: bool,
    /// Time after startup during which worker-down alerts are held back.
    pub grace: Duration,
    /// Worker-down alerts within this time are sent as one notification.
    pub debounce: Duration,
    /// The channels that are on, without e-mail.
    pub channels: Vec<ChannelValues>,
    /// PEM file with additional CA certificates for the URLs of channels.
    pub webhook_authorities: Option<String>,
    /// URL of an outside check that notices when this monitor stops.
    pub heartbeat: Option<Secret>,
    /// Mail settings.
    pub email: Option<EmailSettings>,
}

impl AlertSettings {
    /// Names of the kinds of channels that are on.
    #[must_use]
    pub fn channel_names(&self) -> Vec<&'static str> {
        let on = |name: &str| self.channels.iter().any(|channel| channel.kind.name == name);
        let names = CHANNELS.iter().map(|kind| kind.name);
        names.filter(|name| on(name) || (*name == "email" && self.email.is_some())).collect()
    }
}

/// A channel that is on, with its settings.
#[derive(Debug, Clone)]
pub struct ChannelValues {
    /// Its kind.
    pub kind: &'static ChannelKind,
    /// Values by setting; those that are empty are left out.
    pub values: BTreeMap<&'static str, Secret>,
}

impl ChannelValues {
    /// The value of a setting, empty if it has none.
    #[must_use]
    pub fn get(&self, setting: &str) -> &str {
        self.values.get(setting).map(Secret::reveal).unwrap_or_default()
    }
}

/// Mail server, sender and recipients.
#[derive(Debug, Clone)]
pub struct EmailSettings {
    /// Recipients.
    pub to: Vec<String>,
    /// Sender.
    pub from: String,
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
    /// Name for EHLO.
    pub helo_name: Option<String>,
}

/// Encryption of SMTP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailTls {
    /// TLS from the first byte.
    Implicit,
    /// STARTTLS; without it, no mail is sent.
    StartTls,
    /// No encryption.
    Off,
}

/// Default port for mail submission.
const SUBMISSION_PORT: u16 = 587;
/// Setting that disables verification of a mail server's certificate.
const ANY_CERTIFICATE: &str = "SMTP_ACCEPT_ANY_CERTIFICATE_FROM";
/// On this port, the default is TLS from the first byte.
const IMPLICIT_TLS_PORT: u16 = 465;

impl Settings {
    /// Parses texts from flags and environment, by variable name. Missing and empty values use the default.
    ///
    /// # Errors
    /// The first invalid value.
    pub fn from(given: &BTreeMap<&'static str, String>) -> Result<Self, BadSetting> {
        let secret_files = secret_files(given);
        let given = &with_secrets(given)?;
        let texts = Texts(given);
        let mut warnings = Vec::new();
        let watched =
            WatchedStreams::new(&texts.list("MONITOR_STREAMS"), &texts.list("MONITOR_STREAMS_EXCLUDE")).map_err(
                |bad| BadSetting { name: bad.setting, value: bad.glob, expected: format!("a glob ({})", bad.why) },
            )?;
        let poll_interval = texts.duration("MONITOR_POLL_INTERVAL_SEC")?;
        let observe_only = texts.yes_or_no("MONITOR_OBSERVE_ONLY")?;
        if !(Duration::from_millis(50)..=Duration::from_secs(3600)).contains(&poll_interval) {
            return Err(texts.bad("MONITOR_POLL_INTERVAL_SEC", "between 50ms and 1h"));
        }
        let redis_url = texts.redis_url(&mut warnings)?;
        let database_url = texts.database_url(&mut warnings)?;
        let observed =
            observe_only.then(|| address::with_parameter(database_url.reveal(), "application_name", OBSERVER_NAME));
        Ok(Self {
            redis_url,
            database_url: observed
                .as_deref()
                .map_or(database_url, |url| Secret(with_search_path(url, OBSERVER_SCHEMA))),
            fleet_database_url: observed.map(Secret),
            observe_only,
            pool_timeout: texts.duration("POSTGRES_POOL_TIMEOUT")?,
            disk_capacity_bytes: texts.size("PG_VOLUME_CAPACITY")?,
            bind: texts.parse("MONITOR_BIND", "an IP address such as 127.0.0.1 or 0.0.0.0")?,
            port: texts.own_port(&mut warnings)?,
            root_path: texts.root_path()?,
            access: texts.access()?,
            secret_files,
            secret_key: texts.secret_key()?.map(Secret),
            trusted_proxies: texts.trusted_proxies()?,
            session_idle: texts.session_lifetime("MONITOR_SESSION_IDLE_SEC")?,
            session_absolute: texts.session_lifetime("MONITOR_SESSION_MAX_SEC")?,
            connections_per_address: texts
                .parse("MONITOR_MAX_CONNECTIONS_PER_ADDRESS", "a number, or 0 for any number")?,
            anybody_may: texts.anybody_may(),
            server_url: texts.server_url()?,
            maturity: texts.text("SERVER_MATURITY"),
            poll_interval,
            watched,
            seed_streams: texts.list("MONITOR_SEED_STREAMS").into_iter().map(Name::from).collect(),
            aras: texts.list("MONITOR_ARAS").into(),
            default_floor: texts.duration("RECLAIM_MIN_IDLE_SEC")?,
            history_interval: texts.history_interval()?,
            recent_window: DAY * texts.days("MONITOR_HISTORY_DAYS")?,
            keep: Keep {
                metrics_days: texts.days("MONITOR_METRICS_RETENTION_DAYS")?,
                latency_days: texts.days("MONITOR_LATENCY_RETENTION_DAYS")?,
                events_days: texts.days("MONITOR_EVENTS_RETENTION_DAYS")?,
            },
            spool_folder: texts.text("MONITOR_SPOOL_DIR").map_or_else(state_folder, PathBuf::from),
            abandoned_after: texts.abandoned_after()?,
            query_days: texts.days("QUERY_RETENTION_DAYS")?,
            may_touch: WatchedStreams::new(&[], &texts.list("MONITOR_JANITOR_EXCLUDE")).map_err(|bad| BadSetting {
                name: "MONITOR_JANITOR_EXCLUDE",
                value: bad.glob,
                expected: format!("a glob ({})", bad.why),
            })?,
            metrics_per_consumer: texts.yes_or_no("MONITOR_METRICS_PER_CONSUMER")?,
            log_level: texts.log_level()?,
            alerts: AlertSettings {
                file: texts.text("MONITOR_ALERTS_CONFIG").unwrap_or_default().into(),
                file_is_given: given.get("MONITOR_ALERTS_CONFIG").is_some_and(|text| !text.trim().is_empty()),
                grace: texts.duration("MONITOR_STARTUP_GRACE_SEC")?,
                debounce: texts.duration("MONITOR_DOWN_DEBOUNCE_SEC")?,
                channels: texts.channels(&mut warnings)?,
                webhook_authorities: texts.authorities("ALERT_WEBHOOK_CA_FILE")?,
                heartbeat: texts.web_address("HEARTBEAT_URL")?,
                email: texts.email(&mut warnings)?,
            },
            collector: texts.collector()?,
            warnings,
        })
    }
}

/// Schema of the tables in observe-only mode, so that the tables of another monitor in the database stay unchanged.
pub const OBSERVER_SCHEMA: &str = "shepherd_monitor_observer";

/// Application name of an observer's Postgres connections. `give-back` does not wait for them.
const OBSERVER_NAME: &str = "shepherd-monitor-observer";

/// The same URL, with another search path.
fn with_search_path(url: &str, path: &str) -> String {
    address::with_parameter(url, "options", &format!("-c search_path={path}"))
}

/// The files in which secrets are.
fn secret_files(given: &BTreeMap<&'static str, String>) -> Vec<(&'static str, PathBuf)> {
    let secrets = TABLE.iter().filter(|entry| entry.secret);
    let file = |secret: &Entry| TABLE.iter().find(|file| file.env.strip_suffix("_FILE") == Some(secret.env));
    let files = secrets.filter_map(file).filter_map(|file| Some((file.env, given.get(file.env)?.trim())));
    files.filter(|(_, path)| !path.is_empty()).map(|(name, path)| (name, PathBuf::from(path))).collect()
}

/// Adds secrets from files and systemd credentials.
fn with_secrets(given: &BTreeMap<&'static str, String>) -> Result<BTreeMap<&'static str, String>, BadSetting> {
    let mut all = given.clone();
    for entry in TABLE.iter().filter(|entry| entry.secret) {
        let Some(file) = TABLE.iter().find(|file| file.env.strip_suffix("_FILE") == Some(entry.env)) else { continue };
        if let Some(value) = environment::secret(entry.env, file.env, |name| given.get(name).cloned())? {
            all.insert(entry.env, value);
        }
        all.remove(file.env);
    }
    Ok(all)
}

const DAY: Duration = Duration::from_secs(86_400);

/// State folder: by the XDG convention, otherwise below `/var/lib`.
fn state_folder() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("shepherd-monitor")
}

/// Texts with the defaults of the table.
struct Texts<'a>(&'a BTreeMap<&'static str, String>);

impl Texts<'_> {
    fn text(&self, name: &'static str) -> Option<String> {
        let default = || TABLE.iter().find(|e| e.env == name).map(|e| e.default.to_owned());
        self.set(name).or_else(default).filter(|t| !t.is_empty())
    }

    /// The given value, without the default.
    fn set(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|text| environment::trimmed(name, text).to_owned()).filter(|text| !text.trim().is_empty())
    }

    fn bad(&self, name: &'static str, expected: impl Into<String>) -> BadSetting {
        let secret = TABLE.iter().any(|e| e.env == name && e.secret);
        let value = if secret { "(secret)".to_owned() } else { self.text(name).unwrap_or_default() };
        BadSetting { name, value, expected: expected.into() }
    }

    fn parse<T: std::str::FromStr>(&self, name: &'static str, expected: &str) -> Result<T, BadSetting> {
        self.text(name).unwrap_or_default().parse().map_err(|_| self.bad(name, expected))
    }

    fn list(&self, name: &'static str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// Parses `3`, `2.5`, `3s`, `500ms`, `5m`, `1h`; a bare number is seconds.
    fn duration(&self, name: &'static str) -> Result<Duration, BadSetting> {
        let text = self.text(name).unwrap_or_default();
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale = match unit {
            "ms" => Some(0.001),
            "" | "s" => Some(1.0),
            "m" => Some(60.0),
            "h" => Some(3600.0),
            _ => None,
        };
        let seconds = number.trim().parse::<f64>().ok().zip(scale).map(|(number, scale)| number * scale);
        seconds
            .filter(|seconds| (0.0..=1e9).contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(|| self.bad(name, "a time such as 3, 3s, 500ms, 5m or 1h"))
    }

    fn yes_or_no(&self, name: &'static str) -> Result<bool, BadSetting> {
        match self.text(name).unwrap_or_default().to_lowercase().as_str() {
            "yes" | "true" | "1" | "on" => Ok(true),
            "no" | "false" | "0" | "off" => Ok(false),
            _ => Err(self.bad(name, "yes or no")),
        }
    }

    fn days(&self, name: &'static str) -> Result<u32, BadSetting> {
        let days = self.parse(name, "a number of days from 0 to 3650")?;
        if days > 3650 { Err(self.bad(name, "a number of days from 0 to 3650")) } else { Ok(days) }
    }

    /// With a much lower value, queries in progress would be marked as abandoned.
    fn abandoned_after(&self) -> Result<Duration, BadSetting> {
        const NAME: &str = "MONITOR_ABANDONED_QUERY_SEC";
        let after = self.duration(NAME)?;
        if after >= Duration::from_secs(1) { Ok(after) } else { Err(self.bad(NAME, "at least 1 s")) }
    }

    /// Whole seconds, so that recorded timestamps are whole seconds.
    fn history_interval(&self) -> Result<Duration, BadSetting> {
        const NAME: &str = "MONITOR_HISTORY_INTERVAL_SEC";
        let interval = self.duration(NAME)?;
        let whole = interval.subsec_nanos() == 0 && (1..=3600).contains(&interval.as_secs());
        if whole { Ok(interval) } else { Err(self.bad(NAME, "whole seconds from 1 to 3600")) }
    }

    /// Parses `100Gi`, `50G`, `1.5TiB` or bytes; empty is 0. A bare `m` (milli in Kubernetes) is rejected.
    fn size(&self, name: &'static str) -> Result<u64, BadSetting> {
        let Some(text) = self.text(name) else { return Ok(0) };
        let size = if text.ends_with('m') { None } else { text.parse::<bytesize::ByteSize>().ok() };
        size.map(|size| size.as_u64())
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| self.bad(name, "a size such as 100Gi, 50G or a number of bytes"))
    }

    /// A bare word must be a level, because a filter accepts any word as a module name.
    fn log_level(&self) -> Result<String, BadSetting> {
        let text = self.text("LOG_LEVEL").unwrap_or_default().to_lowercase();
        // Level names of the older monitor.
        let text = match text.as_str() {
            "warning" => "warn".to_owned(),
            "critical" => "error".to_owned(),
            _ => text,
        };
        let a_level = ["error", "warn", "info", "debug", "trace", "off"].contains(&text.as_str());
        let a_filter = text.contains('=') && text.parse::<tracing_subscriber::EnvFilter>().is_ok();
        if a_level || a_filter {
            return Ok(text);
        }
        Err(self.bad("LOG_LEVEL", "error, warn, info, debug, trace or a filter such as info,shepherd_monitor=debug"))
    }

    fn root_path(&self) -> Result<String, BadSetting> {
        let text = self.text("MONITOR_ROOT_PATH").unwrap_or_default();
        let path = text.trim_matches('/');
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
        if !path.chars().all(good) || path.split('/').any(|part| part == "..") {
            return Err(self.bad("MONITOR_ROOT_PATH", "a path such as /monitor"));
        }
        Ok(if path.is_empty() { String::new() } else { format!("/{path}") })
    }

    fn redis_url(&self, warnings: &mut Vec<String>) -> Result<Secret, BadSetting> {
        redis_address::url_from_env(&|name| self.set(name), warnings).map(Secret)
    }

    fn database_url(&self, warnings: &mut Vec<String>) -> Result<Secret, BadSetting> {
        const OF_HOST: [&str; 5] =
            ["POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"];
        const TLS: [(&str, &str); 4] = [
            ("POSTGRES_SSLMODE", "sslmode"),
            ("POSTGRES_SSLROOTCERT", "sslrootcert"),
            ("POSTGRES_SSLCERT", "sslcert"),
            ("POSTGRES_SSLKEY", "sslkey"),
        ];
        let (name, mut url) = match self.set("DATABASE_URL") {
            Some(url) => {
                let is_link = |name: &&str| environment::service_link(&self.set(name).unwrap_or_default()).is_some();
                let ignored: Vec<&str> =
                    OF_HOST.into_iter().filter(|name| self.set(name).is_some() && !is_link(name)).collect();
                if !ignored.is_empty() {
                    warnings.push(format!("DATABASE_URL overrides {}", ignored.join(", ")));
                }
                ("DATABASE_URL", url)
            }
            None => ("POSTGRES_HOST", self.url_of_postgres_host(warnings)?),
        };
        let refused = |bad: address::BadAddress| match name {
            "DATABASE_URL" => BadSetting::secret(name, bad.0),
            _ => BadSetting::new(name, self.text(name).unwrap_or_default(), bad.0),
        };
        address::parse(&url).and_then(|address| address.tls()).map_err(refused)?;
        for (setting, parameter) in TLS {
            let Some(value) = self.set(setting) else { continue };
            match address::parameter(&url, parameter) {
                Some(other) if other != value => {
                    return Err(self.bad(setting, format!("the same as {parameter} in DATABASE_URL, or nothing")));
                }
                Some(_) => {}
                None => url = address::with_parameter(&url, parameter, &value),
            }
        }
        address::parse(&url).and_then(|address| address.tls()).map_err(|bad| {
            let of_parameter = |(setting, parameter): &&(&'static str, &str)| {
                self.set(setting).is_some() && bad.0.split([' ', '=']).any(|word| word == *parameter)
            };
            match TLS.iter().find(of_parameter).or_else(|| TLS.iter().find(|(setting, _)| self.set(setting).is_some()))
            {
                Some((setting, _)) => self.bad(setting, bad.0),
                None => refused(bad),
            }
        })?;
        Ok(Secret(url))
    }

    fn url_of_postgres_host(&self, warnings: &mut Vec<String>) -> Result<String, BadSetting> {
        const HOST: &str = "POSTGRES_HOST";
        let text = self.text(HOST).unwrap_or_default();
        let given = self.set("POSTGRES_PORT").map(|port| environment::port("POSTGRES_PORT", &port)).transpose()?;
        let mut hosts = Vec::new();
        for one in text.split(',').map(str::trim) {
            let (host, port) = if one.starts_with('/') {
                if one.contains("/.s.PGSQL.") {
                    return Err(self.bad(HOST, "the directory of the socket, such as /var/run/postgresql"));
                }
                (percent_encoded(one), None)
            } else {
                let at = environment::host_and_port(HOST, one, "DATABASE_URL")?;
                (if at.host.contains(':') { format!("[{}]", at.host) } else { at.host }, at.port)
            };
            let link = &mut Vec::new();
            let port = environment::chosen_port((HOST, one), port, "POSTGRES_PORT", given.clone(), 5432, link)?;
            warnings.extend(link.pop().filter(|warning| !warnings.contains(warning)));
            hosts.push(format!("{host}:{port}"));
        }
        let user = percent_encoded(&self.text("POSTGRES_USER").unwrap_or_default());
        let password = self.text("POSTGRES_PASSWORD").map(|p| format!(":{}", percent_encoded(&p))).unwrap_or_default();
        let database = percent_encoded(&self.text("POSTGRES_DB").unwrap_or_default());
        Ok(format!("postgres://{user}{password}@{}/{database}", hosts.join(",")))
    }

    /// Port to listen on. A service link of a Kubernetes Service called `monitor` is ignored.
    fn own_port(&self, warnings: &mut Vec<String>) -> Result<u16, BadSetting> {
        const NAME: &str = "MONITOR_PORT";
        let default = TABLE.iter().find(|entry| entry.env == NAME).and_then(|entry| entry.default.parse().ok());
        match (self.set(NAME).map(|text| environment::port(NAME, &text)), default) {
            (Some(Ok(environment::GivenPort::OfService(_, warning))), Some(default)) => {
                warnings.push(format!("{warning}. Port {default} is used"));
                Ok(default)
            }
            _ => self.parse(NAME, "a port from 0 to 65535"),
        }
    }

    fn server_url(&self) -> Result<Option<String>, BadSetting> {
        let Some(text) = self.text("SERVER_URL") else { return Ok(None) };
        if text.contains('@') {
            return Err(BadSetting::secret(
                "SERVER_URL",
                "a URL without user and password, such as https://fleet.example",
            ));
        }
        let url = reqwest::Url::parse(&text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && text.contains("://") && url.has_host());
        match url {
            Some(url) if url.query().is_none() && url.fragment().is_none() && !text.contains(char::is_whitespace) => {
                // Browsers send internationalized host names in ASCII.
                Ok(Some(if text.is_ascii() { text } else { url.as_str().trim_end_matches('/').to_owned() }))
            }
            _ => {
                Err(self
                    .bad("SERVER_URL", "a URL with its scheme, such as https://fleet.example or https://host/monitor"))
            }
        }
    }

    /// A PEM file with CA certificates.
    fn authorities(&self, name: &'static str) -> Result<Option<String>, BadSetting> {
        let Some(path) = self.text(name) else { return Ok(None) };
        tls::authorities(&path).map_err(|expected| self.bad(name, expected))?;
        Ok(Some(path))
    }

    /// A mail address with an ASCII domain: servers accept others only with an SMTP extension.
    fn mail_address(&self, name: &'static str, text: &str, expected: &str) -> Result<String, BadSetting> {
        let mailbox: lettre::message::Mailbox = text.parse().map_err(|_| self.bad(name, expected))?;
        let (user, domain) = (mailbox.email.user(), mailbox.email.domain());
        if !user.is_ascii() {
            return Err(self.bad(name, format!("a mail address with ASCII letters before the @, not {user:?}")));
        }
        if domain.is_ascii() {
            return Ok(text.to_owned());
        }
        let ascii = ascii_host(domain).and_then(|domain| lettre::Address::new(user, domain).ok());
        let address = ascii.ok_or_else(|| self.bad(name, format!("a mail domain that exists, not {domain:?}")))?;
        Ok(lettre::message::Mailbox::new(mailbox.name, address).to_string())
    }

    fn web_address(&self, name: &'static str) -> Result<Option<Secret>, BadSetting> {
        let Some(text) = self.text(name) else { return Ok(None) };
        if let Some(expected) = environment::enclosed(&text) {
            return Err(self.bad(name, expected));
        }
        let has_scheme = text.starts_with("https://") || text.starts_with("http://");
        match reqwest::Url::parse(&text) {
            Ok(url) if has_scheme && url.has_host() && !text.contains(char::is_whitespace) => Ok(Some(Secret(text))),
            _ => Err(self.bad(name, "an address that begins with https://")),
        }
    }

    /// The channels that are on.
    fn channels(&self, warnings: &mut Vec<String>) -> Result<Vec<ChannelValues>, BadSetting> {
        let mut on = Vec::new();
        for kind in CHANNELS.iter().filter(|kind| !kind.settings.is_empty()) {
            if self.text(kind.setting).is_none() {
                let others = kind.settings.iter().filter(|other| self.set(other.env).is_some());
                warnings.extend(others.map(|other| {
                    format!("{} is set but not {}: the channel {} is off", other.env, kind.setting, kind.name)
                }));
                continue;
            }
            let mut values = BTreeMap::new();
            for setting in kind.settings {
                let value = match setting.holds {
                    Holds::SecretUrl | Holds::Url => self.web_address(setting.env)?,
                    Holds::Secret | Holds::Text => self.text(setting.env).map(Secret),
                    Holds::Needed => {
                        let missing = || self.bad(setting.env, format!("a value, as {} is given", kind.setting));
                        Some(Secret(self.text(setting.env).ok_or_else(missing)?))
                    }
                };
                values.extend(value.map(|value| (setting.env, value)));
            }
            on.push(ChannelValues { kind, values });
        }
        Ok(on)
    }

    fn email(&self, warnings: &mut Vec<String>) -> Result<Option<EmailSettings>, BadSetting> {
        const HOST: &str = "SMTP_HOST";
        let to = self.list("ALERT_EMAIL_TO");
        if to.is_empty() {
            return Ok(None);
        }
        let to: Result<Vec<String>, BadSetting> = to
            .iter()
            .map(|to| self.mail_address("ALERT_EMAIL_TO", to, "mail addresses, separated by commas"))
            .collect();
        let to = to?;
        let from = self.text("ALERT_EMAIL_FROM").unwrap_or_default();
        let from = self.mail_address("ALERT_EMAIL_FROM", &from, "a mail address, as ALERT_EMAIL_TO is given")?;
        let Some(host) = self.text(HOST) else {
            return Err(self.bad(HOST, "a mail server, as ALERT_EMAIL_TO is given"));
        };
        if self.text("SMTP_PASSWORD").is_some() && self.text("SMTP_USER").is_none() {
            warnings.push("SMTP_PASSWORD is set but not SMTP_USER: the mail server gets no login".to_owned());
        }
        if self.text("SMTP_USER").is_some() && self.text("SMTP_PASSWORD").is_none() {
            warnings.push("SMTP_USER is set but not SMTP_PASSWORD: the mail server gets an empty password".to_owned());
        }
        let ascii = ascii_with_port(&host);
        let at = environment::host_and_port(HOST, &ascii, "SMTP_HOST and SMTP_PORT")?;
        let given = self.set("SMTP_PORT").map(|port| environment::port("SMTP_PORT", &port)).transpose()?;
        let port = environment::chosen_port((HOST, &host), at.port, "SMTP_PORT", given, SUBMISSION_PORT, warnings)?;
        let authorities = self.authorities("SMTP_CA_FILE")?;
        let any_certificate = match self.text(ANY_CERTIFICATE) {
            None => false,
            Some(_) if authorities.is_some() => {
                return Err(self.bad(ANY_CERTIFICATE, "nothing, since SMTP_CA_FILE is set"));
            }
            Some(name) if name.eq_ignore_ascii_case(&at.host) || name == host => true,
            Some(_) => {
                return Err(self.bad(ANY_CERTIFICATE, format!("the host of SMTP_HOST ({}), or nothing", at.host)));
            }
        };
        let host = at.host;
        let tls = match self.text("SMTP_USE_TLS").unwrap_or_default().to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" if port == IMPLICIT_TLS_PORT => MailTls::Implicit,
            "true" | "1" | "yes" | "on" | "starttls" => MailTls::StartTls,
            "implicit" => MailTls::Implicit,
            "false" | "0" | "no" | "off" => MailTls::Off,
            _ => return Err(self.bad("SMTP_USE_TLS", "true, false, starttls or implicit")),
        };
        let password = self.text("SMTP_PASSWORD").unwrap_or_default();
        let login = self.text("SMTP_USER").map(|user| (user, Secret(password)));
        let helo_name = self.text("SMTP_HELO_NAME");
        if helo_name.as_ref().is_some_and(|name| !name.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(self.bad("SMTP_HELO_NAME", "a host name such as monitor.example.org"));
        }
        Ok(Some(EmailSettings { to, from, host, port, login, tls, authorities, any_certificate, helo_name }))
    }

    fn collector(&self) -> Result<Option<Collector>, BadSetting> {
        let Some(endpoint) = self.text(traces::ENDPOINT) else { return Ok(None) };
        let text = |name| self.text(name).unwrap_or_default();
        Collector::new(&endpoint, &text(traces::HEADERS), &text(traces::SERVICE))
            .map(Some)
            .map_err(|bad| self.bad(bad.setting, bad.expected))
    }
}

/// A host in ASCII, with its port if it has one.
fn ascii_with_port(text: &str) -> String {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, format!(":{port}")),
        None => (text, String::new()),
    };
    match text.is_ascii() {
        true => text.to_owned(),
        false => ascii_host(name).map_or_else(|| text.to_owned(), |name| format!("{name}{port}")),
    }
}

/// A host name in ASCII; internationalized names become `xn--` names.
fn ascii_host(name: &str) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://{name}/")).ok()?;
    url.host_str().filter(|host| host.is_ascii()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(given: &[(&'static str, &str)]) -> Result<Settings, BadSetting> {
        Settings::from(&given.iter().map(|(name, value)| (*name, (*value).to_owned())).collect())
    }

    #[test]
    fn all_defaults_are_valid() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.port, 5440);
        assert_eq!(settings.bind.to_string(), "127.0.0.1");
        assert_eq!(settings.redis_url.reveal(), "redis://localhost:6379/0");
        assert_eq!(settings.aras.len(), 6);
        assert_eq!(settings.poll_interval, Duration::from_secs(3));
    }

    #[test]
    fn errors_contain_the_name_and_the_expected_value() {
        for (name, value, expected) in [
            ("MONITOR_PORT", "99999", "MONITOR_PORT is \"99999\": expected a port from 0 to 65535"),
            ("REDIS_PORT", "0", "REDIS_PORT is \"0\": expected a port from 1 to 65535"),
            ("PG_VOLUME_CAPACITY", "lots", "PG_VOLUME_CAPACITY is \"lots\": expected a size"),
            ("PG_VOLUME_CAPACITY", "100m", "PG_VOLUME_CAPACITY is \"100m\": expected a size"),
            ("MONITOR_POLL_INTERVAL_SEC", "soon", "MONITOR_POLL_INTERVAL_SEC is \"soon\": expected a time"),
            ("MONITOR_POLL_INTERVAL_SEC", "0", "expected between 50ms and 1h"),
            ("POSTGRES_POOL_TIMEOUT", "-1", "expected a time"),
            ("MONITOR_BIND", "everywhere", "expected an IP address"),
            ("MONITOR_METRICS_PER_CONSUMER", "some", "MONITOR_METRICS_PER_CONSUMER is \"some\": expected yes or no"),
            ("LOG_LEVEL", "loud", "LOG_LEVEL is \"loud\": expected error, warn"),
            ("MONITOR_ROOT_PATH", "/a b", "expected a path"),
            ("MONITOR_STREAMS", "a[", "MONITOR_STREAMS is \"a[\": expected a glob"),
            ("REDIS_HOST", "a b", "expected a host name"),
            ("REDIS_URL", "http://secret", "REDIS_URL is \"(secret)\""),
            ("DATABASE_URL", "mysql://secret", "DATABASE_URL is \"(secret)\""),
            ("DATABASE_URL", "postgres://h/d?sslmode=maybe", "sslmode to be disable, prefer"),
            ("REDIS_URL", "redis://h/abc", "REDIS_URL is \"(secret)\": expected a database number"),
            ("REDIS_HOST", "redis://h", "REDIS_URL"),
            ("POSTGRES_HOST", "postgres://h", "DATABASE_URL"),
            ("POSTGRES_HOST", "/run/.s.PGSQL.5432", "the directory of the socket"),
            ("POSTGRES_HOST", "a b", "POSTGRES_HOST is \"a b\": expected a host name"),
            ("POSTGRES_SSLMODE", "allow", "POSTGRES_SSLMODE is \"allow\": expected sslmode to be disable"),
            ("POSTGRES_SSLROOTCERT", "/no/such.pem", "POSTGRES_SSLROOTCERT is \"/no/such.pem\": expected sslrootcert"),
            ("POSTGRES_SSLCERT", "/c", "POSTGRES_SSLCERT is \"/c\": expected sslkey beside sslcert"),
            ("SERVER_URL", "fleet.example", "SERVER_URL is \"fleet.example\": expected a URL with its scheme"),
            ("SERVER_URL", "fleet.example:8080", "such as https://fleet.example"),
            ("SERVER_URL", "ftp://fleet.example", "such as https://fleet.example"),
            ("SERVER_URL", "https://u:p@fleet.example", "such as https://fleet.example"),
            ("ALERT_WEBHOOK_CA_FILE", "/no/such.pem", "ALERT_WEBHOOK_CA_FILE is \"/no/such.pem\": expected a PEM file"),
        ] {
            let told = settings(&[(name, value)]).unwrap_err().to_string();
            assert!(told.contains(expected) && !told.contains('\n'), "{name}={value} told {told:?}");
        }
    }

    #[test]
    fn passwords_may_contain_any_character_and_are_never_printed() {
        let settings = settings(&[("REDIS_PASSWORD", "p@ss/w:rd"), ("POSTGRES_PASSWORD", "ä#?")]).unwrap();
        assert_eq!(settings.redis_url.reveal(), "redis://:p%40ss%2Fw%3Ard@localhost:6379/0");
        assert_eq!(settings.database_url.reveal(), "postgres://postgres:%C3%A4%23%3F@localhost:5432/postgres");
        assert!(!format!("{settings:?}").contains("p%40ss"));
    }

    #[test]
    fn sizes_and_durations_accept_units() {
        let settings = settings(&[
            ("PG_VOLUME_CAPACITY", "100Gi"),
            ("MONITOR_POLL_INTERVAL_SEC", "500ms"),
            ("MONITOR_ROOT_PATH", "monitor/"),
        ])
        .unwrap();
        assert_eq!(settings.disk_capacity_bytes, 100 << 30);
        assert_eq!(settings.poll_interval, Duration::from_millis(500));
        assert_eq!(settings.root_path, "/monitor");
    }

    #[test]
    fn observe_only_uses_its_own_schema_for_every_form_of_database_url() {
        for url in ["postgres://me@db/postgres", "postgres://me@db/postgres?sslmode=require", "host=db user=me"] {
            for (observes, schema) in [("yes", true), ("no", false)] {
                let given = [("DATABASE_URL", url), ("MONITOR_OBSERVE_ONLY", observes)];
                let config = address::parse(settings(&given).unwrap().database_url.reveal()).unwrap().config;
                let wanted = "-c search_path=shepherd_monitor_observer";
                assert_eq!(config.get_options(), schema.then_some(wanted), "{url}");
                assert_eq!(config.get_user(), Some("me"), "{url}");
                let fleet = settings(&given).unwrap().fleet_database_url;
                let fleet = fleet.map(|url| address::parse(url.reveal()).unwrap().config);
                assert_eq!(fleet.as_ref().map(|config| config.get_options()), schema.then_some(None), "{url}");
            }
        }
    }

    #[test]
    fn weak_tokens_and_token_files_that_are_not_regular_are_rejected() {
        let folder = std::env::temp_dir().join(format!("shepherd-settings-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let (fifo, huge) = (folder.join("fifo"), folder.join("huge"));
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        std::fs::write(&huge, "x".repeat(5000)).unwrap();
        for (name, value, expected) in [
            ("MONITOR_ADMIN_TOKEN", "aaaaaaaaaaaaaaaa", "fewer than 8 different characters"),
            ("MONITOR_ADMIN_TOKEN", "password12345678", "make one with openssl rand -hex 24"),
            ("MONITOR_ADMIN_TOKEN_FILE", fifo.to_str().unwrap(), "not a regular file"),
            ("MONITOR_ADMIN_TOKEN_FILE", huge.to_str().unwrap(), "at most 4096 bytes"),
            ("MONITOR_ADMIN_TOKEN_FILE", "/dev/zero", "not a regular file"),
        ] {
            let told = settings(&[("MONITOR_AUTH", "token"), (name, value)]).unwrap_err().to_string();
            assert!(told.contains(expected) && !told.contains("aaaa"), "{name}={value}: {told}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_login_at_an_identity_provider_has_all_settings_that_it_needs() {
        let complete = [
            ("MONITOR_AUTH", "oidc"),
            ("MONITOR_SECRET_KEY", "9b7d1f0c64e2a85310fd7c42e6b98a05"),
            ("MONITOR_OIDC_ISSUER", "https://id.example/realms/ops"),
            ("MONITOR_OIDC_CLIENT_ID", "monitor"),
            ("MONITOR_OIDC_ROLES", "sre=admin, staff = viewer"),
            ("SERVER_URL", "https://fleet.example/"),
        ];
        let redirect_url = |more: &[(&'static str, &str)]| {
            let given: Vec<_> = complete.iter().chain(more).copied().collect();
            settings(&given).unwrap().access.provider().unwrap().redirect_url.clone()
        };
        assert_eq!(redirect_url(&[]), "https://fleet.example/login/callback");
        let below = ("MONITOR_ROOT_PATH", "/monitor");
        assert_eq!(redirect_url(&[below]), "https://fleet.example/monitor/login/callback");
        let whole = ("SERVER_URL", "https://fleet.example/monitor");
        assert_eq!(redirect_url(&[below, whole]), "https://fleet.example/monitor/login/callback");
        let alike = ("SERVER_URL", "https://monitor");
        assert_eq!(redirect_url(&[below, alike]), "https://monitor/monitor/login/callback");
        for (name, value, expected) in [
            ("MONITOR_SECRET_KEY", "", "openssl rand -hex 32"),
            ("MONITOR_OIDC_ISSUER", "", "an issuer URL"),
            ("MONITOR_OIDC_ISSUER", "http://id.example", "as MONITOR_AUTH is oidc"),
            ("MONITOR_OIDC_ISSUER", "id.example", "a URL such as https://id.example"),
            ("MONITOR_OIDC_CLIENT_ID", "", "as MONITOR_AUTH is oidc"),
            ("MONITOR_OIDC_ROLES", "", "MONITOR_OIDC_DEFAULT_ROLE"),
            ("MONITOR_OIDC_ROLES", "sre=root", "GROUP=admin"),
            ("MONITOR_OIDC_CA_FILE", "/nonexistent", "PEM"),
            ("SERVER_URL", "", "the public URL"),
            ("SERVER_URL", "http://fleet.example", "as MONITOR_AUTH is oidc"),
        ] {
            let given: Vec<_> =
                complete.iter().filter(|(known, _)| *known != name).copied().chain([(name, value)]).collect();
            let said = settings(&given).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains(expected), "{name}={value}: {said}");
        }
    }

    #[test]
    fn each_secret_can_be_a_file_or_a_systemd_credential() {
        let folder = std::env::temp_dir().join(format!("settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for entry in TABLE.iter().filter(|entry| entry.secret) {
            let file = format!("{}_FILE", entry.env);
            assert!(TABLE.iter().any(|known| known.env == file && !known.secret), "no {file}");
        }
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        std::fs::write(path("password"), "s3cret\n").unwrap();
        std::fs::write(path("POSTGRES_PASSWORD"), "credential\n").unwrap();
        std::fs::write(path("SLACK_WEBHOOK_URL"), "https://slack.example/x\n").unwrap();
        let settings = settings(&[
            ("REDIS_PASSWORD_FILE", &path("password")),
            ("CREDENTIALS_DIRECTORY", folder.to_str().unwrap()),
        ])
        .unwrap();
        assert_eq!(settings.redis_url.reveal(), "redis://:s3cret@localhost:6379/0");
        assert_eq!(settings.database_url.reveal(), "postgres://postgres:credential@localhost:5432/postgres");
        assert_eq!(settings.alerts.channels[0].get("SLACK_WEBHOOK_URL"), "https://slack.example/x");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn monitor_and_worker_trim_passwords_in_the_same_way() {
        let given = [("REDIS_PASSWORD", " p \n")];
        let lookup = |name: &str| given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let of_worker = redis_address::url_from_env(&lookup, &mut Vec::new()).unwrap();
        assert_eq!(settings(&given).unwrap().redis_url.reveal(), of_worker);
        assert_eq!(of_worker, "redis://:%20p%20@localhost:6379/0");
    }

    #[test]
    fn the_parts_of_the_postgres_url_reach_the_driver() {
        use tokio_postgres::config::Host;
        let read = |given: &[(&'static str, &str)]| {
            let settings = settings(given).unwrap_or_else(|bad| panic!("{given:?}: {bad}"));
            let config = address::parse(settings.database_url.reveal()).unwrap().config;
            let hosts: Vec<String> = config
                .get_hosts()
                .iter()
                .map(|host| match host {
                    Host::Tcp(name) => name.clone(),
                    Host::Unix(path) => path.display().to_string(),
                })
                .collect();
            (hosts.join(","), config.get_ports().to_vec(), config.get_dbname().unwrap_or_default().to_owned())
        };
        let expected =
            |host: &str, ports: &[u16], database: &str| (host.to_owned(), ports.to_vec(), database.to_owned());
        assert_eq!(read(&[]), expected("localhost", &[5432], "postgres"));
        assert_eq!(read(&[("POSTGRES_DB", "my db")]), expected("localhost", &[5432], "my db"));
        assert_eq!(read(&[("POSTGRES_HOST", "db:6432")]), expected("db", &[6432], "postgres"));
        assert_eq!(
            read(&[("POSTGRES_HOST", "/var/run/postgresql")]),
            expected("/var/run/postgresql", &[5432], "postgres")
        );
        assert_eq!(read(&[("POSTGRES_HOST", "a, b:2"), ("POSTGRES_PORT", "2")]), expected("a,b", &[2, 2], "postgres"));
        assert_eq!(read(&[("POSTGRES_HOST", "::1")]), expected("::1", &[5432], "postgres"));
        assert_eq!(read(&[("POSTGRES_PORT", "tcp://10.0.0.1:5433")]), expected("localhost", &[5433], "postgres"));
    }

    #[test]
    fn foreign_and_overridden_variables_cause_warnings() {
        let warnings = |given: &[(&'static str, &str)]| settings(given).unwrap().warnings.join(" / ");
        assert_eq!(warnings(&[("REDIS_URL", "redis://h"), ("DATABASE_URL", "postgres://h/d")]), "");
        let overruled =
            warnings(&[("REDIS_URL", "redis://h"), ("REDIS_PASSWORD", "x"), ("REDIS_PORT", "tcp://1.2.3.4:5")]);
        assert_eq!(overruled, "REDIS_URL overrides REDIS_PASSWORD");
        let link = settings(&[("MONITOR_PORT", "tcp://10.0.0.1:80")]).unwrap();
        assert_eq!(link.port, 5440);
        assert!(
            link.warnings[0].contains("Service monitor") && link.warnings[0].contains("5440"),
            "{:?}",
            link.warnings
        );
        assert!(warnings(&[("POSTGRES_PORT", "tcp://10.0.0.1:5432")]).contains("Service postgres"));
    }

    #[test]
    fn internationalized_mail_domains_are_converted_to_ascii() {
        let given = [
            ("ALERT_EMAIL_TO", "Ops <ops@müller.example>, plain@example.org"),
            ("ALERT_EMAIL_FROM", "shepherd@flotte.example"),
            ("SMTP_HOST", "mail.müller.example:2525"),
        ];
        let email = settings(&given).unwrap().alerts.email.unwrap();
        assert_eq!(email.to, ["Ops <ops@xn--mller-kva.example>", "plain@example.org"]);
        assert_eq!((&*email.host, email.port), ("mail.xn--mller-kva.example", 2525));
        let refused =
            settings(&[("ALERT_EMAIL_TO", "müller@example.org"), given[1], given[2]]).unwrap_err().to_string();
        assert!(refused.contains("ALERT_EMAIL_TO") && refused.contains("before the @"), "{refused}");
    }

    #[test]
    fn verification_is_skipped_only_for_the_named_relay() {
        let with = |name: &'static str, host: &'static str| {
            settings(&[
                ("ALERT_EMAIL_TO", "a@b.example"),
                ("ALERT_EMAIL_FROM", "c@d.example"),
                ("SMTP_HOST", host),
                ("SMTP_ACCEPT_ANY_CERTIFICATE_FROM", name),
            ])
        };
        assert!(with("relay.internal", "Relay.internal:25").unwrap().alerts.email.unwrap().any_certificate);
        assert!(!with("", "relay.internal").unwrap().alerts.email.unwrap().any_certificate);
        let refused = with("yes", "relay.internal").unwrap_err().to_string();
        assert!(
            refused.contains("SMTP_ACCEPT_ANY_CERTIFICATE_FROM") && refused.contains("relay.internal"),
            "{refused}"
        );
    }

    #[test]
    fn no_two_settings_share_a_flag() {
        let mut flags: Vec<String> = TABLE.iter().map(Entry::flag).collect();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), TABLE.len());
    }
}
