//! The failover drill: Redis and Postgres fail over again and again, each behind one address, while the fleet works.
//!
//! New connections to the address lead to the current primary; open connections stay with the node that was demoted. For
//! each failover the drill measures how long after the first write that the new primary accepts through the address both
//! monitors and all kinds of workers work with it, and no connection to the demoted node remains.

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

/// How Redis fails over.
const REDIS_METHODS: [&str; 4] = ["FAILOVER", "address switched late", "kill -9", "SIGSTOP"];
/// How the primary of Postgres fails.
const POSTGRES_METHODS: [&str; 4] = ["shut down", READ_ONLY, "kill -9", "SIGSTOP"];
const READ_ONLY: &str = "left read-only";
/// No monitor and no worker is connected to the demoted primary.
const DISCONNECTED: &str = "old connections closed";

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
        command(&second, &["REPLICAOF", "127.0.0.1", &redis.port().to_string()]).unwrap();
        let pairs = Self {
            redis_name: Proxy::to(redis.port()),
            redis: second,
            postgres_name: Proxy::to(postgres.port()),
            postgres: postgres.start_standby().unwrap(),
        };
        for node in [redis, &pairs.redis] {
            // A replica that comes is served at once.
            command(node, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).unwrap();
        }
        pairs
    }

    pub(crate) fn database_url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/monitor", self.postgres_name.port())
    }
}

/// One failover, as measured. Moments are Unix seconds.
#[derive(Debug, Clone)]
pub(crate) struct Failover {
    server: &'static str,
    method: &'static str,
    from: f64,
    /// When the new primary accepted a write through the address.
    available: f64,
    /// What has to work again, and when it did; `None`: not within `GIVE_UP` seconds.
    back: Vec<(&'static str, Option<f64>)>,
}

impl Failover {
    fn outage(&self) -> f64 {
        self.available - self.from
    }

    fn ended(&self) -> f64 {
        self.back.iter().filter_map(|(_, moment)| *moment).fold(self.available, f64::max)
    }

    /// So many seconds after the end of the outage, `what` worked again.
    fn back_after(&self, what: &str) -> Option<f64> {
        let moment = self.back.iter().find(|(name, _)| *name == what)?.1;
        Some(moment.map_or(f64::INFINITY, |moment| moment - self.available))
    }
}

/// Runs so many failovers of each server at random moments, those of one beside those of the other.
pub(crate) fn run(fleet: &Fleet, tasks: &Tasks, handle: &Handle, rounds: u32, seed: u64) -> Vec<Failover> {
    let failovers = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            repeat(fleet, rounds, Dice::new(seed, 1), &REDIS_METHODS, &failovers, |dice, method, swapped| {
                fail_redis_over(fleet, tasks, handle, dice, method, swapped)
            })
        });
        scope.spawn(|| {
            repeat(fleet, rounds, Dice::new(seed, 2), &POSTGRES_METHODS, &failovers, |dice, method, swapped| {
                fail_postgres_over(fleet, handle, dice, method, swapped)
            })
        });
    });
    failovers.into_inner().unwrap()
}

