//! What is worth telling somebody, when, and when it is over. Pure: no clock, no I/O, no actix.
//!
//! Read in the order of the data: [`mod@file`] makes [`rule`]s of YAML, [`in_force`] keeps the last good ones, [`condition`] says what a rule
//! sees in a snapshot, [`worker_down`], [`source_down`] and [`abandoned`] see what needs no rule, [`lifecycle`]
//! moves each alert from pending to firing to resolved, [`quiet`] says who asked not to be told,
//! [`grouping`] makes [`message`]s of what is not told yet ([`charted`]: by which series it can be drawn), and [`board`] ties them together: the
//! one value that the evaluator keeps. [`replay`] takes the rules through what was recorded instead.

pub mod abandoned;
pub mod board;
pub mod charted;
pub mod condition;
pub mod file;
pub mod glob;
pub mod grouping;
pub mod in_force;
pub mod lifecycle;
pub mod message;
pub mod names;
#[cfg(test)]
mod properties;
pub mod quiet;
pub mod replay;
pub mod rule;
pub mod source_down;
pub mod worker_down;
