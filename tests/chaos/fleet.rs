//! Everything that the run starts: Redis, Postgres, two monitors, nine workers of four kinds. Each process belongs to
//! a reaper, which ends it when this process ends in any way.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec, is_running};
use shepherd_monitor::demo::servers::{HeldPort, PrivatePostgres, PrivateRedis, RedisOptions};
use tokio_postgres::NoTls;

use crate::canary;
use crate::disks::{Clock, Disk};
use crate::failover::{Pairs, REPLICATED};
use crate::journal::{Journal, now};
use crate::worker::{ENTRY, FINISH, MERGE, RELAY};

/// The streams and how many workers each has.
pub(crate) const KINDS: [(&str, usize); 4] = [(ENTRY, 2), (RELAY, 3), (MERGE, 2), (FINISH, 2)];

/// How a worker process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By SIGKILL.
    Killed,
    /// By SIGTERM, with its shutdown marker written.
    ShutDown,
    /// By SIGTERM, while no marker could be written.
    WithoutMarker,
    /// Nobody asked it to.
    ByItself,
}

/// One worker process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) stream: &'static str,
    pub(crate) pid: u32,
    pub(crate) consumer: Option<String>,
    pub(crate) started: f64,
    pub(crate) ended: Option<(f64, End)>,
    /// From when to when it was stopped by SIGSTOP.
    pub(crate) stopped: Vec<(f64, f64)>,
    /// When a monitor's snapshot first and last showed it as running.
    pub(crate) shown: Option<(f64, f64)>,
}

impl Process {
    /// The longest time for which it was stopped.
    pub(crate) fn longest_stop(&self) -> f64 {
        self.stopped.iter().map(|(from, to)| to - from).fold(0.0, f64::max)
    }

    /// How often it was stopped for so long that its heartbeat may have expired.
    pub(crate) fn long_stops(&self) -> usize {
        self.stopped.iter().filter(|(from, to)| to - from > 8.0).count()
    }

    /// Whether it surely wrote heartbeats at this moment.
    pub(crate) fn writes_heartbeats(&self, at: f64) -> bool {
        self.started + 3.0 < at
            && self.ended.is_none_or(|(end, _)| at < end)
            && !self.stopped.iter().any(|(from, to)| *from <= at && at <= to + 2.0)
    }
}

/// A place in the fleet, taken by one worker process after another.
pub(crate) struct Slot {
    pub(crate) stream: &'static str,
    pub(crate) name: String,
    reaper: Reaper,
    command: Vec<String>,
    /// The place of its process in the list of all.
    current: Option<usize>,
    log_offset: usize,
}

/// A monitor's process.
pub(crate) struct Monitor {
    pub(crate) name: &'static str,
    pub(crate) port: HeldPort,
    pub(crate) clock: Option<Clock>,
    pub(crate) spool: Option<Disk>,
    reaper: Reaper,
    command: Vec<String>,
    /// The process id and since when it runs; nothing while it was ended.
    state: Mutex<Option<(u32, f64)>>,
}

pub(crate) struct Fleet {
    pub(crate) redis: PrivateRedis,
    pub(crate) redis_clock: Option<Clock>,
    pub(crate) postgres: PrivatePostgres,
    pub(crate) postgres_disk: Option<Disk>,
    /// The second Redis and the second Postgres, in a run with failovers.
    pub(crate) pairs: Option<Pairs>,
    /// How often the monitors record their series, seconds.
    pub(crate) history_interval: f64,
    redis_url: String,
    database_url: String,
    pub(crate) monitors: [Monitor; 2],
    pub(crate) slots: Vec<Mutex<Slot>>,
    processes: Mutex<Vec<Process>>,
    pub(crate) journal: Arc<Journal>,
}

