//! Deterministic simulation: the decisions of two monitors on models of Redis, Postgres, disks, clocks and workers, with injected
//! faults, checked against the guarantees of ARCHITECTURE.md.
//!
//! It runs the product's code between readings and writes: tracker, alert manager, ledger, delivery queue. [`scenario`] defines
//! what happens, [`world`] provides time and calls, [`servers`] and the fleet's `simulated` are the models, [`monitor`] has the
//! loops that replace the actors, [`invariants`] the checks. A seed gives the same run on every machine; a run that violates an
//! invariant is shrunk and printed as a scenario that can be added to `kept/`.
//!
//! `make simulate` runs it for a number of steps; see docs/reliability.md.

mod invariants;
mod monitor;
mod random;
mod scenario;
mod servers;
mod world;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use self::invariants::{Log, Violation};
use self::monitor::{Monitor, RuleSets, rule_sets, worker_types};
use self::random::Random;
use self::scenario::{Act, ChannelMode, SLOTS, Scenario};
use self::servers::Redis;
use self::world::{QUANTUM, Scheduled, Server, World};
use crate::alerting::silences::Silence;
use crate::fleet::event::Event;
use crate::fleet::simulated::{Fleet, MONITORS};

/// A monitor process, or the time at which it starts.
struct Process {
    monitor: Rc<Monitor>,
    tasks: Vec<Scheduled>,
}

/// A running world.
struct Simulation {
    world: Rc<World>,
    fleet: Rc<RefCell<Fleet>>,
    rule_sets: RuleSets,
    interval: u64,
    processes: [Option<Process>; MONITORS],
    /// Time at which a killed monitor restarts, milliseconds.
    starts_at: [u64; MONITORS],
    /// End of the current storm, milliseconds.
    storm_until: u64,
    /// Number of storms; each uses new streams.
    storms: usize,
    log: Log,
    announced: Vec<Arc<Event>>,
    /// The scenario may cause a change of leader.
    leader_may_change: bool,
    /// Number of polled tasks and of simulated seconds of workers.
    steps: u64,
}

impl Simulation {
    fn new(scenario: &Scenario, rule_sets: &RuleSets) -> Self {
        let world = Rc::new(World {
            now: 0.into(),
            due: None.into(),
            random: RefCell::new(Random::new(scenario.seed)),
            machines: Default::default(),
            redis: RefCell::new(Redis::default()),
            postgres: RefCell::default(),
            flaky_until: 0.into(),
            probe_fails_until: 0.into(),
            invented: RefCell::default(),
            channel: ChannelMode::Takes.into(),
            delivered: RefCell::default(),
            rules: 0.into(),
            may_be_split: false.into(),
            is_calm: false.into(),
        });
        world.machines[1].ahead.set(scenario.ahead);
        let log = Log {
            clocks_were_wrong: scenario.ahead.abs() > 2,
            interval: scenario.interval,
            sights_differ: scenario.acts.iter().any(|(_, act)| act.blinds_a_monitor()),
            ..Log::default()
        };
        Self {
            world,
            fleet: Rc::new(RefCell::new(Fleet::of(worker_types().to_vec()))),
            rule_sets: Rc::clone(rule_sets),
            interval: scenario.interval,
            processes: Default::default(),
            starts_at: [0, 400],
            storm_until: 0,
            storms: 0,
            log,
            announced: Vec::new(),
            leader_may_change: scenario.acts.iter().any(|(_, act)| act.may_change_leader()),
            steps: 0,
        }
    }

    fn second(&self) -> u64 {
        self.world.now.get() / 1000
    }

