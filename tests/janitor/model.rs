//! Model test: reads, claims, new groups and deletions between any two steps of the janitor, against a real Redis. Entries that are
//! pending or undelivered in any group are kept, and so are consumers with pending entries; everything else is removed at the end.
//!
//! `JANITOR_CASES` is the number of cases (300), `JANITOR_SEED` repeats a run. A non-atomic janitor must lose entries in the same
//! cases, which shows that the test is effective.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use redis::Value;
use redis::aio::MultiplexedConnection;
use shepherd_monitor::contract::Name;
use shepherd_monitor::demo::servers::RedisOptions;
use shepherd_monitor::redis_streams::cleanup::{retire_some, trim_step};

use super::{ask, try_ask};
use crate::support::redis::TestRedis;

const STREAM: &str = "s";
const GROUPS: [&str; 3] = ["one", "two", "three"];
const CONSUMERS: [&str; 3] = ["a", "b", "c"];

type Check = Result<(), TestCaseError>;
/// ID of an entry, ordered.
type Id = (u64, u64);

#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Read { group: u8, consumer: u8, count: u8 },
    Ack { group: u8, which: u8 },
    AckAll { group: u8 },
    Claim { group: u8, consumer: u8, which: u8 },
    AutoClaim { group: u8, consumer: u8 },
    Create { group: u8, at: At },
    SetId { group: u8, which: u8 },
    Destroy { group: u8 },
    Delete { which: u8 },
    DeleteFirst,
    Heartbeat { consumer: u8, on: bool },
    CreateConsumer { group: u8, consumer: u8 },
    Trim { most: u8 },
    Retire,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Start,
    End,
    Beyond,
}

fn step() -> impl Strategy<Value = Step> {
    let (group, consumer, which) = (0..3_u8, 0..3_u8, any::<u8>());
    let at = prop_oneof![3 => Just(At::Start), 2 => Just(At::End), 1 => Just(At::Beyond)];
    prop_oneof![
        8 => (1..9_u8).prop_map(Step::Add),
        10 => (group.clone(), consumer.clone(), 1..9_u8)
            .prop_map(|(group, consumer, count)| Step::Read { group, consumer, count }),
        6 => (group.clone(), which).prop_map(|(group, which)| Step::Ack { group, which }),
        4 => group.clone().prop_map(|group| Step::AckAll { group }),
        4 => (group.clone(), consumer.clone(), which)
            .prop_map(|(group, consumer, which)| Step::Claim { group, consumer, which }),
        2 => (group.clone(), consumer.clone()).prop_map(|(group, consumer)| Step::AutoClaim { group, consumer }),
        3 => (group.clone(), at).prop_map(|(group, at)| Step::Create { group, at }),
        2 => (group.clone(), which).prop_map(|(group, which)| Step::SetId { group, which }),
        1 => group.clone().prop_map(|group| Step::Destroy { group }),
        2 => which.prop_map(|which| Step::Delete { which }),
        1 => Just(Step::DeleteFirst),
        2 => (consumer.clone(), any::<bool>()).prop_map(|(consumer, on)| Step::Heartbeat { consumer, on }),
        1 => (group, consumer).prop_map(|(group, consumer)| Step::CreateConsumer { group, consumer }),
        14 => (1..30_u8).prop_map(|most| Step::Trim { most }),
        8 => Just(Step::Retire),
    ]
}

/// Implementation of the cleanup.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Janitor {
    /// The monitor's scripts.
    Ours,
    /// Reads pending entries in one step, positions in the next, and trims in the third.
    ReadsThinksCuts,
    /// Reads consumers without pending entries in one step, and deletes them in the next.
    ReadsThinksDeletes,
}

/// State of the non-atomic versions between steps.
#[derive(Debug, Default)]
struct Thoughts {
    oldest_pending: Option<BTreeMap<String, Option<String>>>,
    cut_at: Option<Id>,
    idle: Option<Vec<(String, String)>>,
}

/// State of the stream.
#[derive(Debug, Clone, Default, PartialEq)]
struct View {
    entries: BTreeSet<Id>,
    last: BTreeMap<String, Id>,
    /// Group, entry, owner.
    pending: BTreeSet<(String, Id, String)>,
    consumers: BTreeSet<(String, String)>,
}

impl View {
    /// Returns the entries that a group still needs; all of them if there is no group, since the readers are unknown.
    fn needed(&self) -> BTreeSet<Id> {
        let unread = self.last.values().min().copied();
        let waits = |id: &&Id| {
            unread.is_none_or(|last| **id > last) || self.pending.iter().any(|(_, pending, _)| pending == *id)
        };
        self.entries.iter().filter(waits).copied().collect()
    }
}

