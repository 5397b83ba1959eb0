//! Invalid heartbeat values and unusual names: each is shown as invalid, and the rest of the fleet is unaffected.

use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;

fn good(stream: &str, consumer: &str) -> String {
    serde_json::json!({"stream": stream, "consumer": consumer, "started_at": 1.0, "last_seen": 2.0, "task_limit": 10})
        .to_string()
}

/// Returns thirty values that are not heartbeats of stream `s`, each of its own consumer.
fn bad_values() -> Vec<(String, Vec<u8>)> {
    let beat = |n: usize| good("s", &format!("bad{n:02}"));
    let mut values: Vec<Vec<u8>> =
        ["[]", "5", "", "null", "true", "\"text\"", "{}", "{", "}", "[[[[", " ", "nul", "{\"stream\":\"s\"}"]
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
    values.push(b"\xff\xfe\x00\x80".to_vec());
    values.push(vec![b'a'; 1_000_000]);
    values.push("[".repeat(10_000).into_bytes());
    let changed: [(&str, &str); 14] = [
        ("\"task_limit\":10", "\"task_limit\":\"10\""),
        ("\"task_limit\":10", "\"task_limit\":-1"),
        ("\"task_limit\":10", "\"task_limit\":1.5"),
        ("\"task_limit\":10", "\"task_limit\":null"),
        ("\"task_limit\":10", "\"task_limit\":99999999999999"),
        (",\"task_limit\":10", ""),
        ("\"last_seen\":2.0", "\"last_seen\":NaN"),
        ("\"last_seen\":2.0", "\"last_seen\":1e400"),
        ("\"last_seen\":2.0", "\"last_seen\":\"2\""),
        ("\"last_seen\":2.0", "\"last_seen\":-7"),
        ("\"started_at\":1.0", "\"started_at\":Infinity"),
        ("\"started_at\":1.0", "\"started_at\":[1]"),
        ("\"stream\":\"s\"", "\"stream\":\"other\""),
        ("\"consumer\":\"bad", "\"consumer\":\"somebody else"),
    ];
    for (from, to) in changed {
        let text = beat(values.len());
        assert!(text.contains(from), "{text}");
        values.push(text.replace(from, to).into_bytes());
    }
    values.into_iter().enumerate().map(|(n, value)| (format!("bad{n:02}"), value)).collect()
}

async fn write(redis: &mut MultiplexedConnection, key: &str, value: &[u8]) {
    let _: () = redis.set(key, value).await.unwrap();
}

#[tokio::test]
async fn invalid_heartbeats_are_shown_and_do_not_affect_others() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    write(&mut connection, "worker:heartbeat:s:fine", good("s", "fine").as_bytes()).await;
    let bad = bad_values();
    assert_eq!(bad.len(), 30);
    for (consumer, value) in &bad {
        write(&mut connection, &format!("worker:heartbeat:s:{consumer}"), value).await;
    }
    // Keys of other types, for which MGET returns nil.
    let _: () = connection.hset("worker:heartbeat:s:hash", "field", "value").await.unwrap();
    let _: () = connection.rpush("worker:heartbeat:t:list", "value").await.unwrap();
    // One that is also listed in a group.
    let _: () = redis::cmd("XGROUP")
        .arg(&["CREATE", "s", "consumer", "0", "MKSTREAM"])
        .query_async(&mut connection)
        .await
        .unwrap();
    let _: i64 = redis::cmd("XGROUP")
        .arg(&["CREATECONSUMER", "s", "consumer", "bad00"])
        .query_async(&mut connection)
        .await
        .unwrap();

    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let snapshot = monitor
        .until("all bad heartbeats are listed", Duration::from_secs(20), |snapshot| {
            snapshot["unreadable_heartbeats"].as_array().is_some_and(|list| list.len() == 32)
        })
        .await;
    let listed = snapshot["unreadable_heartbeats"].as_array().unwrap();
    for consumer in bad.iter().map(|(consumer, _)| consumer.as_str()).chain(["hash"]) {
        let key = format!("worker:heartbeat:s:{consumer}");
        let entry = listed.iter().find(|entry| entry["key"] == key).unwrap_or_else(|| panic!("{key} is not listed"));
        assert!(entry["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
        assert_eq!(entry["stream"], "s");
    }
    assert_eq!(snapshot["workers"]["s"]["alive"], 1);
    assert_eq!(snapshot["workers"]["s"]["state"], "alive");
    assert_eq!(snapshot["redis"]["source"]["status"], "settling");
    let (status, page) = monitor.get("/").await;
    assert_eq!(status, 200);
    for told in ["Unreadable heartbeats</h2><span class=\"aside\">32", "worker:heartbeat:s:bad00", "not a JSON object"]
    {
        assert!(page.contains(told), "the page does not say {told:?}: {page}");
    }
}

#[tokio::test]
async fn hostile_names_are_escaped() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    let long = "x".repeat(4096);
    let names = [
        "<img src=x onerror=alert(1)>",
        "\"quotes' & <b>",
        "line\nbreak\r\n",
        "q[1]*?",
        "a:b",
        "",
        long.as_str(),
        "ünï→💥",
        "{{7*7}}",
        "</script><script>",
    ];
    for name in names.iter().filter(|name| !name.is_empty()) {
        write(&mut connection, &format!("worker:heartbeat:{name}:{name}"), good(name, name).as_bytes()).await;
        let _: String =
            redis::cmd("XADD").arg(*name).arg("*").arg("f").arg("v").query_async(&mut connection).await.unwrap();
    }
    let not_text = b"worker:heartbeat:s\xff:c\xfe".to_vec();
    let _: () = connection.set(not_text, good("s", "c")).await.unwrap();

    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let snapshot = monitor
        .until("all are there", Duration::from_secs(20), |snapshot| {
            names.iter().filter(|name| !name.is_empty()).all(|name| snapshot["workers"][*name]["alive"] == 1)
        })
        .await;
    assert_eq!(snapshot["unreadable_heartbeats"].as_array().unwrap().len(), 1);
    let (status, page) = monitor.get("/").await;
    assert_eq!(status, 200);
    assert!(!page.contains("<img src=x") && !page.contains("& <b>") && !page.contains("<script>"), "{page}");
    assert!(page.contains("&lt;img src"), "the name is shown, escaped");
}
