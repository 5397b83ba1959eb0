//! The library for worker processes: name a stream, write an async function, and be a member of the
//! fleet.
//!
//! ```no_run
//! use shepherd_monitor::worker::{Answer, Task, Worker};
//!
//! # async fn example() -> Result<(), shepherd_monitor::worker::WorkerError> {
//! Worker::builder("aragorn.lookup")?
//!     .task_limit(10)
//!     .run(|task: Task| async move {
//!         println!("query {:?}", task.query_id());
//!         Ok(Answer::forward())
//!     })
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: [`builder`] checks the settings, [`task`] is what a handler gets, [`answer`] what
//! it returns, [`handler`] the forms in which it may be written and [`workers`] several of them in one
//! process; [`testing`] runs one without Redis. `outcome` decides what an answer means, `engine` is the
//! loop between Redis and the handlers and `sweep` its search for lost tasks, `presence` the heartbeat
//! on its own thread and `leases` what else that keeps alive, `signals` the wish to shut down.
//! [`producer`] adds tasks to streams. `queries` (feature `worker-database`) writes the rows of queries,
//! `shepherd` (feature `worker-shepherd`) has the locks, bodies and logs of responses.

pub mod answer;
pub mod builder;
mod engine;
pub mod handler;
mod leases;
mod outcome;
mod presence;
pub mod producer;
#[cfg(feature = "worker-database")]
pub mod queries;
mod retry;
#[cfg(feature = "worker-shepherd")]
pub mod shepherd;
mod signals;
mod sweep;
pub mod task;
pub mod testing;
mod vitals;
pub mod workers;

pub use answer::{Answer, FailurePolicy, ServiceError, TaskError};
pub use builder::{SETTINGS, StreamName, Worker, WorkerBuilder, WorkerError};
pub use engine::Left;
pub use handler::{HandlerResult, service, typed, with_state};
pub use producer::{AddAllError, Producer, ProducerBuilder, ProducerError};
pub use task::{Cancelled, Fence, Task};
pub use workers::Workers;

pub use crate::contract::task::{Fields, Malformed, NewTask, Operation, OperationError, Origin, Workflow};
pub use crate::redis_streams::tasks::{EntryId, LinkError};
