//! Heartbeats that are read ahead, while a tick's streams are read: they count for that tick alone, what came since is
//! read after the streams, and a pass that is cut off in between forgets nothing.

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use shepherd_monitor::contract::{Name, keys};
use shepherd_monitor::fleet::reading::{Beat, BeatReading, HeartbeatsReading, MarkerReading};
use shepherd_monitor::fleet::time::Mono;
use shepherd_monitor::redis_streams::heartbeats_reader::HeartbeatsReader;

use crate::support::redis::{TestRedis, run};

fn name(text: &str) -> Name {
    Name::from(text)
}

fn knowing(consumers: &[&str]) -> HeartbeatsReader {
    let mut reader = HeartbeatsReader::default();
    reader.restore(consumers.iter().map(|consumer| (name("s"), name(consumer))));
    reader
}

async fn beats(redis: &mut MultiplexedConnection, consumer: &str, started_at: f64) {
    let beat =
        json!({"stream": "s", "consumer": consumer, "started_at": started_at, "last_seen": 9.0, "task_limit": 1});
    let _: () = redis.set(keys::heartbeat(&name("s"), &name(consumer)), beat.to_string()).await.unwrap();
}

async fn leaves(redis: &mut MultiplexedConnection, consumer: &str) {
    let marker = json!({"stream": "s", "consumer": consumer, "signum": 15, "ts": 9.0});
    let _: () = redis.set(keys::marker(&name("s"), &name(consumer)), marker.to_string()).await.unwrap();
}

fn of<'a>(reading: &'a HeartbeatsReading, consumer: &str) -> &'a BeatReading {
    let (_, of_consumer) = reading.consumers[&name("s")].iter().find(|(c, _)| *c == name(consumer)).unwrap();
    of_consumer
}

fn started_at(reading: &HeartbeatsReading, consumer: &str) -> Option<f64> {
    match &of(reading, consumer).beat {
        Beat::Present(beat) => Some(beat.started_at),
        _ => None,
    }
}

#[tokio::test]
async fn what_was_read_ahead_is_asked_for_once_and_what_came_since_after_it() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    beats(&mut redis, "a", 1.0).await;
    reader.read(&mut redis, 1, Mono(0)).await.unwrap();
    reader.read_ahead(&mut redis, 2, Mono(1)).await.unwrap();
    // Seen only if it is asked for again.
    beats(&mut redis, "a", 2.0).await;
    beats(&mut redis, "b", 3.0).await;
    reader.restore([(name("s"), name("b"))]);
    let reading = reader.read(&mut redis, 2, Mono(1)).await.unwrap();
    assert_eq!((started_at(&reading, "a"), started_at(&reading, "b")), (Some(1.0), Some(3.0)));
    // Of another tick it is no answer.
    let reading = reader.read(&mut redis, 3, Mono(2)).await.unwrap();
    assert_eq!(started_at(&reading, "a"), Some(2.0));
    run(&mut redis, "FLUSHDB").await;
    reader.read_ahead(&mut redis, 4, Mono(3)).await.unwrap();
    beats(&mut redis, "a", 2.0).await;
    assert_eq!(started_at(&reader.read(&mut redis, 4, Mono(3)).await.unwrap(), "a"), None);
}

#[tokio::test]
async fn an_older_process_marker_is_seen_even_if_the_pass_that_saw_the_new_one_was_cut_off() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    leaves(&mut redis, "a").await;
    beats(&mut redis, "a", 1.0).await;
    // The streams could not be read: nothing comes after it.
    reader.read_ahead(&mut redis, 1, Mono(0)).await.unwrap();
    reader.read_ahead(&mut redis, 2, Mono(1)).await.unwrap();
    let reading = reader.read(&mut redis, 2, Mono(1)).await.unwrap();
    assert!(matches!(of(&reading, "a").marker, MarkerReading::Present(_)), "{reading:?}");
    // It is no new process any more.
    let reading = reader.read(&mut redis, 3, Mono(2)).await.unwrap();
    assert_eq!(of(&reading, "a").marker, MarkerReading::NotRead);
}

#[tokio::test]
async fn a_new_process_that_leaves_while_the_streams_are_read_has_left() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    beats(&mut redis, "a", 1.0).await;
    reader.read_ahead(&mut redis, 1, Mono(0)).await.unwrap();
    run(&mut redis, "FLUSHDB").await;
    leaves(&mut redis, "a").await;
    let reading = reader.read(&mut redis, 1, Mono(0)).await.unwrap();
    let of_a = of(&reading, "a");
    assert!(of_a.beat == Beat::Absent && matches!(of_a.marker, MarkerReading::Present(_)), "{reading:?}");
}

#[tokio::test]
async fn a_key_of_another_type_is_told_from_one_that_is_not_there_though_it_was_found_after_reading_ahead() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    let key = keys::heartbeat(&name("s"), &name("a"));
    let _: () = redis.rpush(&key, 1).await.unwrap();
    reader.read_ahead(&mut redis, 1, Mono(0)).await.unwrap();
    reader.found(vec![key]);
    let reading = reader.read(&mut redis, 1, Mono(0)).await.unwrap();
    assert!(matches!(&of(&reading, "a").beat, Beat::Unreadable(why) if why.contains("list")), "{reading:?}");
    // It stays one.
    reader.read_ahead(&mut redis, 2, Mono(1)).await.unwrap();
    let reading = reader.read(&mut redis, 2, Mono(1)).await.unwrap();
    assert!(matches!(&of(&reading, "a").beat, Beat::Unreadable(_)), "{reading:?}");
}
