//! Every type of rule, end to end; a broken channel; a webhook.

use serde_json::json;
use shepherd_monitor::demo::servers::PrivatePostgres;

use super::mail::Mail;
use super::slack::{Answer, Slack};
use super::*;
use crate::support::postgres::connect;

/// Slow queries of Postgres metrics are run less often, so this is longer than other limits.
const IN_TIME: Duration = Duration::from_secs(300);

const EVERY_TYPE: &str = "
rules:
  - {name: r_threshold, type: threshold, metric: xlen, stream: orders, threshold: 2, duration: 1s, severity: warning}
  - {name: r_heartbeat, type: heartbeat_lost, worker: a, duration: 1s, severity: critical}
  - {name: r_pending, type: queue_pending, stream: orders, threshold: 0, duration: 1, severity: info}
  - {name: r_oldest, type: oldest_callback_age, threshold: 100, duration: 500ms}
  - {name: r_callbacks, type: threshold, metric: callbacks_pending, threshold: 0, duration: 1s}
  - {name: r_connections, type: threshold, metric: pg_connection_count, threshold: 40, duration: 1s}
  - {name: r_state, type: threshold, metric: pg:state:QUEUED, threshold: 0, duration: 1s}
  - {name: r_disk, type: db_capacity, threshold: 80, duration: 1s, severity: critical}
";

