//! The failover drill: Redis and Postgres fail over again and again, each behind one address, while the fleet works.
//!
//! New connections to the address lead to the current primary; open connections stay with the node that was demoted. For
//! each failover the drill measures, from the moment at which the new primary accepts a write through the address, when
//! both monitors and all kinds of workers work with it.

use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::demo::servers::{PrivatePostgres, PrivateRedis, RedisOptions};
use tokio::runtime::Handle;
use tokio_postgres::NoTls;

use crate::fleet::{Fleet, KINDS};
use crate::journal::{Fault, now};
use crate::observe::Observed;
use crate::proxy::Proxy;
use crate::random::Dice;
use crate::tasks::Tasks;

/// Monitors and workers are back so many seconds after the new primary accepts a write.
const BACK_WITHIN: f64 = 15.0;
/// The drill stops waiting for them after so many seconds.
const GIVE_UP: f64 = 90.0;
/// A series that every monitor records from each reading of Redis.
const SERIES: &str = "xlen:chaos.entry";
/// Settings of a Postgres that has a standby.
pub(crate) const REPLICATED: [&str; 4] =
    ["wal_level=replica", "max_wal_senders=8", "wal_keep_size=512MB", "hot_standby=on"];

/// How a primary of Redis goes.
const REDIS_WAYS: [&str; 4] = ["FAILOVER", "address switched late", "kill -9", "SIGSTOP"];
/// How a primary of Postgres goes.
const POSTGRES_WAYS: [&str; 4] = ["shut down", "left read-only", "kill -9", "SIGSTOP"];

/// The second Redis, the second Postgres, and the addresses that lead to whichever is the primary.
pub(crate) struct Pairs {
    pub(crate) redis: PrivateRedis,
    pub(crate) redis_name: Proxy,
    pub(crate) postgres: PrivatePostgres,
    pub(crate) postgres_name: Proxy,
}

impl Pairs {
    /// Starts a replica of `redis` and a standby of `postgres`.
    pub(crate) fn start(redis: &PrivateRedis, options: RedisOptions, postgres: &PrivatePostgres) -> Self {
        let second = PrivateRedis::start(options).unwrap();
        ask(&second, &["REPLICAOF", "127.0.0.1", &redis.port().to_string()]).unwrap();
        let pairs = Self {
            redis_name: Proxy::to(redis.port()),
            redis: second,
            postgres_name: Proxy::to(postgres.port()),
            postgres: postgres.start_standby().unwrap(),
        };
        for node in [redis, &pairs.redis] {
            // A replica that comes is served at once.
            ask(node, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).unwrap();
        }
        pairs
    }

    pub(crate) fn database_url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/monitor", self.postgres_name.port())
    }
}

/// One failover, as measured. All times in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Failover {
    server: &'static str,
    way: &'static str,
    from: f64,
    /// When the new primary accepted a write through the address.
    answered: f64,
    /// When both monitors showed it, and recorded from it.
    monitors: Option<f64>,
    /// When each kind of worker had completed a task.
    workers: Option<f64>,
    /// When no monitor and no worker was connected to a demoted primary that still runs.
    moved: Option<f64>,
}

impl Failover {
    fn ended(&self) -> f64 {
        [self.monitors, self.workers, self.moved].into_iter().flatten().fold(self.answered, f64::max)
    }
}

/// Runs so many failovers of each server at random moments, those of one beside those of the other.
pub(crate) fn run(fleet: &Fleet, tasks: &Tasks, handle: &Handle, rounds: u32, seed: u64) -> Vec<Failover> {
    let failovers = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            all_of(fleet, rounds, Dice::new(seed, 1), &REDIS_WAYS, &failovers, |dice, way, flip| {
                of_redis(fleet, tasks, handle, dice, way, flip)
            })
        });
        scope.spawn(|| {
            all_of(fleet, rounds, Dice::new(seed, 2), &POSTGRES_WAYS, &failovers, |dice, way, flip| {
                of_postgres(fleet, handle, dice, way, flip)
            })
        });
    });
    failovers.into_inner().unwrap()
}

