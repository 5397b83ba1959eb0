//! Planning and results of cleanup runs. A plan is computed from a snapshot; the result is a value that is stored,
//! displayed and logged.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::snapshot::{Snapshot, SourceStatus};
use crate::contract::Name;

/// Idle time after which a consumer with no pending entries and no heartbeat counts as stale.
pub const STALE_AFTER: Duration = Duration::from_secs(3600);
/// Maximum number of consumers deleted per cleanup run; the next run continues.
pub const CONSUMERS_A_PASS: usize = 2000;
/// Status of a query that was marked as abandoned.
pub const ABANDONED_STATUS: &str = "Abandoned: no completion within budget";

/// Steps of a cleanup run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Non-empty streams, longest first. Each is trimmed as far as its groups allow.
    pub streams: Vec<Name>,
    /// Consumers that look stale, by stream and group. Each is checked again before it is deleted.
    pub consumers: Vec<(Name, Name, Vec<Name>)>,
    /// Stale consumers left for the next run.
    pub consumers_left: usize,
    /// Whether Postgres is readable and contains the query tables.
    pub queries: bool,
    /// Groups with pending IDs; groups with known phantom IDs come first.
    pub pending: Vec<PendingGroup>,
    /// Seconds until an absent heartbeat counts again. Steps that depend on heartbeats are skipped until then.
    pub settling_sec: Option<f64>,
}

/// A group whose pending list may hold phantom IDs.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingGroup {
    /// Stream of the group.
    pub stream: Name,
    /// Group name.
    pub group: Name,
    /// Whether phantom IDs are already known.
    pub suspected: bool,
    /// Whether a worker of the stream lost its heartbeat: it may come back and resume its tasks.
    pub may_return: bool,
}

/// Reason why no cleanup run is possible now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// No poll has completed yet.
    #[error("waiting for the first poll of Redis")]
    Starting,
    /// Redis is unreachable.
    #[error("Redis is unreachable: {0}")]
    Redis(String),
    /// An older monitor may be active. It has its own janitor, and its alerts depend on what that finds.
    #[error("an older monitor is, or may be, active on this Redis and runs the cleanup")]
    LeftToOlderMonitor,
}

impl Plan {
    /// Plans a cleanup run from `snapshot`. While absent heartbeats do not count, the steps that depend on them are
    /// omitted.
    ///
    /// # Errors
    /// When Redis is unreachable or has not been polled yet.
    pub fn from(snapshot: Option<&Snapshot>) -> Result<Self, NoPlan> {
        let snapshot = snapshot.ok_or(NoPlan::Starting)?;
        let settling_sec = match &snapshot.redis.source {
            SourceStatus::Ok => None,
            SourceStatus::Settling { remaining_sec } => Some(*remaining_sec),
            SourceStatus::Starting => return Err(NoPlan::Starting),
            SourceStatus::Down { trouble, .. } => return Err(NoPlan::Redis(trouble.detail.clone())),
        };
        let mut plan = Self {
            queries: snapshot.postgres.source == SourceStatus::Ok && !snapshot.postgres.without_queries,
            settling_sec,
            ..Self::default()
        };
        let mut streams: Vec<(u64, &Name)> = snapshot
            .streams
            .iter()
            .filter_map(|(name, stream)| Some((stream.xlen.filter(|_| stream.exists)?, name)))
            .filter(|(length, _)| *length > 0)
            .collect();
        streams.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        plan.streams = streams.into_iter().map(|(_, name)| name.clone()).collect();
        plan.find_pending(snapshot);
        if settling_sec.is_none() {
            plan.find_stale(snapshot);
        }
        Ok(plan)
    }

    fn find_pending(&mut self, snapshot: &Snapshot) {
        for (stream, status) in &snapshot.streams {
            let workers = snapshot.workers.get(stream).into_iter().flat_map(|workers| &workers.consumers);
            let may_return = workers.clone().any(|one| one.started_at.is_some() && !one.state.is_alive());
            let groups = status.groups.iter().filter(|group| group.pending > 0).map(|group| PendingGroup {
                stream: stream.clone(),
                group: group.name.clone(),
                suspected: group.phantom_pending > 0,
                may_return,
            });
            self.pending.extend(groups);
        }
        self.pending.sort_by_key(|group| !group.suspected);
    }