/// The alert rules of both monitors.
fn rules() -> String {
    format!(
        "rules:
  - {{name: {canary}, type: threshold, metric: xlen, stream: \"{canary_streams}*\", threshold: 0, duration: 2s, \
           cooldown: 1s, repeat: never}}
  - {{name: relay_backlog, type: threshold, metric: xlen, stream: {RELAY}, threshold: 200, duration: 5s, \
           cooldown: 5s, repeat: never}}
  - {{name: relay_down, type: heartbeat_lost, worker: {RELAY}, duration: 5s, cooldown: 5s, severity: critical, \
           repeat: never}}
",
        canary = canary::RULE,
        canary_streams = canary::STREAMS,
    )
}

impl Fleet {
    /// Starts the servers, then the monitors and the workers, in `folder`. `replicated`: with a replica of each server.
    pub(crate) async fn start(folder: &Path, webhook: &str, journal: Arc<Journal>, replicated: bool) -> Self {
        let logs = folder.join("logs");
        fs::create_dir_all(&logs).unwrap();
        let left_out = |what: &str, why: String| journal.say(format!("left out: {what}: {why}"));
        let clock = |name: &str| {
            Clock::new(folder.join(format!("clock-{name}"))).map_err(|why| left_out("steps of the clock", why)).ok()
        };
        let redis_clock = if replicated { None } else { clock("redis") };
        let mut options = RedisOptions::with_args([
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--maxmemory-policy",
            "noeviction",
        ]);
        options.environment = redis_clock.as_ref().map(|clock| clock.environment(true)).unwrap_or_default();
        let redis = PrivateRedis::start(options.clone()).unwrap();
        let postgres = PrivatePostgres::start_with(if replicated { &REPLICATED } else { &[] }).unwrap();
        keep_log(redis.folder(), &logs, "redis");
        keep_log(postgres.folder(), &logs, "postgres");
        let owner = is_root().then_some("postgres");
        let postgres_disk = if replicated {
            None
        } else {
            Disk::mount(&folder.join("postgres-disk"), 160, owner)
                .map_err(|why| left_out("Postgres' full disk", why))
                .ok()
        };
        make_database(&postgres, postgres_disk.as_ref()).await;
        let pairs = replicated.then(|| Pairs::start(&redis, options, &postgres));
        if let Some(pairs) = &pairs {
            keep_log(pairs.redis.folder(), &logs, "redis-second");
            keep_log(pairs.postgres.folder(), &logs, "postgres-second");
        }
        let redis_url = pairs.as_ref().map_or_else(|| redis.url(), |pairs| redis.url_through(pairs.redis_name.port()));
        let database_url = pairs.as_ref().map_or_else(|| postgres.url_of("monitor"), Pairs::database_url);
        let history_interval = if replicated { 1.0 } else { 5.0 };
        fs::write(folder.join("rules.yaml"), rules()).unwrap();
        // Copies: a build in the meantime does not change what is restarted.
        let (monitor_program, worker_program) = (folder.join("monitor"), folder.join("worker"));
        fs::copy(env!("CARGO_BIN_EXE_shepherd-monitor"), &monitor_program).unwrap();
        fs::copy(std::env::current_exe().unwrap(), &worker_program).unwrap();
        let monitor = |name: &'static str| {
            let spool = folder.join(format!("spool-{name}"));
            let disk = Disk::mount(&spool, 2, None).map_err(|why| left_out("the spool's full disk", why)).ok();
            let clock = clock(name);
            let reaper = Reaper::start("shepherd-monitor", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
            keep_log(reaper.folder(), &logs, &format!("monitor-{name}"));
            let port = HeldPort::take().unwrap();
            let mut variables: Vec<(String, String)> = [
                ("REDIS_URL", redis_url.clone()),
                ("DATABASE_URL", database_url.clone()),
                ("MONITOR_PORT", port.number().to_string()),
                ("MONITOR_POLL_INTERVAL_SEC", "1s".to_owned()),
                ("MONITOR_HISTORY_INTERVAL_SEC", format!("{history_interval}s")),
                ("MONITOR_STARTUP_GRACE_SEC", "5s".to_owned()),
                ("MONITOR_DOWN_DEBOUNCE_SEC", "2s".to_owned()),
                ("MONITOR_SEED_STREAMS", canary::seeds()),
                ("MONITOR_SPOOL_DIR", spool.display().to_string()),
                ("MONITOR_ALERTS_CONFIG", folder.join("rules.yaml").display().to_string()),
                ("ALERT_WEBHOOK_URL", webhook.to_owned()),
                ("LOG_LEVEL", "info".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
            variables.extend(clock.iter().flat_map(|clock| clock.environment(false)));
            let mut command = vec!["env".to_owned(), "-i".to_owned()];
            command.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
            command.extend([monitor_program.display().to_string(), "serve".to_owned()]);
            Monitor { name, port, clock, spool: disk, reaper, command, state: Mutex::default() }
        };
        let monitors = [monitor("first"), monitor("second")];
        let program = worker_program.display().to_string();
        let slot = |stream: &'static str, at: usize| {
            let name = format!("{stream}-{at}");
            let reaper = Reaper::start("shepherd-worker", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
            keep_log(reaper.folder(), &logs, &format!("worker-{name}"));
            let command =
                ["env".to_owned(), format!("REDIS_URL={redis_url}"), format!("CHAOS_WORKER={stream}"), program.clone()];
            Mutex::new(Slot { stream, name, reaper, command: command.into(), current: None, log_offset: 0 })
        };
        let slots = KINDS.iter().flat_map(|(stream, count)| (0..*count).map(|at| slot(stream, at))).collect();
        let fleet = Self {
            redis,
            redis_clock,
            postgres,
            postgres_disk,
            pairs,
            history_interval,
            redis_url,
            database_url,
            monitors,
            slots,
            processes: Mutex::default(),
            journal,
        };
        for monitor in &fleet.monitors {
            monitor.start();
        }
        for slot in &fleet.slots {
            fleet.start_worker(&mut slot.lock().unwrap());
        }
        fleet
    }

    /// Address of Redis as monitors and workers have it.
    pub(crate) fn redis_url(&self) -> String {
        self.redis_url.clone()
    }

    /// A connection to Redis, for the caller alone; each wait is short, since Redis may be stopped.
    pub(crate) fn redis_now(&self) -> redis::RedisResult<redis::Connection> {
        let limit = Duration::from_secs(2);
        let connection = redis::Client::open(self.redis_url())?.get_connection_with_timeout(limit)?;
        connection.set_read_timeout(Some(limit))?;
        connection.set_write_timeout(Some(limit))?;
        Ok(connection)
    }

    /// The monitors' database.
    pub(crate) async fn postgres_now(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let limit = Duration::from_secs(5);
        let mut config: tokio_postgres::Config = self.database_url.parse()?;
        config.connect_timeout(limit);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) fn processes(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap()
    }

    /// Starts a process in this slot.
    pub(crate) fn start_worker(&self, slot: &mut Slot) {
        slot.log_offset = slot.reaper.log_from(0).len();
        let pid = slot.reaper.serve(&slot.command).unwrap();
        let mut processes = self.processes();
        slot.current = Some(processes.len());
        processes.push(Process {
            stream: slot.stream,
            pid,
            consumer: None,
            started: now(),
            ended: None,
            stopped: Vec::new(),
            shown: None,
        });
    }

    /// SIGKILL to the slot's process.
    pub(crate) fn kill_worker(&self, slot: &mut Slot) {
        self.learn(slot);
        slot.reaper.send("KILL").unwrap();
        self.note_end(slot, End::Killed);
    }

    /// SIGTERM to the slot's process; waits until it has ended.
    pub(crate) fn shut_worker_down(&self, slot: &mut Slot) {
        let Some(pid) = slot.current.map(|at| self.processes()[at].pid) else { return };
        self.learn(slot);
        slot.reaper.send("TERM").unwrap();
        let asked = now();
        // The drain limit is 8 s; a Redis that is unreachable takes some more.
        while is_running(pid) {
            if now() - asked > 90.0 {
                let name = &slot.name;
                self.journal.violation(format!("worker {name} (pid {pid}) still runs 90 s after SIGTERM: it hangs"));
                slot.reaper.send("KILL").unwrap();
                self.note_end(slot, End::WithoutMarker);
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.learn(slot);
        let log = slot.reaper.log_from(slot.log_offset);
        let marked = log.contains("left in_flight") && !log.contains("cannot write the shutdown marker");
        self.note_end(slot, if marked { End::ShutDown } else { End::WithoutMarker });
    }

    /// SIGSTOP to the slot's process for so long.
    pub(crate) fn stop_worker(&self, slot: &mut Slot, time: Duration) {
        let Some(at) = slot.current else { return };
        self.learn(slot);
        slot.reaper.send("STOP").unwrap();
        let from = now();
        self.processes()[at].stopped.push((from, f64::MAX));
        std::thread::sleep(time);
        slot.reaper.send("CONT").unwrap();
        if let Some(stop) = self.processes()[at].stopped.last_mut() {
            stop.1 = now();
        }
    }

    fn note_end(&self, slot: &mut Slot, how: End) {
        if let Some(at) = slot.current.take() {
            self.processes()[at].ended = Some((now(), how));
        }
    }

    /// Reads the consumer's name from what the process logged.
    pub(crate) fn learn(&self, slot: &Slot) {
        let Some(at) = slot.current else { return };
        if self.processes()[at].consumer.is_none() {
            let log = slot.reaper.log_from(slot.log_offset);
            let name = log.split("consumer=").nth(1).and_then(|rest| rest.split_whitespace().next().map(str::to_owned));
            self.processes()[at].consumer = name;
        }
    }

    /// A worker that ended without being asked is a violation; another one takes its place.
    pub(crate) fn look_after(&self, slot: &mut Slot) {
        self.learn(slot);
        let Some(at) = slot.current else { return };
        let pid = self.processes()[at].pid;
        if !is_running(pid) {
            let log = slot.reaper.log_from(slot.log_offset);
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            self.journal.violation(format!("worker {} (pid {pid}) ended by itself: {last:?}", slot.name));
            self.note_end(slot, End::ByItself);
            self.start_worker(slot);
        }
    }
}

impl Monitor {
    pub(crate) fn start(&self) {
        let mut state = self.state.lock().unwrap();
        let pid = self.reaper.serve(&self.command).unwrap();
        *state = Some((pid, now()));
    }

    /// `KILL`, `STOP`, `CONT`.
    pub(crate) fn send(&self, signal: &str) {
        let mut state = self.state.lock().unwrap();
        self.reaper.send(signal).unwrap();
        if signal == "KILL" {
            *state = None;
        }
    }

    /// SIGTERM; answers how long the process took to end, or `None` if it had to be killed.
    pub(crate) fn shut_down(&self) -> Option<f64> {
        let (pid, _) = (*self.state.lock().unwrap())?;
        let asked = now();
        *self.state.lock().unwrap() = None;
        self.reaper.send("TERM").unwrap();
        while is_running(pid) {
            if now() - asked > 30.0 {
                self.reaper.send("KILL").unwrap();
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(now() - asked)
    }

    /// The process id and since when the process runs, while it should run.
    pub(crate) fn running(&self) -> Option<(u32, f64)> {
        *self.state.lock().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port.number())
    }

    /// What it logged from this byte on.
    pub(crate) fn log_from(&self, offset: usize) -> String {
        self.reaper.log_from(offset)
    }
}

/// A second name for a process' log, which outlives the folder of its reaper.
fn keep_log(folder: &Path, logs: &Path, name: &str) {
    fs::hard_link(folder.join("log"), logs.join(format!("{name}.log"))).unwrap();
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Makes the monitors' database, on the small disk if there is one.
async fn make_database(postgres: &PrivatePostgres, disk: Option<&Disk>) {
    let (client, connection) = tokio_postgres::connect(&postgres.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let tablespace = match disk {
        Some(Disk { path }) => {
            let location = path.join("tablespace");
            make_for_postgres(&location);
            client.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", location.display()), &[]).await.unwrap();
            " TABLESPACE small"
        }
        None => "",
    };
    client.execute(&format!("CREATE DATABASE monitor{tablespace}"), &[]).await.unwrap();
}

fn make_for_postgres(folder: &PathBuf) {
    fs::create_dir_all(folder).unwrap();
    if is_root() {
        let status = std::process::Command::new("chown").arg("postgres").arg(folder).status();
        assert!(status.unwrap().success(), "chown postgres {}", folder.display());
    }
}

/// The streams that have to be empty in the end.
pub(crate) const STREAMS: [&str; 4] = [ENTRY, RELAY, MERGE, FINISH];
