//! Heartbeats that are read ahead, while the streams are read: they are valid for that tick only, later ones are read after the
//! streams, and an interrupted pass loses nothing.

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
async fn heartbeats_read_ahead_are_not_read_again_in_the_same_tick() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    beats(&mut redis, "a", 1.0).await;
    reader.read(&mut redis, 1, Mono(0)).await.unwrap();
    reader.read_ahead(&mut redis, 2, Mono(1)).await.unwrap();
    // Visible only if it is read again.
    beats(&mut redis, "a", 2.0).await;
    beats(&mut redis, "b", 3.0).await;
    reader.restore([(name("s"), name("b"))]);
    let reading = reader.read(&mut redis, 2, Mono(1)).await.unwrap();
    assert_eq!((started_at(&reading, "a"), started_at(&reading, "b")), (Some(1.0), Some(3.0)));
    // They are not used in another tick.
    let reading = reader.read(&mut redis, 3, Mono(2)).await.unwrap();
    assert_eq!(started_at(&reading, "a"), Some(2.0));
    run(&mut redis, "FLUSHDB").await;
    reader.read_ahead(&mut redis, 4, Mono(3)).await.unwrap();
    beats(&mut redis, "a", 2.0).await;
    assert_eq!(started_at(&reader.read(&mut redis, 4, Mono(3)).await.unwrap(), "a"), None);
}

#[tokio::test]
async fn marker_of_an_earlier_process_is_read_after_an_interrupted_pass() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    leaves(&mut redis, "a").await;
    beats(&mut redis, "a", 1.0).await;
    // The streams could not be read: no pass follows.
    reader.read_ahead(&mut redis, 1, Mono(0)).await.unwrap();
    reader.read_ahead(&mut redis, 2, Mono(1)).await.unwrap();
    let reading = reader.read(&mut redis, 2, Mono(1)).await.unwrap();
    assert!(matches!(of(&reading, "a").marker, MarkerReading::Present(_)), "{reading:?}");
    // It is not a new process any more.
    let reading = reader.read(&mut redis, 3, Mono(2)).await.unwrap();
    assert_eq!(of(&reading, "a").marker, MarkerReading::NotRead);
}

#[tokio::test]
async fn new_process_can_shut_down_while_streams_are_read() {
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
async fn keys_of_another_type_found_after_reading_ahead_are_recognized() {
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let mut reader = knowing(&["a"]);
    let key = keys::heartbeat(&name("s"), &name("a"));
    let _: () = redis.rpush(&key, 1).await.unwrap();
    reader.read_ahead(&mut redis, 1, Mono(0)).await.unwrap();
    reader.found(vec![key]);
    let reading = reader.read(&mut redis, 1, Mono(0)).await.unwrap();
    assert!(matches!(&of(&reading, "a").beat, Beat::Unreadable(why) if why.contains("list")), "{reading:?}");
    // It remains one.
    reader.read_ahead(&mut redis, 2, Mono(1)).await.unwrap();
    let reading = reader.read(&mut redis, 2, Mono(1)).await.unwrap();
    assert!(matches!(&of(&reading, "a").beat, Beat::Unreadable(_)), "{reading:?}");
}