    /// Plans a scheduled cleanup run, which yields to an older monitor.
    ///
    /// # Errors
    /// As [`Self::from`], and when an older monitor may be active.
    pub fn scheduled(snapshot: Option<&Snapshot>) -> Result<Self, NoPlan> {
        let plan = Self::from(snapshot)?;
        match snapshot {
            Some(snapshot) if snapshot.older_monitor.may_be_active() => Err(NoPlan::LeftToOlderMonitor),
            _ => Ok(plan),
        }
    }

    fn find_stale(&mut self, snapshot: &Snapshot) {
        let least_idle = u64::try_from(STALE_AFTER.as_millis()).unwrap_or(u64::MAX);
        let mut room = CONSUMERS_A_PASS;
        for (stream, status) in &snapshot.streams {
            let mut of_groups: BTreeMap<&Name, Vec<Name>> = BTreeMap::new();
            let stale =
                status.consumers.iter().filter(|(_, c)| c.pending == c.phantom_pending && c.idle_ms >= least_idle);
            for (group, consumer) in stale {
                if room == 0 {
                    self.consumers_left += 1;
                    continue;
                }
                room -= 1;
                of_groups.entry(group).or_default().push(consumer.name.clone());
            }
            let found = of_groups.into_iter().map(|(group, names)| (stream.clone(), group.clone(), names));
            self.consumers.extend(found);
        }
    }

    /// Number of stale consumers that this run will check.
    #[must_use]
    pub fn stale_consumers(&self) -> usize {
        self.consumers.iter().map(|(_, _, names)| names.len()).sum()
    }
}

/// Result of a cleanup run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PassOutcome")]
pub struct Outcome {
    /// Non-empty streams that were processed, by name.
    pub streams: BTreeMap<String, StreamOutcome>,
    /// Consumers deleted, by stream.
    pub consumers: BTreeMap<String, u64>,
    /// Consumers that looked stale but became active in the meantime.
    pub consumers_spared: u64,
    /// Stale consumers left for the next run.
    pub consumers_left: u64,
    /// Acknowledged phantom pending IDs, by stream.
    #[serde(default)]
    pub phantoms: BTreeMap<String, u64>,
    /// Phantom pending IDs kept because a worker may still be processing them.
    #[serde(default)]
    pub phantoms_kept: u64,
    /// Queries and callbacks; `null` if Postgres was unreachable or has no query table.
    pub queries: Option<QueriesOutcome>,
    /// Final queries deleted by retention; `null` if not due.
    pub query_retention: Option<u64>,
    /// Skipped steps, with the reason.
    pub left_out: Vec<String>,
    /// Errors.
    pub errors: Vec<String>,
    /// Seconds until the skipped steps can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_sec: Option<u64>,
}

/// Result for one stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StreamOutcome {
    /// Entries removed.
    pub removed: u64,
    /// Stream length afterwards.
    pub length: u64,
    /// Why they are kept; `null` if the stream is empty.
    pub kept_because: Option<ReasonKept>,
    /// The run timed out before the stream was fully trimmed.
    pub unfinished: bool,
    /// Error for this stream.
    pub error: Option<String>,
}

/// Why entries are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ReasonKept {
    /// No consumer group, so nothing is trimmed.
    NoGroups,
    /// This group needs the oldest kept entry.
    Group {
        /// The group.
        group: String,
        /// Why the group needs it.
        need: Need,
        /// Time that entry was added, Unix seconds, from its ID.
        since: Option<f64>,
        /// Entries delivered to the group and not acknowledged.
        pending: u64,
        /// Entries not delivered to the group; `None` where Redis does not know.
        undelivered: Option<u64>,
        /// Idle time of its oldest pending entry, seconds.
        idle_sec: Option<f64>,
        /// Consumer of that entry.
        consumer: Option<String>,
    },
}

/// Why a group needs an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// It was delivered and not acknowledged.
    Pending,
    /// It was not delivered yet.
    Unread,
}

/// Result for queries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueriesOutcome {
    /// Callback rows deleted, including those of abandoned queries.
    pub callbacks_deleted: u64,
    /// Queries marked as abandoned, by ARA.
    pub abandoned: BTreeMap<String, u64>,
    /// The first of them in detail.
    #[serde(skip)]
    pub abandoned_queries: Vec<AbandonedQuery>,
}

