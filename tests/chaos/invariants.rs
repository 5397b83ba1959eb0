//! What has to hold after the acts, checked from outside: ARCHITECTURE.md, "What always holds"; docs/reliability.md.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::{End, Fleet, Process};
use crate::journal::Fault;
use crate::observe::{Event, Observed, Sample, is_explained};
use crate::receiver::{Line, Receiver};
use crate::tasks::Tasks;
use crate::worker::{MERGE, RELAY};

/// What became of the workers' ends in `monitor_events`.
#[derive(Default)]
pub(crate) struct Losses {
    /// Killed workers that have their loss, once.
    pub(crate) found: u64,
    /// Killed workers whose end docs declare unknown: nobody could look, or Redis' clock was stepped then.
    pub(crate) unknown: u64,
    /// Killed before any monitor had shown them for some seconds.
    pub(crate) unseen: u64,
    /// Workers that shut down gracefully.
    pub(crate) graceful: u64,
    pub(crate) missing: Vec<String>,
    pub(crate) wrong: Vec<String>,
}

/// For how long nobody read Redis before a marker may have expired unread.
const BLIND: f64 = 100.0;

/// Compares each worker's end with the losses that the monitors recorded.
pub(crate) fn losses(fleet: &Fleet, observed: &Observed) -> Losses {
    let mut recorded: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in observed.events.lock().unwrap().iter().filter(|event| event.kind == "consumers_lost") {
        for consumer in event.payload["consumers"].as_array().into_iter().flatten() {
            recorded.entry(consumer.as_str().unwrap_or_default().to_owned()).or_default().push(event.clone());
        }
    }
    let mut result = Losses::default();
    for process in fleet.processes().iter() {
        let Some(consumer) = &process.consumer else { continue };
        let events = recorded.remove(consumer).unwrap_or_default();
        let most_stops = process.long_stops();
        match process.ended {
            Some((at, how @ (End::Killed | End::WithoutMarker | End::ByItself))) => {
                let shown = process.shown.is_some_and(|(first, last)| last - first >= 4.0);
                let stepped = fleet.journal.overlaps(&[Fault::RedisClock], at - 20.0, at + 60.0);
                if events.len() > 1 + most_stops {
                    result.wrong.push(format!("{} losses of {}", events.len(), described(process, &events)));
                } else if !events.is_empty() {
                    result.found += 1;
                } else if !shown {
                    result.unseen += 1;
                } else if how == End::WithoutMarker
                    || stepped
                    || observed.longest_blindness(at - 15.0, at + 60.0) > BLIND
                {
                    result.unknown += 1;
                } else {
                    result.missing.push(described(process, &events));
                }
            }
            Some((_, End::ShutDown)) => {
                result.graceful += 1;
                if events.len() > most_stops {
                    result.wrong.push(format!("lost after a graceful shutdown: {}", described(process, &events)));
                }
            }
            None if events.len() > most_stops => {
                result.wrong.push(format!("lost while running: {}", described(process, &events)));
            }
            None => {}
        }
    }
    for (consumer, events) in recorded {
        result.wrong.push(format!("a loss of {consumer:?}, which the run never started: {events:?}"));
    }
    result
}

fn described(process: &Process, events: &[Event]) -> String {
    let found: Vec<String> =
        events.iter().map(|event| format!("event {} found at {:.1}", event.id, event.found)).collect();
    let shown = process.shown.map(|(first, last)| (first - process.started, last - process.started));
    format!(
        "{} {} (pid {}, started {:.1}, ended {:?}, longest stop {:.1} s, shown {shown:.1?} s after its start) {found:?}",
        process.stream,
        process.consumer.as_deref().unwrap_or("?"),
        process.pid,
        process.started,
        process.ended,
        process.longest_stop(),
    )
}

/// Checks everything; violations go to the journal.
pub(crate) fn check(fleet: &Fleet, tasks: &Tasks, observed: &Observed, receiver: &Receiver) {
    check_failures(fleet, tasks);
    check_losses(fleet, observed);
    check_returns(fleet, observed);
    check_events(fleet, observed);
    check_alerts(fleet, receiver);
    check_errors(fleet, observed);
    check_processes(fleet, observed);
    check_keys(fleet, observed);
}

