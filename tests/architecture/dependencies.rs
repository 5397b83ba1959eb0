//! Licences, sources and banned crates of all dependencies, by the lists in deny.toml. Crates of optional features are
//! downloaded if they are missing.

use std::fs;
use std::process::Command;

use serde_json::Value;

/// Source of all dependencies in Cargo.lock.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Returns a list of deny.toml.
fn list(name: &str) -> Vec<String> {
    let text = file("deny.toml");
    let list = text.split(&format!("\n{name} = [\n")).nth(1).unwrap().split("\n]").next().unwrap();
    let quoted = |line: &str| line.trim().strip_prefix('"')?.split('"').next().map(str::to_owned);
    list.lines().filter_map(quoted).collect()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--all-features",
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

fn is_permitted(licences: &[String], expression: &str) -> bool {
    let clean = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let alternatives: Vec<&str> = clean.split(" OR ").collect();
    let all_of = |alternative: &&str| {
        alternative.split(" AND ").all(|licence| licences.iter().any(|permitted| permitted == licence.trim()))
    };
    if expression.contains(" AND ") && expression.contains('(') {
        // (A OR B) AND C: every part needs a permitted alternative.
        return expression.split(" AND ").all(|part| is_permitted(licences, part.trim_matches(['(', ')', ' '])));
    }
    alternatives.iter().any(all_of)
}

#[test]
fn every_dependency_has_a_permitted_licence() {
    let licences = list("allow");
    let is_permitted = |expression: &str| is_permitted(&licences, expression);
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
    let (packages, banned) = (packages(), list("deny"));
    assert!(banned.len() > 5, "{banned:?}");
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        assert!(!banned.iter().any(|banned| banned == name), "{name} came in");
        if let Some(source) = package["source"].as_str() {
            assert_eq!(source, CRATES_IO, "{name}");
        } else {
            assert_eq!(name, env!("CARGO_PKG_NAME"));
        }
    }
    assert!(packages.len() > 100, "metadata is incomplete");
}

/// Returns the packages of a Cargo.lock that do not come from the registry with a checksum.
fn unverified(lock: &str) -> Vec<String> {
    let packages = lock.split("[[package]]").skip(1);
    let field = |package: &str, name: &str| -> Option<String> {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let is_verified = |package: &&str| {
        let checksum = field(package, "checksum").unwrap_or_default();
        field(package, "source").is_some_and(|source| source == CRATES_IO)
            && checksum.len() == 64
            && checksum.chars().all(|c| c.is_ascii_hexdigit())
    };
    packages.filter(|package| !is_verified(package)).filter_map(|package| field(package, "name")).collect()
}

#[test]
fn lock_files_pin_every_dependency_with_a_checksum_and_name_no_host() {
    let lock = file("Cargo.lock");
    assert_eq!(unverified(&lock), [env!("CARGO_PKG_NAME")]);
    let serde = lock.split("[[package]]").find(|package| package.contains("name = \"serde\"")).unwrap();
    for (from, to) in [("checksum", "check"), ("rust-lang", "someone"), ("registry+", "git+")] {
        let changed = lock.replace(serde, &serde.replace(from, to));
        assert!(unverified(&changed).contains(&"serde".to_owned()), "{to} goes unnoticed");
    }
    let npm: Value = serde_json::from_str(&file("package-lock.json")).unwrap();
    let packages = npm["packages"].as_object().unwrap();
    assert!(packages.len() > 1);
    for (path, package) in packages.iter().filter(|(path, _)| !path.is_empty()) {
        assert!(package["integrity"].as_str().is_some_and(|hash| hash.starts_with("sha512-")), "{path}");
        assert!(package["resolved"].is_null(), "{path}");
    }
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
