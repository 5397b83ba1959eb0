//! Backlog chart of the last minutes: the static chart, the sparklines, and the columns for the script.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::DateTime;
use serde::Serialize;

use super::element_id;
use super::figures::count;
use super::wording::Label;
use crate::contract::Name;
use crate::fleet::snapshot::DepthHistory;

/// Maximum number of series drawn at once; more cannot be distinguished.
const SERIES: usize = 12;
/// Number of colours in the palette; a series is identified by its colour and dash.
const COLOURS: usize = 8;
const DASHES: usize = 3;
/// Minimum width of a chart in columns, so that the first few are not stretched.
const COLUMNS_AT_LEAST: usize = 20;
/// Height of a sparkline, and the minimum depth at its top.
const SPARK_HEIGHT: u64 = 24;
const SPARK_SCALE: u64 = 10;

/// Returns the colour and the dash of the series at `place`.
fn look(place: usize) -> (usize, usize) {
    (place % COLOURS, place / COLOURS % DASHES)
}

/// Columns of the chart for the script. A constant series is sent as one number, and values that did not change since
/// the previous column are omitted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Columns {
    t: Times,
    v: BTreeMap<String, Series>,
    /// Whether all columns are included, not only new ones.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    whole: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Times {
    One(f64),
    Several(Vec<f64>),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Series {
    Constant(Option<u64>),
    Values(Vec<Option<u64>>),
}

impl Columns {
    /// Returns all columns of `history`.
    pub(super) fn whole(history: &DepthHistory) -> Self {
        Self::from(history, 0)
    }

    /// Returns the columns after `after` (Unix seconds); `None` if there are none.
    pub(super) fn after(history: &DepthHistory, after: f64) -> Option<Self> {
        let first = history.times.partition_point(|t| *t <= after);
        (first < history.times.len()).then(|| Self::from(history, first))
    }

    fn from(history: &DepthHistory, first: usize) -> Self {
        let tenths = |t: &f64| (t * 10.0).round() / 10.0;
        let times: Vec<f64> = history.times.iter().skip(first).map(tenths).collect();
        let mut v = BTreeMap::new();
        for (name, depths) in &history.depths {
            let before = first.checked_sub(1).map(|i| depths.get(i).copied().flatten());
            let mut new = depths.iter().skip(first).copied();
            let Some(head) = new.next() else { continue };
            let still = new.all(|depth| depth == head);
            if still && before == Some(head) {
                continue;
            }
            let series = if still {
                Series::Constant(head)
            } else {
                Series::Values(depths.iter().skip(first).copied().collect())
            };
            v.insert(element_id::key(name), series);
        }
        let t = match times.as_slice() {
            [one] => Times::One(*one),
            _ => Times::Several(times),
        };
        Self { t, v, whole: first == 0 }
    }
}

/// Returns the SVG path of a stream's sparkline.
pub(super) fn sparkline(depths: impl ExactSizeIterator<Item = Option<u64>> + Clone) -> String {
    let top = depths.clone().flatten().max().unwrap_or(0).max(SPARK_SCALE);
    let offset = DepthHistory::COLUMNS.saturating_sub(depths.len());
    let points = depths.enumerate().map(|(i, depth)| {
        (
            offset + i,
            depth.map(|d| SPARK_HEIGHT - 1 - u64::try_from(u128::from(d) * 22 / u128::from(top)).unwrap_or(22)),
        )
    });
    path(points)
}

/// Returns an SVG path through the points with gaps at missing values; points within a level section are omitted.
fn path<Y: PartialEq + std::fmt::Display + Copy>(points: impl Iterator<Item = (usize, Option<Y>)>) -> String {
    let mut d = String::new();
    // Last drawn point, and a later point on the same level that is not drawn yet.
    let mut last: Option<(Y, Option<usize>)> = None;
    let mut pen_down = false;
    let end_level = |d: &mut String, last: &Option<(Y, Option<usize>)>| {
        if let Some((_, Some(x))) = last {
            _ = write!(d, "H{x}");
        }
    };
    for (x, y) in points {
        match (y, &mut last) {
            (None, _) => {
                end_level(&mut d, &last);
                last = None;
                pen_down = false;
            }
            (Some(y), Some((level, until))) if *level == y => *until = Some(x),
            (Some(y), _) => {
                end_level(&mut d, &last);
                _ = write!(d, "{}{x} {y}", if pen_down { 'L' } else { 'M' });
                // A single point between two gaps needs a length to be visible.
                if !pen_down {
                    d.push_str("h.1");
                }
                pen_down = true;
                last = Some((y, None));
            }
        }
    }
    end_level(&mut d, &last);
    d
}

