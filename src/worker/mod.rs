//! Worker library: processes the tasks of a Redis stream with an async handler.
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
//! A [`Worker`] reads one stream through a consumer group and calls the handler for each [`task`]. The
//! handler returns an [`answer`]; the library completes, retries, releases or dead-letters the task accordingly.
//! [`handler`] has the supported handler forms, [`builder`] the settings, [`workers`] runs several workers in one
//! process, and [`testing`] runs a handler without Redis. [`producer`] adds tasks to streams.
//!
//! Internally, `engine` is the main loop, `outcome` maps an answer to Redis operations, `sweep` reclaims lost tasks,
//! `presence` writes the heartbeat on a separate thread, `leases` renews the leases of running tasks, and `signals`
//! handles SIGTERM and SIGINT.
//!
//! `queries` (feature `worker-database`) writes the rows of queries and callbacks; `shepherd` (feature
//! `worker-shepherd`) provides the locks, bodies and logs of responses.

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
