//! The systemd unit: checked in the file, and with systemd where it is installed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/shepherd-monitor.service");

/// Returns each directive with its values, in order.
fn directives(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut directives: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '['])) {
        if let Some((name, value)) = line.split_once('=') {
            directives.entry(name.to_owned()).or_default().push(value.to_owned());
        }
    }
    directives
}

#[test]
fn service_may_write_only_to_its_own_folder() {
    let unit = directives(&fs::read_to_string(UNIT).unwrap());
    for (name, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("CapabilityBoundingSet", ""),
        ("MemoryDenyWriteExecute", "yes"),
        ("StateDirectory", "shepherd-monitor"),
        ("Restart", "on-failure"),
        ("WantedBy", "multi-user.target"),
    ] {
        assert_eq!(unit.get(name).map(|values| values.join(",")).as_deref(), Some(value), "{name}");
    }
    assert!(!unit.contains_key("ReadWritePaths"));
    // The spool is in the only writable folder.
    assert!(unit["Environment"].contains(&"MONITOR_SPOOL_DIR=%S/shepherd-monitor".to_owned()));
}

#[test]
fn unit_contains_no_secrets_and_only_existing_settings() {
    let text = fs::read_to_string(UNIT).unwrap();
    // Including those in comments.
    let lines =
        text.lines().map(|line| line.trim_start_matches('#')).filter_map(|line| line.strip_prefix("Environment="));
    let pairs: Vec<(&str, &str)> =
        lines.flat_map(str::split_whitespace).map(|pair| pair.split_once('=').unwrap()).collect();
    assert!(pairs.len() > 2, "{pairs:?}");
    for (name, _) in pairs {
        let entry = shepherd_monitor::settings::TABLE.iter().find(|entry| entry.env == name);
        assert!(entry.is_some_and(|entry| !entry.secret), "{name}");
    }
}

/// Where systemd is not installed, only the tests above run, and this one prints a note.
#[test]
fn systemd_accepts_the_unit() {
    let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).output();
    if analyze(&["--version"]).is_err() {
        eprintln!("NOT CHECKED: systemd-analyze is not installed; of the unit only its text was read");
        return;
    }
    let folder = std::env::temp_dir().join(format!("unit-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&folder).unwrap();
    let unit = folder.join("shepherd-monitor.service").display().to_string();
    let text = fs::read_to_string(UNIT).unwrap();
    // As installed: with the program and its man page.
    let installed = text
        .replace("/usr/local/bin/shepherd-monitor", env!("CARGO_BIN_EXE_shepherd-monitor"))
        .replace("Documentation=man:", "#");
    let judged = |text: &str| {
        fs::write(&unit, text).unwrap();
        let verified = analyze(&["verify", &unit]).unwrap();
        // 20 is an exposure of 2.0 of 10.
        let security = analyze(&["security", "--offline=yes", "--threshold=20", &unit]).unwrap();
        (String::from_utf8(verified.stderr).unwrap(), verified.status.success(), security.status.success())
    };
    assert_eq!(judged(&installed), (String::new(), true, true));
    // It detects errors, and an unrestricted service.
    assert!(!judged(&installed.replace("ProtectSystem=strict", "ProtectSystme=strict")).0.is_empty());
    let open: Vec<&str> =
        installed.lines().filter(|line| !line.starts_with("Protect") && !line.starts_with("Sys")).collect();
    assert!(!judged(&open.join("\n").replace("DynamicUser=yes", "")).2);
    fs::remove_dir_all(&folder).unwrap();
}
