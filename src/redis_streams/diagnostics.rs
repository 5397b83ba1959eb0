//! Examines a Redis server for `doctor`: its properties, its streams and heartbeats, and which of the monitor's commands it refuses
//! to this user.
//!
//! Changes nothing. Commands that write are queued in a transaction that is discarded; Redis checks permissions when they are
//! queued.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::{RedisError, Value};

use super::connection::{self, Connection, PersistentConnection, send};
use super::discovery;
use super::heartbeats_reader::HeartbeatsReader;
use super::older_monitor;
use super::resp_reader::Reply;
use super::server_info::{fields, read_info};
use super::streams_reader::{StreamsReader, read_time};
use crate::contract::Name;
use crate::contract::keys::{self, older};
use crate::contract::task::FINISH_QUERY;
use crate::fleet::older_monitor::{OlderMonitor, Watch};
use crate::fleet::reading::{HeartbeatsReading, RedisServer, SourceTrouble, StreamsReading, TroubleKind};
use crate::fleet::time::Mono;
use crate::fleet::watched::WatchedStreams;

/// Result of examining a server.
#[derive(Debug, Clone)]
pub struct Examined {
    /// Properties of the server.
    pub server: Server,
    /// Name of the user; `None` if Redis does not report it.
    pub user: Option<String>,
    /// Streams and heartbeats, or why they could not be read.
    pub fleet: Result<Fleet, SourceTrouble>,
    /// Refused commands, each once; `None` if they could not be determined.
    pub refusals: Option<Vec<Refusal>>,
    /// Activity of an older monitor; `None` if it could not be determined.
    pub older_monitor: Option<OlderMonitor>,
}

/// Properties of the server. `None` for figures that this user may not read.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Version, memory and other figures.
    pub figures: RedisServer,
    /// Why its data cannot be used: it is a replica, or loading.
    pub trouble: Option<SourceTrouble>,
    /// Name of the product, if it is not Redis but compatible.
    pub relative: Option<String>,
    /// It is a node of Redis Cluster.
    pub cluster: bool,
    /// Eviction policy (`maxmemory_policy`).
    pub eviction: Option<String>,
    /// The append-only file is enabled.
    pub appends: Option<bool>,
    /// Snapshot schedule, as in the setting `save`; empty for none.
    pub saves: Option<String>,
    /// The last snapshot failed.
    pub last_save_failed: bool,
    /// Seconds that its clock is ahead of this machine's; negative if behind.
    pub clock_ahead_sec: Option<f64>,
}

/// Streams and heartbeats.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Watched streams.
    pub streams: StreamsReading,
    /// Heartbeats of their consumers.
    pub heartbeats: HeartbeatsReading,
    /// The keyspace scan for streams did not finish in time.
    pub too_many_keys: bool,
}

/// A command that Redis refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Command with its subcommand.
    pub command: String,
    /// What the monitor needs it for.
    pub needed_for: Need,
    /// Error code, such as NOPERM, OOM or MISCONF.
    pub code: String,
    /// Error message of Redis.
    pub said: String,
}

/// What the monitor uses a command for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Figures and role of the server.
    Describing,
    /// Finding streams by a keyspace scan.
    Discovering,
    /// Reading the fleet.
    Watching,
    /// Storing state: worker states, recent series, events and durations.
    Remembering,
    /// Cleanup, and operations of users on messages.
    Tending,
}

