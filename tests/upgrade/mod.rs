//! From the older monitor to this one, and back: nothing that either has written down is lost on the way.

mod beside;
mod observe;
mod older;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::alerting::slack::Slack;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;
use older::{DAYS, Found, OlderMonitor, PER_DAY, SERIES};

const SOON: Duration = Duration::from_secs(90);

/// A fleet that the older monitor watched until now: `arax` at work, `bte.lookup` crashed, `sipr` gone home.
struct Fleet {
    redis: TestRedis,
    database: TestDatabase,
    older: OlderMonitor,
    _worker: Python,
}

impl Fleet {
    async fn watched_by_the_older_one() -> Self {
        let (redis, database) = (TestRedis::start(), TestDatabase::create());
        let worker =
            Python::start(include_str!("../monitor/fleet.py"), &[&redis.port().to_string(), "arax", "a1b2c3d4"]);
        let mut older = OlderMonitor::of(&redis, &database).await;
        older.leave_what_it_wrote().await;
        Self { redis, database, older, _worker: worker }
    }

    async fn monitor(&self) -> Monitor {
        let (redis, database) = (self.redis.url(), self.database.url());
        let settings =
            [("REDIS_URL", redis.as_str()), ("DATABASE_URL", database.as_str()), ("MONITOR_HISTORY_INTERVAL_SEC", "1")];
        Monitor::start(&settings).await
    }

    /// Until all that the older monitor recorded is in the archive.
    async fn taken_over(&self) {
        let sql = self.database.connect().await;
        eventually("everything is taken over", Duration::from_secs(90), || async {
            let left = "SELECT count(*) FROM __diesel_schema_migrations WHERE version = '0003' \
                        AND NOT EXISTS (SELECT FROM monitor_takeover) AND NOT EXISTS (SELECT FROM monitor_metrics_before)";
            sql.query_one(left, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1)
        })
        .await;
    }

    /// `give-back` as an operator runs it: what it printed, or why it did not.
    fn give_back(&self) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
        let given = [("DATABASE_URL", self.database.url()), ("REDIS_URL", self.redis.url())];
        let output = command.arg("rollback").envs(given).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}

async fn stopped(monitor: &Monitor) {
    monitor.send("TERM");
    eventually("the monitor ends", Duration::from_secs(20), || async { !monitor.is_running() }).await;
}

async fn json(monitor: &Monitor, path: &str) -> Value {
    let (status, body) = monitor.get(path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// What of `before` is not in `now`, both in the order of time; the other monitor may have added to it.
fn missing<'a, T: PartialEq>(now: &[T], before: &'a [T]) -> Vec<&'a T> {
    let mut later = now;
    let mut missing = Vec::new();
    for one in before {
        match later.iter().position(|other| other == one) {
            Some(place) => later = &later[place + 1..],
            None => missing.push(one),
        }
    }
    missing
}

