//! The demonstration: its fleet works, its story happens, and nothing of it stays.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec, is_running};
use shepherd_monitor::demo::shepherd::FLEET;
use shepherd_monitor::demo::{Demo, DemoOptions};

use crate::support::monitor::Monitor;
use crate::support::postgres::{TestDatabase, connect};
use crate::support::redis::{TestRedis, connection};
use crate::support::wait::eventually;

const PROGRAM: &str = env!("CARGO_BIN_EXE_shepherd-monitor");
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_demonstrations_fleet_completes_queries_follows_the_story_and_is_gone_at_the_end() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let demo = Demo::start(DemoOptions {
        worker_program: PROGRAM.into(),
        speed: 5.0,
        past_days: 0,
        say: Box::new(move |line| listener.lock().unwrap().push(line.to_owned())),
    })
    .unwrap();
    let (redis_url, folders) =
        (demo.redis_url(), [demo.redis().folder().to_owned(), demo.postgres().folder().to_owned()]);
    let servers = [demo.redis().pid(), demo.postgres().pid()];

    let redis = connection(&redis_url, SOON).await.unwrap();
    let heartbeats = async |stream: &str| {
        let keys: Vec<String> = redis.clone().keys(format!("worker:heartbeat:{stream}:*")).await.unwrap();
        keys.len()
    };
    eventually("every type has a worker", SOON, || async {
        for t in FLEET {
            if heartbeats(t.stream).await == 0 {
                return Err(format!("{} has none", t.stream));
            }
        }
        Ok(())
    })
    .await;

    let database = connect(&demo.database_url()).await.unwrap();
    let count = async |condition: &str| {
        let sql = format!("SELECT count(*) FROM shepherd_brain WHERE {condition}");
        database.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    eventually("queries of every product are completed", SOON, || async {
        for ara in ["aragorn", "arax", "bte", "sipr", "example"] {
            if count(&format!("domain = '{ara}' AND state = 'COMPLETED' AND status = 'OK' AND stop_time > start_time"))
                .await
                == 0
            {
                return Err(format!("none of {ara}"));
            }
        }
        Ok(())
    })
    .await;
    let orphans = "SELECT count(*) FROM callbacks JOIN shepherd_brain ON qid = query_id WHERE state = 'COMPLETED'";
    assert_eq!(database.query_one(orphans, &[]).await.unwrap().get::<_, i64>(0), 0);

    eventually("sipr scales up from 2 to 4", SOON, || async { heartbeats("sipr").await == 4 }).await;
    assert!(told.lock().unwrap().iter().any(|line| line.contains("sipr scales up")), "{told:?}");

    let workers = started_with(&format!("REDIS_URL={redis_url}"));
    assert!(workers.len() >= FLEET.iter().map(|t| t.processes).sum::<usize>(), "only {} workers", workers.len());
    drop(demo);
    assert!(started_with(&format!("REDIS_URL={redis_url}")).is_empty());
    assert!(!servers.into_iter().any(is_running));
    assert!(!folders.iter().any(|folder| folder.exists()));
}

#[tokio::test]
async fn an_interrupt_ends_the_demonstration_at_once_and_leaves_nothing() {
    let demo = DemoProcess::start().await;
    let asked = Instant::now();
    demo.signal("INT");
    eventually("the demonstration ends", SOON, || async { !is_running(demo.pid) }).await;
    // Three seconds are promised; twice that is for a busy machine.
    assert!(asked.elapsed() < Duration::from_secs(6), "it took {:?}", asked.elapsed());
    assert!(demo.printed().ends_with("Stopping the fleet and its servers.\n"), "{}", demo.printed());
    assert!(demo.processes().is_empty());
    assert!(demo.files().is_empty(), "{:?}", demo.files());
}

#[tokio::test]
async fn a_killed_demonstration_leaves_nothing_either() {
    let demo = DemoProcess::start().await;
    assert!(demo.processes().len() > 30 && demo.files().len() == 2);
    demo.signal("KILL");
    eventually("no process and no file is left", SOON, || async {
        demo.processes().is_empty() && demo.files().is_empty()
    })
    .await;
}

#[tokio::test]
async fn the_fleet_alone_works_on_servers_that_are_there_and_a_monitor_beside_it_watches() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let (redis_url, database_url) = (redis.url(), database.url());
    // Both at the same moment on empty servers, and the fleet once more on what it left.
    let fleet = || {
        let fleet = Reaper::start("shepherd-fleet", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        let settings = [format!("REDIS_URL={redis_url}"), format!("DATABASE_URL={database_url}")];
        fleet.serve(&["env", &settings[0], &settings[1], PROGRAM, "demo-fleet"]).unwrap();
        fleet
    };
    let first = fleet();
    let monitor = Monitor::start(&[("REDIS_URL", &redis_url), ("DATABASE_URL", &database_url)]).await;
    let watched = |s: &serde_json::Value| {
        let alive = |stream: &str| s["workers"][stream]["alive"].as_u64().unwrap_or(0);
        FLEET.iter().all(|t| alive(t.stream) > 0) && s["postgres"]["queries_last_1h"].as_u64().unwrap_or(0) > 0
    };
    monitor.until("every type is at work and queries arrive", SOON, watched).await;
    first.end().unwrap();
    assert!(first.log_from(0).contains("\nThe fleet has stopped.\n"), "{}", first.log_from(0));
    assert!(started_with(&format!("REDIS_URL={redis_url}")).iter().all(|pid| *pid == monitor.pid()));
    let gone = |s: &serde_json::Value| FLEET.iter().all(|t| s["workers"][t.stream]["alive"] == 0);
    monitor.until("the fleet is seen to be gone", SOON, gone).await;
    let _second = fleet();
    monitor.until("it is back", SOON, watched).await;
}

/// `shepherd-monitor demo` with a temporary folder of its own, up to the address that it prints.
struct DemoProcess {
    reaper: Reaper,
    pid: u32,
}

impl DemoProcess {
    async fn start() -> Self {
        let reaper = Reaper::start("shepherd-demo-test", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        std::fs::create_dir(reaper.folder().join("tmp")).unwrap();
        let tmpdir = format!("TMPDIR={}", reaper.folder().join("tmp").display());
        let pid = reaper.serve(&["env", &tmpdir, PROGRAM, "demo", "--port", "0"]).unwrap();
        let demo = Self { reaper, pid };
        eventually("the demonstration prints its address", SOON, || async {
            if demo.printed().contains("http://127.0.0.1:") { Ok(()) } else { Err(demo.printed()) }
        })
        .await;
        demo
    }

    fn printed(&self) -> String {
        self.reaper.log_from(0)
    }

    /// To it alone, as a terminal cannot: its workers and servers have process groups of their own.
    fn signal(&self, signal: &str) {
        let kill = format!("kill -s {signal} {}", self.pid);
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn processes(&self) -> Vec<u32> {
        started_with(&format!("TMPDIR={}", self.reaper.folder().join("tmp").display()))
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.reaper.folder().join("tmp")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// The running processes that were started with this `NAME=value` in their environment.
fn started_with(variable: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).ok()?;
        environment.split(|byte| *byte == 0).any(|set| set == variable.as_bytes()).then_some(pid)
    });
    processes.filter(|pid| is_running(*pid)).collect()
}
