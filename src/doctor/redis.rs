//! What is wrong with a Redis for this use.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bugs;
use super::report::{Finding, count, fine, list, worth_knowing, wrong};
use crate::alerting::message::span;
use crate::contract::Name;
use crate::fleet::older_monitor::OlderMonitor;
use crate::fleet::reading::{Beat, GroupConsumer, GroupReading, SourceTrouble, StreamFacts, TroubleKind};
use crate::redis_streams::examine::{Examined, Fleet, Need, Refusal, Server};

/// Clocks that differ by less are called equal.
pub const CLOCKS_DIFFER_SEC: f64 = 2.0;
/// Clocks that differ by more are wrong.
pub const CLOCKS_WRONG_SEC: f64 = 30.0;

/// All findings about a Redis that was looked over. Who asked for nothing during `idle` has stopped.
#[must_use]
pub fn findings(examined: &Examined, idle: Duration, observe_only: bool) -> Vec<Finding> {
    let server = &examined.server;
    let mut findings = vec![role(server)];
    findings.extend(version(server));
    findings.extend(eviction(server));
    findings.extend(memory(server));
    findings.extend(persistence(server));
    findings.extend(server.clock_ahead_sec.map(|ahead| clock("redis.clock", "Redis", ahead)));
    findings.extend(permissions(examined, observe_only));
    findings.extend(examined.older_monitor.map(|older| older_monitor(older, observe_only)));
    match &examined.fleet {
        Ok(fleet) => findings.extend(of_the_fleet(fleet, idle)),
        // Told as its role already.
        Err(_) if server.trouble.is_some() => {}
        Err(trouble) => findings.push(wrong(
            "redis.streams",
            format!("the streams cannot be read ({})", trouble.detail),
            "the monitor shows nothing of the fleet",
            "mend what is said above about Redis, then ask again",
        )),
    }
    findings
}

/// That Redis cannot be asked at all.
#[must_use]
pub fn not_reached(trouble: &SourceTrouble) -> Finding {
    let remedy = match trouble.kind {
        TroubleKind::Refused => "set REDIS_PASSWORD, or user and password in REDIS_URL, as the server has them",
        TroubleKind::TimedOut => "see whether the server hangs or a firewall swallows what is sent to it",
        TroubleKind::Loading => "wait: it answers when its data is loaded",
        _ => "start the server, or set REDIS_URL (or REDIS_HOST and REDIS_PORT) to where it is",
    };
    wrong("redis.reached", trouble.detail.clone(), "nothing can be watched", remedy)
}

fn role(server: &Server) -> Finding {
    match &server.trouble {
        // INFO may be forbidden to this user.
        None if server.figures.run_id.is_empty() => fine("redis.role", "Redis answers"),
        None => fine("redis.role", "Redis answers, and is a primary"),
        Some(trouble) if trouble.kind == TroubleKind::Loading => wrong(
            "redis.loading",
            trouble.detail.clone(),
            "until it is done nothing can be watched",
            "wait; INFO persistence says how far it is",
        ),
        Some(_) => wrong(
            "redis.role",
            "this Redis is a replica",
            "what it says may be old, and what the monitor writes down it refuses",
            "set REDIS_URL (or REDIS_HOST) to the primary",
        ),
    }
}

fn version(server: &Server) -> Vec<Finding> {
    let Some(text) = &server.figures.version else { return Vec::new() };
    if let Some(name) = &server.relative {
        return vec![fine(
            "redis.version",
            format!("it is {name}, which speaks like Redis {text}; Redis' own bugs are not looked up for it"),
        )];
    }
    let known = bugs::version(text).map(|version| bugs::findings(version, text)).unwrap_or_default();
    if known.is_empty() { vec![fine("redis.version", format!("Redis {text} is new enough"))] } else { known }
}