/// What was there is there still: the same to the millisecond.
#[track_caller]
fn assert_has_all(now: &Found, before: &Found) {
    assert_eq!(now.known, before.known);
    assert!(!before.series.is_empty() && before.series.values().all(|samples| !samples.is_empty()));
    for (name, samples) in &before.series {
        let missing = missing(&now.series[name], samples);
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
    for (name, rows) in &before.latencies {
        let missing = missing(&now.latencies[name], rows);
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
    for (name, samples) in &before.recent {
        let missing = missing(&now.recent[name], samples);
        assert!(missing.is_empty(), "{name} in Redis: {missing:?}");
    }
    for event in &before.events {
        assert!(now.events.contains(event), "{event:?}");
    }
    for alert in &before.alerts {
        assert!(now.alerts.contains(alert), "{alert}");
    }
}

#[test]
fn what_is_missing_is_seen() {
    assert!(missing(&[1, 2, 3, 4], &[1, 3]).is_empty());
    assert_eq!(missing(&[1, 2, 4], &[1, 3, 4, 4]), [&3, &4]);
}

#[tokio::test]
async fn what_the_older_monitor_knew_and_recorded_is_shown_by_pages_and_api() {
    let mut fleet = Fleet::watched_by_the_older_one().await;
    let before = fleet.older.finds().await;
    let columns = fleet.older.columns_of_the_fleet().await;
    let monitor = fleet.monitor().await;
    let shown = monitor
        .until("the worker that goes on is seen", Duration::from_secs(30), |s| s["workers"]["arax"]["alive"] == 1)
        .await;
    // Who is known, how each stood and since when.
    for (name, state) in [("arax", "alive"), ("bte.lookup", "crashed"), ("sipr", "scaled_down")] {
        assert_eq!(shown["workers"][name]["state"], state, "{name}");
        assert_eq!(shown["workers"][name]["state_changed_at"], before.states[name]["state_changed_at"], "{name}");
    }
    let told = |s: &Value| s["recent_events"].to_string().contains("arax_backlog: 612 waiting");
    monitor.until("the older one's events are in the feed", Duration::from_secs(20), told).await;
    let (_, live) = monitor.get("/").await;
    for words in ["arax", "bte.lookup", "sipr", "crashed", "arax_backlog: 612 waiting"] {
        assert!(live.contains(words), "the live page lacks {words}");
    }
    let alerts = json(&monitor, "/api/alerts?limit=50").await;
    assert_eq!(alerts["alerts"].as_array().unwrap(), &before.alerts);
    let recent = json(&monitor, "/api/history").await;
    assert!(SERIES.iter().all(|name| recent["series"].as_array().unwrap().contains(&(*name).into())), "{recent}");

    // While it is taken over and afterwards.
    for state in ["meanwhile", "afterwards"] {
        if state == "afterwards" {
            fleet.taken_over().await;
        }
        let (since, until) = (older::began(), older::ended());
        let window = format!("since={since}&until={until}&bucket_seconds=86400");
        let metrics =
            json(&monitor, &format!("/api/historical/metrics?metric=backlog:arax,pg:db_size_bytes&{window}")).await;
        let points = metrics["series"]["backlog:arax"].as_array().unwrap();
        assert_eq!(points.len(), DAYS, "{state}: {metrics}");
        for point in points {
            // Of a saw from 0 to 49, whose last tooth is cut off at midnight.
            assert!((point[1].as_f64().unwrap() - 24.5).abs() < 0.5, "{state}: {point}");
        }
        let latency = json(&monitor, &format!("/api/historical/latency?streams=arax&{window}")).await;
        let tasks: u64 =
            latency["series"]["arax"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(tasks, 10 * (DAYS * PER_DAY) as u64, "{state}");
        let summary = json(&monitor, &format!("/api/historical/summary?since={since}")).await;
        assert_eq!((&summary["crashes"], &summary["queries_started"]), (&1.into(), &40.into()), "{state}: {summary}");
    }
    let (_, events) = monitor.get("/history/parts/events?from=now-7d&to=now").await;
    for event in &before.events {
        assert!(events.contains(&event.detail), "{} is not in {events}", event.detail);
    }
    let (_, incidents) = monitor.get("/history/parts/incidents?from=now-7d&to=now").await;
    assert!(incidents.contains("bte.lookup"), "{incidents}");
    for page in ["/history?from=now-7d&to=now", "/alerts", "/admin"] {
        assert_eq!(monitor.get(page).await.0, 200, "{page}");
    }

    // Nothing was made up on the way: nobody started, left or crashed.
    let scaled: Vec<Value> =
        monitor.events().await.into_iter().filter(|e| e["type"].as_str().unwrap().starts_with("scale_")).collect();
    assert_eq!(scaled.len(), before.events.iter().filter(|e| e.kind.starts_with("scale_")).count(), "{scaled:?}");
    assert_eq!(fleet.older.columns_of_the_fleet().await, columns, "the fleet's tables are as they were");
}

#[tokio::test]
async fn two_monitors_run_side_by_side_and_the_way_back_loses_nothing_of_either() {
    let mut fleet = Fleet::watched_by_the_older_one().await;
    let before = fleet.older.finds().await;
    let told = fleet.give_back().unwrap_err();
    assert!(told.contains("was not migrated by this monitor"), "{told}");

    // The older one goes on meanwhile.
    let monitor = fleet.monitor().await;
    monitor.until("the fleet is seen", Duration::from_secs(30), |s| s["workers"]["arax"]["alive"] == 1).await;
    fleet.older.goes_on("while both run").await;
    fleet.taken_over().await;
    fleet.older.goes_on("after the takeover").await;
    let ours = "redis:connected_clients";
    eventually("this monitor has recorded something", Duration::from_secs(20), || async {
        let answer = json(&monitor, &format!("/api/historical/metrics?metric={ours}")).await;
        answer["series"][ours].as_array().is_some_and(|points| !points.is_empty())
    })
    .await;
    assert!(!monitor.log().contains(" ERROR "), "{}", monitor.log());

    let told = fleet.give_back().unwrap_err();
    assert!(told.contains("a monitor is still connected to this database"), "{told}");
    stopped(&monitor).await;
    // Without the way back the older one has its own new rows, and not those that were taken over.
    assert!(fleet.older.finds().await.series["backlog:arax"].len() < before.series["backlog:arax"].len());
    let told = fleet.give_back().unwrap();
    assert!(told.contains("samples in monitor_metrics"), "{told}");
    let audited = "SELECT outcome, (result->>'samples')::int8 > 0 FROM monitor_audit WHERE action = 'rollback' \
        AND address = 'command line'";
    let row = fleet.database.connect().await.query_one(audited, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), ("done", true));

    let after = fleet.older.finds().await;
    assert_has_all(&after, &before);
    let beats = after.series["pg:db_size_bytes"].iter().filter(|(_, value)| *value == older::BEAT);
    assert_eq!(beats.count(), 2, "what the older one recorded meanwhile is there once");
    assert!(!after.series[ours].is_empty() && !after.recent[ours].is_empty(), "what this one recorded stays too");
    for event in ["while both run", "after the takeover"] {
        assert!(after.events.iter().any(|e| e.detail == event), "{event}");
    }
    // It reads, and writes as ever.
    fleet.older.goes_on("back again").await;
    assert!(fleet.give_back().unwrap_err().contains("was not migrated by this monitor"));

    // And once more the other way.
    let there = fleet.older.finds().await;
    let again = fleet.monitor().await;
    again.until("the fleet is seen again", Duration::from_secs(30), |s| s["workers"]["arax"]["alive"] == 1).await;
    fleet.taken_over().await;
    let all = format!("/api/historical/events?limit=500&since={}", older::began());
    assert!(json(&again, &all).await.to_string().contains("back again"));
    stopped(&again).await;
    fleet.give_back().unwrap();
    assert_has_all(&fleet.older.finds().await, &there);
}

#[tokio::test]
async fn state_is_taken_over_once_kept_under_keys_of_its_own_and_given_back_with_running_cooldowns() {
    let mut fleet = Fleet::watched_by_the_older_one().await;
    let before = fleet.older.finds().await;
    let (slack, mut redis) = (Slack::start(), fleet.redis.connection().await);
    let settings = [
        ("REDIS_URL", fleet.redis.url()),
        ("DATABASE_URL", fleet.database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1".to_owned()),
        ("MONITOR_STARTUP_GRACE_SEC", "0".to_owned()),
        ("SLACK_WEBHOOK_URL", slack.url()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let monitor = Monitor::start(&settings).await;
    // The older one has sent that sipr is at zero, and its cooldown is running; of bte.lookup it is over.
    slack.told("bte.lookup crashed", SOON).await;
    monitor.until("arax is seen", SOON, |s| s["workers"]["arax"]["alive"] == 1).await;
    let all = json(&monitor, "/api/alerts?limit=200").await;
    assert!(all.to_string().contains("worker_zero:sipr") && slack.count("sipr") == 0, "{:?}", slack.posts());
    let port = fleet.redis.port().to_string();
    let _second = Python::start(include_str!("../monitor/fleet.py"), &[&port, "arax", "e5f60718"]);
    monitor.until("a second worker is seen", SOON, |s| s["workers"]["arax"]["alive"] == 2).await;
    let as_before = fleet.older.finds().await;
    assert_eq!(
        (&as_before.states, &as_before.recent),
        (&before.states, &before.recent),
        "the older keys are not written"
    );
    assert_eq!(as_before.alerts, before.alerts);
    eventually("a series is recorded", SOON, || async {
        json(&monitor, "/api/history/redis:connected_clients").await["samples"].as_array().is_some_and(|s| s.len() > 2)
    })
    .await;
    // Beside each other: what the older one left, and what is recorded since.
    let older_series = json(&monitor, "/api/history/backlog:arax").await;
    assert!(older_series["samples"].as_array().unwrap().len() >= before.recent["backlog:arax"].len());
    stopped(&monitor).await;

    let told = fleet.give_back().unwrap();
    assert!(told.contains("the states of 3 worker types"), "{told}");
    let after = fleet.older.finds().await;
    assert_has_all(&after, &before);
    assert!(after.alerts.len() > before.alerts.len() && !after.recent["redis:connected_clients"].is_empty());
    assert_eq!(
        (&after.states["arax"]["state"], after.states["arax"]["last_alive"].as_f64()),
        (&"alive".into(), Some(2.0))
    );
    for (rule, longest) in [("worker_crashed:bte.lookup", 600), ("worker_zero:sipr", 540)] {
        let left: i64 = redis::cmd("TTL").arg(format!("alert:cooldown:{rule}")).query_async(&mut redis).await.unwrap();
        assert!((1..=longest).contains(&left), "{rule}: {left}");
    }
    let own: Vec<String> = redis::cmd("KEYS").arg("shepherd-monitor:*").query_async(&mut redis).await.unwrap();
    assert_eq!(own, Vec::<String>::new(), "the next start takes over again");
}

#[tokio::test]
async fn nothing_is_given_back_while_redis_cannot_be_reached() {
    let fleet = Fleet::watched_by_the_older_one().await;
    let monitor = fleet.monitor().await;
    monitor.until("the fleet is seen", SOON, |s| s["workers"]["arax"]["alive"] == 1).await;
    fleet.taken_over().await;
    stopped(&monitor).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    let given = [("DATABASE_URL", fleet.database.url()), ("REDIS_URL", "redis://127.0.0.1:1".to_owned())];
    let output = command.arg("give-back").envs(given).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("cannot reach Redis, so nothing was rolled back"), "{said}");
    assert!(fleet.give_back().unwrap().contains("samples in monitor_metrics"));
}
