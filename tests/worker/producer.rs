//! Producers: tasks are added exactly once, and never to a full stream.

use redis::Value;
use shepherd_monitor::demo::servers::RedisOptions;
use shepherd_monitor::worker::{NewTask, Producer, ProducerBuilder, ProducerError, Workflow};
use tokio::time::timeout;

use super::*;
use crate::support::proxy::Proxy;

fn builder(url: impl Into<String>) -> ProducerBuilder {
    Producer::builder().environment(|_| None).redis_url(url).retry_for(PATIENCE)
}

async fn producer(redis: &TestRedis) -> Producer {
    builder(redis.url()).connect().await.unwrap()
}

fn numbered(n: usize) -> NewTask {
    NewTask::new().set("query_id", format!("q{n}"))
}

fn keyed(n: usize) -> NewTask {
    numbered(n).idempotency_key(format!("key {n}"))
}

async fn calls(redis: &mut MultiplexedConnection, command: &str) -> u64 {
    let info: String = ask!(*redis, "INFO", "commandstats");
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn an_added_task_keeps_the_order_of_its_fields_and_is_forwarded() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = producer(&server).await;
    let task = NewTask::query("q", "r").workflow(Workflow::through(["a", "b"])).set("extra", "x");
    let id = producer.add("a", task).await.unwrap();
    let added = entries(&mut redis, "a").await;
    let names: Vec<&str> = added[0].1.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["query_id", "response_id", "log_level", "otel", "metadata", "workflow", "extra"]);
    assert_eq!((added.len(), added[0].0.as_str()), (1, id.as_str()));
    let worker = Running::start(quick(&server, "a"), done);
    reaches(&redis, "b", 1).await;
    worker.leave().await;
}

#[tokio::test]
async fn a_task_with_the_same_key_is_added_once_and_returns_its_first_id() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = builder(server.url()).idempotency_ttl(Duration::from_millis(300)).connect().await.unwrap();
    let first = producer.add("a", keyed(1)).await.unwrap();
    assert_eq!(producer.add("a", numbered(2).idempotency_key("key 1")).await.unwrap(), first);
    assert_eq!(queries(&mut redis, "a").await, ["q1"]);
    // Other keys, other streams and tasks without a key are independent.
    for (stream, task) in [("a", keyed(2)), ("b", keyed(1)), ("a", numbered(1)), ("a", numbered(1))] {
        producer.add(stream, task).await.unwrap();
    }
    assert_eq!(queries(&mut redis, "a").await, ["q1", "q2", "q1", "q1"]);
    assert_eq!(queries(&mut redis, "b").await, ["q1"]);
    // Completed tasks are not added again either.
    let _: Value = ask!(redis, "DEL", "a");
    assert_eq!(producer.add("a", keyed(1)).await.unwrap(), first);
    assert_eq!(length(&mut redis, "a").await, 0);
    // The record is the only memory of the key, and it expires.
    eventually("the records expire", PATIENCE, || {
        let mut redis = redis.clone();
        async move {
            let records: Vec<String> = ask!(redis, "KEYS", "producer:*");
            records.is_empty()
        }
    })
    .await;
    assert_ne!(producer.add("a", keyed(1)).await.unwrap(), first);
}

#[tokio::test]
async fn two_streams_whose_names_and_keys_join_to_the_same_text_do_not_share_a_record() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = producer(&server).await;
    producer.add("a:b", numbered(1).idempotency_key("c")).await.unwrap();
    producer.add("a", numbered(2).idempotency_key("b:c")).await.unwrap();
    assert_eq!(
        (queries(&mut redis, "a:b").await, queries(&mut redis, "a").await),
        (vec!["q1".into()], vec!["q2".into()])
    );
}

#[tokio::test]
async fn a_lost_reply_adds_a_task_with_a_key_exactly_once() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let producer = builder(server.url_through(proxy.port())).connect().await.unwrap();
    for round in 1..=5 {
        // Loads the script and uses the connection, so that it is not checked with PING next time.
        producer.add("before", numbered(0)).await.unwrap();
        proxy.swallow_replies();
        let adding = tokio::spawn({
            let producer = producer.clone();
            async move { producer.add_all("a", (0..200).map(move |n| keyed(1000 * round + n))).await }
        });
        let before = 200 * (round - 1);
        eventually("Redis has added some", PATIENCE, || {
            let mut redis = redis.clone();
            async move { length(&mut redis, "a").await > before }
        })
        .await;
        proxy.cut();
        proxy.pass();
        let ids = adding.await.unwrap().unwrap();
        let present: Vec<String> = entries(&mut redis, "a").await.into_iter().map(|(id, _)| id).collect();
        assert_eq!(present.len(), 200 * round);
        // The IDs are in the order of the entries.
        assert_eq!(ids.iter().map(|id| id.as_str()).collect::<Vec<_>>(), present[before..].to_vec());
    }
}

