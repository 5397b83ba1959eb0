//! Panels of the live page, one module per panel.

pub(super) mod cards;
pub(super) mod feed;
pub(super) mod notes;
pub(super) mod queries;
pub(super) mod queues;
pub(super) mod servers;
pub(super) mod unreadable;
