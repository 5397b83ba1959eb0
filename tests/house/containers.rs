//! What the image and the compose file promise, read from the files themselves.

use std::fs;

use serde_json::Value;

fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/docker/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&file("compose.yaml")).unwrap()
}

#[test]
fn no_service_has_a_password_of_its_own_and_a_missing_one_is_named() {
    let text = file("compose.yaml");
    for secret in ["REDIS_PASSWORD", "POSTGRES_PASSWORD", "MONITOR_ADMIN_TOKEN"] {
        let used = text.matches(&format!("${{{secret}")).count();
        let demanded = text.matches(&format!("${{{secret}:?write a ")).count();
        assert!(used > 0 && used == demanded, "{secret} is used {used} times and demanded {demanded} times");
        let example = file("example.env");
        assert!(example.lines().any(|line| line == format!("{secret}=")), "{secret} has a value in example.env");
    }
}

#[test]
fn every_port_is_on_loopback_and_nothing_starts_before_what_it_needs_is_healthy() {
    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap() {
        for port in service["ports"].as_array().unwrap() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
    }
    for needed in ["redis", "postgres"] {
        let condition = &compose["services"]["monitor"]["depends_on"][needed]["condition"];
        assert_eq!(condition, "service_healthy", "{needed}");
        assert_eq!(compose["services"][needed]["healthcheck"]["start_period"], "60s", "{needed}");
    }
    assert_eq!(compose["services"]["monitor"]["read_only"], true);
}

#[test]
fn redis_keeps_its_data_and_throws_nothing_away() {
    let config = compose()["configs"]["redis"]["content"].as_str().unwrap().to_owned();
    let lines: Vec<&str> = config.lines().collect();
    assert!(lines.contains(&"appendonly yes") && lines.contains(&"maxmemory-policy noeviction"), "{config}");
    assert!(lines.iter().any(|line| line.starts_with("requirepass ")), "{config}");
}

/// The compose file's check as a container would run it, with a `redis-cli` that says `answer`.
fn redis_is_healthy(answer: &str) -> bool {
    let folder = std::env::temp_dir().join(format!("redis-cli-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&folder).unwrap();
    let cli = folder.join("redis-cli");
    fs::write(&cli, format!("#!/bin/sh\nprintf '%s\\n' '{answer}'\n")).unwrap();
    fs::set_permissions(&cli, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let compose = compose();
    let test = compose["services"]["redis"]["healthcheck"]["test"].as_array().unwrap().clone();
    assert_eq!(test[0], "CMD-SHELL");
    let command = test[1].as_str().unwrap().replace("$$", "$");
    let path = format!("{}:/usr/bin:/bin", folder.display());
    let status = std::process::Command::new("/bin/sh").args(["-c", &command]).env("PATH", path).status().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    status.success()
}

#[test]
fn redis_is_healthy_when_it_says_pong_and_nothing_else() {
    assert!(redis_is_healthy("PONG"));
    for answer in [
        "",
        "NOAUTH Authentication required.",
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down",
        "PONG but not quite",
    ] {
        assert!(!redis_is_healthy(answer), "{answer}");
    }
}

#[test]
fn the_image_runs_as_nobody_special_and_asks_its_own_program_how_it_is() {
    let dockerfile = file("Dockerfile");
    let last_stage = dockerfile.rsplit("\nFROM ").next().unwrap();
    for line in ["USER 10001:10001", "ENTRYPOINT [\"shepherd-monitor\"]"] {
        assert!(last_stage.lines().any(|l| l == line), "{line}");
    }
    assert!(last_stage.contains("HEALTHCHECK") && last_stage.contains("\"shepherd-monitor\", \"health\""));
    // Dependencies are compiled before the sources come.
    let (before, _) = dockerfile.split_once("\nCOPY . .").unwrap();
    assert!(before.contains("cargo build --release --locked --bin shepherd-monitor"));
}

#[test]
fn the_image_makes_an_empty_file_of_every_target_that_the_manifest_names() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let dockerfile = file("Dockerfile");
    for (section, folder) in [("[[bench]]", "benches"), ("[[example]]", "examples")] {
        for target in manifest.split(section).skip(1) {
            let name = target.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"');
            assert!(dockerfile.contains(&format!("{folder}/{name}")), "{folder}/{name}");
        }
    }
    for target in manifest.split("[[test]]").skip(1) {
        let path = target.lines().find_map(|line| line.strip_prefix("path = ")).unwrap().trim_matches('"');
        assert!(dockerfile.contains(path.strip_suffix(".rs").unwrap()), "{path}");
    }
}
