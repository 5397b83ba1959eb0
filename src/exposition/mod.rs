//! What Prometheus is shown: the newest snapshot and what was counted since the start, as text. Pure:
//! no clock, no I/O, no actix.
//!
//! [`catalogue`] is the list of all families, [`text`] the two formats they are written in, [`counters`] what is
//! counted while the monitor runs, [`page`] puts it together. What is not known has no sample, and is never a zero.

pub mod catalogue;
pub mod counters;
pub mod histogram;
pub mod page;
pub mod text;
