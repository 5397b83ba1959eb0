//! Module dependencies: the diagram in ARCHITECTURE.md, checked against the `use` lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Top-level modules of `src/`, and the modules that each may use.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("contract", &[]),
    ("fleet", &["contract"]),
    ("history", &["contract", "fleet"]),
    ("alerting", &["contract", "fleet"]),
    ("access", &["printable"]),
    ("exposition", &["access", "alerting", "contract", "fleet"]),
    ("pages", &["access", "alerting", "contract", "fleet", "printable"]),
    ("redis_streams", &["contract", "environment", "fleet", "failpoint", "tcp", "tls"]),
    (
        "postgres",
        &[
            "access",
            "alerting",
            "contract",
            "environment",
            "fleet",
            "history",
            "failpoint",
            "regular_file",
            "tcp",
            "tls",
        ],
    ),
    ("operator", &["contract", "fleet", "postgres", "redis_streams", "failpoint"]),
    ("delivery", &["alerting", "error_chain", "http_client", "printable", "settings", "tcp", "tls"]),
    ("identity_provider", &["access", "error_chain", "http_client", "printable", "tls"]),
    ("error_chain", &["printable", "tls"]),
    ("http_client", &["tcp", "tls"]),
    ("simulation", &["actors", "alerting", "contract", "delivery", "fleet", "history", "postgres"]),
    ("spool", &["regular_file"]),
    ("tcp", &[]),
    ("regular_file", &[]),
    ("failpoint", &[]),
    (
        "settings",
        &[
            "access",
            "alerting",
            "contract",
            "environment",
            "fleet",
            "history",
            "postgres",
            "redis_streams",
            "tcp",
            "tls",
            "traces",
        ],
    ),
    ("printable", &[]),
    ("telemetry", &["printable", "traces"]),
    ("traces", &["environment"]),
    ("environment", &[]),
    ("tls", &["environment"]),
    (
        "actors",
        &[
            "alerting",
            "contract",
            "delivery",
            "exposition",
            "failpoint",
            "fleet",
            "history",
            "operator",
            "pages",
            "postgres",
            "redis_streams",
            "regular_file",
            "settings",
            "spool",
        ],
    ),
    (
        "web",
        &[
            "access",
            "actors",
            "alerting",
            "contract",
            "exposition",
            "fleet",
            "history",
            "identity_provider",
            "operator",
            "pages",
            "postgres",
            "redis_streams",
            "traces",
        ],
    ),
    ("worker", &["contract", "environment", "redis_streams", "traces"]),
    (
        "doctor",
        &[
            "alerting",
            "contract",
            "fleet",
            "identity_provider",
            "postgres",
            "printable",
            "redis_streams",
            "regular_file",
            "settings",
            "tcp",
            "tls",
        ],
    ),
    ("demo", &["contract", "fleet", "postgres", "redis_streams", "worker"]),
    (
        "application",
        &[
            "actors",
            "alerting",
            "contract",
            "delivery",
            "exposition",
            "fleet",
            "identity_provider",
            "pages",
            "postgres",
            "redis_streams",
            "settings",
            "spool",
            "web",
        ],
    ),
    (
        "commands",
        &[
            "access",
            "alerting",
            "application",
            "contract",
            "delivery",
            "demo",
            "doctor",
            "environment",
            "fleet",
            "history",
            "operator",
            "postgres",
            "printable",
            "redis_streams",
            "regular_file",
            "settings",
            "telemetry",
            "worker",
        ],
    ),
    ("main", &["commands"]),
];

/// Crates that only some modules may use, so that they can be replaced there.
const KEPT_TO: [(&str, &[&str]); 8] = [
    ("actix", &["actors", "web", "application"]),
    ("actix_web", &["web", "application"]),
    ("actix_web_actors", &["web"]),
    ("diesel", &["postgres", "worker"]),
    ("opentelemetry", &["traces"]),
    ("opentelemetry_sdk", &["traces"]),
    ("opentelemetry_otlp", &["traces"]),
    ("tracing_opentelemetry", &["traces"]),
];

