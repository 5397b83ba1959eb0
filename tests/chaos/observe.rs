//! What is looked at from outside once a second: the monitors' snapshots, logs, memory, threads and open files, the
//! events in Postgres, the sizes of the monitors' own Redis keys.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Commands;
use serde_json::Value;

use crate::fleet::{Fleet, Monitor};
use crate::journal::{Fault, now};

/// A monitor process as the system sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) at: f64,
    /// Seconds since the process was started.
    pub(crate) age: f64,
    pub(crate) pid: u32,
    pub(crate) rss_kib: u64,
    pub(crate) threads: u64,
    pub(crate) files: u64,
}

/// An event as Postgres has it.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) id: i64,
    /// When it was first found in Postgres.
    pub(crate) found: f64,
    /// When it happened, by the clock of whoever wrote it.
    pub(crate) ts: f64,
    pub(crate) kind: String,
    pub(crate) worker: String,
    pub(crate) detail: String,
    pub(crate) payload: Value,
}

#[derive(Default)]
pub(crate) struct Observed {
    /// Of each monitor.
    pub(crate) samples: [Mutex<Vec<Sample>>; 2],
    /// When any monitor's newest snapshot had a good reading of Redis, once a second.
    pub(crate) good_readings: Mutex<Vec<f64>>,
    pub(crate) events: Mutex<Vec<Event>>,
    /// Bytes of the monitors' own keys without the series, and how many keys those are.
    pub(crate) keys: Mutex<Vec<(f64, u64, u64)>>,
    /// Sum of the lengths of the recorded series.
    pub(crate) series: Mutex<Vec<(f64, u64)>>,
    pub(crate) errors: Mutex<Vec<(f64, &'static str, String)>>,
}

impl Observed {
    /// The longest time without a good reading by any monitor that has a part between the two moments.
    pub(crate) fn longest_blindness(&self, from: f64, to: f64) -> f64 {
        let readings = self.good_readings.lock().unwrap();
        let pairs = readings.windows(2).filter(|pair| pair[0] <= to && pair[1] >= from);
        pairs.map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }
}

/// Looks once a second, until `stop`.
pub(crate) fn run(fleet: &Fleet, observed: &Observed, handle: &tokio::runtime::Handle, stop: &AtomicBool) {
    let http = reqwest::Client::builder().timeout(Duration::from_millis(900)).build().unwrap();
    let mut offsets = [0, 0];
    let mut newest_event = 0;
    let started = Instant::now();
    for round in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        for slot in &fleet.slots {
            if let Ok(mut slot) = slot.try_lock() {
                fleet.look_after(&mut slot);
            }
        }
        for (at, monitor) in fleet.monitors.iter().enumerate() {
            read_log(monitor, &mut offsets[at], fleet, observed);
            if round.is_multiple_of(5) {
                observed.samples[at].lock().unwrap().extend(sample(monitor));
            }
        }
        let snapshots = handle.block_on(async {
            let ask = |monitor: &Monitor| {
                let request = http.get(monitor.url("/api/snapshot")).send();
                async move { request.await.ok()?.json::<Value>().await.ok() }
            };
            let (first, second) = tokio::join!(ask(&fleet.monitors[0]), ask(&fleet.monitors[1]));
            [first, second]
        });
        take_snapshots(fleet, observed, &snapshots);
        if round.is_multiple_of(3) {
            let limit = Duration::from_secs(2);
            let read = handle.block_on(async { tokio::time::timeout(limit, read_events(fleet, newest_event)).await });
            if let Ok(Ok(events)) = read {
                newest_event = events.iter().map(|event| event.id).max().unwrap_or(newest_event);
                observed.events.lock().unwrap().extend(events);
            }
        }
        if round.is_multiple_of(15) {
            drop(measure_keys(fleet, observed));
        }
        let next = started + Duration::from_secs(round + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()).max(Duration::from_millis(100)));
    }
}

fn take_snapshots(fleet: &Fleet, observed: &Observed, snapshots: &[Option<Value>; 2]) {
    let at = now();
    let good: Vec<&Value> = snapshots
        .iter()
        .flatten()
        .filter(|snapshot| matches!(snapshot["redis"]["source"]["status"].as_str(), Some("ok" | "settling")))
        .collect();
    if good.is_empty() {
        return;
    }
    observed.good_readings.lock().unwrap().push(at);
    let mut processes = fleet.processes();
    let mut by_name: BTreeMap<String, usize> = BTreeMap::new();
    for (at, process) in processes.iter().enumerate().filter(|(_, process)| process.ended.is_none()) {
        if let Some(consumer) = &process.consumer {
            by_name.insert(consumer.clone(), at);
        }
    }
    for workers in good.iter().filter_map(|snapshot| snapshot["workers"].as_object()) {
        for consumer in workers.values().filter_map(|status| status["consumers"].as_array()).flatten() {
            let running = matches!(consumer["state"].as_str(), Some("alive" | "draining" | "hung"));
            let name = consumer["consumer"].as_str().unwrap_or_default();
            if let Some(place) = by_name.get(name).filter(|_| running) {
                let shown = &mut processes[*place].shown;
                *shown = Some((shown.map_or(at, |(first, _)| first), at));
            }
        }
    }
}

