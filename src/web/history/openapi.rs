//! How the API tells the past: what it answers, and each route.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::asked::WindowQuery;
use super::asked::{EventsQuery, HappenedQuery, LatencyQuery, MetricsQuery, PrefixQuery, RecentQuery, SpanQuery};
use crate::history::latency::Summary;
use crate::web::openapi::operation::{Group, Operation};

/// What was found, and of which window.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}Over")]
pub(super) struct Over<T> {
    #[serde(flatten)]
    pub(super) found: T,
    /// The first moment of the window, Unix seconds: a multiple of the bucket.
    pub(super) since: f64,
    /// The first moment after it, Unix seconds: a multiple of the bucket.
    pub(super) until: f64,
    /// How long a bucket is, seconds.
    pub(super) bucket_seconds: i64,
}

/// Names of series.
#[derive(Serialize, JsonSchema)]
pub(super) struct SeriesNames {
    /// In order.
    pub(super) series: Vec<String>,
}

/// Samples of a series in the recent window.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RecentSamples")]
pub(super) struct Recent {
    /// The series.
    pub(super) metric: String,
    /// When (Unix seconds) and the value then, oldest first.
    pub(super) samples: Vec<(f64, f64)>,
}

/// Series over a window.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Series")]
pub(super) struct SeriesFound {
    /// Points by series, oldest first. A bucket without a measurement is missing.
    pub(super) series: BTreeMap<String, Vec<Point>>,
}

/// The beginning of the bucket (Unix seconds) and the average in it; with `minmax` also the least and the greatest.
#[derive(Serialize, JsonSchema)]
#[schemars(extend("minItems" = 2, "maxItems" = 4))]
pub(super) struct Point(pub(super) Vec<f64>);

/// How long tasks took.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TaskTimesByStream")]
pub(super) struct Latencies {
    /// Points by stream, oldest first. In buckets shorter than five minutes each is a recorded row at its own time.
    pub(super) series: BTreeMap<String, Vec<LatencyPoint>>,
    /// Each stream over the whole window.
    pub(super) total: BTreeMap<String, Summary>,
    /// The streams together; `null` without any task.
    pub(super) all: Option<Summary>,
}

/// How long the tasks took that finished in a bucket.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TaskTimesPoint")]
pub(super) struct LatencyPoint {
    /// When the bucket begins, Unix seconds.
    pub(super) ts: f64,
    /// How long they took.
    #[serde(flatten)]
    pub(super) summary: Summary,
}

/// Queries started.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "QueriesStarted")]
pub(super) struct Queries {
    /// By ARA: when the bucket begins (Unix seconds) and how many were started in it, oldest first. A bucket without
    /// any is missing.
    pub(super) series: BTreeMap<String, Vec<(f64, i64)>>,
    /// The fleet keeps no queries here.
    pub(super) without_queries: bool,
}

/// Events.
#[derive(Serialize, JsonSchema)]
pub(super) struct Events {
    /// Newest first.
    pub(super) events: Vec<EventTold>,
}

/// An event as the archive keeps it, whoever wrote it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "StoredEvent")]
pub(super) struct EventTold {
    /// Counts up in the order of storing.
    pub(super) id: i64,
    /// When it happened, Unix seconds.
    pub(super) ts: f64,
    /// What kind of event.
    pub(super) r#type: String,
    /// The worker type, or the source.
    pub(super) worker: Option<String>,
    /// `info`, `warning` or `critical`.
    pub(super) severity: Option<String>,
    /// One line for people.
    pub(super) detail: Option<String>,
    /// Its fields, as in the snapshot's events.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub(super) payload: Option<Value>,
}

/// Incidents.
#[derive(Serialize, JsonSchema)]
pub(super) struct Incidents {
    /// Newest first.
    pub(super) incidents: Vec<IncidentTold>,
}

