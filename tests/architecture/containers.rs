//! Requirements of the image and the compose file, checked in the files. Each is also violated on purpose, to test the check.

use std::fs;

use serde_json::Value;

fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/docker/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&file("compose.yaml")).unwrap()
}

/// Returns the violated requirements.
fn broken(compose: &str, example: &str, dockerfile: &str) -> Vec<String> {
    let mut broken = passwords(compose, example);
    let services: Value = serde_saphyr::from_str(compose).unwrap();
    broken.extend(order_and_ports(&services));
    broken.extend(servers(&services));
    broken.extend(image(dockerfile));
    broken
}

fn passwords(compose: &str, example: &str) -> Vec<String> {
    let mut broken = Vec::new();
    for secret in ["REDIS_PASSWORD", "POSTGRES_PASSWORD", "MONITOR_ADMIN_TOKEN"] {
        let used = compose.matches(&format!("${{{secret}")).count();
        let demanded = compose.matches(&format!("${{{secret}:?write a ")).count();
        if used == 0 || used != demanded {
            broken.push(format!("{secret} is used {used} times and demanded {demanded} times"));
        }
        if !example.lines().any(|line| line == format!("{secret}=")) {
            broken.push(format!("{secret} has a value in example.env"));
        }
    }
    // A literal password.
    for line in compose.lines() {
        let value = line
            .trim()
            .split_once(": ")
            .filter(|(name, _)| name.ends_with("PASSWORD") || name.ends_with("TOKEN") || *name == "REDISCLI_AUTH");
        if value.is_some_and(|(_, value)| !value.starts_with("${")) {
            broken.push(format!("written down: {}", line.trim()));
        }
    }
    broken
}

fn order_and_ports(compose: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    let services = compose["services"].as_object().unwrap();
    for (name, service) in services {
        for port in service["ports"].as_array().into_iter().flatten() {
            if !port.as_str().unwrap().starts_with("127.0.0.1:") {
                broken.push(format!("{name} listens for everybody: {port}"));
            }
        }
        // A service that is used as a host is a dependency.
        for (variable, host) in service["environment"].as_object().into_iter().flatten() {
            let needed = host.as_str().filter(|host| variable.ends_with("_HOST") && services.contains_key(*host));
            if let Some(host) = needed
                && service["depends_on"][host]["condition"] != "service_healthy"
            {
                broken.push(format!("{name} starts before {host} is healthy"));
            }
        }
        if service["build"].is_object() {
            for (what, wanted) in [
                ("read_only", serde_json::json!(true)),
                ("cap_drop", serde_json::json!(["ALL"])),
                ("security_opt", serde_json::json!(["no-new-privileges:true"])),
            ] {
                if service[what] != wanted {
                    broken.push(format!("{name}: {what} is {}", service[what]));
                }
            }
        }
    }
    let on_request: Vec<&String> = services.iter().filter(|(_, s)| !s["profiles"].is_null()).map(|(n, _)| n).collect();
    if on_request != ["fleet"] || services["fleet"]["profiles"] != serde_json::json!(["demo"]) {
        broken.push(format!("{on_request:?} start on request only"));
    }
    if services["fleet"]["command"] != serde_json::json!(["demo-fleet"]) {
        broken.push("the demonstration's fleet is not started".to_owned());
    }
    broken
}

