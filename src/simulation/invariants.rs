//! What must hold of a simulated world: the promises of ARCHITECTURE.md as code, judged by the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::Value;

use super::fleet::{Fate, Fleet, Process};
use super::monitor::Monitor;
use super::scenario::MONITORS;
use super::world::{BEGINS, World};
use crate::alerting::lifecycle::Alert;
use crate::alerting::message::About;
use crate::contract::Name;
use crate::fleet::consumer::ConsumerState;
use crate::fleet::worker_type::TypeState;
use crate::postgres::alerts::Delivery;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Which one; the same for the same kind.
    pub(super) promise: &'static str,
    /// What was seen.
    pub(super) evidence: String,
}

fn broken<T>(promise: &'static str, evidence: String) -> Result<T, Violation> {
    Err(Violation { promise, evidence })
}

/// An event as it is stored.
#[derive(Debug)]
struct Stored {
    ts: f64,
    kind: String,
    worker: String,
    payload: Value,
}

/// What happened while a world ran, beside what it keeps itself.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// When a monitor was started or killed, true seconds.
    pub(super) monitor_turns: Vec<u64>,
    /// Redis lost its data while events may have waited there, or its memory of who leads.
    pub(super) redis_was_emptied: bool,
    /// Whether the rules, silences or the channel kept notifications back at times.
    pub(super) was_silenced: bool,
    pub(super) rules_changed: bool,
    pub(super) clocks_were_wrong: bool,
    pub(super) answers_were_lost: bool,
    pub(super) disk_was_full: bool,
    /// One monitor may have seen less than the other.
    pub(super) sights_differ: bool,
}

/// Everything, after a world has run its course and calmed down.
pub(super) fn check(
    world: &World,
    fleet: &Fleet,
    monitors: &[Rc<Monitor>],
    log: &Log,
    announced: &BTreeSet<String>,
) -> Result<(), Violation> {
    let mut events: Vec<Stored> = world
        .postgres
        .borrow()
        .events
        .iter()
        .map(|(_, row)| {
            let row = serde_json::to_value(row).unwrap();
            Stored {
                ts: row["ts"]
                    .as_str()
                    .and_then(|ts| ts.parse::<chrono::DateTime<chrono::Utc>>().ok())
                    .unwrap()
                    .timestamp_micros() as f64
                    / 1e6,
                kind: row["type_"].as_str().unwrap().to_owned(),
                worker: row["worker"].as_str().unwrap().to_owned(),
                payload: row["payload"].clone(),
            }
        })
        .collect();
    announced_events_are_stored(world, announced, log)?;
    alerts_take_turns(world, &events)?;
    // What waited in the spool is stored late.
    events.sort_by(|a, b| a.ts.total_cmp(&b.ts));
    losses_are_true(fleet, &events)?;
    losses_are_found(fleet, &events, log)?;
    crashes_are_true(fleet, &events)?;
    nothing_is_stored_twice(&events, log)?;
    pictures_are_true(fleet, monitors, log)?;
    notifications_take_turns(world, log)?;
    alerts_are_notified(world, &events, log)?;
    all_is_over(world, monitors)?;
    growth_is_bounded(monitors)
}

/// Every published event reaches the archive.
fn announced_events_are_stored(world: &World, announced: &BTreeSet<String>, log: &Log) -> Result<(), Violation> {
    if log.redis_was_emptied {
        return Ok(());
    }
    let stored: BTreeSet<String> = world.postgres.borrow().events.iter().map(|(key, _)| key.clone()).collect();
    match announced.difference(&stored).next() {
        None => Ok(()),
        Some(lost) => broken("a published event is stored", lost.clone()),
    }
}

fn of_consumer(p: &Process, event: &Stored) -> bool {
    event.worker == p.stream.to_text() || (p.stream.to_text().len() > 200 && event.worker.starts_with("long-"))
}

fn names(value: &Value) -> Vec<Name> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(Name::from).collect()
}

