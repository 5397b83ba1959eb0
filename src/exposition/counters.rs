//! Counters of events since the start of the monitor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::histogram::Histogram;
use crate::access::security_events::SecurityKind;
use crate::contract::Name;
use crate::fleet::cleanup::Outcome;
use crate::fleet::event::{Event, EventKind};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::worker_type::TypeState;

/// Transitions of a worker type, named as events are.
pub const TRANSITIONS: [&str; 6] =
    ["scale_up", "scale_down", "consumers_lost", "left_with_work", "consumer_hung", "consumer_recovered"];
/// Bucket bounds of poll durations, seconds.
const TICK_BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bucket bounds of run times, seconds: from forwarding a message to calling web services.
const TASK_BOUNDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// Result of a delivery attempt of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempt {
    /// Accepted by the channel.
    Sent,
    /// Failed; will be retried.
    Failed,
    /// Given up permanently.
    GivenUp,
    /// The channel rejects every notification until its configuration is fixed.
    ChannelBroken,
}

impl Attempt {
    /// All results.
    pub const ALL: [Self; 4] = [Self::Sent, Self::Failed, Self::GivenUp, Self::ChannelBroken];

    /// Label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
            Self::ChannelBroken => "channel_broken",
        }
    }
}

/// What came of an attempt to log in, or of a request by somebody who is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Login {
    /// Logged in by the page.
    Accepted,
    /// The credentials were wrong.
    Wrong,
    /// Refused because too many were wrong before.
    Slowed,
    /// Known, and without the role that was needed.
    Denied,
}

impl Login {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Accepted, Self::Wrong, Self::Slowed, Self::Denied];

    /// Its label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Wrong => "wrong",
            Self::Slowed => "slowed",
            Self::Denied => "denied",
        }
    }
}

/// Counters of one worker type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfType {
    /// In the order of [`TRANSITIONS`].
    pub transitions: [u64; TRANSITIONS.len()],
    /// Workers lost.
    pub lost: u64,
    /// Transitions to zero by a crash.
    pub crashes: u64,
}

/// Counters of the janitor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OfJanitor {
    /// Cleanup runs without errors.
    pub done: u64,
    /// Cleanup runs with errors.
    pub with_errors: u64,
    /// Interrupted cleanup runs.
    pub cut_off: u64,
    /// End of the last completed run, Unix seconds.
    pub last: Option<f64>,
    /// Entries removed.
    pub entries: u64,
    /// Consumers removed.
    pub consumers: u64,
    /// Phantom pending IDs acknowledged.
    pub phantoms: u64,
    /// Callback rows deleted.
    pub callbacks: u64,
    /// Queries marked as abandoned.
    pub abandoned: u64,
    /// Old queries deleted.
    pub old_queries: u64,
}

/// All counters. Worker types and streams are identified by their text names.
#[derive(Debug, Clone)]
pub struct Counters {
    /// By worker type.
    pub types: BTreeMap<String, OfType>,
    /// Number of outages and recoveries, by data source.
    pub sources: BTreeMap<String, [u64; 2]>,
    /// By channel and result.
    pub notifications: BTreeMap<(String, Attempt), u64>,
    /// Logins and what was denied.
    pub logins: BTreeMap<Login, u64>,
    /// Security events.
    pub security: BTreeMap<SecurityKind, u64>,
    /// Connections of clients closed because of a limit or a deadline.
    pub connections_closed: u64,
    /// Counters of the janitor.
    pub janitor: OfJanitor,
    /// Poll durations, seconds.
    pub ticks: Histogram,
    /// Run times by stream, seconds.
    pub tasks: BTreeMap<String, Histogram>,
}

impl Counters {
    /// Returns zeroed counters, with entries for `channels`.
    #[must_use]
    pub fn new(channels: &[String]) -> Self {
        let results = |channel: &String| Attempt::ALL.map(|result| ((channel.clone(), result), 0));
        Self {
            types: BTreeMap::new(),
            sources: ["redis", "postgres"].map(|source| (source.to_owned(), [0; 2])).into(),
            notifications: channels.iter().flat_map(results).collect(),
            logins: Login::ALL.map(|login| (login, 0)).into(),
            security: SecurityKind::ALL.map(|kind| (kind, 0)).into(),
            connections_closed: 0,
            janitor: OfJanitor::default(),
            ticks: Histogram::new(TICK_BOUNDS),
            tasks: BTreeMap::new(),
        }
    }