struct World {
    redis: MultiplexedConnection,
    janitor: Janitor,
    thoughts: Thoughts,
    added: u64,
    trims: u64,
    removed: u64,
    _server: TestRedis,
}

fn id(text: &str) -> Id {
    let (ms, seq) = text.split_once('-').unwrap();
    (ms.parse().unwrap(), seq.parse().unwrap())
}

fn text((ms, seq): Id) -> String {
    format!("{ms}-{seq}")
}

impl World {
    async fn new(janitor: Janitor) -> Self {
        // Small nodes, so that a few entries use several of them.
        let server = TestRedis::start_with(RedisOptions::with_args(["--stream-node-max-entries", "4"]));
        let redis = server.connection().await;
        Self { redis, janitor, thoughts: Thoughts::default(), added: 0, trims: 0, removed: 0, _server: server }
    }

    async fn view(&mut self) -> View {
        let mut view = View::default();
        let entries: Vec<(String, Value)> = ask(&mut self.redis, &["XRANGE", STREAM, "-", "+"]).await;
        view.entries = entries.iter().map(|(entry, _)| id(entry)).collect();
        let groups: redis::RedisResult<Vec<BTreeMap<String, Value>>> =
            try_ask(&mut self.redis, &["XINFO", "GROUPS", STREAM]).await;
        for info in groups.unwrap_or_default() {
            let word = |name: &str| redis::from_redis_value::<String>(info[name].clone()).unwrap();
            let group = word("name");
            view.last.insert(group.clone(), id(&word("last-delivered-id")));
            let pending: Vec<(String, String, u64, u64)> =
                ask(&mut self.redis, &["XPENDING", STREAM, &group, "-", "+", "10000"]).await;
            view.pending.extend(pending.into_iter().map(|(entry, owner, ..)| (group.clone(), id(&entry), owner)));
            let consumers: Vec<BTreeMap<String, Value>> =
                ask(&mut self.redis, &["XINFO", "CONSUMERS", STREAM, &group]).await;
            for consumer in consumers {
                let name = redis::from_redis_value::<String>(consumer["name"].clone()).unwrap();
                view.consumers.insert((group.clone(), name));
            }
        }
        view
    }

    async fn run(&mut self, steps: &[Step]) -> Check {
        let _: Value = ask(&mut self.redis, &["FLUSHALL"]).await;
        self.thoughts = Thoughts::default();
        self.added = 0;
        for step in steps {
            self.step(step).await?;
        }
        if self.janitor == Janitor::Ours {
            self.finish().await?;
        }
        Ok(())
    }

