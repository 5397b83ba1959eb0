//! Chart specs: frames, titles and API requests of the charts.

use serde::Serialize;

use super::Scope;
use crate::pages::link::{About, encoded};

/// Spec of a chart.
#[derive(Debug, PartialEq, Serialize)]
pub(in crate::pages) struct ChartSpec {
    /// ID by which the script selects the chart type.
    id: &'static str,
    title: &'static str,
    aside: &'static str,
    /// Whether it takes the full width.
    wide: bool,
    /// API responses that it draws.
    sources: Vec<Source>,
    /// Their URLs without a range, separated by spaces.
    asks: String,
}

/// An API response.
#[derive(Debug, PartialEq, Serialize)]
struct Source {
    /// Label that distinguishes it within a chart.
    label: String,
    /// URL as CSV.
    csv: String,
}

fn chart(
    id: &'static str,
    title: &'static str,
    aside: &'static str,
    wide: bool,
    asks: &[String],
    window: &str,
) -> ChartSpec {
    let several = asks.len() > 1;
    let label = |ask: &str| {
        let series = ask.split_once("prefix=").map_or("", |(_, after)| after);
        series.split(['&', '%']).next().unwrap_or_default().to_owned()
    };
    let source = |ask: &String| Source {
        label: if several { label(ask) } else { String::new() },
        csv: format!("{ask}{}{window}&format=csv", if ask.contains('?') { '&' } else { '?' }),
    };
    ChartSpec { id, title, aside, wide, sources: asks.iter().map(source).collect(), asks: asks.join(" ") }
}

/// Returns the charts of a page; `window` is the range for the API (`since=…&until=…`).
pub(super) fn of(scope: &Scope, window: &str) -> Vec<ChartSpec> {
    let prefix = |prefix: &str| format!("/api/historical/metrics_by_prefix?prefix={}", encoded(prefix.as_bytes()));
    let highest = |ask: String| format!("{ask}&minmax=1");
    let chart = |id, title, aside, wide, asks: &[String]| chart(id, title, aside, wide, asks, window);
    match scope {
        Scope::Fleet => vec![
            chart("queries", "Queries started", "per bucket, by ARA", false, &["/api/historical/queries".to_owned()]),
            chart("fleet", "Workers alive", "by type", false, &[prefix("workers_alive:")]),
            chart("backlog", "Backlog", "by stream; line: mean, band: maximum", true, &[highest(prefix("backlog:"))]),
            chart(
                "heat",
                "Utilization",
                "backlog / capacity, by worker type",
                true,
                &[highest(prefix("backlog:")), prefix("capacity:")],
            ),
            chart(
                "latency",
                "Task latency",
                "task run time, by stream; busiest first",
                true,
                &["/api/historical/latency".to_owned()],
            ),
            chart("servers", "Redis and Postgres", "band: maximum of each bucket", true, &[servers()]),
        ],
        Scope::One(about, name) => {
            let name = name.to_text().replace('\0', "\u{fffd}");
            let latency = if is_listable(&name) {
                format!("/api/historical/latency?streams={}", encoded(listed(&name).as_bytes()))
            } else {
                "/api/historical/latency".to_owned()
            };
            let series = |kinds: &[&str]| -> Vec<String> {
                let names: Vec<String> = kinds.iter().map(|kind| format!("{kind}:{name}")).collect();
                if is_listable(&name) {
                    let names: Vec<String> = names.iter().map(|name| listed(name)).collect();
                    let list = encoded(names.join(",").as_bytes());
                    vec![format!("/api/historical/metrics?metric={list}&minmax=1")]
                } else {
                    names.iter().map(|name| highest(prefix(name))).collect()
                }
            };
            let failures = chart("failures", "Task failures", "in the last 5 minutes", true, &series(&["failures"]));
            let latency = chart("latency", "Task latency", "task run time", true, &[latency]);
            let mut charts = match about {
                About::Stream => vec![
                    chart(
                        "depth",
                        "Messages",
                        "undelivered and pending; band: maximum",
                        true,
                        &series(&["lag", "pending"]),
                    ),
                    chart(
                        "waiting",
                        "Oldest message age",
                        "age of the oldest undelivered message",
                        false,
                        &series(&["oldest_waiting_sec"]),
                    ),
                    chart("consumers", "Consumers and length", "of the stream", false, &series(&["consumers", "xlen"])),
                ],
                About::WorkerType => vec![
                    chart("load", "Backlog and capacity", "band: maximum", true, &series(&["backlog", "capacity"])),
                    chart("alive", "Workers alive", "", false, &series(&["workers_alive"])),
                    chart(
                        "waiting",
                        "Oldest message age",
                        "age of the oldest undelivered message",
                        false,
                        &series(&["oldest_waiting_sec"]),
                    ),
                ],
            };
            charts.extend([failures, latency]);
            charts
        }
    }
}

/// Whether the name can be part of a comma-separated API parameter.
fn is_listable(name: &str) -> bool {
    name.trim() == name && !name.is_empty() && !name.ends_with('\\')
}

/// Escapes a name for such a parameter.
fn listed(name: &str) -> String {
    name.replace(',', "\\,")
}

fn servers() -> String {
    let series = [
        "redis:used_memory_bytes",
        "redis:connected_clients",
        "redis:ops_per_sec",
        "pg:connection_count",
        "pg:db_size_bytes",
        "pg:wal_size_bytes",
        "pg:disk_used_bytes",
        "pg:disk_capacity_bytes",
    ];
    format!("/api/historical/metrics?metric={}&minmax=1", series.join(","))
}
