//! OpenAPI descriptions of the history routes and their responses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::params::WindowQuery;
use super::params::{EventsQuery, HappenedQuery, LatencyQuery, MetricsQuery, PrefixQuery, RecentQuery, SpanQuery};
use crate::history::latency::Summary;
use crate::web::openapi::operation::{Group, Operation};

/// A result and its time range.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}Over")]
pub(super) struct Over<T> {
    #[serde(flatten)]
    pub(super) found: T,
    /// Start of the time range, Unix seconds; a multiple of the bucket.
    pub(super) since: f64,
    /// End of the time range (exclusive), Unix seconds; a multiple of the bucket.
    pub(super) until: f64,
    /// Bucket length, seconds.
    pub(super) bucket_seconds: i64,
}

/// Names of series.
#[derive(Serialize, JsonSchema)]
pub(super) struct SeriesNames {
    /// Sorted names.
    pub(super) series: Vec<String>,
}

/// Recent samples of a series.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RecentSamples")]
pub(super) struct Recent {
    /// The series.
    pub(super) metric: String,
    /// Pairs of time (Unix seconds) and value, oldest first.
    pub(super) samples: Vec<(f64, f64)>,
}

/// Series over a time range.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Series")]
pub(super) struct SeriesFound {
    /// Points by series, oldest first. Empty buckets are omitted.
    pub(super) series: BTreeMap<String, Vec<Point>>,
}

/// Start of the bucket (Unix seconds) and its mean; with `minmax` also its minimum and maximum.
#[derive(Serialize, JsonSchema)]
#[schemars(extend("minItems" = 2, "maxItems" = 4))]
pub(super) struct Point(pub(super) Vec<f64>);

/// Task run times.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TaskTimesByStream")]
pub(super) struct Latencies {
    /// Points by stream, oldest first. With buckets shorter than 5 minutes, each point is one recorded row at its
    /// own time.
    pub(super) series: BTreeMap<String, Vec<LatencyPoint>>,
    /// Each stream over the whole time range.
    pub(super) total: BTreeMap<String, Summary>,
    /// All streams combined; `null` without any task.
    pub(super) all: Option<Summary>,
}

/// Run times of the tasks that finished in a bucket.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TaskTimesPoint")]
pub(super) struct LatencyPoint {
    /// Start of the bucket, Unix seconds.
    pub(super) ts: f64,
    /// Run time statistics.
    #[serde(flatten)]
    pub(super) summary: Summary,
}

/// Queries started.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "QueriesStarted")]
pub(super) struct Queries {
    /// By ARA: pairs of bucket start (Unix seconds) and queries started, oldest first. Empty buckets are omitted.
    pub(super) series: BTreeMap<String, Vec<(f64, i64)>>,
    /// The database has no query table.
    pub(super) without_queries: bool,
}

/// Events.
#[derive(Serialize, JsonSchema)]
pub(super) struct Events {
    /// Newest first.
    pub(super) events: Vec<EventResponse>,
}

/// A stored event, of any monitor.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "StoredEvent")]
pub(super) struct EventResponse {
    /// Increasing ID, in order of insertion.
    pub(super) id: i64,
    /// Time of the event, Unix seconds.
    pub(super) ts: f64,
    /// Event type.
    pub(super) r#type: String,
    /// The worker type or data source.
    pub(super) worker: Option<String>,
    /// `info`, `warning` or `critical`.
    pub(super) severity: Option<String>,
    /// One line for people.
    pub(super) detail: Option<String>,
    /// Fields of the event, as in the snapshot.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub(super) payload: Option<Value>,
}

/// Incidents.
#[derive(Serialize, JsonSchema)]
pub(super) struct Incidents {
    /// Newest first.
    pub(super) incidents: Vec<IncidentResponse>,
}

/// An incident with its start and end.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Incident")]
pub(super) struct IncidentResponse {
    /// `crash`: a worker type went to zero by a crash; `lost`: some of its workers were lost; `hung`: a consumer
    /// made no progress; `source_down`: Redis or Postgres was unreachable.
    #[schemars(extend("enum" = ["crash", "hung", "lost", "source_down"]))]
    pub(super) kind: &'static str,
    /// The worker type or data source.
    pub(super) worker: String,
    /// Start, Unix seconds; `null` if before the time range.
    pub(super) since: Option<f64>,
    /// End, Unix seconds; `null` if ongoing at the end of the time range.
    pub(super) until: Option<f64>,
    /// Description.
    pub(super) what: String,
}

