//! The monitor from outside: what it shows of a fleet and its problems.

mod any_redis_application;
mod bad_heartbeats;
mod browser;
mod command_line;
mod connection;
mod database_figures;
mod event_spool;
mod failover;
mod failures;
mod fleet;
mod foreign_types;
mod history_page;
mod many_keys;
mod older_front_end;
mod phantoms;
mod poolers;
mod read_ahead;
mod refused_writes;
mod requests;
mod source_faults;
mod supervision;
mod terminals;
mod undelivered;
mod unlisted_workers;
