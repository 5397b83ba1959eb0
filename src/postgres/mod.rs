//! Every SQL statement of the project.
//!
//! [`connection`] says how the database is reached and what its errors mean, [`migrate`] brings
//! its tables up to date, [`probe`] measures it and the fleet's queries, [`events`] keeps what
//! happened.

pub mod connection;
pub mod events;
pub mod migrate;
pub mod probe;
pub mod schema;