/// The workers count each failed task and each dead letter once.
fn check_failures(fleet: &Fleet, tasks: &Tasks) {
    let counted: redis::RedisResult<BTreeMap<String, String>> =
        fleet.redis_now().and_then(|mut redis| redis::cmd("HGETALL").arg("worker:failures").query(&mut redis));
    let Ok(mut counted) = counted else {
        fleet.journal.violation("worker:failures cannot be read");
        return;
    };
    counted.retain(|field, _| !field.starts_with("last:"));
    let (failed, dead) = tasks.failures();
    let expected = [(format!("failed:{RELAY}"), failed), (format!("dead_lettered:{MERGE}"), dead)];
    let expected = expected.into_iter().filter(|(_, count)| *count > 0);
    let expected: BTreeMap<String, String> = expected.map(|(field, count)| (field, count.to_string())).collect();
    if counted != expected {
        fleet.journal.violation(format!("worker:failures has {counted:?} instead of {expected:?}"));
    }
}

/// A worker that was lost while it was stopped, and runs again, is recorded as recovered.
fn check_returns(fleet: &Fleet, observed: &Observed) {
    let events = observed.events.lock().unwrap();
    let mut balance: BTreeMap<&str, i64> = BTreeMap::new();
    for event in events.iter() {
        if event.kind == "consumers_lost" {
            for consumer in event.payload["consumers"].as_array().into_iter().flatten() {
                *balance.entry(consumer.as_str().unwrap_or_default()).or_default() += 1;
            }
        } else if event.kind == "consumer_recovered" && event.payload["recovered_from"] == "lost" {
            *balance.entry(event.payload["consumer"].as_str().unwrap_or_default()).or_default() -= 1;
        }
    }
    let mut returned = 0;
    for process in fleet.processes().iter().filter(|process| process.ended.is_none() && process.long_stops() > 0) {
        let open = process.consumer.as_deref().and_then(|consumer| balance.get(consumer)).copied();
        returned += i64::from(open == Some(0));
        if open.is_some_and(|open| open != 0) {
            fleet.journal.violation(format!("lost and not recovered, but running: {}", described(process, &[])));
        }
    }
    fleet.journal.set("running workers that were lost and recovered", returned.unsigned_abs());
}

fn check_losses(fleet: &Fleet, observed: &Observed) {
    let losses = losses(fleet, observed);
    let journal = &fleet.journal;
    journal.set("workers lost: recorded once", losses.found);
    journal.set("workers lost: unknown, as documented", losses.unknown);
    journal.set("workers lost: never seen alive", losses.unseen);
    journal.set("workers shut down gracefully", losses.graceful);
    for missing in losses.missing {
        journal.violation(format!("no loss was recorded of {missing}"));
    }
    for wrong in losses.wrong {
        journal.violation(wrong);
    }
}

fn check_events(fleet: &Fleet, observed: &Observed) {
    let events = observed.events.lock().unwrap().clone();
    let journal = &fleet.journal;
    journal.set("events", events.len() as u64);
    let mut keys = BTreeSet::new();
    for event in &events {
        let key = event.payload["key"].as_str().unwrap_or_default();
        if key.is_empty() || !keys.insert(key.to_owned()) {
            journal.violation(format!("an event without a key of its own: {event:?}"));
        }
    }
    check_crashes(fleet, &events);
    check_alert_events(fleet, &events);
    // The same occurrence under two keys: repeated within seconds, with nothing of the opposite kind between.
    let mut last: BTreeMap<(&str, &str), &Event> = BTreeMap::new();
    for event in &events {
        let group = match event.kind.as_str() {
            "scale_up" | "scale_down" => "scale",
            "source_up" | "source_down" => "source",
            _ => continue,
        };
        if let Some(before) = last.insert((group, &event.worker), event) {
            let fields = |event: &Event| (event.payload["from"].clone(), event.payload["to"].clone());
            let same = before.kind == event.kind && fields(before) == fields(event);
            if same && (before.ts - event.ts).abs() < 3.0 {
                let (first, second) = (&before.detail, &event.detail);
                let (kind, worker) = (&event.kind, &event.worker);
                journal.violation(format!(
                    "{kind} of {worker} is there twice: {} {first:?} at {:.3}, {} {second:?} at {:.3}",
                    before.id, before.ts, event.id, event.ts
                ));
            }
        }
    }
}

