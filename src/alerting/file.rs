//! Parser of the rules file: returns the rules, or every error with line, column and expected value.
//!
//! Every file that the older monitor accepted is accepted with the same meaning. Like there, unknown fields are
//! ignored, unless the name looks like a misspelled known field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, NaiveTime, Timelike};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::channels;
use super::glob::Glob;
use super::rule::{
    Bound, DEFAULT_COOLDOWN, GroupBy, Metric, Missing, Per, Route, Rule, RuleSet, Severity, Subjects, Watch,
};
use super::silences::{When, Window};

/// An error in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1; 0 when unknown.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Description and expected value.
    pub said: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.said)
    }
}

/// Parses the file.
///
/// # Errors
/// All errors, in file order.
pub fn read(text: &str) -> Result<RuleSet, Vec<Mistake>> {
    let root: Spanned<Node> = serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location();
        let said = error.without_snippet().to_string();
        vec![Mistake {
            line: at.map_or(0, |at| at.line()),
            column: at.map_or(0, |at| at.column()),
            said: format!("invalid YAML: {said}"),
        }]
    })?;
    let mut reader = Reader { mistakes: Vec::new() };
    let rules = reader.file(&root);
    if !rules.known && reader.mistakes.is_empty() {
        // Editors and deployments may truncate the file before they write it.
        reader.wrong((1, 1), "the file contains no rules; write `rules: []` for an empty rule set".to_owned());
    }
    reader.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    if reader.mistakes.is_empty() { Ok(rules) } else { Err(reader.mistakes) }
}

/// Any YAML value with its position.
#[derive(Debug)]
enum Node {
    Null,
    Bool,
    Number(f64),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        #[expect(clippy::cast_precision_loss, reason = "limits and times are small numbers")]
        impl<'de> Visitor<'de> for Any {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Bool)
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Number(value as f64))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Number(value as f64))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Node {
    fn is(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

struct Reader {
    mistakes: Vec<Mistake>,
}

/// Fields of a mapping, and the names requested so far.
struct Fields<'a> {
    at: (u64, u64),
    entries: &'a [(Spanned<String>, Spanned<Node>)],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn get(&mut self, name: &'static str) -> Option<&'a Spanned<Node>> {
        self.known.push(name);
        let found = self.entries.iter().find(|(key, _)| key.value == name).map(|(_, value)| value);
        found.filter(|value| !matches!(value.value, Node::Null))
    }

    /// Whether the mapping has fields and lacks `name`.
    fn holds_any(&self, names: &[&str]) -> bool {
        self.entries.iter().any(|(key, _)| names.contains(&key.value.as_str()))
    }
}

fn place<T>(spanned: &Spanned<T>) -> (u64, u64) {
    (spanned.referenced.line(), spanned.referenced.column())
}

impl Reader {
    fn wrong(&mut self, at: (u64, u64), said: impl Into<String>) {
        self.mistakes.push(Mistake { line: at.0, column: at.1, said: said.into() });
    }

