//! The command line: help, invalid settings, start and shutdown.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.output().unwrap()
}

#[test]
fn help_lists_every_setting_with_its_default_and_no_secrets() {
    let help = run(&["serve", "--help"], &[("REDIS_PASSWORD", "t0psecret")]);
    let text = String::from_utf8(help.stdout).unwrap();
    for entry in shepherd_monitor::settings::TABLE.iter() {
        assert!(
            text.contains(entry.env) && text.contains(&format!("--{}", entry.flag())),
            "{} is missing:\n{text}",
            entry.env
        );
    }
    assert!(text.contains("[default: 5440]") && !text.contains("t0psecret"));
}

/// Returns the completions of bash for this line, with the program's script.
fn completed_by_bash(line: &str) -> Vec<String> {
    let script = r#"
        source <("$0" completions bash) || exit 3
        read -ra COMP_WORDS <<<"$1"
        [[ $1 != *' ' ]] || COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        COMP_LINE=$1 COMP_POINT=${#1}
        "$(complete -p shepherd-monitor | sed 's/.*-F \([^ ]*\).*/\1/')" \
            shepherd-monitor "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let program = env!("CARGO_BIN_EXE_shepherd-monitor");
    let output = Command::new("bash").args(["--norc", "-c", script, program, line]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn completes_commands_and_flags_in_bash_and_supports_other_shells() {
    assert_eq!(completed_by_bash("shepherd-monitor doc"), ["doctor"]);
    assert_eq!(
        completed_by_bash("shepherd-monitor serve --redis-p"),
        ["--redis-port", "--redis-password", "--redis-password-file"]
    );
    assert_eq!(completed_by_bash("shepherd-monitor dead-letters re"), ["replay"]);
    assert_eq!(completed_by_bash("shepherd-monitor completions z"), ["zsh"]);
    assert!(completed_by_bash("shepherd-monitor man --redis-p").is_empty());
    let commands = completed_by_bash("shepherd-monitor ");
    assert!(commands.contains(&"serve".to_owned()) && !commands.contains(&"demo-worker".to_owned()), "{commands:?}");
    for shell in ["zsh", "fish"] {
        let script = String::from_utf8(run(&["completions", shell], &[]).stdout).unwrap();
        assert!(script.contains("test-rules") && script.contains("pg-volume-capacity"), "{shell}");
    }
    assert_eq!(run(&["completions", "dos"], &[]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_man_page_that_renders() {
    let folder = std::env::temp_dir().join(format!("man-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let asked = run(&["man", folder.to_str().unwrap()], &[("REDIS_PASSWORD", "t0psecret")]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let mut pages: Vec<std::path::PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let names: Vec<&str> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    for name in [
        "shepherd-monitor.1",
        "shepherd-monitor-serve.1",
        "shepherd-monitor-doctor.1",
        "shepherd-monitor-dead-letters-replay.1",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("demo-worker") || name.contains("help")), "{names:?}");
    for page in &pages {
        // groff is part of Debian's base system.
        let rendered =
            Command::new("groff").args(["-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=200n"]).arg(page).output().unwrap();
        assert_eq!(String::from_utf8(rendered.stderr).unwrap(), "", "{}", page.display());
        let text = String::from_utf8(rendered.stdout).unwrap();
        assert!(text.contains("NAME") && !text.contains("t0psecret"), "{text}");
        if page.ends_with("shepherd-monitor-serve.1") {
            // Lines may be broken anywhere.
            let plain: String = text.chars().filter(|c| !c.is_whitespace() && *c != '\u{2010}').collect();
            for entry in shepherd_monitor::settings::TABLE.iter() {
                let (flag, env) = (format!("--{}", entry.flag()), entry.env);
                assert!(plain.contains(&flag) && plain.contains(env), "{flag} {env}:\n{text}");
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let nowhere = run(&["man", "/nowhere/at/all"], &[]);
    assert!(!nowhere.status.success() && String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere/at/all"));
}

#[test]
fn invalid_setting_prevents_the_start_with_one_line() {
    for (name, value) in
        [("MONITOR_PORT", "99999"), ("PG_VOLUME_CAPACITY", "lots"), ("REDIS_PORT", "x"), ("LOG_LEVEL", "loud")]
    {
        let output = run(&["serve"], &[(name, value)]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(told.trim_end().lines().count(), 1, "{told}");
        assert!(told.contains(name) && told.contains(value) && told.contains("expected"), "{told}");
    }
    let flag = run(&["serve", "--port", "99999"], &[]);
    assert!(String::from_utf8(flag.stderr).unwrap().contains("MONITOR_PORT is \"99999\""));
}

#[cfg(not(feature = "otlp"))]
#[test]
fn build_without_span_export_rejects_the_setting() {
    let output = run(&["serve"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.trim_end().lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && told.contains("--features otlp"), "{told}");
}

#[test]
fn port_in_use_is_reported_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let told = String::from_utf8(run(&["serve"], &[("MONITOR_PORT", &port)]).stderr).unwrap();
    assert_eq!(told.trim_end().lines().count(), 1, "{told}");
    assert!(told.contains(&port) && told.contains("MONITOR_PORT"), "{told}");
}

#[tokio::test]
async fn unwritable_spool_folder_is_reported_at_the_start() {
    let monitor = Monitor::start(&[("MONITOR_SPOOL_DIR", "/proc/shepherd")]).await;
    eventually("it says so", Duration::from_secs(10), || async {
        let log = monitor.log();
        if log.contains("cannot write to /proc/shepherd") && log.contains("MONITOR_SPOOL_DIR") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
}

#[tokio::test]
async fn listens_on_ipv4_and_ipv6_and_reports_ipv4_client_addresses() {
    let settings = [("MONITOR_BIND", "::"), ("MONITOR_AUTH", "proxy"), ("MONITOR_PROXY_TRUSTED", "127.0.0.1")];
    let monitor = Monitor::start(&settings).await;
    let port = monitor.address().rsplit(':').next().unwrap().to_owned();
    let url = format!("http://127.0.0.1:{port}/api/series");
    let ask = reqwest::Client::new().get(url).header("x-forwarded-user", "bo").header("x-forwarded-role", "viewer");
    assert_ne!(ask.send().await.unwrap().status(), 403, "the proxy is known by its address of IPv4");
    assert!(run(&["health"], &[("MONITOR_PORT", port.as_str()), ("MONITOR_BIND", "::")]).status.success());
}

#[tokio::test]
async fn health_command_succeeds_or_reports_the_reason() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let port = monitor.address().rsplit(':').next().unwrap().to_owned();
    let here = [("MONITOR_PORT", port.as_str())];
    assert!(run(&["health"], &here).status.success());
    eventually("it is ready", Duration::from_secs(60), || async {
        run(&["health", "--ready"], &here).status.success().then_some(())
    })
    .await;
    drop(monitor);
    let dead = run(&["health"], &here);
    let told = String::from_utf8(dead.stderr).unwrap();
    assert!(!dead.status.success() && told.contains(&port) && told.trim_end().lines().count() == 1, "{told}");
}

#[tokio::test]
async fn shuts_down_within_2_s_with_open_websockets() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let mut sockets = Vec::new();
    for path in ["/ws", "/ws", "/live/ws?epoch=0&tick=0"] {
        let (mut socket, _) =
            tokio_tungstenite::connect_async(format!("ws://{}{path}", monitor.address())).await.unwrap();
        assert!(socket.next().await.unwrap().unwrap().is_text());
        sockets.push(socket);
    }
    let asked = Instant::now();
    monitor.send("TERM");
    eventually("it is gone", Duration::from_secs(5), || async { !monitor.is_running() }).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
    for mut socket in sockets {
        let closed = async {
            while let Some(Ok(message)) = socket.next().await {
                if message.is_close() {
                    return true;
                }
            }
            false
        };
        assert!(tokio::time::timeout(Duration::from_secs(1), closed).await.unwrap(), "the session was closed in order");
    }
    assert!(!monitor.log().contains("panic"), "{}", monitor.log());
}

#[tokio::test]
async fn shuts_down_within_2_s_without_clients_and_with_an_idle_client() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    for silent in [false, true] {
        let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
        let connection = silent.then(|| std::net::TcpStream::connect(monitor.address()).unwrap());
        // Long enough for the HTTP thread to sleep, and its timers to be late.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = Instant::now();
        monitor.send("TERM");
        eventually("it is gone", Duration::from_secs(15), || async { !monitor.is_running() }).await;
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
        drop(connection);
    }
}

#[tokio::test]
async fn everything_is_also_served_below_the_root_path() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let settings =
        [("REDIS_URL", &*redis.url()), ("DATABASE_URL", &database.url()), ("MONITOR_ROOT_PATH", "/shepherd/monitor")];
    let monitor = Monitor::start(&settings).await;
    for path in ["/", "/api/health", "/livez", "/readyz?verbose"] {
        for prefix in ["", "/shepherd/monitor"] {
            eventually(path, Duration::from_secs(5), || async {
                monitor.get(&format!("{prefix}{path}")).await.0 == 200
            })
            .await;
        }
    }
    for path in ["/ws", "/shepherd/monitor/ws"] {
        let (mut socket, _) =
            tokio_tungstenite::connect_async(format!("ws://{}{path}", monitor.address())).await.unwrap();
        let first = socket.next().await.unwrap().unwrap().into_text().unwrap();
        let message: Value = serde_json::from_str(&first).unwrap();
        assert_eq!(message["type"], "snapshot");
        assert!(message["data"]["workers"].is_object());
    }
    let (_, page) = monitor.get("/shepherd/monitor/").await;
    assert!(page.contains("\"/shepherd/monitor/assets/"), "{page}");
    assert_eq!(monitor.get("/elsewhere").await.0, 404);
}

#[tokio::test]
async fn api_errors_name_the_invalid_parameter() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    for (query, told) in [
        ("limit=0", "limit is 0"),
        ("limit=x", "limit"),
        ("limit=99999999", "limit is 99999999"),
        ("severity=bad", "severity is"),
        ("since=5&until=4", "since must be before until"),
        ("since=NaN", "since is NaN"),
        ("since=1e300", "since is 1"),
    ] {
        let (status, body) = monitor.get(&format!("/api/historical/events?{query}")).await;
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, problem["status"].as_u64()), (400, Some(400)), "{query}: {body}");
        assert!(problem["detail"].as_str().unwrap().contains(told), "{query}: {body}");
    }
}

#[tokio::test]
async fn database_of_the_older_monitor_is_taken_over_with_its_history() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE monitor_metrics (ts timestamptz NOT NULL, metric text NOT NULL, value double precision, PRIMARY KEY (metric, ts)); \
             CREATE TABLE monitor_events (id bigserial PRIMARY KEY, ts timestamptz, type text, worker text, severity text, detail text, payload jsonb); \
             CREATE TABLE monitor_task_latency (ts timestamptz, stream text, count int, mean_ms double precision, p50_ms double precision, \
                p90_ms double precision, p95_ms double precision, p99_ms double precision, min_ms double precision, max_ms double precision, PRIMARY KEY (stream, ts)); \
             CREATE INDEX monitor_events_ts_idx ON monitor_events (ts); \
             INSERT INTO monitor_events (ts, type, worker, severity, detail, payload) VALUES \
                (now() - interval '1 day', 'scale_up', 'aragorn', 'info', 'aragorn scale_up 0 -> 5 (unknown)', '{\"from\": 0, \"to\": 5}'), \
                (now() - interval '1 hour', 'alert', 'arax', 'critical', 'arax down', '{}'); \
             INSERT INTO monitor_metrics VALUES (now(), 'xlen:arax', 5);",
        )
        .await
        .unwrap();
    let monitor = Monitor::start(&[("REDIS_URL", &redis.url()), ("DATABASE_URL", &database.url())]).await;
    let snapshot = monitor
        .until("its events are in the feed", Duration::from_secs(10), |s| {
            s["recent_events"].as_array().is_some_and(|e| e.len() == 2)
        })
        .await;
    assert_eq!(snapshot["recent_events"][0]["detail"], "arax down");
    assert_eq!(snapshot["postgres"]["without_queries"], true, "a fleet without queries is a normal fleet");
    assert!(snapshot["postgres"]["error"].is_null());
    assert_eq!(monitor.events().await.len(), 2);
    let tables: i64 = client
        .query_one("SELECT count(*) FROM pg_tables WHERE tablename IN ('shepherd_brain', 'callbacks')", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(tables, 0, "the fleet's tables are made in an empty database only");
    let kept = "SELECT count(*) FROM monitor_metrics_all WHERE metric = 'xlen:arax' AND value = 5";
    let metrics: i64 = client.query_one(kept, &[]).await.unwrap().get(0);
    assert_eq!(metrics, 1);
}

#[tokio::test]
async fn queries_and_callbacks_are_measured_in_the_servers_time_zone() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let client = database.connect().await;
    client.batch_execute(&format!("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'", database.name())).await.unwrap();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &redis.url()),
        ("DATABASE_URL", &database.url()),
        ("PG_VOLUME_CAPACITY", "1Gi"),
    ])
    .await;
    eventually("the tables are made in an empty database", Duration::from_secs(10), || async {
        client.query_one("SELECT count(*) FROM shepherd_brain", &[]).await
    })
    .await;
    let tokyo = database.connect().await;
    tokyo
        .batch_execute(
            "INSERT INTO shepherd_brain (qid, start_time, domain, state, status) VALUES \
                ('a', now(), 'aragorn', 'QUEUED', 'OK'), ('b', now() - interval '2 hours', 'arax', 'COMPLETED', 'OK'), \
                ('c', now() - interval '30 hours', 'arax', 'COMPLETED', 'ERROR'); \
             INSERT INTO callbacks VALUES ('b', 'x', NULL);",
        )
        .await
        .unwrap();
    let snapshot = monitor
        .until("the figures are in", Duration::from_secs(15), |s| {
            s["postgres"]["queries_last_24h"] == 2
                && s["postgres"]["callbacks_pending"] == 1
                && s["postgres"]["state_counts"]["COMPLETED"] == 2
        })
        .await;
    let postgres = &snapshot["postgres"];
    assert_eq!(postgres["queries_last_1h"], 1);
    assert_eq!(postgres["per_ara_24h"], serde_json::json!({"aragorn": 1, "arax": 1}));
    assert_eq!(postgres["status_counts"]["ERROR"], 1);
    let age = postgres["oldest_callback_age_sec"].as_f64().unwrap();
    assert!((7190.0..7300.0).contains(&age), "{age}");
    assert_eq!(postgres["disk_capacity_bytes"], 1 << 30);
    assert!(postgres["disk_used_pct"].as_f64().unwrap() > 0.0);
}
