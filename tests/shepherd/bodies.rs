//! Bodies and logs: Rust and Python read what the other has written.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};
use shepherd_monitor::worker::shepherd::{LogEntry, ShepherdError};

use super::*;
use crate::support::proxy::Proxy;
use crate::support::wait::eventually;

#[tokio::test]
async fn rust_and_python_read_each_others_bodies() {
    let server = TestRedis::start();
    let shepherd = shepherd(&server).await;
    // zstd and the library process small and large bodies differently.
    for results in [0, 1, 20_000] {
        let results: Vec<Value> = (0..results).map(|n| json!({"id": format!("MONDO:{n}"), "score": n})).collect();
        let body = json!({"message": {"results": results, "note": "é\u{1f600}"}, "n": 1.5});
        shepherd.put_body("r", &body).await.unwrap();
        let read: Value = serde_json::from_str(&python(&server, &["get", "r"]).await).unwrap();
        assert_eq!(read, body);
    }
    python(&server, &["put", "from-python", r#"{"message": {"results": [1, 2]}}"#]).await;
    let body: Option<Value> = shepherd.body("from-python").await.unwrap();
    assert_eq!(body, Some(json!({"message": {"results": [1, 2]}})));
    let text = shepherd.body_json("from-python").await.unwrap().unwrap();
    assert_eq!(text, br#"{"message": {"results": [1, 2]}}"#);
    let mut bodies = database(&server, BODIES).await;
    for key in ["r", "from-python"] {
        let ttl: i64 = ask!(bodies, "TTL", key);
        assert!((LIFE - 60..=LIFE).contains(&ttl), "{key}: {ttl}");
    }
}

#[tokio::test]
async fn missing_bodies_are_none_and_invalid_ones_return_an_error() {
    let server = TestRedis::start();
    let shepherd = builder(server.url()).max_body_bytes(1000).connect().await.unwrap();
    assert_eq!(shepherd.body::<Value>("none").await.unwrap(), None);
    let mut bodies = database(&server, BODIES).await;
    let _: () = ask!(bodies, "SET", "text", "no frame");
    let _: () = ask!(bodies, "LPUSH", "list", 1);
    python(&server, &["put", "list-body", "[1]"]).await;
    python(&server, &["put", "large", &format!("[{}1]", "1,".repeat(500))]).await;
    for (id, reason) in [
        ("text", "cannot read the body text: invalid zstd frame"),
        ("list-body", "cannot read the body list-body: unexpected JSON structure"),
        ("list", "cannot read the body list: Redis returned an error: WRONGTYPE"),
        ("large", "the body large is too large: more than 1000 bytes of JSON"),
    ] {
        let error = shepherd.body::<BTreeMap<String, Value>>(id).await.unwrap_err();
        assert!(error.to_string().starts_with(reason) && !error.may_pass(), "{error}");
    }
    let error = shepherd.put_body("large", &"x".repeat(1000)).await.unwrap_err();
    assert!(matches!(error, ShepherdError::TooLarge { limit: 1000, .. }), "{error}");
    assert!(
        shepherd.put_body_json("text", b"no JSON".to_vec()).await.unwrap_err().to_string().contains("invalid JSON")
    );
}

#[tokio::test]
async fn rust_and_python_append_to_one_log_oldest_first() {
    let server = TestRedis::start();
    let shepherd = shepherd(&server).await;
    assert_eq!(shepherd.logs("r").await.unwrap(), []);
    let entry = |message: &str| LogEntry::new(SystemTime::now(), "WARNING", message);
    shepherd.append_logs("r", &[entry("one"), entry("two \"]")]).await.unwrap();
    python(&server, &["log", "r", "three", "four"]).await;
    shepherd.append_logs("r", &[entry("five")]).await.unwrap();
    shepherd.append_logs("r", &[]).await.unwrap();
    let expected = "WARNING one\nWARNING two \"]\nINFO three\nINFO four\nWARNING five\n";
    assert_eq!(python(&server, &["logs", "r"]).await, expected);
    let read: Vec<String> = shepherd.logs("r").await.unwrap().into_iter().map(|entry| entry.message.unwrap()).collect();
    assert_eq!(read, ["one", "two \"]", "three", "four", "five"]);
    let mut logs = database(&server, LOGS).await;
    let ttl: i64 = ask!(logs, "TTL", "r");
    assert!((LIFE - 60..=LIFE).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn appending_preserves_existing_entries() {
    let server = TestRedis::start();
    let shepherd = shepherd(&server).await;
    let mut logs = database(&server, LOGS).await;
    let entry = LogEntry { message: Some("m".into()), timestamp: None, level: None, other: serde_json::Map::new() };
    for (before, after) in [
        (r#"[]"#, r#"[{"message":"m"}]"#),
        (" [ ] \n", r#"[{"message":"m"}]"#),
        (
            r#"[{"n": 1.0, "l": [], "big": 12345678901234567890}]"#,
            r#"[{"n": 1.0, "l": [], "big": 12345678901234567890},{"message":"m"}]"#,
        ),
    ] {
        let _: () = ask!(logs, "SET", "r", before);
        shepherd.append_logs("r", std::slice::from_ref(&entry)).await.unwrap();
        let stored: String = ask!(logs, "GET", "r");
        assert_eq!(stored, after);
    }
    for wrong in ["{}", "", "[", "text"] {
        let _: () = ask!(logs, "SET", "r", wrong);
        let error = shepherd.append_logs("r", std::slice::from_ref(&entry)).await.unwrap_err();
        assert!(error.to_string().contains("not a JSON array"), "{wrong}: {error}");
        let stored: String = ask!(logs, "GET", "r");
        assert_eq!(stored, wrong);
        assert!(shepherd.logs("r").await.is_err());
    }
}

#[tokio::test]
async fn concurrent_appends_lose_no_entry() {
    let server = TestRedis::start();
    let mut appending = tokio::task::JoinSet::new();
    for who in 0..8 {
        let shepherd = shepherd(&server).await;
        appending.spawn(async move {
            for n in 0..20 {
                let entry = LogEntry::new(SystemTime::now(), "INFO", format!("{who}/{n}"));
                shepherd.append_logs("r", &[entry]).await.unwrap();
            }
        });
    }
    appending.join_all().await;
    assert_eq!(shepherd(&server).await.logs("r").await.unwrap().len(), 160);
}

#[tokio::test]
async fn a_temporarily_unreachable_redis_is_retried() {
    let server = TestRedis::start();
    let proxy = Proxy::to(server.port());
    let shepherd = builder(server.url_through(proxy.port())).connect().await.unwrap();
    shepherd.put_body("r", &json!([1])).await.unwrap();
    proxy.cut();
    let reading = tokio::spawn({
        let shepherd = shepherd.clone();
        async move { shepherd.body::<Value>("r").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!reading.is_finished());
    proxy.pass();
    assert_eq!(reading.await.unwrap().unwrap(), Some(json!([1])));
    // After a lost reply, idempotent commands are retried.
    proxy.swallow_replies();
    let storing = tokio::spawn(async move { shepherd.put_body("r", &json!([2])).await });
    let bodies = database(&server, BODIES).await;
    eventually("Redis has stored it", PATIENCE, || {
        let mut bodies = bodies.clone();
        async move {
            let size: u64 = ask!(bodies, "STRLEN", "r");
            let blob: Vec<u8> = ask!(bodies, "GET", "r");
            size > 0 && blob.windows(3).any(|part| part == b"[2]")
        }
    })
    .await;
    proxy.cut();
    proxy.pass();
    storing.await.unwrap().unwrap();
}

#[tokio::test]
async fn invalid_settings_are_named() {
    let server = TestRedis::start();
    for (build, reason) in [
        (builder("nonsense"), "redis_url"),
        (builder(server.url()).life(Duration::ZERO), "below one second"),
        (builder(server.url()).max_body_bytes(0), "expected 1 to"),
        (builder(server.url()).max_body_bytes(1 << 40), "expected 1 to"),
        (builder(server.url()).lock_options(short(Duration::ZERO)), "invalid lock settings: TTL 0ns"),
    ] {
        let error = build.connect().await.unwrap_err();
        assert!(matches!(error, ShepherdError::Setting(_)) && error.to_string().contains(reason), "{error}");
    }
}
