//! Hostile names and values: no output for people controls a terminal or contains forged lines.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use shepherd_monitor::contract::Name;
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::postgres::migrate;
use shepherd_monitor::printable::{self, is_hidden};
use shepherd_monitor::settings::TABLE;

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run_words};

/// Forges a line, sets the title, clears the screen, changes the colour by a C1 character, and reorders text.
const HOSTILE: &str = "x\nFORGED\r\x1b]0;title\x07\x1b[2J\x7f\u{9b}31m\u{202e}\u{2028}y";
/// The same as a name, as displayed: `Name` escapes C1 characters as bytes.
const SHOWN: &str = "x\\nFORGED\\r\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{7f}\\xc2\\x9b31m\\u{202e}\\u{2028}y";

const UNREACHABLE: [(&str, &str); 2] =
    [("REDIS_URL", "redis://127.0.0.1:1"), ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres")];

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.args(arguments.iter().map(OsStr::new)).env_clear().envs(environment.iter().copied()).output().unwrap()
}

/// Returns both outputs, which are harmless.
#[track_caller]
fn harmless(output: &Output) -> String {
    let text = String::from_utf8([output.stdout.as_slice(), &output.stderr].concat()).unwrap();
    assert!(!text.replace('\n', "").contains(is_hidden), "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("FORGED")), "{text}");
    text
}

/// Quoted as in YAML, which permits no raw control characters.
fn quoted(text: &str) -> String {
    printable::json(&serde_json::to_string(text).unwrap()).into_owned()
}

#[test]
fn errors_about_arguments_and_files_are_harmless() {
    let unknown_flag = format!("--{HOSTILE}");
    let forms: &[&[&str]] = &[
        &[HOSTILE],
        &["serve", &unknown_flag],
        &["serve", HOSTILE],
        &["serve", "--port", HOSTILE],
        &["completions", HOSTILE],
        &["demo", "--history", HOSTILE],
        &["test-rules", "rules.yaml", "--since", HOSTILE],
        &["dead-letters", HOSTILE],
        &["dead-letters", "list", "--stream", "s", "--limit", HOSTILE],
        &["dead-letters", "show", "--stream", "s", "--id", HOSTILE],
        &["check-config", HOSTILE],
        &["man", HOSTILE],
        &["doctor", "--idle", HOSTILE],
    ];
    for arguments in forms {
        let output = run(arguments, &[]);
        assert!(!output.status.success(), "{arguments:?}");
        let text = harmless(&output);
        assert!(text.contains("\\u{1b}[2J") && text.contains("\\nFORGED"), "{arguments:?}: {text}");
    }

    let folder = Reaper::start("terminals", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    let file = folder.folder().join(HOSTILE.replace('\n', ""));
    let name = quoted(HOSTILE);
    for rules in [
        format!("rules:\n  - {{name: {name}, type: threshold, metric: xlen, stream: {name}, threshold: 1}}\n"),
        format!("rules:\n  - {{name: a, type: {name}}}\n  - {{name: a, {name}: 1}}\n  - {{metric: {name}}}\n"),
        format!("rules:\n  - {{name: {HOSTILE}\n"),
        HOSTILE.to_owned(),
    ] {
        fs::write(&file, rules).unwrap();
        let path = file.to_str().unwrap();
        assert!(harmless(&run(&["check-config", path], &[])).contains("\\u{1b}[2J"));
        harmless(&run(&["test-rules", path], &UNREACHABLE));
    }
}

#[test]
fn value_of_no_setting_reaches_the_terminal_unescaped() {
    let settings: Vec<&str> = TABLE.iter().map(|entry| entry.env).collect();
    thread::scope(|scope| {
        for some in settings.chunks(settings.len().div_ceil(4)) {
            scope.spawn(move || {
                for setting in some {
                    let mut environment = UNREACHABLE.to_vec();
                    environment.retain(|(name, _)| name != setting);
                    environment.extend([(*setting, HOSTILE), ("MONITOR_x\x1b[2J\u{9b}", "1")]);
                    let output = run(&["doctor"], &environment);
                    assert!(output.status.code().is_some_and(|code| code > 0), "{setting}: {output:?}");
                    harmless(&output);
                }
            });
        }
    });
    // The whole value is one line, so that nothing is forged.
    let output = run(&["serve"], &[("LOG_LEVEL", HOSTILE)]);
    assert_eq!(harmless(&output).lines().count(), 1);
}

#[tokio::test]
async fn names_in_redis_and_rules_are_harmless_in_the_output_of_commands() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    migrate::run(&database.url(), Duration::from_secs(20)).await.unwrap();
    let (redis_url, database_url) = (redis.url(), database.url());
    let settings = [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", database_url.as_str())];
    let mut connection = redis.connection().await;
    let dead = format!("{HOSTILE}:dead");
    let hostile = HOSTILE.as_bytes();
    for words in [
        &[&b"XGROUP"[..], b"CREATE", hostile, hostile, b"0", b"MKSTREAM"][..],
        &[b"XADD", hostile, b"*", hostile, hostile],
        &[b"XADD", dead.as_bytes(), b"1-1", b"query_id", hostile, b"dead_error", hostile, hostile, hostile],
        &[b"SET", b"worker:heartbeat:h:c", hostile],
    ] {
        run_words(&mut connection, words).await;
    }
    let text = harmless(&run(&["doctor", "--idle", "1ms"], &settings));
    assert!(text.contains(&format!("{SHOWN} of {SHOWN}")), "{text}");
    let json = run(&["doctor", "--idle", "1ms", "--json"], &settings);
    harmless(&json);
    assert!(serde_json::from_slice::<Value>(&json.stdout).unwrap().to_string().contains("FORGED"));

    for (arguments, shown) in [
        (&["list"][..], true),
        (&["show", "--id", "1-1"], true),
        (&["show", "--id", "9-9"], true),
        (&["replay", "--id", "9-9"], true),
        (&["delete", "--id", "9-9"], true),
    ] {
        let output = run(&[&["dead-letters"], arguments, &["--stream", HOSTILE]].concat(), &settings);
        assert_eq!(harmless(&output).contains(SHOWN), shown, "{arguments:?}: {output:?}");
    }

    let folder = Reaper::start("terminals", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    let file = folder.folder().join("rules.yaml");
    let rule = json!({"name": HOSTILE, "type": "threshold", "metric": "xlen", "stream": HOSTILE, "threshold": 1});
    fs::write(&file, printable::json(&json!({"rules": [rule]}).to_string()).as_ref()).unwrap();
    let text = harmless(&run(&["test-rules", file.to_str().unwrap()], &settings));
    assert!(text.contains("\\u{1b}[2J"), "{text}");
}

/// Runs a command on a terminal of its own, and copies its output.
const TERMINAL: &str = r"
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
while True:
    try:
        some = os.read(terminal, 65536)
    except OSError:
        break
    if not some:
        break
    os.write(1, some)
os.waitpid(pid, 0)
";

#[tokio::test]
async fn logs_are_harmless_on_a_terminal_and_valid_json_elsewhere() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut connection = redis.connection().await;
    let folder = Reaper::start("terminals", ShutdownSpec { signal: "KILL", epilogue: "" }).unwrap();
    // Arguments of the test's processes have no line breaks.
    let rules = folder.folder().join(HOSTILE.replace('\n', ""));
    let name = quoted(HOSTILE);
    fs::write(&rules, format!("rules:\n  - {{name: {name}, type: {name}}}\n")).unwrap();
    let script = folder.folder().join("terminal.py");
    fs::write(&script, TERMINAL).unwrap();
    let on_terminal = ["/usr/bin/python3".to_owned(), script.display().to_string()];
    let (redis_url, database_url) = (redis.url(), database.url());
    let settings = [
        ("REDIS_URL", redis_url.as_str()),
        ("DATABASE_URL", database_url.as_str()),
        ("MONITOR_ALERTS_CONFIG", rules.to_str().unwrap()),
        ("MONITOR_x\x1b[2J\u{9b}31m", "1"),
    ];
    for terminal in [true, false] {
        let heartbeat =
            json!({"stream": HOSTILE, "consumer": HOSTILE, "started_at": 1.0, "last_seen": 1.0, "task_limit": 1});
        let key = format!("worker:heartbeat:{HOSTILE}:{HOSTILE}");
        run_words(&mut connection, &[b"SET", key.as_bytes(), heartbeat.to_string().as_bytes()]).await;
        let prefix: &[String] = if terminal { &on_terminal } else { &[] };
        let monitor = Monitor::start_by(prefix, &settings).await;
        monitor.takes_orders().await;
        monitor.until("the type is known", Duration::from_secs(20), |s| s["workers"][HOSTILE].is_object()).await;
        let url = reqwest::Url::parse_with_params(&monitor.url("/api/admin/forget_worker"), [("name", HOSTILE)]);
        let answer = reqwest::Client::new().post(url.unwrap()).send().await.unwrap();
        assert!(answer.status().is_success(), "{:?}", answer.text().await);
        let log = monitor.log();
        drop(monitor);
        assert!(log.contains("a worker type was removed"), "{log}");
        if terminal {
            assert!(log.contains(SHOWN), "{log:?}");
            assert!(log.contains('\x1b'), "no terminal: {log}");
            let colours = ["0", "1", "2", "3", "31", "32", "33", "34", "35"].map(|code| format!("\x1b[{code}m"));
            let plain = log.replace("\r\n", "\n");
            let plain = colours.iter().fold(plain, |log, colour| log.replace(colour, ""));
            assert!(!plain.replace('\n', "").contains(is_hidden), "{plain:?}");
            assert!(!plain.lines().any(|line| line.starts_with("FORGED")), "{plain}");
        } else {
            assert!(!log.replace('\n', "").contains(is_hidden), "{log:?}");
            let records: Vec<Value> = log
                .lines()
                .filter(|line| !line.starts_with("shepherd-monitor: listening"))
                .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no record: {line}")))
                .collect();
            assert!(records.iter().any(|record| record["worker_type"] == Name::from(HOSTILE).to_text()), "{log}");
        }
    }
}
