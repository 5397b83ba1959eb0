//! `doctor` on servers that are set up wrongly on purpose, each in its own way, and on good ones.

mod good;
mod postgres;
mod redis;
mod settings;

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::postgres::{connection, migrate};

use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;

/// Runs it with these settings and no others.
fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.arg("doctor").args(arguments).env_clear().envs(settings.iter().copied());
    command.output().unwrap()
}

/// What it said, and how it ended.
struct Said {
    code: i32,
    findings: Vec<Value>,
}

/// Asks it for JSON.
fn doctor(arguments: &[&str], settings: &[(&str, &str)]) -> Said {
    let output = run(&[&["--json"], arguments].concat(), settings);
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&output.stderr)));
    let findings = told["findings"].as_array().unwrap().clone();
    let wrong = findings.iter().filter(|finding| finding["verdict"] == "wrong").count();
    assert_eq!(told["wrong"], wrong);
    let said = Said { code: output.status.code().unwrap(), findings };
    assert_eq!(said.code, i32::from(wrong > 0), "{:#?}", said.findings);
    for finding in said.findings.iter().filter(|finding| finding["verdict"] != "fine") {
        let in_words = ["what", "means", "do"].map(|part| finding[part].as_str().unwrap().len() > 5);
        assert_eq!(in_words, [true; 3], "{finding:#}");
    }
    said
}

impl Said {
    /// The ids of those with this verdict, in order.
    fn of(&self, verdict: &str) -> Vec<&str> {
        self.findings.iter().filter(|f| f["verdict"] == verdict).map(|f| f["id"].as_str().unwrap()).collect()
    }

    /// A finding, which must be there with this verdict; all its words in one.
    #[track_caller]
    fn says(&self, id: &str, verdict: &str) -> String {
        let finding = self.findings.iter().find(|finding| finding["id"] == id);
        let finding = finding.unwrap_or_else(|| panic!("nothing is said of {id}: {:#?}", self.findings));
        assert_eq!(finding["verdict"], verdict, "{finding:#}");
        ["what", "means", "do"].map(|part| finding[part].as_str().unwrap()).join(" / ")
    }

    /// Nothing about this is said but that it is fine.
    #[track_caller]
    fn is_fine(&self, id: &str) {
        self.says(id, "fine");
    }
}

/// A database with the monitor's tables and indexes, as a running monitor leaves it.
async fn database_in_use() -> TestDatabase {
    let database = TestDatabase::create();
    let within = Duration::from_secs(10);
    migrate::run(&database.url(), within).await.unwrap();
    migrate::add_fleet_indexes(&connection::pool(&database.url(), within).unwrap()).await.unwrap();
    database
}

/// One command.
async fn ask(redis: &TestRedis, words: &[&str]) -> ::redis::Value {
    let mut connection = redis.connection().await;
    let (name, arguments) = words.split_first().unwrap();
    ::redis::cmd(name)
        .arg(arguments)
        .query_async(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

async fn ask_all(redis: &TestRedis, commands: &[&[&str]]) {
    for words in commands {
        ask(redis, words).await;
    }
}
