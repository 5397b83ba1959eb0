//! Python processes: workers, and servers that Debian packages only in Python.

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec, is_running};

/// The interpreter with Debian's python3-redis and python3-aiosmtpd.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = "script.py";

/// A running Python script; ended when dropped and when the test dies.
pub(crate) struct Python {
    reaper: Reaper,
    pid: u32,
}

impl Python {
    /// Starts `script` (source text) with arguments in a temporary folder.
    pub(crate) fn start(script: &str, args: &[&str]) -> Self {
        let reaper = folder_with(script);
        let pid = reaper.serve(&command(args)).unwrap();
        Self { reaper, pid }
    }

    /// Runs `script` and returns its output. Panics if it fails.
    pub(crate) fn run(script: &str, args: &[&str]) -> String {
        let reaper = folder_with(script);
        let status = reaper.run(&command(args)).unwrap();
        let printed = reaper.log_from(0);
        assert_eq!(status, 0, "the Python script failed:\n{printed}");
        printed
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn is_running(&self) -> bool {
        is_running(self.pid)
    }

    /// Output so far, including standard error.
    pub(crate) fn printed(&self) -> String {
        self.reaper.log_from(0)
    }

    /// Sends a signal: `TERM`, `KILL`, `STOP`, `CONT`, …
    pub(crate) fn send(&self, signal: &str) {
        assert!(self.reaper.send(signal).unwrap(), "no Python process to send {signal} to");
    }
}

fn folder_with(script: &str) -> Reaper {
    let reaper = Reaper::start("shepherd-python", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    std::fs::write(reaper.folder().join(SCRIPT), script).unwrap();
    reaper
}

fn command<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&[PYTHON, "-u", SCRIPT], args].concat()
}