    fn act(&mut self, act: &Act) {
        tracing::info!("{:.1}: {act:?}", self.world.now.get() as f64 / 1000.0);
        let (world, now, second) = (Rc::clone(&self.world), self.world.now.get(), self.second());
        let until = |seconds: u64| now + seconds * 1000;
        self.log.delays.extend(act.delays_conclusions_for().map(|seconds| (second, second + seconds)));
        let mut fleet = self.fleet.borrow_mut();
        let mut redis = world.redis.borrow_mut();
        let (time, takes) = (redis.time(now), redis.is_up(now) && redis.takes(now).is_ok());
        match act {
            Act::Start(slot) if takes => fleet.start(*slot, second, time, &mut redis.keys),
            Act::Start(_) => {}
            Act::Kill(slot) => fleet.kill(*slot, second),
            Act::Leave(slot, left, late) if takes => {
                fleet.leave(*slot, (*left, *late), second, time, &mut redis.keys);
            }
            Act::Leave(..) => {}
            Act::Stall(slot, seconds) => fleet.stall(*slot, *seconds, second),
            Act::Hang(slot, seconds) => fleet.hang(*slot, *seconds, second),
            Act::MonitorKill(machine, seconds) => {
                drop((fleet, redis));
                self.restart(*machine, *seconds);
            }
            Act::Exclude(machine) => {
                drop((fleet, redis));
                world.machines[*machine].excludes.set(true);
                self.restart(*machine, 1);
            }
            Act::ProbeFails(seconds) => world.probe_fails_until.set(until(*seconds)),
            Act::MonitorPause(machine, seconds) => world.machines[*machine].paused_until.set(until(*seconds)),
            Act::MonitorClock(machine, by) => {
                let ahead = &world.machines[*machine].ahead;
                ahead.set(ahead.get() + by);
                self.log.clocks_were_wrong = true;
            }
            Act::RedisClock(by) => {
                redis.ahead += by;
                fleet.markers_may_expire_early(second);
                self.log.redis_steps += by.unsigned_abs();
                (0..MONITORS).for_each(|monitor| fleet.is_interrupted(monitor));
            }
            Act::RedisOutage(seconds) => redis.down_until = redis.down_until.max(until(*seconds)),
            Act::RedisRestartEmpty => {
                redis.empty();
                fleet.evidence_is_lost();
                self.log.redis_was_emptied = true;
            }
            Act::RedisFull(seconds) => redis.full_until = redis.full_until.max(until(*seconds)),
            Act::RedisFlaps(seconds) => redis.flaps_until = redis.flaps_until.max(until(*seconds)),
            Act::PostgresOutage(seconds) => {
                let mut postgres = world.postgres.borrow_mut();
                postgres.down_until = postgres.down_until.max(until(*seconds));
            }
            Act::PostgresFull(seconds) => {
                let mut postgres = world.postgres.borrow_mut();
                postgres.full_until = postgres.full_until.max(until(*seconds));
            }
            Act::Flaky(seconds) => world.flaky_until.set(until(*seconds)),
            Act::CutFromRedis(machine, seconds) => world.machines[*machine].cut_from_redis_until.set(until(*seconds)),
            Act::CutFromPostgres(machine, seconds) => {
                world.machines[*machine].cut_from_postgres_until.set(until(*seconds));
            }
            Act::DiskFull(machine, seconds) => {
                world.machines[*machine].disk_full_until.set(until(*seconds));
                self.log.disk_was_full = true;
            }
            Act::Channel(mode) => {
                world.channel.set(*mode);
                self.log.answers_were_lost |= *mode == ChannelMode::LosesAnswers;
            }
            Act::Length(n, high) => {
                let stream = ["arax", "brax"][n % 2];
                fleet.lengths.insert(stream.into(), if *high { 500 } else { 0 });
            }
            Act::Storm(count, seconds) => {
                let storm = self.storms;
                fleet.lengths.extend((0..*count).map(|n| (format!("storm-{storm}-{n}").as_str().into(), 500)));
                self.storms += 1;
                self.storm_until = until(*seconds);
            }
            Act::Silence(seconds) => {
                let starts = world.time();
                world.postgres.borrow_mut().silences.push(Silence {
                    id: second.to_string(),
                    rule: "long*".to_owned(),
                    subject: "*".to_owned(),
                    owner: "me".to_owned(),
                    reason: String::new(),
                    starts,
                    until: starts + *seconds as f64,
                    acknowledges: false,
                });
                self.log.was_silenced = true;
            }
            Act::Rules(n) => {
                world.rules.set(n % self.rule_sets.len());
                self.log.rules_changed = true;
            }
        }
    }

    fn restart(&mut self, machine: usize, after: u64) {
        let second = self.second();
        self.end_process(machine);
        self.starts_at[machine] = self.world.now.get() + after * 1000;
        self.log.monitor_turns.extend([second, second + after]);
    }