fn eviction(server: &Server) -> Option<Finding> {
    let policy = server.eviction.as_deref()?;
    let evicted = server.figures.evicted_keys.filter(|evicted| *evicted > 0);
    Some(match (policy, server.figures.maxmemory_bytes) {
        ("noeviction", _) => fine("redis.eviction", "Redis deletes nothing when it is full (noeviction)"),
        (_, Some(_)) => wrong(
            "redis.eviction",
            format!("Redis deletes keys when it is full (maxmemory-policy {policy})"),
            match evicted {
                Some(evicted) => format!("waiting tasks and heartbeats vanish unnoticed; {evicted} keys have already"),
                None => "waiting tasks and heartbeats may vanish unnoticed".to_owned(),
            },
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        ),
        (_, None) => worth_knowing(
            "redis.eviction",
            format!("Redis would delete keys when it is full (maxmemory-policy {policy})"),
            "without maxmemory it never is, but whoever sets that lets tasks vanish",
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        ),
    })
}

fn memory(server: &Server) -> Option<Finding> {
    let used = server.figures.used_memory_bytes?;
    let Some(limit) = server.figures.maxmemory_bytes else {
        return Some(fine("redis.memory", "Redis has no memory limit of its own"));
    };
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let percent = used as f64 / limit as f64 * 100.0;
    let what = format!("Redis uses {percent:.0} % of its maxmemory");
    let remedy = "raise maxmemory, or find out what fills it (the longest streams are on the live page)";
    Some(if percent >= 90.0 {
        wrong("redis.memory", what, "at 100 % it refuses new tasks, or deletes keys", remedy)
    } else if percent >= 75.0 {
        worth_knowing("redis.memory", what, "at 100 % it refuses new tasks, or deletes keys", remedy)
    } else {
        fine("redis.memory", what)
    })
}

fn persistence(server: &Server) -> Vec<Finding> {
    let mut findings = Vec::new();
    let appends = "CONFIG SET appendonly yes, and the same in redis.conf";
    match (server.appends, server.saves.as_deref()) {
        (Some(true), _) => {
            findings.push(fine("redis.persistence", "Redis writes every change to its append-only file"))
        }
        (Some(false), Some("")) => findings.push(wrong(
            "redis.persistence",
            "Redis keeps nothing on disk (no append-only file, no snapshots)",
            "a restart loses every waiting task",
            appends,
        )),
        (Some(false), Some(_)) => findings.push(worth_knowing(
            "redis.persistence",
            "Redis saves snapshots only",
            "a crash loses the tasks since the last one",
            appends,
        )),
        (Some(false), None) => findings.push(worth_knowing(
            "redis.persistence",
            "Redis has no append-only file, and does not tell this user whether it saves snapshots",
            "a restart may lose every waiting task",
            "let somebody who may look at CONFIG GET save",
        )),
        (None, _) => {}
    }
    if server.last_save_failed {
        findings.push(wrong(
            "redis.last_save",
            "the last snapshot of Redis failed",
            "unless told otherwise it refuses every change until one succeeds",
            "look into its log: mostly the disk is full or its folder may not be written",
        ));
    }
    findings
}

/// What a clock that is `ahead` seconds before this machine's means.
#[must_use]
pub fn clock(id: &'static str, whose: &str, ahead: f64) -> Finding {
    let what = format!(
        "the clock of {whose} is {} {} this machine's",
        span(ahead.abs()),
        if ahead > 0.0 { "ahead of" } else { "behind" }
    );
    let means = "ages and times on the pages, in the history and in messages do not fit together";
    let remedy = "let both machines set their clocks by the network (NTP)";
    if ahead.abs() >= CLOCKS_WRONG_SEC {
        wrong(id, what, means, remedy)
    } else if ahead.abs() >= CLOCKS_DIFFER_SEC {
        worth_knowing(id, what, means, remedy)
    } else {
        fine(id, format!("the clock of {whose} agrees with this machine's"))
    }
}

fn older_monitor(older: OlderMonitor, observe_only: bool) -> Finding {
    const ID: &str = "redis.older_monitor";
    match (older, observe_only) {
        (OlderMonitor::Absent, _) => fine(ID, "no older monitor is active on this Redis"),
        (OlderMonitor::Active | OlderMonitor::Unknown, true) => {
            fine(ID, "an older monitor may be active on this Redis; this one only observes (MONITOR_OBSERVE_ONLY)")
        }
        (OlderMonitor::Active, false) => wrong(
            ID,
            "an older monitor is active on this Redis",
            "beside this one both send alerts; scheduled cleanup and task durations are left to the older one",
            "stop the older monitor, or set MONITOR_OBSERVE_ONLY=yes for a trial (docs/upgrade.md)",
        ),
        (OlderMonitor::Unknown, false) => worth_knowing(
            ID,
            "an older monitor wrote to this Redis less than a minute ago",
            "if it is still active, both send alerts",
            "if it was stopped on purpose, ignore this; else stop it, or set MONITOR_OBSERVE_ONLY=yes",
        ),
    }
}

