//! Metrics for Prometheus: the latest snapshot and the counters as text. Pure: no clock, no I/O, no actix.
//!
//! [`catalogue`] lists all families, [`text`] implements the two formats, [`counters`] counts events while the monitor
//! runs, and [`page`] renders the response. Unknown values have no sample and are never zero.

pub mod catalogue;
pub mod counters;
pub mod histogram;
pub mod page;
pub mod text;
