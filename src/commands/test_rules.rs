//! `shepherd-monitor test-rules`: backtests a rules file on recorded history and prints when each rule would have
//! fired, and for how long.
//!
//! [`command`] defines the arguments, and [`run`] executes them. [`replay`](crate::alerting::replay) evaluates the
//! rules like the live monitor; this module reads the archive, one day at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::{flags, output, runtime, settings};
use crate::alerting::file;
use crate::alerting::message::span;
use crate::alerting::replay::{Firing, Replay, Track};
use crate::alerting::rule::{Bound, figure};
use crate::doctor::report::count;
use crate::history::window::{MAX_POINTS, MAX_WINDOW_SEC, Window};
use crate::history::{Micros, SECOND};
use crate::postgres::connection::{self, PgPool};
use crate::postgres::history::Selection;
use crate::postgres::history::metrics;
use crate::printable::{Escaped, Lines};
use crate::regular_file;

/// Number of listed firings per rule, newest first.
const LISTED: usize = 10;
/// Response timeout of the database.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Series that a running monitor always records; gaps in them mean that it was not running.
const PULSE: [&str; 2] = ["redis:connected_clients", "pg:connection_count"];

/// The subcommand; it takes the Postgres settings and the recording interval.
pub(super) fn command() -> Command {
    Command::new("test-rules")
        .about("Evaluate the rules of a file against recorded history and print when they would have fired")
        .arg(Arg::new("FILE").required(true).help("Path of the rules file, such as alerts.yaml"))
        .arg(
            Arg::new("since")
                .long("since")
                .value_name("TIME")
                .default_value("30d")
                .value_parser(ago)
                .help("Start of the time range, relative to now (30d, 12h)"),
        )
        .arg(
            Arg::new("until")
                .long("until")
                .value_name("TIME")
                .default_value("0")
                .value_parser(ago)
                .help("End of the time range, relative to now"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print the full result as JSON"))
        .after_help(
            "The history has one value per series every 30 s (MONITOR_HISTORY_INTERVAL_SEC); shorter changes are not \
             visible. Exits with 0 even if rules fire, with 1 if the file is invalid or the history cannot be read.",
        )
        .args(flags(|entry| entry.group == "Postgres" || entry.env == "MONITOR_HISTORY_INTERVAL_SEC"))
}

fn ago(text: &str) -> Result<Duration, String> {
    let ago = file::duration(text).filter(|ago| ago.as_secs_f64() <= MAX_WINDOW_SEC);
    ago.ok_or_else(|| format!("expected a duration such as 30d, 12h or 45m, at most {:.0}d", MAX_WINDOW_SEC / 86_400.0))
}

/// Parsed arguments.
struct Request<'a> {
    file: &'a str,
    /// Unix seconds.
    since: f64,
    until: f64,
}

/// Executes the command and prints the result.
///
/// # Errors
/// The errors of the file, or why the archive cannot be read.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    let name = given.get_one::<String>("FILE").map(String::as_str).unwrap_or_default();
    let text = regular_file::read(Path::new(name), regular_file::RULES).map_err(|error| format!("{name}: {error}"))?;
    let rules = file::read(&text).map_err(|mistakes| {
        for mistake in &mistakes {
            output::detail(format_args!("{name}:{mistake}"));
        }
        format!("{name} has {}", count(mistakes.len(), "error"))
    })?;
    let ago = |name| given.get_one::<Duration>(name).map_or(0.0, Duration::as_secs_f64);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let request = Request { file: name, since: now - ago("since"), until: now - ago("until") };
    if request.since >= request.until {
        return Err("--since must be a longer duration than --until".to_owned());
    }
    let pool = connection::pool(settings.database_url.reveal(), settings.pool_timeout).map_err(|e| e.detail)?;
    let mut replay = Replay::new(&rules);
    let recorded = runtime()?.block_on(walk(&pool, &mut replay, &request, settings.history_interval))?;
    if given.get_flag("json") {
        output::document(&as_json(&replay, &request, recorded))
    } else {
        output::print(&as_text(&replay, &request, recorded))
    }
}