/// Something that went wrong, from when to when.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Incident")]
pub(super) struct IncidentTold {
    /// `crash`: a worker type had nobody left; `lost`: some of it vanished; `hung`: a consumer made no progress;
    /// `source_down`: Redis or Postgres could not be read.
    #[schemars(extend("enum" = ["crash", "hung", "lost", "source_down"]))]
    pub(super) kind: &'static str,
    /// The worker type or the source.
    pub(super) worker: String,
    /// When it began, Unix seconds; `null` if it had begun before the window.
    pub(super) since: Option<f64>,
    /// When it was over, Unix seconds; `null` if it was not by the end of the window.
    pub(super) until: Option<f64>,
    /// What happened, in words.
    pub(super) what: String,
}

/// A window in a few numbers.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Summary")]
pub(super) struct Summed {
    /// The first moment of the window, Unix seconds.
    pub(super) since: f64,
    /// The first moment after it, Unix seconds.
    pub(super) until: f64,
    /// Queries started; 0 too where the fleet keeps none here.
    pub(super) queries_started: i64,
    /// Worker types that had nobody left, and not all said goodbye.
    pub(super) crashes: i64,
    /// Times that a worker type grew or shrank.
    pub(super) scale_events: i64,
    /// Alerts.
    pub(super) alert_count: i64,
    /// The highest backlog of each worker type, the ten highest of them, the highest first.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(super) peak_backlog: Map<String, Value>,
    /// Tasks finished, by stream, the most first.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(super) task_volume: Map<String, Value>,
}

const POSTGRES: &str = "Postgres cannot be read, or does not answer within 20 s.";
const REDIS: &str = "Redis cannot be read, or does not answer within 20 s.";

/// `GET /api/history`.
pub fn recent_names() -> Operation {
    Operation::new(Group::History, "Names of recent series", "Those that Redis has of the last days.")
        .answers::<SeriesNames>("Names.")
        .tagged()
        .unavailable(REDIS)
}

/// `GET /api/history/{series}`.
pub fn recent() -> Operation {
    Operation::new(
        Group::History,
        "A recent series",
        "Every sample that Redis has of it: at most 10,000, of `MONITOR_HISTORY_DAYS` days. A series that is not known \
         has none.",
    )
    .path("series", "The series' name.", "workers_alive:aragorn.lookup")
    .query::<RecentQuery>()
    .answers::<Recent>("Its samples.")
    .tagged()
    .unavailable(REDIS)
}

/// `GET /api/historical/metrics`.
pub fn metrics() -> Operation {
    Operation::new(
        Group::History,
        "Series over a window",
        "Averages per bucket. Buckets begin at multiples of their length; the first and the last are whole.",
    )
    .query::<MetricsQuery>()
    .answers::<Over<SeriesFound>>("The series.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/metrics_by_prefix`.
pub fn metrics_by_prefix() -> Operation {
    Operation::new(Group::History, "Series by prefix", "Every series whose name begins so, as by name.")
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
        "How long tasks took",
        "Percentiles of any window are within one percent of those of its tasks.",
    )
    .query::<LatencyQuery>()
    .answers::<Over<Latencies>>("By stream.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/queries`.
pub fn queries() -> Operation {
    Operation::new(Group::History, "Queries started", "By ARA and bucket, from the fleet's own table.")
        .query::<WindowQuery>()
        .answers::<Over<Queries>>("By ARA.")
        .or_csv()
        .tagged()
        .unavailable(POSTGRES)
}

/// `GET /api/historical/events`.
pub fn events() -> Operation {
    Operation::new(Group::History, "Events", "What happened, as the archive keeps it.")
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
        "Incidents",
        "Crashes, losses, hangs and outages, put together from the newest 5000 events.",
    )
    .query::<HappenedQuery>()
    .answers::<Incidents>("Incidents, newest first.")
    .or_csv()
    .tagged()
    .unavailable(POSTGRES)
}

/// `GET /api/historical/summary`.
pub fn summary() -> Operation {
    Operation::new(Group::History, "A window in a few numbers", "For a report, or the head of a page.")
        .query::<SpanQuery>()
        .answers::<Summed>("The numbers.")
        .tagged()
        .unavailable(POSTGRES)
}