fn permissions(examined: &Examined, observe_only: bool) -> Vec<Finding> {
    let Some(refusals) = &examined.refusals else { return Vec::new() };
    // Whoever only observes needs to read, and nothing else.
    let refusals: Vec<&Refusal> =
        refusals.iter().filter(|refusal| !observe_only || refusal.needed_for == Need::Watching).collect();
    let user = examined.user.as_deref().unwrap_or("NAME");
    let mut findings = Vec::new();
    let (forbidden, others): (Vec<&Refusal>, Vec<&Refusal>) = refusals.into_iter().partition(|r| r.code == "NOPERM");
    let mut by_need: BTreeMap<Need, Vec<&Refusal>> = BTreeMap::new();
    for refusal in forbidden {
        by_need.entry(refusal.needed_for).or_default().push(refusal);
    }
    for (need, refused) in by_need {
        let (id, means) = match need {
            Need::Watching => ("redis.may_watch", "the monitor cannot watch the fleet"),
            Need::Remembering => ("redis.may_remember", "the monitor cannot keep states, history and events"),
            Need::Tending => ("redis.may_tend", "the janitor and the operator's pages cannot do their work"),
        };
        let about_keys = |refusal: &&&Refusal| refusal.said.contains("access");
        let keys = refused.iter().any(|refusal| about_keys(&refusal));
        let commands = refused.iter().filter(|refusal| !about_keys(refusal)).map(|r| rule(&r.command));
        let mut rules: Vec<String> = commands.collect();
        rules.extend(keys.then(|| "~*".to_owned()));
        findings.push(wrong(
            id,
            format!("user {user} of Redis may not send {}", list(refused.iter().map(|r| r.command.clone()))),
            means,
            format!("ACL SETUSER {user} {}", rules.join(" ")),
        ));
    }
    if let Some(refusal) = others.first() {
        // Of a full one a transaction takes nothing at all, whatever it would do alone.
        let what = if refusal.code == "OOM" {
            "whatever needs memory".to_owned()
        } else {
            list(others.iter().map(|r| r.command.clone()))
        };
        findings.push(wrong(
            "redis.refuses",
            format!("Redis refuses {what} ({} {})", refusal.code, refusal.said.trim_end_matches('.')),
            "the monitor can do its work only in part, or not at all",
            match refusal.code.as_str() {
                "OOM" => "raise maxmemory, or remove what fills it",
                "MISCONF" => "make its disk and folder writable; its log says why a snapshot failed",
                _ => "upgrade it to 6.2.7 or later",
            },
        ));
    }
    if findings.is_empty() {
        findings.push(fine("redis.may", "the user of Redis may send every command that the monitor needs"));
    }
    findings
}

/// The rule that permits a command.
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
        findings
            .push(fine("redis.streams", format!("{}, each with groups that are read", count(streams.len(), "stream"))));
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
            format!("{} cannot be read: {}", count(failed.len(), "stream"), list(failed)),
            "the monitor knows nothing of it",
            "mend what stands in the parentheses, or leave the name out of MONITOR_STREAMS and MONITOR_SEED_STREAMS",
        ));
    }
    if !fleet.complete {
        findings.push(worth_knowing(
            "redis.keyspace",
            "there are so many keys that not all were looked at",
            "streams may be missing here; the monitor finds them with time",
            "name the streams in MONITOR_SEED_STREAMS",
        ));
    }
    findings
}

fn without_group(streams: &[(&Name, &StreamFacts)]) -> Option<Finding> {
    let found: Vec<String> = streams
        .iter()
        .filter(|(_, facts)| facts.length > 0 && facts.groups.is_empty())
        .map(|(name, facts)| format!("{name} ({} entries)", facts.length))
        .collect();
    (!found.is_empty()).then(|| {
        worth_knowing(
            "redis.without_group",
            format!("{} with entries and no consumer group: {}", count(found.len(), "stream"), list(found)),
            "nobody takes them, and the janitor trims nothing there",
            "start the workers of it, which make the group; or leave it out with MONITOR_STREAMS_EXCLUDE if it is a log",
        )
    })
}