/// Replays all recorded data, oldest first; returns the number of seconds with data.
async fn walk(
    pool: &PgPool,
    replay: &mut Replay<'_>,
    request: &Request<'_>,
    interval: Duration,
) -> Result<f64, String> {
    let wanted = replay.wanted();
    let mut names: BTreeSet<String> = wanted.names;
    names.extend(PULSE.map(str::to_owned));
    let mut selections = vec![Selection::Names(names.into_iter().collect())];
    selections.extend(wanted.prefixes.into_iter().map(Selection::Prefix));
    // One sample per bucket. A value is valid until the next one is due, and missing after that.
    let bucket = Micros::try_from(interval.as_secs().max(1)).unwrap_or(30) * SECOND;
    let holds = bucket * 2;
    let micros = |seconds: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "a date")]
        let micros = (seconds * 1e6) as Micros;
        micros - micros.rem_euclid(bucket)
    };
    let (mut since, end) = (micros(request.since), micros(request.until) + bucket);
    let mut last: BTreeMap<String, (Micros, f64)> = BTreeMap::new();
    let mut recorded = 0;
    while since < end {
        let window = Window { since, until: end.min(since + bucket * MAX_POINTS), bucket };
        let mut found: BTreeMap<Micros, Vec<(String, f64)>> = BTreeMap::new();
        for selection in &selections {
            let reading = tokio::time::timeout(ANSWER_WITHIN, metrics::read(pool, selection, window));
            let series = reading.await.map_err(|_| "Postgres timed out".to_owned())?;
            let series = series.map_err(|trouble| format!("cannot read the history: {}", trouble.detail))?;
            for (name, buckets) in series {
                for (at, of) in buckets {
                    found.entry(at).or_default().push((name.clone(), of.mean()));
                }
            }
        }
        let mut at = window.since;
        while at < window.until {
            for (name, value) in found.remove(&at).unwrap_or_default() {
                last.insert(name, (at, value));
            }
            last.retain(|_, (seen, _)| at - *seen < holds);
            // Without recorded data, no monitor was evaluating rules.
            if !last.is_empty() {
                recorded += bucket;
                let present = last.iter().map(|(name, (_, value))| (name.clone(), *value)).collect();
                replay.observe(&present, seconds(at));
            }
            at += bucket;
        }
        since = window.until;
    }
    Ok(seconds(recorded))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

/// Reason why a rule could not have fired, if any.
fn not_judged(track: &Track<'_>) -> Option<String> {
    let rule = track.rule;
    match rule.watch.metric.series() {
        None => Some(format!("{} is not recorded, so this rule cannot be evaluated", rule.watch.metric.name())),
        Some(_) if track.series.is_empty() => Some(format!(
            "no recorded data for {}",
            rule.watches().split(&rule.bound.words()).next().unwrap_or_default().trim()
        )),
        Some(_) => None,
    }
}

