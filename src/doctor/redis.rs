//! Checks of Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::bugs;
use super::report::{Finding, count, fine, list, worth_knowing, wrong};
use crate::alerting::message::span;
use crate::contract::Name;
use crate::fleet::older_monitor::OlderMonitor;
use crate::fleet::reading::{Beat, GroupConsumer, GroupReading, SourceTrouble, StreamFacts, TroubleKind};
use crate::redis_streams::diagnostics::{Examined, Fleet, Need, Refusal, Server};
use crate::redis_streams::server_info::SENTINEL;
use crate::tls;

/// Smaller differences between clocks are ignored, seconds.
pub const CLOCKS_DIFFER_SEC: f64 = 2.0;
/// Larger differences between clocks are errors, seconds.
pub const CLOCKS_WRONG_SEC: f64 = 30.0;

/// Returns all findings about an examined Redis. A consumer without a command during `idle` counts as stopped.
#[must_use]
pub fn findings(examined: &Examined, idle: Duration, observe_only: bool) -> Vec<Finding> {
    let server = &examined.server;
    let mut findings = vec![role(server)];
    findings.extend(version(server));
    findings.extend(cluster(server));
    findings.extend(eviction(server));
    findings.extend(memory(server));
    findings.extend(persistence(server));
    findings.extend(server.clock_ahead_sec.map(|ahead| clock("redis.clock", "Redis", ahead)));
    findings.extend(permissions(examined, observe_only));
    findings.extend(examined.older_monitor.map(|older| older_monitor(older, observe_only)));
    match &examined.fleet {
        Ok(fleet) => findings.extend(of_the_fleet(fleet, idle)),
        // Already reported by the finding about its role.
        Err(_) if server.trouble.is_some() => {}
        Err(trouble) => findings.push(wrong(
            "redis.streams",
            format!("cannot read the streams ({})", trouble.detail),
            "the monitor cannot show the fleet",
            "fix the Redis problems above, then run doctor again",
        )),
    }
    findings
}

/// Returns the finding for an unreachable Redis; `tls` says whether the URL requires TLS.
#[must_use]
pub fn not_reached(trouble: &SourceTrouble, tls: bool) -> Finding {
    const MEANS: &str = "the fleet cannot be monitored";
    let said = &trouble.detail;
    if let Some(failure) = tls::explain(said, &tls::REDIS) {
        return wrong("redis.reached", said.clone(), MEANS, failure.remedy);
    }
    if let (TroubleKind::TooManyConnections | TroubleKind::Refused, Some((what, remedy))) =
        (trouble.kind, said.split_once(". "))
    {
        return wrong("redis.reached", what, MEANS, remedy);
    }
    let remedy = match trouble.kind {
        TroubleKind::Refused if said.contains("denied a command") => "grant the command: run ACL SETUSER NAME +COMMAND",
        TroubleKind::Refused => "check REDIS_PASSWORD, or the user and password in REDIS_URL",
        // Without TLS, Redis reads the ClientHello as an incomplete command and waits for more.
        TroubleKind::TimedOut if tls => {
            "check whether the server speaks TLS on this port (if not: redis:// instead of rediss://, or REDIS_TLS=no), is \
             unresponsive, or a firewall drops the packets"
        }
        TroubleKind::TimedOut => "check whether the server is unresponsive or a firewall drops the packets",
        TroubleKind::Loading => "wait until the server has loaded its data",
        _ if names_no_host(said) => {
            "correct the host name in REDIS_URL or REDIS_HOST, or check the DNS configuration of this machine"
        }
        _ if said.contains("Connection refused") => {
            "start the server, or correct REDIS_URL (or REDIS_HOST and REDIS_PORT)"
        }
        _ if said.contains("DB index is out of range") => {
            "correct the database number in REDIS_URL, or raise databases in redis.conf"
        }
        _ if said.contains("No such file or directory") => {
            "start the server, or correct the path of its socket in REDIS_URL or REDIS_HOST"
        }
        _ if said.contains("No route to host") || said.contains("Network is unreachable") => {
            "correct the address in REDIS_URL or REDIS_HOST (an IPv6 address with a port is in brackets: [::1]:6379), or \
             check the routes of this machine"
        }
        _ => {
            "check whether this is the port of Redis, and whether it requires TLS (rediss:// or REDIS_TLS=yes); see the \
             Redis log"
        }
    };
    wrong("redis.reached", said.clone(), MEANS, remedy)
}

