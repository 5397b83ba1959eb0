//! The end of the acts: waits, with limits, until the fleet is as it has to be. What is not by then is a violation.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::acts::REDIS_CLOCK_AHEAD;
use crate::fleet::{Fleet, KINDS, STREAMS};
use crate::invariants;
use crate::journal::{Fault, now};
use crate::observe::{self, Observed};
use crate::tasks::{Tasks, left_in_redis};

/// Floors, takeovers of tasks that were lost last, and steps that last 3 s.
const TASKS_END_WITHIN: f64 = 150.0;
/// After a restart of Redis absence counts again after 15 s; a heartbeat lives for 15 s.
const MONITORS_AGREE_WITHIN: f64 = 120.0;
/// A loss that was not replaced ends after 600 s; an alert that flapped has to be clear for up to 300 s.
const ALERTS_END_WITHIN: f64 = 660.0;
const EVENTS_STORED_WITHIN: f64 = 90.0;

/// Asks again and again until `missing` answers nothing; what it answers after `limit` seconds is a violation.
fn wait(fleet: &Fleet, what: &str, limit: f64, mut missing: impl FnMut() -> Option<String>) {
    let since = now();
    let mut said = 0.0;
    loop {
        let Some(why) = missing() else {
            fleet.journal.say(format!("{what}: after {:.1} s", now() - since));
            return;
        };
        if now() - since > limit {
            fleet.journal.violation(format!("{what}: not within {limit} s: {}", observe::shortened(&why)));
            return;
        }
        if now() - since > said + 60.0 {
            said += 60.0;
            fleet.journal.say(format!("{what}: not after {said} s: {}", observe::shortened(&why)));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Waits until every task has ended, both monitors show what there is, and every alert is over and notified.
pub(crate) fn settle(fleet: &Fleet, tasks: &Tasks, observed: &Observed, handle: &Handle) {
    let ahead = REDIS_CLOCK_AHEAD.load(Ordering::SeqCst);
    if let Some(clock) = fleet.redis_clock.as_ref().filter(|_| ahead > 0) {
        // What was delivered while the clock was ahead is idle for 0 s until the clock is there again.
        fleet.journal.say(format!("Redis' clock is set {ahead} s ahead, as far as it ever was"));
        let from = now();
        clock.set(ahead);
        fleet.journal.window(Fault::RedisClock, from);
    }
    wait(fleet, "every acknowledged task has ended", TASKS_END_WITHIN, || {
        let mut open = tasks.unfinished();
        open.extend(tasks.unfinished_unknown());
        (!open.is_empty()).then(|| format!("{} tasks: {:?}", open.len(), &open[..open.len().min(12)]))
    });
    wait(fleet, "every stream and pending list is empty", 60.0, || match left_in_redis(fleet, &STREAMS) {
        Ok(left) if left.iter().all(|(_, length, pending)| *length == 0 && *pending == 0) => None,
        Ok(left) => Some(format!("stream, entries, pending: {left:?}")),
        Err(error) => Some(error.to_string()),
    });
    wait(fleet, "both monitors show every worker", MONITORS_AGREE_WITHIN, || {
        let snapshots = observe::snapshots(fleet, handle);
        fleet.monitors.iter().zip(&snapshots).find_map(|(monitor, snapshot)| {
            let Some(snapshot) = snapshot else { return Some(format!("{}: no snapshot", monitor.name)) };
            let source = &snapshot["redis"]["source"]["status"];
            let database = &snapshot["postgres"]["source"]["status"];
            if source != "ok" || database != "ok" {
                return Some(format!("{}: Redis {source}, Postgres {database}", monitor.name));
            }
            KINDS.iter().find_map(|(stream, count)| {
                let status = &snapshot["workers"][*stream];
                let is_right = status["state"] == "alive"
                    && status["alive"].as_u64() == u64::try_from(*count).ok()
                    && status["hung"] == 0
                    && status["stale"] == 0;
                (!is_right).then(|| {
                    let part: BTreeMap<&str, &serde_json::Value> =
                        ["state", "alive", "hung", "stale", "draining"].map(|field| (field, &status[field])).into();
                    format!("{}: {stream}: {part:?} instead of {count} running", monitor.name)
                })
            })
        })
    });
    wait(fleet, "no alert is firing, no notification waits", ALERTS_END_WITHIN, || {
        handle.block_on(async {
            let client = fleet.postgres_now().await.map_err(|e| e.to_string());
            let client = match client {
                Ok(client) => client,
                Err(error) => return Some(error),
            };
            let open = "SELECT coalesce(string_agg(what, ', '), '') FROM (SELECT key || ' ' || phase AS what FROM \
                        monitor_alerts WHERE phase <> 'resolved' UNION ALL SELECT 'notification ' || id || ' ' || state || \
                        ' ' || coalesce(answer, '') FROM monitor_alert_outbox WHERE state <> 'sent') AS open";
            match client.query_one(open, &[]).await {
                Ok(row) => Some(row.get::<_, String>(0)).filter(|open| !open.is_empty()),
                Err(error) => Some(error.to_string()),
            }
        })
    });
    wait(fleet, "every event is in Postgres", EVENTS_STORED_WITHIN, || {
        let spooled: redis::RedisResult<i64> =
            fleet.redis_now().and_then(|mut redis| redis::cmd("LLEN").arg("monitor:events:spool").query(&mut redis));
        match spooled {
            Ok(0) => {}
            other => return Some(format!("events in the spool: {other:?}")),
        }
        observe::read_all_events(fleet, observed, handle);
        let missing = invariants::losses(fleet, observed).missing;
        (!missing.is_empty()).then(|| format!("{} losses are missing: {:?}", missing.len(), missing.first()))
    });
}
