//! The Redis and Postgres panels: state of the data source, values, and limits.

use serde::Serialize;

use super::queries::ages;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::snapshot::{PostgresStatus, Snapshot, SourceStatus};
use crate::pages::block::Draft;
use crate::pages::cell::{Cell, Cells, Tone};
use crate::pages::figures::{bytes, exact, natural, percent, two_digits};
use crate::pages::headline::{FULL, NEARLY_FULL};
use crate::pages::verdict::Level;
use crate::pages::view::Frame;
use crate::pages::wording::{Label, MomentStyle, Sentence, visible};

/// State of a data source for the panel's header.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Standing {
    level: Level,
    word: &'static str,
    shape: &'static str,
    /// Whether the data is stale.
    stale: bool,
    note: Sentence,
}

/// The Redis panel without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct RedisFrame {
    id: &'static str,
    standing: Standing,
    version: Option<Label>,
    known: bool,
    up: Sentence,
    has_limit: bool,
    evicts: bool,
}

/// The Postgres panel without its values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::pages) struct PostgresFrame {
    id: &'static str,
    standing: Standing,
    known: bool,
    has_limit: bool,
}

/// Stabilizes times computed from a clock and an age, which jitter by a second or two: a value is retained until it
/// differs by more.
#[derive(Debug, Default)]
pub(in crate::pages) struct Steady {
    redis_start: Option<f64>,
}

/// Returns the Redis panel.
pub(in crate::pages) fn redis(snapshot: &Snapshot, steady: &mut Steady) -> Draft {
    let (redis, server) = (&snapshot.redis, &snapshot.redis.server);
    #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
    let started = server.uptime_in_seconds.zip(redis.read_at).map(|(up, at)| (at - up as f64).round());
    let start = match (steady.redis_start, started) {
        (Some(before), Some(now)) if (before - now).abs() <= 2.0 => Some(before),
        (_, now) => now,
    };
    steady.redis_start = start;
    let limit = server.maxmemory_bytes.filter(|limit| *limit > 0);
    let evicted = server.evicted_keys.unwrap_or(0);
    let cells: Cells = vec![
        ("l".to_owned(), used(server.used_memory_bytes, limit)),
        ("c".to_owned(), Cell::count(server.connected_clients)),
        ("o".to_owned(), Cell::count(server.instantaneous_ops_per_sec.map(two_digits))),
        ("e".to_owned(), Cell::count(server.evicted_keys).toned(if evicted > 0 { Tone::Warning } else { Tone::Faint })),
    ];
    let frame = RedisFrame {
        id: "redis",
        standing: refused(redis.write_error.as_ref(), &redis.source)
            .unwrap_or_else(|| standing(&redis.source, redis.error.as_deref())),
        version: server.version.as_deref().map(Label::from_text),
        known: redis.read_at.is_some(),
        up: Sentence::default().at("", start, MomentStyle::Since),
        has_limit: limit.is_some(),
        evicts: evicted > 0,
    };
    Draft { id: "redis".to_owned(), frame: Frame::Redis(frame), cells }
}

/// Returns the Postgres panel.
pub(in crate::pages) fn postgres(snapshot: &Snapshot) -> Draft {
    let postgres = &snapshot.postgres;
    let size = |n: Option<i64>| exactly(Cell::bytes(n.map(natural)), n.map(natural));
    let capacity = Some(postgres.disk_capacity_bytes).filter(|capacity| *capacity > 0);
    let cells: Cells = vec![
        ("c".to_owned(), Cell::count(postgres.connection_count.map(natural))),
        ("d".to_owned(), size(postgres.db_size_bytes)),
        ("w".to_owned(), size(postgres.wal_size_bytes)),
        ("l".to_owned(), used(postgres.disk_used_bytes.map(natural), capacity)),
    ];
    let standing = refused(postgres.write_error.as_ref(), &postgres.source)
        .unwrap_or_else(|| standing(&postgres.source, postgres.error.as_deref()));
    let frame = PostgresFrame {
        id: "postgres",
        standing: Standing { note: with_ages(standing.note, postgres), ..standing },
        known: postgres.connection_count.is_some() || postgres.db_size_bytes.is_some(),
        has_limit: capacity.is_some(),
    };
    Draft { id: "postgres".to_owned(), frame: Frame::Postgres(frame), cells }
}