/// Returns whether the host name could not be resolved.
pub(super) fn names_no_host(said: &str) -> bool {
    said.contains("failed to lookup address")
        || said.contains("could not resolve any addresses")
        || said.contains("no name server answered")
}

fn cluster(server: &Server) -> Option<Finding> {
    server.cluster.then(|| {
        wrong(
            "redis.cluster",
            "this is a node of a Redis Cluster",
            "a cluster rejects commands and scripts with several keys, including those of the workers",
            "use a Redis with cluster mode disabled (one primary, with or without replicas)",
        )
    })
}

fn role(server: &Server) -> Finding {
    match &server.trouble {
        // This user may not be permitted to use INFO.
        None if server.figures.run_id.is_empty() => fine("redis.role", "connected to Redis"),
        None => fine("redis.role", "connected to Redis, a primary"),
        Some(trouble) if trouble.kind == TroubleKind::Loading => wrong(
            "redis.loading",
            trouble.detail.clone(),
            "the fleet cannot be monitored until loading has finished",
            "wait; INFO persistence shows the progress",
        ),
        Some(trouble) if trouble.detail.starts_with(SENTINEL) => wrong(
            "redis.role",
            SENTINEL,
            "it has no data",
            "set REDIS_URL (or REDIS_HOST and REDIS_PORT) to the primary",
        ),
        Some(_) => wrong(
            "redis.role",
            "this Redis is a replica",
            "its data may be outdated, and it rejects writes",
            "set REDIS_URL (or REDIS_HOST) to the primary",
        ),
    }
}

fn version(server: &Server) -> Vec<Finding> {
    let Some(text) = &server.figures.version else { return Vec::new() };
    if let Some(name) = &server.relative {
        return vec![fine(
            "redis.version",
            format!("the server is {name}, compatible with Redis {text}; known Redis bugs are not checked"),
        )];
    }
    let known = bugs::version(text).map(|version| bugs::findings(version, text)).unwrap_or_default();
    if known.is_empty() { vec![fine("redis.version", format!("Redis {text} is supported"))] } else { known }
}

fn eviction(server: &Server) -> Option<Finding> {
    let policy = server.eviction.as_deref()?;
    let evicted = server.figures.evicted_keys.filter(|evicted| *evicted > 0);
    Some(match (policy, server.figures.maxmemory_bytes) {
        ("noeviction", _) => fine("redis.eviction", "Redis does not evict keys when memory is full (noeviction)"),
        (_, Some(_)) => wrong(
            "redis.eviction",
            format!("Redis evicts keys when memory is full (maxmemory-policy {policy})"),
            match evicted {
                Some(evicted) => format!(
                    "tasks and heartbeats are lost silently; {evicted} keys have been evicted \
                 so far"
                ),
                None => "tasks and heartbeats may be lost silently".to_owned(),
            },
            "run CONFIG SET maxmemory-policy noeviction and set it in redis.conf, or in the parameter group or portal of a \
             managed service",
        ),
        (_, None) => worth_knowing(
            "redis.eviction",
            format!("Redis would evict keys if maxmemory were set (maxmemory-policy {policy})"),
            "without maxmemory nothing is evicted, but setting maxmemory would cause task loss",
            "run CONFIG SET maxmemory-policy noeviction and set it in redis.conf, or in the parameter group or portal of a \
             managed service",
        ),
    })
}