    fn end_process(&mut self, machine: usize) {
        self.fleet.borrow_mut().is_interrupted(machine);
        if let Some(process) = self.processes[machine].take() {
            self.announced.extend(process.monitor.announced.take());
            self.world.machines[machine].spawned.borrow_mut().clear();
        }
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 1000 / QUANTUM {
            self.pass_a_quantum();
        }
    }

    fn pass_a_quantum(&mut self) {
        let world = Rc::clone(&self.world);
        world.now.set(world.now.get() + QUANTUM);
        let now = world.now.get();
        if now.is_multiple_of(1000) {
            let mut fleet = self.fleet.borrow_mut();
            let mut redis = world.redis.borrow_mut();
            let (time, takes) = (redis.time(now), redis.is_up(now) && redis.takes(now).is_ok());
            fleet.pass_a_second(now / 1000, time, takes, &mut redis.keys);
            self.steps += fleet.processes.iter().filter(|p| p.runs()).count() as u64;
            if self.storm_until != 0 && now >= self.storm_until {
                self.storm_until = 0;
                fleet
                    .lengths
                    .iter_mut()
                    .filter(|(name, _)| name.to_text().starts_with("storm"))
                    .for_each(|(_, l)| *l = 0);
            }
        }
        world.redis.borrow_mut().expire(now);
        // A monitor that reaches neither server acts on its own, and so may another.
        let cut_off = |machine: usize| {
            let is_paused = now < world.machines[machine].paused_until.get();
            let is_full = world.postgres.borrow().full_until > now || world.redis.borrow().full_until > now;
            let no_redis = !world.reaches(machine, Server::Redis) || world.redis.borrow().full_until > now;
            let no_postgres = !world.reaches(machine, Server::Postgres) || is_full;
            !is_paused && no_postgres && (no_redis || self.leader_may_change)
        };
        if (0..MONITORS).any(cut_off) || now < world.flaky_until.get() || self.log.redis_was_emptied {
            world.may_be_split.set(true);
        }
        for machine in 0..MONITORS {
            if self.processes[machine].is_none() && now >= self.starts_at[machine] {
                let settings = (machine, self.interval);
                let (monitor, tasks) = Monitor::start(&world, &self.fleet, &self.rule_sets, settings);
                let tasks = tasks.into_iter().map(|task| Scheduled { task, due: 0 }).collect();
                self.processes[machine] = Some(Process { monitor, tasks });
            }
        }
        let first = world.random.borrow_mut().below(MONITORS);
        for n in 0..MONITORS {
            let machine = (first + n) % MONITORS;
            if now < world.machines[machine].paused_until.get() {
                continue;
            }
            let Some(process) = &mut self.processes[machine] else { continue };
            let spawned = world.machines[machine].spawned.take();
            process.tasks.extend(spawned.into_iter().map(|task| Scheduled { task, due: 0 }));
            let turn = world.random.borrow_mut().below(process.tasks.len());
            process.tasks.rotate_left(turn);
            let mut context = Context::from_waker(Waker::noop());
            let steps = &mut self.steps;
            process.tasks.retain_mut(|Scheduled { task, due }| {
                if now < *due {
                    return true;
                }
                *steps += 1;
                world.due.set(None);
                let pending = task.as_mut().poll(&mut context).is_pending();
                *due = world.due.get().unwrap_or(0);
                pending
            });
        }
    }

    /// Ends all faults.
    fn calm_down(&mut self) {
        let world = Rc::clone(&self.world);
        for machine in &world.machines {
            machine.paused_until.set(0);
            machine.cut_from_redis_until.set(0);
            machine.cut_from_postgres_until.set(0);
            machine.disk_full_until.set(0);
            machine.ahead.set(0);
        }
        {
            let mut redis = world.redis.borrow_mut();
            (redis.down_until, redis.full_until, redis.flaps_until) = (0, 0, 0);
            let mut postgres = world.postgres.borrow_mut();
            (postgres.down_until, postgres.full_until) = (0, 0);
            postgres.silences.clear();
        }
        world.is_calm.set(true);
        world.flaky_until.set(0);
        world.probe_fails_until.set(0);
        world.channel.set(ChannelMode::Takes);
        self.starts_at = [0; MONITORS];
        self.storm_until = world.now.get();
        self.fleet.borrow_mut().lengths.values_mut().for_each(|length| *length = 0);
    }

    /// Sets the length of the canary, whose alert must be notified soon because there are no faults.
    fn canary(&mut self, length: u64) {
        self.fleet.borrow_mut().lengths.insert("storm-canary".into(), length);
        self.log.canary.push(self.second());
    }

