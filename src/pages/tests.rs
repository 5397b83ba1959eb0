//! Tests of the live page over generated states, including hostile names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::Value;

use super::cell::{Cell, Tone};
use super::live::LiveView;
use super::site::{Environment, Visitor};
use super::states::{self, Fleet};
use super::templates::Pages;
use super::{assets, element_id};
use crate::contract::Name;
use crate::fleet::event::EventKind;
use crate::fleet::snapshot::{DepthHistory, Snapshot};
use crate::fleet::worker_type::TypeState;

const NOW: f64 = 1_795_456_871.0;
const EPOCH: u64 = 77;

pub(in crate::pages) static PAGES: LazyLock<Arc<Pages>> = LazyLock::new(|| Arc::new(Pages::below("/root").unwrap()));

fn view() -> LiveView {
    let environment = Environment { maturity: Some("test".to_owned()), ..Environment::default() };
    LiveView::with_epoch(Arc::clone(&PAGES), environment, EPOCH)
}

fn page_of(snapshot: Option<Snapshot>) -> String {
    let mut view = view();
    if let Some(snapshot) = snapshot {
        view.update(&Arc::new(snapshot)).unwrap();
    }
    view.page(&Visitor::default()).unwrap()
}

fn message(json: Option<String>) -> Value {
    serde_json::from_str(&json.expect("a message")).unwrap()
}

/// Returns all tags of a page with their attributes.
pub(in crate::pages) fn tags(html: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let end = end.expect("every tag ends");
        let inside = rest[..end].trim_end_matches('/');
        let (name, mut attributes) = inside.split_once([' ', '\n']).unwrap_or((inside, ""));
        let mut found = Vec::new();
        while let Some((key, value)) = attributes.split_once("=\"") {
            let (value, after) = value.split_once('"').expect("every value is quoted");
            for bare in key.split_whitespace() {
                found.push((bare.to_owned(), String::new()));
            }
            found.last_mut().unwrap().1 = value.to_owned();
            attributes = after;
        }
        found.extend(attributes.split_whitespace().map(|bare| (bare.to_owned(), String::new())));
        tags.push((name.to_owned(), found));
        rest = &rest[end + 1..];
    }
    tags
}

pub(in crate::pages) fn ids(html: &str) -> Vec<String> {
    tags(html).into_iter().flat_map(|(_, attributes)| attributes).filter(|(k, _)| k == "id").map(|(_, v)| v).collect()
}

/// Returns the distinct tags and attributes of a page.
pub(in crate::pages) fn vocabulary(html: &str) -> BTreeSet<String> {
    let of = |(tag, attributes): (String, Vec<(String, String)>)| {
        attributes.into_iter().map(|(key, _)| format!("@{key}")).chain([tag]).collect::<Vec<_>>()
    };
    tags(html).into_iter().flat_map(of).collect()
}

#[test]
fn live_pages_match_their_snapshots() {
    let plain = |html: String| html.replace(&assets::version(), "VERSION");
    insta::assert_snapshot!("starting", plain(page_of(None)));
    insta::assert_snapshot!("small", plain(page_of(Some(states::small(NOW)))));
    let mut frozen = states::small(NOW);
    frozen.redis.source = states::redis_down(NOW).redis.source;
    insta::assert_snapshot!("redis_down", plain(page_of(Some(frozen))));
}

#[test]
fn every_state_has_unique_ids_and_no_inline_code() {
    for (state, snapshot) in states::all(NOW) {
        let html = page_of(snapshot);
        let all = ids(&html);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "an id is there twice in {state}");
        for (tag, attributes) in tags(&html) {
            assert_ne!(tag, "style", "{state}");
            assert!(tag != "script" || attributes.iter().any(|(key, _)| key == "src"), "inline script in {state}");
            for (key, value) in attributes {
                assert!(key != "style" && !key.starts_with("on"), "{state} has {key}={value}");
                let link = ["href", "src", "action"].contains(&key.as_str());
                assert!(!link || value.starts_with(['/', '#']), "{state} links to {value}");
            }
        }
    }
}

#[test]
fn page_anchors_exist() {
    for (state, snapshot) in states::all(NOW) {
        let html = page_of(snapshot);
        let ids: BTreeSet<String> = ids(&html).into_iter().collect();
        for (_, attributes) in tags(&html) {
            for (key, value) in attributes {
                if let Some(target) = value.strip_prefix('#').filter(|_| key == "href") {
                    assert!(ids.contains(target), "{state} links to #{target}");
                }
            }
        }
    }
}

pub(in crate::pages) fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "[<>\"'&=/ {}a-c\\n\u{1}-]{0,24}".prop_map(String::into_bytes),
        Just(b"<img src=x onerror=alert(1)>".to_vec()),
        Just(b"\" onmouseover=\"alert(1)".to_vec()),
        Just(b"</script><script>alert(1)</script>".to_vec()),
        Just("x".repeat(4096).into_bytes()),
    ]
}

