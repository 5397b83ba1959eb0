//! The producer, and the record of what became of each of its tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::streams::StreamRangeReply;
use shepherd_monitor::worker::{NewTask, Producer};

use crate::fleet::Fleet;
use crate::journal::{Journal, now};
use crate::worker::{DEAD, ENTRY, Ending, FINISH, MERGE, RECEIPTS, RELAY, ending, number};

/// The producer waits while the first stream has so many entries.
const MOST_WAITING: u64 = 3_000;
const STEPS: [&str; 4] = [ENTRY, RELAY, MERGE, FINISH];

/// What is known of one task.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// When Redis acknowledged it, if it did. Otherwise it is not known whether it was added.
    added: Option<f64>,
    /// Receipts of each step.
    receipts: [u32; 4],
    /// Of its last step: with status ERROR.
    failed: bool,
    ended: Option<f64>,
    dead: u32,
}

impl Record {
    /// What is missing before it has ended as its number says.
    fn missing(&self, n: u64) -> Option<&'static str> {
        let [entry, relay, merge, finish] = self.receipts;
        let expected = match ending(n) {
            Ending::Done => [1, 1, 1, 1],
            Ending::Failed => [1, 0, 0, 1],
            Ending::DeadLetter => [1, 1, 0, 0],
        };
        let dead = u32::from(ending(n) == Ending::DeadLetter);
        let at = STEPS.into_iter().zip([entry, relay, merge, finish].into_iter().zip(expected));
        at.into_iter()
            .find(|(_, (is, expected))| is < expected)
            .map(|(step, _)| step)
            .or((self.dead < dead).then_some(DEAD))
    }

    /// What it has too much of.
    fn too_much(&self, n: u64) -> bool {
        let expected = match ending(n) {
            Ending::Done => [1, 1, 1, 1],
            Ending::Failed => [1, 0, 0, 1],
            Ending::DeadLetter => [1, 1, 0, 0],
        };
        let dead = u32::from(ending(n) == Ending::DeadLetter);
        let status_is_wrong = self.receipts[3] > 0 && self.failed != (ending(n) == Ending::Failed);
        self.dead > dead || status_is_wrong || self.receipts.iter().zip(expected).any(|(is, most)| *is > most)
    }
}

/// Every task, by its number.
#[derive(Default)]
pub(crate) struct Tasks {
    records: Mutex<BTreeMap<u64, Record>>,
    /// Nothing is added while this is set.
    pub(crate) paused: AtomicBool,
    /// Only what a replica has counts as acknowledged, and as done.
    replicated: bool,
    /// When Redis took which receipt, by the place of its step.
    completions: Mutex<Vec<(f64, usize)>>,
}

/// Commands on one connection to a primary, which show that a replica has everything up to now.
struct Replication {
    url: String,
    connection: Option<redis::aio::MultiplexedConnection>,
    /// Tasks that the primary at the other end acknowledged.
    unconfirmed: Vec<(u64, f64)>,
}

impl Replication {
    /// Connects before a task is added: an answer over this connection after it shows which server was the primary.
    async fn prepare(&mut self) {
        if self.connection.is_none() {
            self.connection = connect(&self.url).await.ok();
        }
    }

    /// Tasks that a replica has by now. What a lost primary acknowledged stays unconfirmed for ever.
    async fn confirmed(&mut self) -> Vec<(u64, f64)> {
        let Some(connection) = &mut self.connection else {
            self.unconfirmed.clear();
            return Vec::new();
        };
        match has_replica_everything(connection).await {
            Ok(true) => std::mem::take(&mut self.unconfirmed),
            Ok(false) => Vec::new(),
            Err(_) => {
                self.connection = None;
                self.unconfirmed.clear();
                Vec::new()
            }
        }
    }
}

async fn connect(url: &str) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(2)))
        .set_response_timeout(Some(Duration::from_secs(2)));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// Whether the replica has what the server at the other end did before this.
