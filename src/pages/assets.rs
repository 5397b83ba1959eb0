//! Scripts and styles, served at URLs that contain a hash of their content so that browsers may cache them forever.

use std::borrow::Cow;
use std::sync::LazyLock;

use rust_embed::RustEmbed;
use uuid::Uuid;

/// Own files: embedded in a release build, read from disk in a debug build.
#[derive(RustEmbed)]
#[folder = "templates/assets"]
#[include = "*.css"]
#[include = "*.js"]
#[include = "*.svg"]
struct Files;

/// Chart library, copied from node_modules by `build.rs`.
const UPLOT_JS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/uPlot.iife.min.js"));
const UPLOT_CSS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/uPlot.min.css"));

/// A file to serve.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Content.
    pub bytes: Cow<'static, [u8]>,
    /// Media type with charset.
    pub content_type: &'static str,
    /// Hash of the content, without quotes.
    pub etag: String,
}

/// Returns the file at `path` below the assets URL, with or without the version prefix; `None` if there is no such
/// file.
#[must_use]
pub fn get(path: &str) -> Option<Asset> {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let bytes = content(name)?;
    let content_type = match name.rsplit_once('.')?.1 {
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => return None,
    };
    let etag = hash([bytes.as_ref()]);
    Some(Asset { bytes, content_type, etag })
}

/// Hash over all files. Pages load `assets/{version}/{name}`, so that relative imports between scripts resolve to the
/// same version.
pub(super) fn version() -> String {
    static RELEASED: LazyLock<String> = LazyLock::new(hash_of_all);
    // In a debug build the files are read from disk and may change while the program runs.
    if cfg!(debug_assertions) { hash_of_all() } else { RELEASED.clone() }
}

fn hash_of_all() -> String {
    let mut names: Vec<_> = Files::iter().collect();
    names.sort();
    let files: Vec<_> = names.iter().filter_map(|name| content(name)).collect();
    hash(files.iter().map(AsRef::as_ref).chain([UPLOT_JS, UPLOT_CSS]))
}

fn content(name: &str) -> Option<Cow<'static, [u8]>> {
    match name {
        "uplot.js" => Some(UPLOT_JS.into()),
        "uplot.css" => Some(UPLOT_CSS.into()),
        name => Files::get(name).map(|file| file.data),
    }
}

fn hash<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> String {
    // Hash the files separately, so that moving bytes between files changes the result.
    let each = contents.into_iter().map(|bytes| Uuid::new_v5(&Uuid::nil(), bytes));
    let all: Vec<u8> = each.flat_map(Uuid::into_bytes).collect();
    Uuid::new_v5(&Uuid::nil(), &all).simple().to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_with_and_without_version() {
        let plain = get("live.js").unwrap();
        let versioned = get(&format!("{}/live.js", version())).unwrap();
        assert_eq!((plain.etag, plain.bytes), (versioned.etag, versioned.bytes));
        assert_eq!(get("uplot.css").unwrap().content_type, "text/css; charset=utf-8");
        for missing in ["", "nothing.js", "../pages/live.hbs", "live.hbs", "../../Cargo.toml", "a/../../build.rs"] {
            assert!(get(missing).is_none(), "{missing}");
        }
    }

    #[test]
    fn no_asset_references_another_host() {
        for name in Files::iter().map(|n| n.to_string()).chain(["uplot.css".to_owned()]) {
            let text = String::from_utf8(content(&name).unwrap().into_owned()).unwrap();
            for bad in ["http://", "https://", "@import", "url(//"] {
                let text = text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(bad), "{name} holds {bad}");
            }
        }
    }
}