    /// Complete trimming leaves exactly the entries from the oldest needed one on.
    async fn finish(&mut self) -> Check {
        let before = self.view().await;
        loop {
            let step = trim_step(&mut self.redis, &Name::from(STREAM), 7, 0).await.unwrap();
            if !step.more || step.removed == 0 {
                prop_assert!(!step.more, "it stands still: {step:?}");
                break;
            }
        }
        let after = self.view().await;
        let wanted: BTreeSet<Id> = match (before.last.is_empty(), before.needed().first()) {
            (true, _) => before.entries.clone(),
            (false, None) => BTreeSet::new(),
            (false, Some(first)) => before.entries.range(first..).copied().collect(),
        };
        prop_assert_eq!(after.entries, wanted, "what is kept in the end, of {:?}", before);
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Check {
        let redis = &mut self.redis;
        let group = |n: &u8| GROUPS[*n as usize];
        let consumer = |n: &u8| CONSUMERS[*n as usize];
        match step {
            Step::Add(count) => {
                for _ in 0..*count {
                    self.added += 1;
                    // IDs at boundaries.
                    let seq = if self.added.is_multiple_of(5) { u64::MAX } else { self.added % 3 };
                    let _: String = ask(redis, &["XADD", STREAM, &text((self.added + 8, seq)), "f", "v"]).await;
                }
            }
            Step::Read { group: g, consumer: c, count } => {
                let count = count.to_string();
                let read = ["XREADGROUP", "GROUP", group(g), consumer(c), "COUNT", &count, "STREAMS", STREAM, ">"];
                let _: redis::RedisResult<Value> = try_ask(redis, &read).await;
            }
            Step::Ack { group: g, which } => {
                if let Some(entry) = self.choose_pending(group(g), *which).await {
                    let _: Value = ask(&mut self.redis, &["XACK", STREAM, group(g), &entry]).await;
                }
            }
            Step::AckAll { group: g } => {
                let view = self.view().await;
                for (of, entry, _) in &view.pending {
                    if of == group(g) {
                        let _: Value = ask(&mut self.redis, &["XACK", STREAM, of, &text(*entry)]).await;
                    }
                }
            }
            Step::Claim { group: g, consumer: c, which } => {
                if let Some(entry) = self.choose_pending(group(g), *which).await {
                    let _: Value = ask(&mut self.redis, &["XCLAIM", STREAM, group(g), consumer(c), "0", &entry]).await;
                }
            }
            Step::AutoClaim { group: g, consumer: c } => {
                let _: redis::RedisResult<Value> =
                    try_ask(redis, &["XAUTOCLAIM", STREAM, group(g), consumer(c), "0", "0", "COUNT", "3"]).await;
            }
            Step::Create { group: g, at } => {
                let at = match at {
                    At::Start => "0",
                    At::End => "$",
                    At::Beyond => "99999-7",
                };
                let _: redis::RedisResult<Value> =
                    try_ask(redis, &["XGROUP", "CREATE", STREAM, group(g), at, "MKSTREAM"]).await;
            }
            Step::SetId { group: g, which } => {
                let at = text((u64::from(*which) % (self.added + 12), 0));
                let _: redis::RedisResult<Value> = try_ask(redis, &["XGROUP", "SETID", STREAM, group(g), &at]).await;
            }
            Step::Destroy { group: g } => {
                let _: redis::RedisResult<Value> = try_ask(redis, &["XGROUP", "DESTROY", STREAM, group(g)]).await;
            }
            Step::Delete { which } => {
                let entries: Vec<Id> = self.view().await.entries.into_iter().collect();
                if let Some(entry) = entries.get(*which as usize % entries.len().max(1)) {
                    let _: Value = ask(&mut self.redis, &["XDEL", STREAM, &text(*entry)]).await;
                }
            }
            Step::DeleteFirst => {
                if let Some(entry) = self.view().await.entries.first() {
                    let _: Value = ask(&mut self.redis, &["XDEL", STREAM, &text(*entry)]).await;
                }
            }
            Step::Heartbeat { consumer: c, on } => {
                let key = format!("worker:heartbeat:{STREAM}:{}", consumer(c));
                let words: &[&str] = if *on { &["SET", &key, "{}"] } else { &["DEL", &key] };
                let _: Value = ask(redis, words).await;
            }
            Step::CreateConsumer { group: g, consumer: c } => {
                let _: redis::RedisResult<Value> =
                    try_ask(redis, &["XGROUP", "CREATECONSUMER", STREAM, group(g), consumer(c)]).await;
            }
            Step::Trim { most } => {
                let before = self.view().await;
                self.trim(*most).await;
                self.check(before).await?;
            }
            Step::Retire => {
                let before = self.view().await;
                self.retire(&before).await?;
                self.check(before).await?;
            }
        }
        Ok(())
    }

    async fn choose_pending(&mut self, group: &str, which: u8) -> Option<String> {
        let view = self.view().await;
        let pending: Vec<Id> = view.pending.iter().filter(|(of, ..)| of == group).map(|(_, id, _)| *id).collect();
        pending.get(which as usize % pending.len().max(1)).map(|id| text(*id))
    }

    async fn trim(&mut self, most: u8) {
        match self.janitor {
            Janitor::Ours => {
                let step = trim_step(&mut self.redis, &Name::from(STREAM), u64::from(most), 0).await.unwrap();
                self.trims += 1;
                self.removed += step.removed;
            }
            Janitor::ReadsThinksCuts => self.trim_plainly().await,
            Janitor::ReadsThinksDeletes => {}
        }
    }

    async fn trim_plainly(&mut self) {
        let view = self.view().await;
        if let Some(at) = self.thoughts.cut_at.take() {
            let _: Value = ask(&mut self.redis, &["XTRIM", STREAM, "MINID", "=", &text(at)]).await;
        } else if let Some(oldest) = self.thoughts.oldest_pending.take() {
            // A consistent state: every group, its pending and undelivered entries.
            let bounds = view.last.iter().map(|(group, (ms, seq))| {
                let unread = seq.checked_add(1).map_or((ms + 1, 0), |seq| (*ms, seq));
                oldest.get(group).cloned().flatten().map_or(unread, |oldest| id(&oldest).min(unread))
            });
            self.thoughts.cut_at = bounds.min();
        } else {
            let oldest = |group: &String| {
                view.pending.iter().filter(|(of, ..)| of == group).map(|(_, id, _)| *id).min().map(text)
            };
            self.thoughts.oldest_pending = Some(view.last.keys().map(|group| (group.clone(), oldest(group))).collect());
        }
    }

    async fn retire(&mut self, view: &View) -> Check {
        match self.janitor {
            Janitor::Ours => {
                for group in GROUPS {
                    let (stream, of, names) = (Name::from(STREAM), Name::from(group), CONSUMERS.map(Name::from));
                    let said = retire_some(&mut self.redis, &stream, &of, &names, Duration::ZERO).await.unwrap();
                    for (consumer, verdict) in CONSUMERS.iter().zip(said) {
                        let beats: bool =
                            ask(&mut self.redis, &["EXISTS", &format!("worker:heartbeat:{STREAM}:{consumer}")]).await;
                        let known = view.consumers.contains(&(group.to_owned(), (*consumer).to_owned()));
                        let holds = view.pending.iter().any(|(of, _, owner)| of == group && owner == consumer);
                        let wanted = match (known, beats, holds) {
                            (false, ..) => "gone",
                            (true, true, _) => "present",
                            (true, false, true) => "busy",
                            (true, false, false) => "deleted",
                        };
                        prop_assert_eq!(verdict, wanted, "{} of {}", consumer, group);
                    }
                }
            }
            Janitor::ReadsThinksCuts => {}
            Janitor::ReadsThinksDeletes => {
                if let Some(idle) = self.thoughts.idle.take() {
                    for (group, consumer) in idle {
                        let delete = ["XGROUP", "DELCONSUMER", STREAM, &group, &consumer];
                        let _: redis::RedisResult<Value> = try_ask(&mut self.redis, &delete).await;
                    }
                } else {
                    let holds = |of: &(String, String)| view.pending.iter().any(|(g, _, c)| (g, c) == (&of.0, &of.1));
                    self.thoughts.idle = Some(view.consumers.iter().filter(|of| !holds(of)).cloned().collect());
                }
            }
        }
        Ok(())
    }

    async fn check(&mut self, before: View) -> Check {
        let after = self.view().await;
        let lost: Vec<Id> = before.needed().difference(&after.entries).copied().collect();
        prop_assert!(lost.is_empty(), "needed and removed: {lost:?} of {before:?}");
        let dropped: Vec<_> = before.pending.difference(&after.pending).collect();
        prop_assert!(dropped.is_empty(), "pending and dropped: {dropped:?} of {before:?}");
        prop_assert_eq!(&before.last, &after.last);
        Ok(())
    }
}

/// Returns the number of successful cases, and the failure of one.
fn live(janitor: Janitor, cases: u32, seed: u64, shrink: u32) -> (Result<(), String>, u64, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = std::cell::RefCell::new(runtime.block_on(World::new(janitor)));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: shrink, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let steps = proptest::collection::vec(step(), 10..60);
    let outcome = runner.run(&steps, |steps| runtime.block_on(world.borrow_mut().run(&steps)));
    let world = world.into_inner();
    let outcome = match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, steps)) => Err(format!("{why}\nby {steps:#?}")),
        Err(TestError::Abort(why)) => panic!("JANITOR_SEED={seed}: {why}"),
    };
    (outcome, world.trims, world.removed)
}