#[tokio::test]
async fn every_type_of_rule_fires_and_resolves_by_slack_and_by_mail() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    // A private server: disk and connection metrics cover the whole server.
    let postgres = PrivatePostgres::start().unwrap();
    let mail = Mail::start("starttls").await;
    let url = postgres.url();
    let rules = ground.rules(EVERY_TYPE);
    let by_mail = mail.settings();
    let mut given: Vec<(&str, &str)> = by_mail.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    given.extend([
        ("DATABASE_URL", url.as_str()),
        ("MONITOR_ALERTS_CONFIG", rules.as_str()),
        ("PG_VOLUME_CAPACITY", "200M"),
        // Otherwise the janitor would mark the query with the old callback as abandoned.
        ("MONITOR_ABANDONED_QUERY_SEC", "86400"),
    ]);
    let monitor = ground.monitor("m", &given).await;
    ground.alive(&monitor, &["a"]).await;
    monitor
        .until("the disk is measured, and is not full", IN_TIME, |s| {
            s["postgres"]["disk_used_pct"].as_f64().is_some_and(|pct| pct < 80.0)
        })
        .await;
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XGROUP")
        .arg(&["CREATE", "orders", "consumer", "0", "MKSTREAM"])
        .query_async(&mut redis)
        .await
        .unwrap();
    for _ in 0..3 {
        let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    }
    let _: redis::Value = redis::cmd("XREADGROUP")
        .arg(&["GROUP", "consumer", "x", "COUNT", "1", "STREAMS", "orders", ">"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let database = connect(&url).await.unwrap();
    eventually("the fleet's tables are there", SOON, || async {
        database
            .batch_execute(
                "INSERT INTO shepherd_brain (qid, start_time, state) VALUES ('q', now() - interval '10 minutes', 'QUEUED');
                 INSERT INTO callbacks (query_id, callback_id) VALUES ('q', 'c')",
            )
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    // Unlogged data to fill the disk, and forty clients.
    database
        .batch_execute(
            "CREATE UNLOGGED TABLE ballast (filler text);
             ALTER TABLE ballast ALTER filler SET STORAGE EXTERNAL;
             INSERT INTO ballast SELECT repeat(md5(n::text), 250) FROM generate_series(1, 20000) n",
        )
        .await
        .unwrap();
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(connect(&url).await.unwrap());
    }
    ground.fleet.crash(&["a"]).await;
    let names =
        ["r_threshold", "r_heartbeat", "r_pending", "r_oldest", "r_callbacks", "r_connections", "r_state", "r_disk"];
    for name in names {
        ground.slack.told(&format!("{name}: "), IN_TIME).await;
        assert_eq!(mail.told(&format!("{name}: ")).await["tls"], true);
    }
    // End all conditions.
    drop(clients);
    database
        .batch_execute("DROP TABLE ballast; DELETE FROM callbacks; UPDATE shepherd_brain SET state = 'COMPLETED'")
        .await
        .unwrap();
    let ids: Vec<String> = redis::Cmd::xpending_count("orders", "consumer", "-", "+", 10)
        .query_async::<redis::streams::StreamPendingCountReply>(&mut redis)
        .await
        .unwrap()
        .ids
        .into_iter()
        .map(|entry| entry.id)
        .collect();
    let _: i64 = redis::cmd("XACK").arg(&["orders", "consumer"]).arg(&ids).query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("XTRIM").arg(&["orders", "MAXLEN", "0"]).query_async(&mut redis).await.unwrap();
    ground.fleet.up(&["a"]).await;
    for name in names {
        eventually(&format!("{name} is over"), IN_TIME, || async {
            let posts = ground.slack.taken();
            let over = posts.iter().any(|p| p.text().contains("Resolved after") && p.text().contains(name));
            if over { Ok(()) } else { Err(posts.iter().map(|p| p.text().to_owned()).collect::<Vec<_>>().join("\n")) }
        })
        .await;
        mail.told_in_time(&format!("a mail says that {name} is over"), IN_TIME, |subject| {
            subject.contains("Resolved after") && subject.contains(name)
        })
        .await;
        assert_eq!(ground.slack.count(&format!("{name}: ")), 1, "{name}");
    }
}

#[tokio::test]
async fn a_maintenance_window_silences_and_alerts_that_still_fire_are_sent_after_it() {
    let ground = Ground::new();
    ground.fleet.up(&["a", "b"]).await;
    let window = "maintenance: [{name: works, from: 2020-01-01T00:00:00Z, until: 2999-01-01T00:00:00Z, stream: a}]";
    let rules = ground.rules(window);
    let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", rules.as_str())]).await;
    ground.alive(&monitor, &["a", "b"]).await;
    ground.fleet.crash(&["a", "b"]).await;
    ground.slack.told("Worker b crashed", SOON).await;
    eventually("a is shown as silenced", SOON, || async {
        let (_, page) = monitor.get("/alerts").await;
        let silenced = page.split("id=\"silenced\"").nth(1).and_then(|rest| rest.split("</section>").next()).unwrap();
        silenced.contains("worker_crashed:a")
    })
    .await;
    assert_eq!(ground.slack.count("Worker a crashed"), 0);
    // The window has ended.
    ground.rules(&window.replace("2999", "2021"));
    monitor.send("HUP");
    ground.slack.told("Worker a crashed", SOON).await;
    assert_eq!(ground.slack.taken().len(), 2);
}

#[tokio::test]
async fn notifications_contain_a_chart_of_the_last_hour() {
    let ground = Ground::new();
    let mail = Mail::start("starttls").await;
    let rules = ground.rules("rules: [{name: lots, type: threshold, metric: xlen, stream: orders, threshold: 40}]");
    let by_mail = mail.settings();
    let mut given: Vec<(&str, &str)> = by_mail.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    given.extend([("MONITOR_ALERTS_CONFIG", rules.as_str()), ("MONITOR_HISTORY_INTERVAL_SEC", "1")]);
    let monitor = ground.monitor("m", &given).await;
    let mut redis = ground.redis.connection().await;
    for _ in 0..40 {
        let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    }
    eventually("some of it is recorded", SOON, || async {
        let recorded = monitor.get("/api/history/xlen:orders").await.1;
        recorded.matches(",40").count() >= 3
    })
    .await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    let told = ground.slack.told("lots: ", SOON).await.body.to_string();
    assert!(told.contains('█') && told.contains(" in the last hour, limit 40"), "{told}");
    let taken = mail.told("lots: ").await;
    assert!(taken["plain"].as_str().unwrap().contains('█'), "{taken}");
    assert!(taken["html"].as_str().unwrap().contains("cid:chart-0"), "{taken}");
    assert!(taken["pictures"]["<chart-0>"].as_u64().unwrap() > 100, "{taken}");
}

#[tokio::test]
async fn beyond_twenty_messages_a_minute_alerts_are_summarized_and_critical_ones_are_not_delayed() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let rule = |n: usize, stream: &str| {
        format!("\n  - {{name: lots{n:02}, type: threshold, metric: xlen, stream: {stream}, threshold: 0}}")
    };
    let all: String = (0..30).map(|n| rule(n, "orders")).chain([rule(99, "late")]).collect();
    let rules = ground.rules(&format!("rules:{all}"));
    let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", rules.as_str())]).await;
    ground.alive(&monitor, &["a"]).await;
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    // Nineteen individual messages, and one for the other eleven.
    ground.slack.told("and 10 more", SOON).await;
    let first = ground.slack.posts()[0].at;
    let _: String = redis::cmd("XADD").arg(&["late", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    ground.fleet.crash(&["a"]).await;
    ground.slack.told("Worker a crashed", SOON).await;
    assert_eq!(ground.slack.taken().len(), 21, "twenty, and what is critical");
    let late = ground.slack.told("lots99: ", 2 * SOON).await;
    assert!(late.at.duration_since(first) > Duration::from_secs(50), "{:?}", late.at.duration_since(first));
}

#[tokio::test]
async fn messages_are_delivered_in_order_after_slack_hung_for_a_minute() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let monitor = ground.monitor("m", &[]).await;
    ground.alive(&monitor, &["a"]).await;
    ground.slack.always(Some(Answer::Hang));
    ground.fleet.crash(&["a"]).await;
    eventually("the first try", SOON, || async { !ground.slack.posts().is_empty() }).await;
    ground.fleet.up(&["a"]).await;
    let began = ground.slack.posts()[0].at;
    eventually("a minute is over", SOON * 2, || async { began.elapsed() >= Duration::from_secs(60) }).await;
    ground.slack.always(None);
    ground.slack.told("worker a is running again", IN_TIME).await;
    let posts = ground.slack.posts();
    assert!(posts.iter().filter(|post| post.status == 0).count() >= 2, "it was tried again meanwhile: {posts:?}");
    let taken: Vec<String> = ground.slack.taken().iter().map(|post| post.text().to_owned()).collect();
    assert_eq!(taken.len(), 2, "{taken:?}");
    assert!(taken[0].contains("Worker a crashed") && taken[1].contains("running again"), "{taken:?}");
    // The server may have accepted the message before the timeout, so a duplicate must have the same key.
    let key = |post: &super::slack::Post| post.body.to_string().split("ref ").nth(1).map(|r| r[..8].to_owned());
    assert!(posts.iter().filter(|post| post.status == 0).all(|post| key(post) == key(&posts[0])));
}

#[tokio::test]
async fn notify_test_sends_through_every_channel_and_prints_the_replies() {
    let (slack, webhook, mail) = (Slack::start(), Slack::start(), Mail::start("starttls").await);
    let run = async |more: &[(&str, String)]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
        command.arg("notify-test").env_clear().envs(mail.settings()).envs(more.iter().cloned());
        let output = command.output().await.unwrap();
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(!told.concat().contains("verysecret"), "{told:?}");
        (output.status.code(), told)
    };
    let all = [
        ("SLACK_WEBHOOK_URL", slack.url()),
        ("ALERT_WEBHOOK_URL", webhook.url()),
        ("SERVER_MATURITY", "test".to_owned()),
    ];
    let (code, [out, err]) = run(&all).await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), "slack: sent: 200 OK: ok\nemail:night@example.org: sent: taken\nwebhook: sent: 200 OK: ok\n", "")
    );
    assert!(slack.taken()[0].text().contains("[test] Test notification"), "{:?}", slack.taken());
    assert_eq!(mail.mails()[0]["subject"], "[test] Test notification: this channel works");
    webhook.always(Some(Answer::Status(404)));
    let (code, [out, err]) = run(&all).await;
    assert_eq!(code, Some(1));
    assert!(out.contains("slack: sent") && out.contains("webhook: not sent: 404 Not Found: said"), "{out}");
    assert!(err.contains("failed on 1 of 3 channels"), "{err}");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    let nobody = command.arg("notify-test").env_clear().output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8(nobody.stderr)
            .unwrap()
            .contains("notifications are not sent: no channel is configured. Set one of SLACK_WEBHOOK_URL")
    );
}