/// All commands that the monitor sends, directly or in scripts. `{stream}` is a stream; the other keys belong to the contract or
/// the monitor.
const COMMANDS: &[(Need, &[&str])] = &[
    (Need::Watching, &["PING"]),
    (Need::Describing, &["INFO", "server"]),
    (Need::Watching, &["TIME"]),
    (Need::Discovering, &["SCAN", "0", "COUNT", "1"]),
    (Need::Watching, &["TYPE", "{stream}"]),
    (Need::Watching, &["XLEN", "{stream}"]),
    (Need::Watching, &["XINFO", "GROUPS", "{stream}"]),
    (Need::Watching, &["XINFO", "CONSUMERS", "{stream}", "g"]),
    (Need::Watching, &["XRANGE", "{stream}", "-", "+", "COUNT", "1"]),
    (Need::Watching, &["MGET", "worker:heartbeat:s:c", "worker:shutdown:s:c"]),
    (Need::Watching, &["GETRANGE", "worker:heartbeat:s:c", "0", "1"]),
    (Need::Watching, &["HLEN", keys::TASK_FAILURES]),
    (Need::Watching, &["HMGET", keys::TASK_FAILURES, "failed:s"]),
    (Need::Watching, &["SMEMBERS", older::KNOWN_WORKERS]),
    (Need::Watching, &["GET", "monitor:worker_state:s"]),
    (Need::Watching, &["ZREVRANGE", "monitor:hist:s", "0", "0"]),
    (Need::Watching, &["PTTL", "alert:cooldown:r"]),
    (Need::Watching, &["ZRANGEBYSCORE", "monitor:hist:s", "0", "0"]),
    (Need::Watching, &["LRANGE", "monitor:task_durations:s", "0", "0"]),
    (Need::Remembering, &["GET", keys::TAKEN_OVER]),
    (Need::Remembering, &["SET", keys::TAKEN_OVER, "v"]),
    (Need::Remembering, &["SETNX", keys::LAST_RETENTION_SWEEP, "v"]),
    (Need::Remembering, &["DEL", keys::TAKEN_OVER]),
    (Need::Remembering, &["SADD", keys::KNOWN_WORKERS, "m"]),
    (Need::Remembering, &["SREM", keys::KNOWN_WORKERS, "m"]),
    (Need::Remembering, &["SMEMBERS", keys::KNOWN_WORKERS]),
    (Need::Remembering, &["ZADD", "shepherd-monitor:hist:s", "0", "m"]),
    (Need::Remembering, &["ZREMRANGEBYSCORE", "shepherd-monitor:hist:s", "0", "0"]),
    (Need::Remembering, &["ZREMRANGEBYRANK", "shepherd-monitor:hist:s", "0", "0"]),
    (Need::Remembering, &["ZUNIONSTORE", "monitor:hist:s", "1", "shepherd-monitor:hist:s"]),
    (Need::Remembering, &["RPUSH", keys::EVENT_SPOOL, "m"]),
    (Need::Remembering, &["LPUSH", keys::ALERTS_HISTORY, "m"]),
    (Need::Remembering, &["LTRIM", "monitor:task_durations:s", "0", "0"]),
    (Need::Remembering, &["LREM", keys::EVENT_SPOOL, "0", "m"]),
    (Need::Remembering, &["LINDEX", keys::EVENT_SPOOL, "0"]),
    (Need::Remembering, &["LPOP", keys::EVENT_SPOOL, "1"]),
    (Need::Remembering, &["RENAME", "monitor:task_durations:s", "monitor:latency:batch:b"]),
    (Need::Remembering, &["HSET", keys::LATENCY_BATCHES, "f", "v"]),
    (Need::Remembering, &["HGETALL", keys::FORGOTTEN_WORKERS]),
    (Need::Remembering, &["EXPIRE", keys::FORGOTTEN_WORKERS, "1"]),
    (Need::Remembering, &["HDEL", keys::TASK_FAILURES, "failed:s"]),
    (Need::Remembering, &["HSET", keys::SEEN_FAILURES, "stream:s", "v"]),
    (Need::Remembering, &["HSETNX", "monitor:recycle:b", "f", "v"]),
    (Need::Remembering, &["HGET", keys::LATENCY_BATCHES, "f"]),
    (Need::Remembering, &["HMGET", "monitor:recycle:b", "f"]),
    (Need::Remembering, &["HDEL", keys::LATENCY_BATCHES, "f"]),
    (Need::Remembering, &["HLEN", keys::LATENCY_BATCHES]),
    (Need::Remembering, &["HEXISTS", keys::LATENCY_BATCHES, "f"]),
    (Need::Remembering, &["HRANDFIELD", keys::LATENCY_BATCHES, "1"]),
    (Need::Remembering, &["PEXPIRE", "monitor:recycle:b", "1"]),
    (Need::Remembering, &["EVAL", "return 1", "0"]),
    (Need::Remembering, &["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0"]),
    (Need::Remembering, &["SCRIPT", "LOAD", "return 1"]),
    (Need::Tending, &["EXISTS", "worker:heartbeat:s:c"]),
    (Need::Tending, &["PTTL", "worker:heartbeat:s:c"]),
    (Need::Tending, &["XPENDING", "{stream}", "g"]),
    (Need::Tending, &["XREVRANGE", "{stream}", "+", "-", "COUNT", "1"]),
    (Need::Tending, &["XTRIM", "{stream}", "MINID", "0"]),
    (Need::Tending, &["XDEL", "{stream}", "0-1"]),
    (Need::Tending, &["XGROUP", "DELCONSUMER", "{stream}", "g", "c"]),
    (Need::Tending, &["XADD", "{stream}", "NOMKSTREAM", "*", "f", "v"]),
    (Need::Tending, &["XACK", "{stream}", "g", "0-1"]),
    (Need::Tending, &["XCLAIM", "{stream}", "g", "c", "0", "0-1"]),
];