    fn fields<'a>(&mut self, node: &'a Spanned<Node>, what: &str) -> Option<Fields<'a>> {
        let Node::Map(entries) = &node.value else {
            self.wrong(place(node), format!("{what} is {}: expected a mapping such as `name: …`", node.value.is()));
            return None;
        };
        Some(Fields { at: place(node), entries, known: Vec::new() })
    }

    /// Reports duplicate fields and fields that look like a misspelled known one.
    fn no_others(&mut self, fields: &Fields<'_>) {
        let mut given = BTreeSet::new();
        for (key, _) in fields.entries {
            if !given.insert(key.value.as_str()) {
                self.wrong(place(key), format!("duplicate key: {}", key.value));
            }
            if fields.known.contains(&key.value.as_str()) {
                continue;
            }
            if let Some(meant) = nearest(&key.value, fields.known.iter().copied()) {
                self.wrong(place(key), format!("unknown field {:?}: did you mean {meant}?", key.value));
            }
        }
    }

    fn list<'a>(&mut self, node: Option<&'a Spanned<Node>>, what: &str) -> &'a [Spanned<Node>] {
        match node.map(|node| (node, &node.value)) {
            None => &[],
            Some((_, Node::List(items))) => items,
            Some((node, other)) => {
                self.wrong(place(node), format!("{what} is {}: expected a list of `- …`", other.is()));
                &[]
            }
        }
    }

    fn text(&mut self, node: &Spanned<Node>, what: &str) -> Option<String> {
        match &node.value {
            Node::Text(text) if !text.trim().is_empty() => Some(text.clone()),
            Node::Number(number) => Some(super::rule::figure(*number)),
            other => {
                let is = if matches!(other, Node::Text(_)) { "empty" } else { other.is() };
                self.wrong(place(node), format!("{what} is {is}: expected a string"));
                None
            }
        }
    }

    fn number(&mut self, node: &Spanned<Node>, what: &str) -> Option<f64> {
        let number = match &node.value {
            Node::Number(number) => Some(*number),
            Node::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite());
        if number.is_none() {
            self.wrong(place(node), format!("{what} is {}: expected a number", shown(&node.value)));
        }
        number
    }

    fn duration(&mut self, node: &Spanned<Node>, what: &str) -> Option<Duration> {
        let duration = match &node.value {
            Node::Number(seconds) => seconds_of(*seconds),
            Node::Text(text) => duration(text),
            _ => None,
        };
        if duration.is_none() {
            let said =
                format!("{what} is {}: expected a duration such as 60, 60s, 5m, 1h or 500ms", shown(&node.value));
            self.wrong(place(node), said);
        }
        duration
    }

    fn glob(&mut self, node: &Spanned<Node>, what: &str) -> Option<Glob> {
        let text = self.text(node, what)?;
        Glob::new(&text)
            .map_err(|why| {
                self.wrong(place(node), format!("{what} is {}: expected a glob ({why})", shown(&node.value)))
            })
            .ok()
    }

    fn one_of<T: Copy>(&mut self, node: &Spanned<Node>, what: &str, words: &[(&str, T)]) -> Option<T> {
        let given = match &node.value {
            Node::Text(text) => words.iter().find(|(word, _)| text.trim().eq_ignore_ascii_case(word)),
            _ => None,
        };
        if given.is_none() {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(place(node), format!("{what} is {}: expected {}", shown(&node.value), all.join(", ")));
        }
        given.map(|(_, value)| *value)
    }

    fn severity(&mut self, node: &Spanned<Node>) -> Option<Severity> {
        let words = [("info", Severity::Info), ("warning", Severity::Warning), ("critical", Severity::Critical)];
        self.one_of(node, "severity", &words)
    }

    fn file(&mut self, root: &Spanned<Node>) -> RuleSet {
        let mut set = RuleSet::default();
        if matches!(root.value, Node::Null) {
            return set;
        }
        let Some(mut fields) = self.fields(root, "the file") else { return set };
        let mut names = BTreeMap::new();
        let rules = fields.get("rules");
        set.known = rules.is_some() || fields.holds_any(&["group_by", "routes", "maintenance"]);
        for node in self.list(rules, "rules") {
            let Some((rule, at)) = self.rule(node) else { continue };
            if let Some(line) = names.insert(rule.name.clone(), at.0) {
                self.wrong(
                    at,
                    format!("duplicate rule name {:?} (first used in line {line}): names must be unique", rule.name),
                );
                continue;
            }
            set.rules.push(rule);
        }
        if let Some(node) = fields.get("group_by") {
            set.group_by = self.group_by(node);
        }
        for node in self.list(fields.get("routes"), "routes") {
            set.routes.extend(self.route(node));
        }
        for node in self.list(fields.get("maintenance"), "maintenance") {
            set.maintenance.extend(self.window(node));
        }
        self.no_others(&fields);
        set
    }

    fn rule(&mut self, node: &Spanned<Node>) -> Option<(Rule, (u64, u64))> {
        let before = self.mistakes.len();
        let mut fields = self.fields(node, "a rule")?;
        let name_at = fields.get("name");
        let name = match name_at {
            Some(node) => self.text(node, "name"),
            None => {
                self.wrong(fields.at, "missing field `name`: expected `name: …`");
                None
            }
        };
        let watched = self.watch(&mut fields);
        let mut time = |this: &mut Self, name: &'static str, default: Duration| match fields.get(name) {
            Some(node) => this.duration(node, name).unwrap_or(default),
            None => default,
        };
        let duration = time(self, "duration", Duration::ZERO);
        let cooldown = time(self, "cooldown", DEFAULT_COOLDOWN);
        let resolve_after = time(self, "resolve_after", Duration::ZERO);
        let repeats = match fields.get("repeat") {
            Some(node) => self.one_of(node, "repeat", &[("never", false), ("cooldown", true)]).unwrap_or(true),
            None => true,
        };
        let severity = match fields.get("severity") {
            Some(node) => self.severity(node),
            None => Some(Severity::Warning),
        };
        let missing = [("keep", Missing::Keep), ("fires", Missing::Fires), ("resolves", Missing::Resolves)];
        let missing = match fields.get("missing") {
            Some(node) => self.one_of(node, "missing", &missing).unwrap_or_default(),
            None => Missing::Keep,
        };
        // The older monitor sent the detail in place of an empty message.
        let message = fields
            .get("message")
            .filter(|node| !matches!(&node.value, Node::Text(text) if text.trim().is_empty()))
            .and_then(|node| self.text(node, "message"));
        let channels = fields.get("channels").map(|node| self.channels(node));
        let labels = self.pairs(fields.get("labels"), "labels");
        let annotations = self.pairs(fields.get("annotations"), "annotations");
        self.no_others(&fields);
        if self.mistakes.len() > before {
            return None;
        }
        let (watch, bound) = watched?;
        let at = name_at.map_or(fields.at, place);
        let (name, severity) = (name?, severity?);
        Some((
            Rule {
                name,
                watch,
                bound,
                duration,
                resolve_after,
                cooldown,
                repeats,
                severity,
                message,
                missing,
                channels,
                labels,
                annotations,
            },
            at,
        ))
    }

    /// Parses the watched value, depending on the rule's type.
    fn watch(&mut self, fields: &mut Fields<'_>) -> Option<(Watch, Bound)> {
        #[derive(Clone, Copy)]
        enum Type {
            Threshold,
            NoData,
            Down,
            Of(Metric),
        }
        let types = [
            ("threshold", Type::Threshold),
            ("heartbeat_lost", Type::Of(Metric::WorkersAlive)),
            ("queue_pending", Type::Of(Metric::Pending)),
            ("oldest_callback_age", Type::Of(Metric::OldestCallbackAge)),
            ("db_capacity", Type::Of(Metric::DiskUsedPct)),
            ("lost_workers", Type::Of(Metric::LostWorkers)),
            ("hung_workers", Type::Of(Metric::HungWorkers)),
            ("drain_time", Type::Of(Metric::DrainSeconds)),
            ("lag_seconds", Type::Of(Metric::LagSeconds)),
            ("no_data", Type::NoData),
            ("source_down", Type::Down),
        ];
        // Requested up front, so that they are known fields for every type.
        let (kind, metric_at, source) = (fields.get("type"), fields.get("metric"), fields.get("source"));
        let (stream, worker, state) = (fields.get("stream"), fields.get("worker"), fields.get("state"));
        let threshold = fields.get("threshold");
        let (above, below) = (fields.get("above"), fields.get("below"));
        let change = fields.get("change_over");
        let kind = match kind {
            Some(node) => self.one_of(node, "type", &types)?,
            None => Type::Threshold,
        };
        let (metric, named) = match kind {
            Type::Of(metric) => (metric, None),
            Type::Down => (self.source(source)?, None),
            Type::Threshold | Type::NoData => match metric_at {
                None => {
                    self.wrong(
                        fields.at,
                        "missing field `metric`: expected xlen, callbacks_pending, pg_connection_count or another",
                    );
                    return None;
                }
                Some(node) => self.metric(node)?,
            },
        };
        let subject_at = match metric.per() {
            Per::Stream => stream.or(worker),
            Per::WorkerType => worker.or(stream),
            Per::QueryState => state,
            Per::Whole => None,
        };
        let of = match (subject_at, named, metric.per().field()) {
            (_, _, None) => None,
            (Some(node), _, Some("state")) => Some(Subjects::One(self.text(node, "state")?)),
            (Some(node), _, Some(field)) => Some(self.subjects(node, field)?),
            (None, Some(name), _) => Some(Subjects::One(name)),
            (None, None, Some(field)) => {
                self.wrong(fields.at, format!("missing field `{field}`: expected `{field}: …`, a name or a glob"));
                return None;
            }
        };
        let change_over = match change {
            Some(node) => Some(self.duration(node, "change_over").filter(|over| !over.is_zero())?),
            None => None,
        };
        let limit = |this: &mut Self, node: Option<&Spanned<Node>>, what: &str| node.and_then(|n| this.number(n, what));
        let before = self.mistakes.len();
        let bound = match (kind, threshold.or(above), below) {
            (Type::NoData, ..) => Bound::NoData,
            (Type::Down, ..) => Bound::AtLeast(1.0),
            (Type::Of(Metric::WorkersAlive), None, None) => Bound::Below(1.0),
            (Type::Of(Metric::WorkersAlive), given, _) => {
                // The older monitor ignored a threshold here.
                limit(self, given, "threshold");
                Bound::Below(1.0)
            }
            (_, Some(node), None) => {
                let what = if threshold.is_some() { "threshold" } else { "above" };
                let number = limit(self, Some(node), what).unwrap_or_default();
                if metric == Metric::DiskUsedPct && matches!(kind, Type::Of(_)) {
                    if !(0.0..=100.0).contains(&number) {
                        self.wrong(
                            place(node),
                            format!(
                                "threshold is {}: expected a percentage from 0 to 100",
                                super::rule::figure(number)
                            ),
                        );
                    }
                    Bound::AtLeast(number)
                } else {
                    Bound::Above(number)
                }
            }
            (_, None, Some(node)) => Bound::Below(limit(self, Some(node), "below").unwrap_or_default()),
            (_, Some(_), Some(node)) => {
                self.wrong(place(node), "`below` cannot be combined with `threshold` or `above`");
                return None;
            }
            (Type::Of(Metric::LostWorkers | Metric::HungWorkers), None, None) => Bound::AtLeast(1.0),
            (_, None, None) => {
                self.wrong(fields.at, "missing field `threshold`: expected `threshold: …`, `above: …` or `below: …`");
                return None;
            }
        };
        (self.mistakes.len() == before).then_some((Watch { metric, of, change_over }, bound))
    }

    fn source(&mut self, node: Option<&Spanned<Node>>) -> Option<Metric> {
        let words = [
            ("redis", Metric::RedisDown),
            ("postgres", Metric::PostgresDown),
            ("authentication", Metric::LoginRefused),
        ];
        match node {
            Some(node) => self.one_of(node, "source", &words),
            None => Some(Metric::RedisDown),
        }
    }

    /// Parses a metric, or a recorded series with the stream in its name (`xlen:arax`, `pg:state:QUEUED`).
    fn metric(&mut self, node: &Spanned<Node>) -> Option<(Metric, Option<String>)> {
        let text = self.text(node, "metric")?;
        if let Some(metric) = Metric::named(&text) {
            return Some((metric, None));
        }
        // Both the metric's and the stream's name may contain a colon.
        for (at, _) in text.match_indices(':') {
            let (metric, name) = (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default());
            if let Some(metric) = Metric::named(metric).filter(|metric| metric.per() != Per::Whole)
                && !name.is_empty()
            {
                return Some((metric, Some(name.to_owned())));
            }
        }
        let meant =
            nearest(&text, Metric::names().iter().copied()).map_or_else(String::new, |m| format!("did you mean {m}? "));
        let all = Metric::names().join(", ");
        self.wrong(place(node), format!("metric is {text:?}: {meant}expected one of {all}"));
        None
    }

    fn subjects(&mut self, node: &Spanned<Node>, what: &str) -> Option<Subjects> {
        let text = self.text(node, what)?;
        if !text.contains(['*', '?', '[', '{']) {
            return Some(Subjects::One(text));
        }
        self.glob(node, what).map(Subjects::Glob)
    }

    fn channels(&mut self, node: &Spanned<Node>) -> Vec<String> {
        let given: Vec<&Spanned<Node>> = match &node.value {
            Node::List(items) => items.iter().collect(),
            _ => vec![node],
        };
        let mut channels = Vec::new();
        for node in given {
            let Some(text) = self.text(node, "channels") else { continue };
            let kind = text.split(':').next().unwrap_or_default();
            if channels::kind(kind).is_some() {
                channels.push(text);
            } else {
                self.wrong(
                    place(node),
                    format!("channel is {text:?}: expected {} or email:ADDRESS", channels::names()),
                );
            }
        }
        channels
    }

    fn group_by(&mut self, node: &Spanned<Node>) -> GroupBy {
        let given: Vec<&Spanned<Node>> = match &node.value {
            Node::List(items) => items.iter().collect(),
            _ => vec![node],
        };
        let mut by = GroupBy { rule: false, severity: false, stream: false };
        for node in given {
            match self.one_of(node, "group_by", &[("rule", 0), ("severity", 1), ("stream", 2)]) {
                Some(0) => by.rule = true,
                Some(1) => by.severity = true,
                Some(_) => by.stream = true,
                None => {}
            }
        }
        by
    }

    fn pairs(&mut self, node: Option<&Spanned<Node>>, what: &str) -> BTreeMap<String, String> {
        let Some(node) = node else { return BTreeMap::new() };
        let Node::Map(entries) = &node.value else {
            self.wrong(place(node), format!("{what} is {}: expected a mapping of strings", node.value.is()));
            return BTreeMap::new();
        };
        entries.iter().filter_map(|(key, value)| Some((key.value.clone(), self.text(value, what)?))).collect()
    }

    fn route(&mut self, node: &Spanned<Node>) -> Option<Route> {
        let before = self.mistakes.len();
        let mut fields = self.fields(node, "a route")?;
        let mut severities = Vec::new();
        if let Some(node) = fields.get("severity") {
            match &node.value {
                Node::List(items) => severities.extend(items.iter().filter_map(|item| self.severity(item))),
                _ => severities.extend(self.severity(node)),
            }
        }
        let rule = fields.get("rule").and_then(|node| self.glob(node, "rule"));
        let stream = fields.get("stream").and_then(|node| self.glob(node, "stream"));
        let channels = match fields.get("channels") {
            Some(node) => self.channels(node),
            None => {
                self.wrong(fields.at, format!("missing field `channels`: expected a list of {}", channels::names()));
                Vec::new()
            }
        };
        self.no_others(&fields);
        (self.mistakes.len() == before).then_some(Route { severities, rule, stream, channels })
    }

    fn window(&mut self, node: &Spanned<Node>) -> Option<Window> {
        let before = self.mistakes.len();
        let mut fields = self.fields(node, "a maintenance window")?;
        let name = fields.get("name").and_then(|node| self.text(node, "name")).unwrap_or_default();
        let rule = fields.get("rule").and_then(|node| self.glob(node, "rule"));
        let stream = fields.get("stream").and_then(|node| self.glob(node, "stream"));
        let (from, until, daily, days) =
            (fields.get("from"), fields.get("until"), fields.get("daily"), fields.get("days"));
        self.no_others(&fields);
        let when = match (from, until, daily) {
            (Some(from), Some(until), None) => {
                let (a, b) = (self.moment(from), self.moment(until));
                if a.zip(b).is_some_and(|(a, b)| a >= b) {
                    self.wrong(place(until), "`until` must be after `from`");
                }
                a.zip(b).map(|(from, until)| When::Once { from, until })
            }
            (None, None, Some(node)) => {
                let days = self.days(days);
                self.hours(node).map(|(from, until)| When::Daily { from, until, days })
            }
            _ => {
                self.wrong(fields.at, "missing time: expected `from` and `until`, or `daily: \"02:00-04:00\"`");
                None
            }
        }?;
        (self.mistakes.len() == before).then_some(Window { name, rule, stream, when })
    }

    fn moment(&mut self, node: &Spanned<Node>) -> Option<f64> {
        let moment = match &node.value {
            Node::Text(text) => DateTime::parse_from_rfc3339(text.trim()).ok(),
            _ => None,
        };
        if moment.is_none() {
            self.wrong(
                place(node),
                format!("{} is not a time: expected one such as 2026-12-01T02:00:00Z", shown(&node.value)),
            );
        }
        #[expect(clippy::cast_precision_loss, reason = "Unix seconds")]
        moment.map(|moment| moment.timestamp() as f64)
    }

    fn hours(&mut self, node: &Spanned<Node>) -> Option<(u32, u32)> {
        let read = |text: &str| {
            let (from, until) = text.split_once('-')?;
            let time = |text: &str| NaiveTime::parse_from_str(text.trim(), "%H:%M").ok();
            Some((time(from)?.num_seconds_from_midnight(), time(until)?.num_seconds_from_midnight()))
        };
        let hours = match &node.value {
            Node::Text(text) => read(text),
            _ => None,
        };
        if hours.is_none() {
            self.wrong(
                place(node),
                format!("daily is {}: expected hours in UTC such as \"02:00-04:00\"", shown(&node.value)),
            );
        }
        hours
    }

    fn days(&mut self, node: Option<&Spanned<Node>>) -> Vec<u32> {
        let words = [("mon", 0), ("tue", 1), ("wed", 2), ("thu", 3), ("fri", 4), ("sat", 5), ("sun", 6)];
        self.list(node, "days").iter().filter_map(|node| self.one_of(node, "day", &words)).collect()
    }
}

