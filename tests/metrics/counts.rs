//! What happens is counted: a crash, the message about it, a pass of the janitor.

use super::*;
use crate::alerting::fleet::Fleet;
use crate::alerting::slack::{Answer, Slack};

#[tokio::test]
async fn a_crash_the_attempts_to_tell_of_it_and_a_pass_of_the_janitor_are_counted() {
    let (redis_server, database, slack) = (TestRedis::start(), TestDatabase::create(), Slack::start());
    let fleet = Fleet::start(&redis_server);
    fleet.up(&["a"]).await;
    let settings = [
        ("REDIS_URL", &*redis_server.url()),
        ("DATABASE_URL", &*database.url()),
        ("SLACK_WEBHOOK_URL", &*slack.url()),
        ("MONITOR_STARTUP_GRACE_SEC", "0"),
        ("MONITOR_DOWN_DEBOUNCE_SEC", "0"),
    ];
    let monitor = Monitor::start(&settings).await;
    let state = |samples: &[Sample], state| {
        value(samples, "shepherd_monitor_worker_type_state", &[("worker_type", "a"), ("state", state)])
    };
    let crashes =
        |samples: &[Sample]| value(samples, "shepherd_monitor_worker_type_crashes_total", &[("worker_type", "a")]);
    let attempts = |samples: &[Sample], result| {
        value(samples, "shepherd_monitor_notifications_total", &[("channel", "slack"), ("result", result)])
    };
    let critical = |samples: &[Sample], state| {
        value(samples, "shepherd_monitor_alerts", &[("state", state), ("severity", "critical")])
    };
    let settled = [("source", "redis"), ("state", "ok")];
    let before = until(&monitor, "it is alive, and Redis is believed", |samples| {
        state(samples, "alive") == Some(1.0)
            && value(samples, "shepherd_monitor_source_state", &settled) == Some(1.0)
            && critical(samples, "firing") == Some(0.0)
    })
    .await;
    assert_eq!((crashes(&before), attempts(&before, "sent")), (Some(0.0), Some(0.0)));
    slack.answers(&[Answer::Status(500)]);
    fleet.crash(&["a"]).await;
    let after = until(&monitor, "the crash is told", |samples| attempts(samples, "sent") == Some(1.0)).await;
    assert_eq!((crashes(&after), state(&after, "crashed"), state(&after, "alive")), (Some(1.0), Some(1.0), Some(0.0)));
    assert_eq!((attempts(&after, "failed"), attempts(&after, "given_up")), (Some(1.0), Some(0.0)));
    assert_eq!((critical(&after, "firing"), critical(&after, "acknowledged")), (Some(1.0), Some(0.0)));

    // Whoever is not to be told, or takes care of it already, is counted apart.
    monitor.takes_orders().await;
    let order = async |path: &str, order: serde_json::Value| {
        let answer = reqwest::Client::new().post(monitor.url(path)).json(&order).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{order}");
    };
    order("/api/silences", serde_json::json!({"rule": "worker_*", "duration": "5m", "owner": "bo"})).await;
    let quiet = until(&monitor, "it is silenced", |samples| critical(samples, "silenced") == Some(1.0)).await;
    assert_eq!(critical(&quiet, "firing"), Some(0.0));
    order("/api/alerts/acknowledge", serde_json::json!({"key": "worker_crashed:a", "owner": "bo"})).await;
    let taken = until(&monitor, "it is acknowledged", |samples| critical(samples, "acknowledged") == Some(1.0)).await;
    assert_eq!((critical(&taken, "firing"), critical(&taken, "silenced")), (Some(0.0), Some(0.0)));

    // Three entries that nobody needs any more.
    let mut connection = redis_server.connection().await;
    for command in [
        "XGROUP CREATE done g 0 MKSTREAM",
        "XADD done 1-1 f v",
        "XADD done 2-1 f v",
        "XADD done 3-1 f v",
        "XREADGROUP GROUP g c COUNT 3 STREAMS done >",
        "XACK done g 1-1 2-1 3-1",
    ] {
        run(&mut connection, command).await;
    }
    let there = |samples: &[Sample]| value(samples, "redis_stream_length", &[("stream", "done")]).is_some();
    until(&monitor, "the stream is watched", there).await;
    eventually("the janitor is done", SOON, || async {
        let answer = reqwest::Client::new().post(monitor.url("/api/admin/cleanup")).send().await.unwrap();
        answer.status() == 200
    })
    .await;
    let removed = |samples: &[Sample]| value(samples, "shepherd_monitor_janitor_entries_removed_total", &[]);
    let cleaned = until(&monitor, "its pass is counted", |samples| removed(samples) == Some(3.0)).await;
    assert!(value(&cleaned, "shepherd_monitor_janitor_passes_total", &[("result", "done")]).unwrap() >= 1.0);
    assert_eq!(value(&cleaned, "shepherd_monitor_janitor_passes_total", &[("result", "with_errors")]), Some(0.0));
    assert!(value(&cleaned, "shepherd_monitor_janitor_last_pass_timestamp_seconds", &[]).unwrap() > 1.7e9);
}

#[tokio::test]
async fn two_monitors_count_each_task_once_and_each_loss_both() {
    let (redis_server, database) = (TestRedis::start(), TestDatabase::create());
    let fleet = Fleet::start(&redis_server);
    fleet.up(&["a"]).await;
    let settings = [
        ("REDIS_URL", &*redis_server.url()),
        ("DATABASE_URL", &*database.url()),
        ("MONITOR_HISTORY_INTERVAL_SEC", "1"),
        ("MONITOR_POLL_INTERVAL_SEC", "200ms"),
    ];
    let monitors = [Monitor::start(&settings).await, Monitor::start(&settings).await];
    for monitor in &monitors {
        until(monitor, "it is alive, and Redis is believed", |samples| {
            value(samples, "shepherd_monitor_workers", &[("worker_type", "a"), ("state", "alive")]) == Some(1.0)
                && value(samples, "shepherd_monitor_source_state", &[("source", "redis"), ("state", "ok")]) == Some(1.0)
        })
        .await;
    }
    let tasks = async || {
        let mut each = Vec::new();
        for monitor in &monitors {
            let count =
                value(&scraped(monitor).await, "shepherd_monitor_task_duration_seconds_count", &[("stream", "a")]);
            each.push(count.unwrap_or(0.0));
        }
        each
    };
    let mut connection = redis_server.connection().await;
    // Over several intervals, so that either may be first.
    for round in 1..=6 {
        run(&mut connection, "LPUSH monitor:task_durations:a 10 20 30 40 50").await;
        eventually("all are counted", SOON, || async {
            let each = tasks().await;
            if each.iter().sum::<f64>() >= f64::from(round * 5) { Ok(()) } else { Err(format!("{each:?}")) }
        })
        .await;
    }
    let each = tasks().await;
    assert_eq!(each.iter().sum::<f64>(), 30.0, "{each:?}");
    fleet.crash(&["a"]).await;
    for monitor in &monitors {
        until(monitor, "the loss is counted", |samples| {
            value(samples, "shepherd_monitor_workers_lost_total", &[("worker_type", "a")]) == Some(1.0)
        })
        .await;
    }
}
