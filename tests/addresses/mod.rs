//! Addresses, secrets and certificates as users give them: what is accepted connects, to real servers with TLS, and
//! what does not says why.

mod channels;
mod postgres;
mod redis;
mod start;

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// Where no server listens.
const NO_REDIS: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1");
const NO_POSTGRES: (&str, &str) = ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres");

fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.args(arguments).env_clear().envs(settings.iter().copied()).output().unwrap()
}

/// What doctor says with these settings.
fn findings(settings: &[(&str, &str)]) -> Vec<Value> {
    let output = run(&["doctor", "--json"], settings);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&output.stderr)));
    report["findings"].as_array().unwrap().clone()
}

/// What doctor says with the id, all its words in one; empty when nothing.
fn finding(settings: &[(&str, &str)], id: &str) -> String {
    let findings = findings(settings);
    let finding = findings.iter().find(|finding| finding["id"] == id);
    finding
        .map(|finding| format!("{} / {} / {}", finding["verdict"], finding["what"], finding["do"]))
        .unwrap_or_default()
}