/// Collects panics and ERROR lines.
fn read_log(monitor: &Monitor, offset: &mut usize, fleet: &Fleet, observed: &Observed) {
    let log = monitor.log_from(*offset);
    let Some(end) = log.rfind('\n') else { return };
    let complete = &log[..=end];
    *offset += complete.len();
    for line in complete.lines() {
        if line.contains("panicked at ") {
            fleet.journal.violation(format!("monitor {} panicked: {}", monitor.name, shortened(line)));
        } else if line.contains(r#""level":"ERROR""#) {
            observed.errors.lock().unwrap().push((now(), monitor.name, shortened(line)));
        }
    }
}

/// Whether a fault explains a line of the level ERROR that was logged at that moment.
pub(crate) fn is_explained(fleet: &Fleet, at: f64, line: &str) -> bool {
    let disk = [Fault::Spool];
    let any = [Fault::Redis, Fault::RedisClock, Fault::Postgres, Fault::Spool, Fault::Webhook, Fault::Monitor];
    let needs_full_disk = line.contains("samples lost") || line.contains("or to disk");
    fleet.journal.overlaps(if needs_full_disk { &disk } else { &any }, at - 15.0, at + 30.0)
}

pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(400).collect()
}

fn sample(monitor: &Monitor) -> Option<Sample> {
    let (pid, since) = monitor.running()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let figure = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    let at = now();
    Some(Sample { at, age: at - since, pid, rss_kib: figure("VmRSS:")?, threads: figure("Threads:")?, files })
}

async fn read_events(fleet: &Fleet, after: i64) -> Result<Vec<Event>, tokio_postgres::Error> {
    let client = fleet.postgres_now().await?;
    // Ids are given before they are committed: one that comes late is found in a later look.
    let query = "SELECT id, extract(epoch FROM ts)::float8, type, worker, detail, payload::text FROM monitor_events \
                 WHERE id > $1 ORDER BY id";
    let rows = client.query(query, &[&after]).await?;
    let event = |row: &tokio_postgres::Row| Event {
        id: row.get(0),
        found: now(),
        ts: row.get(1),
        kind: row.get(2),
        worker: row.get::<_, Option<String>>(3).unwrap_or_default(),
        detail: row.get::<_, Option<String>>(4).unwrap_or_default(),
        payload: row.get::<_, Option<String>>(5).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
    };
    Ok(rows.iter().map(event).collect())
}

/// All events once more, for the checks at the end; those that were found before keep the moment of that.
pub(crate) fn read_all_events(fleet: &Fleet, observed: &Observed, handle: &tokio::runtime::Handle) {
    let Ok(mut events) = handle.block_on(read_events(fleet, 0)) else { return };
    let mut known = observed.events.lock().unwrap();
    let found: BTreeMap<i64, f64> = known.iter().map(|event| (event.id, event.found)).collect();
    for event in &mut events {
        event.found = found.get(&event.id).copied().unwrap_or(event.found);
    }
    *known = events;
}

/// Measures the monitors' own keys.
fn measure_keys(fleet: &Fleet, observed: &Observed) -> redis::RedisResult<()> {
    let mut redis = fleet.redis_now()?;
    let (mut bytes, mut keys, mut samples) = (0, 0, 0);
    for pattern in ["shepherd-monitor:*", "monitor:*"] {
        let found: Vec<String> = redis.scan_match(pattern)?.collect::<redis::RedisResult<_>>()?;
        for key in found {
            if key.starts_with("shepherd-monitor:hist:") && key != "shepherd-monitor:hist:index" {
                let length: u64 = redis::cmd("ZCARD").arg(&key).query(&mut redis)?;
                samples += length;
                // One more of each monitor after each step of Redis' clock, forth and back.
                let steps = fleet.journal.acts().get("Redis: clock").copied().unwrap_or(0);
                let most = fleet.journal.elapsed() / fleet.history_interval * 2.0 + 20.0 + f64::from(steps) * 4.0;
                if length as f64 > most {
                    fleet.journal.violation(format!("{key} has more samples than were due ({length}, {most:.0})"));
                }
            } else {
                let size: Option<u64> = redis::cmd("MEMORY").arg("USAGE").arg(&key).query(&mut redis)?;
                (bytes, keys) = (bytes + size.unwrap_or(0), keys + 1);
            }
        }
    }
    observed.keys.lock().unwrap().push((now(), bytes, keys));
    observed.series.lock().unwrap().push((now(), samples));
    Ok(())
}

/// Both monitors' newest snapshots.
pub(crate) fn snapshots(fleet: &Fleet, handle: &tokio::runtime::Handle) -> [Option<Value>; 2] {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(3)).build().unwrap();
    let ask = |monitor: &Monitor| {
        let request = http.get(monitor.url("/api/snapshot")).send();
        async move { request.await.ok()?.json::<Value>().await.ok() }
    };
    handle.block_on(async { tokio::join!(ask(&fleet.monitors[0]), ask(&fleet.monitors[1])).into() })
}
