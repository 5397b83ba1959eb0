//! What happens to the fleet: three threads choose, one for the workers, one for the monitors, one for everything else.
//!
//! Each thread has a deck of acts, shuffled by the seed, so that every kind comes before any comes again. An act undoes
//! itself: when it returns, what it broke works again.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use crate::fleet::{Fleet, KINDS};
use crate::journal::{Fault, now};
use crate::random::Dice;
use crate::receiver::{Mode, Receiver};

/// The greatest offset that Redis' clock had, seconds.
pub(crate) static REDIS_CLOCK_AHEAD: AtomicI64 = AtomicI64::new(0);

const WORKER_ACTS: [&str; 10] = [
    "worker: kill -9",
    "worker: kill -9",
    "worker: kill -9",
    "worker: kill -9, long absence",
    "worker: SIGTERM",
    "worker: SIGTERM",
    "worker: SIGTERM, long absence",
    "worker: SIGSTOP",
    "worker: SIGSTOP",
    "worker: all of a kind",
];

const MONITOR_ACTS: [&str; 5] = [
    "monitor: kill -9",
    "monitor: SIGTERM",
    "monitor: SIGSTOP the first",
    "monitor: SIGSTOP the second",
    "monitor: kill -9 and SIGSTOP of both",
];

const OTHER_ACTS: [&str; 13] = [
    "Redis: kill -9",
    "Redis: SIGSTOP",
    "Redis: full",
    "Redis: clock",
    "Postgres: kill -9",
    "Postgres: stop -m immediate",
    "Postgres: SIGSTOP",
    "Postgres: disk full",
    "monitor: spool disk full",
    "monitor: clock",
    "webhook: 500",
    "webhook: hangs",
    "Redis and Postgres: kill -9",
];

/// What the threads work with.
pub(crate) struct Stage<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) receiver: &'a Receiver,
    pub(crate) stop: &'a AtomicBool,
    /// Acts that may happen; empty: all.
    pub(crate) only: &'a [String],
}

/// One act after another from a shuffled deck.
struct Deck<'a> {
    all: Vec<&'static str>,
    left: Vec<&'static str>,
    dice: &'a mut Dice,
}

impl<'a> Deck<'a> {
    fn new(all: &[&'static str], stage: &Stage<'_>, dice: &'a mut Dice) -> Self {
        let may =
            |act: &&'static str| stage.only.is_empty() || stage.only.iter().any(|only| act.contains(only.as_str()));
        Self { all: all.iter().copied().filter(may).collect(), left: Vec::new(), dice }
    }

    fn next(&mut self) -> Option<&'static str> {
        if self.left.is_empty() {
            self.left = self.all.clone();
            self.dice.shuffle(&mut self.left);
        }
        self.left.pop()
    }
}