/// Appends the ages of values older than two polls.
fn with_ages(note: Sentence, postgres: &PostgresStatus) -> Sentence {
    let freshness = &postgres.freshness;
    let ages = ages(&[
        ("Connections", &freshness.connections),
        ("Database size", &freshness.database_size),
        ("Write-ahead log", &freshness.wal_size),
    ]);
    if ages.is_empty() || !postgres.source.is_current() { note } else { note.then(format!(" {ages}")) }
}

/// Returns `used` / `limit`; `None` when either is unknown or there is no limit.
#[expect(clippy::cast_precision_loss, reason = "shown as a percentage")]
pub(in crate::pages) fn share(used: Option<u64>, limit: Option<u64>) -> Option<f64> {
    used.zip(limit.filter(|limit| *limit > 0)).map(|(used, limit)| used as f64 / limit as f64)
}

/// Returns the used size, with the percentage of the limit if there is one.
fn used(n: Option<u64>, limit: Option<u64>) -> Cell {
    let Some(part) = share(n, limit) else { return Cell::bytes(n.map(two_or_three_digits)) };
    let of = limit.map(bytes).unwrap_or_default();
    let rounded = n.map(|n| bytes(two_or_three_digits(n))).unwrap_or_default();
    let cell = Cell::text(format!("{rounded} of {of}, {}", percent(part))).valued((part * 100.0).round().min(100.0));
    let title = format!("{} of {} bytes", exact(n.unwrap_or(0)), exact(limit.unwrap_or(0)));
    match part {
        p if p >= FULL => cell.titled(title).toned(Tone::Critical),
        p if p >= NEARLY_FULL => cell.titled(title).toned(Tone::Warning),
        // Far from the limit, the exact value would change constantly without being useful.
        _ => cell,
    }
}

/// Adds the exact size as a tooltip, unless it changes constantly.
fn exactly(cell: Cell, n: Option<u64>) -> Cell {
    match n {
        Some(n) if n >= 1_000_000_000 => cell.titled(format!("{} MB", exact(n / 1_000_000))),
        _ => cell,
    }
}

/// Rounds sizes below a gigabyte to two digits, because memory usage always fluctuates.
fn two_or_three_digits(n: u64) -> u64 {
    if n >= 1_000_000_000 { n } else { two_digits(n) }
}

/// How a server stands that can be read and refuses writes.
fn refused(write_error: Option<&SourceTrouble>, source: &SourceStatus) -> Option<Standing> {
    let trouble = write_error.filter(|_| source.is_current())?;
    Some(Standing {
        level: Level::Critical,
        word: "rejects writes",
        shape: "critical",
        stale: false,
        note: Sentence::words(format!("The last write failed: {}.", visible(&trouble.detail))),
    })
}

fn standing(source: &SourceStatus, error: Option<&str>) -> Standing {
    let current = |level, word, shape, note| Standing { level, word, shape, stale: false, note };
    match source {
        SourceStatus::Starting => {
            current(Level::Unknown, "starting", "unknown", Sentence::words("Waiting for the first response."))
        }
        SourceStatus::Settling { .. } => current(
            Level::Fine,
            "recovering",
            "fine",
            Sentence::words("Available again; missing heartbeats are ignored for now."),
        ),
        SourceStatus::Ok => match error {
            None => current(Level::Fine, "OK", "fine", Sentence::default()),
            Some(error) => current(
                Level::Warning,
                "degraded",
                "warning",
                Sentence::words(format!("Some requests failed: {}", Label::from_text(error))),
            ),
        },
        SourceStatus::Down { since, trouble } => {
            let note = Sentence::words("Since")
                .at(" ", Some(*since), MomentStyle::Clock)
                .then(format!(": {}", Label::from_text(&trouble.detail)));
            Standing { stale: true, ..current(Level::Critical, trouble.kind.state(), "critical", note) }
        }
    }
}
