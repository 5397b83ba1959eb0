//! What is known and decided about workers and streams. Pure: no clock, no I/O, no actix.
//!
//! Read in the order of the data: a [`reading`] per source and tick goes into the [`tracker`],
//! which asks [`source`] whether it may be believed, moves each [`consumer`]'s state machine,
//! rolls them up per [`worker_type`], adds the [`load`] and the [`failures`], and gives back a [`snapshot`] and the
//! [`event`]s that happened. [`incident`] puts together what the archive has of them; [`cleanup`] plans
//! what may be tidied up; [`phantom`] counts pending IDs whose entry is gone; [`message`] is what operators see and choose, [`scaling`] how many workers
//! there should be.

pub mod cleanup;
pub mod consumer;
pub mod event;
pub mod failures;
pub mod incident;
#[cfg(test)]
pub(crate) mod invented;
pub mod load;
pub mod message;
pub mod older_monitor;
pub mod phantom;
#[cfg(test)]
mod properties;
pub mod reading;
pub mod scaling;
mod sightings;
pub mod snapshot;
pub mod source;
pub mod time;
mod to_snapshot;
pub mod tracker;
pub mod watched;
pub mod worker_type;