#[tokio::test]
async fn a_broken_channel_is_reported_through_the_others_and_its_messages_wait() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let webhook = Slack::start();
    ground.slack.always(Some(Answer::Status(404)));
    let monitor = ground.monitor("m", &[("ALERT_WEBHOOK_URL", &webhook.url())]).await;
    ground.alive(&monitor, &["a"]).await;
    ground.fleet.crash(&["a"]).await;
    let taken = eventually("the webhook hears of both", SOON, || async {
        let posts = webhook.taken();
        let of = |rule: &str| posts.iter().find(|p| p.body["commonLabels"]["alertname"] == rule).cloned();
        of("worker_crashed").zip(of("channel_broken"))
    })
    .await;
    let (crash, broken) = taken;
    assert_eq!(crash.body["version"], "4");
    assert_eq!(crash.body["status"], "firing");
    assert_eq!(
        crash.body["alerts"][0]["labels"],
        json!({"alertname": "worker_crashed", "severity": "critical", "stream": "a", "environment": "test"})
    );
    assert_eq!(crash.body["alerts"][0]["endsAt"], "0001-01-01T00:00:00Z");
    assert!(broken.body["alerts"][0]["annotations"]["summary"].as_str().unwrap().contains("slack"), "{}", broken.body);
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("404") && page.contains("waiting"), "{page}");
    assert!(!page.contains("verysecret"));
}

