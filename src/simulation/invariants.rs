//! Invariants of a simulated world: the guarantees of ARCHITECTURE.md as code, checked against the true state.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::monitor::Monitor;
use super::world::World;
use crate::alerting::lifecycle::{Alert, Phase};
use crate::alerting::message::About;
use crate::contract::Name;
use crate::contract::{heartbeat, marker};
use crate::fleet::consumer::{ConsumerState, SETTLING};
use crate::fleet::event::Event;
use crate::fleet::simulated::{BEGINS, Fate, Fleet, MONITORS, Process};
use crate::fleet::worker_type::{TypeState, WorkerStateRecord};
use crate::postgres::alerts::Delivery;
use crate::postgres::alerts_spool::SUPERSEDED;
use crate::postgres::events::NewRow;

/// A violated invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Name of the invariant; equal for violations of the same kind.
    pub(super) invariant: &'static str,
    /// Observed values.
    pub(super) evidence: String,
}

fn broken<T>(invariant: &'static str, evidence: String) -> Result<T, Violation> {
    Err(Violation { invariant, evidence })
}

/// A stored event.
#[derive(Debug)]
struct Stored {
    ts: f64,
    kind: String,
    worker: String,
    payload: Value,
}

/// Events of the simulation that the world does not record itself.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Starts and kills of monitors, true seconds.
    pub(super) monitor_turns: Vec<u64>,
    /// Redis lost its data while events may have been spooled there, or the leader's lease.
    pub(super) redis_was_emptied: bool,
    /// Rules, silences or the channel suppressed notifications at some time.
    pub(super) was_silenced: bool,
    pub(super) rules_changed: bool,
    pub(super) clocks_were_wrong: bool,
    pub(super) answers_were_lost: bool,
    pub(super) disk_was_full: bool,
    /// A monitor may have observed less than the other.
    pub(super) sights_differ: bool,
    /// Poll interval, seconds.
    pub(super) interval: u64,
    /// Periods in which a monitor may have detected changes late or failed to record them, true seconds.
    pub(super) delays: Vec<(u64, u64)>,
    /// Sum of the steps of Redis' clock, seconds.
    pub(super) redis_steps: u64,
    /// When the canary's length crossed its limit in either direction, true seconds.
    pub(super) canary: Vec<u64>,
}

impl Log {
    /// Returns the maximum additional delay of a detection in a period (true seconds); includes the recovery after each fault.
    fn delay(&self, from: u64, to: u64) -> u64 {
        let settling = SETTLING.as_secs() + 3 * self.interval + 5;
        let within = self.delays.iter().map(|(begin, end)| (end + settling).min(to).saturating_sub(*begin.max(&from)));
        within.sum()
    }
}

