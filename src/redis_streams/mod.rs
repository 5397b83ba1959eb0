//! All Redis commands of the project.
//!
//! The monitor reads the fleet with [`streams_reader`] and [`heartbeats_reader`], finds new streams with [`discovery`], and stores
//! its state with [`worker_type_records`], [`failure_records`], [`event_spool`] and [`alerts`]; [`leader`] is the lease of the
//! instance that sends notifications. [`durations`] drains run times of tasks, [`recent_series`] stores the recent samples of every
//! series, [`older_monitor`] imports and exports the state of an older monitor, [`retention_schedule`] coordinates daily deletions;
//! [`cleanup`] trims streams and deletes stale consumers, [`query_search`] finds the last stream of a query; [`messages`] reads
//! the messages of a stream page by page, and [`message_actions`] executes operations of users on them; [`adaptive_batch`] adapts the batch size of
//! background jobs. [`address`] parses settings and URLs, [`connection`] opens, pools and discards connections, `generation` tells which of them still lead to the right server, `refusal` classifies the errors of the server, [`resp_reader`] reads answers in RESP2
//! and RESP3, [`lazy_resp`] avoids parsing long answers. Workers read, finish and reclaim entries with [`tasks`].

#[cfg(feature = "monitor")]
pub mod adaptive_batch;
pub mod address;
#[cfg(feature = "monitor")]
pub mod alerts;
#[cfg(feature = "monitor")]
pub mod cleanup;
#[cfg(feature = "monitor")]
pub mod connection;
#[cfg(feature = "monitor")]
pub mod diagnostics;
#[cfg(feature = "monitor")]
pub mod discovery;
#[cfg(feature = "monitor")]
pub mod durations;
#[cfg(feature = "monitor")]
pub mod event_spool;
#[cfg(feature = "monitor")]
pub mod failure_records;
#[cfg(feature = "monitor")]
mod failures_reader;
mod generation;
mod greeting;
#[cfg(feature = "monitor")]
pub mod heartbeats_reader;
#[cfg(feature = "monitor")]
pub mod lazy_resp;
#[cfg(feature = "monitor")]
pub mod leader;
#[cfg(feature = "monitor")]
pub mod message_actions;
#[cfg(feature = "monitor")]
pub mod messages;
#[cfg(feature = "monitor")]
pub mod older_monitor;
#[cfg(feature = "monitor")]
pub mod query_search;
#[cfg(feature = "monitor")]
pub mod recent_series;
mod refusal;
#[cfg(feature = "monitor")]
pub mod resp_reader;
#[cfg(feature = "monitor")]
pub mod retention_schedule;
#[cfg(feature = "monitor")]
pub mod server_info;
#[cfg(feature = "monitor")]
pub mod streams_reader;
pub mod tasks;
#[cfg(feature = "monitor")]
pub mod worker_type_records;