/// Lost consumers and recovered ones, in the order of storing: by consumer, whether lost, with the event.
fn losses(events: &[Stored]) -> impl Iterator<Item = (Name, bool, &Stored)> {
    events.iter().flat_map(|event| match event.kind.as_str() {
        "consumers_lost" => names(&event.payload["consumers"]).into_iter().map(|name| (name, true, event)).collect(),
        "consumer_recovered" if event.payload["recovered_from"] == "lost" => {
            vec![(Name::from(event.payload["consumer"].as_str().unwrap()), false, event)]
        }
        _ => Vec::new(),
    })
}

/// No worker that runs or shut down gracefully is recorded as lost.
fn losses_are_true(fleet: &Fleet, events: &[Stored]) -> Result<(), Violation> {
    for (name, lost, event) in losses(events) {
        if !lost {
            continue;
        }
        let of_name: Vec<&Process> =
            fleet.processes.iter().filter(|p| p.name == name && of_consumer(p, event)).collect();
        let is_true = of_name.iter().any(|p| !p.silences.is_empty() || p.unclear.contains(&true));
        if !is_true {
            return broken("no loss without one", format!("{name} at {:.0}: {of_name:?}", event.ts - BEGINS));
        }
    }
    Ok(())
}

/// Whoever was killed in sight of all monitors is lost, once.
fn losses_are_found(fleet: &Fleet, events: &[Stored], log: &Log) -> Result<(), Violation> {
    for (name, p) in fleet.latest() {
        let Fate::Killed { at } = p.fate else { continue };
        let clear = p.seen == [true; MONITORS] && p.unclear == [false; MONITORS];
        let turned = log.monitor_turns.iter().any(|turn| *turn + 60 > p.started && *turn < at + 300);
        if !clear || turned || at - p.started < 20 {
            continue;
        }
        let mut open = 0;
        for (_, lost, _) in losses(events).filter(|(of, ..)| *of == name) {
            open += if lost { 1 } else { -1 };
        }
        // A stall before it may have been called a loss that ended by its end only.
        if open < 1 {
            return broken("every loss is found", format!("{name}, killed at {at}: {p:?}"));
        }
    }
    Ok(())
}

/// No type is called crashed unless one of its workers vanished within the last minutes.
fn crashes_are_true(fleet: &Fleet, events: &[Stored]) -> Result<(), Violation> {
    for event in events.iter().filter(|event| event.kind == "scale_down" && event.payload["kind"] == "crashed") {
        let of_type: Vec<&Process> = fleet.processes.iter().filter(|p| of_consumer(p, event)).collect();
        // The event's time is by Redis' clock, which was stepped by no more than some minutes in all.
        let silent = |p: &&Process| {
            p.silences.iter().any(|(from, to)| {
                let silent_to = if *to == u64::MAX { *from } else { *to };
                (event.ts - BEGINS - silent_to as f64) < 120.0 + 300.0 + 30.0
            })
        };
        let is_true = of_type.iter().any(silent) || of_type.iter().any(|p| p.unclear.contains(&true));
        if !is_true {
            return broken("no crash without a loss", format!("at {:.0}: {:?}", event.ts - BEGINS, event.payload));
        }
    }
    Ok(())
}

/// The same occurrence is stored once, however many monitors saw it.
fn nothing_is_stored_twice(events: &[Stored], log: &Log) -> Result<(), Violation> {
    let mut open: BTreeMap<Name, bool> = BTreeMap::new();
    for (name, lost, event) in losses(events) {
        let was = open.insert(name.clone(), lost).unwrap_or(false);
        if was == lost && lost && !log.redis_was_emptied && !log.sights_differ {
            let all: Vec<(f64, bool)> =
                losses(events).filter(|(of, ..)| *of == name).map(|(_, lost, e)| (e.ts - BEGINS, lost)).collect();
            return broken("a loss is stored once", format!("{name} at {:.1}: {all:?}", event.ts - BEGINS));
        }
    }
    // Not `scale_down`: monitors that see two changes in a different order record one too many (docs/reliability.md).
    let mut last: BTreeMap<String, &Stored> = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind == "left_with_work") {
        let consumer = event.payload["consumer"].to_string();
        if let Some(before) = last.insert(consumer.clone(), event)
            && (event.ts - before.ts).abs() < 4.0
            && !log.redis_was_emptied
            && !log.sights_differ
        {
            let twice = format!("{consumer} at {:.1} and {:.1}", before.ts - BEGINS, event.ts - BEGINS);
            return broken("a departure is stored once", twice);
        }
    }
    Ok(())
}

