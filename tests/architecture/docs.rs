//! Everything that README.md and docs/ refer to exists: files, headings, settings, commands with their flags, routes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use shepherd_monitor::commands::command;
use shepherd_monitor::settings::{TABLE, document};
use shepherd_monitor::web::access::Verb;
use shepherd_monitor::web::routes::ROUTES;
use shepherd_monitor::worker::SETTINGS;

pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns each document with its path.
pub(super) fn texts() -> Vec<(PathBuf, String)> {
    let mut files: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(PathBuf::from).into();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            files.push(Path::new("docs").join(name));
        }
    }
    assert!(files.len() > 10, "{files:?}");
    files.into_iter().map(|file| (file.clone(), fs::read_to_string(root().join(&file)).unwrap())).collect()
}

/// Splits a document into prose, without code blocks, and code: lines of code blocks and inline code.
pub(super) fn parts(text: &str) -> (String, Vec<String>) {
    let (mut prose, mut code, mut fenced) = (String::new(), Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            code.push(line.to_owned());
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    // Inline code may continue on the next line.
    for paragraph in prose.split("\n\n") {
        let spans = paragraph.split('`').skip(1).step_by(2);
        code.extend(spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    (prose, code)
}

/// Converts a heading to the anchor that GitHub generates.
fn anchor(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    heading.trim().to_lowercase().chars().filter(|c| kept(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let (prose, _) = parts(text);
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    headings
        .map(|heading| {
            let anchor = anchor(heading);
            let count = seen.entry(anchor.clone()).or_default();
            *count += 1;
            if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
        })
        .collect()
}

/// Returns the broken links of a document.
fn broken_links(file: &Path, text: &str) -> Vec<String> {
    let (prose, _) = parts(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    local
        .filter(|target| {
            let (path, anchor) = target.split_once('#').map_or((*target, None), |(path, anchor)| (path, Some(anchor)));
            if path.is_empty() {
                return !anchors(text).contains(anchor.unwrap_or_default());
            }
            let there = root().join(file.parent().unwrap()).join(path);
            let has = |anchor: &str| fs::read_to_string(&there).is_ok_and(|text| anchors(&text).contains(anchor));
            !there.exists() || !anchor.is_none_or(has)
        })
        .map(str::to_owned)
        .collect()
}

/// Returns names with the prefix of a setting that are not settings.
fn unknown_settings(text: &str) -> BTreeSet<String> {
    let all: BTreeSet<&str> =
        TABLE.iter().map(|entry| entry.env).chain(SETTINGS.iter().map(|(name, ..)| *name)).collect();
    let kinds: BTreeSet<&str> = all.iter().filter_map(|name| name.split('_').next()).collect();
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let names =
        words.filter(|word| word.split_once('_').is_some_and(|(kind, rest)| kinds.contains(kind) && !rest.is_empty()));
    // Read by the OpenTelemetry crates.
    let foreign = ["OTEL_TRACES_", "OTEL_RESOURCE_", "OTEL_BSP_", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let is_ours = |name: &&str| !foreign.iter().any(|begin| name.starts_with(begin));
    names.filter(|name| !all.contains(name)).filter(is_ours).map(str::to_owned).collect()
}

/// Returns invocations of the program that its command line rejects.
fn unknown_calls(code: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in code {
        for call in line.split("shepherd-monitor ").skip(1) {
            let call = call.split(['|', '>', ';', '&', '#', '(']).next().unwrap();
            let words: Vec<&str> = call.split_whitespace().collect();
            let is_a_word =
                |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
            if words.first().is_some_and(is_a_word) && !understood(&command(), &words) {
                wrong.push(call.trim().to_owned());
            }
        }
    }
    wrong
}

fn understood(command: &Command, words: &[&str]) -> bool {
    let Some((first, rest)) = words.split_first() else { return true };
    if let Some(subcommand) = command.get_subcommands().find(|known| known.get_name() == *first) {
        return understood(subcommand, rest);
    }
    let flags = words.iter().filter_map(|word| word.strip_prefix("--"));
    !command.is_subcommand_required_set()
        && flags
            .map(|flag| flag.split('=').next().unwrap())
            .all(|flag| flag == "help" || command.get_arguments().any(|known| known.get_long() == Some(flag)))
}

/// Returns a route without the names of its parameters.
fn shape(path: &str) -> String {
    let mut shape = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        shape.push_str(before);
        shape.push_str("{}");
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    shape + rest
}

/// Returns routes in the documents that the monitor does not serve.
fn unknown_routes(code: &[String]) -> Vec<String> {
    let ours: BTreeSet<String> =
        ROUTES.iter().filter_map(|route| route.path.split('/').nth(1)).filter(|s| !s.is_empty()).map(shape).collect();
    let named = code.iter().flat_map(|span| {
        // In a shell command: the path after the host.
        let behind_a_host = span.split("//").skip(1).filter_map(|rest| rest.find('/').map(|at| rest[at..].to_owned()));
        let (method, path) = match span.split_once(' ') {
            Some((method @ ("GET" | "POST"), path)) => (Some(method), path),
            _ => (None, span.as_str()),
        };
        let alone = path.starts_with('/').then(|| (method, path.to_owned()));
        alone.into_iter().chain(behind_a_host.map(|path| (None, path))).collect::<Vec<_>>()
    });
    named
        .filter_map(|(method, path)| {
            let path = path.split([' ', '?', '"', '\'', '`', '<', ')', ',']).next().unwrap().to_owned();
            let first = path.split('/').nth(1).unwrap_or_default();
            (method.is_some() || ours.contains(first)).then_some((method, path))
        })
        .filter(|(method, path)| {
            let verb_fits = |verb: Verb| method.is_none_or(|method| (method == "POST") == (verb == Verb::Change));
            // `/api/historical/…` matches every route with this prefix.
            let fits = |known: &str| match path.split_once('…') {
                Some((beginning, _)) => known.starts_with(&shape(beginning)),
                None => matches(&shape(known), &shape(path)),
            };
            !ROUTES.iter().any(|route| verb_fits(route.verb) && fits(route.path))
        })
        .map(|(method, path)| format!("{} {path}", method.unwrap_or_default()).trim().to_owned())
        .collect()
}

/// Returns whether a path matches this route; parameters match any segment.
fn matches(route: &str, path: &str) -> bool {
    match route.split_once("{}") {
        None => route == path,
        Some((before, after)) => path.strip_prefix(before).is_some_and(|rest| {
            let ends: Vec<usize> = rest.char_indices().map(|(at, _)| at).chain([rest.len()]).collect();
            ends.into_iter().any(|end| matches(after, &rest[end..]))
        }),
    }
}

#[test]
fn every_link_has_a_target() {
    let broken: Vec<String> = texts()
        .iter()
        .flat_map(|(file, text)| broken_links(file, text).into_iter().map(|link| format!("{}: {link}", file.display())))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_mentioned_setting_exists() {
    for (file, text) in texts() {
        let unknown = unknown_settings(&text);
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
    }
}

#[test]
fn every_mentioned_command_is_accepted() {
    for (file, text) in texts() {
        let unknown = unknown_calls(&parts(&text).1);
        assert!(unknown.is_empty(), "{}: {unknown:#?}", file.display());
    }
}

#[test]
fn every_mentioned_route_is_served() {
    for (file, text) in texts() {
        let unknown = unknown_routes(&parts(&text).1);
        assert!(unknown.is_empty(), "{}: {unknown:#?}", file.display());
    }
}

#[test]
fn the_checks_detect_errors() {
    let text = "# A b: `c`!\n[x](README.md) [y](nowhere.md) [z](#a-b-c) [w](#nothing) [v](docs/alerts.md#channels) \
                [u](docs/alerts.md#canals) <https://x>\n";
    assert_eq!(broken_links(Path::new("README.md"), text), ["nowhere.md", "#nothing", "docs/alerts.md#canals"]);

    assert_eq!(anchors("# A\n```\n# no heading\n```\n## A\n"), ["a", "a-1"].map(str::to_owned).into());

    let unknown =
        unknown_settings("MONITOR_PORT, MONITOR_PROT, TASK_LIMIT, SMTP_HOTS, MONITOR_*, CHAOS_SEED, HTTP and XADD");
    assert_eq!(unknown, ["MONITOR_PROT", "SMTP_HOTS"].map(str::to_owned).into());

    let (_, code) = parts(
        "`shepherd-monitor serve --port 1`, `shepherd-monitor sreve`, `shepherd-monitor serve --prot 1`; the \
         shepherd-monitor is none\n```sh\nshepherd-monitor dead-letters list --stream s | head\nshepherd-monitor \
         dead-letters lsit\nX=1 shepherd-monitor doctor --jason\n```\n",
    );
    let wrong = ["dead-letters lsit", "doctor --jason", "sreve", "serve --prot 1"];
    assert_eq!(unknown_calls(&code), wrong);

    let (_, code) = parts(
        "`GET /api/snapshot`, `POST /api/snapshot`, `GET /api/nothing`, `/admin/audit`, `/admin/odd`, `/var/lib/x`, \
         `GET /api/historical/…`, `GET /api/hysterical/…`, `GET /api/historical/events?type=&limit=`, \
         `/streams/{name}/messages`, `/streams/{name}`, `POST /api/streams/{name}/messages/preview`, \
         `POST /api/streams/{name}/messages/review`\n```sh\ncurl -s http://127.0.0.1:5440/api/snapshot\ncurl \
         http://127.0.0.1:5440/api/snapsot\n```\n",
    );
    let mut unknown = unknown_routes(&code);
    unknown.sort();
    let mut wrong = vec![
        "POST /api/snapshot",
        "GET /api/nothing",
        "/admin/odd",
        "GET /api/hysterical/…",
        "POST /api/streams/{name}/messages/review",
        "/api/snapsot",
    ];
    wrong.sort_unstable();
    assert_eq!(unknown, wrong);
}

#[test]
fn table_of_settings_matches_the_program() {
    let file = fs::read_to_string(root().join("docs/settings.md")).unwrap();
    assert!(
        file == document(SETTINGS),
        "docs/settings.md is not what the program reads; renew it: cargo run --locked -- settings > docs/settings.md"
    );
    for entry in TABLE.iter() {
        assert!(file.contains(&format!("| `{}`", entry.env)), "{}", entry.env);
    }
}
