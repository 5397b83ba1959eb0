//! What the run writes down while it goes on: each act with its time, the windows of injected faults, violations.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Unix seconds by this machine's clock, which is never stepped.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// What a fault concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Redis was killed, stopped, or refused writes.
    Redis,
    /// Redis' clock was stepped at this moment.
    RedisClock,
    /// Postgres was killed, stopped, or its disk was full.
    Postgres,
    /// A monitor's spool disk was full.
    Spool,
    /// A monitor's clock was stepped at this moment.
    MonitorClock,
    /// A monitor was stopped, killed or shut down.
    Monitor,
    /// The webhook receiver answered 500 or nothing.
    Webhook,
}

/// From when to when a fault lasted.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) fault: Fault,
    pub(crate) from: f64,
    pub(crate) to: f64,
}

pub(crate) struct Journal {
    started: Instant,
    file: Mutex<File>,
    acts: Mutex<BTreeMap<&'static str, u32>>,
    windows: Mutex<Vec<Window>>,
    violations: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Journal {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            started: Instant::now(),
            file: Mutex::new(File::create(folder.join("acts.log")).unwrap()),
            acts: Mutex::default(),
            windows: Mutex::default(),
            violations: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// Seconds since the start of the run.
    pub(crate) fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// A line of the log, with its time.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        let clock = now() as u64 % 86_400;
        let (hours, minutes, seconds) = (clock / 3600, clock / 60 % 60, clock % 60);
        let line = format!("{hours:02}:{minutes:02}:{seconds:02} +{:8.2} s  {}\n", self.elapsed(), text.as_ref());
        let mut file = self.file.lock().unwrap();
        file.write_all(line.as_bytes()).unwrap();
        print!("{line}");
    }

    /// An act of this kind, counted and logged.
    pub(crate) fn act(&self, kind: &'static str, text: impl AsRef<str>) {
        *self.acts.lock().unwrap().entry(kind).or_default() += 1;
        self.say(format!("{kind}: {}", text.as_ref()));
    }

    /// Notes how long a fault lasted that began at `from`.
    pub(crate) fn window(&self, fault: Fault, from: f64) {
        self.windows.lock().unwrap().push(Window { fault, from, to: now() });
    }

    /// Whether one of these faults lasted at some moment between the two.
    pub(crate) fn overlaps(&self, faults: &[Fault], from: f64, to: f64) -> bool {
        let windows = self.windows.lock().unwrap();
        windows.iter().any(|window| faults.contains(&window.fault) && window.from <= to && from <= window.to)
    }

    pub(crate) fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        let mut violations = self.violations.lock().unwrap();
        if !violations.contains(&text) {
            self.say(format!("VIOLATION: {text}"));
            violations.push(text);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// Sets a figure of the summary.
    pub(crate) fn set(&self, name: &'static str, value: u64) {
        self.counts.lock().unwrap().insert(name, value);
    }

    /// Adds to a figure of the summary.
    pub(crate) fn count(&self, name: &'static str, by: u64) {
        *self.counts.lock().unwrap().entry(name).or_default() += by;
    }

    pub(crate) fn figures(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    pub(crate) fn acts(&self) -> BTreeMap<&'static str, u32> {
        self.acts.lock().unwrap().clone()
    }
}
