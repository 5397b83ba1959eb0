//! State of workers and streams, and the rules that derive it from readings. Pure: no clock, no I/O, no actix.
//!
//! Data flow: each poll produces one [`reading`] per data source. The [`tracker`] checks with [`source`] whether the
//! reading counts, advances the state machine of each [`consumer`], aggregates the states per [`worker_type`], adds
//! [`load`] and [`failures`], and returns a [`snapshot`] and the resulting [`event`]s.
//!
//! [`incident`] reconstructs incidents from archived events; [`cleanup`] plans cleanup runs; [`phantom`] counts pending
//! IDs whose entry no longer exists; [`message`] defines the messages and actions of operators; [`scaling`] computes
//! the required number of workers; [`search`] says when to look for workers that no group lists.

pub mod cleanup;
pub mod consumer;
pub mod event;
pub mod failures;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod incident;
pub mod load;
pub mod message;
mod observations;
pub mod older_monitor;
pub mod phantom;
#[cfg(test)]
mod properties;
pub mod reading;
pub mod scaling;
pub mod search;
#[cfg(test)]
pub(crate) mod simulated;
pub mod snapshot;
pub mod source;
pub mod time;
mod to_snapshot;
pub mod tracker;
pub mod watched;
pub mod worker_type;
