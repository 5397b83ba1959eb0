//! Every type of rule, end to end; a channel that is broken; a webhook.

use serde_json::json;

use super::slack::{Answer, Slack};
use super::*;
use crate::support::postgres::connect;

#[tokio::test]
async fn every_type_of_rule_in_the_contracts_file_fires_and_resolves() {
    let ground = Ground::new();
    ground.fleet.up(&["a"]).await;
    let rules = ground.rules(
        "
rules:
  - {name: r_threshold, type: threshold, metric: xlen, stream: orders, threshold: 2, duration: 1s, severity: warning}
  - {name: r_heartbeat, type: heartbeat_lost, worker: a, duration: 1s, severity: critical}
  - {name: r_pending, type: queue_pending, stream: orders, threshold: 0, duration: 1, severity: info}
  - {name: r_oldest, type: oldest_callback_age, threshold: 100, duration: 500ms}
  - {name: r_callbacks, type: threshold, metric: callbacks_pending, threshold: 0, duration: 1s}
  - {name: r_connections, type: threshold, metric: pg_connection_count, threshold: 0, duration: 1s}
  - {name: r_disk, type: db_capacity, threshold: 80, duration: 1s, severity: critical}
",
    );
    let given = [("MONITOR_ALERTS_CONFIG", rules.as_str()), ("PG_VOLUME_CAPACITY", "1M")];
    let monitor = ground.monitor("m", &given).await;
    ground.alive(&monitor, &["a"]).await;
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
    let database = connect(&ground.database.url()).await.unwrap();
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
    ground.fleet.crash(&["a"]).await;
    let names = ["r_threshold", "r_heartbeat", "r_pending", "r_oldest", "r_callbacks", "r_connections", "r_disk"];
    for name in names {
        ground.slack.told(&format!("{name}: "), SOON).await;
    }
    // All of it ends: the last two because the rules say something else.
    let _: i64 = redis::cmd("DEL").arg("orders").query_async(&mut redis).await.unwrap();
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    database.batch_execute("DELETE FROM callbacks; UPDATE shepherd_brain SET state = 'COMPLETED'").await.unwrap();
    ground.fleet.up(&["a"]).await;
    let calm = std::fs::read_to_string(&rules)
        .unwrap()
        .replace("pg_connection_count, threshold: 0", "pg_connection_count, threshold: 9999");
    let calm = calm.replace("type: db_capacity, threshold: 80", "type: threshold, metric: disk_used_pct, above: 1e9");
    ground.rules(&calm);
    for name in names.iter().filter(|name| **name != "r_pending") {
        eventually(&format!("{name} is over"), SOON, || async {
            let posts = ground.slack.taken();
            let over = posts.iter().any(|p| p.text().contains("Resolved after") && p.text().contains(name));
            if over { Ok(()) } else { Err(posts.iter().map(|p| p.text().to_owned()).collect::<Vec<_>>().join("\n")) }
        })
        .await;
        assert_eq!(ground.slack.count(&format!("{name}: ")), 1);
    }
    let texts: Vec<String> = ground.slack.taken().iter().map(|post| post.text().to_owned()).collect();
    println!("{}", texts.join("\n"));
}

#[tokio::test]
async fn a_broken_channel_is_told_by_the_others_and_its_messages_wait() {
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
async fn a_bad_file_keeps_the_last_good_rules_and_says_so() {
    let ground = Ground::new();
    let good = "rules: [{name: lots, type: threshold, metric: xlen, stream: orders, threshold: 0}]";
    let rules = ground.rules(good);
    let monitor = ground.monitor("m", &[("MONITOR_ALERTS_CONFIG", rules.as_str())]).await;
    eventually("the rules are in force", SOON, || async { monitor.get("/alerts").await.1.contains("xlen of orders") })
        .await;
    ground.rules("rules: [{name: lots, type: treshold}]");
    let client = reqwest::Client::new();
    let answer = client.post(monitor.url("/-/reload")).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let said = answer.text().await.unwrap();
    assert!(said.contains(":1:28: type is"), "{said}");
    let (_, page) = monitor.get("/alerts").await;
    assert!(page.contains("last good rules are in force") && page.contains("xlen of orders"), "{page}");
    let mut redis = ground.redis.connection().await;
    let _: String = redis::cmd("XADD").arg(&["orders", "*", "a", "b"]).query_async(&mut redis).await.unwrap();
    ground.slack.told("lots: ", SOON).await;
    ground.rules(good);
    monitor.send("HUP");
    eventually("the file is good again", SOON, || async {
        !monitor.get("/alerts").await.1.contains("last good rules")
    })
    .await;
}