fn all_of(
    fleet: &Fleet,
    rounds: u32,
    mut dice: Dice,
    ways: &[&'static str],
    failovers: &Mutex<Vec<Failover>>,
    fail_over: impl Fn(&mut Dice, &'static str, bool) -> Failover,
) {
    let mut deck: Vec<&'static str> = Vec::new();
    for round in 0..rounds {
        sleep(dice.seconds(3.0, 8.0));
        if deck.is_empty() {
            deck.extend(ways);
            dice.shuffle(&mut deck);
        }
        let Some(way) = deck.pop() else { return };
        let failover = fail_over(&mut dice, way, round % 2 == 1);
        let after =
            |moment: Option<f64>| moment.map_or("never".to_owned(), |at| format!("{:.1} s", at - failover.answered));
        fleet.journal.say(format!(
            "{} {}/{rounds} {way}: outage {:.1} s, then monitors {}, workers {}, connections {}",
            failover.server,
            round + 1,
            failover.answered - failover.from,
            after(failover.monitors),
            after(failover.workers),
            after(failover.moved),
        ));
        for (what, moment) in
            [("monitors", failover.monitors), ("workers", failover.workers), ("connections", failover.moved)]
        {
            if moment.is_none_or(|at| at - failover.answered > BACK_WITHIN) {
                let (server, time) = (failover.server, after(moment));
                fleet.journal.violation(format!("{server} {}, {way}: {what} back after {time}", round + 1));
            }
        }
        failovers.lock().unwrap().push(failover);
    }
}

/// Asks until `answer` is there; `None` after `GIVE_UP` seconds.
fn until<T>(mut answer: impl FnMut() -> Option<T>) -> Option<T> {
    let since = now();
    while now() - since < GIVE_UP {
        if let Some(answer) = answer() {
            return Some(answer);
        }
        sleep(Duration::from_millis(100));
    }
    None
}

fn at_url<T: redis::FromRedisValue>(url: &str, command: &[&str]) -> redis::RedisResult<T> {
    let limit = Duration::from_secs(1);
    let mut connection = redis::Client::open(url)?.get_connection_with_timeout(limit)?;
    connection.set_read_timeout(Some(limit))?;
    redis::cmd(command[0]).arg(&command[1..]).query(&mut connection)
}

fn ask(node: &PrivateRedis, command: &[&str]) -> redis::RedisResult<redis::Value> {
    at_url(&node.url(), command)
}

fn replication_of(node: &PrivateRedis, field: &str) -> Option<String> {
    let info: String = at_url(&node.url(), &["INFO", "replication"]).ok()?;
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_owned()))
}

fn of_redis(fleet: &Fleet, tasks: &Tasks, handle: &Handle, dice: &mut Dice, way: &'static str, flip: bool) -> Failover {
    let Some(pairs) = &fleet.pairs else { unreachable!("the run has no pairs") };
    let (old, new) = if flip { (&pairs.redis, &fleet.redis) } else { (&fleet.redis, &pairs.redis) };
    let new_port = new.port().to_string();
    let detected = dice.seconds(0.5, 5.0);
    let in_step = || (replication_of(new, "master_link_status")? == "up").then_some(());
    until(in_step).expect("the replica follows its primary");
    fleet.journal.act("failover of Redis", way);
    let from = now();
    let promoted = || (replication_of(new, "role")? == "master").then_some(());
    match way {
        "FAILOVER" => {
            ask(old, &["FAILOVER", "TO", "127.0.0.1", &new_port]).unwrap();
            until(promoted).expect("the replica is promoted");
        }
        "address switched late" => {
            // Writes wait until both have the same, so that nothing that was acknowledged is lost.
            ask(old, &["CLIENT", "PAUSE", "10000", "WRITE"]).unwrap();
            until(|| {
                let offset = replication_of(old, "master_repl_offset")?;
                (replication_of(new, "slave_repl_offset")? == offset).then_some(())
            })
            .expect("the replica has everything");
            ask(new, &["REPLICAOF", "NO", "ONE"]).unwrap();
            ask(old, &["REPLICAOF", "127.0.0.1", &new_port]).unwrap();
            ask(old, &["CLIENT", "UNPAUSE"]).unwrap();
            sleep(detected);
        }
        _ => {
            if way == "kill -9" {
                old.kill().unwrap()
            } else {
                old.stop().unwrap()
            }
            sleep(detected);
            ask(new, &["REPLICAOF", "NO", "ONE"]).unwrap();
        }
    }
    pairs.redis_name.lead_to(new.port());
    let write = || at_url::<String>(&fleet.redis_url(), &["SET", "chaos.failover", "-"]).ok();
    until(write).expect("the new primary accepts writes");
    let answered = now();
    let workers = || tasks.all_steps_after(answered);
    let (mut at_workers, mut at_monitors, mut moved) = (None, None, None);
    until(|| {
        at_workers = at_workers.or_else(workers);
        at_monitors = at_monitors.or_else(|| monitors_show_redis(fleet, handle, answered).then(now));
        moved = moved.or_else(|| no_client_of_redis(old, way).then(now));
        (at_workers.is_some() && at_monitors.is_some() && moved.is_some()).then_some(())
    });
    fleet.journal.window(Fault::Redis, from);
    if matches!(way, "kill -9" | "SIGSTOP") {
        old.kill().unwrap();
        old.restart_empty().unwrap();
        ask(old, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).unwrap();
        ask(old, &["REPLICAOF", "127.0.0.1", &new_port]).unwrap();
    }
    Failover { server: "Redis", way, from, answered, monitors: at_monitors, workers: at_workers, moved }
}

