//! All SQL statements of the project.
//!
//! [`address`] parses the URL, [`connection`] pools connections and maps errors, [`migrate`] migrates the tables, [`probe`] measures the
//! database and the fleet's queries, [`events`] stores events, [`audit`] the audit log, [`audit_trail`] verifies and exports it, [`history`] the archive, [`alerts`] alert
//! states and notifications; [`sessions`] and [`users`] who may use the monitor; [`janitor`] marks abandoned queries and stores cleanup runs; [`recycle_bin`] stores deleted messages;
//! [`alerts_spool`] stores alerts on disk while the database is unreachable. `prepared` declares prepared statements;
//! `row_isolation` stores rows individually when Postgres rejects some of them. [`diagnostics`] checks a database for `doctor`.
//! `dial` opens connections, also through poolers, and `wire` adapts the protocol for them.

pub mod address;
pub mod alerts;
pub mod alerts_spool;
pub mod audit;
pub mod audit_trail;
pub mod connection;
pub mod diagnostics;
mod dial;
pub mod events;
pub mod history;
pub mod janitor;
pub mod migrate;
mod prepared;
pub mod probe;
pub mod recycle_bin;
mod row_isolation;
pub mod schema;
pub mod sessions;
pub mod users;
mod wire;