/// After a while without trouble every monitor shows the truth.
fn pictures_are_true(fleet: &Fleet, monitors: &[Rc<Monitor>], log: &Log) -> Result<(), Violation> {
    for monitor in monitors {
        let Some(snapshot) = monitor.newest.borrow().clone() else {
            return broken("every monitor has a picture", monitor.machine.to_string());
        };
        let states: BTreeMap<Name, ConsumerState> = snapshot
            .workers
            .values()
            .flat_map(|status| status.consumers.iter().map(|c| (c.consumer.clone(), c.state)))
            .collect();
        for (name, p) in fleet.latest() {
            let state = states.get(&name).copied();
            let clear = p.seen[monitor.machine] && !p.unclear[monitor.machine];
            let turned = log.monitor_turns.iter().any(|turn| *turn + 5 > p.started);
            let is_true = match (p.fate, state) {
                (Fate::Runs, state) => state == Some(ConsumerState::Alive) || state == Some(ConsumerState::Hung),
                (_, Some(ConsumerState::Suspect | ConsumerState::Alive | ConsumerState::Hung)) => false,
                _ if !clear || turned || log.redis_was_emptied => true,
                (Fate::Killed { .. }, state) => matches!(
                    state,
                    Some(ConsumerState::Lost | ConsumerState::Unobserved | ConsumerState::NoHeartbeat) | None
                ),
                (Fate::Left { with_work: false, .. }, state) => {
                    matches!(state, Some(ConsumerState::Left | ConsumerState::NoHeartbeat) | None)
                }
                // Python's markers do not say what is left, and the stream may have been read before.
                (Fate::Left { with_work: true, .. }, Some(ConsumerState::Left)) => p.slot % 2 == 0,
                (Fate::Left { with_work: true, .. }, state) => {
                    matches!(state, Some(ConsumerState::LeftWithWork | ConsumerState::NoHeartbeat) | None)
                }
            };
            if !is_true {
                return broken(
                    "the picture is true",
                    format!("{name} is {state:?} for monitor {}: {p:?}", monitor.machine),
                );
            }
        }
        for (stream, status) in &snapshot.workers {
            let of_type = || fleet.processes.iter().filter(|p| p.stream == *stream);
            let runs = of_type().any(Process::runs);
            if runs != (status.state == TypeState::Alive) {
                return broken("the picture is true", format!("a type is {:?}, running: {runs}", status.state));
            }
            // All of them said that they leave, and somebody was there to hear it.
            let heard = of_type().all(|p| {
                let left = matches!(p.fate, Fate::Left { .. }) && p.silences.is_empty();
                left && p.seen[monitor.machine] && p.unclear == [false; MONITORS]
            });
            if heard && of_type().next().is_some() && status.state == TypeState::Crashed {
                return broken("a graceful shutdown is no crash", format!("{:?}", of_type().collect::<Vec<_>>()));
            }
        }
    }
    Ok(())
}

/// Of each alert, what fires and what resolves take turns in the archive.
fn alerts_take_turns(world: &World, events: &[Stored]) -> Result<(), Violation> {
    if world.may_be_split.get() {
        return Ok(());
    }
    let mut open: BTreeMap<String, (bool, f64)> = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind == "alert" || event.kind == "alert_resolved") {
        let fires = event.kind == "alert";
        let key = event.payload["alert"].as_str().unwrap_or_default().to_owned();
        let before = open.insert(key.clone(), (fires, event.ts));
        if before.is_some_and(|(was, _)| was == fires) || (before.is_none() && !fires) {
            let all: Vec<(&str, f64)> = events
                .iter()
                .filter(|event| event.payload["alert"] == key.as_str())
                .map(|event| (event.kind.as_str(), event.ts - BEGINS))
                .collect();
            return broken("an alert is recorded once", format!("{key}: {all:?}"));
        }
    }
    Ok(())
}