#[tokio::test]
async fn an_invalid_rules_file_keeps_the_active_rules_and_is_reported() {
    let ground = Ground::new();
    let good = "rules: [{name: lots, type: threshold, metric: xlen, stream: orders, threshold: 0}]";
    let rules = ground.rules(good);
    let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", rules.as_str())]).await;
    eventually("the rules are in force", SOON, || async { monitor.get("/alerts").await.1.contains("xlen of orders") })
        .await;
    monitor.takes_orders().await;
    ground.rules("rules: [{name: lots, type: treshold}]");
    let client = reqwest::Client::new();
    let answer = client.post(monitor.url("/-/reload")).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let said = answer.text().await.unwrap();
    assert!(said.contains(":1:28: type is"), "{said}");
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("last valid rules are in use") && page.contains("xlen of orders"), "{page}");
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    ground.slack.told("lots: ", SOON).await;
    ground.rules(good);
    monitor.send("HUP");
    eventually("the file is good again", SOON, || async {
        !monitor.get("/alerts").await.1.contains("last valid rules")
    })
    .await;
}

#[tokio::test]
async fn a_rules_file_that_is_being_written_ends_no_alert_and_each_way_to_load_it_is_in_the_audit_log() {
    let ground = Ground::new();
    let rule =
        |name: &str| format!("- {{name: {name}, type: threshold, metric: xlen, stream: orders, threshold: 0}}\n");
    let good = format!("rules:\n{}{}", rule("first"), rule("second"));
    let rules = ground.rules(&good);
    let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", rules.as_str())]).await;
    monitor.takes_orders().await;
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    ground.slack.told("second: ", SOON).await;
    // An editor that takes its time: for a while, the first rule alone is a valid file.
    let edited = good.replace("threshold: 0", "threshold: 0.5");
    let begun = std::time::Instant::now();
    // Written in pieces of less than a second each, for longer than the file is left unread.
    for n in 0.. {
        if begun.elapsed() > Duration::from_secs(12) {
            break;
        }
        ground.rules(&format!("rules:\n# {n}\n{}", rule("first")));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    ground.rules(&edited);
    let recorded = async || {
        let text = monitor.get("/api/admin/audit").await.1;
        let audit: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows = audit["changes"].as_array().unwrap().clone();
        rows.iter().map(|row| format!("{}: {}", row["who"], row["action"]).replace('"', "")).collect::<Vec<_>>()
    };
    eventually("the whole file is loaded", SOON, || async {
        recorded().await.contains(&"rules file: load rules".to_owned())
    })
    .await;
    monitor.send("HUP");
    eventually("the signal is recorded", SOON, || async {
        recorded().await.contains(&"SIGHUP: reload rules".to_owned())
    })
    .await;
    let (_, alerts) = monitor.get("/api/alerts").await;
    let alerts: serde_json::Value = serde_json::from_str(&alerts).unwrap();
    let notified: Vec<&str> = alerts["alerts"].as_array().unwrap().iter().filter_map(|a| a["rule"].as_str()).collect();
    assert_eq!(notified, ["second", "first"], "no alert ended and fired again: {alerts}");
}

/// Value of a metric without labels.
async fn metric(monitor: &Monitor, name: &str) -> Option<String> {
    let (_, text) = monitor.get("/metrics").await;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[tokio::test]
async fn rules_and_alerts_stay_active_when_the_file_is_missing_or_empty() {
    const OK: &str = "shepherd_monitor_rules_file_ok ";
    let ground = Ground::new();
    let good = "rules: [{name: lots, type: threshold, metric: xlen, stream: orders, threshold: 0}]";
    let rules = ground.rules(good);
    let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", rules.as_str())]).await;
    eventually("the rules are in force", SOON, || async { monitor.get("/alerts").await.1.contains("xlen of orders") })
        .await;
    monitor.takes_orders().await;
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    ground.slack.told("lots: ", SOON).await;
    assert_eq!(metric(&monitor, OK).await.as_deref(), Some("1"));
    let client = reqwest::Client::new();
    let reload = || async { client.post(monitor.url("/-/reload")).send().await.unwrap().status().as_u16() };
    std::fs::remove_file(&rules).unwrap();
    assert_eq!(reload().await, 400);
    ground.rules("");
    assert_eq!(reload().await, 400);
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("last valid rules are in use") && page.contains("xlen of orders"), "{page}");
    assert!(monitor.log().contains("rules.yaml: not found") && monitor.log().contains("the file contains no rules"));
    assert_eq!(metric(&monitor, OK).await.as_deref(), Some("0"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ground.slack.count("Resolved"), 0, "the alert still fires");
    ground.rules(good);
    assert_eq!(reload().await, 200);
    assert_eq!(metric(&monitor, OK).await.as_deref(), Some("1"));
    assert_eq!((ground.slack.count("lots: "), ground.slack.count("Resolved")), (1, 0));
}

#[tokio::test]
async fn a_fifo_or_an_endless_glob_as_rules_is_reported_and_blocks_nothing() {
    let ground = Ground::new();
    let fifo = ground.folder.folder().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let endless = "?".repeat(145_750);
    let endless = ground
        .rules(&format!("rules: [{{name: x, type: threshold, metric: xlen, stream: '{endless}', threshold: 1}}]"));
    for (worker, file, said) in
        [("a", fifo.to_str().unwrap(), "not a regular file"), ("b", endless.as_str(), "145750 characters")]
    {
        ground.fleet.up(&[worker]).await;
        let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", file)]).await;
        eventually("it says what is wrong", SOON, || async { monitor.get("/alerts").await.1.contains(said) }).await;
        ground.alive(&monitor, &[worker]).await;
        ground.fleet.crash(&[worker]).await;
        ground.slack.told(&format!("Worker {worker} crashed"), SOON).await;
        assert!(!monitor.log().contains("panicked"), "{}", monitor.log());
        monitor.send("TERM");
        eventually("it ends", Duration::from_secs(15), || async { !monitor.is_running() }).await;
    }
}