#[tokio::test]
async fn a_lost_reply_without_a_key_is_an_unknown_outcome_and_not_retried() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let producer = builder(server.url_through(proxy.port())).connect().await.unwrap();
    producer.add("before", numbered(0)).await.unwrap();
    proxy.swallow_replies();
    let adding = tokio::spawn({
        let producer = producer.clone();
        // One task without a key makes the whole batch unrepeatable.
        async move { producer.add_all("a", [keyed(1), numbered(2), keyed(3)]).await }
    });
    reaches(&redis, "a", 3).await;
    proxy.cut();
    proxy.pass();
    let error = adding.await.unwrap().unwrap_err();
    assert!(matches!(error.error, ProducerError::Unknown { .. }) && error.added.is_empty(), "{error:?}");
    assert!(error.to_string().contains("may have been added"), "{error}");
    // The producer reconnects automatically.
    producer.add("a", numbered(4)).await.unwrap();
    assert_eq!(queries(&mut redis, "a").await, ["q1", "q2", "q3", "q4"]);
}

#[tokio::test]
async fn unsent_requests_are_retried_even_without_a_key() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let proxy = Proxy::to(server.port());
    let producer = builder(server.url_through(proxy.port())).connect().await.unwrap();
    proxy.cut();
    // Long enough that the producer checks its connection before the next command.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let adding = tokio::spawn({
        let producer = producer.clone();
        async move { producer.add("a", numbered(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!adding.is_finished());
    proxy.pass();
    adding.await.unwrap().unwrap();
    assert_eq!(queries(&mut redis, "a").await, ["q1"]);

    proxy.cut();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let impatient = builder(server.url_through(proxy.port())).retry_for(Duration::ZERO);
    assert!(matches!(impatient.connect().await.unwrap_err(), ProducerError::Connect(_)));
}

#[tokio::test]
async fn a_connection_closed_by_redis_when_idle_loses_no_task() {
    let server = TestRedis::start_with(RedisOptions::with_args(["--timeout", "1"]));
    let producer = producer(&server).await;
    producer.add("a", numbered(0)).await.unwrap();
    for n in 1..3 {
        eventually("Redis closes the idle connections", PATIENCE, || async {
            let mut own = server.connection().await;
            let clients: String = ask!(own, "CLIENT", "LIST");
            clients.lines().count() == 1
        })
        .await;
        producer.add("a", numbered(n)).await.unwrap();
    }
    assert_eq!(queries(&mut server.connection().await, "a").await, ["q0", "q1", "q2"]);
}

#[tokio::test]
async fn a_full_stream_fails_try_add_and_blocks_add_until_there_is_room() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = builder(server.url()).max_length(2).connect().await.unwrap();
    producer.add_all("a", [keyed(1), numbered(2)]).await.unwrap();
    let error = producer.try_add("a", numbered(3)).await.unwrap_err();
    assert!(matches!(&error, ProducerError::Full { length: 2, .. }) && error.may_pass(), "{error:?}");
    assert_eq!(error.to_string(), "stream a is full: 2 entries");
    // An existing task, which needs no room.
    producer.try_add("a", keyed(1)).await.unwrap();
    let waiting = producer.add("a", numbered(3));
    assert!(timeout(Duration::from_millis(300), waiting).await.is_err());
    let adding = tokio::spawn({
        let producer = producer.clone();
        async move { producer.add_all("a", [numbered(4), numbered(5)]).await }
    });
    let first = entries(&mut redis, "a").await.remove(0).0;
    let _: Value = ask!(redis, "XDEL", "a", first);
    eventually("there is room for one", PATIENCE, || {
        let mut redis = redis.clone();
        async move { queries(&mut redis, "a").await == ["q2", "q4"] }
    })
    .await;
    assert!(!adding.is_finished());
    let _: Value = ask!(redis, "DEL", "a");
    assert_eq!(adding.await.unwrap().unwrap().len(), 2);
    let error = producer.try_add_all("a", (6..10).map(numbered)).await.unwrap_err();
    assert!(matches!(error.error, ProducerError::Full { length: 2, .. }) && error.added.len() == 1, "{error:?}");
}

#[tokio::test]
async fn concurrent_producers_never_exceed_the_maximum_length() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut adding = tokio::task::JoinSet::new();
    for who in 0..8 {
        let producer = builder(server.url()).max_length(10).connect().await.unwrap();
        adding
            .spawn(async move { producer.add_all("a", (0..50).map(move |n| numbered(100 * who + n))).await.unwrap() });
    }
    let mut read = 0;
    while read < 400 {
        let now = length(&mut redis, "a").await;
        assert!(now <= 10, "{now} entries");
        let ids: Vec<String> = entries(&mut redis, "a").await.into_iter().map(|(id, _)| id).collect();
        if !ids.is_empty() {
            read += ids.len();
            let _: Value = ask!(redis, "XDEL", "a", ids);
        }
    }
    assert_eq!(adding.join_all().await.iter().map(Vec::len).sum::<usize>(), 400);
}