/// Maximum number of abandoned queries listed in detail per cleanup run.
pub const ABANDONED_LISTED: usize = 500;
/// Maximum number of abandoned queries named in one text.
const ABANDONED_NAMED: usize = 10;

/// A query that was marked as abandoned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AbandonedQuery {
    /// Query ID.
    pub qid: String,
    /// The ARA it was sent to (`domain`); `none` if it had none.
    pub ara: String,
    /// Age when it was marked, seconds.
    pub age_sec: f64,
    /// Outstanding callbacks that were deleted.
    pub callbacks_deleted: u64,
    /// Last stream with a task of the query; `null` if none was found.
    pub last_stream: Option<String>,
}

impl AbandonedQuery {
    /// Describes the query: `q1 (arax, 12 m old, 2 callbacks outstanding, last stream arax.rank)`.
    #[must_use]
    pub fn described(&self) -> String {
        let Self { qid, ara, age_sec, callbacks_deleted, last_stream } = self;
        let callbacks = if *callbacks_deleted == 1 { "callback" } else { "callbacks" };
        let stream = last_stream.as_deref().unwrap_or("unknown");
        let age = match age_sec / 60.0 {
            minutes if minutes < 2.0 => format!("{age_sec:.0} s"),
            minutes if minutes < 120.0 => format!("{minutes:.0} m"),
            minutes if minutes < 2880.0 => format!("{:.0} h", minutes / 60.0),
            minutes => format!("{:.0} d", minutes / 1440.0),
        };
        let short = |text: &str| -> String { text.chars().take(64).collect() };
        format!(
            "{} ({}, {age} old, {callbacks_deleted} {callbacks} outstanding, last stream {})",
            short(qid),
            short(ara),
            short(stream)
        )
    }
}

/// Lists the first ten of `count` abandoned queries, formatted by `word`, and the number of the remaining ones.
#[must_use]
pub fn named(queries: &[AbandonedQuery], count: u64, word: impl Fn(&AbandonedQuery) -> String) -> String {
    let mut words: Vec<String> = queries.iter().take(ABANDONED_NAMED).map(word).collect();
    let more = count.saturating_sub(words.len() as u64);
    if more > 0 && !words.is_empty() {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

impl QueriesOutcome {
    /// Number of queries marked as abandoned.
    #[must_use]
    pub fn abandoned_count(&self) -> u64 {
        self.abandoned.values().sum()
    }
}

impl Outcome {
    /// Number of entries removed from all streams.
    #[must_use]
    pub fn entries_removed(&self) -> u64 {
        self.streams.values().map(|stream| stream.removed).sum()
    }

    /// Number of consumers deleted from all groups.
    #[must_use]
    pub fn consumers_removed(&self) -> u64 {
        self.consumers.values().sum()
    }

    /// Number of phantom pending IDs acknowledged in all streams.
    #[must_use]
    pub fn phantoms_cleared(&self) -> u64 {
        self.phantoms.values().sum()
    }

    /// Whether the run changed anything.
    #[must_use]
    pub fn did_something(&self) -> bool {
        let queries = self.queries.as_ref().is_some_and(|q| q.callbacks_deleted + q.abandoned_count() > 0);
        let in_redis = self.entries_removed() + self.consumers_removed() + self.phantoms_cleared();
        queries || in_redis + self.query_retention.unwrap_or(0) > 0
    }
}

/// Preview of the next cleanup run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preview {
    /// The longest streams, by name.
    pub streams: Vec<(Name, StreamPreview)>,
    /// Number of short streams that the preview does not cover.
    pub streams_not_looked_at: usize,
    /// Number of consumers that look stale.
    pub consumers: usize,
    /// Number of stale consumers left for later runs.
    pub consumers_left: usize,
    /// Number of known phantom pending IDs.
    pub phantoms: u64,
    /// Seconds until an absent heartbeat counts again.
    pub settling_sec: Option<f64>,
    /// Queries and callbacks; `None` if this step is skipped.
    pub queries: Option<QueriesPreview>,
    /// Reason why queries are skipped, if there is one to display.
    pub without_queries: Option<String>,
    /// Limit up to which queries and callbacks are counted.
    pub counted_to: u64,
}

/// Preview of the query cleanup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueriesPreview {
    /// Callbacks of completed queries.
    pub callbacks: u64,
    /// Queries that would be marked as abandoned.
    pub abandoned: u64,
}

