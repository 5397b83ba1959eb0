//! Every Redis command of the project.
//!
//! The monitor reads the fleet with [`streams_reader`] and [`heartbeats_reader`], finds what is
//! new with [`discovery`], and writes down what must outlive it with [`worker_type_records`],
//! [`failure_records`] and [`event_spool`], and keeps what was told in [`alerts`]; [`leader`] says which monitor
//! tells it. [`durations`] takes in how long tasks took,
//! [`recent_series`] keeps the last days of every series, [`older_monitor`] takes over and gives back what the older
//! monitor keeps, [`sweeps`] says whose turn it is to sweep;
//! [`cleaning`] trims streams and deletes stale consumers, [`query_search`] finds on which stream a query was last; [`messages`] looks at what is on a stream, page
//! by page, and [`operate`] does to it what an operator chose; [`pace`] keeps long work small.
//! [`address`] reads where Redis is, [`connection`] opens, keeps and discards connections, `refusal` says what an error of
//! the server means, [`reply`] reads
//! answers in RESP2 and RESP3 alike, [`unparsed`] keeps long ones cheap. Workers take, finish and hand
//! over entries with [`tasks`].

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