#[tokio::test]
async fn many_tasks_are_added_in_few_calls() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = producer(&server).await;
    let ids = producer.add_all("a", (0..1000).map(numbered)).await.unwrap();
    assert_eq!((ids.len(), calls(&mut redis, "evalsha").await <= 9), (1000, true));
    assert_eq!(queries(&mut redis, "a").await, (0..1000).map(|n| format!("q{n}")).collect::<Vec<_>>());
    // Batches are limited in bytes as well.
    let large = (0..20).map(|n| numbered(n).set("body", vec![b'x'; 400_000]));
    assert_eq!(producer.add_all("large", large).await.unwrap().len(), 20);
    assert!(calls(&mut redis, "evalsha").await >= 9 + 10);
    assert_eq!(producer.add_all("a", []).await.unwrap(), []);
}

#[tokio::test]
async fn an_out_of_memory_redis_is_retried_and_stores_no_key_without_its_entry() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = producer(&server).await;
    producer.add("a", keyed(0)).await.unwrap();
    let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 1);
    let impatient = builder(server.url()).retry_for(Duration::ZERO).connect().await.unwrap();
    let error = impatient.add("a", keyed(1)).await.unwrap_err();
    assert!(matches!(error, ProducerError::NotAdded { .. }) && error.to_string().contains("OOM"), "{error:?}");
    let records: Vec<String> = ask!(redis, "KEYS", "producer:*");
    assert_eq!((records.len(), length(&mut redis, "a").await), (1, 1));
    let adding = tokio::spawn({
        let producer = producer.clone();
        async move { producer.add("a", numbered(2)).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!adding.is_finished());
    let _: Value = ask!(redis, "CONFIG", "SET", "maxmemory", 0);
    adding.await.unwrap().unwrap();
    assert_eq!(queries(&mut redis, "a").await, ["q0", "q2"]);
}

#[tokio::test]
async fn producers_recover_after_promotion_and_restart_of_redis() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let producer = producer(&server).await;
    producer.add("a", numbered(0)).await.unwrap();
    let _: Value = ask!(redis, "REPLICAOF", "127.0.0.1", "1");
    let adding = tokio::spawn({
        let producer = producer.clone();
        async move { producer.add("a", numbered(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!adding.is_finished());
    let _: Value = ask!(redis, "REPLICAOF", "NO", "ONE");
    adding.await.unwrap().unwrap();
    server.restart().unwrap();
    // The restarted Redis has lost the scripts, too.
    producer.add("a", keyed(2)).await.unwrap();
    assert_eq!(queries(&mut server.connection().await, "a").await, ["q2"]);
}

#[tokio::test]
async fn invalid_tasks_fail_immediately_with_the_reason() {
    let server = TestRedis::start_with(RedisOptions { password: Some("secret".into()), ..RedisOptions::default() });
    let mut redis = server.connection().await;
    let producer = producer(&server).await;
    let _: Value = ask!(redis, "SET", "text", "no stream");
    let many = (0..3501).fold(NewTask::new(), |task, n| task.set(n.to_string(), ""));
    for (stream, task, reason) in [
        ("a", NewTask::new(), "the task has no fields"),
        ("", numbered(1), "the stream name is empty"),
        ("a", many, "the task has 3501 fields; expected at most 3500"),
        ("text", numbered(1), "WRONGTYPE"),
        ("text", keyed(1), "WRONGTYPE"),
    ] {
        let error = producer.add(stream, task).await.unwrap_err();
        assert!(error.to_string().contains(reason) && !error.may_pass(), "{error}");
    }
    let records: Vec<String> = ask!(redis, "KEYS", "producer:*");
    assert!(records.is_empty());
    let most = (0..3500).fold(NewTask::new(), |task, n| task.set(n.to_string(), "v"));
    producer.add("a", most).await.unwrap();
    // The tasks before an invalid one are added.
    let error = producer.add_all("b", [numbered(1), NewTask::new(), numbered(2)]).await.unwrap_err();
    assert_eq!((error.added.len(), queries(&mut redis, "b").await), (1, vec!["q1".to_owned()]));

    let refused = builder(server.url().replace("secret", "wrong")).connect().await.unwrap_err();
    assert!(matches!(refused, ProducerError::Connect(_)) && !refused.to_string().contains("wrong"), "{refused}");
    for (build, reason) in [
        (builder("nonsense"), "redis_url"),
        (builder(server.url()).max_length(0), "at least 1"),
        (builder(server.url()).idempotency_ttl(Duration::ZERO), "at least 1 ms"),
    ] {
        let error = build.connect().await.unwrap_err();
        assert!(matches!(error, ProducerError::Setting(_)) && error.to_string().contains(reason), "{error}");
    }
}
