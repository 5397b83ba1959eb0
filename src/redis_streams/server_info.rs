//! What the server says of itself: one INFO per pass, and what it can do.

use std::collections::HashMap;

use redis::{Cmd, Value};

use super::reply::Reply;
use crate::fleet::reading::{RedisServer, SourceTrouble};
use crate::fleet::source::server_trouble;

/// What this server understands, found out by asking it, not by its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// INFO takes several sections, so that a pass need not ask for all of them.
    pub info_sections: bool,
    /// SCAN filters by type.
    pub scan_type: bool,
}

impl Capabilities {
    /// The commands to ask; their answers go to [`Capabilities::probed`] in the same order.
    #[must_use]
    pub fn probes() -> redis::Pipeline {
        let mut pipe = redis::pipe();
        pipe.add_command(info(true));
        pipe.cmd("SCAN").arg(0).arg("COUNT").arg(1).arg("TYPE").arg("stream");
        pipe
    }

    /// Reads the answers: what is an error is not understood.
    #[must_use]
    pub fn probed(answers: &[redis::RedisResult<Value>]) -> Self {
        let understood = |n: usize| answers.get(n).is_some_and(Result::is_ok);
        Self { info_sections: understood(0), scan_type: understood(1) }
    }
}

/// The INFO command of a pass.
#[must_use]
pub fn info(sections: bool) -> Cmd {
    let mut cmd = redis::cmd("INFO");
    if sections {
        cmd.arg(&["server", "clients", "memory", "stats", "replication", "persistence"]);
    }
    cmd
}

/// Reads INFO: the server's figures, and what keeps it from being believed.
#[must_use]
pub fn read_info(answer: &Value) -> (RedisServer, Option<SourceTrouble>) {
    let text = Reply::of(answer).text().unwrap_or_default();
    let figures = fields(&text);
    let get = |name: &str| figures.get(name).copied().filter(|value| !value.is_empty());
    let number = |name: &str| get(name).and_then(|value| value.parse::<u64>().ok());
    let server = RedisServer {
        run_id: get("run_id").unwrap_or_default().to_owned(),
        version: get("redis_version").map(str::to_owned),
        used_memory_human: get("used_memory_human").map(str::to_owned),
        used_memory_bytes: number("used_memory"),
        maxmemory_bytes: number("maxmemory").filter(|limit| *limit > 0),
        connected_clients: number("connected_clients"),
        instantaneous_ops_per_sec: number("instantaneous_ops_per_sec"),
        uptime_in_seconds: number("uptime_in_seconds"),
        evicted_keys: number("evicted_keys"),
    };
    let trouble = server_trouble(get("role").unwrap_or_default(), get("loading") == Some("1"));
    (server, trouble)
}

/// The lines of INFO, by name.
pub(super) fn fields(info: &str) -> HashMap<&str, &str> {
    info.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}
