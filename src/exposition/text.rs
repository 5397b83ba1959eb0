//! Output formats: OpenMetrics 1.0.0, and the Prometheus text format 0.0.4 as the default.

use std::fmt::{Display, Write as _};

use super::catalogue::{Family, Kind};
use super::histogram::Histogram;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4.
    Plain,
}

impl Format {
    /// Selects the format for an Accept header: OpenMetrics if listed and no other format is preferred.
    #[must_use]
    pub fn asked_for(accept: &str) -> Self {
        let liked = |wanted: &str| {
            let named = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                parts.next().filter(|name| name.eq_ignore_ascii_case(wanted))?;
                let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
                Some(q.map_or(1.0, |q| q.parse::<f64>().unwrap_or(0.0)))
            });
            named.fold(0.0, f64::max)
        };
        let open = liked("application/openmetrics-text");
        if open > 0.0 && open >= liked("text/plain") { Self::OpenMetrics } else { Self::Plain }
    }

    /// Content-Type of the format.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes families one after the other.
pub struct Writer {
    format: Format,
    text: String,
}

impl Writer {
    /// Returns an empty writer.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, text: String::new() }
    }

    /// Starts a family. Its metadata is written with the first sample; a family without samples is omitted.
    pub fn family(&mut self, family: &'static Family) -> Samples<'_> {
        Samples { writer: self, family, begun: false }
    }

    /// Returns the complete text.
    #[must_use]
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// Writes the samples of one family.
pub struct Samples<'a> {
    writer: &'a mut Writer,
    family: &'static Family,
    begun: bool,
}

impl Samples<'_> {
    /// Writes a sample; `labels` are the values of the family's labels, in order.
    pub fn add(&mut self, labels: &[&str], value: impl Display) {
        self.begin();
        let name = self.family.name;
        self.line(name, "", labels, None, value);
    }

    /// Writes a sample if its value is known.
    pub fn add_known(&mut self, labels: &[&str], value: Option<impl Display>) {
        if let Some(value) = value {
            self.add(labels, value);
        }
    }

    /// Writes the samples of a histogram.
    pub fn add_histogram(&mut self, labels: &[&str], histogram: &Histogram) {
        self.begin();
        let name = self.family.name;
        for (bound, count) in histogram.cumulative() {
            let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
            self.line(name, "_bucket", labels, Some(&bound), count);
        }
        self.line(name, "_sum", labels, None, histogram.sum());
        self.line(name, "_count", labels, None, histogram.count());
    }

    fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let Family { kind, help, .. } = self.family;
        let open = self.writer.format == Format::OpenMetrics;
        // OpenMetrics metadata uses the name without the sample suffix.
        let (name, kind) = match kind {
            Kind::Counter if open => (self.family.base(), "counter"),
            Kind::Info if open => (self.family.base(), "info"),
            Kind::Counter => (self.family.name, "counter"),
            Kind::Gauge | Kind::Info => (self.family.name, "gauge"),
            Kind::Histogram => (self.family.name, "histogram"),
        };
        let text = &mut self.writer.text;
        _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        if let Some(unit) = self.family.unit().filter(|_| open) {
            _ = writeln!(text, "# UNIT {name} {unit}");
        }
    }

    fn line(&mut self, name: &str, ending: &str, labels: &[&str], le: Option<&str>, value: impl Display) {
        let text = &mut self.writer.text;
        text.push_str(name);
        text.push_str(ending);
        let mut before = '{';
        let named = self.family.labels.iter().copied().zip(labels.iter().copied());
        for (label, value) in named.chain(le.map(|bound| ("le", bound))) {
            text.push(before);
            text.push_str(label);
            text.push_str("=\"");
            push_escaped(text, value);
            text.push('"');
            before = ',';
        }
        if before == ',' {
            text.push('}');
        }
        _ = writeln!(text, " {value}");
    }
}

