//! The event pipeline: actors that read, decide and publish, under one supervisor.
//!
//! Start with [`messages`] (the protocol between actors), then [`supervisor`] (which starts and restarts them), then one file per
//! actor in the order of the data: [`stream_poller`], [`heartbeat_watcher`], [`database_probe`], [`state_tracker`], [`live_feed`];
//! then the actors that store data, [`history_recorder`], [`latency_bucketer`], [`compactor`] and [`retention_sweeper`]; the
//! [`janitor`], which cleans up; and for alerts [`alert_evaluator`] and [`alert_dispatcher`] with the [`alert_ledger`] they share,
//! and the [`dead_mans_switch`]. The [`exporter`] serves Prometheus metrics.
//!
//! Actors contain no domain logic, which is in [`crate::fleet`] and [`crate::alerting`], and never block: [`io`] runs queries for
//! them.

pub mod alert_dispatcher;
pub mod alert_evaluation;
pub mod alert_evaluator;
pub mod alert_ledger;
pub mod alert_store;
pub mod compactor;
pub mod database_probe;
pub mod dead_mans_switch;
pub mod delivery_queue;
pub mod exporter;
pub mod fleet_tracking;
pub mod heartbeat_watcher;
pub mod history_recorder;
pub mod io;
pub mod janitor;
mod kernel_timer;
pub mod latency_bucketer;
pub mod live_feed;
pub mod messages;
pub mod retention_sweeper;
pub mod state_tracker;
pub mod stream_poller;
pub mod supervisor;
