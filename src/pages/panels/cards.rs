//! Worker cards: problems first, then the others, each sorted by name.

use serde::Serialize;

use crate::contract::Name;
use crate::fleet::snapshot::{Snapshot, TaskFailures, WorkerTypeStatus};
use crate::fleet::worker_type::TypeState;
use crate::pages::block::Draft;
use crate::pages::cell::{Cell, Cells, Tone};
use crate::pages::element_id;
use crate::pages::figures::{about, counted, exact, percent};
use crate::pages::link::About;
use crate::pages::verdict::{Level, Verdict};
use crate::pages::view::{Frame, List};
use crate::pages::wording::{Label, Sentence, visible};

/// Number of types above which healthy ones get a line instead of a card.
const CARDS: usize = 40;
/// Utilization from which the capacity is saturated.
const SATURATED: f64 = 1.0;

/// A card without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct CardFrame {
    id: String,
    key: String,
    name: Label,
    /// State on the wire.
    state: TypeState,
    level: Level,
    pill: &'static str,
    shape: &'static str,
    sentence: Sentence,
    quiet: bool,
    /// Whether it is a line instead of a card.
    compact: bool,
    /// Link to its page.
    href: String,
    /// Whether the longest idle time is known and relevant.
    tells_idle: bool,
    /// Whether tasks failed in the last five minutes.
    fails: bool,
}

impl CardFrame {
    /// Key of the stream whose sparkline it shows.
    pub(in crate::pages) fn sparkline_key(&self) -> Option<&str> {
        (!self.compact).then_some(self.key.as_str())
    }
}

/// Adds a card for each worker type; returns the two lists of cards.
pub(in crate::pages) fn compose(
    snapshot: &Snapshot,
    verdicts: Vec<(&Name, Verdict)>,
    drafts: &mut Vec<Draft>,
) -> Vec<List> {
    let mut troubled: Vec<(std::cmp::Reverse<Level>, String)> = Vec::new();
    let mut others = Vec::new();
    let many = verdicts.len() > CARDS;
    for (name, verdict) in verdicts {
        let Some(status) = snapshot.workers.get(name) else { continue };
        let key = element_id::key(name);
        let id = format!("w-{key}");
        let in_trouble = verdict.level.is_trouble();
        if in_trouble {
            troubled.push((std::cmp::Reverse(verdict.level), id.clone()));
        } else {
            others.push(id.clone());
        }
        let stream = snapshot.streams.get(name);
        let idle = stream.and_then(|s| s.max_idle_ms).filter(|_| verdict.pill == "no heartbeats");
        let failures = stream.and_then(|s| s.failures.as_ref()).filter(|failures| failures.last_5m > 0);
        let frame = CardFrame {
            id: id.clone(),
            key,
            name: Label::of(name),
            state: status.state,
            level: verdict.level,
            pill: verdict.pill,
            shape: verdict.shape,
            sentence: verdict.sentence,
            quiet: verdict.quiet,
            compact: many && !in_trouble,
            href: About::WorkerType.of(name),
            tells_idle: idle.is_some(),
            fails: failures.is_some(),
        };
        let mut cells = figures(status, idle);
        cells.extend(failures.map(|failures| ("f".to_owned(), failed(failures))));
        drafts.push(Draft { id, frame: Frame::Card(frame), cells });
    }
    // The sort is stable and names are sorted, so types are ordered by name within a level.
    troubled.sort_by_key(|(level, _)| *level);
    vec![
        List { id: "workers-trouble", members: troubled.into_iter().map(|(_, id)| id).collect() },
        List { id: "workers-rest", members: others },
    ]
}

pub(in crate::pages) fn figures(status: &WorkerTypeStatus, idle_ms: Option<u64>) -> Cells {
    let mut cells = vec![
        ("a".to_owned(), alive(status)),
        ("b".to_owned(), Cell::count_at_least(status.backlog, status.backlog_at_least)),
        ("c".to_owned(), capacity(status)),
        ("u".to_owned(), utilization(status)),
    ];
    if let Some(idle) = idle_ms {
        #[expect(clippy::cast_precision_loss, reason = "rounded to one unit")]
        cells.push(("i".to_owned(), Cell::text(about(idle as f64 / 1000.0))));
    }
    cells
}

/// Tasks failed in the last five minutes, with the newest reason as a tooltip.
fn failed(failures: &TaskFailures) -> Cell {
    let reason = failures.last.as_ref().map(|last| last.reason.as_str()).filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(": {}", visible(reason)));
    let count = counted(failures.last_5m, "task failure", "task failures");
    Cell::count(Some(failures.last_5m))
        .titled(format!("{count} in the last 5 minutes{}", reason.unwrap_or_default()))
        .toned(Tone::Warning)
}

fn alive(status: &WorkerTypeStatus) -> Cell {
    if is_silent(status) {
        return Cell::missing().titled(format!(
            "{} without heartbeat",
            counted(u64::from(status.without_heartbeat), "consumer", "consumers")
        ));
    }
    let cell = Cell::count(Some(u64::from(status.alive)));
    let beside: Vec<String> = [
        (status.draining, "draining"),
        (status.hung, "hung"),
        (status.stale, "heartbeat late"),
        (status.unreadable, "heartbeat unreadable"),
        (status.without_heartbeat, "without heartbeat"),
        (status.lost, "lost in the last hour"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}"))
    .collect();
    if beside.is_empty() { cell } else { cell.titled(format!("{} alive, {}", status.alive, beside.join(", "))) }
}

/// Without any heartbeat, capacity and presence of the workers are unknown.
fn is_silent(status: &WorkerTypeStatus) -> bool {
    status.state == TypeState::Unknown && status.without_heartbeat > 0
}

fn capacity(status: &WorkerTypeStatus) -> Cell {
    Cell::count((!is_silent(status)).then_some(status.capacity))
}

fn utilization(status: &WorkerTypeStatus) -> Cell {
    let (Some(share), Some(backlog)) = (status.utilization, status.backlog) else { return Cell::missing() };
    if is_silent(status) {
        return Cell::missing();
    }
    if status.capacity == 0 {
        let cell = Cell::missing().titled("no capacity");
        // By definition, backlog without capacity is a utilization of 100 %.
        return if backlog == 0 { cell } else { Cell::text("no capacity").toned(Tone::Warning).valued(100.0) };
    }
    let at_least = if status.backlog_at_least { "≥ " } else { "" };
    let cell = Cell::text(percent(share))
        .titled(format!("{at_least}{} of {}", exact(backlog), exact(status.capacity)))
        .valued((share * 100.0).round().min(100.0));
    match share {
        s if s > SATURATED => cell.toned(Tone::Warning),
        s if s <= 0.0 => cell.toned(Tone::Faint),
        _ => cell,
    }
}
