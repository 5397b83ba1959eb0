//! Beside the older monitor: whatever this one does, the older one's events and alerts are those that it has alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::SOON;
use crate::alerting::fleet::Fleet;
use crate::alerting::slack::Slack;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::{TestRedis, run};
use crate::support::wait::eventually;

/// The older monitor at work, with a Slack of its own.
pub(super) struct Older {
    process: Python,
    slack: Slack,
}

impl Older {
    pub(super) fn start(redis: &TestRedis) -> Self {
        let slack = Slack::start();
        let port = redis.port().to_string();
        let process = Python::start(include_str!("older_monitor.py"), &[&port, &slack.url(), "1"]);
        Self { process, slack }
    }

    fn lines(&self) -> Vec<Value> {
        let printed = self.process.printed();
        let whole = printed.rfind('\n').map_or("", |end| &printed[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{printed}"))).collect()
    }

    fn ticks(&self) -> u64 {
        self.lines().iter().filter_map(|line| line["tick"].as_u64()).max().unwrap_or(0)
    }

    /// Until it has looked twice more: once for what has just begun, once for what that leads to.
    pub(super) async fn looks(&self) {
        let from = self.ticks();
        eventually("the older monitor looks", SOON, || async { self.ticks() >= from + 3 }).await;
    }

    /// Ends it and answers what it said and what it sent.
    async fn ended(self) -> Seen {
        self.process.send("TERM");
        eventually("the older monitor ends", SOON, || async { !self.process.is_running() }).await;
        let mut seen = Seen::default();
        for line in self.lines() {
            if let Some(event) = line.get("event") {
                seen.events.push(event.to_string());
            } else if let Some(alert) = line.get("alert") {
                seen.alerts.push(alert.to_string());
            } else if let Some(drained) = line.get("drained") {
                *seen.durations.entry(drained[0].to_string()).or_default() += drained[1].as_u64().unwrap();
            } else if let Some(shows) = line.get("shows") {
                seen.shows = shows.to_string();
            }
        }
        seen.events.sort();
        seen.alerts.sort();
        seen.sent = self.slack.taken().iter().map(|post| post.text().to_owned()).collect();
        seen.sent.sort();
        seen
    }
}

/// What the older monitor decided, sent and shows.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    events: Vec<String>,
    alerts: Vec<String>,
    sent: Vec<String>,
    /// Task durations that it found, by stream.
    durations: BTreeMap<String, u64>,
    /// What its pages list at the end.
    shows: String,
}

/// How this monitor runs beside it.
#[derive(Debug, Clone, Copy)]
struct Ours {
    channel: bool,
    observes: bool,
}

/// Rules of this monitor that are called as the older one's: whose cooldown the two could share.
const RULES: &str = "rules:
  - {name: backlog_queue, type: threshold, metric: xlen, stream: queue, threshold: 20}
  - {name: backlog_finished, type: threshold, metric: xlen, stream: finished, threshold: 20}
";

/// Ten incidents, watched by the older monitor and, if asked for, by this one.
async fn ten_incidents(ours: Option<Ours>) -> Seen {
    let (redis, database, slack) = (TestRedis::start(), TestDatabase::create(), Slack::start());
    let fleet = Fleet::start(&redis);
    let mut connection = redis.connection().await;
    // 1: finished entries that nobody deleted, which a janitor would trim before the older one's rule fires.
    run(&mut connection, "XGROUP CREATE finished consumer 0 MKSTREAM").await;
    run(&mut connection, "XGROUP CREATE queue consumer 0 MKSTREAM").await;
    for _ in 0..30 {
        run(&mut connection, "XADD finished * query_id q").await;
    }
    run(&mut connection, "XREADGROUP GROUP consumer c COUNT 100 STREAMS finished >").await;
    let mut pending = redis::cmd("XPENDING");
    pending.arg(&["finished", "consumer", "-", "+", "100"]);
    let pending: Vec<(String, String, u64, u64)> = pending.query_async(&mut connection).await.unwrap();
    for (id, ..) in &pending {
        run(&mut connection, &format!("XACK finished consumer {id}")).await;
    }
    let types = ["a", "b", "c", "d", "e", "f"];
    fleet.up(&types).await;
    let older = Older::start(&redis);
    older.looks().await;

    let folder = shepherd_monitor::demo::reaper::Reaper::start(
        "shepherd-beside",
        shepherd_monitor::demo::reaper::ShutdownSpec { signal: "KILL", epilogue: "" },
    )
    .unwrap();
    let rules = folder.folder().join("rules.yaml");
    std::fs::write(&rules, RULES).unwrap();
    let monitor = match ours {
        None => None,
        Some(Ours { channel, observes }) => {
            let (redis_url, database_url, slack_url) = (redis.url(), database.url(), slack.url());
            let monitor = Monitor::start(&[
                ("REDIS_URL", &redis_url),
                ("DATABASE_URL", &database_url),
                ("MONITOR_POLL_INTERVAL_SEC", "200ms"),
                ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
                ("MONITOR_STARTUP_GRACE_SEC", "0"),
                ("MONITOR_DOWN_DEBOUNCE_SEC", "0"),
                ("MONITOR_ALERTS_CONFIG", rules.to_str().unwrap()),
                ("SLACK_WEBHOOK_URL", if channel { &slack_url } else { "" }),
                ("MONITOR_OBSERVE_ONLY", if observes { "yes" } else { "no" }),
            ])
            .await;
            let sees_all = |s: &Value| {
                types.iter().all(|name| s["workers"][name]["state"] == "alive")
                    && s["redis"]["source"]["status"] == "ok"
                    && s["streams"]["queue"]["exists"] == true
            };
            monitor.until("this monitor sees the fleet", SOON, sees_all).await;
            Some(monitor)
        }
    };
    let before = older.ticks();
    let seen_by_ours = async |what: &str, holds: fn(&Value) -> bool| {
        if let Some(monitor) = &monitor {
            monitor.until(what, SOON, holds).await;
        }
        older.looks().await;
    };
    run(&mut connection, "LPUSH monitor:task_durations:a 10 20 30 40 50").await;
    fleet.crash(&["a"]).await; // 2
    seen_by_ours("a has crashed", |s| s["workers"]["a"]["state"] == "crashed").await;
    fleet.leave("b").await; // 3
    seen_by_ours("b is scaled down", |s| s["workers"]["b"]["state"] == "scaled_down").await;
    // At once, so that the older monitor sees none or all of them, whenever it looks.
    let mut entries = redis::pipe(); // 4
    for _ in 0..30 {
        entries.atomic().cmd("XADD").arg(&["queue", "*", "query_id", "q"]).ignore();
    }
    entries.exec_async(&mut connection).await.unwrap();
    seen_by_ours("the queue is long", |s| s["streams"]["queue"]["xlen"] == 30).await;
    fleet.up(&["a", "b"]).await; // 5, 6
    seen_by_ours("both are back", |s| ["a", "b"].iter().all(|name| s["workers"][name]["state"] == "alive")).await;
    run(&mut connection, "LPUSH monitor:task_durations:a 60 70").await;
    fleet.crash(&["c", "d"]).await; // 7, 8
    seen_by_ours("c and d have crashed", |s| ["c", "d"].iter().all(|name| s["workers"][name]["state"] == "crashed"))
        .await;
    // Within the cooldown of its first crash: an event, no second alert.
    fleet.crash(&["a"]).await; // 9
    seen_by_ours("a has crashed again", |s| s["workers"]["a"]["state"] == "crashed").await;
    fleet.leave("e").await; // 10
    seen_by_ours("e is scaled down", |s| s["workers"]["e"]["state"] == "scaled_down").await;
    if let Some(monitor) = &monitor {
        if ours.is_some_and(|ours| ours.channel) {
            // Both send: whoever runs both with channels hears of everything twice.
            slack.told("Worker a crashed", SOON).await;
        }
        assert!(!monitor.log().contains(" ERROR "), "{}", monitor.log());
    }
    // All durations are drained, and the rule on finished entries has had its time.
    eventually("the older monitor drains", SOON, || async { older.ticks() >= before + 25 }).await;
    older.ended().await
}

#[tokio::test]
async fn the_older_monitor_decides_sends_and_shows_the_same_as_alone_through_ten_incidents() {
    let ours = |channel, observes| Some(Ours { channel, observes });
    let (alone, plain, with_channel, observing, observing_with_channel) = tokio::join!(
        ten_incidents(None),
        ten_incidents(ours(false, false)),
        ten_incidents(ours(true, false)),
        ten_incidents(ours(false, true)),
        ten_incidents(ours(true, true)),
    );
    assert_eq!(alone.alerts.len(), 7, "{alone:#?}");
    assert_eq!(alone.sent.len(), 7, "{alone:#?}");
    assert_eq!(alone.durations, BTreeMap::from([(json!("a").to_string(), 7)]), "{alone:#?}");
    assert!(alone.events.len() >= 6 + 8, "{alone:#?}");
    for (how, beside) in [
        ("no channel", plain),
        ("a channel", with_channel),
        ("observing, no channel", observing),
        ("observing, a channel", observing_with_channel),
    ] {
        assert_eq!(beside, alone, "beside this monitor ({how})");
    }
}

#[tokio::test]
async fn two_active_monitors_of_different_kinds_are_named_by_the_page_and_by_doctor() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let fleet = Fleet::start(&redis);
    fleet.up(&["a"]).await;
    let (redis_url, database_url) = (redis.url(), database.url());
    let settings = [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", &database_url)];
    let doctor = |observe_only: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
        command.args(["doctor", "--json"]).env_clear().envs(settings).env("MONITOR_OBSERVE_ONLY", observe_only);
        let found: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let found = found["findings"].as_array().unwrap().iter().find(|f| f["id"] == "redis.older_monitor").cloned();
        found.unwrap()["verdict"].clone()
    };
    let monitor = Monitor::start(&settings).await;
    let seen =
        |state: &'static str| move |s: &Value| s["workers"]["a"]["state"] == "alive" && s["older_monitor"] == state;
    monitor.until("no older monitor is active", SOON, seen("absent")).await;
    assert_eq!(doctor("no"), "fine", "this monitor's own writes are no sign of another kind");
    assert!(!monitor.get("/").await.1.contains("older monitor is active"));

    let older = Older::start(&redis);
    older.looks().await;
    monitor.until("the older monitor is seen", SOON, seen("active")).await;
    eventually("the page names it", SOON, || async {
        monitor.get("/").await.1.contains("An older monitor is also active")
    })
    .await;
    assert_eq!(doctor("no"), "wrong");
    assert_eq!(doctor("yes"), "fine");

    let mut observing = settings.to_vec();
    observing.push(("MONITOR_OBSERVE_ONLY", "yes"));
    let observer = Monitor::start(&observing).await;
    observer.until("the observer sees it too", SOON, seen("active")).await;
    let page = observer.get("/").await.1;
    assert!(page.contains("an older monitor is active") && !page.contains("An older monitor is also active"), "{page}");
}