pub(in crate::pages) fn fleet_named(names: &BTreeSet<Vec<u8>>) -> Snapshot {
    let mut fleet = Fleet::new(NOW);
    for name in names {
        let shown = Name::from(name.clone()).to_text();
        fleet.add("stand-in", 2, 5, 3);
        let given = Name::from(name.clone());
        let snapshot = &mut fleet.snapshot;
        let worker = snapshot.workers.remove(&Name::from("stand-in")).unwrap();
        let mut stream = snapshot.streams.remove(&Name::from("stand-in")).unwrap();
        stream.error = Some(shown.clone());
        stream.groups[0].name = given.clone();
        stream.groups.push(stream.groups[0].clone());
        let depths = Arc::make_mut(&mut snapshot.depths);
        let series = depths.depths.remove(&Name::from("stand-in")).unwrap();
        depths.depths.insert(given.clone(), series);
        snapshot.workers.insert(given.clone(), worker);
        snapshot.streams.insert(given, stream);
        fleet.event(5.0, &shown, EventKind::Unhung { consumer: Name::from(name.clone()) });
    }
    fleet.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn names_cannot_inject_html_or_collide_in_ids(
        names in proptest::collection::btree_set(any_name(), 1..8)
    ) {
        let known: BTreeSet<String> =
            states::all(NOW).into_iter().take(4).flat_map(|(_, s)| vocabulary(&page_of(s))).collect();
        let mut view = view();
        let update = message(view.update(&Arc::new(fleet_named(&names))).unwrap());
        let html = view.page(&Visitor::default()).unwrap();
        let strange: Vec<String> = vocabulary(&html).difference(&known).cloned().collect();
        prop_assert!(strange.is_empty(), "{strange:?}");
        let all = ids(&html);
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        for name in &names {
            let id = format!("w-{}", element_id::key(&Name::from(name.clone())));
            prop_assert!(all.contains(&id));
        }
        for fragment in update["set"].as_object().unwrap().values() {
            prop_assert!(vocabulary(fragment.as_str().unwrap()).is_subset(&known));
        }
    }
}

/// Model of the script's state: HTML by ID, members by list.
#[derive(Debug, Default, Clone, PartialEq)]
struct Client {
    html: BTreeMap<String, String>,
    lists: BTreeMap<String, Vec<String>>,
    title: String,
    chart: Chart,
}

/// Columns of the chart: times, and one depth per time.
#[derive(Debug, Default, Clone, PartialEq)]
struct Chart {
    times: Vec<f64>,
    depths: BTreeMap<String, Vec<Option<u64>>>,
}

impl Client {
    fn take(&mut self, update: &Value) {
        let object = |key: &str| update.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        for (id, html) in object("set") {
            self.html.insert(id, html.as_str().unwrap().to_owned());
        }
        for (id, slots) in object("cells") {
            let html = self.html.get_mut(&id).expect("cells of what is there");
            for (slot, cell) in slots.as_object().unwrap() {
                put_cell(html, slot, &read_cell(cell));
            }
        }
        for (id, members) in object("lists") {
            self.lists.insert(id, serde_json::from_value(members).unwrap());
        }
        let members: BTreeSet<&String> = self.lists.values().flatten().collect();
        self.html.retain(|id, _| id.as_bytes().get(1) != Some(&b'-') || members.contains(id));
        if let Some(title) = update.get("title") {
            self.title = title.as_str().unwrap().to_owned();
        }
        if let Some(chart) = update.get("chart") {
            self.chart.take(chart);
        }
    }
}

impl Chart {
    fn take(&mut self, columns: &Value) {
        if columns.get("whole").is_some() {
            *self = Self::default();
        }
        let several = |value: &Value, n: usize| match value {
            Value::Array(values) => values.clone(),
            one => vec![one.clone(); n],
        };
        let new_times = several(&columns["t"], 1);
        for key in columns["v"].as_object().unwrap().keys() {
            self.depths.entry(key.clone()).or_insert_with(|| vec![None; self.times.len()]);
        }
        self.times.extend(new_times.iter().map(|t| t.as_f64().unwrap()));
        for (key, depths) in &mut self.depths {
            let still = serde_json::to_value(depths.last().copied().flatten()).unwrap();
            let given = columns["v"].get(key).unwrap_or(&still);
            depths.extend(several(given, new_times.len()).iter().map(Value::as_u64));
        }
        let surplus = self.times.len().saturating_sub(DepthHistory::COLUMNS);
        self.times.drain(..surplus);
        self.depths.values_mut().for_each(|depths| drop(depths.drain(..surplus)));
        self.depths.retain(|_, depths| depths.iter().any(Option::is_some));
    }
}