fn memory(server: &Server) -> Option<Finding> {
    let used = server.figures.used_memory_bytes?;
    let Some(limit) = server.figures.maxmemory_bytes else {
        return Some(fine("redis.memory", "Redis has no maxmemory limit"));
    };
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let percent = used as f64 / limit as f64 * 100.0;
    let what = format!("Redis uses {percent:.0} % of its maxmemory");
    let remedy = "raise maxmemory, or reduce usage (the live page shows the longest streams)";
    Some(if percent >= 90.0 {
        wrong("redis.memory", what, "at 100 % it rejects new tasks or evicts keys", remedy)
    } else if percent >= 75.0 {
        worth_knowing("redis.memory", what, "at 100 % it rejects new tasks or evicts keys", remedy)
    } else {
        fine("redis.memory", what)
    })
}

fn persistence(server: &Server) -> Vec<Finding> {
    let mut findings = Vec::new();
    let appends = "run CONFIG SET appendonly yes and set it in redis.conf";
    match (server.appends, server.saves.as_deref()) {
        (Some(true), _) => findings.push(fine("redis.persistence", "the append-only file is on")),
        (Some(false), Some("")) => findings.push(wrong(
            "redis.persistence",
            "Redis persistence is off (no append-only file, no snapshots)",
            "a restart loses all waiting tasks",
            appends,
        )),
        (Some(false), Some(_)) => findings.push(worth_knowing(
            "redis.persistence",
            "Redis persistence uses snapshots only",
            "a crash loses all tasks since the last snapshot",
            appends,
        )),
        (Some(false), None) => findings.push(worth_knowing(
            "redis.persistence",
            "Redis has no append-only file, and this user cannot read the snapshot settings",
            "a restart may lose all waiting tasks",
            "check CONFIG GET save with a user that has the permission",
        )),
        (None, _) => {}
    }
    if server.last_save_failed {
        findings.push(wrong(
            "redis.last_save",
            "the last Redis snapshot failed",
            "by default Redis rejects writes until a snapshot succeeds",
            "see the Redis log; usual causes are a full disk or a directory without write permission",
        ));
    }
    findings
}

/// Returns the finding for a clock that is `ahead` seconds ahead of this machine's.
#[must_use]
pub fn clock(id: &'static str, whose: &str, ahead: f64) -> Finding {
    let what = format!(
        "the clock of {whose} is {} {} the clock of this machine",
        span(ahead.abs()),
        if ahead > 0.0 { "ahead of" } else { "behind" }
    );
    let means = "times and ages on pages, in the history and in notifications are inconsistent";
    let remedy = "synchronize both clocks with NTP";
    if ahead.abs() >= CLOCKS_WRONG_SEC {
        wrong(id, what, means, remedy)
    } else if ahead.abs() >= CLOCKS_DIFFER_SEC {
        worth_knowing(id, what, means, remedy)
    } else {
        fine(id, format!("the clocks of {whose} and this machine agree"))
    }
}

fn older_monitor(older: OlderMonitor, observe_only: bool) -> Finding {
    const ID: &str = "redis.older_monitor";
    match (older, observe_only) {
        (OlderMonitor::Absent, _) => fine(ID, "no older monitor is active on this Redis"),
        (OlderMonitor::Active | OlderMonitor::Unknown, true) => {
            fine(ID, "an older monitor may be active on this Redis; this one is read-only (MONITOR_OBSERVE_ONLY)")
        }
        (OlderMonitor::Active, false) => wrong(
            ID,
            "an older monitor is active on this Redis",
            "both monitors send alerts; only the older one runs scheduled cleanup and records task durations",
            "stop the older monitor, or set MONITOR_OBSERVE_ONLY=yes for a trial (docs/upgrade.md)",
        ),
        (OlderMonitor::Unknown, false) => worth_knowing(
            ID,
            "an older monitor wrote to this Redis less than a minute ago",
            "if it is still active, both send alerts",
            "ignore this if you stopped it; otherwise stop it, or set MONITOR_OBSERVE_ONLY=yes",
        ),
    }
}

