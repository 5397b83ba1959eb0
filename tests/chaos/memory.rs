//! Redis at `maxmemory` for two minutes under load, without eviction: nothing is lost, a cleanup frees memory, the
//! notification names it, and no worker counts as crashed.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;

use crate::fleet::{Fleet, KINDS};
use crate::journal::{Fault, now};
use crate::receiver::Receiver;
use crate::tasks::Tasks;

/// A stream whose entries are all finished.
const FINISHED: &str = "chaos.finished";
const ENTRIES: usize = 20_000;
/// For so long Redis is full before the cleanup, and again after it.
const FULL_FOR: Duration = Duration::from_secs(60);
/// So many seconds after Redis is full, the notification has been sent.
const NOTIFIED_WITHIN: f64 = 30.0;

pub(crate) fn run(fleet: &Fleet, tasks: &Tasks, receiver: &Receiver, handle: &Handle) {
    let journal = &fleet.journal;
    fill(fleet).expect("the stream of finished entries is written");
    sleep(Duration::from_secs(3));
    let from = now();
    limit_below_use(fleet);
    journal.act("Redis: full", format!("for {FULL_FOR:?}, with {ENTRIES} finished entries"));
    sleep(FULL_FOR);
    all_are_alive(fleet, handle);
    let before = used(fleet).unwrap();
    let cleaned = clean_up(fleet, handle);
    let removed = cleaned["details"]["streams"][FINISHED]["removed"].as_u64().unwrap_or_default();
    let after = used(fleet).unwrap();
    journal.say(format!("cleanup: {removed} entries removed, {before} bytes used before, {after} after"));
    if removed < ENTRIES as u64 * 9 / 10 || after + 1_000_000 > before {
        journal
            .violation(format!("the cleanup freed no memory: {removed} entries, {before} -> {after} bytes: {cleaned}"));
    }
    let freed = now();
    sleep(Duration::from_secs(5));
    if tasks.all_steps_after(freed).is_none() {
        journal.violation("no task was completed within 5 s of the cleanup");
    }
    limit_below_use(fleet);
    journal.act("Redis: full", format!("for {FULL_FOR:?}, nothing to remove"));
    sleep(FULL_FOR);
    all_are_alive(fleet, handle);
    limit(fleet, "0");
    journal.window(Fault::Redis, from);
    let named = receiver
        .posts()
        .iter()
        .find(|post| post.accepted && post.body["alerts"].as_array().into_iter().flatten().any(names_memory))
        .map(|post| post.at - from);
    match named {
        Some(after) if after <= NOTIFIED_WITHIN => journal.say(format!("the notification came after {after:.1} s")),
        other => journal.violation(format!("the notification that names memory came after {other:?} s")),
    }
}

fn names_memory(alert: &Value) -> bool {
    alert["labels"]["alertname"] == "writes_refused" && alert["annotations"].to_string().contains("memory")
}

fn fill(fleet: &Fleet) -> redis::RedisResult<()> {
    let mut redis = fleet.redis_now()?;
    redis::cmd("XGROUP").arg(&["CREATE", FINISHED, "consumer", "$", "MKSTREAM"]).exec(&mut redis)?;
    for _ in 0..ENTRIES / 500 {
        let mut pipe = redis::pipe();
        for _ in 0..500 {
            pipe.cmd("XADD").arg(&[FINISHED, "*", "f", &"x".repeat(500)]).ignore();
        }
        pipe.query::<()>(&mut redis)?;
    }
    redis::cmd("XGROUP").arg(&["SETID", FINISHED, "consumer", "$"]).exec(&mut redis)
}

fn used(fleet: &Fleet) -> redis::RedisResult<u64> {
    let info: String = redis::cmd("INFO").arg("memory").query(&mut fleet.redis_now()?)?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
    Ok(used.unwrap_or_default())
}

fn limit(fleet: &Fleet, bytes: &str) {
    let set = |mut redis: redis::Connection| redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec(&mut redis);
    fleet.redis_now().and_then(set).expect("maxmemory is set");
}

fn limit_below_use(fleet: &Fleet) {
    limit(fleet, &used(fleet).unwrap().saturating_sub(1_000_000).to_string());
}

/// No worker counts as lost, though none could write its heartbeat.
fn all_are_alive(fleet: &Fleet, handle: &Handle) {
    for (monitor, snapshot) in fleet.monitors.iter().zip(crate::observe::snapshots(fleet, handle)) {
        let Some(snapshot) = snapshot else {
            fleet.journal.violation(format!("monitor {}: no snapshot", monitor.name));
            continue;
        };
        if snapshot["redis"]["write_error"]["kind"] != "out_of_memory" {
            let shown = &snapshot["redis"]["write_error"];
            fleet.journal.violation(format!("monitor {} does not show that Redis is full: {shown}", monitor.name));
        }
        for (stream, _) in KINDS {
            if snapshot["workers"][stream]["state"] != "alive" {
                let shown = &snapshot["workers"][stream]["state"];
                fleet.journal.violation(format!("monitor {}: {stream} is {shown} while Redis is full", monitor.name));
            }
        }
    }
}

fn clean_up(fleet: &Fleet, handle: &Handle) -> Value {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    handle.block_on(async {
        let sent = client.post(fleet.monitors[0].url("/api/admin/cleanup")).send().await;
        match sent {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(error) => Value::String(error.to_string()),
        }
    })
}