/// Checks all invariants, after a world has run and recovered.
pub(super) fn check(
    world: &World,
    fleet: &Fleet,
    monitors: &[Rc<Monitor>],
    log: &Log,
    announced: &[Arc<Event>],
) -> Result<(), Violation> {
    let mut events: Vec<Stored> = world
        .postgres
        .borrow()
        .events
        .iter()
        .map(|row| {
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
    ends_are_recorded(world, &events, log)?;
    outages_end(&events, log)?;
    // Spooled events are stored late.
    events.sort_by(|a, b| a.ts.total_cmp(&b.ts));
    losses_are_true(fleet, &events, log)?;
    losses_are_found(fleet, &events, log)?;
    crashes_are_true(fleet, &events, log)?;
    nothing_is_stored_twice(&events, log)?;
    pictures_are_true(fleet, monitors, log)?;
    records_are_true(world, fleet, monitors)?;
    figures_are_measured(world)?;
    notifications_take_turns(world, log)?;
    alerts_are_notified(world, &events, log)?;
    the_canary_is_notified_in_time(world, &events, log)?;
    all_is_over(world, monitors)?;
    growth_is_bounded(monitors)
}

/// Every published event is in the archive; a change that two monitors saw is stored once.
fn announced_events_are_stored(world: &World, announced: &[Arc<Event>], log: &Log) -> Result<(), Violation> {
    if log.redis_was_emptied {
        return Ok(());
    }
    let postgres = world.postgres.borrow();
    let keys: BTreeSet<&str> = postgres.events.iter().flat_map(NewRow::keys).collect();
    let is_stored = |event: &Event| keys.contains(event.key.as_str());
    match announced.iter().find(|event| !is_stored(event)) {
        None => Ok(()),
        Some(lost) => broken("a published event is stored", format!("{lost:?}")),
    }
}

/// Starts and ends of each data source's outages alternate, and all have ended. `events` in the order of storing.
fn outages_end(events: &[Stored], log: &Log) -> Result<(), Violation> {
    for source in ["redis", "postgres"] {
        let of_source = || events.iter().filter(|event| event.worker == source && event.kind.starts_with("source_"));
        let kinds: Vec<&str> = of_source().map(|event| event.kind.as_str()).collect();
        let twice = kinds.windows(2).any(|pair| pair[0] == pair[1]);
        // A killed monitor does not report the end.
        let is_open = kinds.last() == Some(&"source_down") && log.monitor_turns.is_empty() && !log.redis_was_emptied;
        if twice || is_open {
            let at: Vec<(&str, f64)> = of_source().map(|event| (event.kind.as_str(), event.ts - BEGINS)).collect();
            return broken("an outage is recorded once, and ends", format!("{source}: {at:?}"));
        }
    }
    Ok(())
}

fn of_consumer(p: &Process, event: &Stored) -> bool {
    event.worker == p.stream.to_text() || (p.stream.to_text().len() > 200 && event.worker.starts_with("long-"))
}

fn names(value: &Value) -> Vec<Name> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(Name::from).collect()
}

/// Returns lost and recovered events in the order of storing: consumer, whether lost, event.
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
fn losses_are_true(fleet: &Fleet, events: &[Stored], log: &Log) -> Result<(), Violation> {
    for (name, lost, event) in losses(events) {
        if !lost {
            continue;
        }
        let of_name: Vec<&Process> =
            fleet.processes.iter().filter(|p| p.name == name && of_consumer(p, event)).collect();
        let at = event.ts - BEGINS;
        // By the next reading, a continued process is known to be alive.
        let tolerance = (log.redis_steps + 3 * log.interval + 10) as f64;
        let is_silent = |(from, to): &(u64, u64)| at > *from as f64 - tolerance && at < *to as f64 + tolerance;
        // With a long poll interval, a late heartbeat can hide the marker until it expires.
        let hidden =
            |p: &Process| Duration::from_secs(log.interval) + heartbeat::TTL > marker::TTL && p.unclear.contains(&true);
        let is_true = of_name.iter().any(|p| p.silences.iter().any(is_silent) || p.evidence_lost || hidden(p));
        if !is_true {
            return broken("no loss without one", format!("{name} at {:.0}: {of_name:?}", event.ts - BEGINS));
        }
    }
    Ok(())
}

/// Every worker that was killed while all monitors observed it is recorded as lost, once.
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
        // An earlier stall may have been recorded as a loss that ended with its exit.
        if open < 1 {
            return broken("every loss is found", format!("{name}, killed at {at}: {p:?}"));
        }
    }
    Ok(())
}

