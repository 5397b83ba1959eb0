//! Every SQL statement of the project.
//!
//! [`address`] reads where the database is, [`connection`] says how the database is reached and what its errors mean, [`migrate`] brings
//! its tables up to date, [`probe`] measures it and the fleet's queries, [`events`] keeps what
//! happened, [`audit`] who asked for what, [`history`] what was measured, [`alerts`] where each alert
//! stands and what is told of it; [`janitor`] ends queries that never will and keeps what its passes came to;
//! [`recycle_bin`] what operators dropped and may put back; [`alerts_spool`] is where alerts wait on disk
//! while the database is away. `planned` declares statements that are asked again and again, `row_isolation`
//! keeps one row that Postgres refuses from holding up the others.
//! `dial` opens connections, through poolers too, and `wire` sees what passes over them. [`examine`] looks a database over
//! for `doctor`.

pub mod address;
pub mod alerts;
pub mod alerts_spool;
pub mod audit;
pub mod connection;
mod dial;
pub mod events;
pub mod examine;
pub mod history;
pub mod janitor;
pub mod migrate;
mod planned;
pub mod probe;
pub mod recycle_bin;
mod row_isolation;
pub mod schema;
pub mod sessions;
mod wire;
