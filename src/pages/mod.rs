//! What people see: a snapshot becomes a page, and a page is kept up by what changed.
//!
//! Pure: snapshots in, HTML out; no clock, no I/O but the embedded templates. `view` says what is
//! shown, through `verdict` and `headline` (how things are), `panels` (what each panel shows)
//! and `wording` and `figures` (how it is said). `block` keeps each fragment and what of it
//! changed, `cell` the figures inside that change alone, `chart` the depths over time, and
//! `live` puts the page and its updates together. [`history`] is the page of the past, `detail`
//! those of one stream and one worker type; `site` is what every page has around it, [`link`] says
//! at which address a page is. [`operator`] is what people do to messages. [`api`] tells programs what they can ask. [`assets`] are the scripts and styles.

pub mod admin;
pub mod alerts;
pub mod api;
pub mod assets;
pub mod audit;
mod block;
mod cell;
mod chart;
mod detail;
mod element_id;
mod figures;
mod headline;
pub mod history;
pub mod link;
mod live;
pub mod login;
pub mod operator;
mod panels;
mod problem;
pub mod range;
mod site;
#[cfg(test)]
#[path = "../../examples/pages/states.rs"]
pub(crate) mod states;
mod templates;
#[cfg(test)]
mod tests;
mod verdict;
mod view;
mod wording;

pub use live::LiveView;
pub use site::{Environment, Site, Visitor};
pub use templates::{Pages, PagesError};
