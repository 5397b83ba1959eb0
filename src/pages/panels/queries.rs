//! The query panels: queries by state, by result, and by ARA.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fleet::snapshot::{Freshness, PostgresStatus, Snapshot, SourceStatus};
use crate::pages::block::Draft;
use crate::pages::cell::{Cell, Cells, Tone};
use crate::pages::figures::{about, duration, natural};
use crate::pages::view::Frame;
use crate::pages::wording::{Label, MomentStyle, Sentence};

/// Maximum number of states and statuses shown; the rest are summed.
const ROWS: usize = 8;
/// Age of the oldest callback that counts as a problem, seconds; as in the alert rules.
const LONG_CALLBACK: f64 = 600.0;

/// The queries panel without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct QueriesFrame {
    id: &'static str,
    stale: bool,
    note: Sentence,
    /// Whether there is data.
    known: bool,
    states: Vec<Row>,
    statuses: Vec<Row>,
}

/// The panel of queries per ARA without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct ArasFrame {
    id: &'static str,
    stale: bool,
    note: Sentence,
    rows: Vec<Row>,
    /// Whether there are no query tables.
    none: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: Label,
    slot: String,
}

/// Returns the queries panel.
pub(in crate::pages) fn queries(snapshot: &Snapshot) -> Draft {
    let postgres = &snapshot.postgres;
    let mut cells: Cells = vec![
        ("h".to_owned(), Cell::count(postgres.queries_last_1h.map(natural))),
        ("d".to_owned(), Cell::count(postgres.queries_last_24h.map(natural))),
        ("w".to_owned(), Cell::count(postgres.callbacks_pending.map(natural))),
        ("o".to_owned(), oldest_callback(postgres)),
    ];
    let states = rows('s', postgres.state_counts.as_ref(), &mut cells);
    let statuses = rows('t', postgres.status_counts.as_ref(), &mut cells);
    let (stale, note) = note(postgres);
    let known = postgres.queries_last_1h.is_some() || postgres.state_counts.is_some();
    let frame =
        QueriesFrame { id: "queries", stale, note, known: known && !postgres.without_queries, states, statuses };
    Draft { id: "queries".to_owned(), frame: Frame::Queries(frame), cells }
}

/// Returns the panel of queries per ARA.
pub(in crate::pages) fn aras(snapshot: &Snapshot) -> Draft {
    let postgres = &snapshot.postgres;
    let mut cells = Vec::new();
    let mut rows = Vec::new();
    let (stale, mut told) = note(postgres);
    if let Some(volume) = postgres.per_ara_24h.as_ref().filter(|_| !postgres.without_queries) {
        let listed = snapshot.aras.iter().map(|ara| (ara.as_str(), volume.get(ara).copied().unwrap_or(0)));
        let others = volume.iter().filter(|(ara, _)| !snapshot.aras.contains(ara));
        let other: i64 = others.map(|(_, n)| *n).sum();
        let all: Vec<_> = listed.chain((other > 0).then_some(("other", other))).collect();
        let most = all.iter().map(|(_, n)| natural(*n)).max().unwrap_or(0).max(1);
        for (i, (ara, n)) in all.into_iter().enumerate() {
            let slot = format!("a{i}");
            #[expect(clippy::cast_precision_loss, reason = "the width of a bar")]
            let width = (natural(n) as f64 / most as f64 * 100.0).round();
            cells.push((slot.clone(), Cell::count(Some(natural(n))).valued(width)));
            rows.push(Row { name: Label::from_text(ara), slot });
        }
        if !stale {
            told = Sentence::words(ages(&[("Queries by ARA", &postgres.freshness.volume)]));
        }
    }
    let frame = ArasFrame { id: "aras", stale, note: told, rows, none: postgres.without_queries };
    Draft { id: "aras".to_owned(), frame: Frame::Aras(frame), cells }
}

/// Returns the note above the data, and whether the data is stale.
fn note(postgres: &PostgresStatus) -> (bool, Sentence) {
    if let SourceStatus::Down { since, trouble } = &postgres.source {
        let sentence = Sentence::words("As of").at(" ", Some(*since), MomentStyle::Clock);
        return (true, sentence.then(format!(": Postgres is {}.", trouble.kind.state())));
    }
    if postgres.without_queries {
        return (false, Sentence::words("No query data: the table shepherd_brain does not exist."));
    }
    if postgres.queries_last_1h.is_none() && postgres.state_counts.is_none() {
        let words = if postgres.error.is_some() { "Counting queries failed." } else { "Waiting for the first count." };
        return (false, Sentence::words(words));
    }
    let freshness = &postgres.freshness;
    let groups = [
        ("States and statuses", &freshness.counts),
        ("Queries by time", &freshness.volume),
        ("Callbacks", &freshness.callbacks),
    ];
    (false, Sentence::words(ages(&groups)))
}

/// Lists values older than two polls with their age: `Callbacks measured 40 s ago.`
pub(super) fn ages(groups: &[(&str, &Freshness)]) -> String {
    let old = groups.iter().filter(|(_, freshness)| freshness.stale || freshness.outdated);
    let sentences = old.filter_map(|(group, freshness)| {
        let age = about(freshness.age_sec?);
        let failed = if freshness.outdated { ", outdated" } else { "" };
        Some(format!("{group} measured {age} ago{failed}."))
    });
    sentences.collect::<Vec<_>>().join(" ")
}

fn rows(letter: char, counts: Option<&BTreeMap<String, i64>>, cells: &mut Cells) -> Vec<Row> {
    let Some(counts) = counts else { return Vec::new() };
    let mut rows = Vec::new();
    let mut add = |name: Label, n: i64| {
        let slot = format!("{letter}{}", rows.len());
        cells.push((slot.clone(), Cell::count(Some(natural(n)))));
        rows.push(Row { name, slot });
    };
    for (name, n) in counts.iter().take(ROWS) {
        add(Label::from_text(name), *n);
    }
    if counts.len() > ROWS {
        add(Label::from_text("other"), counts.values().skip(ROWS).sum());
    }
    rows
}

fn oldest_callback(postgres: &PostgresStatus) -> Cell {
    match (postgres.oldest_callback_age_sec, postgres.callbacks_pending) {
        (_, Some(0)) => Cell::text("–").titled("no callbacks pending").toned(Tone::Faint),
        (Some(age), _) => {
            let cell = Cell::text(about(age)).titled(duration(age));
            if age > LONG_CALLBACK { cell.toned(Tone::Warning) } else { cell }
        }
        (None, _) => Cell::missing(),
    }
}
