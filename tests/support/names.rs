//! Host names that only one process knows, and a name server that never answers.

use std::net::UdpSocket;

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

/// Names that a process started by [`Names::prefix`] resolves to 127.0.0.1. All others are looked up at a name server
/// that receives requests and answers none.
pub(crate) struct Names {
    folder: Reaper,
    _silent: UdpSocket,
}

impl Names {
    /// `None` without the privileges of root: mounts and port 53 need them.
    pub(crate) fn new(known: &[&str]) -> Option<Self> {
        let folder = Reaper::start("shepherd-names", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
        let candidates = (1..=250).map(|n| format!("127.77.{}.{n}", std::process::id() % 250));
        let (address, silent) = candidates.into_iter().find_map(|address| {
            let socket = UdpSocket::bind((address.as_str(), 53)).ok()?;
            Some((address, socket))
        })?;
        let names = Self { folder, _silent: silent };
        if names.folder.run(&["unshare", "--mount", "true"]).unwrap() != 0 {
            return None;
        }
        // The lookup outlasts the test, as with a resolver that has several silent servers.
        let resolver = format!("nameserver {address}\noptions timeout:30 attempts:1\n");
        std::fs::write(names.path("resolv.conf"), resolver).unwrap();
        names.write(known);
        Some(names)
    }

    fn path(&self, file: &str) -> String {
        self.folder.folder().join(file).display().to_string()
    }

    /// In place: what is mounted is the file, not its name.
    fn write(&self, known: &[&str]) {
        std::fs::write(self.path("hosts"), format!("127.0.0.1 {}\n", known.join(" "))).unwrap();
    }

    /// From now on, lookups of `name` get no answer.
    pub(crate) fn swallow(&self, name: &str) {
        let hosts = std::fs::read_to_string(self.path("hosts")).unwrap();
        let known: Vec<&str> = hosts.split_whitespace().skip(1).filter(|known| *known != name).collect();
        self.write(&known);
    }

    /// What comes before the command of a process that is to know these names.
    pub(crate) fn prefix(&self) -> Vec<String> {
        let mounts = format!(
            "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && exec \"$@\"",
            self.path("resolv.conf"),
            self.path("hosts")
        );
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", &mounts, "sh"].map(str::to_owned).into()
    }
}
