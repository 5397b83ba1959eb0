//! Tests of the findings: a reading without problems, and variants with one change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::monitor::{self, Looked, Rules, RulesRead};
use super::report::{Finding, Verdict};
use super::{postgres, redis};
use crate::contract::{Heartbeat, Name};
use crate::fleet::older_monitor::OlderMonitor;
use crate::fleet::reading::{
    Beat, BeatReading, GroupConsumer, GroupReading, HeartbeatsReading, Lag, MarkerReading, RedisServer, SourceTrouble,
    StreamFacts, StreamReading, StreamsReading, TroubleKind, UnreadableHeartbeat,
};
use crate::postgres::diagnostics::NotConnected;
use crate::redis_streams::diagnostics::{Examined, Fleet, Need, Refusal, Server};

const HOUR: Duration = Duration::from_secs(3600);
const NOW: f64 = 1_700_000_000.0;

fn name(text: &str) -> Name {
    Name::from(text)
}

fn consumer(called: &str, pending: u64, idle_ms: u64) -> GroupConsumer {
    GroupConsumer { name: name(called), pending, phantom_pending: 0, idle_ms, inactive_ms: None }
}

fn good_beat(of: &str) -> Beat {
    let key = format!("worker:heartbeat:s:{of}");
    let value = format!(r#"{{"stream":"s","consumer":"{of}","started_at":{NOW},"last_seen":{NOW},"task_limit":4}}"#);
    Beat::Present(Arc::new(Heartbeat::parse(key.as_bytes(), value.as_bytes()).unwrap()))
}

fn good_group() -> GroupReading {
    GroupReading {
        name: name("consumer"),
        pending: 1,
        phantom_pending: 0,
        phantom_at_least: false,
        lag: Lag::Reported(2),
        entries_read: Some(5),
        last_delivered_id: "1-0".to_owned(),
        oldest_undelivered_ms: Some(1_699_999_990_000),
        consumers: Some([consumer("c", 1, 10)].into()),
    }
}

fn good_server() -> Server {
    Server {
        figures: RedisServer {
            version: Some("7.2.9".to_owned()),
            used_memory_bytes: Some(10),
            maxmemory_bytes: Some(100),
            evicted_keys: Some(0),
            ..RedisServer::default()
        },
        trouble: None,
        relative: None,
        cluster: false,
        eviction: Some("noeviction".to_owned()),
        appends: Some(true),
        saves: Some(String::new()),
        last_save_failed: false,
        clock_ahead_sec: Some(0.01),
    }
}

fn with(facts: StreamFacts) -> Examined {
    let streams = BTreeMap::from([(name("s"), StreamReading { facts: Ok(facts) })]);
    Examined {
        server: good_server(),
        user: Some("default".to_owned()),
        fleet: Ok(Fleet {
            streams: StreamsReading { redis_time: NOW, server: RedisServer::default(), streams, failures: None },
            heartbeats: HeartbeatsReading::default(),
            too_many_keys: false,
        }),
        refusals: Some([].into()),
        older_monitor: Some(OlderMonitor::Absent),
    }
}

fn with_group(change: impl FnOnce(&mut GroupReading)) -> Examined {
    let mut group = good_group();
    change(&mut group);
    with(StreamFacts { exists: true, length: 3, groups: vec![group] })
}

fn with_server(change: impl FnOnce(&mut Server)) -> Examined {
    let mut examined = with_group(|_| {});
    change(&mut examined.server);
    examined
}

/// Returns the findings that are not fine.
fn said(findings: &[Finding]) -> Vec<(&'static str, Verdict)> {
    findings.iter().filter(|f| f.verdict != Verdict::Fine).map(|f| (f.id, f.verdict)).collect()
}

fn of_redis(examined: &Examined) -> Vec<(&'static str, Verdict)> {
    said(&redis::findings(examined, HOUR, false))
}

use Verdict::{WorthKnowing, Wrong};

#[test]
fn healthy_redis_has_no_findings() {
    assert_eq!(of_redis(&with_group(|_| {})), []);
    // No workers yet.
    assert_eq!(of_redis(&with(StreamFacts::default())), []);
}

#[test]
fn each_problem_of_the_server_is_reported() {
    let policy = |s: &mut Server, policy: &str| s.eviction = Some(policy.to_owned());
    let limit =
        |s: &mut Server, used, limit| (s.figures.used_memory_bytes, s.figures.maxmemory_bytes) = (Some(used), limit);
    type Change<'a> = Box<dyn FnOnce(&mut Server) + 'a>;
    let cases: Vec<(Change<'_>, &str, Verdict)> = vec![
        (Box::new(|s| policy(s, "allkeys-lru")), "redis.eviction", Wrong),
        (Box::new(|s| policy(s, "volatile-ttl")), "redis.eviction", Wrong),
        (Box::new(|s| (policy(s, "allkeys-lru"), s.figures.maxmemory_bytes = None).1), "redis.eviction", WorthKnowing),
        (Box::new(|s| limit(s, 91, Some(100))), "redis.memory", Wrong),
        (Box::new(|s| limit(s, 80, Some(100))), "redis.memory", WorthKnowing),
        (Box::new(|s| s.appends = Some(false)), "redis.persistence", Wrong),
        (
            Box::new(|s| (s.appends, s.saves) = (Some(false), Some("3600 1".to_owned()))),
            "redis.persistence",
            WorthKnowing,
        ),
        (Box::new(|s| (s.appends, s.saves) = (Some(false), None)), "redis.persistence", WorthKnowing),
        (Box::new(|s| s.last_save_failed = true), "redis.last_save", Wrong),
        (Box::new(|s| s.clock_ahead_sec = Some(-5.0)), "redis.clock", WorthKnowing),
        (Box::new(|s| s.clock_ahead_sec = Some(3600.0)), "redis.clock", Wrong),
        (Box::new(|s| s.figures.version = Some("5.0.14".to_owned())), "redis.too_old", Wrong),
    ];
    for (change, id, verdict) in cases {
        assert_eq!(of_redis(&with_server(change)), [(id, verdict)]);
    }
    // Compatible products do not have Redis' bugs.
    assert_eq!(
        of_redis(&with_server(|s| {
            s.figures.version = Some("7.0.0".to_owned());
            s.relative = Some("valkey".to_owned());
        })),
        []
    );
}

#[test]
fn remedy_of_a_refused_command_depends_on_the_cause() {
    let remedy = |version: &str, code: &str, said: &str, cluster: bool| {
        let mut examined = with_server(|s| (s.figures.version, s.cluster) = (Some(version.to_owned()), cluster));
        let refusal = Refusal {
            command: "XTRIM".to_owned(),
            needed_for: Need::Tending,
            code: code.to_owned(),
            said: said.to_owned(),
        };
        examined.refusals = Some(vec![refusal]);
        let findings = redis::findings(&examined, HOUR, false);
        let wrong: Vec<&Finding> =
            findings.iter().filter(|f| ["redis.refuses", "redis.cluster"].contains(&f.id)).collect();
        assert_eq!(wrong.len(), 1, "{findings:?}");
        format!("{:?}", wrong[0])
    };
    let unknown = "unknown command 'XTRIM', with args beginning with:";
    assert!(remedy("6.0.16", "ERR", unknown, false).contains("upgrade"));
    for (code, said, cluster, part) in [
        ("ERR", unknown, false, "rename-command"),
        ("ERR", "unsupported command 'XTRIM'", false, "proxy"),
        ("ERR", "something else", false, "see the error message"),
        ("MOVED", "1234 10.0.0.1:6379", true, "cluster mode disabled"),
        ("CROSSSLOT", "Keys in request don't hash to the same slot", false, "cluster mode disabled"),
        ("CLUSTERDOWN", "Hash slot not served", true, "cluster mode disabled"),
        ("NOREPLICAS", "Not enough good replicas to write", false, "min-replicas-to-write"),
        ("READONLY", "You can't write against a read only replica", false, "to the primary"),
    ] {
        let said = remedy("7.0.15", code, said, cluster);
        assert!(said.contains(part) && !said.contains("upgrade"), "{code}: {said}");
    }
}

#[test]
fn remedy_of_an_unreachable_server_depends_on_the_cause() {
    let redis = |said: &str| redis::not_reached(&SourceTrouble::new(TroubleKind::Unreachable, said), false);
    let postgres = |said: &str| {
        let trouble = SourceTrouble::new(TroubleKind::Unreachable, said);
        postgres::not_reached(&NotConnected { trouble, no_such_database: false })
    };
    for (said, part) in [
        ("no connection (invalid peer certificate: UnknownIssuer)", "PEM file with the CA certificate"),
        ("no connection (failed to lookup address information: Name or service not known)", "DNS"),
    ] {
        for finding in [redis(said), postgres(said)] {
            let shown = format!("{finding:?}");
            assert!(shown.contains(part) && !shown.contains("start the server"), "{shown}");
        }
    }
    assert!(format!("{:?}", redis("no connection (Connection refused)")).contains("start the server"));
    let too_little = SourceTrouble::new(TroubleKind::Refused, "Redis denied a command: no permission for 'select'");
    let shown = format!("{:?}", redis::not_reached(&too_little, false));
    assert!(shown.contains("ACL SETUSER") && !shown.contains("REDIS_PASSWORD"), "{shown}");
}

#[test]
fn unusable_redis_is_reported_once() {
    for (kind, id) in [(TroubleKind::Replica, "redis.role"), (TroubleKind::Loading, "redis.loading")] {
        let mut examined = with_server(|s| s.trouble = Some(SourceTrouble::new(kind, "Redis is loading its data")));
        examined.fleet = Err(SourceTrouble::new(kind, "so it is not read"));
        examined.refusals = None;
        assert_eq!(of_redis(&examined), [(id, Wrong)]);
    }
}

#[test]
fn reports_groups_without_readers_but_not_active_ones() {
    let without_consumer = with_group(|g| g.consumers = Some([].into()));
    assert_eq!(of_redis(&without_consumer), [("redis.without_consumer", Wrong)]);
    let at_rest = with_group(|g| (g.consumers, g.pending, g.lag) = (Some([].into()), 0, Lag::Reported(0)));
    assert_eq!(of_redis(&at_rest), [("redis.group_at_rest", WorthKnowing)]);
    let without_group = with(StreamFacts { exists: true, length: 3, groups: Vec::new() });
    assert_eq!(of_redis(&without_group), [("redis.without_group", WorthKnowing)]);
    let stopped = |idle_ms, oldest| {
        of_redis(&with_group(|g| {
            g.pending = 0;
            g.consumers = Some([consumer("c", 0, idle_ms), consumer("d", 0, 1_000_000_000)].into());
            g.oldest_undelivered_ms = Some(oldest);
        }))
    };
    let long_ago = 1_699_000_000_000;
    assert_eq!(stopped(3_600_000, long_ago), [("redis.group_stopped", Wrong), ("redis.phantom", WorthKnowing)]);
    // A consumer that still sends commands, or recent work, means slow or new, not stopped.
    assert_eq!(stopped(3_599_999, long_ago), [("redis.phantom", WorthKnowing)]);
    assert_eq!(stopped(3_600_000, 1_699_999_999_000), [("redis.phantom", WorthKnowing)]);
}

#[test]
fn never_suggests_destroying_a_group_with_live_workers() {
    type Change = fn(&mut GroupReading);
    // Before Redis 7.2, a consumer that received nothing is not listed, and neither is a deleted one.
    let unlisted: Change = |g| g.consumers = Some([].into());
    let at_rest: Change = |g| (g.consumers, g.pending, g.lag) = (Some([].into()), 0, Lag::Reported(0));
    let idle: Change = |g| {
        g.pending = 0;
        g.consumers = Some([consumer("w", 0, 7_200_000)].into());
        g.oldest_undelivered_ms = Some(1_699_000_000_000);
    };
    let cases: [(Change, &[(&str, Verdict)]); 3] =
        [(unlisted, &[]), (at_rest, &[]), (idle, &[("redis.workers_stuck", Wrong)])];
    for (change, expected) in cases {
        for beat in [good_beat("w"), Beat::Unreadable("not JSON".into())] {
            let mut examined = with_group(change);
            let reading = BeatReading { beat, marker: MarkerReading::NotRead };
            let fleet = examined.fleet.as_mut().unwrap();
            fleet.heartbeats.consumers.insert(name("s"), vec![(name("w"), reading)]);
            assert_eq!(of_redis(&examined), expected);
            let findings = redis::findings(&examined, HOUR, false);
            assert!(!findings.iter().any(|finding| format!("{finding:?}").contains("DESTROY")), "{findings:?}");
        }
    }
    // The worker belongs to another group, so this one has none.
    let mut examined = with_group(unlisted);
    let fleet = examined.fleet.as_mut().unwrap();
    let reading = BeatReading { beat: good_beat("w"), marker: MarkerReading::NotRead };
    fleet.heartbeats.consumers.insert(name("s"), vec![(name("w"), reading)]);
    let facts = fleet.streams.streams.get_mut(&name("s")).unwrap().facts.as_mut().unwrap();
    let mut other = good_group();
    (other.name, other.consumers) = (name("other"), Some([consumer("w", 1, 10)].into()));
    facts.groups.push(other);
    assert_eq!(of_redis(&examined), [("redis.without_consumer", Wrong)]);
}

#[test]
fn phantom_pending_ids_are_reported_and_not_counted_as_work() {
    let examined = with_group(|g| {
        (g.phantom_pending, g.consumers) = (1, Some([].into()));
        g.lag = Lag::Reported(0);
    });
    assert_eq!(of_redis(&examined), [("redis.group_at_rest", WorthKnowing), ("redis.phantom_pending", WorthKnowing)]);
}

#[test]
fn consumers_are_stale_after_an_hour_without_heartbeat() {
    let with_beat = |idle_ms, pending, beat: Beat| {
        let mut examined =
            with_group(|g| g.consumers = Some([consumer("c", pending, idle_ms), consumer("d", 0, 1)].into()));
        let reading = BeatReading { beat, marker: MarkerReading::NotRead };
        let fleet = examined.fleet.as_mut().unwrap();
        fleet.heartbeats.consumers = BTreeMap::from([(name("s"), vec![(name("c"), reading)])]);
        of_redis(&examined)
    };
    assert_eq!(with_beat(3_600_000, 0, Beat::Absent), [("redis.phantom", WorthKnowing)]);
    assert_eq!(with_beat(3_600_000, 2, Beat::Absent), [("redis.dead_consumer", Wrong)]);
    assert_eq!(with_beat(3_599_999, 2, Beat::Absent), []);
    assert_eq!(with_beat(3_600_000, 2, Beat::Unreadable("no JSON".into())), []);
}

#[test]
fn unreadable_streams_and_dead_letters_are_reported() {
    let mut examined = with_group(|_| {});
    let fleet = examined.fleet.as_mut().unwrap();
    fleet.too_many_keys = true;
    fleet.heartbeats.unreadable = vec![UnreadableHeartbeat {
        key: "worker:heartbeat:s:c".to_owned(),
        reason: "no JSON".to_owned(),
        stream: None,
        consumer: None,
    }];
    let dead = StreamFacts { exists: true, length: 2, groups: Vec::new() };
    fleet.streams.streams.insert(name("s:dead"), StreamReading { facts: Ok(dead) });
    fleet.streams.streams.insert(name("t"), StreamReading { facts: Err("holds something else".to_owned()) });
    assert_eq!(
        of_redis(&examined),
        [
            ("redis.stream_unreadable", Wrong),
            ("redis.keyspace", WorthKnowing),
            ("redis.heartbeat_unreadable", Wrong),
            ("redis.dead_letters", WorthKnowing),
        ]
    );
    examined.fleet = Err(SourceTrouble::new(TroubleKind::Refused, "Redis permits too little"));
    assert_eq!(of_redis(&examined), [("redis.streams", Wrong)]);
}

#[test]
fn active_older_monitor_is_an_error_unless_observing() {
    for (older, observe_only, verdict) in [
        (OlderMonitor::Absent, false, None),
        (OlderMonitor::Active, false, Some(Wrong)),
        (OlderMonitor::Unknown, false, Some(WorthKnowing)),
        (OlderMonitor::Active, true, None),
    ] {
        let mut examined = with_group(|_| {});
        examined.older_monitor = Some(older);
        let found = said(&redis::findings(&examined, HOUR, observe_only));
        let wanted: Vec<_> = verdict.map(|verdict| ("redis.older_monitor", verdict)).into_iter().collect();
        assert_eq!(found, wanted, "{older:?} {observe_only}");
    }
}

#[test]
fn missing_permissions_are_reported_by_purpose_with_the_acl_rule() {
    let refusal = |command: &str, needed_for, code: &str, said: &str| Refusal {
        command: command.to_owned(),
        needed_for,
        code: code.to_owned(),
        said: said.to_owned(),
    };
    let no = "User watcher has no permissions to run the command";
    let mut examined = with_group(|_| {});
    examined.user = Some("watcher".to_owned());
    examined.refusals = Some(vec![
        refusal("XINFO GROUPS", Need::Watching, "NOPERM", no),
        refusal("XTRIM", Need::Tending, "NOPERM", no),
        refusal("XDEL", Need::Tending, "NOPERM", "No permissions to access a key"),
        refusal("INFO", Need::Describing, "NOPERM", no),
        refusal("SMEMBERS", Need::Watching, "NOPERM", no),
        refusal("SMEMBERS", Need::Remembering, "NOPERM", no),
        refusal("SET", Need::Remembering, "MISCONF", "Errors writing to the AOF file"),
    ]);
    let findings = redis::findings(&examined, HOUR, false);
    assert_eq!(
        said(&findings),
        [
            ("redis.may_describe", Wrong),
            ("redis.may_watch", Wrong),
            ("redis.may_tend", Wrong),
            ("redis.refuses", Wrong)
        ]
    );
    let remedy = |id| findings.iter().find(|finding| finding.id == id).unwrap().remedy.as_str();
    assert_eq!(remedy("redis.may_watch"), "run ACL SETUSER watcher +xinfo|groups +smembers");
    assert_eq!(remedy("redis.may_tend"), "run ACL SETUSER watcher +xtrim ~*");
    let observing = redis::findings(&examined, HOUR, true);
    assert_eq!(
        said(&observing),
        [("redis.may_describe", Wrong), ("redis.may_watch", Wrong)],
        "who only observes needs to read"
    );
    assert!(remedy("redis.refuses").contains("disk"));
}

mod of_postgres {
    use super::*;
    use crate::postgres::diagnostics::{Examined, FLEET_TABLES, Inside, MONITOR_TABLES, NotConnected, Server, Table};

    fn good() -> (Server, Inside) {
        let table = |name: &&str| Table { name: (*name).to_owned(), refused: Vec::new(), owned: true };
        let inside = Inside {
            clock_ahead_sec: 0.0,
            schema: Some("public".to_owned()),
            may_create: true,
            may_see_wal: true,
            tables: FLEET_TABLES.iter().chain(&MONITOR_TABLES).map(table).collect(),
            sequences_refused: Vec::new(),
            indexes: vec![("callbacks_query_id", "callbacks (query_id)", true)],
            migrated: Some(vec!["0001".to_owned(), "0002".to_owned()]),
            known_migrations: vec!["0001".to_owned(), "0002".to_owned()],
        };
        (Server::example(15), inside)
    }

    fn of(change: impl FnOnce(&mut Server, &mut Inside)) -> Vec<(&'static str, Verdict)> {
        let (mut server, mut inside) = good();
        change(&mut server, &mut inside);
        said(&postgres::findings(&Examined { server, inside: Some(inside), pooler: None }))
    }

    #[test]
    fn healthy_database_has_no_findings_with_or_without_queries() {
        assert_eq!(of(|_, _| {}), []);
        assert_eq!(of(|_, i| i.tables.retain(|table| !FLEET_TABLES.contains(&table.name.as_str()))), []);
    }

    #[test]
    fn each_trouble_is_named() {
        type Change = fn(&mut Server, &mut Inside);
        let cases: [(Change, &str, Verdict); 15] = [
            (|s, _| s.superuser = true, "postgres.superuser", WorthKnowing),
            (|s, _| s.standby = true, "postgres.standby", Wrong),
            (|s, _| s.read_only = true, "postgres.read_only", Wrong),
            (|s, _| s.autovacuum = false, "postgres.autovacuum", Wrong),
            (|s, _| s.time_zone = "Asia/Tokyo".to_owned(), "postgres.time_zone", WorthKnowing),
            (|_, i| i.clock_ahead_sec = 90.0, "postgres.clock", Wrong),
            (|_, i| i.may_see_wal = false, "postgres.wal", WorthKnowing),
            (|_, i| i.indexes[0].2 = false, "postgres.indexes", WorthKnowing),
            (|_, i| i.tables.retain(|table| table.name != "callbacks"), "postgres.fleet", WorthKnowing),
            (|_, i| i.tables.retain(|table| table.name != "monitor_audit"), "postgres.tables", Wrong),
            (|_, i| i.migrated = None, "postgres.migrations", WorthKnowing),
            (|_, i| (i.migrated, i.may_create) = (None, false), "postgres.may_create", Wrong),
            (|_, i| i.sequences_refused.push("monitor_events_id_seq".to_owned()), "postgres.may_number", Wrong),
            (|_, i| i.known_migrations.truncate(1), "postgres.newer", WorthKnowing),
            (
                |_, i| i.tables.iter_mut().for_each(|table| table.refused = vec!["INSERT".to_owned()]),
                "postgres.may_write",
                Wrong,
            ),
        ];
        for (change, id, verdict) in cases {
            assert_eq!(of(change), [(id, verdict)]);
        }
    }

    #[test]
    fn old_server_is_not_examined_further() {
        let examined = Examined { server: Server::example(9), inside: None, pooler: None };
        assert_eq!(said(&postgres::findings(&examined)), [("postgres.too_old", Wrong)]);
    }

    #[test]
    fn causes_of_failed_connections_are_distinguished() {
        let not = |kind, no_such_database| NotConnected { trouble: SourceTrouble::new(kind, "said"), no_such_database };
        for (not_connected, id, remedy) in [
            (not(TroubleKind::Refused, false), "postgres.login", "POSTGRES_PASSWORD"),
            (not(TroubleKind::Unreachable, true), "postgres.database", "create the database"),
            (not(TroubleKind::Unreachable, false), "postgres.reached", "POSTGRES_HOST"),
            (not(TroubleKind::TimedOut, false), "postgres.reached", "unresponsive"),
        ] {
            let finding = postgres::not_reached(&not_connected);
            assert_eq!((finding.id, finding.verdict), (id, Wrong));
            assert!(finding.remedy.contains(remedy), "{}", finding.remedy);
        }
    }
}

mod of_the_settings {
    use super::*;

    fn good() -> Looked {
        Looked {
            rules: Rules { file: "alerts.yaml".into(), is_given: false, read: RulesRead::Good(3) },
            channels: vec!["Slack"],
            has_outside_check: true,
            has_address: true,
            spool: "/var/lib/shepherd-monitor".into(),
            spool_refused: None,
            refuses_to_serve: None,
            anybody_may: false,
            clear_password_to: None,
            clear_redis_password_to: None,
            trusts_everybody: false,
            clear_channels: Vec::new(),
            readable_secrets: Vec::new(),
            knows_the_volume: true,
            warnings: Vec::new(),
        }
    }

    fn of(change: impl FnOnce(&mut Looked)) -> Vec<(&'static str, Verdict)> {
        let mut looked = good();
        change(&mut looked);
        said(&monitor::findings(&looked))
    }

    #[test]
    fn password_that_may_be_sent_unencrypted_is_a_warning() {
        let found = of(|looked| looked.clear_password_to = Some("db".to_owned()));
        assert_eq!(found, [("monitor.postgres_tls", Verdict::WorthKnowing)]);
    }

    #[test]
    fn valid_settings_have_no_findings() {
        assert_eq!(of(|_| {}), []);
    }

    #[test]
    fn each_trouble_is_named() {
        assert_eq!(of(|l| l.rules.read = RulesRead::Mistakes(vec!["3:5: no".to_owned()])), [("monitor.rules", Wrong)]);
        assert_eq!(of(|l| l.rules.read = RulesRead::Unreadable("no".to_owned())), [("monitor.rules", Wrong)]);
        assert_eq!(of(|l| l.rules.read = RulesRead::Missing), [("monitor.rules", WorthKnowing)]);
        let missing = |l: &mut Looked| (l.rules.read, l.rules.is_given) = (RulesRead::Missing, true);
        assert_eq!(of(missing), [("monitor.rules", Wrong)]);
        assert_eq!(of(|l| l.channels.clear()), [("monitor.channels", WorthKnowing)]);
        assert_eq!(of(|l| l.clear_redis_password_to = Some("db".to_owned())), [("monitor.redis_tls", WorthKnowing)]);
        assert_eq!(of(|l| l.trusts_everybody = true), [("monitor.proxies", Wrong)]);
        assert_eq!(of(|l| l.clear_channels = vec!["SLACK_WEBHOOK_URL"]), [("monitor.channels_tls", WorthKnowing)]);
        assert_eq!(of(|l| l.readable_secrets = vec!["MONITOR_ADMIN_TOKEN_FILE"]), [("monitor.secrets", WorthKnowing)]);
        assert_eq!(of(|l| l.has_outside_check = false), [("monitor.heartbeat", WorthKnowing)]);
        assert_eq!(of(|l| l.has_address = false), [("monitor.address", WorthKnowing)]);
        assert_eq!(of(|l| l.spool_refused = Some("not writable".to_owned())), [("monitor.spool", Wrong)]);
        assert_eq!(of(|l| l.refuses_to_serve = Some("MONITOR_AUTH is".to_owned())), [("monitor.access", Wrong)]);
        assert_eq!(of(|l| l.anybody_may = true), [("monitor.access", WorthKnowing)]);
        assert_eq!(of(|l| l.knows_the_volume = false), [("monitor.volume", WorthKnowing)]);
    }
}