/// Summary of a time range.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Summary")]
pub(super) struct Summed {
    /// Start of the time range, Unix seconds.
    pub(super) since: f64,
    /// End of the time range (exclusive), Unix seconds.
    pub(super) until: f64,
    /// Queries started; also 0 if the database has no query table.
    pub(super) queries_started: i64,
    /// Crashes of worker types.
    pub(super) crashes: i64,
    /// Scale events of worker types.
    pub(super) scale_events: i64,
    /// Alerts.
    pub(super) alert_count: i64,
    /// Peak backlog of the top ten worker types, highest first.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(super) peak_backlog: Map<String, Value>,
    /// Tasks finished by stream, highest first.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(super) task_volume: Map<String, Value>,
}

const POSTGRES: &str = "Postgres is unreachable or did not respond within 20 s.";
const REDIS: &str = "Redis is unreachable or did not respond within 20 s.";

/// `GET /api/history`.
pub fn recent_names() -> Operation {
    Operation::new(Group::History, "List recent series", "Names of the series stored in Redis.")
        .answers::<SeriesNames>("Names.")
        .tagged()
        .unavailable(REDIS)
}

/// `GET /api/history/{series}`.
pub fn recent() -> Operation {
    Operation::new(
        Group::History,
        "Get a recent series",
        "All samples stored in Redis: at most 10,000 from the last `MONITOR_HISTORY_DAYS` days. Empty for an \
         unknown series.",
    )
    .path("series", "Series name.", "workers_alive:aragorn.lookup")
    .query::<RecentQuery>()
    .answers::<Recent>("The samples.")
    .tagged()
    .unavailable(REDIS)
}

/// `GET /api/historical/metrics`.
pub fn metrics() -> Operation {
    Operation::new(
        Group::History,
        "Get series over a time range",
        "Mean per bucket. Buckets start at multiples of their length; the time range is extended to whole buckets.",
    )
    .query::<MetricsQuery>()
    .answers::<Over<SeriesFound>>("The series.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/metrics_by_prefix`.
pub fn metrics_by_prefix() -> Operation {
    Operation::new(Group::History, "Get series by prefix", "All series whose name starts with the prefix.")
        .query::<PrefixQuery>()
        .answers::<Over<SeriesFound>>("The series.")
        .or_csv()
        .tagged()
        .unavailable(POSTGRES)
}

/// `GET /api/historical/latency`.
pub fn latency() -> Operation {
    Operation::new(
        Group::History,
        "Get task run times",
        "Percentiles over any time range, with a relative error of at most 1 %.",
    )
    .query::<LatencyQuery>()
    .answers::<Over<Latencies>>("By stream.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/queries`.
pub fn queries() -> Operation {
    Operation::new(
        Group::History,
        "Get queries started",
        "Queries started by ARA and bucket, from the fleet's own \
     table.",
    )
    .query::<WindowQuery>()
    .answers::<Over<Queries>>("By ARA.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/events`.
pub fn events() -> Operation {
    Operation::new(Group::History, "List events", "Recorded events of the fleet.")
        .query::<EventsQuery>()
        .answers::<Events>("Events, newest first.")
        .or_csv()
        .tagged()
        .unavailable(POSTGRES)
}

/// `GET /api/historical/incidents`.
pub fn incidents() -> Operation {
    Operation::new(
        Group::History,
        "List incidents",
        "Crashes, lost and hung workers, and outages of data sources, derived from the newest 5000 events.",
    )
    .query::<HappenedQuery>()
    .answers::<Incidents>("Incidents, newest first.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/summary`.
pub fn summary() -> Operation {
    Operation::new(
        Group::History,
        "Get a summary of a time range",
        "Totals of queries, tasks, crashes, scale \
     events and alerts.",
    )
    .query::<SpanQuery>()
    .answers::<Summed>("The summary.")
    .tagged()
    .unavailable(POSTGRES)
}