/// Preview of trimming one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamPreview {
    /// Number of removable entries.
    pub removable: Removable,
    /// Current length of the stream.
    pub length: u64,
    /// Reason why the other entries are kept.
    pub kept_because: Option<ReasonKept>,
}

/// Number of removable entries, exact or as an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removable {
    /// Exact number.
    Exactly(u64),
    /// Upper bound, because counting the entries that are still needed stopped at a limit.
    AtMost(u64),
}

impl Removable {
    /// Computes the number from a stream of `length` entries, of which `counted` needed entries were counted up to the
    /// limit `bound`.
    #[must_use]
    pub fn of(length: u64, counted: u64, bound: u64, kept: Option<&ReasonKept>) -> Self {
        match kept {
            None => Self::Exactly(length),
            Some(ReasonKept::NoGroups) => Self::Exactly(0),
            Some(_) if counted < bound => Self::Exactly(length.saturating_sub(counted)),
            Some(ReasonKept::Group { need: Need::Unread, undelivered: Some(lag), .. }) => {
                Self::Exactly(length.saturating_sub(*lag))
            }
            Some(ReasonKept::Group { .. }) => Self::AtMost(length.saturating_sub(counted)),
        }
    }

    /// The number or its upper bound.
    #[must_use]
    pub fn most(self) -> u64 {
        match self {
            Self::Exactly(n) | Self::AtMost(n) => n,
        }
    }
}

/// A recorded cleanup run.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PassRecord {
    /// ID (UUID).
    pub id: String,
    /// Start, Unix seconds.
    pub began: f64,
    /// End, Unix seconds; `null` while it is running or after an interruption.
    pub ended: Option<f64>,
    /// User who started it; `null` for a scheduled run.
    pub asked_by: Option<String>,
    /// Number of times it was interrupted and resumed.
    pub resumed: u32,
    /// Result.
    pub outcome: Option<Outcome>,
    /// Queries marked as abandoned (first 500).
    pub abandoned_queries: Vec<AbandonedQuery>,
}

/// Queries that a cleanup run marked as abandoned, as input of an alert.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Finding {
    /// ID of the cleanup run.
    pub pass: String,
    /// Number of abandoned queries, by ARA.
    pub abandoned: BTreeMap<String, u64>,
    /// The first abandoned queries in detail.
    #[serde(default)]
    pub queries: Vec<AbandonedQuery>,
}

impl Finding {
    /// Total number of abandoned queries.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.abandoned.values().sum()
    }
}