/// The third argument of `fail_over` says whether the second node is the primary.
fn repeat(
    fleet: &Fleet,
    rounds: u32,
    mut dice: Dice,
    methods: &[&'static str],
    failovers: &Mutex<Vec<Failover>>,
    fail_over: impl Fn(&mut Dice, &'static str, bool) -> Failover,
) {
    let mut deck: Vec<&'static str> = Vec::new();
    for round in 0..rounds {
        sleep(dice.seconds(3.0, 8.0));
        if deck.is_empty() {
            deck.extend(methods);
            dice.shuffle(&mut deck);
        }
        let Some(method) = deck.pop() else { return };
        let failover = fail_over(&mut dice, method, round % 2 == 1);
        let name = format!("{} {}/{rounds}, {method}", failover.server, round + 1);
        let back: Vec<String> = failover
            .back
            .iter()
            .filter_map(|(what, _)| Some(format!("{what} after {:.1} s", failover.back_after(what)?)))
            .collect();
        fleet.journal.say(format!("{name}: outage {:.1} s; {}", failover.outage(), back.join(", ")));
        for (what, _) in &failover.back {
            if let Some(after) = failover.back_after(what).filter(|after| *after > BACK_WITHIN) {
                fleet.journal.violation(format!("{name}: {what} after {after:.1} s"));
            }
        }
        failovers.lock().unwrap().push(failover);
    }
}

/// Asks until there is an answer; `None` after `GIVE_UP` seconds.
fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let since = now();
    while now() - since < GIVE_UP {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        sleep(Duration::from_millis(100));
    }
    None
}

/// A condition answers when it was met, once it is.
type Condition<'a> = (&'static str, Box<dyn FnMut() -> Option<f64> + 'a>);

fn wait_for_all(mut conditions: Vec<Condition<'_>>) -> Vec<(&'static str, Option<f64>)> {
    let mut met: Vec<_> = conditions.iter().map(|(name, _)| (*name, None)).collect();
    wait_for(|| {
        for ((_, moment), (_, condition)) in met.iter_mut().zip(&mut conditions) {
            *moment = moment.or_else(condition);
        }
        met.iter().all(|(_, moment)| moment.is_some()).then_some(())
    });
    met
}

fn at_url<T: redis::FromRedisValue>(url: &str, command: &[&str]) -> redis::RedisResult<T> {
    let limit = Duration::from_secs(1);
    let mut connection = redis::Client::open(url)?.get_connection_with_timeout(limit)?;
    connection.set_read_timeout(Some(limit))?;
    redis::cmd(command[0]).arg(&command[1..]).query(&mut connection)
}

fn command(node: &PrivateRedis, words: &[&str]) -> redis::RedisResult<redis::Value> {
    at_url(&node.url(), words)
}

fn replication_of(node: &PrivateRedis, field: &str) -> Option<String> {
    let info: String = at_url(&node.url(), &["INFO", "replication"]).ok()?;
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_owned()))
}

fn fail_redis_over(
    fleet: &Fleet,
    tasks: &Tasks,
    handle: &Handle,
    dice: &mut Dice,
    method: &'static str,
    swapped: bool,
) -> Failover {
    let Some(pairs) = &fleet.pairs else { unreachable!("the run has no pairs") };
    let (old, new) = if swapped { (&pairs.redis, &fleet.redis) } else { (&fleet.redis, &pairs.redis) };
    let new_port = new.port().to_string();
    let detection = dice.seconds(0.5, 5.0);
    let in_sync = || (replication_of(new, "master_link_status")? == "up").then_some(());
    wait_for(in_sync).expect("the replica follows its primary");
    fleet.journal.act("failover of Redis", method);
    let from = now();
    let promoted = || (replication_of(new, "role")? == "master").then_some(());
    match method {
        "FAILOVER" => {
            command(old, &["FAILOVER", "TO", "127.0.0.1", &new_port]).unwrap();
            wait_for(promoted).expect("the replica is promoted");
        }
        "address switched late" => {
            // Writes wait until both have the same, so that nothing that was acknowledged is lost.
            command(old, &["CLIENT", "PAUSE", "10000", "WRITE"]).unwrap();
            wait_for(|| {
                let offset = replication_of(old, "master_repl_offset")?;
                (replication_of(new, "slave_repl_offset")? == offset).then_some(())
            })
            .expect("the replica has everything");
            command(new, &["REPLICAOF", "NO", "ONE"]).unwrap();
            command(old, &["REPLICAOF", "127.0.0.1", &new_port]).unwrap();
            command(old, &["CLIENT", "UNPAUSE"]).unwrap();
            sleep(detection);
        }
        _ => {
            if method == "kill -9" {
                old.kill().unwrap()
            } else {
                old.stop().unwrap()
            }
            sleep(detection);
            command(new, &["REPLICAOF", "NO", "ONE"]).unwrap();
        }
    }
    pairs.redis_name.lead_to(new.port());
    let write = || at_url::<String>(&fleet.redis_url(), &["SET", "chaos.failover", "-"]).ok();
    wait_for(write).expect("the new primary accepts writes");
    let available = now();
    let is_gone = matches!(method, "kill -9" | "SIGSTOP");
    let mut conditions: Vec<Condition<'_>> = vec![
        ("monitors", Box::new(|| monitors_show_redis(fleet, handle, available).then(now))),
        ("workers", Box::new(|| tasks.all_steps_after(available))),
    ];
    if !is_gone {
        conditions.push((DISCONNECTED, Box::new(|| clients_of_redis(old).is_ok_and(|list| list.is_empty()).then(now))));
    }
    let back = wait_for_all(conditions);
    fleet.journal.window(Fault::Redis, from);
    if is_gone {
        old.kill().unwrap();
        old.restart_empty().unwrap();
        command(old, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).unwrap();
        command(old, &["REPLICAOF", "127.0.0.1", &new_port]).unwrap();
    } else {
        for client in clients_of_redis(old).unwrap_or_default() {
            fleet.journal.say(format!("still connected to the demoted Redis: {client}"));
        }
    }
    Failover { server: "Redis", method, from, available, back }
}