/// The beginning and the end of each alert take turns.
fn check_alert_events(fleet: &Fleet, events: &[Event]) {
    let mut last: BTreeMap<&str, &Event> = BTreeMap::new();
    let mut excused = 0;
    for event in events.iter().filter(|event| matches!(event.kind.as_str(), "alert" | "alert_resolved")) {
        let key = event.payload["alert"].as_str().unwrap_or_default();
        let Some(before) = last.insert(key, event).filter(|before| before.kind == event.kind) else { continue };
        // Documented: who takes over without Postgres does not know what the leader before it decided.
        if fleet.journal.overlaps(&[Fault::Spool, Fault::Postgres], before.found - 60.0, event.found) {
            excused += 1;
        } else {
            let (kind, first, second) = (&event.kind, before.id, event.id);
            fleet.journal.violation(format!("{kind} of {key} is there twice in a row: {first} and {second}"));
        }
    }
    fleet.journal.set("alert events repeated around an outage of Postgres, as documented", excused);
}

/// A type counts as crashed only if for some moment no worker of it wrote heartbeats, and one did not shut down
/// gracefully.
fn check_crashes(fleet: &Fleet, events: &[Event]) {
    let processes = fleet.processes();
    let mut crashes = 0;
    for event in events.iter().filter(|event| event.kind == "scale_down" && event.payload["kind"] == "crashed") {
        crashes += 1;
        let of_kind: Vec<&Process> = processes.iter().filter(|process| process.stream == event.worker).collect();
        let without_any = (0..300).any(|back| {
            let at = event.found - f64::from(back);
            !of_kind.iter().any(|process| process.writes_heartbeats(at))
        });
        let one_was_lost = of_kind.iter().any(|process| {
            let lost = matches!(process.ended, Some((_, End::Killed | End::WithoutMarker | End::ByItself)));
            lost || process.long_stops() > 0
        });
        if !without_any || !one_was_lost {
            fleet.journal.violation(format!("a type counts as crashed that always had workers: {event:?}"));
        }
    }
    fleet.journal.set("worker types recorded as crashed", crashes);
}

fn check_alerts(fleet: &Fleet, receiver: &Receiver) {
    let journal = &fleet.journal;
    let posts = receiver.posts();
    let lines = receiver.lines();
    journal.set("notifications accepted", posts.iter().filter(|post| post.accepted).count() as u64);
    journal.set("notifications refused", posts.iter().filter(|post| !post.accepted).count() as u64);
    // Sent again under the same id: only where something broke between sending and noting it.
    let mut by_id: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.accepted) {
        let times = by_id.entry(&line.message).or_default();
        if times.last() != Some(&line.at) {
            times.push(line.at);
        }
    }
    let (mut repeated, mut renamed) = (0, 0);
    for (id, times) in &by_id {
        if id.is_empty() {
            journal.violation("a notification without an id");
        }
        for pair in times.windows(2) {
            repeated += 1;
            let faults = [Fault::Monitor, Fault::Postgres, Fault::Redis, Fault::Webhook, Fault::MonitorClock];
            if !journal.overlaps(&faults, pair[0] - 20.0, pair[1] + 5.0) {
                journal.violation(format!("notification {id} was sent again without a fault, at {pair:.1?}"));
            }
        }
    }
    // The same end or beginning of one alert under two ids.
    let mut by_alert: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in &lines {
        by_alert.entry(&line.fingerprint).or_default().push(line);
    }
    let name = |line: &Line| format!("{} {}", line.rule, line.subject);
    for lines in by_alert.values() {
        let accepted: Vec<&&Line> = lines.iter().filter(|line| line.accepted).collect();
        for pair in accepted.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            if before.resolved == after.resolved && before.message != after.message {
                renamed += 1;
                // Documented: who takes over without Postgres does not know what was sent since.
                let declared = [Fault::Postgres];
                if !journal.overlaps(&declared, before.at - 30.0, after.at + 5.0) {
                    let what = if after.resolved { "resolved" } else { "firing" };
                    journal.violation(format!("{what} twice in a row: {}: {}", name(after), story(lines)));
                }
            }
        }
    }
    // A worker type that several alerts are about is named once in a message: they begin and end together.
    let mut by_subject: BTreeMap<String, Vec<&Line>> = BTreeMap::new();
    for line in &lines {
        let of_type = matches!(line.rule.as_str(), "worker_crashed" | "worker_zero" | "relay_down");
        let key = if of_type { format!("down {}", line.subject) } else { line.fingerprint.clone() };
        by_subject.entry(key).or_default().push(line);
    }
    for lines in by_subject.values() {
        if let Some(first) = lines.first().filter(|line| line.resolved) {
            journal.violation(format!("resolved before firing: {}: {}", name(first), story(lines)));
        }
        if let Some(last) = lines.iter().rfind(|line| line.accepted).filter(|line| !line.resolved) {
            journal.violation(format!("the end of {} was never notified: {}", name(last), story(lines)));
        }
    }
    journal.set("notifications sent again under the same id", repeated);
    journal.set("alerts notified again under another id", renamed);
}

