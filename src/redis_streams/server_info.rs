//! INFO and the capabilities of the server.

use std::collections::HashMap;

use redis::{Cmd, Value};

use super::reply::Reply;
use crate::fleet::reading::{RedisServer, SourceTrouble};
use crate::fleet::source::server_trouble;

/// Capabilities of the server, determined by commands and not by its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// INFO accepts several sections, so that a pass does not read all.
    pub info_sections: bool,
    /// SCAN can filter by type.
    pub scan_type: bool,
}

impl Capabilities {
    /// Returns the commands to send; their answers are passed to [`Capabilities::probed`] in the same order.
    #[must_use]
    pub fn probes() -> redis::Pipeline {
        let mut pipe = redis::pipe();
        pipe.add_command(info(true));
        pipe.cmd("SCAN").arg(0).arg("COUNT").arg(1).arg("TYPE").arg("stream");
        pipe
    }

    /// Reads the answers; an error means not supported.
    #[must_use]
    pub fn probed(answers: &[redis::RedisResult<Value>]) -> Self {
        let understood = |n: usize| answers.get(n).is_some_and(Result::is_ok);
        Self { info_sections: understood(0), scan_type: understood(1) }
    }
}

/// Returns the INFO command of a pass.
#[must_use]
pub fn info(sections: bool) -> Cmd {
    let mut cmd = redis::cmd("INFO");
    if sections {
        cmd.arg(&["server", "clients", "memory", "stats", "replication", "persistence"]);
    }
    cmd
}

/// Parses INFO: the figures, and why the data of the server cannot be used, if so.
#[must_use]
pub fn read_info(answer: &Value) -> (RedisServer, Option<SourceTrouble>) {
    let text = Reply::of(answer).text().unwrap_or_default();
    let (mut server, mut role, mut loading) = (RedisServer::default(), "", false);
    for (name, value) in lines(&text).filter(|(_, value)| !value.is_empty()) {
        let words = || Some(value.to_owned());
        let number = || value.parse::<u64>().ok();
        match name {
            "run_id" => value.clone_into(&mut server.run_id),
            "redis_version" => server.version = words(),
            "used_memory_human" => server.used_memory_human = words(),
            "used_memory" => server.used_memory_bytes = number(),
            "maxmemory" => server.maxmemory_bytes = number().filter(|limit| *limit > 0),
            "connected_clients" => server.connected_clients = number(),
            "instantaneous_ops_per_sec" => server.instantaneous_ops_per_sec = number(),
            "uptime_in_seconds" => server.uptime_in_seconds = number(),
            "evicted_keys" => server.evicted_keys = number(),
            "role" => role = value,
            "loading" => loading = value == "1",
            _ => {}
        }
    }
    (server, server_trouble(role, loading))
}

/// Returns the lines of INFO by name.
pub(super) fn fields(info: &str) -> HashMap<&str, &str> {
    lines(info).collect()
}

fn lines(info: &str) -> impl Iterator<Item = (&str, &str)> {
    info.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()))
}
