//! A chaos run: two monitors, nine workers, Redis and Postgres as real processes under random faults; then what has to
//! hold is checked from outside. `make chaos`; docs/reliability.md.
//!
//! `CHAOS_DRILL` selects another run on the same fleet: `failover` (`FAILOVER_ROUNDS`) or `memory`.
//!
//! `CHAOS_MINUTES` (3), `CHAOS_SEED` (random), `CHAOS_RATE` (30 tasks a second), `CHAOS_ACTS` (parts of acts' names,
//! separated by commas; empty: all). The seed repeats the choices, not the moments at which processes run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a run may fail loudly"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

mod acts;
mod canary;
mod disks;
mod failover;
mod fleet;
mod invariants;
mod journal;
mod memory;
mod observe;
mod random;
mod receiver;
mod report;
mod settle;
mod tasks;
mod worker;

#[path = "../support/proxy.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod proxy;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use acts::Stage;
use canary::Delays;
use fleet::Fleet;
use journal::Journal;
use observe::Observed;
use random::Dice;
use receiver::Receiver;
use tasks::Tasks;

/// After so many minutes of acts everything is checked, and the acts go on.
const CHECKED_EVERY: f64 = 10.0;

fn main() -> ExitCode {
    if let Ok(stream) = std::env::var("CHAOS_WORKER") {
        return worker::run(&stream);
    }
    let number = |name: &str, default: f64| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty());
        text.map_or(Ok(default), |text| {
            text.parse::<f64>().map_err(|_| format!("{name} is {text:?}; expected a number"))
        })
    };
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|text| text.parse().ok());
    let drill = match std::env::var("CHAOS_DRILL").as_deref().unwrap_or_default() {
        "" => Ok(Drill::Random),
        "failover" => number("FAILOVER_ROUNDS", 20.0).map(|rounds| Drill::Failover(rounds as u32)),
        "memory" => Ok(Drill::Memory),
        other => Err(format!("CHAOS_DRILL is {other:?}; expected failover or memory")),
    };
    let (drill, minutes, rate) = match (drill, number("CHAOS_MINUTES", 3.0), number("CHAOS_RATE", 30.0)) {
        (Ok(drill), Ok(minutes), Ok(rate)) if minutes > 0.0 && rate > 0.0 => (drill, minutes, rate),
        (Err(wrong), ..) | (_, Err(wrong), _) | (.., Err(wrong)) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
        _ => {
            eprintln!("CHAOS_MINUTES and CHAOS_RATE have to be more than 0");
            return ExitCode::from(2);
        }
    };
    drop(rustls::crypto::ring::default_provider().install_default());
    if run(drill, minutes, rate, seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What happens to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drill {
    /// Random faults.
    Random,
    /// So many failovers of Redis and of Postgres.
    Failover(u32),
    /// Redis at `maxmemory`.
    Memory,
}

/// Answers whether nothing was violated.
fn run(drill: Drill, minutes: f64, rate: f64, seed: u64) -> bool {
    let folder = std::env::var_os("CHAOS_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    let journal = Arc::new(Journal::new(&folder));
    journal.say(format!(
        "{drill:?}, CHAOS_SEED={seed} CHAOS_MINUTES={minutes} CHAOS_RATE={rate}, in {}",
        folder.display()
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let receiver = runtime.block_on(Receiver::start());
    let replicated = matches!(drill, Drill::Failover(_));
    let fleet = runtime.block_on(Fleet::start(&folder, &receiver.url(), Arc::clone(&journal), replicated));
    let tasks = Arc::new(Tasks::new(replicated));
    runtime.spawn(Arc::clone(&tasks).produce(fleet.redis_url(), rate, Arc::clone(&journal)));
    runtime.spawn(Arc::clone(&tasks).collect(fleet.redis_url(), Arc::clone(&journal)));
    let (observed, delays) = (Observed::default(), Delays::default());
    let only: Vec<String> = std::env::var("CHAOS_ACTS").unwrap_or_default().split(',').map(str::to_owned).collect();
    let only: Vec<String> = only.into_iter().filter(|act| !act.is_empty()).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| observe::run(&fleet, &observed, &handle, &done));
        journal.say("everything is started");
        std::thread::sleep(Duration::from_secs(15));
        let rounds = if drill == Drill::Random { (minutes / CHECKED_EVERY).ceil() as u64 } else { 0 };
        let mut canaries = 0;
        for round in 0..rounds {
            let stop = AtomicBool::new(false);
            tasks.paused.store(false, Ordering::SeqCst);
            let stage = Stage { fleet: &fleet, receiver: &receiver, stop: &stop, only: &only };
            let dice = |hand: u64| Dice::new(seed, round * 16 + hand);
            canaries = std::thread::scope(|acts| {
                acts.spawn(|| stage.on_workers(dice(1)));
                acts.spawn(|| stage.on_monitors(dice(2)));
                acts.spawn(|| stage.on_the_rest(dice(3)));
                let canary = acts.spawn(|| canary::run(&fleet, &receiver, &delays, dice(4), canaries, &stop));
                let length = Duration::from_secs_f64(minutes * 60.0 / rounds as f64);
                std::thread::sleep(length);
                stop.store(true, Ordering::SeqCst);
                journal.say("the acts end");
                canary.join().unwrap()
            });
            settle_and_check(&fleet, &tasks, &observed, &receiver, &handle);
        }
        match drill {
            Drill::Random => {}
            Drill::Failover(rounds) => {
                let failovers = failover::run(&fleet, &tasks, &handle, rounds, seed);
                settle_and_check(&fleet, &tasks, &observed, &receiver, &handle);
                failover::report(&fleet, &observed, &handle, &failovers);
            }
            Drill::Memory => {
                memory::run(&fleet, &tasks, &receiver, &handle);
                settle_and_check(&fleet, &tasks, &observed, &receiver, &handle);
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    report::keep(&folder, &observed, &receiver);
    let good = report::print(&fleet, &tasks, &observed, &delays, seed);
    runtime.shutdown_background();
    good
}

/// Stops adding tasks, waits until the fleet has settled, and checks what has to hold.
fn settle_and_check(
    fleet: &Fleet,
    tasks: &Tasks,
    observed: &Observed,
    receiver: &Receiver,
    handle: &tokio::runtime::Handle,
) {
    tasks.paused.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(1));
    settle::settle(fleet, tasks, observed, handle);
    observe::read_all_events(fleet, observed, handle);
    invariants::check(fleet, tasks, observed, receiver);
}