/// Whether both monitors read the new primary, show every worker and no refused write.
fn monitors_show_redis(fleet: &Fleet, handle: &Handle, answered: f64) -> bool {
    let snapshots = crate::observe::snapshots(fleet, handle);
    snapshots.iter().all(|snapshot| {
        let Some(snapshot) = snapshot else { return false };
        let redis = &snapshot["redis"];
        let is_fresh = redis["read_at"].as_f64().is_some_and(|at| at > answered);
        let is_read = matches!(redis["source"]["status"].as_str(), Some("ok" | "settling"));
        let all_run = KINDS.iter().all(|(stream, count)| {
            let status = &snapshot["workers"][*stream];
            status["state"] == "alive" && status["alive"].as_u64() == u64::try_from(*count).ok()
        });
        is_fresh && is_read && redis["write_error"].is_null() && all_run
    })
}

/// Whether only replication and this question are connected to a demoted primary, if it still serves anybody.
fn no_client_of_redis(old: &PrivateRedis, way: &str) -> bool {
    if matches!(way, "kill -9" | "SIGSTOP") {
        return true;
    }
    at_url::<String>(&old.url(), &["CLIENT", "LIST", "TYPE", "normal"])
        .is_ok_and(|list| list.lines().filter(|line| !line.contains("cmd=client")).count() == 0)
}

async fn of_node(node: &PrivatePostgres, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config: tokio_postgres::Config = node.url_of(database).parse()?;
    config.connect_timeout(Duration::from_secs(2)).application_name("drill");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row, as text.
fn sql(handle: &Handle, node: &PrivatePostgres, statement: &str) -> Result<String, String> {
    let said = |error: tokio_postgres::Error| format!("{statement}: {error:?}");
    handle.block_on(async {
        let asking = async {
            let client = of_node(node, "monitor").await.map_err(said)?;
            let messages = client.simple_query(statement).await.map_err(said)?;
            Ok(messages.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            }))
        };
        let answer = tokio::time::timeout(Duration::from_secs(15), asking).await;
        answer.map_err(|_| format!("{statement}: no answer"))?.map(Option::unwrap_or_default)
    })
}

