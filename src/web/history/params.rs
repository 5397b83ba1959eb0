//! Query parameters, parsed and validated once. Errors name the parameter and the expected value.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Deserialize;

use super::answer::Format;
use crate::fleet::event::{Severity, TYPES};
use crate::history::Micros;
use crate::history::window::Window;
use crate::postgres::events::Filter;
use crate::postgres::history::Selection;
use crate::web::problem::Problem;

/// Maximum number of names per request.
const MAX_NAMES: usize = 500;
/// Maximum number of events per response.
const MAX_EVENTS: i64 = 5000;
/// Default number of events.
const EVENTS: i64 = 500;
/// Start of the time range in examples.
const EXAMPLE_SINCE: u32 = 1_795_456_800;

fn bad(text: impl Into<String>) -> Problem {
    Problem::BadRequest(text.into())
}

/// A time range and the response options.
#[derive(Debug, Clone, Copy)]
pub(super) struct HistoryParams {
    pub(super) window: Window,
    /// The client chose the bucket length, so the monitor must not lengthen it.
    pub(super) bucket_is_given: bool,
    /// Include the minimum and maximum of each bucket.
    pub(super) extremes: bool,
    pub(super) format: Format,
}

fn asked(asked: &WindowQuery, minmax: &Option<String>) -> Result<HistoryParams, Problem> {
    let bucket = match &asked.bucket_seconds {
        None => None,
        Some(text) => {
            Some(text.parse::<u32>().map_err(|_| bad(format!("bucket_seconds is {text}: expected whole seconds")))?)
        }
    };
    let window = asked.span.window(bucket)?;
    let extremes = match minmax.as_deref() {
        None | Some("0" | "false") => false,
        Some("1" | "true" | "") => true,
        Some(other) => return Err(bad(format!("minmax is {other}: expected 1 or 0"))),
    };
    Ok(HistoryParams { window, bucket_is_given: bucket.is_some(), extremes, format: format_of(&asked.format)? })
}

fn format_of(format: &Option<String>) -> Result<Format, Problem> {
    match format.as_deref() {
        None | Some("json") => Ok(Format::Json),
        Some("csv") => Ok(Format::Csv),
        Some(other) => Err(bad(format!("format is {other}: expected json or csv"))),
    }
}

fn number(name: &str, text: &Option<String>) -> Result<Option<f64>, Problem> {
    let parsed = text.as_deref().map(|text| (text, text.parse::<f64>()));
    match parsed {
        None => Ok(None),
        Some((_, Ok(number))) if (0.0..1e11).contains(&number) => Ok(Some(number)),
        Some((text, _)) => Err(bad(format!("{name} is {text}: expected Unix seconds"))),
    }
}

fn selection(name: &str, list: &Option<String>) -> Result<Selection, Problem> {
    let names = names(list.as_deref().unwrap_or_default());
    if names.is_empty() {
        return Err(bad(format!("{name} is missing: expected comma-separated names")));
    }
    if names.len() > MAX_NAMES {
        return Err(bad(format!("{name} has {} names: expected at most {MAX_NAMES}", names.len())));
    }
    Ok(Selection::Names(names))
}

/// Splits a list at commas and removes duplicates. A comma within a name is written `\\,`.
fn names(list: &str) -> Vec<String> {
    let (mut names, mut name) = (BTreeSet::new(), String::new());
    let mut rest = list;
    while let Some((before, after)) = rest.split_once(',') {
        rest = after;
        match before.strip_suffix('\\') {
            Some(escaped) => name.extend([escaped, ","]),
            None => {
                name.push_str(before);
                names.insert(std::mem::take(&mut name));
            }
        }
    }
    name.push_str(rest);
    names.insert(name);
    names.into_iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// Start of the recent samples.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RecentQuery {
    /// Only samples since this time, Unix seconds.
    #[schemars(with = "Option<f64>", range(min = 0), example = EXAMPLE_SINCE)]
    since: Option<String>,
}

impl RecentQuery {
    pub(super) fn since(&self) -> Result<f64, Problem> {
        Ok(number("since", &self.since)?.unwrap_or(0.0))
    }
}

/// A time range.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SpanQuery {
    /// Start of the time range, Unix seconds; default: 24 hours before `until`.
    #[schemars(with = "Option<f64>", range(min = 0), example = EXAMPLE_SINCE)]
    since: Option<String>,
    /// End of the time range (exclusive), Unix seconds; default: now.
    #[schemars(with = "Option<f64>", range(min = 0), example = EXAMPLE_SINCE + 3600)]
    until: Option<String>,
}

impl SpanQuery {
    /// The time range, in buckets of `bucket_seconds` or of the default length.
    pub(super) fn window(&self, bucket_seconds: Option<u32>) -> Result<Window, Problem> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let (since, until) = (number("since", &self.since)?, number("until", &self.until)?);
        Window::new(since, until, bucket_seconds, now).map_err(|error| bad(error.to_string()))
    }
}

/// A time range in buckets.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct WindowQuery {
    #[serde(flatten)]
    span: SpanQuery,
    /// Bucket length, whole seconds; by default chosen for about 200 points per series. More than 3000 points per
    /// series, or 100000 in all (50000 for latencies), are rejected.
    #[schemars(with = "Option<u32>", range(min = 1), example = 600)]
    bucket_seconds: Option<String>,
    /// Response format.
    #[schemars(extend("enum" = ["json", "csv"], "default" = "json"))]
    format: Option<String>,
}

impl WindowQuery {
    pub(super) fn of(&self) -> Result<HistoryParams, Problem> {
        asked(self, &None)
    }
}