fn read_cell(json: &Value) -> Cell {
    match json {
        Value::Number(unix) => Cell::Since(unix.as_f64().unwrap()),
        Value::String(text) => Cell::text(text.as_str()),
        Value::Array(parts) => {
            let part = |i: usize| parts.get(i).and_then(Value::as_str);
            let mut cell = Cell::text(part(0).unwrap()).toned(match part(2).unwrap_or_default() {
                "" => Tone::Plain,
                "faint" => Tone::Faint,
                "warning" => Tone::Warning,
                "critical" => Tone::Critical,
                other => panic!("no tone: {other}"),
            });
            if let Some(title) = part(1) {
                cell = cell.titled(title);
            }
            match parts.get(3).and_then(Value::as_f64) {
                Some(value) => cell.valued(value),
                None => cell,
            }
        }
        other => panic!("no cell: {other}"),
    }
}

/// Replaces a cell's element and its bar.
fn put_cell(html: &mut String, slot: &str, cell: &Cell) {
    let at = html.find(&format!(" data-c=\"{slot}\"")).expect("the cell's element");
    let start = html[..at].rfind('<').unwrap();
    let (tag, attributes) = html[start + 1..at].split_once(' ').unwrap_or((&html[start + 1..at], ""));
    let (tag, class) = (tag.to_owned(), attributes.trim_start_matches("class=\"").trim_end_matches('"').to_owned());
    let end_tag = format!("</{tag}>");
    let end = at + html[at..].find(&end_tag).unwrap() + end_tag.len();
    let mut made = String::new();
    cell.write_html(&mut made, &tag, &class, slot);
    html.replace_range(start..end, &made);
    if let Some(at) = html.find(&format!(" data-bar=\"{slot}\"")) {
        let start = html[..at].rfind('<').unwrap();
        let end = at + html[at..].find("</svg>").unwrap() + "</svg>".len();
        let mut made = String::new();
        cell.write_bar(&mut made, slot);
        html.replace_range(start..end, &made);
    }
}

/// A change of the fleet.
#[derive(Debug, Clone, Copy)]
enum Step {
    Nothing,
    Backlog(usize, u64),
    Crash(usize),
    Recover(usize),
    Add(u8),
    Remove(usize),
    Event(u8),
    RedisDown,
    RedisUp,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Nothing),
        (0..9_usize, 0..5000_u64).prop_map(|(i, n)| Step::Backlog(i, n)),
        (0..9_usize).prop_map(Step::Crash),
        (0..9_usize).prop_map(Step::Recover),
        any::<u8>().prop_map(Step::Add),
        (0..9_usize).prop_map(Step::Remove),
        any::<u8>().prop_map(Step::Event),
        Just(Step::RedisDown),
        Just(Step::RedisUp),
    ]
}