fn permissions(examined: &Examined, observe_only: bool) -> Vec<Finding> {
    let Some(refusals) = &examined.refusals else { return Vec::new() };
    // An observer only reads.
    let refusals: Vec<&Refusal> =
        refusals.iter().filter(|refusal| !observe_only || refusal.needed_for <= Need::Watching).collect();
    let user = examined.user.as_deref().unwrap_or("NAME");
    let mut findings = Vec::new();
    let (forbidden, others): (Vec<&Refusal>, Vec<&Refusal>) = refusals.into_iter().partition(|r| r.code == "NOPERM");
    let mut by_need: BTreeMap<Need, Vec<&Refusal>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for refusal in forbidden.into_iter().filter(|refusal| named.insert(refusal.command.as_str())) {
        by_need.entry(refusal.needed_for).or_default().push(refusal);
    }
    for (need, refused) in by_need {
        let (id, means) = match need {
            Need::Describing => (
                "redis.may_describe",
                "the figures of the server are unknown, and a replica is noticed only when it rejects a write",
            ),
            Need::Discovering => {
                ("redis.may_discover", "streams are found only if workers are known or MONITOR_SEED_STREAMS lists them")
            }
            Need::Watching => ("redis.may_watch", "the fleet cannot be monitored"),
            Need::Remembering => ("redis.may_remember", "states, history and events cannot be stored"),
            Need::Tending => ("redis.may_tend", "cleanup and operator actions on messages fail"),
        };
        let about_keys = |refusal: &&&Refusal| refusal.said.contains("access");
        let keys = refused.iter().any(|refusal| about_keys(&refusal));
        let commands = refused.iter().filter(|refusal| !about_keys(refusal)).map(|r| rule(&r.command));
        let mut rules: Vec<String> = commands.collect();
        rules.extend(keys.then(|| "~*".to_owned()));
        findings.push(wrong(
            id,
            format!("Redis user {user} is not allowed to run {}", list(refused.iter().map(|r| r.command.clone()))),
            means,
            format!("run ACL SETUSER {user} {}", rules.join(" ")),
        ));
    }
    // Already reported by the finding about the cluster.
    let of_cluster = |refusal: &&Refusal| CODES_OF_CLUSTER.contains(&refusal.code.as_str());
    let is_cluster = examined.server.cluster;
    let others: Vec<&Refusal> = others.into_iter().filter(|refusal| !(is_cluster && of_cluster(refusal))).collect();
    if let Some(refusal) = others.first() {
        // When out of memory, Redis rejects all commands in a transaction, including those that it would otherwise accept.
        let what = if refusal.code == "OOM" {
            "commands that need memory".to_owned()
        } else {
            list(others.iter().map(|r| r.command.clone()))
        };
        findings.push(wrong(
            "redis.refuses",
            format!("Redis rejects {what} ({} {})", refusal.code, refusal.said.trim_end_matches('.')),
            "the monitor works only partially, or not at all",
            remedy(refusal, &examined.server),
        ));
    }
    if findings.is_empty() && !is_cluster {
        findings.push(fine("redis.may", "the Redis user may run all required commands"));
    }
    findings
}

/// Error codes with which a cluster node rejects keys of other nodes.
const CODES_OF_CLUSTER: [&str; 5] = ["MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"];

/// Returns the remedy for a command that Redis rejects for every user.
fn remedy(refusal: &Refusal, server: &Server) -> &'static str {
    let version = server.figures.version.as_deref().and_then(bugs::version);
    let too_old = server.relative.is_none() && version.is_some_and(|version| version < bugs::LEAST);
    match refusal.code.as_str() {
        "OOM" => "raise maxmemory, or reduce memory usage",
        "MISCONF" => "free disk space and make the Redis data directory writable; see the Redis log",
        code if CODES_OF_CLUSTER.contains(&code) => {
            "use a Redis with cluster mode disabled (one primary, with or without replicas)"
        }
        "READONLY" => "set REDIS_URL (or REDIS_HOST) to the primary",
        "NOREPLICAS" => "restore the replicas, or lower min-replicas-to-write",
        "BUSY" => "wait for the running script, or stop it with SCRIPT KILL",
        _ if too_old => "upgrade it to 6.2.7 or later",
        _ if refusal.said.contains("unknown command") || refusal.said.contains("unsupported") => {
            "the server renames or disables the command (rename-command in redis.conf), or a proxy does not support it: \
             enable the command, or connect to the server directly"
        }
        _ => "see the error message; a proxy in front of Redis may have rejected the command",
    }
}

