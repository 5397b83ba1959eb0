//! What the janitor does in a pass, and what came of it: the plan is made from a snapshot, the
//! outcome is a value that is stored, shown and logged.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::snapshot::{Snapshot, SourceStatus};
use crate::contract::Name;

/// A consumer that asked for nothing for so long, holds nothing and has no heartbeat is a phantom.
pub const STALE_AFTER: Duration = Duration::from_secs(3600);
/// Consumers deleted in a pass at most; the next one goes on.
pub const CONSUMERS_A_PASS: usize = 2000;
/// The status of a query that never reached an end.
pub const ABANDONED_STATUS: &str = "Abandoned: no completion within budget";

/// What a pass will do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Streams with something in them, the longest first: each is trimmed as far as its groups allow.
    pub streams: Vec<Name>,
    /// Consumers that look stale, by stream and group; each is looked at again when it is deleted.
    pub consumers: Vec<(Name, Name, Vec<Name>)>,
    /// Stale consumers left for the next run.
    pub consumers_left: usize,
    /// Postgres is read, and the fleet keeps its queries there.
    pub queries: bool,
    /// Groups with pending IDs, those with known phantoms first.
    pub pending: Vec<PendingGroup>,
    /// Absent heartbeats mean nothing for so many more seconds: what goes by them is skipped.
    pub settling_sec: Option<f64>,
}

/// A group whose pending list may hold phantom IDs.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingGroup {
    /// Its stream.
    pub stream: Name,
    /// The group.
    pub group: Name,
    /// Phantom IDs are known.
    pub suspected: bool,
    /// A worker of the stream had a heartbeat and has none now: it may come back to what it was doing.
    pub may_return: bool,
}

/// Why there is no pass now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// No tick is finished yet.
    #[error("waiting for the first poll of Redis")]
    Starting,
    /// Redis cannot be read.
    #[error("Redis is unreachable: {0}")]
    Redis(String),
    /// An older monitor has a janitor of its own, and its alerts depend on what it finds.
    #[error("an older monitor is, or may be, active on this Redis and runs the cleanup")]
    LeftToOlderMonitor,
}

impl Plan {
    /// What is to be done, going by `snapshot`.
    ///
    /// # Errors
    /// When Redis is not read, or not yet. While absent heartbeats mean nothing, what goes by them is left out.
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

    /// The same for a scheduled cleanup run, which is left to an older monitor while one may be active.
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

    /// Consumers that look stale and are looked at in this pass.
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
    pub kept_because: Option<Kept>,
    /// The run timed out before the stream was fully trimmed.
    pub unfinished: bool,
    /// Error for this stream.
    pub error: Option<String>,
}

/// Why entries are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Kept {
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

/// Abandoned queries of one cleanup run that are listed one by one.
pub const ABANDONED_LISTED: usize = 500;
/// Abandoned queries that are named in one text.
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
    /// The query in words: `q1 (arax, 12 m old, 2 callbacks outstanding, last stream arax.rank)`.
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

/// The first ten of `count` abandoned queries, each put in words by `word`, and how many more there are.
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
    /// Queries called abandoned.
    #[must_use]
    pub fn abandoned_count(&self) -> u64 {
        self.abandoned.values().sum()
    }
}

impl Outcome {
    /// Entries removed from all streams.
    #[must_use]
    pub fn entries_removed(&self) -> u64 {
        self.streams.values().map(|stream| stream.removed).sum()
    }

    /// Consumers deleted from all groups.
    #[must_use]
    pub fn consumers_removed(&self) -> u64 {
        self.consumers.values().sum()
    }

    /// Phantom pending IDs acknowledged in all streams.
    #[must_use]
    pub fn phantoms_cleared(&self) -> u64 {
        self.phantoms.values().sum()
    }

    /// Whether anything was changed.
    #[must_use]
    pub fn did_something(&self) -> bool {
        let queries = self.queries.as_ref().is_some_and(|q| q.callbacks_deleted + q.abandoned_count() > 0);
        let in_redis = self.entries_removed() + self.consumers_removed() + self.phantoms_cleared();
        queries || in_redis + self.query_retention.unwrap_or(0) > 0
    }
}

