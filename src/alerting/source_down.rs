//! Built-in alerts about data sources that are unreachable or reject writes, and about broken channels, because no other
//! rule can fire meanwhile.

use std::time::Duration;

use super::lifecycle::{Identity, Kind, Seen};
use super::message::GIVEN_UP_AFTER_HOURS;
use super::rule::Severity;
use super::worker_down::{News, WorkerTypeView};
use crate::fleet::reading::SourceTrouble;
use crate::fleet::snapshot::{Snapshot, SourceStatus};

/// Rule name of alerts about a data source that can be read and rejects writes.
pub const WRITES_REFUSED: &str = "writes_refused";

/// Minimum outage of a data source, so that a restart does not fire.
pub const AWAY_FOR: Duration = Duration::from_secs(10);

/// Rule name of alerts about channels.
pub const CHANNEL_BROKEN: &str = "channel_broken";

/// Reports the observations of both data sources that are relevant according to `news`.
pub fn look(snapshot: &Snapshot, news: &News, mut tell: impl FnMut(WorkerTypeView)) {
    let (redis, postgres) = (&snapshot.redis, &snapshot.postgres);
    for (key, name, source, write_error) in [
        ("redis", "Redis", &redis.source, redis.write_error.as_ref()),
        ("postgres", "Postgres", &postgres.source, postgres.write_error.as_ref()),
    ] {
        writes(key, name, source, write_error, news, &mut tell);
        let (seen, trouble) = match source {
            SourceStatus::Starting => (Seen::Missing, None),
            SourceStatus::Down { trouble, .. } => (Seen::Holds(Some(1.0)), Some(trouble)),
            SourceStatus::Ok | SourceStatus::Settling { .. } => (Seen::Clear(Some(0.0)), None),
        };
        if !news.has("source_down", seen) {
            continue;
        }
        let (state, detail) = trouble.map_or(("available", ""), |trouble| (trouble.kind.state(), &trouble.detail));
        tell(WorkerTypeView {
            identity: Identity {
                key: format!("source_down:{key}"),
                rule: "source_down".to_owned(),
                subject: Some(key.to_owned()),
                kind: Kind::Source,
                severity: Severity::Critical,
            },
            seen,
            message: format!("{name} is {state}: {detail}. Pages show the last known state."),
            detail: format!("{name} {state}: {detail}"),
        });
    }
}

/// What is seen of writes to a data source that can be read.
fn writes(
    key: &str,
    name: &str,
    source: &SourceStatus,
    write_error: Option<&SourceTrouble>,
    news: &News,
    mut tell: impl FnMut(WorkerTypeView),
) {
    let seen = match (source, write_error) {
        (SourceStatus::Starting | SourceStatus::Down { .. }, _) => Seen::Missing,
        (_, Some(_)) => Seen::Holds(Some(1.0)),
        (_, None) => Seen::Clear(Some(0.0)),
    };
    if !news.has(WRITES_REFUSED, seen) {
        return;
    }
    let detail = write_error.map(|trouble| trouble.detail.as_str()).unwrap_or_default();
    let detail = detail.strip_prefix("Redis rejects writes: ").unwrap_or(detail);
    let means = if key == "redis" {
        "Workers can neither finish tasks nor write heartbeats; missing heartbeats do not count while it lasts."
    } else {
        "History, events and alerts wait until it accepts writes."
    };
    tell(WorkerTypeView {
        identity: Identity {
            key: format!("{WRITES_REFUSED}:{key}"),
            rule: WRITES_REFUSED.to_owned(),
            subject: Some(key.to_owned()),
            kind: Kind::Source,
            severity: Severity::Critical,
        },
        seen,
        message: format!("{name} rejects writes: {detail}. {means}"),
        detail: format!("{name} rejects writes: {detail}"),
    });
}

/// Returns the observation of a channel that rejects notifications (`broken`) or accepts them.
#[must_use]
pub fn channel(name: &str, broken: Option<&str>) -> WorkerTypeView {
    let why = broken.unwrap_or_default();
    WorkerTypeView {
        identity: Identity {
            key: format!("{CHANNEL_BROKEN}:{name}"),
            rule: CHANNEL_BROKEN.to_owned(),
            subject: Some(name.to_owned()),
            kind: Kind::Source,
            severity: Severity::Warning,
        },
        seen: if broken.is_some() { Seen::Holds(None) } else { Seen::Clear(None) },
        detail: format!("channel {name} rejects notifications: {why}"),
        message: format!("Notifications via {name} fail: {why}. They are retried for {GIVEN_UP_AFTER_HOURS} hours."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fixtures::{first_snapshot, no_connection};
    use crate::fleet::reading::TroubleKind;

    #[test]
    fn refused_writes_are_an_alert_of_their_own_that_ends_with_them_and_not_with_an_outage() {
        let mut snapshot = first_snapshot(Err(no_connection()));
        let mut seen = |status: SourceStatus, refuses: bool, known: &[&str]| {
            snapshot.redis.source = status;
            snapshot.redis.write_error = refuses
                .then(|| SourceTrouble::new(TroubleKind::OutOfMemory, "Redis rejects writes: it is out of memory"));
            let mut found = Vec::new();
            look(&snapshot, &News::of(known.iter().copied()), |sighting| found.push(sighting));
            found.into_iter().find(|sighting| sighting.identity.key == "writes_refused:redis")
        };
        let settling = || SourceStatus::Settling { remaining_sec: 15.0 };
        let down = || SourceStatus::Down { since: 0.0, trouble: no_connection() };
        assert!(seen(SourceStatus::Ok, false, &[]).is_none(), "nothing to tell");
        let firing = seen(settling(), true, &[]).unwrap();
        assert!(matches!(firing.seen, Seen::Holds(_)));
        assert!(firing.message.starts_with("Redis rejects writes: it is out of memory. Workers"), "{}", firing.message);
        assert!(matches!(seen(down(), false, &[WRITES_REFUSED]).unwrap().seen, Seen::Missing));
        assert!(matches!(seen(SourceStatus::Ok, false, &[WRITES_REFUSED]).unwrap().seen, Seen::Clear(_)));
    }
}