fn servers(compose: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    let redis = &compose["services"]["redis"];
    let postgres = &compose["services"]["postgres"];
    for (name, service) in [("redis", redis), ("postgres", postgres)] {
        if service["healthcheck"]["start_period"] != "60s" {
            broken.push(format!("{name} is not given a minute to start"));
        }
        let kept = service["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let kept =
            kept.filter_map(|mount| mount.split(':').next()).any(|volume| compose["volumes"].get(volume).is_some());
        if !kept {
            broken.push(format!("{name} keeps its data nowhere"));
        }
    }
    if redis["environment"]["REDISCLI_AUTH"].is_null() {
        broken.push("Redis' check does not log in".to_owned());
    }
    let asked = postgres["healthcheck"]["test"].to_string();
    for part in ["pg_isready", "--host=127.0.0.1", "--dbname=postgres"] {
        if !asked.contains(part) {
            broken.push(format!("Postgres' check does not wait for its database: no {part}"));
        }
    }
    let config = compose["configs"]["redis"]["content"].as_str().unwrap();
    for line in ["appendonly yes", "maxmemory-policy noeviction"] {
        if !config.lines().any(|l| l == line) {
            broken.push(format!("Redis' configuration has no line {line}"));
        }
    }
    if !config.lines().any(|line| line.starts_with("requirepass ")) {
        broken.push("Redis asks for no password".to_owned());
    }
    broken
}

fn image(dockerfile: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let last_stage = dockerfile.rsplit("\nFROM ").next().unwrap();
    for line in ["USER 10001:10001", "ENTRYPOINT [\"shepherd-monitor\"]"] {
        if !last_stage.lines().any(|l| l == line) {
            broken.push(format!("the image's last stage has no line {line}"));
        }
    }
    let health = last_stage.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap_or_default();
    if !health.ends_with("CMD [\"shepherd-monitor\", \"health\"]") {
        broken.push(format!("the image does not ask its own program how it is: {health}"));
    }
    // Dependencies are compiled before the sources are copied.
    let (before, _) = dockerfile.split_once("\nCOPY . .").unwrap();
    if !before.contains("cargo build --release --locked --bin shepherd-monitor") {
        broken.push("dependencies are compiled with the sources".to_owned());
    }
    broken
}

#[test]
fn image_and_compose_file_meet_the_requirements() {
    let (compose, example, dockerfile) = (file("compose.yaml"), file("example.env"), file("Dockerfile"));
    assert_eq!(broken(&compose, &example, &dockerfile), Vec::<String>::new());
    // Every violation is detected.
    for (from, to, told) in [
        (
            "REDIS_PASSWORD:?write a password for Redis into docker/.env",
            "REDIS_PASSWORD:-secret",
            "REDIS_PASSWORD is used",
        ),
        ("REDIS_PASSWORD:?write a password for Redis into docker/.env", "REDIS_PASSWORD", "REDIS_PASSWORD is used"),
        (
            "POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?write a password for Postgres into docker/.env}",
            "POSTGRES_PASSWORD: shepherd",
            "written down",
        ),
        ("MONITOR_ADMIN_TOKEN:?", "MONITOR_ADMIN_TOKEN:-", "MONITOR_ADMIN_TOKEN is used"),
        ("127.0.0.1:6379:6379", "6379:6379", "redis listens for everybody"),
        ("127.0.0.1:5440:5440", "0.0.0.0:5440:5440", "monitor listens for everybody"),
        ("redis: {condition: service_healthy}", "redis: {condition: service_started}", "monitor starts before redis"),
        ("      postgres: {condition: service_healthy}\n", "", "fleet starts before postgres"),
        ("read_only: true", "read_only: false", "monitor: read_only is false"),
        ("    cap_drop: [ALL]\n", "", "fleet: cap_drop is null"),
        ("no-new-privileges:true", "no-new-privileges:false", "monitor: security_opt"),
        ("    profiles: [demo]\n", "", "start on request only"),
        ("command: [demo-fleet]", "command: [serve]", "fleet is not started"),
        ("start_period: 60s", "start_period: 6s", "redis is not given a minute"),
        ("volumes: [redis:/data]", "volumes: [/tmp:/data]", "redis keeps its data nowhere"),
        ("REDISCLI_AUTH", "REDIS_LOGIN", "does not log in"),
        ("--host=127.0.0.1, ", "", "does not wait for its database"),
        ("appendonly yes", "appendonly no", "no line appendonly yes"),
        ("noeviction", "allkeys-lru", "no line maxmemory-policy noeviction"),
        ("requirepass ", "# requirepass ", "asks for no password"),
        ("USER 10001:10001\n", "", "no line USER"),
        ("\"shepherd-monitor\", \"health\"", "\"true\"", "does not ask its own program"),
    ] {
        let changed = |text: &str| text.replace(from, to);
        let all = (changed(&compose), changed(&example), changed(&dockerfile));
        assert!(all.0 != compose || all.1 != example || all.2 != dockerfile, "{from} is nowhere");
        let found = broken(&all.0, &all.1, &all.2);
        assert!(found.iter().any(|words| words.contains(told)), "{from} → {to}: {found:?}");
    }
    let written = example.replace("POSTGRES_PASSWORD=", "POSTGRES_PASSWORD=postgres");
    assert_eq!(broken(&compose, &written, &dockerfile), ["POSTGRES_PASSWORD has a value in example.env"]);
    let together = dockerfile.replacen("cargo build --release --locked --bin shepherd-monitor", "true", 1);
    assert_eq!(broken(&compose, &example, &together), ["dependencies are compiled with the sources"]);
}

/// Runs the compose file's health check like a container, with a `redis-cli` that prints `answer`.
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
fn redis_is_healthy_only_if_it_answers_pong() {
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
fn image_creates_a_stub_for_every_target_in_the_manifest() {
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