/// Static SVG chart, shown without JavaScript and until it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct StillChart {
    /// Labels of horizontal lines, with their position from the top in percent.
    y: Vec<Tick>,
    /// Width in steps between columns.
    steps: usize,
    /// Labels of vertical lines, with their position from the left in percent.
    x: Vec<Tick>,
    series: Vec<StillSeries>,
    /// Number of busy streams that are not drawn.
    more: usize,
    /// Whether there is no data yet.
    empty: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tick {
    at: f64,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct StillSeries {
    key: String,
    name: Label,
    colour: usize,
    dash: usize,
    path: String,
    now: String,
}

impl StillChart {
    /// Returns the chart of `history`.
    pub(super) fn new(history: &DepthHistory) -> Self {
        let mut busy: Vec<(&Name, u64)> = history
            .depths
            .iter()
            .filter_map(|(name, depths)| {
                let peak = depths.iter().flatten().max().copied()?;
                (peak > 0).then_some((name, peak))
            })
            .collect();
        let more = busy.len().saturating_sub(SERIES);
        busy.sort_by_key(|(name, peak)| (std::cmp::Reverse(*peak), *name));
        busy.truncate(SERIES);
        let top = nice_top(busy.first().map_or(0, |(_, peak)| *peak));
        busy.sort();
        let series: Vec<StillSeries> =
            busy.iter().enumerate().map(|(place, (name, _))| still(history, place, name, top)).collect();
        Self {
            y: (0..=4_u32)
                .map(|i| Tick { at: 100.0 - f64::from(i) * 25.0, text: count(top / 4 * u64::from(i)) })
                .collect(),
            steps: steps(history),
            x: time_ticks(history),
            empty: history.times.is_empty(),
            series,
            more,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "places on a chart a thousand units high")]
fn still(history: &DepthHistory, place: usize, name: &Name, top: u64) -> StillSeries {
    let (colour, dash) = look(place);
    let depths = history.depths.get(name);
    let offset = (steps(history) + 1).saturating_sub(history.times.len());
    let points = depths
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(i, depth)| (offset + i, depth.map(|depth| (1000.0 - depth as f64 / top as f64 * 1000.0).round())));
    let now = depths.and_then(|d| d.back().copied().flatten());
    StillSeries {
        key: element_id::key(name),
        name: Label::of(name),
        colour,
        dash,
        path: path(points),
        now: now.map_or_else(|| super::figures::MISSING.to_owned(), count),
    }
}

/// Chart of one recorded series with the threshold of an alert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct LimitChart {
    /// Text alternative.
    said: String,
    path: String,
    /// Position of the threshold from the top, in thousandths and in percent.
    limit: Option<Limit>,
    /// First column and number of columns in which the alert fired.
    during: Option<(f64, f64)>,
    /// Label at the top of the scale.
    top: String,
    /// Number of columns.
    columns: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Limit {
    y: f64,
    at: f64,
    text: String,
}

/// Data of a [`LimitChart`]. Times are Unix seconds.
pub(super) struct Drawn<'a> {
    pub(super) series: &'a str,
    /// Oldest first.
    pub(super) samples: &'a [(f64, f64)],
    pub(super) limit: Option<f64>,
    pub(super) unit: &'a str,
    /// Start and end of the alert.
    pub(super) during: Option<(f64, f64)>,
    /// Start and end of the chart.
    pub(super) window: (f64, f64),
}

impl LimitChart {
    /// Time without samples after which the line has a gap, seconds.
    const GAP: f64 = 600.0;
    const COLUMNS: usize = 360;

