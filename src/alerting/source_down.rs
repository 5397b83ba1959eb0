//! Built-in alerts about unreachable data sources and broken channels, because no other rule can fire during an outage.

use std::time::Duration;

use super::lifecycle::{Identity, Kind, Seen};
use super::rule::Severity;
use super::worker_down::{News, Sighting};
use crate::fleet::snapshot::{Snapshot, SourceStatus};

/// Minimum outage of a data source, so that a restart does not fire.
pub const AWAY_FOR: Duration = Duration::from_secs(10);

/// Rule name of alerts about channels.
pub const CHANNEL_BROKEN: &str = "channel_broken";

/// Reports the observations of both data sources that are relevant according to `news`.
pub fn look(snapshot: &Snapshot, news: &News, mut tell: impl FnMut(Sighting)) {
    for (key, name, source) in
        [("redis", "Redis", &snapshot.redis.source), ("postgres", "Postgres", &snapshot.postgres.source)]
    {
        let (seen, detail) = match source {
            SourceStatus::Starting => (Seen::Missing, String::new()),
            SourceStatus::Down { trouble, .. } => (Seen::Holds(Some(1.0)), trouble.detail.clone()),
            SourceStatus::Ok | SourceStatus::Settling { .. } => (Seen::Clear(Some(0.0)), String::new()),
        };
        if !news.has("source_down", seen) {
            continue;
        }
        tell(Sighting {
            identity: Identity {
                key: format!("source_down:{key}"),
                rule: "source_down".to_owned(),
                subject: Some(key.to_owned()),
                kind: Kind::Source,
                severity: Severity::Critical,
            },
            seen,
            message: format!("{name} is unreachable: {detail}. Pages show the last known state."),
            detail: format!("{name} unreachable: {detail}"),
        });
    }
}

/// Returns the observation of a channel that rejects notifications (`broken`) or accepts them.
#[must_use]
pub fn channel(name: &str, broken: Option<&str>) -> Sighting {
    let why = broken.unwrap_or_default();
    Sighting {
        identity: Identity {
            key: format!("{CHANNEL_BROKEN}:{name}"),
            rule: CHANNEL_BROKEN.to_owned(),
            subject: Some(name.to_owned()),
            kind: Kind::Source,
            severity: Severity::Warning,
        },
        seen: if broken.is_some() { Seen::Holds(None) } else { Seen::Clear(None) },
        detail: format!("channel {name} rejects notifications: {why}"),
        message: format!("Notifications via {name} fail: {why}. They are retried for 24 hours."),
    }
}