/// Returns the ACL rule that permits a command.
fn rule(command: &str) -> String {
    format!("+{}", command.to_lowercase().replace(' ', "|"))
}

fn of_the_fleet(fleet: &Fleet, idle: Duration) -> Vec<Finding> {
    let readings: Vec<(&Name, &StreamFacts)> = fleet
        .streams
        .streams
        .iter()
        .filter_map(|(name, stream)| Some((name, stream.facts.as_ref().ok().filter(|facts| facts.exists)?)))
        .collect();
    let (dead, streams): (Vec<_>, Vec<_>) =
        readings.into_iter().partition(|(name, _)| name.as_bytes().ends_with(b":dead"));
    let mut findings = Vec::new();
    findings.extend(unread(fleet));
    findings.extend(without_group(&streams));
    findings.extend(groups(&streams, fleet, idle));
    findings.extend(consumers(&streams, fleet, idle));
    findings.extend(phantom_pending(&streams));
    findings.extend(heartbeats(fleet));
    findings.extend(dead_letters(&dead));
    if findings.is_empty() {
        findings.push(fine(
            "redis.streams",
            format!("{}, all with active consumer groups", count(streams.len(), "stream")),
        ));
    }
    findings
}

fn unread(fleet: &Fleet) -> Vec<Finding> {
    let mut findings = Vec::new();
    let failed: Vec<String> = fleet
        .streams
        .streams
        .iter()
        .filter_map(|(name, stream)| Some(format!("{name} ({})", stream.facts.as_ref().err()?)))
        .collect();
    if !failed.is_empty() {
        findings.push(wrong(
            "redis.stream_unreadable",
            format!("{} unreadable: {}", count(failed.len(), "stream"), list(failed)),
            "the monitor cannot show it",
            "fix the error in parentheses, or remove the name from MONITOR_STREAMS and MONITOR_SEED_STREAMS",
        ));
    }
    if fleet.too_many_keys {
        findings.push(worth_knowing(
            "redis.keyspace",
            "not all keys were scanned because there are too many",
            "streams may be missing from this report; the monitor finds them over time",
            "list the streams in MONITOR_SEED_STREAMS",
        ));
    }
    findings
}

fn without_group(streams: &[(&Name, &StreamFacts)]) -> Option<Finding> {
    let found: Vec<String> = streams
        .iter()
        .filter(|(_, facts)| facts.length > 0 && facts.groups.is_empty())
        .map(|(name, facts)| format!("{name} ({} messages)", facts.length))
        .collect();
    (!found.is_empty()).then(|| {
        worth_knowing(
            "redis.without_group",
            format!("{} with messages but no consumer group: {}", count(found.len(), "stream"), list(found)),
            "the messages are not consumed and not trimmed",
            "start its workers, which create the group; or exclude it with MONITOR_STREAMS_EXCLUDE if it is a log",
        )
    })
}

/// Returns the groups of all streams, with stream and consumers; skips groups whose consumers could not be read.
fn all_groups<'a>(
    streams: &'a [(&'a Name, &'a StreamFacts)],
) -> impl Iterator<Item = (&'a Name, &'a GroupReading, &'a [GroupConsumer])> {
    streams
        .iter()
        .flat_map(|(name, facts)| facts.groups.iter().filter_map(|g| Some((*name, g, g.consumers.as_deref()?))))
}

fn waits(group: &GroupReading) -> bool {
    group.pending > group.phantom_pending || group.lag.value().is_some_and(|lag| lag > 0)
}

/// Returns the consumers of `stream` that have a heartbeat.
fn alive<'a>(fleet: &'a Fleet, stream: &Name) -> impl Iterator<Item = &'a Name> {
    let of_stream = fleet.heartbeats.consumers.get(stream).into_iter().flatten();
    of_stream.filter(|(_, reading)| reading.beat != Beat::Absent).map(|(name, _)| name)
}