/// From now on a commit waits until the standby has it.
fn replicate_in_step(handle: &Handle, primary: &PrivatePostgres) {
    sql(handle, primary, "ALTER SYSTEM SET synchronous_standby_names = '*'").unwrap();
    sql(handle, primary, "SELECT pg_reload_conf()").unwrap();
    let in_step = || sql(handle, primary, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").ok();
    until(|| (in_step()? == "1").then_some(())).expect("the standby follows its primary");
}

fn of_postgres(fleet: &Fleet, handle: &Handle, dice: &mut Dice, way: &'static str, flip: bool) -> Failover {
    let Some(pairs) = &fleet.pairs else { unreachable!("the run has no pairs") };
    let (old, new) = if flip { (&pairs.postgres, &fleet.postgres) } else { (&fleet.postgres, &pairs.postgres) };
    let detected = dice.seconds(0.5, 5.0);
    replicate_in_step(handle, old);
    fleet.journal.act("failover of Postgres", way);
    let from = now();
    match way {
        "shut down" => old.shut_down().unwrap(),
        "left read-only" => {
            sql(handle, old, "ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
            sql(handle, old, "SELECT pg_reload_conf()").unwrap();
        }
        "kill -9" => old.kill().unwrap(),
        _ => old.stop().unwrap(),
    }
    sleep(detected);
    let promoted = until(|| sql(handle, new, "SELECT pg_promote(true, 10)").ok());
    promoted.expect("the standby is promoted");
    pairs.postgres_name.lead_to(new.port());
    let write = || {
        handle.block_on(async {
            let client = fleet.postgres_now().await.ok()?;
            client.batch_execute("CREATE TABLE IF NOT EXISTS failover_drill (); DROP TABLE failover_drill").await.ok()
        })
    };
    until(write).expect("the new primary accepts writes");
    let answered = now();
    let (mut monitors, mut moved) = (None, None);
    until(|| {
        monitors = monitors.or_else(|| monitors_use_postgres(fleet, handle, new, answered).then(now));
        moved = moved.or_else(|| (way != "left read-only" || no_client_of_postgres(handle, old)).then(now));
        (monitors.is_some() && moved.is_some()).then_some(())
    });
    fleet.journal.window(Fault::Postgres, from);
    old.follow(new).unwrap();
    Failover { server: "Postgres", way, from, answered, monitors, workers: Some(answered), moved }
}

/// Whether both monitors read the new primary, show no refused write, and one of them has recorded history there.
fn monitors_use_postgres(fleet: &Fleet, handle: &Handle, new: &PrivatePostgres, answered: f64) -> bool {
    let shown = crate::observe::snapshots(fleet, handle).iter().all(|snapshot| {
        let Some(snapshot) = snapshot else { return false };
        let postgres: &Value = &snapshot["postgres"];
        postgres["source"]["status"] == "ok"
            && postgres["write_error"].is_null()
            && snapshot["ts"].as_f64().is_some_and(|at| at > answered)
    });
    let newest =
        format!("SELECT coalesce(max(extract(epoch FROM ts)), 0) FROM monitor_metrics WHERE metric = '{SERIES}'");
    shown && sql(handle, new, &newest).is_ok_and(|at| at.parse::<f64>().is_ok_and(|at| at > answered))
}

fn no_client_of_postgres(handle: &Handle, old: &PrivatePostgres) -> bool {
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'shepherd-monitor%'";
    sql(handle, old, clients).is_ok_and(|count| count == "0")
}

/// Compares the gaps in the archived history with the outages, and prints a table.
pub(crate) fn report(fleet: &Fleet, observed: &Observed, handle: &Handle, mut failovers: Vec<Failover>) {
    let samples = handle.block_on(async {
        let client = fleet.postgres_now().await.unwrap();
        let all = "SELECT extract(epoch FROM ts)::float8 FROM monitor_metrics WHERE metric = $1 ORDER BY ts";
        let rows = client.query(all, &[&SERIES]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<f64>>()
    });
    failovers.sort_by(|a, b| a.server.cmp(b.server).reverse().then(a.from.total_cmp(&b.from)));
    let of_redis: Vec<Failover> = failovers.iter().filter(|failover| failover.server == "Redis").cloned().collect();
    let events = observed.events.lock().unwrap();
    println!(
        "| server | way | outage | monitors back | workers back | connections moved | history gap | crashes invented |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for failover in &failovers {
        let (from, to) = (failover.from, failover.ended());
        // What is missing beside the usual distance. A gap during a failover of Redis is that one's.
        let gap = samples
            .windows(2)
            .filter(|pair| pair[0] <= to && pair[1] >= from)
            .filter(|pair| {
                failover.server == "Redis"
                    || !of_redis.iter().any(|other| other.from <= pair[1] && pair[0] <= other.ended())
            })
            .map(|pair| pair[1] - pair[0] - fleet.history_interval)
            .fold(0.0, f64::max);
        let outage = failover.answered - failover.from;
        // Samples are taken at whole intervals, and a reading begins and ends at any moment.
        if gap > outage + 2.0 * fleet.history_interval {
            let (server, way) = (failover.server, failover.way);
            fleet
                .journal
                .violation(format!("{server}, {way}: {gap:.1} s of history are missing, {outage:.1} s of outage"));
        }
        let invented = events
            .iter()
            .filter(|event| event.kind == "consumers_lost" || event.payload["kind"] == "crashed")
            .filter(|event| (from..to + 30.0).contains(&event.found))
            .count();
        let after =
            |moment: Option<f64>| moment.map_or("never".to_owned(), |at| format!("{:.1} s", at - failover.answered));
        println!(
            "| {} | {} | {outage:.1} s | {} | {} | {} | {gap:.0} s | {invented} |",
            failover.server,
            failover.way,
            after(failover.monitors),
            if failover.server == "Redis" { after(failover.workers) } else { "".to_owned() },
            after(failover.moved),
        );
    }
}