/// Escapes a label value for both formats. Control characters other than newline become `\xNN`, like bytes that are not
/// UTF-8.
fn push_escaped(text: &mut String, value: &str) {
    let odd = |c: char| c == '\\' || c == '"' || c.is_control();
    let mut rest = value;
    while let Some(at) = rest.find(odd) {
        let (plain, after) = rest.split_at(at);
        text.push_str(plain);
        let mut chars = after.chars();
        match chars.next() {
            Some('\\') => text.push_str("\\\\"),
            Some('"') => text.push_str("\\\""),
            Some('\n') => text.push_str("\\n"),
            other => _ = write!(text, "\\\\x{:02x}", other.map_or(0, u32::from)),
        }
        rest = chars.as_str();
    }
    text.push_str(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exposition::catalogue;

    #[test]
    fn openmetrics_is_selected_if_accepted_and_not_outranked() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
                            q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [prometheus_2, prometheus_3, "Application/OpenMetrics-Text", "application/openmetrics-text, */*"]
        {
            assert_eq!(Format::asked_for(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/html",
            "text/plain",
            "application/openmetrics-text;q=0",
            "text/plain,application/openmetrics-text;q=0.5",
        ] {
            assert_eq!(Format::asked_for(accept), Format::Plain, "{accept}");
        }
    }

    #[test]
    fn each_format_names_counters_and_infos() {
        let written = |format| {
            let mut writer = Writer::new(format);
            writer.family(&catalogue::BUILD).add(&["1.2.3"], 1);
            writer.family(&catalogue::WORKERS_LOST).add(&["a"], 4);
            writer.family(&catalogue::BACKLOG);
            writer.family(&catalogue::LAST_TICK_AGE).add(&[], 0.25);
            writer.finish()
        };
        let lines =
            |text: &str| text.lines().filter(|line| !line.contains("HELP")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            lines(&written(Format::OpenMetrics)),
            [
                "# TYPE shepherd_monitor_build info",
                "shepherd_monitor_build_info{version=\"1.2.3\"} 1",
                "# TYPE shepherd_monitor_workers_lost counter",
                "shepherd_monitor_workers_lost_total{worker_type=\"a\"} 4",
                "# TYPE shepherd_monitor_last_tick_age_seconds gauge",
                "# UNIT shepherd_monitor_last_tick_age_seconds seconds",
                "shepherd_monitor_last_tick_age_seconds 0.25",
                "# EOF",
            ]
        );
        assert_eq!(
            lines(&written(Format::Plain)),
            [
                "# TYPE shepherd_monitor_build_info gauge",
                "shepherd_monitor_build_info{version=\"1.2.3\"} 1",
                "# TYPE shepherd_monitor_workers_lost_total counter",
                "shepherd_monitor_workers_lost_total{worker_type=\"a\"} 4",
                "# TYPE shepherd_monitor_last_tick_age_seconds gauge",
                "shepherd_monitor_last_tick_age_seconds 0.25",
            ]
        );
    }

    #[test]
    fn histogram_has_ascending_buckets_then_sum_and_count() {
        let mut histogram = Histogram::new(&[0.5, 10.0]);
        histogram.observe(0.25);
        histogram.observe(99.0);
        let mut writer = Writer::new(Format::Plain);
        writer.family(&catalogue::TASK_DURATION).add_histogram(&["s"], &histogram);
        let text = writer.finish();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "shepherd_monitor_task_duration_seconds_bucket{stream=\"s\",le=\"0.5\"} 1",
                "shepherd_monitor_task_duration_seconds_bucket{stream=\"s\",le=\"10.0\"} 1",
                "shepherd_monitor_task_duration_seconds_bucket{stream=\"s\",le=\"+Inf\"} 2",
                "shepherd_monitor_task_duration_seconds_sum{stream=\"s\"} 99.25",
                "shepherd_monitor_task_duration_seconds_count{stream=\"s\"} 2",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_label_value_stays_on_one_line(value in ".*|[\\\\\"\n\r\0x]{0,20}") {
            let mut text = String::new();
            push_escaped(&mut text, &value);
            prop_assert!(!text.contains(char::is_control));
            // Unescape like a parser: a backslash takes the next character with it.
            let (mut read, mut chars) = (String::new(), text.chars());
            while let Some(c) = chars.next() {
                match c {
                    '"' => prop_assert!(false, "the value ends early: {text}"),
                    '\\' => match chars.next() {
                        Some('n') => read.push('\n'),
                        Some(c @ ('\\' | '"')) => read.push(c),
                        other => prop_assert!(false, "no such escape: {other:?}"),
                    },
                    c => read.push(c),
                }
            }
            let shown: String = value
                .chars()
                .map(|c| if c.is_control() && c != '\n' { format!("\\x{:02x}", u32::from(c)) } else { c.to_string() })
                .collect();
            prop_assert_eq!(read, shown);
        }
    }
}
