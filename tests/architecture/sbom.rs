//! The bill of materials and the digests of images: complete, valid, reproducible.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

use super::docs::root;

fn sbom() -> String {
    let output = Command::new(root().join("scripts/sbom")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns `pkg:cargo/name@version` of every crate that is compiled for the program.
fn compiled_crates() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates = String::from_utf8(output.stdout).unwrap();
    let mut crates = crates.lines().filter_map(|line| line.split_once(" v"));
    assert_eq!(crates.next().unwrap().0, env!("CARGO_PKG_NAME"));
    crates
        .map(|(name, version)| format!("pkg:cargo/{name}@{}", version.split(' ').next().unwrap_or_default()))
        .collect()
}

/// The fields that the schema of CycloneDX 1.6 requires, and the forms of their values.
#[test]
fn bill_of_materials_is_valid_complete_and_reproducible() {
    let text = sbom();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["bomFormat"], &document["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    assert_eq!(document["version"], 1);
    let serial = document["serialNumber"].as_str().unwrap().strip_prefix("urn:uuid:").unwrap();
    uuid::Uuid::parse_str(serial).unwrap();
    let program = &document["metadata"]["component"];
    assert_eq!((&program["type"], &program["name"]), (&"application".into(), &env!("CARGO_PKG_NAME").into()));

    let mut references = BTreeSet::from([program["bom-ref"].as_str().unwrap().to_owned()]);
    for component in document["components"].as_array().unwrap() {
        let field = |name: &str| component[name].as_str().unwrap_or_else(|| panic!("no {name}: {component}"));
        assert_eq!(field("type"), "library");
        assert!(["required", "excluded"].contains(&field("scope")), "{component}");
        assert_eq!(field("bom-ref"), field("purl"));
        assert!(field("purl").ends_with(&format!("@{}", field("version"))) && !field("name").is_empty());
        let hash = &component["hashes"][0];
        let length = if hash["alg"] == "SHA-256" { 64 } else { 128 };
        let content = hash["content"].as_str().unwrap();
        assert!(content.len() == length && content.chars().all(|c| c.is_ascii_hexdigit()), "{component}");
        let licence = component["licenses"][0]["expression"].as_str().unwrap();
        assert!(!licence.is_empty() && !licence.contains('/'), "{component}");
        assert!(references.insert(field("bom-ref").to_owned()), "twice: {component}");
    }
    let mut described = BTreeSet::new();
    for dependency in document["dependencies"].as_array().unwrap() {
        assert!(described.insert(dependency["ref"].as_str().unwrap().to_owned()));
        for on in dependency["dependsOn"].as_array().unwrap() {
            assert!(references.contains(on.as_str().unwrap()), "{on} is no component");
        }
    }
    assert_eq!(described, references);

    let crates: BTreeSet<String> = references.iter().filter(|r| r.starts_with("pkg:cargo/")).cloned().collect();
    let compiled = compiled_crates();
    assert!(compiled.len() > 100);
    assert_eq!(compiled.difference(&crates).next(), None, "compiled, and not in the bill");
    assert!(references.iter().any(|reference| reference.starts_with("pkg:npm/uplot@")));
    assert!(!references.iter().any(|reference| reference.contains("/insta@")), "only tests use it");
    assert_eq!(sbom(), text, "it depends on the lock files only");
}

#[test]
fn images_are_pinned_by_digest_and_pinned_anew() {
    let folder = Reaper::start("pin-images", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    let copy = folder.folder().join("copy");
    let files =
        ["scripts/pin-images", "docker/Dockerfile", "docker/compose.yaml", "deploy/helm/shepherd-monitor/values.yaml"];
    for file in files {
        fs::create_dir_all(copy.join(file).parent().unwrap()).unwrap();
        fs::copy(root().join(file), copy.join(file)).unwrap();
    }
    let docker = folder.folder().join("docker");
    let pin = |digest: &str| {
        let digest = format!("sha256:{}", digest.repeat(64));
        fs::write(&docker, format!("#!/bin/sh\necho {digest}\n")).unwrap();
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.folder().display(), std::env::var("PATH").unwrap());
        let output = Command::new(copy.join("scripts/pin-images")).env("PATH", path).output().unwrap();
        (output.status.success(), digest)
    };
    for digest in ["a", "b"] {
        let (pinned, digest) = pin(digest);
        assert!(pinned);
        let mut images = 0;
        for file in &files[1..] {
            for line in fs::read_to_string(copy.join(file)).unwrap().lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                if let ["FROM" | "image:", image, ..] = words.as_slice()
                    && image.contains(':')
                {
                    let (name, rest) = image.split_once('@').unwrap_or_else(|| panic!("{file}: {line}"));
                    assert!(name.contains(':') && rest == digest, "{file}: {line}");
                    images += 1;
                }
            }
        }
        assert_eq!(images, 7, "three stages, two servers in compose, two in the chart");
    }
    assert!(!pin("latest").0, "an answer that is no digest");
}