#[test]
fn pending_and_undelivered_entries_are_never_removed() {
    let cases: u32 = std::env::var("JANITOR_CASES").map_or(300, |text| text.parse().unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    let seed: u64 = std::env::var("JANITOR_SEED").map_or(now, |text| text.parse().unwrap());
    println!("JANITOR_SEED={seed} JANITOR_CASES={cases}");
    let started = std::time::Instant::now();
    let (outcome, trims, removed) = live(Janitor::Ours, cases, seed, 2000);
    if let Err(why) = outcome {
        panic!("JANITOR_SEED={seed}: {why}");
    }
    println!("{cases} lives in {:?}: {trims} steps of trimming removed {removed} entries", started.elapsed());
    assert!(removed > u64::from(cases), "there was hardly anything to trim");
    // The non-atomic versions must fail in the same cases or additional ones.
    for plain in [Janitor::ReadsThinksCuts, Janitor::ReadsThinksDeletes] {
        let (outcome, ..) = live(plain, cases.max(10_000), seed, 0);
        let why = outcome.expect_err("the plain janitor lost nothing: these lives show nothing");
        println!("{plain:?}: {}", why.lines().next().unwrap_or_default().chars().take(90).collect::<String>());
        let wanted = if plain == Janitor::ReadsThinksCuts { "needed and removed" } else { "pending and dropped" };
        assert!(why.starts_with(wanted), "{why}");
    }
}
