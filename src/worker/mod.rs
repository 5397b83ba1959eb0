//! The library for worker processes: name a stream, give an async function, be a member of the
//! fleet.
//!
//! ```no_run
//! use shepherd_monitor::worker::{Done, Task, Worker};
//!
//! # async fn example() -> Result<(), shepherd_monitor::worker::WorkerError> {
//! Worker::builder("aragorn.lookup")?
//!     .task_limit(10)
//!     .run(|task: Task| async move {
//!         println!("query {:?}", task.query_id());
//!         Ok(Done::new())
//!     })
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: [`builder`] checks what the user wrote, [`task`] is what a handler sees and
//! answers, `engine` is the loop between Redis and the handlers and `sweep` its search for what
//! others lost, `presence` the heartbeat on its own thread and `leases` what else it keeps alive,
//! `signals` the wish to leave. `queries` (feature `worker-database`) writes the rows of queries.

pub mod builder;
mod engine;
mod leases;
mod presence;
#[cfg(feature = "worker-database")]
pub mod queries;
mod retry;
mod signals;
mod sweep;
pub mod task;
mod vitals;

pub use builder::{SETTINGS, StreamName, Worker, WorkerBuilder, WorkerError};
pub use engine::Left;
pub use task::{Done, Fence, Task, TaskFailed};

pub use crate::contract::task::{Origin, Workflow};
