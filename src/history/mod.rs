//! What is remembered of the fleet, and in which form. Pure: no clock, no I/O, no actix.
//!
//! [`series`] says which numbers of a snapshot are kept and under which names. [`window`] is what
//! people ask for: from when to when, in buckets of which length. [`columns`] packs rows of
//! numbers, [`metric_day`] and [`latency`] say what a stored day of a series and of a stream's task
//! latencies holds, and how days, hours and rows add up to the buckets of a window. [`stored_name`] bounds the
//! names under which all of it is stored.

pub mod columns;
pub mod latency;
pub mod metric_day;
pub mod series;
pub mod stored_name;
pub mod window;

/// A moment: microseconds since 1970, UTC, as Postgres counts them.
pub type Micros = i64;

/// One second.
pub const SECOND: Micros = 1_000_000;
/// One hour.
pub const HOUR: Micros = 3600 * SECOND;
/// One day.
pub const DAY: Micros = 24 * HOUR;

/// How many days each kind of history is kept in the archive; 0 is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Series, and queries per hour.
    pub metrics_days: u32,
    /// Task latencies.
    pub latency_days: u32,
    /// Events.
    pub events_days: u32,
}

/// A stored form that cannot be read: written by a newer version, or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a stored day: {0}")]
pub struct Unreadable(pub &'static str);