    /// Counts an attempt to log in, or a denial.
    pub fn count_login(&mut self, login: Login) {
        *self.logins.entry(login).or_default() += 1;
    }

    /// Counts a security event.
    pub fn count_security(&mut self, kind: SecurityKind) {
        *self.security.entry(kind).or_default() += 1;
    }

    /// Counts recorded events.
    pub fn count_events(&mut self, events: &[Arc<Event>]) {
        for event in events {
            let came_up = match &event.kind {
                EventKind::SourceDown { .. } => Some(0),
                EventKind::SourceUp { .. } => Some(1),
                _ => None,
            };
            if let Some(place) = came_up {
                let source = self.sources.entry(event.subject.clone()).or_default();
                source.get_mut(place).into_iter().for_each(|count| *count += 1);
                continue;
            }
            let Some(place) = TRANSITIONS.iter().position(|known| *known == event.type_name()) else { continue };
            let of_type = self.types.entry(event.subject.clone()).or_default();
            of_type.transitions.get_mut(place).into_iter().for_each(|count| *count += 1);
            match &event.kind {
                EventKind::ConsumerLost { .. } => of_type.lost += 1,
                EventKind::ScaleDown { to: 0, kind: TypeState::Crashed, .. } => of_type.crashes += 1,
                _ => {}
            }
        }
    }

    /// Counts a poll.
    pub fn count_tick(&mut self, took: Duration) {
        self.ticks.observe(took.as_secs_f64());
    }

    /// Counts tasks of `stream` by their run times in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "durations far below 2^53 ms")]
    pub fn count_tasks(&mut self, stream: &Name, durations: &[u64]) {
        let histogram = self.tasks.entry(stream.to_text()).or_insert_with(|| Histogram::new(TASK_BOUNDS));
        for duration in durations {
            histogram.observe(*duration as f64 / 1000.0);
        }
    }

    /// Counts a delivery attempt.
    pub fn count_attempt(&mut self, channel: &str, result: Attempt) {
        *self.notifications.entry((channel.to_owned(), result)).or_default() += 1;
    }

    /// Counts a cleanup run that ended at `now` (Unix seconds); `None` if it was interrupted.
    pub fn count_pass(&mut self, outcome: Option<&Outcome>, now: f64) {
        let janitor = &mut self.janitor;
        let Some(outcome) = outcome else {
            janitor.cut_off += 1;
            return;
        };
        janitor.last = Some(now);
        let in_streams = outcome.streams.values().any(|stream| stream.error.is_some());
        if in_streams || !outcome.errors.is_empty() {
            janitor.with_errors += 1;
        } else {
            janitor.done += 1;
        }
        janitor.entries += outcome.entries_removed();
        janitor.consumers += outcome.consumers_removed();
        janitor.phantoms += outcome.phantoms_cleared();
        if let Some(queries) = &outcome.queries {
            janitor.callbacks += queries.callbacks_deleted;
            janitor.abandoned += queries.abandoned_count();
        }
        janitor.old_queries += outcome.query_retention.unwrap_or(0);
    }

