//! The monitor as a process on a free port.

use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec, is_running};

use super::wait::eventually;

/// A running `shepherd-monitor serve`; ended when dropped and when the test dies.
pub(crate) struct Monitor {
    reaper: Reaper,
    pid: u32,
    address: String,
}

impl Monitor {
    /// Starts the monitor with only these settings, by default with a poll interval of 0.5 s, and waits until it serves
    /// requests.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_by(&[], settings).await
    }

    /// The same, started by the command `prefix`.
    pub(crate) async fn start_by(prefix: &[String], settings: &[(&str, &str)]) -> Self {
        let reaper = Reaper::start("shepherd-monitor", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        super::tls();
        let spool = reaper.folder().join("spool").display().to_string();
        let defaults = [
            ("MONITOR_PORT", "0"),
            ("MONITOR_POLL_INTERVAL_SEC", "500ms"),
            ("LOG_LEVEL", "debug"),
            ("MONITOR_SPOOL_DIR", &spool),
        ];
        let all: Vec<String> = defaults.iter().chain(settings).map(|(name, value)| format!("{name}={value}")).collect();
        let mut command: Vec<&str> = prefix.iter().map(String::as_str).collect();
        command.extend(["env", "-i"]);
        command.extend(all.iter().map(String::as_str));
        command.extend([env!("CARGO_BIN_EXE_shepherd-monitor"), "serve"]);
        let pid = reaper.serve(&command).unwrap();
        let address = eventually("the monitor says where it listens", Duration::from_secs(20), || async {
            let log = reaper.log_from(0);
            assert!(is_running(pid), "the monitor ended:\n{log}");
            log.split("listening on http://").nth(1)?.split('/').next().map(str::to_owned)
        });
        let address = address.await;
        Self { reaper, pid, address }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Address as `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn log(&self) -> String {
        self.reaper.log_from(0)
    }

    pub(crate) fn send(&self, signal: &str) {
        assert!(self.reaper.send(signal).unwrap());
    }

    pub(crate) fn is_running(&self) -> bool {
        is_running(self.pid)
    }

    /// Sends a GET request and returns status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(self.url(path)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Returns the newest snapshot; `Null` if there is none yet.
    pub(crate) async fn snapshot(&self) -> Value {
        match self.get("/api/snapshot").await {
            (200, body) => serde_json::from_str(&body).unwrap(),
            _ => Value::Null,
        }
    }

    /// Waits until a snapshot satisfies `holds` and returns it.
    pub(crate) async fn until(&self, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, limit, || async {
            let snapshot = self.snapshot().await;
            if holds(&snapshot) { Ok(snapshot) } else { Err(shortened(&snapshot)) }
        })
        .await
    }

    /// Waits until the audit log is available, without which changes are rejected. Its tables are created in the
    /// background.
    pub(crate) async fn takes_orders(&self) {
        eventually("the audit can be read", Duration::from_secs(60), || async {
            match self.get("/api/admin/audit").await {
                (200, _) => Ok(()),
                (status, answer) => Err(format!("{status}: {answer}")),
            }
        })
        .await;
    }

    /// Stored events, newest first.
    pub(crate) async fn events(&self) -> Vec<Value> {
        let body = eventually("events can be read", Duration::from_secs(20), || async {
            match self.get("/api/historical/events").await {
                (200, body) => Ok(body),
                (_, problem) => Err(problem),
            }
        })
        .await;
        serde_json::from_str::<Value>(&body).unwrap()["events"].as_array().unwrap().clone()
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(3000).collect()
}
