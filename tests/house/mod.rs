//! Rules of the house that no compiler checks.

mod containers;
mod dependencies;
mod docs;
mod imports;
mod systemd;
mod words;
