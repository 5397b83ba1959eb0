//! Scripts and styles, at addresses that change with their content so that they may be kept for
//! ever.

use std::borrow::Cow;
use std::sync::LazyLock;

use rust_embed::RustEmbed;
use uuid::Uuid;

/// Our own files: embedded in a release, read from disk in a debug build.
#[derive(RustEmbed)]
#[folder = "templates/assets"]
#[include = "*.css"]
#[include = "*.js"]
#[include = "*.svg"]
struct Files;

/// The chart library, brought here by `build.rs`.
const UPLOT_JS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/uPlot.iife.min.js"));
const UPLOT_CSS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/uPlot.min.css"));

/// A file to serve.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Its content.
    pub bytes: Cow<'static, [u8]>,
    /// Its media type, with the charset.
    pub content_type: &'static str,
    /// A hash of its content, without quotes.
    pub etag: String,
}

/// The file at `path` below the assets' address, with or without the version that `version`
/// puts before it; `None` if there is no such file.
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

/// Changes with the content of any file. Pages ask for `assets/{version}/{name}`, so that scripts
/// find each other beside them.
pub(super) fn version() -> String {
    static RELEASED: LazyLock<String> = LazyLock::new(hash_of_all);
    // In a debug build the files are those on disk, which change while the program runs.
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
    // A hash of hashes: where one file ends and the next begins counts.
    let each = contents.into_iter().map(|bytes| Uuid::new_v5(&Uuid::nil(), bytes));
    let all: Vec<u8> = each.flat_map(Uuid::into_bytes).collect();
    Uuid::new_v5(&Uuid::nil(), &all).simple().to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_with_and_without_their_version_and_nothing_else_is() {
        let plain = get("live.js").unwrap();
        let versioned = get(&format!("{}/live.js", version())).unwrap();
        assert_eq!((plain.etag, plain.bytes), (versioned.etag, versioned.bytes));
        assert_eq!(get("uplot.css").unwrap().content_type, "text/css; charset=utf-8");
        for missing in ["", "nothing.js", "../pages/live.hbs", "live.hbs", "../../Cargo.toml", "a/../../build.rs"] {
            assert!(get(missing).is_none(), "{missing}");
        }
    }

    #[test]
    fn no_asset_asks_another_host_for_anything() {
        for name in Files::iter().map(|n| n.to_string()).chain(["uplot.css".to_owned()]) {
            let text = String::from_utf8(content(&name).unwrap().into_owned()).unwrap();
            for bad in ["http://", "https://", "@import", "url(//"] {
                let text = text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(bad), "{name} holds {bad}");
            }
        }
    }
}