#[test]
fn modules_import_only_permitted_modules() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, room, text) in sources() {
        let may =
            allowed.get(room.as_str()).unwrap_or_else(|| panic!("{room} is not in the picture: add it to MAY_IMPORT"));
        for known in rooms_named_in(&text) {
            if known != room && !may.contains(&known.as_str()) {
                wrong.push(format!("{} ({room}) knows {known}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn replaceable_crates_are_used_in_their_modules_only() {
    let mut wrong = Vec::new();
    for (file, room, text) in sources() {
        for (name, rooms) in KEPT_TO {
            let named = [format!("use {name}::"), format!(" {name}::"), format!("({name}::"), format!("<{name}::")];
            if named.iter().any(|n| text.contains(n.as_str())) && !rooms.contains(&room.as_str()) {
                wrong.push(format!("{} ({room}) knows {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Standard output and standard error escape what comes from servers, files and arguments in two places.
#[test]
fn only_commands_output_and_telemetry_print() {
    const PRINTS: [&str; 8] =
        ["print!(", "println!(", "eprint!(", "eprintln!(", "stdout()", "stderr()", "io::stderr)", ".get_matches("];
    let mut wrong = Vec::new();
    for (file, room, text) in sources() {
        // The simulation is part of the tests.
        if ["telemetry", "simulation"].contains(&room.as_str()) || file.ends_with("commands/output.rs") {
            continue;
        }
        wrong.extend(
            PRINTS.iter().filter(|print| text.contains(**print)).map(|print| format!("{}: {print}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_supervisor_uses_other_actors() {
    let messages = fs::read_to_string("src/actors/messages.rs").unwrap();
    let roles = messages.split("pub const ALL").nth(1).unwrap().split("];").next().unwrap();
    let actors: Vec<String> =
        roles.split("Self::").skip(1).map(|role| snake(role.split(',').next().unwrap().trim())).collect();
    assert!(actors.len() > 10 && actors.contains(&"alert_evaluator".to_owned()), "{actors:?}");
    for (file, room, text) in sources() {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        if room != "actors" || ["supervisor", "mod"].contains(&stem) {
            continue;
        }
        for actor in actors.iter().filter(|actor| *actor != stem) {
            assert!(!text.contains(&format!("super::{actor}")), "{stem} names {actor}");
        }
    }
}

/// The file name of `StreamPoller`.
fn snake(name: &str) -> String {
    let upper = |(at, c): (usize, char)| {
        if c.is_uppercase() && at > 0 { format!("_{}", c.to_lowercase()) } else { c.to_lowercase().to_string() }
    };
    name.chars().enumerate().map(upper).collect()
}

#[test]
fn forbidden_imports_are_detected() {
    let text =
        "use crate::{postgres, redis_streams};\nuse crate::web::{AppState, routes};\nfn f() { crate::demo::run() }";
    let rooms = ["postgres", "redis_streams", "web", "demo"].map(str::to_owned);
    assert_eq!(rooms_named_in(text), rooms.into());
}

/// Returns whether a module is only compiled for tests.
fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests" || stem == "properties")
}

/// Returns every source file with its module, and its text without comments and tests.
fn sources() -> Vec<(PathBuf, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&path) {
                files.push(path);
            }
        }
    }
    files
        .into_iter()
        .map(|file| {
            let first = file.strip_prefix(&src).unwrap().components().next().unwrap();
            let room = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (file, room, code.join("\n"))
        })
        .filter(|(_, room, _)| room != "lib")
        .collect()
}

/// Returns the modules in `crate::…` or (in main) `shepherd_monitor::…` paths.
fn rooms_named_in(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for start in ["crate::", "shepherd_monitor::"] {
        for (at, _) in text.match_indices(start) {
            let rest = &text[at + start.len()..];
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap().split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if name.chars().next().is_some_and(char::is_lowercase) {
                    rooms.insert(name);
                }
            }
        }
    }
    rooms
}
