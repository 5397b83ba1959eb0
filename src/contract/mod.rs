//! The wire: what workers and monitor say to each other through Redis.
//!
//! Pure values shared by both sides. Key names are in [`keys`], the presence a worker writes in
//! [`heartbeat`] and [`marker`], failed tasks in [`failures`], the waiting times of reclaim in [`floors`], and
//! [`name`] is what all of them are addressed by. [`database_condition`] names the states in which Postgres refuses to
//! work.

pub mod database_condition;
pub mod failures;
pub mod floors;
pub mod heartbeat;
pub mod keys;
pub mod marker;
pub mod name;
pub mod task;

pub use database_condition::DatabaseCondition;
pub use heartbeat::Heartbeat;
pub use marker::ShutdownMarker;
pub use name::Name;