/// Maximum number of characters of a value quoted in an error.
const LONGEST_SHOWN: usize = 60;

fn shown(node: &Node) -> String {
    match node {
        Node::Text(text) if text.chars().count() > LONGEST_SHOWN => {
            format!("{:?}…", text.chars().take(LONGEST_SHOWN).collect::<String>())
        }
        Node::Text(text) => format!("{text:?}"),
        Node::Number(number) => super::rule::figure(*number),
        other => other.is().to_owned(),
    }
}

fn seconds_of(seconds: f64) -> Option<Duration> {
    (0.0..=1e9).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// Parses `60`, `60s`, `5m`, `1h`, `2d`, `500ms`; a bare number is seconds.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim().to_ascii_lowercase();
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0), ("", 1.0)];
    let (number, scale) = units.into_iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    seconds_of(number.trim().parse::<f64>().ok()? * scale)
}

/// Returns the known word of which `word` is most likely a misspelling.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.len() / 3).clamp(1, 2);
    known.map(|k| (distance(word, k), k)).filter(|(d, _)| (1..=allowed).contains(d)).min().map(|(_, k)| k)
}

/// Edit distance of two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut last = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let next = (last + usize::from(x != *y)).min(*cell + 1).min(left + 1);
            last = std::mem::replace(cell, next);
            left = next;
        }
    }
    row.last().copied().unwrap_or(0)
}