    /// Returns the chart; `None` without data.
    pub(super) fn new(drawn: &Drawn<'_>) -> Option<Self> {
        let (since, until) = drawn.window;
        let in_window = || drawn.samples.iter().filter(|(at, value)| (since..=until).contains(at) && value.is_finite());
        let highest = in_window().map(|(_, value)| *value).chain(drawn.limit).fold(0.0, f64::max);
        let last = in_window().next_back()?.1;
        // Leave a margin, so that neither the line nor the threshold is drawn on the edge.
        let top = if highest > 0.0 { highest * 1.15 } else { 1.0 };
        let y = |value: f64| (1000.0 - value.max(0.0) / top * 1000.0).round();
        #[expect(clippy::cast_precision_loss, reason = "a few hundred columns")]
        let columns = Self::COLUMNS as f64;
        let x = |at: f64| ((at - since) / (until - since) * columns).clamp(0.0, columns);
        let mut points: Vec<(usize, Option<f64>)> = Vec::new();
        let mut before = None;
        for (at, value) in in_window() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the columns")]
            let column = x(*at).round() as usize;
            if before.is_some_and(|before| at - before > Self::GAP) {
                points.push((column, None));
            }
            match points.last_mut() {
                Some((known, Some(place))) if *known == column => *place = y(*value),
                _ => points.push((column, Some(y(*value)))),
            }
            before = Some(*at);
        }
        let figure = |value: f64| format!("{}{}", crate::alerting::rule::figure(value), drawn.unit);
        let limit = drawn.limit.map(|limit| Limit { y: y(limit), at: y(limit) / 10.0, text: figure(limit) });
        let beside = limit.as_ref().map_or_else(String::new, |limit| format!(", limit {}", limit.text));
        Some(Self {
            said: format!("{}: now {}{beside}", Label::from_text(drawn.series), figure(last)),
            path: path(points.into_iter()),
            during: drawn.during.filter(|(_, end)| *end > since).map(|(begin, end)| {
                let (begin, end) = (x(begin).round(), x(end).round());
                (begin, (end - begin).max(1.0))
            }),
            limit,
            top: figure((highest * 100.0).round() / 100.0),
            columns: Self::COLUMNS,
        })
    }
}

fn steps(history: &DepthHistory) -> usize {
    history.times.len().clamp(COLUMNS_AT_LEAST, DepthHistory::COLUMNS) - 1
}

/// Returns a round number of at least `peak` that divides into four round parts.
fn nice_top(peak: u64) -> u64 {
    let mut unit = 1;
    loop {
        for step in [4, 8, 12, 20, 40] {
            if step * unit >= peak {
                return step * unit;
            }
        }
        match 10_u64.checked_mul(unit).filter(|unit| *unit <= u64::MAX / 400) {
            Some(next) => unit = next,
            None => return u64::MAX / 4 * 4,
        }
    }
}

