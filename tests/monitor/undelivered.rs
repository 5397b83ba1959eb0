//! The oldest undelivered entry, which a pass does not read if nothing was added or deleted since the previous one: a continuing
//! reader must report the same as a new one, whatever happens to the stream between two passes.
//!
//! `UNDELIVERED_STEPS` is the number of events (2,000), `UNDELIVERED_SEED` repeats a run.

use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redis::aio::MultiplexedConnection;
use shepherd_monitor::contract::Name;
use shepherd_monitor::fleet::reading::StreamFacts;
use shepherd_monitor::fleet::watched::WatchedStreams;
use shepherd_monitor::redis_streams::streams_reader::StreamsReader;

use crate::support::redis::{TestRedis, run};

fn reader() -> StreamsReader {
    StreamsReader::new(WatchedStreams::default(), &[Name::from("s")])
}

async fn facts(reader: &mut StreamsReader, redis: &mut MultiplexedConnection) -> StreamFacts {
    let (mut reading, _) = reader.read(redis).await.unwrap();
    let mut facts = reading.streams.remove(&Name::from("s")).unwrap().facts.unwrap();
    // Counted in separate steps, see `phantoms`.
    for group in &mut facts.groups {
        (group.phantom_pending, group.phantom_at_least) = (0, false);
    }
    let lists = facts.groups.iter_mut().filter_map(|group| group.consumers.as_mut());
    for consumer in lists.flat_map(std::sync::Arc::make_mut) {
        consumer.idle_ms = 0;
        consumer.inactive_ms = None;
        consumer.phantom_pending = 0;
    }
    facts
}

async fn xranges(redis: &mut MultiplexedConnection) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.unwrap();
    let calls = stats.split("cmdstat_xrange:calls=").nth(1).and_then(|rest| rest.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    Add,
    AddAndTrim(u8),
    Trim(u8),
    Delete(u8),
    Read { group: &'static str, count: u8 },
    Position { group: &'static str, at: u8, entries_read: Option<u8> },
    Destroy { group: &'static str },
}

fn step() -> impl Strategy<Value = Step> {
    let group = prop_oneof![Just("one"), Just("two")];
    prop_oneof![
        6 => Just(Step::Add),
        4 => (1..9_u8).prop_map(Step::AddAndTrim),
        2 => (1..9_u8).prop_map(Step::Trim),
        3 => (0..12_u8).prop_map(Step::Delete),
        5 => (group.clone(), 1..4_u8).prop_map(|(group, count)| Step::Read { group, count }),
        2 => (group.clone(), 0..12_u8, prop::option::of(0..40_u8))
            .prop_map(|(group, at, entries_read)| Step::Position { group, at, entries_read }),
        1 => group.prop_map(|group| Step::Destroy { group }),
    ]
}

/// Model of the stream: each entry's ID is a second after the previous one.
struct World {
    redis: MultiplexedConnection,
    last: u64,
}

impl World {
    async fn entry(&mut self, nth: u8) -> Option<String> {
        let entries: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg("s").arg("-").arg("+").query_async(&mut self.redis).await.unwrap();
        entries.into_iter().nth(nth.into()).map(|(id, _)| id)
    }

    async fn take(&mut self, step: Step) {
        let redis = &mut self.redis;
        match step {
            Step::Add => {
                self.last += 1;
                run(redis, &format!("XADD s {}000-1 f v", self.last)).await;
            }
            Step::AddAndTrim(most) => {
                self.last += 1;
                run(redis, &format!("XADD s MAXLEN = {most} {}000-1 f v", self.last)).await;
            }
            Step::Trim(most) => drop(run(redis, &format!("XTRIM s MAXLEN = {most}")).await),
            Step::Delete(nth) => {
                if let Some(id) = self.entry(nth).await {
                    run(&mut self.redis, &format!("XDEL s {id}")).await;
                }
            }
            Step::Read { group, count } => {
                // It may have to be created.
                let _: redis::RedisResult<()> =
                    redis::cmd("XGROUP").arg(&["CREATE", "s", group, "0", "MKSTREAM"]).query_async(redis).await;
                run(redis, &format!("XREADGROUP GROUP {group} c COUNT {count} STREAMS s >")).await;
            }
            Step::Position { group, at, entries_read } => {
                let id = self.entry(at).await.unwrap_or_else(|| "0-0".to_owned());
                let mut position = redis::cmd("XGROUP");
                position.arg(&["SETID", "s", group, &id]);
                if let Some(count) = entries_read {
                    position.arg("ENTRIESREAD").arg(count);
                }
                let _: redis::RedisResult<()> = position.query_async(&mut self.redis).await;
            }
            Step::Destroy { group } => drop(run(redis, &format!("XGROUP DESTROY s {group}")).await),
        }
    }
}

#[tokio::test]
async fn cached_oldest_entry_matches_the_stream() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let steps = number("UNDELIVERED_STEPS").unwrap_or(2000);
    let now = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let seed = number("UNDELIVERED_SEED").unwrap_or_else(|| now() % 1_000_000);
    println!("UNDELIVERED_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);

    let server = TestRedis::start();
    let mut world = World { redis: server.connection().await, last: 0 };
    world.take(Step::Add).await;
    let (mut redis, mut goes_on) = (server.connection().await, reader());
    let (mut saved, mut asked) = (0, 0);
    for _ in 0..steps {
        let some = prop::collection::vec(step(), 0..4).new_tree(&mut runner).unwrap().current();
        for step in some.clone() {
            world.take(step).await;
        }
        let before = xranges(&mut redis).await;
        let remembered = facts(&mut goes_on, &mut redis).await;
        let needed = xranges(&mut redis).await - before;
        let seen = facts(&mut reader(), &mut redis).await;
        assert_eq!(remembered, seen, "after {some:?}");
        let anew = xranges(&mut redis).await - before - needed;
        (saved, asked) = (saved + anew - needed, asked + needed);
    }
    println!("{saved} questions saved, {asked} asked");
    assert!(saved > steps / 20 && asked > steps / 20, "{saved} saved, {asked} asked: nothing was tried");
}
