//! Protocol between workers and the monitor, as stored in Redis.
//!
//! Plain values used by both sides: [`keys`] has the key names, [`heartbeat`] and [`marker`] what a worker writes about
//! itself, [`failures`] the failed tasks, [`hung_thresholds`] the reclaim thresholds, [`task`] the tasks, and [`name`] the names
//! of streams, groups and consumers. [`database_condition`] names the conditions in which Postgres refuses work.

pub mod database_condition;
pub mod failures;
pub mod heartbeat;
pub mod hung_thresholds;
pub mod keys;
pub mod marker;
pub mod name;
pub mod task;

pub use database_condition::DatabaseCondition;
pub use heartbeat::Heartbeat;
pub use marker::ShutdownMarker;
pub use name::Name;
