//! API for recorded data: series, task run times, queries, events and their summary.
//!
//! `params` parses parameters, `answer` writes JSON or CSV with an ETag. The queries are in
//! [`crate::postgres::history`].

mod answer;
mod incidents;
pub mod openapi;
mod params;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Number, Value};

use self::openapi::{
    EventResponse, Events, Latencies, LatencyPoint, Over, Point, Queries, Recent, SeriesFound, SeriesNames, Summed,
};
use super::AppState;
use super::problem::Problem;
use crate::actors::io::{POSTGRES_LATE, REDIS_LATE};
use crate::fleet::reading::SourceTrouble;
use crate::history::latency::{Latency, Summary};
use crate::history::stored_name::stored_name;
use crate::history::window::{Aggregate, Window};
use crate::history::{Micros, SECOND};
use crate::pages::history::parts as history_page;
use crate::postgres::events::{self, Filter};
use crate::postgres::history::{self, Selection};
use crate::redis_streams::recent_series;
use answer::{Format, csv, json as as_json};
pub(super) use incidents::happened;
pub use incidents::incidents;
use params::{EventsQuery, LatencyQuery, MetricsQuery, PrefixQuery, RecentQuery, SpanQuery, WindowQuery};

/// Timeout of a query.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Maximum number of series per response.
const MAX_SERIES: usize = 1000;
/// Maximum number of points of all series in a response: about 7 MB.
pub const MAX_POINTS: usize = 100_000;
/// Maximum number of run time points of all streams in a response: about 9 MB.
pub const MAX_LATENCY_POINTS: usize = 50_000;
/// Number of streams in the lists of the summary.
const TOP: usize = 10;

async fn from_postgres<T: Send + 'static>(
    front: &AppState,
    work: impl Future<Output = Result<T, SourceTrouble>> + Send + 'static,
) -> Result<T, Problem> {
    Ok(front.io.read(ANSWER_WITHIN, POSTGRES_LATE, work).await?)
}