/// Returns three to five whole minutes as labels of the time axis.
#[expect(clippy::cast_precision_loss, reason = "places on a chart of 200 columns")]
fn time_ticks(history: &DepthHistory) -> Vec<Tick> {
    let (Some(first), Some(last)) = (history.times.front(), history.times.back()) else { return Vec::new() };
    let columns = steps(history) as f64;
    let known = (history.times.len().max(2) - 1) as f64;
    let per_column = ((last - first) / known).max(0.001);
    let minutes = per_column * columns / 60.0;
    let step = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0].into_iter().find(|step| minutes / step <= 6.0).unwrap_or(120.0) * 60.0;
    let mut ticks = Vec::new();
    let mut t = (last / step).floor() * step;
    while ticks.len() < 8 {
        let at = 100.0 - (last - t) / per_column / columns * 100.0;
        if at < 2.0 {
            break;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a moment of the calendar")]
        let text = DateTime::from_timestamp(t as i64, 0).map(|t| t.format("%H:%M").to_string()).unwrap_or_default();
        if at < 98.0 {
            ticks.push(Tick { at: (at * 100.0).round() / 100.0, text });
        }
        t -= step;
    }
    ticks.reverse();
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(columns: &[&[Option<u64>]]) -> DepthHistory {
        let mut history = DepthHistory::default();
        for (i, column) in columns.iter().enumerate() {
            let values = column.iter().enumerate().map(|(s, v)| (Name::from(format!("s{s}")), *v));
            history.push(1000.0 + 3.0 * i as f64, values);
        }
        history
    }

    #[test]
    fn update_contains_only_changes_from_the_previous_column() {
        let history = history(&[&[Some(1), Some(5), None], &[Some(1), Some(6), Some(0)]]);
        let json = |columns: &Columns| serde_json::to_string(columns).unwrap();
        assert_eq!(json(&Columns::after(&history, 1000.0).unwrap()), r#"{"t":1003.0,"v":{"s1":6,"s2":0}}"#);
        assert_eq!(Columns::after(&history, 1003.0), None);
        assert_eq!(
            json(&Columns::whole(&history)),
            r#"{"t":[1000.0,1003.0],"v":{"s0":1,"s1":[5,6],"s2":[null,0]},"whole":true}"#
        );
    }

    #[test]
    fn gap_interrupts_the_line_and_level_sections_are_merged() {
        let points = [Some(5), Some(5), Some(5), None, Some(7), Some(9)];
        assert_eq!(path(points.into_iter().enumerate()), "M0 5h.1H2M4 7h.1L5 9");
        assert_eq!(path([None::<u8>; 3].into_iter().enumerate()), "");
    }

    #[test]
    fn scale_ends_on_a_round_number_above_the_peak() {
        assert_eq!([0, 4, 5, 11, 13, 37, 41, 999, 100_001].map(nice_top), [4, 4, 8, 12, 20, 40, 80, 1200, 120_000]);
        assert!(nice_top(u64::MAX) > u64::MAX / 2);
    }

    #[test]
    fn newest_column_is_at_the_right_edge() {
        for columns in [1_u32, 2, 19, 20, 21, 199, 200, 250] {
            let mut history = DepthHistory::default();
            (0..columns).for_each(|i| {
                history.push(f64::from(i) * 3.0, [(Name::from("s"), Some(u64::from(i) % 2 + 1))].into_iter())
            });
            let chart = StillChart::new(&history);
            let last = chart.series[0].path.rsplit(['M', 'L', 'H']).next().unwrap().to_owned();
            assert_eq!(last.split(' ').next().unwrap(), chart.steps.to_string(), "{columns} columns");
        }
    }

    #[test]
    fn limit_is_drawn_and_gap_interrupts_the_line() {
        let samples = [(0.0, 100.0), (30.0, 100.0), (1000.0, 500.0), (3600.0, 1000.0), (9000.0, 7.0)];
        let drawn = Drawn {
            series: "xlen:a",
            samples: &samples,
            limit: Some(500.0),
            unit: "",
            during: Some((900.0, 3600.0)),
            window: (0.0, 3600.0),
        };
        let chart = LimitChart::new(&drawn).unwrap();
        assert_eq!(chart.said, "xlen:a: now 1000, limit 500");
        assert_eq!(chart.path, "M0 913h.1H3M100 565h.1M360 130h.1");
        assert_eq!(chart.limit.unwrap().y, 565.0);
        assert_eq!((chart.during, chart.top.as_str()), (Some((90.0, 270.0)), "1000"));
        // Without samples there is no chart; with only zeros, a line at the bottom.
        assert_eq!(LimitChart::new(&Drawn { samples: &[], ..drawn }), None);
        let zero = LimitChart::new(&Drawn { samples: &[(0.0, 0.0), (60.0, 0.0)], limit: None, ..drawn }).unwrap();
        assert_eq!(zero.path, "M0 1000h.1H6");
    }

    #[test]
    fn chart_draws_the_busiest_streams_and_counts_the_rest() {
        let names: Vec<Name> = (0..20).map(|i| Name::from(format!("s{i:02}"))).collect();
        let mut history = DepthHistory::default();
        history.push(0.0, names.iter().enumerate().map(|(i, name)| (name.clone(), Some(i as u64))));
        let chart = StillChart::new(&history);
        assert_eq!((chart.series.len(), chart.more), (SERIES, 7));
        assert_eq!(chart.series.last().unwrap().name.text, "s19");
    }
}
