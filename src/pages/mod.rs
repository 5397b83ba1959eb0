//! HTML pages: renders snapshots as pages and their changes as updates.
//!
//! Pure: snapshots in, HTML out; no clock, and no I/O except the embedded templates. `view` assembles the live page
//! from `verdict` and `headline` (assessment), `panels` (content of each panel), and `wording` and `figures`
//! (formatting). `block` tracks changes of each fragment, `cell` those of single values; `chart` draws the backlog over
//! time, and `live` combines the page and its updates.
//!
//! [`history`] is the history page, `detail` the pages of one stream and one worker type; `site` is the shell around
//! every page, and [`link`] builds URLs. [`operator`] contains the pages for actions on messages, [`api`] the API page,
//! and [`assets`] scripts and styles.

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
