//! Licences, sources and banned crates of all dependencies. Works offline.

use std::process::Command;

use serde_json::Value;

/// Licences that permit linking into an MIT program and redistribution.
const LICENCES: [&str; 13] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unlicense",
    "BSL-1.0",
    "Unicode-3.0",
    "CDLA-Permissive-2.0",
];

/// Crates that must not be dependencies, even indirect ones: C libraries and build tools that the target machine would need.
const STAY_OUT: [&str; 6] = ["openssl-sys", "aws-lc-sys", "pq-sys", "cmake", "native-tls", "serde_yaml"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn is_permitted(expression: &str) -> bool {
    let clean = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let alternatives: Vec<&str> = clean.split(" OR ").collect();
    let all_of = |alternative: &&str| alternative.split(" AND ").all(|licence| LICENCES.contains(&licence.trim()));
    if expression.contains(" AND ") && expression.contains('(') {
        // (A OR B) AND C: every part needs a permitted alternative.
        return expression.split(" AND ").all(|part| is_permitted(part.trim_matches(['(', ')', ' '])));
    }
    alternatives.iter().any(all_of)
}

#[test]
fn every_dependency_has_a_permitted_licence() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(is_permitted))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        is_permitted("(MIT OR Apache-2.0) AND Unicode-3.0")
            && !is_permitted("GPL-3.0")
            && !is_permitted("MIT AND GPL-3.0")
    );
}

#[test]
fn dependencies_come_from_the_registry_and_none_is_banned() {
    let packages = packages();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        assert!(!STAY_OUT.contains(&name), "{name} came in");
        if let Some(source) = package["source"].as_str() {
            assert!(source.starts_with("registry+"), "{name} comes from {source}");
        } else {
            assert_eq!(name, env!("CARGO_PKG_NAME"));
        }
    }
    assert!(packages.len() > 100, "metadata is incomplete");
}

#[test]
fn worker_library_depends_on_no_web_server_or_database_client() {
    let crates_with = |features: &str| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
            .args(["--no-default-features", "--features", features])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let list = String::from_utf8(output.stdout).unwrap();
        let heavy = ["actix", "diesel", "tokio-postgres", "handlebars", "hyper", "clap"];
        list.lines()
            .filter(|line| heavy.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(crates_with("worker"), Vec::<String>::new());
    assert_eq!(crates_with("worker-shepherd"), Vec::<String>::new());
    // The check detects them where they are used.
    assert!(crates_with("worker-database").iter().any(|line| line.starts_with("diesel")));
}