async fn has_replica_everything(redis: &mut redis::aio::MultiplexedConnection) -> redis::RedisResult<bool> {
    let (_, replicas): (String, i64) =
        redis::pipe().cmd("SET").arg(&["chaos.replication", "-"]).cmd("WAIT").arg(&[1, 100]).query_async(redis).await?;
    Ok(replicas > 0)
}

impl Tasks {
    /// No tasks yet. `replicated`: only what a replica has counts.
    pub(crate) fn new(replicated: bool) -> Self {
        Self { replicated, ..Self::default() }
    }

    /// Adds about `rate` tasks a second until the runtime ends.
    pub(crate) async fn produce(self: Arc<Self>, url: String, rate: f64, journal: Arc<Journal>) {
        let producer = loop {
            match Producer::builder().redis_url(url.as_str()).max_length(MOST_WAITING).connect().await {
                Ok(producer) => break producer,
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut replication = Replication { url, connection: None, unconfirmed: Vec::new() };
        for n in 0.. {
            tick.tick().await;
            if self.replicated {
                replication.prepare().await;
            }
            while self.paused.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let query = format!("q{n}");
            let task = NewTask::query(&query, &format!("r{n}")).null_workflow();
            // Every other task is safe to repeat; the rest may have an unknown outcome after a lost reply.
            let task = if n % 2 == 0 { task.idempotency_key(query) } else { task };
            match producer.add(ENTRY, task).await {
                Ok(_) if self.replicated => {
                    self.note(n, |_| ());
                    replication.unconfirmed.push((n, now()));
                }
                Ok(_) => self.note(n, |record| record.added = Some(now())),
                Err(_) => {
                    self.note(n, |_| ());
                    journal.count("tasks whose addition was not acknowledged", 1);
                }
            }
            if self.replicated {
                for (n, at) in replication.confirmed().await {
                    self.note(n, |record| record.added = Some(at));
                }
            }
        }
    }

    fn note(&self, n: u64, change: impl FnOnce(&mut Record)) {
        change(self.records.lock().unwrap().entry(n).or_default());
    }

    /// Takes in receipts and dead letters, and removes the receipts from Redis, until the runtime ends.
    pub(crate) async fn collect(self: Arc<Self>, url: String, journal: Arc<Journal>) {
        let (mut receipts, mut letters) = ("-".to_owned(), "-".to_owned());
        loop {
            if let Ok(mut connection) = connect(&url).await {
                while let Ok(some) = self.take(&mut connection, &mut receipts, &mut letters, &journal).await {
                    if !some {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Answers whether there was anything.
    async fn take(
        &self,
        redis: &mut redis::aio::MultiplexedConnection,
        receipts: &mut String,
        letters: &mut String,
        journal: &Journal,
    ) -> redis::RedisResult<bool> {
        let mut some = false;
        for (stream, from) in [(RECEIPTS, &mut *receipts), (DEAD, &mut *letters)] {
            let range = redis::cmd("XRANGE").arg(&[stream, from.as_str(), "+", "COUNT", "500"]).to_owned();
            let found: StreamRangeReply = range.query_async(redis).await?;
            self.take_completions(&found);
            // What only a lost primary had is repeated.
            if self.replicated && !has_replica_everything(redis).await? {
                return Ok(false);
            }
            for entry in &found.ids {
                some = true;
                let (query, n): (String, Option<u64>) =
                    (entry.get("query_id").unwrap_or_default(), entry.get::<String>("n").and_then(|n| n.parse().ok()));
                let Some(n) = n.or_else(|| number(&query)) else {
                    journal.violation(format!("{stream} has an entry that is not of this run: {:?}", entry.map));
                    continue;
                };
                let step: String = entry.get("step").unwrap_or_default();
                let status: String = entry.get("status").unwrap_or_default();
                self.note(n, |record| match STEPS.iter().position(|known| *known == step) {
                    Some(at) => {
                        record.receipts[at] += 1;
                        if step == FINISH {
                            record.failed = status == "ERROR";
                            record.ended = Some(now());
                        }
                    }
                    None => record.dead += 1,
                });
                let record = self.records.lock().unwrap()[&n];
                if record.too_much(n) {
                    journal.violation(format!("task q{n} has an end that it must not have: {record:?}"));
                }
            }
            if let Some(last) = found.ids.last() {
                *from = format!("({}", last.id);
                if stream == RECEIPTS {
                    let mut ids = redis::cmd("XDEL");
                    ids.arg(stream);
                    for entry in &found.ids {
                        ids.arg(&entry.id);
                    }
                    // What a lost connection leaves behind stays: it is counted already.
                    drop(ids.query_async::<i64>(redis).await);
                }
            }
        }
        Ok(some)
    }

    fn take_completions(&self, receipts: &StreamRangeReply) {
        let mut completions = self.completions.lock().unwrap();
        for entry in &receipts.ids {
            let step = entry.get::<String>("step").and_then(|step| STEPS.iter().position(|known| *known == step));
            let ms = entry.id.split('-').next().and_then(|ms| ms.parse::<f64>().ok());
            completions.extend(ms.zip(step).map(|(ms, step)| (ms / 1000.0, step)));
        }
    }

    /// When each kind of worker had completed a task that Redis took after `at`, if all have.
    pub(crate) fn all_steps_after(&self, at: f64) -> Option<f64> {
        let completions = self.completions.lock().unwrap();
        let first = |step: usize| {
            let of_step = completions.iter().filter(|(when, place)| *place == step && *when > at);
            of_step.map(|(when, _)| *when).min_by(f64::total_cmp)
        };
        (0..STEPS.len()).map(first).try_fold(at, |latest, first| Some(latest.max(first?)))
    }

    /// Acknowledged tasks that have not ended, with what each waits for.
    pub(crate) fn unfinished(&self) -> Vec<(u64, &'static str)> {
        let records = self.records.lock().unwrap();
        let open = records.iter().filter(|(_, record)| record.added.is_some());
        open.filter_map(|(n, record)| Some((*n, record.missing(*n)?))).collect()
    }

    /// Tasks of unknown outcome that were begun and have not ended.
    pub(crate) fn unfinished_unknown(&self) -> Vec<(u64, &'static str)> {
        let records = self.records.lock().unwrap();
        let open = records.iter().filter(|(_, record)| record.added.is_none() && record.receipts[0] > 0);
        open.filter_map(|(n, record)| Some((*n, record.missing(*n)?))).collect()
    }

    /// How many tasks failed and how many were dead-lettered.
    pub(crate) fn failures(&self) -> (u64, u64) {
        let records = self.records.lock().unwrap();
        let failed = records.values().filter(|record| record.failed).count() as u64;
        (failed, records.values().map(|record| u64::from(record.dead)).sum())
    }

    /// How many were acknowledged, how many of unknown outcome were added, and the median and the longest time in
    /// seconds from the acknowledgement to the end.
    pub(crate) fn figures(&self) -> (u64, u64, f64, f64) {
        let records = self.records.lock().unwrap();
        let added = records.values().filter(|record| record.added.is_some()).count() as u64;
        let unknown = records.values().filter(|record| record.added.is_none() && record.receipts[0] > 0).count() as u64;
        let mut times: Vec<f64> = records.values().filter_map(|record| Some(record.ended? - record.added?)).collect();
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        (added, unknown, median, times.last().copied().unwrap_or_default())
    }
}

/// Entries and pending entries of each stream, as Redis has them.
pub(crate) fn left_in_redis(
    fleet: &Fleet,
    streams: &[&'static str],
) -> redis::RedisResult<Vec<(&'static str, i64, i64)>> {
    let mut redis = fleet.redis_now()?;
    let mut left = Vec::new();
    for stream in streams {
        let length: i64 = redis::cmd("XLEN").arg(stream).query(&mut redis)?;
        let pending: redis::Value = redis::cmd("XPENDING").arg(&[*stream, "consumer"]).query(&mut redis)?;
        let pending = match pending {
            redis::Value::Array(parts) => match parts.first() {
                Some(redis::Value::Int(count)) => *count,
                _ => -1,
            },
            _ => -1,
        };
        left.push((*stream, length, pending));
    }
    Ok(left)
}
