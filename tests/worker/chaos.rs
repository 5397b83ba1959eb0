//! Chaos test: ten worker processes on a chain of four streams; one is killed every second and Redis is stopped now and
//! then. Every query must finish exactly once.
//!
//! `CHAOS_TASKS` sets the number of queries (default 3,000; the full test uses 100,000), `CHAOS_SEED` repeats the
//! random choices of a run.

use std::time::{Duration, Instant};

use super::process::WorkerProcess;
use super::queries::TABLES;
use super::*;
use crate::support::postgres::TestDatabase;

const CHAIN: [&str; 4] = ["first", "second", "third", "finish_query"];
const WORKERS: [usize; 4] = [3, 3, 2, 2];

/// No unique constraint: a second completion must become visible as a second row.
const RESULTS: &str = "
    CREATE TABLE results (qid varchar(255) NOT NULL);
    CREATE FUNCTION note_result() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO results VALUES (NEW.qid); RETURN NEW; END $$;
    CREATE TRIGGER completed AFTER UPDATE ON shepherd_brain FOR EACH ROW
        WHEN (NEW.state = 'COMPLETED') EXECUTE FUNCTION note_result();";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_finishes_exactly_once_while_workers_are_killed_and_redis_stops() {
    let tasks: usize = std::env::var("CHAOS_TASKS").map_or(3_000, |text| text.parse().unwrap());
    let mut dice = Dice::of(Dice::seed("CHAOS_SEED"));
    let server = TestRedis::start();
    let mut redis = server.connection().await;
    let database = TestDatabase::create();
    let sql = database.connect().await;
    sql.batch_execute(TABLES).await.unwrap();
    sql.batch_execute(RESULTS).await.unwrap();
    let rows = "INSERT INTO shepherd_brain (qid, state) SELECT 'q' || n, 'QUEUED' FROM generate_series(1, $1::int) n";
    sql.execute(rows, &[&i32::try_from(tasks).unwrap()]).await.unwrap();

    let url = database.url();
    let mut workers: Vec<WorkerProcess> = CHAIN
        .iter()
        .zip(WORKERS)
        .flat_map(|(stream, count)| std::iter::repeat_n(*stream, count))
        .map(|stream| {
            let mut settings = vec![
                ("TASK_LIMIT", "20"),
                ("TEST_WORK_MS", "2"),
                ("TEST_FLOOR_MS", "1000"),
                ("RECLAIM_INTERVAL_SEC", "1"),
            ];
            if stream == "finish_query" {
                settings.push(("TEST_DATABASE", &url));
            }
            WorkerProcess::start(&server.url(), stream, &settings)
        })
        .collect();

    let started = Instant::now();
    let adding = tokio::spawn({
        let redis = redis.clone();
        async move { add_all(redis, tasks).await }
    });
    // One worker of the first two streams is stopped with pending tasks for longer than the TTL of its heartbeat, so
    // that others reclaim them before it continues.
    let stopped = dice.below(6);
    let mut stopped_since = None;
    let (mut kills, mut pauses, mut calm_since) = (0, 0, None);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let finished: i64 = sql.query_one("SELECT count(*) FROM results", &[]).await.unwrap().get(0);
        match stopped_since {
            None if finished > 0 => {
                workers[stopped].send("STOP");
                stopped_since = Some(Some(Instant::now()));
            }
            Some(Some(since)) if since.elapsed() > Duration::from_secs(19) => {
                workers[stopped].send("CONT");
                stopped_since = Some(None);
            }
            _ => {}
        }
        if usize::try_from(finished).unwrap() >= tasks && stopped_since == Some(None) {
            break;
        }
        // Stop the kills when most queries have finished: tasks lost at the end wait for the reclaim threshold.
        let under_fire = usize::try_from(finished).unwrap() < tasks - tasks / 20;
        if under_fire || kills < 5 {
            let victim = dice.below(workers.len());
            if victim == stopped {
                continue;
            }
            workers[victim].send("KILL");
            workers[victim].restart();
            kills += 1;
            if kills % 4 == 0 {
                server.stop().unwrap();
                tokio::time::sleep(Duration::from_millis(200 + 100 * dice.below(15) as u64)).await;
                server.resume().unwrap();
                pauses += 1;
            }
        } else {
            let since = *calm_since.get_or_insert_with(Instant::now);
            assert!(since.elapsed() < Duration::from_secs(90), "{finished} of {tasks} finished");
        }
    }
    adding.await.unwrap();
    let took = started.elapsed();
    // The last entries are acknowledged after their rows have been written.
    for stream in CHAIN {
        reaches(&redis, stream, 0).await;
    }
    let twice = "SELECT count(*) FROM (SELECT qid FROM results GROUP BY qid HAVING count(*) > 1) AS twice";
    let twice: i64 = sql.query_one(twice, &[]).await.unwrap().get(0);
    let open = "SELECT count(*) FROM shepherd_brain WHERE state <> 'COMPLETED' OR status <> 'OK'";
    let open: i64 = sql.query_one(open, &[]).await.unwrap().get(0);
    assert_eq!((twice, open), (0, 0));
    for stream in CHAIN {
        assert_eq!((pending(&mut redis, stream).await, length(&mut redis, &format!("{stream}:dead")).await), (0, 0));
    }
    let took_over: usize = workers
        .iter()
        .map(|worker| worker.printed().lines().filter(|line| line.contains("reclaimed a lost task")).count())
        .sum();
    println!(
        "{tasks} queries in {took:?}: {kills} workers killed, Redis stopped {pauses} times, {took_over} tasks taken over"
    );
    assert!(took_over > 0, "nothing was ever lost: the test shows nothing");
}

async fn add_all(mut redis: MultiplexedConnection, tasks: usize) {
    let through = workflow(&CHAIN);
    for first in (1..=tasks).step_by(250) {
        let mut pipe = redis::pipe();
        for n in first..(first + 250).min(tasks + 1) {
            pipe.cmd("XADD").arg(CHAIN[0]).arg("*").arg("query_id").arg(format!("q{n}"));
            pipe.arg("workflow").arg(&through).ignore();
        }
        // While Redis is stopped, the reply is only delayed: the whole pipeline is executed later.
        pipe.exec_async(&mut redis).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reproducible random choices.
pub(super) struct Dice(u64);

impl Dice {
    /// Reads the seed from an environment variable, or chooses one, and prints it.
    pub(super) fn seed(variable: &str) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
        let seed = std::env::var(variable).map_or(now, |text| text.parse().unwrap());
        println!("{variable}={seed}");
        seed
    }

    pub(super) fn of(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Returns a number below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}
