//! Every SQL statement of the project.
//!
//! [`connection`] says how the database is reached and what its errors mean, [`migrate`] brings
//! its tables up to date, [`probe`] measures it and the fleet's queries, [`events`] keeps what
//! happened, [`history`] what was measured, [`alerts`] where each alert stands and what is told of it;
//! [`alerts_spool`] is where those wait on disk while the database is away; [`recycle_bin`] what operators
//! dropped and may put back.

pub mod alerts;
pub mod alerts_spool;
pub mod connection;
pub mod events;
pub mod history;
pub mod migrate;
pub mod probe;
pub mod recycle_bin;
pub mod schema;