/// How long to watch recent records of an older monitor, which rewrites its states every few seconds.
const OLDER_MONITOR_WITHIN: Duration = Duration::from_secs(8);
/// Pause between two checks.
const OLDER_MONITOR_PAUSE: Duration = Duration::from_millis(500);
/// Time limit for scanning the keyspace.
const WALK_WITHIN: Duration = Duration::from_secs(10);

/// Examines the Redis at `url`. `within` is the time limit for each answer.
///
/// # Errors
/// Why Redis cannot be reached.
pub async fn examine(
    url: &str,
    watched: &WatchedStreams,
    shown: &[Name],
    within: Duration,
) -> Result<Examined, SourceTrouble> {
    let mut redis = PersistentConnection::to(url, within)?.take().await?;
    let (server, user) = server(&mut redis).await?;
    // A user without permission for ACL WHOAMI is the one in the URL.
    let user = user.or_else(|| connection::user(url)).or_else(|| Some("default".to_owned()));
    if let Some(trouble) = server.trouble.clone() {
        return Ok(Examined { server, user, fleet: Err(trouble), refusals: None, older_monitor: None });
    }
    let fleet = fleet(&mut redis, url, watched, shown, within).await;
    let a_stream = fleet.as_ref().ok().and_then(|fleet| fleet.streams.streams.keys().next().cloned());
    let may_not_execute = may_not_execute(&mut redis, user.as_deref().unwrap_or_default()).await?;
    let mut refusals = refusals(&mut redis, &a_stream.unwrap_or_else(|| Name::from(FINISH_QUERY))).await?;
    if let (Some(known), Some(refused)) = (&mut refusals, may_not_execute)
        && !known.iter().any(|refusal| refusal.command == refused.command)
    {
        known.push(refused);
    }
    let alive = fleet.as_ref().ok().and_then(|fleet| fleet.heartbeats.consumers.keys().next().cloned());
    let older_monitor = look_for_older_monitor(url, alive.as_ref(), within).await.ok();
    Ok(Examined { server, user, fleet, refusals, older_monitor })
}

