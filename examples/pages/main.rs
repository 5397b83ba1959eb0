//! Writes the live page in all its states to files, for visual checks.
//!
//! ```text
//! cargo run --example pages -- target/pages
//! python3 -m http.server --bind 127.0.0.1 --directory target/pages 8000
//! ```
//!
//! Then open `http://127.0.0.1:8000/`: a list of the states, each a complete page with its scripts. There is no server
//! behind them, so with JavaScript the connection shows as lost.

mod states;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shepherd_monitor::pages::{Environment, LiveView, Pages, Visitor, assets};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "target/pages".to_owned()));
    let now = chrono::Utc::now().timestamp() as f64;
    let pages = Arc::new(Pages::below("")?);
    fs::create_dir_all(&folder)?;
    let mut list = String::from("<!doctype html><title>Pages</title><ul>");
    for (name, snapshot) in states::all(now) {
        let environment = Environment {
            maturity: Some("demo".to_owned()),
            url: Some("http://127.0.0.1:5440".to_owned()),
            observe_only: false,
            visitor: Visitor::default(),
        };
        let mut view = LiveView::new(Arc::clone(&pages), environment);
        if let Some(snapshot) = snapshot {
            view.update(&Arc::new(snapshot))?;
        }
        let html = view.page(&Visitor::default())?;
        copy_assets(&html, &folder)?;
        fs::write(folder.join(format!("{name}.html")), html)?;
        list.push_str(&format!("<li><a href=\"{name}.html\">{name}</a>"));
    }
    fs::write(folder.join("index.html"), list)?;
    println!("{}", folder.display());
    Ok(())
}

/// Copies the assets to the paths that the page references.
fn copy_assets(html: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    for address in
        html.split('"').filter_map(|word| word.strip_prefix("/assets/")).filter(|address| address.contains('/'))
    {
        let asset = assets::get(address).ok_or_else(|| format!("the page asks for {address}, which is not there"))?;
        let path = folder.join("assets").join(address);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, asset.bytes)?;
    }
    Ok(())
}