/// Series by name.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct MetricsQuery {
    /// Comma-separated series names, at most 500; escape a comma in a name as `\,`. Unknown series are omitted.
    #[schemars(with = "String", example = &"backlog:aragorn.lookup,redis:connected_clients")]
    metric: Option<String>,
    /// 1: include the minimum and maximum of each bucket.
    #[schemars(extend("enum" = ["0", "1", "true", "false"], "default" = "0"), example = &"1")]
    minmax: Option<String>,
    #[serde(flatten)]
    window: WindowQuery,
}

impl MetricsQuery {
    pub(super) fn of(&self) -> Result<HistoryParams, Problem> {
        asked(&self.window, &self.minmax)
    }

    pub(super) fn selection(&self) -> Result<Selection, Problem> {
        selection("metric", &self.metric)
    }
}

/// Series by prefix.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct PrefixQuery {
    /// Prefix of series names, without wildcards. More than 1000 series are rejected.
    #[schemars(with = "String", length(min = 1), example = &"backlog:")]
    prefix: Option<String>,
    /// 1: include the minimum and maximum of each bucket.
    #[schemars(extend("enum" = ["0", "1", "true", "false"], "default" = "0"))]
    minmax: Option<String>,
    #[serde(flatten)]
    window: WindowQuery,
}

impl PrefixQuery {
    pub(super) fn of(&self) -> Result<HistoryParams, Problem> {
        asked(&self.window, &self.minmax)
    }

    pub(super) fn selection(&self) -> Result<Selection, Problem> {
        match self.prefix.as_deref() {
            None | Some("") => Err(bad("prefix is missing: expected a series name prefix such as backlog:")),
            Some(prefix) => Ok(Selection::Prefix(prefix.to_owned())),
        }
    }
}

/// Streams whose run times are returned.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct LatencyQuery {
    /// Comma-separated stream names, at most 500; escape a comma in a name as `\,`. Default: all streams.
    #[schemars(example = &"aragorn.lookup")]
    streams: Option<String>,
    #[serde(flatten)]
    window: WindowQuery,
}

impl LatencyQuery {
    pub(super) fn of(&self) -> Result<HistoryParams, Problem> {
        self.window.of()
    }

    pub(super) fn selection(&self) -> Result<Selection, Problem> {
        match &self.streams {
            None => Ok(Selection::Prefix(String::new())),
            some => selection("streams", some),
        }
    }
}

/// Filter and time range of incidents.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct HappenedQuery {
    /// Only this worker type, or `redis` or `postgres`.
    worker: Option<String>,
    /// Start of the time range, Unix seconds.
    #[schemars(with = "Option<f64>", range(min = 0), example = EXAMPLE_SINCE)]
    since: Option<String>,
    /// End of the time range (exclusive), Unix seconds.
    #[schemars(with = "Option<f64>", range(min = 0))]
    until: Option<String>,
    /// Response format.
    #[schemars(extend("enum" = ["json", "csv"], "default" = "json"))]
    format: Option<String>,
}

impl HappenedQuery {
    pub(super) fn of(&self) -> Result<(Filter, Format), Problem> {
        let (since, until) = (number("since", &self.since)?, number("until", &self.until)?);
        if since.zip(until).is_some_and(|(since, until)| since >= until) {
            return Err(bad("since must be before until"));
        }
        let filter =
            Filter { worker: self.worker.clone(), since: since.map(date), until: until.map(date), ..Filter::default() };
        Ok((filter, format_of(&self.format)?))
    }
}

/// Filter of events.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct EventsQuery {
    /// Only this event type.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = TYPES))]
    type_name: Option<String>,
    /// Only this severity.
    #[schemars(with = "Option<Severity>")]
    severity: Option<String>,
    /// Maximum number of events.
    #[schemars(with = "Option<u32>", range(min = 1, max = MAX_EVENTS), extend("default" = EVENTS), example = 3)]
    limit: Option<String>,
    #[serde(flatten)]
    happened: HappenedQuery,
}

/// Filter for events, and the response format.
pub(super) struct EventParams {
    pub(super) filter: Filter,
    pub(super) limit: i64,
    pub(super) format: Format,
}

impl EventsQuery {
    pub(super) fn of(&self) -> Result<EventParams, Problem> {
        let limit = match &self.limit {
            None => EVENTS,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=MAX_EVENTS).contains(limit))
                .ok_or_else(|| bad(format!("limit is {text}: expected 1 to {MAX_EVENTS}")))?,
        };
        if let Some(type_name) = self.type_name.as_deref().filter(|name| !TYPES.contains(name)) {
            return Err(bad(format!("type is {type_name}: expected one of {}", TYPES.join(", "))));
        }
        if let Some(severity) = self.severity.as_deref().filter(|s| !["info", "warning", "critical"].contains(s)) {
            return Err(bad(format!("severity is {severity}: expected info, warning or critical")));
        }
        let (filter, format) = self.happened.of()?;
        let filter = Filter { type_name: self.type_name.clone(), severity: self.severity.clone(), ..filter };
        Ok(EventParams { filter, limit, format })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "checked to be a date's range")]
fn date(unix_seconds: f64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros((unix_seconds * 1e6) as Micros).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn escaped_commas_do_not_split_a_list() {
        assert_eq!(names("b, a,,b"), ["a", "b"]);
        assert_eq!(names(r"xlen:a\,b,xlen:c\d"), ["xlen:a,b", r"xlen:c\d"]);
        assert_eq!(names(r"\,"), [","]);
        assert!(names(" , ").is_empty());
    }
}