/// Reads the records of an older monitor, repeatedly while it may be active.
async fn look_for_older_monitor(
    url: &str,
    alive: Option<&Name>,
    within: Duration,
) -> Result<OlderMonitor, SourceTrouble> {
    let pool = connection::pool(url, within)?;
    let (mut watch, began) = (Watch::default(), Instant::now());
    loop {
        let (wall, traces) = older_monitor::traces(&pool, alive).await?;
        let now = Mono(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        watch.looked(now, wall, traces);
        if watch.verdict() != OlderMonitor::Unknown || began.elapsed() >= OLDER_MONITOR_WITHIN {
            return Ok(watch.verdict());
        }
        tokio::time::sleep(OLDER_MONITOR_PAUSE).await;
    }
}

/// Users read this when no password is sent to a Redis that has one.
const PASSWORD_REQUIRED: &str =
    "Redis requires a password, and none is set. Set REDIS_PASSWORD, or the password in REDIS_URL";

async fn server(redis: &mut Connection) -> Result<(Server, Option<String>), SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("TIME").cmd("INFO").cmd("CONFIG").arg("GET").arg("save").cmd("ACL").arg("WHOAMI");
    let before = unix();
    let mut answers = send(redis, &mut pipe).await?.into_iter();
    // The server's time was read between the two.
    let here = f64::midpoint(before, unix());
    // Without a password in the address, the first command is refused and not the connection.
    if let Some(Err(error)) = answers.as_slice().first()
        && error.code() == Some("NOAUTH")
    {
        return Err(SourceTrouble::new(TroubleKind::Refused, PASSWORD_REQUIRED));
    }
    let mut next = || answers.next().and_then(Result::ok);
    let clock_ahead_sec = next().map(|time| read_time(&time) - here);
    let info = next().unwrap_or(Value::Nil);
    let saves = next().and_then(|config| Some(Reply::of(&config).items().nth(1)?.text()?.into_owned()));
    let user = next().and_then(|name| Some(Reply::of(&name).text()?.into_owned()));
    let (figures, trouble) = read_info(&info);
    let text = Reply::of(&info).text().unwrap_or_default();
    let fields = fields(&text);
    let get = |name: &str| fields.get(name).map(|value| (*value).to_owned());
    let other_name = get("server_name").filter(|name| name != "redis");
    let server = Server {
        figures,
        trouble,
        relative: other_name.or_else(|| fields.contains_key("dragonfly_version").then(|| "dragonfly".to_owned())),
        cluster: get("redis_mode").is_some_and(|mode| mode == "cluster")
            || get("cluster_enabled").is_some_and(|on| on == "1"),
        eviction: get("maxmemory_policy"),
        appends: get("aof_enabled").map(|on| on == "1"),
        saves,
        last_save_failed: get("rdb_last_bgsave_status").is_some_and(|status| status == "err"),
        clock_ahead_sec,
    };
    Ok((server, user))
}

async fn fleet(
    redis: &mut Connection,
    url: &str,
    watched: &WatchedStreams,
    shown: &[Name],
    within: Duration,
) -> Result<Fleet, SourceTrouble> {
    let mut reader = StreamsReader::new(watched.clone(), shown);
    let (mut streams, mut heartbeat_keys) = reader.read(redis).await?;
    let mut too_many_keys = false;
    if let Some(capabilities) = reader.known_capabilities() {
        let pool = connection::pool(url, within)?;
        let walk = tokio::time::timeout(WALK_WITHIN, discovery::walk(&pool, capabilities)).await;
        too_many_keys = walk.is_err();
        if let Ok(Ok(found)) = walk {
            heartbeat_keys.extend(found.heartbeat_keys);
            if reader.watch(found.streams) {
                (streams, _) = reader.read(redis).await?;
            }
        }
    }
    let mut reader = HeartbeatsReader::default();
    reader.follow(&streams);
    reader.found(heartbeat_keys);
    let heartbeats = reader.read(redis, 1, Mono(0)).await?;
    Ok(Fleet { streams, heartbeats, too_many_keys })
}

/// Returns whether `user` may not send EXEC, which cannot be queued; known where ACL DRYRUN exists (7.0).
async fn may_not_execute(redis: &mut Connection, user: &str) -> Result<Option<Refusal>, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("ACL").arg("DRYRUN").arg(user).arg("EXEC");
    let Some(Ok(answer)) = send(redis, &mut pipe).await?.pop() else { return Ok(None) };
    let said = Reply::of(&answer).text().unwrap_or_default().into_owned();
    Ok(said.contains("no permissions").then(|| Refusal {
        command: "EXEC".to_owned(),
        needed_for: Need::Remembering,
        code: "NOPERM".to_owned(),
        said,
    }))
}

