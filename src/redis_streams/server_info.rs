//! INFO and the capabilities of the server.

use std::collections::HashMap;

use redis::{Cmd, Value};

use super::resp_reader::Reply;
use crate::fleet::reading::{RedisServer, SourceTrouble, TroubleKind};
use crate::fleet::source::server_trouble;

/// What users read when Redis rejects writes for lack of memory.
pub const OUT_OF_MEMORY: &str = "Redis rejects writes: it is out of memory (maxmemory is reached and nothing can be \
     evicted). Raise maxmemory or remove keys";

/// What users read when Redis cannot write its append-only file: it then refuses every change.
const LOG_NOT_WRITTEN: &str =
    "Redis rejects writes: it cannot write its append-only file. Free disk space on its server";

/// What users read when the address is that of a Sentinel, which has no streams.
pub const SENTINEL: &str = "this is a Redis Sentinel, which only says where the primary is";

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
    let (mut policy, mut not_counted, mut log_is_written, mut is_sentinel) = ("", 0, true, false);
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
            "maxmemory_policy" => policy = value,
            "mem_not_counted_for_evict" => not_counted = number().unwrap_or(0),
            "aof_last_write_status" => log_is_written = value == "ok",
            "role" => role = value,
            "redis_mode" => is_sentinel = value == "sentinel",
            "loading" => loading = value == "1",
            _ => {}
        }
    }
    // As Redis decides it: buffers of replicas and of the append-only file do not count.
    let used = server.used_memory_bytes.unwrap_or(0).saturating_sub(not_counted);
    server.write_trouble = if policy == "noeviction" && server.maxmemory_bytes.is_some_and(|limit| used > limit) {
        Some(SourceTrouble::new(TroubleKind::OutOfMemory, OUT_OF_MEMORY).of_redis())
    } else if log_is_written {
        None
    } else {
        Some(SourceTrouble::new(TroubleKind::DiskFull, LOG_NOT_WRITTEN).of_redis())
    };
    let sentinel = || SourceTrouble::new(TroubleKind::Failed, format!("{SENTINEL}: point the monitor at the primary"));
    (server, if is_sentinel { Some(sentinel()) } else { server_trouble(role, loading) })
}

/// Returns the lines of INFO by name.
pub(super) fn fields(info: &str) -> HashMap<&str, &str> {
    lines(info).collect()
}

fn lines(info: &str) -> impl Iterator<Item = (&str, &str)> {
    info.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_trouble(info: &str) -> Option<TroubleKind> {
        read_info(&Value::BulkString(info.replace(' ', "\r\n").into_bytes()))
            .0
            .write_trouble
            .map(|trouble| trouble.kind)
    }

    #[test]
    fn a_server_that_refuses_writes_is_recognised_without_writing() {
        let full = "used_memory:1001 maxmemory:1000 maxmemory_policy:noeviction";
        assert_eq!(write_trouble(full), Some(TroubleKind::OutOfMemory));
        assert_eq!(write_trouble(&format!("{full} mem_not_counted_for_evict:10")), None, "buffers of replicas");
        assert_eq!(write_trouble("used_memory:1001 maxmemory:1000 maxmemory_policy:allkeys-lru"), None);
        assert_eq!(write_trouble("used_memory:1001 maxmemory:0 maxmemory_policy:noeviction"), None);
        assert_eq!(write_trouble("aof_last_write_status:err"), Some(TroubleKind::DiskFull));
        assert_eq!(write_trouble("aof_last_write_status:ok"), None);
    }
}
