//! Entries that kill whoever takes them, and what people do with them.

use redis::Value;
use shepherd_monitor::contract::Name;
use shepherd_monitor::redis_streams::tasks::Address;
use shepherd_monitor::redis_streams::tasks::dead_letters::{Command, Which, run};

use super::*;

#[tokio::test]
async fn an_entry_that_was_delivered_too_often_is_buried_with_its_history() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let id = add(&mut redis, "poison", &["a"]).await;
    let mut owners = Vec::new();
    for delivery in 1..=3 {
        let seen = Seen::default();
        let victim = Running::start(quick(&server, "a").delivery_limit(2), {
            let seen = seen.clone();
            move |task| {
                seen.note(&task);
                std::future::pending()
            }
        });
        eventually("it is delivered", PATIENCE, || async { seen.tasks().len() == 1 }).await;
        let fence = seen.tasks()[0].fence().clone();
        assert_eq!(fence.deliveries, delivery);
        owners.push(fence.consumer.to_text());
        victim.crash().await;
        let _: Value = ask!(redis, "DEL", format!("worker:heartbeat:a:{}", owners.last().unwrap()));
    }
    let worker = Running::start(quick(&server, "a").delivery_limit(2), done);
    reaches(&redis, "a:dead", 1).await;
    worker.leave().await;
    assert_eq!((length(&mut redis, "a").await, length(&mut redis, "finish_query").await), (0, 0));
    let (_, letter) = &entries(&mut redis, "a:dead").await[0];
    assert_eq!((field(letter, "query_id"), field(letter, "dead_id")), ("poison", id.as_str()));
    assert_eq!((field(letter, "dead_stream"), field(letter, "dead_deliveries")), ("a", "3"));
    assert!(field(letter, "dead_error").contains("delivered 3 times"), "{letter:?}");
    let history: serde_json::Value = serde_json::from_str(field(letter, "dead_history")).unwrap();
    let told: Vec<&str> = history.as_array().unwrap().iter().map(|one| one["consumer"].as_str().unwrap()).collect();
    assert_eq!(told, owners);
    let times: Vec<u64> = history
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|one| [one["delivered_ms"].as_u64().unwrap(), one["lost_ms"].as_u64().unwrap()])
        .collect();
    assert!(times.is_sorted() && times[0] > 1_000_000_000_000, "{times:?}");
    let records: Vec<String> = ask!(redis, "KEYS", "worker:deliveries:*");
    assert_eq!(records, Vec::<String>::new());
}

#[tokio::test]
async fn dead_letters_are_listed_replayed_and_dropped() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    for n in 0..250 {
        add(&mut redis, &format!("q{n}"), &["a", "b"]).await;
    }
    let ids = taken_by(&mut redis, "dead", "a", 250).await;
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "dead", 0, &ids, "IDLE", 600_000, "RETRYCOUNT", 6, "JUSTID");
    let worker = Running::start(quick(&server, "a"), done);
    reaches(&redis, "a:dead", 250).await;
    worker.leave().await;

    let (address, a) = (Address::from_url("url", &server.url()).unwrap(), Name::from("a"));
    let told = run(address.clone(), &a, Command::List { most: 2 }).await.unwrap();
    assert!(told.contains("query q0 ") && told.contains("delivered 6 times") && !told.contains("query q2 "), "{told}");
    let letters: Vec<String> = entries(&mut redis, "a:dead").await.into_iter().map(|(id, _)| id).collect();
    let these =
        |range: std::ops::Range<usize>| Which::These(letters[range].iter().map(|id| id.as_str().into()).collect());
    assert!(run(address.clone(), &a, Command::Drop(these(0..10))).await.unwrap().starts_with("10 "));
    assert!(run(address.clone(), &a, Command::Replay(these(10..12))).await.unwrap().starts_with("2 "));
    assert_eq!(queries(&mut redis, "a").await, ["q10", "q11"]);
    // They are new tasks, without a trace of their death.
    for (_, fields) in entries(&mut redis, "a").await {
        assert!(fields.iter().all(|(name, _)| !name.starts_with("dead_")), "{fields:?}");
        assert_eq!(field(&fields, "workflow"), workflow(&["a", "b"]));
    }
    assert!(run(address.clone(), &a, Command::Replay(Which::All)).await.unwrap().starts_with("238 "));
    let worker = Running::start(quick(&server, "a").task_limit(50), done);
    reaches(&redis, "b", 240).await;
    worker.leave().await;
    let told = run(address, &a, Command::List { most: 10 }).await.unwrap();
    assert!(told.contains("no dead letters of a"), "{told}");
}

#[tokio::test]
async fn a_letter_that_redis_does_not_take_leaves_its_entry_pending() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let _: Value = ask!(redis, "SET", "a:dead", "no stream");
    add(&mut redis, "q", &["a"]).await;
    let ids = taken_by(&mut redis, "dead", "a", 1).await;
    let _: Value = ask!(redis, "XCLAIM", "a", "consumer", "dead", 0, &ids, "IDLE", 600_000, "RETRYCOUNT", 6, "JUSTID");
    let worker = Running::start(quick(&server, "a"), done);
    add(&mut redis, "other", &["a"]).await;
    reaches(&redis, "finish_query", 1).await;
    assert_eq!((length(&mut redis, "a").await, pending(&mut redis, "a").await), (1, 1));
    let _: Value = ask!(redis, "DEL", "a:dead");
    reaches(&redis, "a:dead", 1).await;
    worker.leave().await;
}
