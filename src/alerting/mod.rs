//! Alerting: rules, alert states and notifications. Pure: no clock, no I/O, no actix.
//!
//! Data flow: [`mod@file`] parses [`rule`]s from YAML and [`active_rules`] retains the last valid ones. [`condition`]
//! evaluates rules against a snapshot; [`worker_down`], [`source_down`] and [`abandoned`] are the built-in alerts.
//! [`lifecycle`] moves each alert from pending to firing to resolved, [`silences`] implements silences, [`grouping`]
//! builds [`message`]s of unsent alerts ([`chart_series`] selects the series to draw), and [`alert_manager`] combines them as the
//! state of the evaluator. [`channels`] lists the kinds of channels. [`replay`] evaluates the rules against recorded data.

pub mod abandoned;
pub mod active_rules;
pub mod alert_manager;
pub mod channels;
pub mod chart_series;
pub mod condition;
pub mod file;
pub mod glob;
pub mod grouping;
pub mod lifecycle;
pub mod message;
pub mod names;
#[cfg(test)]
mod properties;
pub mod replay;
pub mod rule;
pub mod silences;
pub mod source_down;
pub mod worker_down;