/// The receiver hears of each alert that it fires, perhaps that it still fires, and that it is resolved. A message that
/// comes twice has the same id.
fn notifications_take_turns(world: &World, log: &Log) -> Result<(), Violation> {
    let delivered = world.delivered.borrow();
    let mut seen = BTreeSet::new();
    let mut open: BTreeMap<&str, bool> = BTreeMap::new();
    for message in delivered.iter().filter(|message| seen.insert(&message.row.id)) {
        for key in &message.row.message.keys {
            let fires = message.row.message.about != About::Resolved;
            let was = open.insert(key, fires).unwrap_or(false);
            let repeats = message.row.message.about == About::StillFiring;
            let in_turn = if repeats { was } else { was != fires };
            if !in_turn && !world.may_be_split.get() {
                let all: Vec<(f64, About, &str)> = delivered
                    .iter()
                    .filter(|message| message.row.message.keys.contains(key))
                    .map(|message| (message.at as f64 / 1000.0, message.row.message.about, &message.row.id[..4]))
                    .collect();
                return broken("notifications take turns", format!("{key}: {all:?}"));
            }
        }
    }
    let alerts = &world.postgres.borrow().alerts;
    let still_fires = |key: &str| alerts.get(key).is_some_and(Alert::is_active);
    // Delivered without an answer, by a monitor that was replaced before it could write that down: nobody knows of it.
    if log.answers_were_lost && world.may_be_split.get() {
        return Ok(());
    }
    // Neither Postgres nor the disk took it, and the process that knew was killed.
    if log.disk_was_full && !log.monitor_turns.is_empty() {
        return Ok(());
    }
    match open.iter().find(|(key, open)| **open && !still_fires(key)) {
        Some((key, _)) => broken("every notified alert is notified as resolved", (*key).to_owned()),
        None => Ok(()),
    }
}

/// An alert that fired while nobody silenced it is notified: before or after, since a cooldown keeps it back.
fn alerts_are_notified(world: &World, events: &[Stored], log: &Log) -> Result<(), Violation> {
    if log.was_silenced || log.rules_changed || log.clocks_were_wrong || world.may_be_split.get() {
        return Ok(());
    }
    let delivered = world.delivered.borrow();
    for event in events.iter().filter(|event| event.kind == "alert") {
        let key = event.payload["alert"].as_str().unwrap_or_default();
        // Channels are not told of themselves.
        if key.starts_with("channel_broken") {
            continue;
        }
        let heard = delivered.iter().any(|message| {
            message.row.message.about.is_firing()
                && message.row.message.keys.iter().any(|of| of == key)
                && BEGINS + message.at as f64 / 1000.0 > event.ts - 700.0
        });
        if !heard {
            return broken("every firing alert is notified", format!("{key} at {:.0}", event.ts - BEGINS));
        }
    }
    Ok(())
}

/// When all is well, no alert fires and no message waits.
fn all_is_over(world: &World, monitors: &[Rc<Monitor>]) -> Result<(), Violation> {
    let postgres = world.postgres.borrow();
    // Workers that are down stay down: that alert is true.
    let is_about_workers = |key: &str| key.starts_with("worker") || key.starts_with("workers");
    if let Some(alert) = postgres.alerts.values().find(|alert| alert.is_active() && !is_about_workers(&alert.key)) {
        return broken("every alert ends with its condition", format!("{}: {}", alert.key, alert.detail));
    }
    if let Some(row) = postgres.outbox.iter().find(|row| row.state == Delivery::Waiting) {
        return broken("no message waits for ever", format!("{}: {:?}", row.message.title, row.answer));
    }
    if monitors.iter().filter(|monitor| monitor.evaluation.borrow().acting()).count() != 1 {
        return broken("one monitor leads", String::new());
    }
    match monitors.iter().find(|monitor| monitor.delivers()) {
        Some(monitor) => broken("no message waits for ever", format!("in monitor {}", monitor.machine)),
        None => Ok(()),
    }
}

/// What a monitor keeps in memory does not grow with what has happened.
fn growth_is_bounded(monitors: &[Rc<Monitor>]) -> Result<(), Violation> {
    for monitor in monitors {
        let alerts = monitor.evaluation.borrow().board.alerts().len();
        if alerts > 1000 {
            return broken("growth is bounded", format!("{alerts} alerts"));
        }
    }
    Ok(())
}