/// Groups of all streams, with their stream and consumers; those whose consumers could not be read are left out.
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

/// Consumers of `stream` that have a heartbeat.
fn alive<'a>(fleet: &'a Fleet, stream: &Name) -> impl Iterator<Item = &'a Name> {
    let of_stream = fleet.heartbeats.consumers.get(stream).into_iter().flatten();
    of_stream.filter(|(_, reading)| reading.beat != Beat::Absent).map(|(name, _)| name)
}

/// Whether a worker that has a heartbeat reads for `group`: the group lists it, or no group of the stream does. Redis
/// lists a consumer only once it has been given something, and no longer after somebody deleted it.
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
                "{} with work and no consumer: {}",
                count(waiting.len(), "group"),
                list(waiting.iter().map(|(stream, _, group, _)| told(stream, group)))
            ),
            "nobody does that work, and the janitor keeps every entry behind the group's position",
            "start its workers; or XGROUP DESTROY the group if nobody needs it",
        ));
    }
    if !at_rest.is_empty() {
        findings.push(worth_knowing(
            "redis.group_at_rest",
            format!(
                "{} with no consumer and nothing to do: {}",
                count(at_rest.len(), "group"),
                list(at_rest.iter().map(|(stream, _, group, _)| told(stream, group)))
            ),
            "what comes will wait, and be kept",
            "start its workers, or XGROUP DESTROY the group if nobody needs it",
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
            "its work waits, and the janitor cannot trim the stream behind its position",
            "start its workers; or move it (XGROUP SETID) or remove it (XGROUP DESTROY) if nobody needs it",
        ));
    }
    let stuck: Vec<String> = attended.iter().filter_map(has_stopped).collect();
    if !stuck.is_empty() {
        findings.push(wrong(
            "redis.workers_stuck",
            format!("{} not read although its workers are alive: {}", count(stuck.len(), "group"), list(stuck)),
            "the workers write heartbeats and take no messages, so the messages wait",
            "look at the workers' logs and restart them; keep the group, which holds their position",
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
                "{least}{} without an entry in the stream: {}",
                count(usize::try_from(total).unwrap_or(usize::MAX), "pending ID"),
                list(groups.iter().map(|(stream, group)| format!("{} of {stream}", group.name)))
            ),
            "their entries were deleted or trimmed while they were pending: no worker can run them, and they are not work",
            "let a monitor run, whose janitor acknowledges them; find out who deletes pending entries (the janitor of the \
             older monitor does)",
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
                "{messages} messages are held by {} without heartbeat: {}",
                count(holding.len(), "consumer"),
                list(holding.iter().map(|(stream, consumer)| told(stream, consumer)))
            ),
            "their workers are gone and nobody took them over",
            "start a worker of that stream, or hand them back on the page /admin/dead-consumers",
        ));
    }
    if !phantoms.is_empty() {
        findings.push(worth_knowing(
            "redis.phantom",
            format!(
                "{} left of processes that are gone: {}",
                count(phantoms.len(), "consumer"),
                list(phantoms.iter().map(|(stream, consumer)| told(stream, consumer)))
            ),
            "they hold nothing and make every reading longer; before Redis 7.2 one that waits in vain looks the same",
            "let a monitor run, whose janitor removes them after an hour",
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
                "{} cannot be read: {}",
                count(unreadable.len(), "heartbeat"),
                list(unreadable.iter().map(|bad| format!("{} ({})", bad.key, bad.reason)))
            ),
            "that worker is shown as unreadable, whatever it does",
            "let it write the JSON that docs/troubleshooting.md shows",
        )
    })
}

fn dead_letters(dead: &[(&Name, &StreamFacts)]) -> Option<Finding> {
    let letters: u64 = dead.iter().map(|(_, facts)| facts.length).sum();
    (letters > 0).then(|| {
        worth_knowing(
            "redis.dead_letters",
            format!("{letters} dead letters in {}", list(dead.iter().map(|(name, _)| name.to_text()))),
            "no worker could finish these tasks",
            "look at them with shepherd-monitor dead-letters list --stream NAME, then replay or drop them",
        )
    })
}
