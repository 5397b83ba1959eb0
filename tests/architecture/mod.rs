//! Rules of the project that the compiler does not check.

mod containers;
mod dependencies;
mod docs;
mod imports;
mod sbom;
mod systemd;
mod words;