fn as_text(replay: &Replay<'_>, request: &Request<'_>, recorded: f64) -> Lines {
    let tracks = replay.tracks();
    let all = |track: &Track<'_>| track.firings.iter().map(|firing| firing.lasted(request.until)).sum::<f64>();
    let times: usize = tracks.iter().map(|track| track.firings.len()).sum();
    let fired = tracks.iter().filter(|track| !track.firings.is_empty()).count();
    let mut text = Lines::default();
    text.add(format_args!(
        "{}: {} from {} to {}, {} of it recorded",
        request.file,
        count(tracks.len(), "rule"),
        moment(request.since),
        moment(request.until),
        span(recorded),
    ));
    text.add(format_args!("{fired} would have fired, {} in total", count(times, "time")));
    if recorded == 0.0 {
        text.add("No data was recorded in this time range. Check that this is the database of the monitor.");
    }
    let head = ["RULE", "SEVERITY", "FIRED", "SENT", "TOTAL", "LONGEST", "LAST"].map(str::to_owned);
    let mut rows = vec![head];
    for track in tracks {
        let sent = |firing: &Firing| u32::from(firing.told.is_some()) + firing.repeats;
        let notifications: u32 = track.firings.iter().map(sent).sum();
        let longest = track.firings.iter().map(|firing| firing.lasted(request.until)).fold(0.0, f64::max);
        let [count, notifications, sum, longest, last] = match (track.firings.last(), not_judged(track)) {
            (Some(last), _) => [
                track.firings.len().to_string(),
                notifications.to_string(),
                span(all(track)),
                span(longest),
                moment(last.fired),
            ],
            (None, None) => ["0", "0", "", "", "never"].map(str::to_owned),
            (None, Some(_)) => ["?", "?", "", "", "not recorded"].map(str::to_owned),
        };
        rows.push([
            Escaped(&track.rule.name).to_string(),
            track.rule.severity.as_str().to_owned(),
            count,
            notifications,
            sum,
            longest,
            last,
        ]);
    }
    text.add("");
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            2 | 3 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        text.add(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for track in tracks {
        if let Some(why) = not_judged(track) {
            text.add("");
            text.add(format_args!("{}: {why}", track.rule.name));
        }
        if track.firings.is_empty() {
            continue;
        }
        text.add("");
        text.add(format_args!("{}: {}", track.rule.name, track.rule.watches()));
        let older = track.firings.len().saturating_sub(LISTED);
        if older > 0 {
            text.add(format_args!("  and {older} earlier; use --json to print all"));
        }
        for firing in track.firings.iter().skip(older) {
            text.add(line(track, firing, request.until));
        }
    }
    text
}

fn line(track: &Track<'_>, firing: &Firing, end: f64) -> String {
    let subject = match &firing.subject {
        Some(subject) if track.series.len() > 1 => format!("  {subject}"),
        _ => String::new(),
    };
    let lasted = format!("{}{}", span(firing.lasted(end)), if firing.until.is_none() { ", still firing" } else { "" });
    let to = if matches!(track.rule.bound, Bound::Below(_)) { "down" } else { "up" };
    let worst = firing.worst.map(|worst| format!("  {to} to {}{}", figure(worst), track.rule.watch.metric.unit()));
    let note = if firing.told.is_none() { "  not sent" } else { "" };
    format!("  {}  for {lasted}{subject}{}{note}", moment(firing.fired), worst.unwrap_or_default())
}

fn as_json(replay: &Replay<'_>, request: &Request<'_>, recorded: f64) -> String {
    let firing = |firing: &Firing| {
        json!({
            "subject": firing.subject, "since": firing.since, "fired": firing.fired, "until": firing.until,
            "lasted_sec": firing.lasted(request.until), "worst": firing.worst.filter(|worst| worst.is_finite()),
            "told": firing.told, "repeats": firing.repeats,
        })
    };
    let rule = |track: &Track<'_>| {
        json!({
            "rule": track.rule.name, "severity": track.rule.severity, "watches": track.rule.watches(),
            "series": track.series, "not_judged": not_judged(track),
            "firings": track.firings.iter().map(firing).collect::<Vec<Value>>(),
        })
    };
    let rules: Vec<Value> = replay.tracks().iter().map(rule).collect();
    let report = json!({
        "file": request.file, "since": request.since, "until": request.until, "recorded_sec": recorded, "rules": rules,
    });
    format!("{report:#}\n")
}

/// Formats a time: `24 Nov 18:01:11 UTC`.
fn moment(unix: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a date's seconds")]
    let time = DateTime::from_timestamp(unix as i64, 0).unwrap_or_default();
    time.format("%-d %b %H:%M:%S UTC").to_string()
}
