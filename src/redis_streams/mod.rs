//! All Redis commands of the project.
//!
//! The monitor reads the fleet with [`streams_reader`] and [`heartbeats_reader`], finds new streams with [`discovery`], and stores
//! its state with [`worker_type_records`], [`failure_records`], [`event_spool`] and [`alerts`]; [`leader`] is the lease of the
//! instance that sends notifications. [`durations`] drains run times of tasks, [`recent_series`] stores the recent samples of every
//! series, [`older_monitor`] imports and exports the state of an older monitor, [`sweeps`] coordinates daily deletions;
//! [`cleaning`] trims streams and deletes stale consumers, [`query_search`] finds the last stream of a query; [`messages`] reads
//! the messages of a stream page by page, and [`operate`] executes operations of users on them; [`pace`] adapts the batch size of
//! background jobs. [`address`] parses settings and URLs, [`connection`] opens, pools and discards connections, `refusal` classifies the errors of the server, [`reply`] reads answers in RESP2
//! and RESP3, [`unparsed`] avoids parsing long answers. Workers read, finish and reclaim entries with [`tasks`].

pub mod address;
#[cfg(feature = "monitor")]
pub mod alerts;
#[cfg(feature = "monitor")]
pub mod cleaning;
#[cfg(feature = "monitor")]
pub mod connection;
#[cfg(feature = "monitor")]
pub mod discovery;
#[cfg(feature = "monitor")]
pub mod durations;
#[cfg(feature = "monitor")]
pub mod event_spool;
#[cfg(feature = "monitor")]
pub mod examine;
#[cfg(feature = "monitor")]
pub mod failure_records;
#[cfg(feature = "monitor")]
mod failures_reader;
#[cfg(feature = "monitor")]
pub mod heartbeats_reader;
#[cfg(feature = "monitor")]
pub mod leader;
#[cfg(feature = "monitor")]
pub mod messages;
#[cfg(feature = "monitor")]
pub mod older_monitor;
#[cfg(feature = "monitor")]
pub mod operate;
#[cfg(feature = "monitor")]
pub mod pace;
#[cfg(feature = "monitor")]
pub mod query_search;
#[cfg(feature = "monitor")]
pub mod recent_series;
mod refusal;
#[cfg(feature = "monitor")]
pub mod reply;
#[cfg(feature = "monitor")]
pub mod server_info;
#[cfg(feature = "monitor")]
pub mod streams_reader;
#[cfg(feature = "monitor")]
pub mod sweeps;
pub mod tasks;
#[cfg(feature = "monitor")]
pub mod unparsed;
#[cfg(feature = "monitor")]
pub mod worker_type_records;