/// What came about one alert.
fn story(lines: &[&Line]) -> String {
    let line = |line: &&Line| {
        let status = if line.resolved { "resolved" } else { "firing" };
        let id = line.message.get(..8).unwrap_or_default();
        let not = if line.accepted { "" } else { ", not accepted" };
        format!("{status} since {} at {:.1} (id {id}{not})", line.starts, line.at)
    };
    lines.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn check_errors(fleet: &Fleet, observed: &Observed) {
    let errors = observed.errors.lock().unwrap();
    for (at, name, line) in errors.iter().filter(|(at, _, line)| !is_explained(fleet, *at, line)) {
        fleet.journal.violation(format!("monitor {name} logged an error without a fault, at {at:.1}: {line}"));
    }
    fleet.journal.set("lines of the level ERROR, with a fault", errors.len() as u64);
}

/// A figure of a sample.
type Figure = fn(&Sample) -> u64;

/// Median of a figure over these samples.
fn median(samples: &[Sample], figure: impl Fn(&Sample) -> u64) -> u64 {
    let mut figures: Vec<u64> = samples.iter().map(figure).collect();
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// The samples of the first and of the last quarter of the run, of processes that have warmed up.
pub(crate) fn quarters(samples: &[Sample]) -> Option<(Vec<Sample>, Vec<Sample>)> {
    let (from, to) = (samples.first()?.at + 20.0, samples.last()?.at);
    let quarter = (to - from) / 4.0;
    let warm = |sample: &&Sample| sample.age >= 20.0;
    let first: Vec<Sample> = samples.iter().filter(warm).filter(|s| s.at <= from + quarter).copied().collect();
    let last: Vec<Sample> = samples.iter().filter(warm).filter(|s| s.at >= to - quarter).copied().collect();
    (first.len() >= 3 && last.len() >= 3).then_some((first, last))
}

/// Median RSS of the first and the last quarter of a run, KiB.
pub(crate) fn memory(samples: &[Sample]) -> Option<(u64, u64)> {
    let (first, last) = quarters(samples)?;
    Some((median(&first, |sample| sample.rss_kib), median(&last, |sample| sample.rss_kib)))
}

fn check_processes(fleet: &Fleet, observed: &Observed) {
    for (monitor, samples) in fleet.monitors.iter().zip(&observed.samples) {
        let samples = samples.lock().unwrap();
        let journal = &fleet.journal;
        let Some((first, last)) = quarters(&samples) else {
            journal.say(format!("monitor {}: too few samples to compare its memory", monitor.name));
            continue;
        };
        let (before, after) = (median(&first, |sample| sample.rss_kib), median(&last, |sample| sample.rss_kib));
        // A quarter and 8 MiB more than in the beginning: caches fill, and allocators keep some.
        if after > before + before / 4 + 8 * 1024 {
            let name = monitor.name;
            journal
                .violation(format!("monitor {name} used {before} KiB in the first quarter, {after} KiB in the last"));
        }
        let most = |samples: &[Sample], figure: Figure| samples.iter().map(figure).max().unwrap_or(0);
        let figures: [(&str, Figure, u64); 2] = [("threads", |s| s.threads, 8), ("open files", |s| s.files, 40)];
        for (what, figure, more) in figures {
            let (before, after) = (most(&first, figure), most(&last, figure));
            if after > before + more {
                let name = monitor.name;
                journal
                    .violation(format!("monitor {name}: {what}: {before} in the first quarter, {after} in the last"));
            }
        }
    }
    let second: BTreeSet<u32> = observed.samples[1].lock().unwrap().iter().map(|sample| sample.pid).collect();
    if second.len() > 1 {
        fleet.journal.violation(format!("the second monitor was restarted: {second:?}"));
    }
}

fn check_keys(fleet: &Fleet, observed: &Observed) {
    let keys = observed.keys.lock().unwrap();
    let Some((_, bytes, count)) = keys.last() else { return };
    let quarter = &keys[..keys.len().div_ceil(4)];
    let before = quarter.iter().map(|(_, bytes, _)| *bytes).max().unwrap_or_default();
    // Bounded by what each may hold: 200 alerts, the losses of an hour, one state for each type.
    if *bytes > before * 3 + 512 * 1024 || *count > 100 {
        fleet
            .journal
            .violation(format!("the monitors' own keys: {bytes} bytes in {count} keys, {before} bytes at first"));
    }
    fleet.journal.set("bytes of the monitors' own keys", *bytes);
}