/// Returns the time when an entry was added, Unix seconds, from its ID; `None` for IDs that are not timestamps.
#[must_use]
pub fn added_at(id: &str) -> Option<f64> {
    const YEAR_2001: f64 = 1e12;
    let ms: f64 = id.split('-').next()?.parse().ok()?;
    (YEAR_2001..YEAR_2001 * 10.0).contains(&ms).then_some(ms / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fixtures::{first_snapshot, no_connection};
    use crate::fleet::older_monitor::OlderMonitor;
    use crate::fleet::reading::{GroupConsumer, GroupReading, Lag, StreamFacts, StreamReading, StreamsReading};

    #[test]
    fn no_plan_while_redis_is_unreachable() {
        assert_eq!(Plan::from(None), Err(NoPlan::Starting));
        let mut snapshot = first_snapshot(Err(no_connection()));
        assert_eq!(Plan::from(Some(&snapshot)), Err(NoPlan::Redis("no connection".to_owned())));
        snapshot.redis.source = SourceStatus::Ok;
        assert_eq!(Plan::from(Some(&snapshot)), Ok(Plan::default()));
    }

    #[test]
    fn recovering_redis_skips_only_stale_consumers() {
        let consumer = |name: &str, pending, phantom_pending, idle_ms| GroupConsumer {
            name: name.into(),
            pending,
            phantom_pending,
            idle_ms,
            inactive_ms: None,
        };
        let group = GroupReading {
            name: "consumer".into(),
            pending: 3,
            phantom_pending: 2,
            phantom_at_least: false,
            lag: Lag::Reported(0),
            entries_read: None,
            last_delivered_id: "0-0".to_owned(),
            oldest_undelivered_ms: None,
            consumers: Some(
                [consumer("gone", 0, 0, 4_000_000), consumer("phantoms", 2, 2, 4_000_000), consumer("works", 1, 0, 5)]
                    .into(),
            ),
        };
        let facts = StreamFacts { exists: true, length: 1, groups: vec![group] };
        let mut streams = StreamsReading::default();
        streams.streams.insert("s".into(), StreamReading { facts: Ok(facts) });
        let mut snapshot = first_snapshot(Ok(streams));
        snapshot.redis.source = SourceStatus::Settling { remaining_sec: 9.0 };
        let plan = Plan::from(Some(&snapshot)).unwrap();
        assert_eq!((plan.streams.len(), plan.pending.len(), plan.stale_consumers()), (1, 1, 0));
        assert_eq!(plan.settling_sec, Some(9.0));
        snapshot.redis.source = SourceStatus::Ok;
        let plan = Plan::from(Some(&snapshot)).unwrap();
        assert_eq!((plan.stale_consumers(), plan.settling_sec), (2, None), "phantoms are cleared before");
        assert!(plan.pending[0].suspected && !plan.pending[0].may_return);
    }

    #[test]
    fn only_scheduled_cleanup_yields_to_an_older_monitor() {
        let mut snapshot = first_snapshot(Err(no_connection()));
        snapshot.redis.source = SourceStatus::Ok;
        for (older, runs) in
            [(OlderMonitor::Absent, true), (OlderMonitor::Unknown, false), (OlderMonitor::Active, false)]
        {
            snapshot.older_monitor = older;
            assert_eq!(Plan::scheduled(Some(&snapshot)).is_ok(), runs, "{older:?}");
            assert!(Plan::from(Some(&snapshot)).is_ok());
        }
    }

    #[test]
    fn queries_are_skipped_while_postgres_is_unreachable() {
        let mut snapshot = first_snapshot(Err(no_connection()));
        snapshot.redis.source = SourceStatus::Ok;
        snapshot.postgres.without_queries = false;
        assert!(!Plan::from(Some(&snapshot)).unwrap().queries);
        snapshot.postgres.source = SourceStatus::Ok;
        assert!(Plan::from(Some(&snapshot)).unwrap().queries);
        snapshot.postgres.without_queries = true;
        assert!(!Plan::from(Some(&snapshot)).unwrap().queries);
    }

    fn query(n: usize, last_stream: Option<&str>) -> AbandonedQuery {
        AbandonedQuery {
            qid: format!("q{n}"),
            ara: "arax".to_owned(),
            age_sec: 700.0,
            callbacks_deleted: n as u64,
            last_stream: last_stream.map(str::to_owned),
        }
    }

    #[test]
    fn text_names_ten_abandoned_queries_and_counts_the_rest() {
        let queries: Vec<AbandonedQuery> = (1..=18).map(|n| query(n, Some("arax.rank"))).collect();
        let text = named(&queries, 18, |query| query.qid.clone());
        assert_eq!(text, "q1, q2, q3, q4, q5, q6, q7, q8, q9, q10, and 8 more");
        assert_eq!(named(&queries[..2], 2, |query| query.qid.clone()), "q1, q2");
        assert_eq!(named(&[], 3, |query| query.qid.clone()), "");
        assert_eq!(
            query(1, Some("arax.rank")).described(),
            "q1 (arax, 12 m old, 1 callback outstanding, last stream arax.rank)"
        );
        assert_eq!(query(2, None).described(), "q2 (arax, 12 m old, 2 callbacks outstanding, last stream unknown)");
    }

    #[test]
    fn added_at_is_none_for_ids_that_are_not_timestamps() {
        assert_eq!(added_at("1700000000123-4"), Some(1_700_000_000.123));
        for id in ["1-1", "18446744073709551615-0", "x", ""] {
            assert_eq!(added_at(id), None, "{id}");
        }
    }
}