/// A type is recorded as crashed only if one of its workers was lost in the same decline and not replaced.
fn crashes_are_true(fleet: &Fleet, events: &[Stored], log: &Log) -> Result<(), Violation> {
    for event in events.iter().filter(|event| event.kind == "scale_down" && event.payload["kind"] == "crashed") {
        let of_type: Vec<&Process> = fleet.processes.iter().filter(|p| of_consumer(p, event)).collect();
        if of_type.iter().any(|p| p.evidence_lost) {
            continue;
        }
        let at = (event.ts - BEGINS).max(0.0) as u64 + log.redis_steps;
        let silences: Vec<u64> = of_type.iter().flat_map(|p| &p.silences).map(|(from, _)| *from).collect();
        // The heartbeat expires, absence counts, two readings miss it; the loss counts for as long as a marker exists.
        let counts = (heartbeat::TTL + SETTLING + marker::TTL).as_secs() + 3 * log.interval + 5;
        let of_this_decline = |from: &&u64| at <= **from + counts + log.redis_steps + log.delay(**from, at);
        let recent: Vec<u64> = silences.iter().filter(of_this_decline).copied().collect();
        let at_text = format!("at {:.0}: {:?}", event.ts - BEGINS, event.payload);
        let Some(first) = recent.iter().min() else {
            return broken("no crash without a loss", at_text);
        };
        // If all monitors could observe it: another process started and was observed for each of the lost ones.
        let is_undisturbed = log.redis_steps == 0 && log.delay(first.saturating_sub(60), at) == 0;
        let shown_after = log.interval + 5;
        let is_replaced = |from: &u64| {
            let replaces = |p: &&&Process| p.started > from + shown_after && p.started + shown_after < at;
            let replacements = of_type.iter().filter(replaces).filter(|p| p.seen == [true; MONITORS]);
            replacements.count() >= silences.iter().filter(|other| *other >= from && **other <= at).count()
        };
        if is_undisturbed && recent.iter().all(is_replaced) {
            return broken("no crash by a loss that was replaced", at_text);
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
    // Except `scale_down`: monitors that see two changes in a different order record one too many (docs/reliability.md).
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

/// After a period without faults, every monitor shows the true state.
fn pictures_are_true(fleet: &Fleet, monitors: &[Rc<Monitor>], log: &Log) -> Result<(), Violation> {
    for monitor in monitors {
        let Some(snapshot) = monitor.newest.borrow().clone() else {
            return broken("every monitor has a picture", monitor.machine.to_string());
        };
        if let Some(stream) = snapshot.workers.keys().find(|stream| !monitor.watches(stream)) {
            return broken("a type that is not watched is not shown", stream.to_text()[..9].to_owned());
        }
        let states: BTreeMap<Name, ConsumerState> = snapshot
            .workers
            .values()
            .flat_map(|status| status.consumers.iter().map(|c| (c.consumer.clone(), c.state)))
            .collect();
        for (name, p) in fleet.latest().into_iter().filter(|(_, p)| monitor.watches(&p.stream)) {
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
                // Python's markers do not report remaining work, and the stream may have been read before.
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
            // All of them wrote a shutdown marker while a monitor could read it.
            let heard = of_type().all(|p| {
                let left = matches!(p.fate, Fate::Left { .. }) && p.silences.is_empty();
                left && p.seen[monitor.machine] && p.unclear == [false; MONITORS]
            });
            if heard && of_type().next().is_some() && status.state == TypeState::Crashed {
                return broken("a graceful shutdown is no crash", format!("{:?}", of_type().collect::<Vec<_>>()));
            }
            // The exit was also recorded, so that restarted monitors know it.
            let is_known = of_type().all(|p| {
                matches!(p.fate, Fate::Left { .. })
                    && p.silences.is_empty()
                    && !p.evidence_lost
                    && p.seen == [true; MONITORS]
                    && p.settled == [true; MONITORS]
            });
            if is_known && of_type().next().is_some() && status.state != TypeState::ScaledDown {
                return broken(
                    "what was concluded is kept",
                    format!("{:?} for monitor {}", status.state, monitor.machine),
                );
            }
        }
    }
    Ok(())
}

/// The records of a worker type are true, if the monitors that watch it observed its workers.
fn records_are_true(world: &World, fleet: &Fleet, monitors: &[Rc<Monitor>]) -> Result<(), Violation> {
    for (stream, json) in &world.redis.borrow().records {
        let watching: Vec<usize> = monitors.iter().filter(|m| m.watches(stream)).map(|m| m.machine).collect();
        let saw_it = |p: &&Process| p.stream != *stream || watching.iter().all(|monitor| p.seen[*monitor]);
        if watching.is_empty() || !fleet.processes.iter().all(|p| saw_it(&p)) {
            continue;
        }
        let record: WorkerStateRecord = serde_json::from_str(json).unwrap();
        let runs = fleet.processes.iter().any(|p| p.stream == *stream && p.runs());
        if runs != (record.state == TypeState::Alive) {
            return broken("the record is true", format!("{:?}, running: {runs}", record.state));
        }
    }
    Ok(())
}

/// Old figures are not shown as current.
fn figures_are_measured(world: &World) -> Result<(), Violation> {
    world.invented.take().map_or(Ok(()), |figure| broken("figures are measured", figure))
}

/// Fired and resolved events of each alert alternate in the archive.
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

/// The latest record of an alert is its end, unless it still fires.
fn ends_are_recorded(world: &World, events: &[Stored], log: &Log) -> Result<(), Violation> {
    // Their times do not tell which record is the latest.
    if log.clocks_were_wrong {
        return Ok(());
    }
    let mut last: BTreeMap<&str, &Stored> = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind == "alert" || event.kind == "alert_resolved") {
        let last = last.entry(event.payload["alert"].as_str().unwrap_or_default()).or_insert(event);
        // A deposed leader hands over its events late.
        if event.ts >= last.ts {
            *last = event;
        }
    }
    let alerts = &world.postgres.borrow().alerts;
    let fires = |key: &str| alerts.get(key).is_some_and(|alert| alert.phase == Phase::Firing);
    match last.into_iter().find(|(key, event)| event.kind == "alert" && !fires(key)) {
        Some((key, event)) => {
            broken("the end of an alert is recorded", format!("{key} fired at {:.1}", event.ts - BEGINS))
        }
        None => Ok(()),
    }
}

/// The receiver gets the notifications of each alert in order: firing, possibly repeats, resolved. Duplicates have the same ID.
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
    // A notification was delivered without an answer by a monitor that was replaced before it could record that, so other monitors
    // do not know of it. Or the clocks of two monitors that ran without Postgres differ, so the order of their decisions is
    // unknown.
    if (log.answers_were_lost || log.clocks_were_wrong) && world.may_be_split.get() {
        return Ok(());
    }
    // Neither Postgres nor the disk accepted it, and the process was killed.
    if log.disk_was_full && !log.monitor_turns.is_empty() {
        return Ok(());
    }
    match open.iter().find(|(key, open)| **open && !still_fires(key)) {
        Some((key, _)) => broken("every notified alert is notified as resolved", (*key).to_owned()),
        None => Ok(()),
    }
}

/// An alert that fired without a silence is notified: after it, or before if a cooldown suppressed the repetition.
fn alerts_are_notified(world: &World, events: &[Stored], log: &Log) -> Result<(), Violation> {
    let others_are_excused = log.was_silenced || log.rules_changed || log.clocks_were_wrong || world.may_be_split.get();
    // Neither Postgres nor the disk accepted it, and the process was killed.
    let was_lost = log.disk_was_full && !log.monitor_turns.is_empty();
    let delivered = world.delivered.borrow();
    for event in events.iter().filter(|event| event.kind == "alert") {
        let key = event.payload["alert"].as_str().unwrap_or_default();
        // Each stream of a storm has one alert, without silences and cooldowns.
        let is_of_storm = key.starts_with("storm:");
        // A channel is not notified of its own failure.
        if key.starts_with("channel_broken") || was_lost || (others_are_excused && !is_of_storm) {
            continue;
        }
        // The notification was still unsent when another monitor without Postgres had sent the end.
        let postgres = world.postgres.borrow();
        let is_superseded = postgres
            .outbox
            .iter()
            .any(|row| row.answer.as_deref() == Some(SUPERSEDED) && row.message.keys.iter().any(|of| of == key));
        let heard = delivered.iter().any(|message| {
            (message.row.message.about.is_firing() || is_superseded)
                && message.row.message.keys.iter().any(|of| of == key)
                && (is_of_storm || BEGINS + message.at as f64 / 1000.0 > event.ts - 700.0)
        });
        if !heard {
            return broken("every firing alert is notified", format!("{key} at {:.0}", event.ts - BEGINS));
        }
    }
    Ok(())
}

/// Without faults, an alert and its resolution are recorded at the right time, and notified soon.
fn the_canary_is_notified_in_time(world: &World, events: &[Stored], log: &Log) -> Result<(), Violation> {
    for (at, kind) in log.canary.iter().zip(["alert", "alert_resolved"]) {
        let soon = |moment: f64| (*at as f64..=(at + 20 + 2 * log.interval) as f64).contains(&moment);
        let about = if kind == "alert" { About::Firing } else { About::Resolved };
        let of_canary = |key: &str| key == "storm:storm-canary";
        let recorded =
            events.iter().filter(|event| event.kind == kind && of_canary(event.payload["alert"].as_str().unwrap()));
        let recorded: Vec<f64> = recorded.map(|event| event.ts - BEGINS).collect();
        let delivered = world.delivered.borrow();
        let delivered = delivered
            .iter()
            .filter(|d| d.row.message.about == about && d.row.message.keys.iter().any(|k| of_canary(k)));
        let delivered: Vec<f64> = delivered.map(|delivered| delivered.at as f64 / 1000.0).collect();
        if ![&recorded, &delivered].into_iter().all(|moments| matches!(moments[..], [moment] if soon(moment))) {
            let evidence = format!("{kind} at {at}: recorded at {recorded:.0?}, notified at {delivered:.0?}");
            return broken("an alert is notified in time when all is well", evidence);
        }
    }
    Ok(())
}

/// After the recovery, no alert fires and no notification waits.
fn all_is_over(world: &World, monitors: &[Rc<Monitor>]) -> Result<(), Violation> {
    let postgres = world.postgres.borrow();
    // Lost workers stay lost, so their alert is true.
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

/// The memory of a monitor does not grow with the number of past events.
fn growth_is_bounded(monitors: &[Rc<Monitor>]) -> Result<(), Violation> {
    for monitor in monitors {
        let alerts = monitor.evaluation.borrow().manager.alerts().len();
        if alerts > 1000 {
            return broken("growth is bounded", format!("{alerts} alerts"));
        }
    }
    Ok(())
}
