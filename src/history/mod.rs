//! History of the fleet and its storage formats. Pure: no clock, no I/O, no actix.
//!
//! [`series`] defines which values of a snapshot are recorded and under which names. [`window`] is a requested time
//! range with its bucket length. [`columns`] encodes tables of numbers; [`metric_day`] and [`latency`] define a stored
//! day of a series and of a stream's run times, and how days, hours and rows aggregate to buckets. [`stored_name`]
//! limits the names under which they are stored.

pub mod columns;
pub mod latency;
pub mod metric_day;
pub mod series;
pub mod stored_name;
pub mod window;

/// Microseconds since 1970, UTC, the resolution of Postgres.
pub type Micros = i64;

/// One second.
pub const SECOND: Micros = 1_000_000;
/// One hour.
pub const HOUR: Micros = 3600 * SECOND;
/// One day.
pub const DAY: Micros = 24 * HOUR;

/// Retention of each kind of history in days; 0 is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Series, and queries per hour.
    pub metrics_days: u32,
    /// Task run times.
    pub latency_days: u32,
    /// Events.
    pub events_days: u32,
}

/// Error: a stored value is damaged or was written by a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a stored day: {0}")]
pub struct Unreadable(pub &'static str);