impl Stage<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Sleeps, but not beyond the end of the acts.
    fn rest(&self, time: Duration) {
        let until = now() + time.as_secs_f64();
        while now() < until && !self.stopped() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Acts on workers, several at a time.
    pub(crate) fn on_workers(&self, mut dice: Dice) {
        let mut choices = dice.fork();
        let mut deck = Deck::new(&WORKER_ACTS, self, &mut dice);
        std::thread::scope(|scope| {
            while !self.stopped() {
                self.rest(choices.seconds(1.5, 6.0));
                let Some(act) = deck.next() else { return };
                let (at, long, short) =
                    (choices.below(self.fleet.slots.len()), choices.seconds(18.0, 30.0), choices.seconds(0.0, 3.0));
                let (pause, kind) = (choices.seconds(0.5, 30.0), choices.below(KINDS.len()));
                let graceful = choices.below(2) == 0;
                if self.stopped() {
                    return;
                }
                scope.spawn(move || match act {
                    "worker: all of a kind" => self.whole_kind(KINDS[kind].0, graceful, long),
                    _ => self.on_worker(act, at, if act.ends_with("absence") { long } else { short }, pause),
                });
            }
        });
    }

    fn on_worker(&self, act: &'static str, at: usize, absence: Duration, pause: Duration) {
        let fleet = self.fleet;
        // Another act has it.
        let Ok(mut slot) = fleet.slots[at].try_lock() else { return };
        match act {
            "worker: SIGSTOP" => {
                fleet.journal.act(act, format!("{} for {pause:.1?}", slot.name));
                fleet.stop_worker(&mut slot, pause);
                return;
            }
            "worker: kill -9" | "worker: kill -9, long absence" => {
                fleet.journal.act(act, format!("{}, restarted after {absence:.1?}", slot.name));
                fleet.kill_worker(&mut slot);
            }
            "worker: SIGTERM" | "worker: SIGTERM, long absence" => {
                fleet.journal.act(act, format!("{}, restarted after {absence:.1?}", slot.name));
                fleet.shut_worker_down(&mut slot);
            }
            other => unreachable!("{other:?} is not implemented"),
        }
        std::thread::sleep(absence);
        fleet.start_worker(&mut slot);
    }

    /// Ends all workers of a kind at once, for so long that the type counts as crashed or scaled down.
    fn whole_kind(&self, stream: &'static str, graceful: bool, absence: Duration) {
        let fleet = self.fleet;
        let how = if graceful { "SIGTERM" } else { "kill -9" };
        fleet.journal.act("worker: all of a kind", format!("{how} to all of {stream}, restarted after {absence:.1?}"));
        std::thread::scope(|scope| {
            for slot in &fleet.slots {
                scope.spawn(move || {
                    // Waits for an act that has it: it ends by itself.
                    let mut slot = slot.lock().unwrap();
                    if slot.stream != stream {
                        return;
                    }
                    if graceful {
                        fleet.shut_worker_down(&mut slot);
                    } else {
                        fleet.kill_worker(&mut slot);
                    }
                    std::thread::sleep(absence);
                    fleet.start_worker(&mut slot);
                });
            }
        });
    }

    /// Acts on monitors, one at a time. The second is never ended, so that its memory can be watched for the whole run.
    pub(crate) fn on_monitors(&self, mut dice: Dice) {
        let mut choices = dice.fork();
        let mut deck = Deck::new(&MONITOR_ACTS, self, &mut dice);
        while !self.stopped() {
            self.rest(choices.seconds(8.0, 20.0));
            let Some(act) = deck.next() else { return };
            let (absence, pause) = (choices.seconds(0.0, 12.0), choices.seconds(2.0, 20.0));
            if self.stopped() {
                return;
            }
            let [first, second] = &self.fleet.monitors;
            let journal = &self.fleet.journal;
            let from = now();
            match act {
                "monitor: kill -9" => {
                    journal.act(act, format!("{}, restarted after {absence:.1?}", first.name));
                    first.send("KILL");
                    std::thread::sleep(absence);
                    first.start();
                }
                "monitor: SIGTERM" => {
                    journal.act(act, format!("{}, restarted after {absence:.1?}", first.name));
                    if first.shut_down().is_none() {
                        journal.violation("a monitor still runs 30 s after SIGTERM");
                    }
                    std::thread::sleep(absence);
                    first.start();
                }
                "monitor: kill -9 and SIGSTOP of both" => {
                    journal.act(act, format!("{} killed, {} stopped, for {pause:.1?}", first.name, second.name));
                    first.send("KILL");
                    second.send("STOP");
                    std::thread::sleep(pause);
                    first.start();
                    second.send("CONT");
                }
                "monitor: SIGSTOP the first" | "monitor: SIGSTOP the second" => {
                    let monitor = if act.ends_with("first") { first } else { second };
                    journal.act(act, format!("{} for {pause:.1?}", monitor.name));
                    monitor.send("STOP");
                    std::thread::sleep(pause);
                    monitor.send("CONT");
                }
                other => unreachable!("{other:?} is not implemented"),
            }
            journal.window(Fault::Monitor, from);
        }
    }

    /// Acts on everything else, one at a time.
    pub(crate) fn on_the_rest(&self, mut dice: Dice) {
        let mut choices = dice.fork();
        let mut deck = Deck::new(&OTHER_ACTS, self, &mut dice);
        while !self.stopped() {
            self.rest(choices.seconds(4.0, 9.0));
            let Some(act) = deck.next() else { return };
            let (short, long) = (choices.seconds(1.0, 6.0), choices.seconds(5.0, 20.0));
            let step = choices.pick(&[40, 90, 300, 1800, 7200]) * choices.pick(&[1, -1]);
            let which = choices.below(2);
            if self.stopped() {
                return;
            }
            self.on_the_rest_act(act, short, long, step, which);
        }
    }

    fn on_the_rest_act(&self, act: &'static str, short: Duration, long: Duration, step: i64, which: usize) {
        let (fleet, journal) = (self.fleet, &self.fleet.journal);
        let monitor = &fleet.monitors[which];
        let from = now();
        let wait = std::thread::sleep;
        match act {
            "Redis: kill -9" => {
                journal.act(act, format!("restarted after {short:.1?}"));
                fleet.redis.kill().unwrap();
                wait(short);
                fleet.redis.restart().unwrap();
                journal.window(Fault::Redis, from);
            }
            "Redis: SIGSTOP" => {
                let time = short * 2;
                journal.act(act, format!("for {time:.1?}"));
                fleet.redis.stop().unwrap();
                wait(time);
                fleet.redis.resume().unwrap();
                journal.window(Fault::Redis, from);
            }
            "Redis: full" => {
                journal.act(act, format!("for {short:.1?}"));
                self.limit_redis("1");
                wait(short);
                self.limit_redis("0");
                journal.window(Fault::Redis, from);
            }
            "Redis: clock" => {
                let Some(clock) = &fleet.redis_clock else { return };
                journal.act(act, format!("{step:+} s for {long:.1?}"));
                clock.set(step);
                REDIS_CLOCK_AHEAD.fetch_max(step, Ordering::SeqCst);
                wait(Duration::from_secs(2));
                journal.window(Fault::RedisClock, from);
                wait(long);
                let back = now();
                clock.set(0);
                wait(Duration::from_secs(2));
                journal.window(Fault::RedisClock, back);
            }
            "Postgres: kill -9" => {
                journal.act(act, format!("restarted after {long:.1?}"));
                fleet.postgres.kill().unwrap();
                wait(long);
                fleet.postgres.restart().unwrap();
                journal.window(Fault::Postgres, from);
            }
            "Postgres: stop -m immediate" => {
                journal.act(act, "restarted at once");
                fleet.postgres.restart().unwrap();
                journal.window(Fault::Postgres, from);
            }
            "Postgres: SIGSTOP" => {
                journal.act(act, format!("for {long:.1?}"));
                fleet.postgres.stop().unwrap();
                wait(long);
                fleet.postgres.resume().unwrap();
                journal.window(Fault::Postgres, from);
            }
            "Postgres: disk full" => {
                let Some(disk) = &fleet.postgres_disk else { return };
                journal.act(act, format!("for {long:.1?}"));
                disk.fill();
                wait(long);
                disk.free();
                journal.window(Fault::Postgres, from);
            }
            "monitor: spool disk full" => {
                let Some(disk) = &monitor.spool else { return };
                journal.act(act, format!("{}, Postgres killed and restarted after {long:.1?}", monitor.name));
                disk.fill();
                fleet.postgres.kill().unwrap();
                wait(long);
                disk.free();
                wait(Duration::from_secs(2));
                fleet.postgres.restart().unwrap();
                journal.window(Fault::Spool, from);
                journal.window(Fault::Postgres, from);
            }
            "monitor: clock" => {
                let Some(clock) = &monitor.clock else { return };
                journal.act(act, format!("{}: {step:+} s for {long:.1?}", monitor.name));
                clock.set(step);
                wait(long);
                clock.set(0);
                wait(Duration::from_secs(2));
                journal.window(Fault::MonitorClock, from);
            }
            "webhook: 500" | "webhook: hangs" => {
                journal.act(act, format!("for {long:.1?}"));
                self.receiver.set(if act.ends_with("500") { Mode::Refuse } else { Mode::Hang });
                wait(long);
                self.receiver.set(Mode::Accept);
                journal.window(Fault::Webhook, from);
            }
            "Redis and Postgres: kill -9" => {
                journal.act(act, format!("restarted after {short:.1?}"));
                fleet.redis.kill().unwrap();
                fleet.postgres.kill().unwrap();
                wait(short);
                fleet.redis.restart().unwrap();
                fleet.postgres.restart().unwrap();
                journal.window(Fault::Redis, from);
                journal.window(Fault::Postgres, from);
            }
            other => unreachable!("{other:?} is not implemented"),
        }
    }

    fn limit_redis(&self, bytes: &str) {
        loop {
            let set = self.fleet.redis_now();
            let set = set.and_then(|mut redis| redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec(&mut redis));
            match set {
                Ok(()) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}