/// Calls `read` for the time range. If the result is too large and the client did not choose the bucket length,
/// retries with longer buckets; otherwise fails, naming what there is too much of (`many`).
async fn bounded<T: Send + 'static, W: Future<Output = Result<Option<T>, SourceTrouble>> + Send + 'static>(
    front: &AppState,
    asked: &params::HistoryParams,
    (many, most): (&str, usize),
    read: impl Fn(Window) -> W,
) -> Result<(T, Window), Problem> {
    let mut window = asked.window;
    loop {
        if let Some(found) = from_postgres(front, read(window)).await? {
            return Ok((found, window));
        }
        window = match window.coarser() {
            Some(coarser) if !asked.bucket_is_given => coarser,
            _ => {
                return Err(Problem::BadRequest(format!(
                    "the answer has more than {most} points ({many} × buckets of {} s): expected at most {most}; ask for \
                     fewer {many}, a shorter window or longer buckets (bucket_seconds)",
                    window.bucket / SECOND
                )));
            }
        };
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
fn seconds(at: Micros) -> f64 {
    at as f64 / 1e6
}

/// `GET /api/history`: names of the series that Redis stores for recent days.
pub async fn recent_names(front: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let pool = front.io.web.redis.clone();
    let names = front.io.read(ANSWER_WITHIN, REDIS_LATE, async move { recent_series::names(&pool).await }).await?;
    as_json(&request, &SeriesNames { series: names })
}

/// `GET /api/history/{series}?since=`: recent samples of a series, oldest first.
pub async fn recent(
    front: Data<AppState>,
    request: HttpRequest,
    series: Path<String>,
    query: Query<RecentQuery>,
) -> Result<HttpResponse, Problem> {
    let since = query.since()?;
    let (pool, name) = (front.io.web.redis.clone(), series.into_inner());
    let asked = name.clone();
    let window = (front.io.wall(), front.recent_window);
    let reading = async move { recent_series::read(&pool, &stored_name(&asked), since, window).await };
    let samples = front.io.read(ANSWER_WITHIN, REDIS_LATE, reading).await?;
    as_json(&request, &Recent { metric: name, samples })
}

/// `GET /api/historical/metrics?metric=a,b`: these series over a time range.
pub async fn metrics(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<MetricsQuery>,
) -> Result<HttpResponse, Problem> {
    let (selection, asked) = (query.selection()?, query.of()?);
    series(&front, &request, selection, asked).await
}

/// `GET /api/historical/metrics_by_prefix?prefix=`: every series with this prefix.
pub async fn metrics_by_prefix(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<PrefixQuery>,
) -> Result<HttpResponse, Problem> {
    let (selection, asked) = (query.selection()?, query.of()?);
    series(&front, &request, selection, asked).await
}

async fn series(
    front: &AppState,
    request: &HttpRequest,
    selection: Selection,
    asked: params::HistoryParams,
) -> Result<HttpResponse, Problem> {
    let pool = front.io.web.reads.clone();
    let read = |window| {
        let (pool, selection) = (pool.clone(), selection.clone());
        async move { history::metrics::read_at_most(&pool, &selection, window, MAX_POINTS).await }
    };
    let (found, window) = bounded(front, &asked, ("series", MAX_POINTS), read).await?;
    if found.len() > MAX_SERIES {
        return Err(Problem::BadRequest(format!(
            "the prefix matches {} series: expected at most {MAX_SERIES}; use a longer prefix",
            found.len()
        )));
    }
    let cells = |at: &Micros, aggregate: &Aggregate| {
        let mut cells = vec![seconds(*at), aggregate.mean()];
        if asked.extremes {
            cells.extend([aggregate.min, aggregate.max]);
        }
        cells
    };
    if asked.format == Format::Csv {
        let mut head = vec!["series", "ts", "value"];
        if asked.extremes {
            head.extend(["min", "max"]);
        }
        let rows = found.iter().flat_map(|(name, buckets)| {
            buckets.iter().map(move |(at, aggregate)| {
                let numbers = cells(at, aggregate).into_iter().map(|number| number.to_string());
                std::iter::once(name.clone()).chain(numbers).collect()
            })
        });
        return csv(request, "series", &head, rows);
    }
    let points = |buckets: &BTreeMap<Micros, Aggregate>| buckets.iter().map(|(at, a)| Point(cells(at, a))).collect();
    let series = found.iter().map(|(name, buckets)| (name.clone(), points(buckets))).collect();
    as_json(request, &over(window, SeriesFound { series }))
}

/// `GET /api/historical/latency?streams=a,b`: task run times. `total` has each stream over the whole time range,
/// `all` the requested streams combined.
pub async fn latency(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<LatencyQuery>,
) -> Result<HttpResponse, Problem> {
    let (selection, asked) = (query.selection()?, query.of()?);
    let pool = front.io.web.reads.clone();
    let read = |window| {
        let (pool, selection) = (pool.clone(), selection.clone());
        async move { history::latency::read_at_most(&pool, &selection, window, MAX_LATENCY_POINTS).await }
    };
    let (found, window) = bounded(&front, &asked, ("streams", MAX_LATENCY_POINTS), read).await?;
    if asked.format == Format::Csv {
        let head =
            ["stream", "ts", "count", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "exact"];
        let rows = found.points.iter().flat_map(|(stream, points)| {
            points.iter().map(move |(at, summary)| {
                let mut row = vec![stream.clone(), seconds(*at).to_string(), summary.count.to_string()];
                let figures = [
                    summary.mean_ms,
                    summary.p50_ms,
                    summary.p90_ms,
                    summary.p95_ms,
                    summary.p99_ms,
                    summary.min_ms,
                    summary.max_ms,
                ];
                row.extend(figures.map(|figure| figure.map_or_else(String::new, |f| f.to_string())));
                row.push(summary.exact.to_string());
                row
            })
        });
        return csv(&request, "latency", &head, rows);
    }
    let all = found.totals.values().cloned().reduce(|mut all, stream| {
        all.merge(&stream);
        all
    });
    let total = found.totals.iter().map(|(name, t)| (name.clone(), t.summary())).collect();
    let point = |(at, summary): (&Micros, &Summary)| LatencyPoint { ts: seconds(*at), summary: *summary };
    let series = found.points.iter().map(|(stream, points)| (stream.clone(), points.iter().map(point).collect()));
    let found = Latencies { series: series.collect(), total, all: all.as_ref().map(Latency::summary) };
    as_json(&request, &over(window, found))
}

/// `GET /api/historical/queries`: queries started per bucket, by ARA, from the fleet's own table.
pub async fn queries(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<WindowQuery>,
) -> Result<HttpResponse, Problem> {
    let asked = query.of()?;
    let pool = front.io.web.reads.clone();
    let read = |window| {
        let pool = pool.clone();
        async move {
            let started = history::queries_started::read(&pool, window).await?;
            let points: usize = started.iter().flat_map(BTreeMap::values).map(BTreeMap::len).sum();
            Ok((points <= MAX_POINTS).then_some(started))
        }
    };
    let (started, window) = bounded(&front, &asked, ("domains", MAX_POINTS), read).await?;
    let without_queries = started.is_none();
    let started = started.unwrap_or_default();
    if asked.format == Format::Csv {
        let rows = started.iter().flat_map(|(domain, buckets)| {
            buckets.iter().map(move |(at, n)| vec![domain.clone(), seconds(*at).to_string(), n.to_string()])
        });
        return csv(&request, "queries", &["domain", "ts", "started"], rows);
    }
    let points = |buckets: BTreeMap<Micros, i64>| buckets.into_iter().map(|(at, n)| (seconds(at), n)).collect();
    let series = started.into_iter().map(|(domain, buckets)| (domain, points(buckets))).collect();
    as_json(&request, &over(window, Queries { series, without_queries }))
}

/// `GET /api/historical/events`: events, newest first.
pub async fn events(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<EventsQuery>,
) -> Result<HttpResponse, Problem> {
    let asked = query.of()?;
    let pool = front.io.web.reads.clone();
    let (filter, limit): (Filter, i64) = (asked.filter, asked.limit);
    let rows = from_postgres(&front, async move { events::newest(&pool, &filter, limit).await }).await?;
    if asked.format == Format::Csv {
        let rows = rows.into_iter().map(|row| {
            let text = |text: Option<String>| text.unwrap_or_default();
            let at = row.unix_seconds().to_string();
            vec![row.id.to_string(), at, row.type_, text(row.worker), text(row.severity), text(row.detail)]
        });
        return csv(&request, "events", &["id", "ts", "type", "worker", "severity", "detail"], rows);
    }
    let told = |row: events::Row| EventResponse {
        id: row.id,
        ts: row.unix_seconds(),
        r#type: row.type_,
        worker: row.worker,
        severity: row.severity,
        detail: row.detail,
        payload: row.payload,
    };
    as_json(&request, &Events { events: rows.into_iter().map(told).collect() })
}

/// `GET /api/historical/summary`: summary of a time range.
pub async fn summary(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<SpanQuery>,
) -> Result<HttpResponse, Problem> {
    let window = query.window(None)?;
    let summary = summed_up(&front, window).await?;
    // JSON objects keep the insertion order.
    let whole =
        |figure: &f64| if figure.fract() == 0.0 { Number::from(*figure as i64).into() } else { (*figure).into() };
    let map = |figures: &[(String, f64)]| -> Map<String, Value> {
        figures.iter().map(|(name, figure)| (name.clone(), whole(figure))).collect()
    };
    let answer = Summed {
        since: seconds(window.since),
        until: seconds(window.until),
        queries_started: summary.queries_started.unwrap_or(0),
        crashes: summary.crashes,
        scale_events: summary.scale_events,
        alert_count: summary.alert_count,
        peak_backlog: map(summary.peak_backlog.get(..TOP).unwrap_or(&summary.peak_backlog)),
        task_volume: map(&summary.task_volume),
    };
    as_json(&request, &answer)
}

/// Summary of a time range.
pub(super) async fn summed_up(front: &AppState, window: Window) -> Result<history_page::Summary, Problem> {
    let pool = front.io.web.reads.clone();
    let work = async move {
        let backlog = Selection::Prefix("backlog:".to_owned());
        // In parallel, each on its own connection.
        tokio::try_join!(
            history::summary::happened(&pool, window),
            history::queries_started::read(&pool, window),
            history::metrics::read(&pool, &backlog, window),
            history::latency::volume(&pool, window),
        )
    };
    let (happened, started, backlog, volume) = from_postgres(front, work).await?;
    let peak = |buckets: &BTreeMap<Micros, Aggregate>| buckets.values().map(|a| a.max).fold(0.0, f64::max);
    let peaks = backlog.iter().map(|(name, b)| (name.strip_prefix("backlog:").unwrap_or(name).to_owned(), peak(b)));
    Ok(history_page::Summary {
        queries_started: started.map(|s| s.values().flat_map(BTreeMap::values).sum()),
        crashes: happened.crashes,
        scale_events: happened.scale_events,
        alert_count: happened.alerts,
        peak_backlog: greatest(peaks.filter(|(_, peak)| *peak > 0.0)),
        task_volume: greatest(volume.into_iter().map(|(stream, n)| (stream, n as f64))),
    })
}

/// In descending order.
fn greatest(figures: impl Iterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let mut figures: Vec<(String, f64)> = figures.collect();
    figures.sort_by(|(a_name, a), (b_name, b)| b.total_cmp(a).then_with(|| a_name.cmp(b_name)));
    figures
}

fn over<T>(window: Window, found: T) -> Over<T> {
    let bucket_seconds = window.bucket / SECOND;
    Over { found, since: seconds(window.since), until: seconds(window.until), bucket_seconds }
}