/// Returns whether `group` has a live worker: a consumer with a heartbeat that the group lists, or that no group of the stream
/// lists. Redis lists a consumer only after it received an entry, and no longer once it was deleted.
fn has_live_workers(fleet: &Fleet, stream: &Name, groups: &[GroupReading], group: &GroupReading) -> bool {
    let lists = |group: &GroupReading, worker: &Name| {
        group.consumers.iter().flat_map(|all| all.iter()).any(|consumer| consumer.name == *worker)
    };
    alive(fleet, stream).any(|worker| lists(group, worker) || !groups.iter().any(|other| lists(other, worker)))
}

fn groups(streams: &[(&Name, &StreamFacts)], fleet: &Fleet, idle: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let told = |stream: &Name, group: &GroupReading| format!("{} of {stream}", group.name);
    let (attended, unattended): (Vec<_>, Vec<_>) = streams
        .iter()
        .flat_map(|(name, facts)| facts.groups.iter().map(move |group| (*name, *facts, group)))
        .filter_map(|(name, facts, group)| Some((name, facts, group, group.consumers.as_deref()?)))
        .partition(|(name, facts, group, _)| has_live_workers(fleet, name, &facts.groups, group));
    let (waiting, at_rest): (Vec<_>, Vec<_>) =
        unattended.iter().filter(|(.., consumers)| consumers.is_empty()).partition(|(_, _, group, _)| waits(group));
    if !waiting.is_empty() {
        findings.push(wrong(
            "redis.without_consumer",
            format!(
                "{} with messages but no consumers: {}",
                count(waiting.len(), "group"),
                list(waiting.iter().map(|(stream, _, group, _)| told(stream, group)))
            ),
            "the messages are not processed, and nothing after the group's position is trimmed",
            "start its workers, or remove the group with XGROUP DESTROY if it is unused",
        ));
    }
    if !at_rest.is_empty() {
        findings.push(worth_knowing(
            "redis.group_at_rest",
            format!(
                "{} with no consumers and no messages: {}",
                count(at_rest.len(), "group"),
                list(at_rest.iter().map(|(stream, _, group, _)| told(stream, group)))
            ),
            "new messages will wait and are not trimmed",
            "start its workers, or remove the group with XGROUP DESTROY if it is unused",
        ));
    }
    let has_stopped = |(stream, _, group, consumers): &(&Name, &StreamFacts, &GroupReading, &[GroupConsumer])| {
        if consumers.iter().any(|consumer| Duration::from_millis(consumer.idle_ms) < idle) {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a date fit a double")]
        let age = fleet.streams.redis_time - group.oldest_undelivered_ms? as f64 / 1000.0;
        (age >= idle.as_secs_f64()).then(|| format!("{} (since {})", told(stream, group), span(age)))
    };
    let stopped: Vec<String> =
        unattended.iter().filter(|(.., consumers)| !consumers.is_empty()).filter_map(has_stopped).collect();
    if !stopped.is_empty() {
        findings.push(wrong(
            "redis.group_stopped",
            format!("{} stopped reading: {}", count(stopped.len(), "group"), list(stopped)),
            "messages wait, and the stream cannot be trimmed past the group's position",
            "start its workers; or move (XGROUP SETID) or remove (XGROUP DESTROY) the group if it is unused",
        ));
    }
    let stuck: Vec<String> = attended.iter().filter_map(has_stopped).collect();
    if !stuck.is_empty() {
        findings.push(wrong(
            "redis.workers_stuck",
            format!("{} not read although its workers are alive: {}", count(stuck.len(), "group"), list(stuck)),
            "the workers write heartbeats but read no messages, so messages wait",
            "check the workers' logs and restart them; keep the group, which stores the position",
        ));
    }
    findings
}

fn phantom_pending(streams: &[(&Name, &StreamFacts)]) -> Option<Finding> {
    let groups: Vec<(&Name, &GroupReading)> = streams
        .iter()
        .flat_map(|(name, facts)| facts.groups.iter().map(move |group| (*name, group)))
        .filter(|(_, group)| group.phantom_pending > 0)
        .collect();
    let total: u64 = groups.iter().map(|(_, group)| group.phantom_pending).sum();
    let least = if groups.iter().any(|(_, group)| group.phantom_at_least) { "≥ " } else { "" };
    (total > 0).then(|| {
        worth_knowing(
            "redis.phantom_pending",
            format!(
                "{least}{} without an entry in the stream (phantom pending): {}",
                count(usize::try_from(total).unwrap_or(usize::MAX), "pending ID"),
                list(groups.iter().map(|(stream, group)| format!("{} of {stream}", group.name)))
            ),
            "the entries were deleted or trimmed while pending; no worker can process them",
            "run a monitor, whose janitor acknowledges them; find out what deletes pending entries (the older \
             monitor does)",
        )
    })
}

fn consumers(streams: &[(&Name, &StreamFacts)], fleet: &Fleet, idle: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let absent = |stream: &Name, consumer: &Name| {
        let of_stream = fleet.heartbeats.consumers.get(stream);
        let reading = of_stream.and_then(|all| all.iter().find(|(name, _)| name == consumer));
        reading.is_none_or(|(_, reading)| reading.beat == Beat::Absent)
    };
    let gone: Vec<(&Name, &GroupConsumer)> = all_groups(streams)
        .flat_map(|(stream, _, consumers)| consumers.iter().map(move |consumer| (stream, consumer)))
        .filter(|(_, consumer)| Duration::from_millis(consumer.idle_ms) >= idle)
        .filter(|(stream, consumer)| absent(stream, &consumer.name))
        .collect();
    let (holding, phantoms): (Vec<_>, Vec<_>) =
        gone.into_iter().partition(|(_, consumer)| consumer.pending > consumer.phantom_pending);
    let told = |stream: &Name, consumer: &GroupConsumer| format!("{} of {stream}", consumer.name);
    if !holding.is_empty() {
        let messages: u64 =
            holding.iter().map(|(_, consumer)| consumer.pending.saturating_sub(consumer.phantom_pending)).sum();
        findings.push(wrong(
            "redis.dead_consumer",
            format!(
                "{} pending on {} without heartbeat: {}",
                count(usize::try_from(messages).unwrap_or(usize::MAX), "message"),
                count(holding.len(), "consumer"),
                list(holding.iter().map(|(stream, consumer)| told(stream, consumer)))
            ),
            "their workers are gone and the messages were not reclaimed",
            "start a worker of the stream, or retry the messages on the page /admin/dead-consumers",
        ));
    }
    if !phantoms.is_empty() {
        findings.push(worth_knowing(
            "redis.phantom",
            format!(
                "{} of stopped processes: {}",
                count(phantoms.len(), "consumer"),
                list(phantoms.iter().map(|(stream, consumer)| told(stream, consumer)))
            ),
            "they have no pending messages but slow down polling; before Redis 7.2 an idle consumer looks the same",
            "run a monitor, whose janitor removes them after an hour",
        ));
    }
    findings
}

fn heartbeats(fleet: &Fleet) -> Option<Finding> {
    let unreadable = &fleet.heartbeats.unreadable;
    (!unreadable.is_empty()).then(|| {
        wrong(
            "redis.heartbeat_unreadable",
            format!(
                "{} unreadable: {}",
                count(unreadable.len(), "heartbeat"),
                list(unreadable.iter().map(|bad| format!("{} ({})", bad.key, bad.reason)))
            ),
            "the worker is shown as unreadable, whatever its state",
            "make the worker write the JSON format of docs/troubleshooting.md",
        )
    })
}

fn dead_letters(dead: &[(&Name, &StreamFacts)]) -> Option<Finding> {
    let letters: u64 = dead.iter().map(|(_, facts)| facts.length).sum();
    (letters > 0).then(|| {
        worth_knowing(
            "redis.dead_letters",
            format!(
                "{} in {}",
                count(usize::try_from(letters).unwrap_or(usize::MAX), "dead letter"),
                list(dead.iter().map(|(name, _)| name.to_text()))
            ),
            "these tasks could not be processed",
            "list them with `shepherd-monitor dead-letters list --stream NAME`, then replay or delete them",
        )
    })
}
