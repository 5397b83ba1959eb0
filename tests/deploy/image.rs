//! The image's last stage in an empty root folder: read-only, as nobody special, with its own health check.
//!
//! The same script builds the stages before and a Debian around them, which takes long: here the program is
//! the one that is tested.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::servers::HeldPort;

use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;

/// Looks from outside: until both servers are read.
const MEANWHILE: &str = r#"
import json, os, time, urllib.request
asked = urllib.request.Request(
    f"http://127.0.0.1:{os.environ['MONITOR_PORT']}/api/snapshot",
    headers={"Authorization": "Bearer " + os.environ["MONITOR_ADMIN_TOKEN"]},
)
for _ in range(200):
    try:
        snapshot = json.load(urllib.request.urlopen(asked, timeout=5))
        if all(snapshot[name]["source"]["status"] == "ok" for name in ("redis", "postgres")):
            print("reads Redis and Postgres", flush=True)
            raise SystemExit(0)
    except (OSError, KeyError):
        pass
    time.sleep(0.1)
raise SystemExit(1)
"#;

fn dockerfile() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/Dockerfile")).unwrap()
}

/// Builds and tries what `dockerfile` says.
fn tried(dockerfile: &str, settings: &[(&str, &str)]) -> Output {
    let folder = Reaper::start("image", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    let file = folder.folder().join("Dockerfile");
    fs::write(&file, dockerfile).unwrap();
    let look = folder.folder().join("look.py");
    fs::write(&look, MEANWHILE).unwrap();
    // Of this moment: nobody else gets it until the monitor has it.
    let port = HeldPort::take().unwrap();
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/build-in-empty-root"))
        .args(["--minimal", "--binary", env!("CARGO_BIN_EXE_shepherd-monitor"), "--dockerfile"])
        .arg(&file)
        .args(["--meanwhile", &format!("/usr/bin/python3 {}", look.display())])
        .env("MONITOR_PORT", port.number().to_string())
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

#[test]
fn the_image_runs_read_only_as_nobody_special_and_its_health_check_tells_the_truth() {
    if !is_root() {
        eprintln!("not tried: entering a root folder needs root");
        return;
    }
    assert!(Path::new("/usr/bin/python3").exists());
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let (redis, database) = (redis.url(), database.url());
    let settings = [
        ("REDIS_URL", redis.as_str()),
        ("DATABASE_URL", database.as_str()),
        ("MONITOR_AUTH", "token"),
        ("MONITOR_ADMIN_TOKEN", "an administrators token"),
    ];
    let dockerfile = dockerfile();
    let good = tried(&dockerfile, &settings);
    let said = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success(), "{said}{}", String::from_utf8_lossy(&good.stderr));
    for line in [
        "runs as user 10001 with no rights",
        "writes nowhere but in /var/lib/shepherd-monitor",
        "is healthy",
        "reads Redis and Postgres",
        "ends when it is asked to",
        "is not healthy any more",
    ] {
        assert!(said.lines().any(|l| l == line), "{line}: {said}");
    }
    // And it would be noticed.
    for (from, to, told) in [
        ("USER 10001:10001", "USER 0:0", "it runs as user 0"),
        ("--chown=10001:10001", "--chown=0:0", "/var/lib/shepherd-monitor cannot be written"),
        ("[\"shepherd-monitor\", \"health\"]", "[\"shepherd-monitor\", \"--version\"]", "succeeds without it"),
        ("MONITOR_BIND=0.0.0.0", "MONITOR_BIND=nowhere", "it ended with 1"),
    ] {
        let bad = tried(&dockerfile.replace(from, to), &settings);
        let said = String::from_utf8_lossy(&bad.stderr);
        assert!(!bad.status.success() && said.contains(told), "{to}: {said}");
    }
}