/// What a pass would do now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preview {
    /// The longest streams.
    pub streams: Vec<(Name, StreamPreview)>,
    /// Streams that were not looked at: there are many, and these are short.
    pub streams_not_looked_at: usize,
    /// Consumers that look stale.
    pub consumers: usize,
    /// Those that later passes come to.
    pub consumers_left: usize,
    /// Phantom pending IDs that are known.
    pub phantoms: u64,
    /// Absent heartbeats mean nothing for so many more seconds.
    pub settling_sec: Option<f64>,
    /// Queries and callbacks; `None` when they are left alone.
    pub queries: Option<QueriesPreview>,
    /// Why they are left alone, if there is something to say about it.
    pub without_queries: Option<String>,
    /// How far queries and callbacks are counted.
    pub counted_to: u64,
}

/// What a pass would do to queries and callbacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueriesPreview {
    /// Callbacks of queries that are over.
    pub callbacks: u64,
    /// Queries that would be called abandoned.
    pub abandoned: u64,
}

/// What a pass would remove from a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamPreview {
    /// How many entries.
    pub removable: Removable,
    /// Of how many.
    pub length: u64,
    /// Why the others are kept.
    pub kept_because: Option<Kept>,
}

/// How many entries can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removable {
    /// So many.
    Exactly(u64),
    /// No more than that: who keeps how many is not counted to the end.
    AtMost(u64),
}

impl Removable {
    /// Of `length` entries, when `counted` of the kept ones were counted, `bound` at most.
    #[must_use]
    pub fn of(length: u64, counted: u64, bound: u64, kept: Option<&Kept>) -> Self {
        match kept {
            None => Self::Exactly(length),
            Some(Kept::NoGroups) => Self::Exactly(0),
            Some(_) if counted < bound => Self::Exactly(length.saturating_sub(counted)),
            Some(Kept::Group { need: Need::Unread, undelivered: Some(lag), .. }) => {
                Self::Exactly(length.saturating_sub(*lag))
            }
            Some(Kept::Group { .. }) => Self::AtMost(length.saturating_sub(counted)),
        }
    }

    /// The most it can be.
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

/// Queries that a pass called abandoned: what an alert is about.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Finding {
    /// The pass's id.
    pub pass: String,
    /// How many, by product.
    pub abandoned: BTreeMap<String, u64>,
    /// The first of them one by one.
    #[serde(default)]
    pub queries: Vec<AbandonedQuery>,
}

impl Finding {
    /// How many in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.abandoned.values().sum()
    }
}

/// When an entry was added, Unix seconds, going by its id; `None` for ids that are no times.
#[must_use]
pub fn added_at(id: &str) -> Option<f64> {
    const YEAR_2001: f64 = 1e12;
    let ms: f64 = id.split('-').next()?.parse().ok()?;
    (YEAR_2001..YEAR_2001 * 10.0).contains(&ms).then_some(ms / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::invented::{first_snapshot, no_connection};
    use crate::fleet::older_monitor::OlderMonitor;
    use crate::fleet::reading::{GroupConsumer, GroupReading, Lag, StreamFacts, StreamReading, StreamsReading};

    #[test]
    fn nothing_is_planned_while_redis_is_not_believed() {
        assert_eq!(Plan::from(None), Err(NoPlan::Starting));
        let mut snapshot = first_snapshot(Err(no_connection()));
        assert_eq!(Plan::from(Some(&snapshot)), Err(NoPlan::Redis("no connection".to_owned())));
        snapshot.redis.source = SourceStatus::Ok;
        assert_eq!(Plan::from(Some(&snapshot)), Ok(Plan::default()));
    }

    #[test]
    fn while_absent_heartbeats_mean_nothing_no_consumer_is_stale_and_the_rest_is_done() {
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
    fn scheduled_cleanup_is_left_to_an_older_monitor_that_may_be_active_and_a_manual_one_is_not() {
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
    fn queries_are_left_alone_while_postgres_is_not_read() {
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
    fn ten_abandoned_queries_are_named_and_the_rest_counted() {
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
    fn an_id_tells_a_time_only_where_it_is_one() {
        assert_eq!(added_at("1700000000123-4"), Some(1_700_000_000.123));
        for id in ["1-1", "18446744073709551615-0", "x", ""] {
            assert_eq!(added_at(id), None, "{id}");
        }
    }
}