/// Whether both monitors read the new primary, show every worker and no refused write.
fn monitors_show_redis(fleet: &Fleet, handle: &Handle, available: f64) -> bool {
    let snapshots = crate::observe::snapshots(fleet, handle);
    snapshots.iter().all(|snapshot| {
        let Some(snapshot) = snapshot else { return false };
        let redis = &snapshot["redis"];
        let is_fresh = redis["read_at"].as_f64().is_some_and(|at| at > available);
        let is_read = matches!(redis["source"]["status"].as_str(), Some("ok" | "settling"));
        let all_run = KINDS.iter().all(|(stream, count)| {
            let status = &snapshot["workers"][*stream];
            status["state"] == "alive" && status["alive"].as_u64() == u64::try_from(*count).ok()
        });
        is_fresh && is_read && redis["write_error"].is_null() && all_run
    })
}

/// The clients of a demoted primary, without its replica and the connection that lists them.
fn clients_of_redis(old: &PrivateRedis) -> redis::RedisResult<Vec<String>> {
    let list: String = at_url(&old.url(), &["CLIENT", "LIST", "TYPE", "normal"])?;
    Ok(list.lines().filter(|line| !line.contains("cmd=client")).map(str::to_owned).collect())
}

async fn connect(node: &PrivatePostgres, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
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
            let client = connect(node, "monitor").await.map_err(said)?;
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
fn replicate_synchronously(handle: &Handle, primary: &PrivatePostgres) {
    sql(handle, primary, "ALTER SYSTEM SET synchronous_standby_names = '*'").unwrap();
    sql(handle, primary, "SELECT pg_reload_conf()").unwrap();
    let in_sync = || sql(handle, primary, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").ok();
    wait_for(|| (in_sync()? == "1").then_some(())).expect("the standby follows its primary");
}

fn fail_postgres_over(
    fleet: &Fleet,
    handle: &Handle,
    dice: &mut Dice,
    method: &'static str,
    swapped: bool,
) -> Failover {
    let Some(pairs) = &fleet.pairs else { unreachable!("the run has no pairs") };
    let (old, new) = if swapped { (&pairs.postgres, &fleet.postgres) } else { (&fleet.postgres, &pairs.postgres) };
    let detection = dice.seconds(0.5, 5.0);
    replicate_synchronously(handle, old);
    fleet.journal.act("failover of Postgres", method);
    let from = now();
    match method {
        "shut down" => old.shut_down().unwrap(),
        READ_ONLY => {
            sql(handle, old, "ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
            sql(handle, old, "SELECT pg_reload_conf()").unwrap();
        }
        "kill -9" => old.kill().unwrap(),
        _ => old.stop().unwrap(),
    }
    sleep(detection);
    let promoted = wait_for(|| sql(handle, new, "SELECT pg_promote(true, 10)").ok());
    promoted.expect("the standby is promoted");
    pairs.postgres_name.lead_to(new.port());
    let write = || {
        handle.block_on(async {
            let client = fleet.postgres_now().await.ok()?;
            client.batch_execute("CREATE TABLE IF NOT EXISTS failover_drill (); DROP TABLE failover_drill").await.ok()
        })
    };
    wait_for(write).expect("the new primary accepts writes");
    let available = now();
    let mut conditions: Vec<Condition<'_>> =
        vec![("monitors", Box::new(|| monitors_use_postgres(fleet, handle, new, available).then(now)))];
    if method == READ_ONLY {
        conditions.push((DISCONNECTED, Box::new(|| no_client_of_postgres(handle, old).then(now))));
    }
    let back = wait_for_all(conditions);
    fleet.journal.window(Fault::Postgres, from);
    old.follow(new).unwrap();
    Failover { server: "Postgres", method, from, available, back }
}

/// Whether both monitors read the new primary, show no refused write, and one of them has recorded history there.
fn monitors_use_postgres(fleet: &Fleet, handle: &Handle, new: &PrivatePostgres, available: f64) -> bool {
    let shown = crate::observe::snapshots(fleet, handle).iter().all(|snapshot| {
        let Some(snapshot) = snapshot else { return false };
        let postgres: &Value = &snapshot["postgres"];
        postgres["source"]["status"] == "ok"
            && postgres["write_error"].is_null()
            && snapshot["ts"].as_f64().is_some_and(|at| at > available)
    });
    let newest =
        format!("SELECT coalesce(max(extract(epoch FROM ts)), 0) FROM monitor_metrics WHERE metric = '{SERIES}'");
    shown && sql(handle, new, &newest).is_ok_and(|at| at.parse::<f64>().is_ok_and(|at| at > available))
}

fn no_client_of_postgres(handle: &Handle, old: &PrivatePostgres) -> bool {
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'shepherd-monitor%'";
    sql(handle, old, clients).is_ok_and(|count| count == "0")
}

/// Compares the gaps in the recorded history with the outages, and prints a table: median and maximum of each method.
pub(crate) fn report(fleet: &Fleet, observed: &Observed, handle: &Handle, failovers: &[Failover]) {
    let samples = handle.block_on(async {
        let client = fleet.postgres_now().await.unwrap();
        let all = "SELECT extract(epoch FROM ts)::float8 FROM monitor_metrics WHERE metric = $1 ORDER BY ts";
        let rows = client.query(all, &[&SERIES]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<f64>>()
    });
    let of_redis: Vec<&Failover> = failovers.iter().filter(|failover| failover.server == "Redis").collect();
    // What is missing beside the usual distance. A gap during a failover of Redis is that one's.
    let gap = |failover: &Failover| {
        let of_another = |pair: &[f64]| {
            failover.server != "Redis" && of_redis.iter().any(|redis| redis.from <= pair[1] && pair[0] <= redis.ended())
        };
        let during = samples.windows(2).filter(|pair| pair[0] <= failover.ended() && pair[1] >= failover.from);
        during
            .filter(|pair| !of_another(pair))
            .map(|pair| pair[1] - pair[0] - fleet.history_interval)
            .fold(0.0, f64::max)
    };
    for failover in failovers {
        let (gap, outage) = (gap(failover), failover.outage());
        // Samples are taken at whole intervals, and a reading begins and ends at any moment.
        if gap > outage + 2.0 * fleet.history_interval {
            let (server, method) = (failover.server, failover.method);
            let text =
                format!("{server}, {method}: {gap:.1} s of history are missing after an outage of {outage:.1} s");
            fleet.journal.violation(text);
        }
    }
    let events = observed.events.lock().unwrap();
    let lost = |failover: &Failover| {
        let during = failover.from..failover.ended() + 30.0;
        events.iter().filter(|event| event.kind == "consumers_lost" && during.contains(&event.found)).count()
    };
    let columns = ["monitors", "workers", DISCONNECTED];
    println!(
        "| server | failover | rounds | outage | {} | history gap | workers recorded as lost |",
        columns.join(" | ")
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let methods = REDIS_METHODS.map(|method| ("Redis", method)).into_iter();
    for (server, method) in methods.chain(POSTGRES_METHODS.map(|method| ("Postgres", method))) {
        let rounds: Vec<&Failover> =
            failovers.iter().filter(|failover| failover.server == server && failover.method == method).collect();
        let spread = |figure: &dyn Fn(&Failover) -> Option<f64>| {
            let mut values: Vec<f64> = rounds.iter().filter_map(|failover| figure(failover)).collect();
            values.sort_by(f64::total_cmp);
            let median = values.get(values.len() / 2);
            median.zip(values.last()).map(|(median, most)| format!("{median:.1} s, {most:.1} s")).unwrap_or_default()
        };
        println!(
            "| {server} | {method} | {} | {} | {} | {} | {} |",
            rounds.len(),
            spread(&|failover| Some(failover.outage())),
            columns.map(|what| spread(&|failover| failover.back_after(what))).join(" | "),
            spread(&|failover| Some(gap(failover))),
            rounds.iter().map(|failover| lost(failover)).sum::<usize>(),
        );
    }
}