/// Queues every command of the monitor's in a transaction, discards it, and answers those that were
/// refused.
async fn refusals(redis: &mut Connection, a_stream: &Name) -> Result<Option<Vec<Refusal>>, SourceTrouble> {
    // Sent separately: if MULTI is refused, the following commands would be executed.
    let begun: Result<Value, RedisError> = redis::cmd("MULTI").query_async(redis).await;
    match begun {
        Ok(Value::Okay) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
            return Err(connection::trouble(&error));
        }
        // If MULTI is refused, EXEC and DISCARD are needed too.
        Err(error) if error.code() == Some("NOPERM") => {
            let all =
                ["MULTI", "EXEC", "DISCARD"].map(|command| refusal(command.to_owned(), Need::Remembering, &error));
            return Ok(Some(all.into()));
        }
        Err(error) => return Ok(Some(vec![refusal("MULTI".to_owned(), Need::Remembering, &error)])),
    }
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut pipe = redis::pipe();
    for (_, words) in COMMANDS {
        let mut command = redis::Cmd::new();
        for word in *words {
            command.arg(if *word == "{stream}" { a_stream.as_bytes() } else { word.as_bytes() });
        }
        pipe.add_command(command);
    }
    pipe.cmd("DISCARD");
    let answers = send(redis, &mut pipe).await?;
    if answers.len() != COMMANDS.len() + 1 {
        return Err(SourceTrouble::new(TroubleKind::Failed, "Redis returned too few replies"));
    }
    for ((need, words), answer) in COMMANDS.iter().zip(answers) {
        let Err(error) = answer else { continue };
        let with_subcommand = words.len() > 1 && ["XINFO", "XGROUP", "SCRIPT"].contains(words.first().unwrap_or(&""));
        let name = words.iter().take(if with_subcommand { 2 } else { 1 }).copied().collect::<Vec<_>>().join(" ");
        refusals.push(refusal(name, *need, &error));
    }
    Ok(Some(refusals))
}

fn refusal(command: String, needed_for: Need, error: &RedisError) -> Refusal {
    Refusal {
        command,
        needed_for,
        code: error.code().unwrap_or("ERR").to_owned(),
        said: error.detail().unwrap_or_default().to_owned(),
    }
}

fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Commands that only workers or `doctor` send.
    const NOT_THE_MONITORS: [&str; 4] = ["CONFIG", "ACL", "MULTI", "DISCARD"];

    #[test]
    fn all_commands_of_the_monitor_are_examined() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/redis_streams");
        let mut sent = BTreeSet::new();
        for folder in [here.clone(), here.join("scripts")] {
            for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                let name = file.file_name().unwrap().to_str().unwrap();
                // Scripts of workers.
                let of_workers = [
                    "tasks.rs",
                    "claim.lua",
                    "finish.lua",
                    "leave.lua",
                    "release.lua",
                    "renew.lua",
                    "retry.lua",
                    "lock_release.lua",
                    "locked_put.lua",
                ];
                if file.is_dir() || of_workers.contains(&name) {
                    continue;
                }
                let text = fs::read_to_string(&file).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                for (start, end) in
                    [("cmd(\"", '"'), ("command_about(\"", '"'), ("redis.call('", '\''), ("redis.pcall('", '\'')]
                {
                    sent.extend(code.split(start).skip(1).map(|rest| rest.split(end).next().unwrap().to_owned()));
                }
            }
        }
        assert!(sent.len() > 30, "{sent:?}");
        let tried: BTreeSet<String> = COMMANDS.iter().map(|(_, words)| words[0].to_owned()).collect();
        let missing: Vec<&String> =
            sent.iter().filter(|name| !tried.contains(*name) && !NOT_THE_MONITORS.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let never_sent: Vec<&String> = tried.iter().filter(|name| !sent.contains(*name)).collect();
        // Sent by redis-rs for scripts.
        assert_eq!(never_sent, ["EVALSHA", "SCRIPT"]);
    }
}