/// Returns the snapshot after a step.
fn stepped(before: &Snapshot, step: Step) -> Snapshot {
    let mut fleet = Fleet::new(NOW);
    fleet.snapshot = before.clone();
    fleet.snapshot.tick += 1;
    fleet.snapshot.ts += 3.0;
    let ts = fleet.snapshot.ts;
    let nth = |i: usize| before.workers.keys().nth(i % before.workers.len().max(1)).map(Name::to_text);
    match step {
        Step::Nothing => {}
        Step::Backlog(i, n) => {
            if let Some(name) = nth(i) {
                fleet.change(&name, |w, s| {
                    (w.backlog, w.utilization) = (Some(n), Some(n as f64 / 30.0));
                    (s.xlen, s.undelivered) = (Some(n), Some(n));
                });
            }
        }
        Step::Crash(i) => {
            if let Some(name) = nth(i) {
                fleet.change(&name, |w, _| {
                    (w.state, w.alive, w.state_changed_at) = (TypeState::Crashed, 0, Some(ts));
                });
            }
        }
        Step::Recover(i) => {
            if let Some(name) = nth(i) {
                fleet.change(&name, |w, _| {
                    (w.state, w.alive, w.state_changed_at) = (TypeState::Alive, 3, Some(ts));
                });
            }
        }
        Step::Add(n) => {
            let mut more = Fleet::new(NOW);
            more.add(&format!("s{n}"), 2, 5, u64::from(n));
            fleet.snapshot.workers.extend(more.snapshot.workers);
            fleet.snapshot.streams.extend(more.snapshot.streams);
        }
        Step::Remove(i) => {
            if let Some(name) = nth(i) {
                fleet.snapshot.workers.remove(&Name::from(name.as_str()));
                fleet.snapshot.streams.remove(&Name::from(name.as_str()));
            }
        }
        Step::Event(n) => {
            fleet.event(-ts + NOW, &format!("s{n}"), EventKind::Unhung { consumer: "c".into() });
            let newest = fleet.snapshot.recent_events.pop_back().unwrap();
            fleet.snapshot.recent_events.push_front(newest);
            fleet.snapshot.recent_events.truncate(5);
        }
        Step::RedisDown => fleet.snapshot.redis = states::redis_down(NOW).redis,
        Step::RedisUp => fleet.snapshot.redis = states::healthy(NOW).redis,
    }
    for stream in fleet.snapshot.streams.values_mut() {
        let waiting =
            stream.groups.iter_mut().map(|g| &mut g.oldest_waiting_sec).chain([&mut stream.oldest_waiting_sec]);
        waiting.flatten().for_each(|sec| *sec += 3.0);
    }
    let down = !fleet.snapshot.redis.source.is_current();
    let depths: Vec<(Name, Option<u64>)> =
        fleet.snapshot.streams.iter().map(|(name, s)| (name.clone(), s.undelivered.filter(|_| !down))).collect();
    Arc::make_mut(&mut fleet.snapshot.depths).push(ts, depths.into_iter());
    fleet.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn updates_from_any_tick_equal_a_fresh_page(
        steps in proptest::collection::vec(any_step(), 1..20)
    ) {
        let mut view = view();
        let mut snapshot = states::small(NOW);
        let mut from_start = Client::default();
        from_start.take(&message(view.update(&Arc::new(snapshot.clone())).unwrap()));
        let mut earlier: Vec<(u64, Client)> = vec![(snapshot.tick, from_start.clone())];
        for step in steps {
            snapshot = stepped(&snapshot, step);
            from_start.take(&message(view.update(&Arc::new(snapshot.clone())).unwrap()));
            earlier.push((snapshot.tick, from_start.clone()));
        }
        let mut newcomer = Client::default();
        newcomer.take(&message(view.since(EPOCH + 1, 3).unwrap()));
        prop_assert_eq!(&from_start, &newcomer);
        for (tick, mut client) in earlier {
            if let Some(json) = view.since(EPOCH, tick).unwrap() {
                client.take(&serde_json::from_str(&json).unwrap());
            }
            prop_assert_eq!(&client, &newcomer);
        }
    }
}

#[test]
fn unchanged_tick_sends_a_minimal_update() {
    let mut view = view();
    let snapshot = stepped(&states::full(NOW), Step::Nothing);
    view.update(&Arc::new(snapshot.clone())).unwrap();
    let json = view.update(&Arc::new(stepped(&snapshot, Step::Nothing))).unwrap().unwrap();
    let update: Value = serde_json::from_str(&json).unwrap();
    for part in ["set", "cells", "lists", "title"] {
        assert_eq!(update.get(part), None, "{part}");
    }
    assert!(json.len() < 200, "{} bytes: {json}", json.len());
}

#[test]
fn small_change_stays_below_two_kilobytes() {
    let mut view = view();
    let mut snapshot = stepped(&states::healthy(NOW), Step::Nothing);
    view.update(&Arc::new(snapshot.clone())).unwrap();
    for i in 0..5 {
        snapshot = stepped(&snapshot, Step::Backlog(i, 7 + i as u64));
        snapshot.tick -= 1;
    }
    snapshot.tick += 1;
    let json = view.update(&Arc::new(snapshot)).unwrap().unwrap();
    assert!(json.len() < 2000, "{} bytes: {json}", json.len());
}

#[test]
fn older_snapshot_is_ignored() {
    let mut view = view();
    let snapshot = Arc::new(states::small(NOW));
    assert!(view.update(&snapshot).unwrap().is_some());
    assert_eq!(view.update(&snapshot).unwrap(), None);
    assert_eq!(view.since(EPOCH, snapshot.tick).unwrap(), None);
}

#[test]
fn page_without_snapshot_has_no_update() {
    let view = view();
    assert!(view.page(&Visitor::default()).unwrap().contains("waiting for Redis, Postgres"));
    assert_eq!(view.since(EPOCH, 0).unwrap(), None);
}

#[test]
fn unknown_values_are_dashes() {
    let mut fleet = Fleet::new(NOW);
    fleet.add("unknown", 0, 0, 0);
    fleet.change("unknown", |w, s| {
        (w.backlog, w.pending, w.utilization) = (None, None, None);
        (s.xlen, s.undelivered, s.pending, s.oldest_waiting_sec, s.drain_sec) = (None, None, None, None, None);
    });
    let html = page_of(Some(fleet.finish()));
    let row = &html[html.find("id=\"q-unknown\"").unwrap()..];
    for slot in ["l", "u", "p", "o", "d"] {
        let cell = &row[row.find(&format!("data-c=\"{slot}\"")).unwrap()..];
        let text = &cell[cell.find('>').unwrap() + 1..cell.find("</td>").unwrap()];
        assert_eq!(text, "—", "{slot}");
    }
}