    /// Runs a scenario to its end and checks the invariants.
    fn run(scenario: &Scenario, rule_sets: &RuleSets) -> (u64, Result<(), Violation>) {
        let mut simulation = Self::new(scenario, rule_sets);
        for (wait, act) in &scenario.acts {
            simulation.pass(*wait);
            simulation.act(act);
        }
        simulation.calm_down();
        // Longer than every timer, including the retry interval of a broken channel and a poll interval; meanwhile an alert fires
        // and resolves.
        simulation.pass(420);
        simulation.canary(500);
        simulation.pass(60 + 2 * scenario.interval);
        simulation.canary(0);
        simulation.pass(300 + scenario.interval);
        let judged = simulation.judge();
        (simulation.steps, judged)
    }

    fn judge(&mut self) -> Result<(), Violation> {
        let monitors: Vec<Rc<Monitor>> = self.processes.iter().flatten().map(|p| Rc::clone(&p.monitor)).collect();
        for monitor in &monitors {
            self.announced.extend(monitor.announced.take());
        }
        invariants::check(&self.world, &self.fleet.borrow(), &monitors, &self.log, &self.announced)
    }
}

/// Returns the smallest scenario found that violates the same invariant.
fn shrunk(scenario: &Scenario, violation: Violation, rule_sets: &RuleSets) -> (Scenario, Violation) {
    let (mut smallest, mut violation) = (scenario.clone(), violation);
    'again: loop {
        for smaller in smallest.smaller() {
            if let (_, Err(found)) = Simulation::run(&smaller, rule_sets)
                && found.invariant == violation.invariant
            {
                (smallest, violation) = (smaller, found);
                continue 'again;
            }
        }
        return (smallest, violation);
    }
}

/// Runs generated scenarios starting at `seed` for a number of steps. Returns the number of scenarios.
fn simulate(seed: u64, steps: u64) -> u64 {
    let rule_sets = rule_sets();
    let (mut taken, mut scenarios) = (0, 0);
    while taken < steps {
        let scenario = Scenario::generate(seed.wrapping_add(scenarios));
        let (more, judged) = Simulation::run(&scenario, &rule_sets);
        if let Err(violation) = judged {
            let (smallest, violation) = shrunk(&scenario, violation, &rule_sets);
            panic!(
                "{}\nafter {scenarios} scenarios: {} is broken: {}\n",
                serde_json::to_string(&smallest).unwrap(),
                violation.invariant,
                violation.evidence
            );
        }
        (taken, scenarios) = (taken + more, scenarios + 1);
    }
    scenarios
}

/// Settings: `SIMULATION_STEPS`, `SIMULATION_SEED` (the first seed).
#[test]
fn no_fault_violates_an_invariant() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let steps = number("SIMULATION_STEPS").unwrap_or(2_000_000);
    let started = std::time::Instant::now();
    let scenarios = simulate(number("SIMULATION_SEED").unwrap_or(1), steps);
    println!("{scenarios} scenarios, {steps} steps in {:.0} s", started.elapsed().as_secs_f64());
}

/// Scenarios that violated an invariant once. `SIMULATION_SCENARIO` runs a single file and prints a trace.
#[test]
fn stored_scenarios_violate_no_invariant() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/simulation/kept");
    let files: Vec<std::path::PathBuf> = match std::env::var("SIMULATION_SCENARIO") {
        Ok(file) => {
            tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false).init();
            vec![file.into()]
        }
        Err(_) => std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect(),
    };
    for file in files {
        let scenario: Scenario = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let (_, judged) = Simulation::run(&scenario, &rule_sets());
        assert_eq!(judged, Ok(()), "{}", file.display());
    }
}

#[test]
fn the_same_seed_reproduces_a_run() {
    let runs = [0, 1].map(|_| {
        let mut simulation = Simulation::new(&Scenario::generate(7), &rule_sets());
        simulation.act(&Act::Start(SLOTS - 1));
        simulation.act(&Act::Kill(SLOTS - 1));
        simulation.pass(120);
        let events = simulation.world.postgres.borrow().events.clone();
        (simulation.steps, events)
    });
    assert!(!runs[0].1.is_empty());
    assert_eq!(runs[0], runs[1]);
}