    /// Removes worker types and streams missing from `snapshot`. Clients choose the names, so the number must stay
    /// bounded.
    pub fn keep_only(&mut self, snapshot: &Snapshot) {
        let most = snapshot.workers.len() + snapshot.streams.len();
        if self.types.len().max(self.tasks.len()) <= most {
            return;
        }
        let known: BTreeSet<String> =
            snapshot.workers.keys().chain(snapshot.streams.keys()).map(Name::to_text).collect();
        self.types.retain(|name, _| known.contains(name));
        self.tasks.retain(|name, _| known.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::cleanup::{QueriesOutcome, StreamOutcome};
    use crate::fleet::fixtures::first_snapshot;
    use crate::fleet::reading::{SourceTrouble, StreamFacts, StreamReading, StreamsReading, TroubleKind};

    fn event(subject: &str, kind: EventKind) -> Arc<Event> {
        Arc::new(Event { ts: 0.0, subject: subject.to_owned(), kind, key: String::new(), running: (0, 0) })
    }

    #[test]
    fn events_are_counted_once_by_type_or_data_source() {
        let mut counters = Counters::new(&[]);
        let lost = |consumer: &str| EventKind::ConsumerLost { consumer: consumer.into(), remaining: 0, pending: 0 };
        counters.count_events(&[
            event("a", lost("c")),
            event("a", lost("d")),
            event("a", EventKind::ScaleDown { from: 3, to: 0, kind: TypeState::Crashed }),
            event("b", EventKind::ScaleDown { from: 1, to: 0, kind: TypeState::ScaledDown }),
            event("redis", EventKind::SourceDown { trouble: SourceTrouble::new(TroubleKind::Unreachable, "") }),
            event("redis", EventKind::SourceUp { away_sec: 1 }),
            event("redis", EventKind::SourceDown { trouble: SourceTrouble::new(TroubleKind::Unreachable, "") }),
        ]);
        assert_eq!(counters.types["a"], OfType { transitions: [0, 1, 2, 0, 0, 0], lost: 2, crashes: 1 });
        assert_eq!(counters.types["b"], OfType { transitions: [0, 1, 0, 0, 0, 0], lost: 0, crashes: 0 });
        assert_eq!(
            (counters.types.len(), counters.sources["redis"], counters.sources["postgres"]),
            (2, [2, 1], [0, 0])
        );
    }

    #[test]
    fn cleanup_run_counts_changes_and_result() {
        let mut counters = Counters::new(&[]);
        let stream = |removed, error: Option<&str>| StreamOutcome {
            removed,
            error: error.map(str::to_owned),
            ..StreamOutcome::default()
        };
        let queries = QueriesOutcome {
            callbacks_deleted: 4,
            abandoned: [("arax".to_owned(), 2)].into(),
            ..QueriesOutcome::default()
        };
        let good = Outcome {
            streams: [("a".to_owned(), stream(7, None))].into(),
            consumers: [("a".to_owned(), 1)].into(),
            phantoms: [("a".to_owned(), 3)].into(),
            queries: Some(queries),
            query_retention: Some(9),
            ..Outcome::default()
        };
        counters.count_pass(Some(&good), 100.0);
        let bad = Outcome { streams: [("a".to_owned(), stream(1, Some("no")))].into(), ..Outcome::default() };
        counters.count_pass(Some(&bad), 200.0);
        counters.count_pass(None, 300.0);
        let expected = OfJanitor {
            done: 1,
            with_errors: 1,
            cut_off: 1,
            last: Some(200.0),
            entries: 8,
            consumers: 1,
            phantoms: 3,
            callbacks: 4,
            abandoned: 2,
            old_queries: 9,
        };
        assert_eq!(counters.janitor, expected);
    }

    #[test]
    fn unknown_names_are_removed() {
        let stream = StreamReading { facts: Ok(StreamFacts { exists: true, ..StreamFacts::default() }) };
        let snapshot = first_snapshot(Ok(StreamsReading {
            streams: [(Name::from("known"), stream)].into(),
            ..StreamsReading::default()
        }));
        let mut counters = Counters::new(&[]);
        counters.count_tasks(&Name::from("known"), &[1]);
        for n in 0..1000 {
            counters.keep_only(&snapshot);
            counters.count_tasks(&Name::from(format!("made up {n}")), &[1]);
            counters.count_events(&[event(&format!("made up {n}"), EventKind::Unhung { consumer: Name::from("c") })]);
        }
        assert!(counters.tasks.len() <= 2 && counters.types.len() <= 2, "{}", counters.tasks.len());
        assert_eq!(counters.tasks["known"].count(), 1, "what is known stays");
    }
}
