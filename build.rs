//! Brings the chart library of the live page to where `pages::assets` embeds it from.
//!
//! It is an npm package, locked by `package-lock.json` and not kept in this repository.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// The two files of uPlot that are served.
const FILES: [&str; 2] = ["uPlot.iife.min.js", "uPlot.min.css"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    // The worker library alone has no pages.
    if env::var_os("CARGO_FEATURE_MONITOR").is_none() {
        return Ok(());
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let dist = Path::new("node_modules").join("uplot").join("dist");
    for file in FILES {
        let from = dist.join(file);
        println!("cargo::rerun-if-changed={}", from.display());
        if let Err(error) = fs::copy(root.join(&from), out.join(file)) {
            println!(
                "cargo::error=the live page's chart library is missing: {} cannot be read ({error}). \
                 Run `npm ci` in the project's folder (Debian: `apt-get install npm` first), then build again.",
                from.display()
            );
            return Ok(());
        }
    }
    Ok(())
}
