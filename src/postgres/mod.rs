//! Every SQL statement of the project.
//!
//! [`connection`] says how the database is reached and what its errors mean, [`migrate`] brings
//! its tables up to date, [`probe`] measures it and the fleet's queries, [`events`] keeps what
//! happened, [`history`] what was measured.

pub mod connection;
pub mod events;
pub mod history;
pub mod migrate;
pub mod probe;
pub mod schema;
